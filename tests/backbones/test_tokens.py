"""The first token of an answer, and special tokens in a sample's text, under each family's tokenizer and template."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from tdrs import Stock, backbones, benchmarks
from tdrs.backbones import Backbone
from tdrs.backbones.backbone_settings import EMBEDDED, BackboneSettings
from tdrs.backbones.decoding import StepRecorder, margin
from tdrs.backbones.families import Family
from tdrs.backbones.processors import load_processor
from tdrs.backbones.prompt_encoder import PromptEncoder
from tdrs.backbones.tokens import FirstTokens, as_text, first_tokens, special_token_in
from tdrs.configuration import compose, plain
from tdrs.evaluation import evaluate
from tdrs.settings import SettingError
from tests.backbones.folders import INTERNVL_NAMES, write
from tests.backbones.folders import SPECIAL as FOLDER_MARKS

LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' '}}{% endfor %}"
    "{% else %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ part['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
USER_ONLY = (  # it leaves an assistant's turn out
    "{% for message in messages %}{% if message['role'] == 'user' %}Q: {{ message['content'][0]['text'] }}{% endif %}"
    "{% endfor %} A:"
)
SPECIAL = ["<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>"]
WORDS = ["A", "B", "yes", "Yes", "no", "No", "red", "Red"]


def processor(core: Tokenizer, template: str) -> Any:
    core.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    made.chat_template = template

    def apply(turns: Any, add_generation_prompt: bool = False) -> Any:
        return made.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, tokenize=False)

    return SimpleNamespace(tokenizer=made, apply_chat_template=apply)


def sentencepiece(scheme: str) -> Tokenizer:
    """Like Llama's: words with and without a mark for the space before them, single characters, bytes for the rest."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n"]
    pieces += [f"▁{word}" for word in WORDS] + WORDS + [chr(code) for code in range(33, 127)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            vocabulary.setdefault(word[:end], len(vocabulary))
            merges.append((word[: end - 1], word[end - 1]))
        merges.append(("▁", word))
    core = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return core


def byte_level() -> Tokenizer:
    """Like Qwen's: a space belongs to the next word."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            vocabulary.setdefault(word[:end], len(vocabulary))
            merges.append((word[: end - 1], word[end - 1]))
        vocabulary[f"Ġ{word}"] = len(vocabulary)
        merges.append(("Ġ", word))
    core = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_sentencepiece_behind_a_colon_and_behind_a_line(scheme: str) -> None:
    """LLaVA says `▁A` after "ASSISTANT:", InternVL2 `A` after a line break, whatever an answer alone begins with."""
    for template, expected in ((LLAVA, "▁{}"), (CHATML, "{}"), (USER_ONLY, "▁{}")):
        made = processor(sentencepiece(scheme), template)

        def pieces(answer: str, made: Any = made) -> list[str]:
            return made.tokenizer.convert_ids_to_tokens(first_tokens(made, answer))

        assert pieces("A") == [expected.format("A")]
        assert pieces("yes") == [expected.format("yes"), expected.format("Yes")]
        assert pieces(" red ") == [expected.format("red"), expected.format("Red")]


def test_byte_level_behind_a_colon_and_behind_a_line() -> None:
    for template, expected in ((LLAVA, "Ġ{}"), (CHATML, "{}"), (USER_ONLY, "Ġ{}")):
        made = processor(byte_level(), template)
        for answer in ("A", "no"):
            spellings = dict.fromkeys((answer, answer[:1].upper() + answer[1:]))
            found = made.tokenizer.convert_ids_to_tokens(first_tokens(made, answer))
            assert found == [expected.format(text) for text in spellings]


def test_a_blank_that_all_answers_begin_with_is_passed_over() -> None:
    made = processor(sentencepiece("never"), LLAVA)
    found = [first_tokens(made, answer, blanks=False) for answer in ("é", "蓝")]
    blank = made.tokenizer.convert_tokens_to_ids("▁")
    assert found[0] != found[1]
    assert all(blank not in ids for ids in found)


def test_a_number_begins_with_the_blank_that_the_model_says() -> None:
    """Llama's tokenizer has no piece for a space and a digit, so LLaVA's first token of 42 is the space."""
    made = processor(sentencepiece("first"), LLAVA)
    assert made.tokenizer.convert_ids_to_tokens(first_tokens(made, "42")) == ["▁"]
    made = processor(sentencepiece("first"), CHATML)
    assert made.tokenizer.convert_ids_to_tokens(first_tokens(made, "42")) == ["4"]


def test_options_that_begin_with_one_blank_are_told_apart_behind_it() -> None:
    made = processor(sentencepiece("first"), LLAVA)
    tokens = FirstTokens(made)
    sample = benchmarks.load(benchmarks.from_settings({"name": "mini_pope"}), "tuning", 8)[0]
    logs = torch.full((len(made.tokenizer),), -9.0)
    blank, four, two = made.tokenizer.convert_tokens_to_ids(["▁", "4", "2"])
    logs[blank], logs[four], logs[two] = -0.1, -3.0, -5.0
    assert margin(replace(sample, gold="4", options=("4", "2")), logs, tokens) == 2.0
    assert margin(replace(sample, gold="4", options=()), logs, tokens) == pytest.approx(2.9)


def test_a_token_over_the_border_is_not_read() -> None:
    """A prompt that ends in a space: the model has read it, and says the word without one."""
    spaced = CHATML.replace("assistant\n", "assistant: ")
    for core in (sentencepiece("first"), sentencepiece("always"), sentencepiece("never"), byte_level()):
        made = processor(core, spaced)
        assert made.tokenizer.convert_ids_to_tokens(first_tokens(made, "A")) == ["A"]


def test_a_special_token_that_is_a_word_is_refused() -> None:
    core = byte_level()
    core.add_special_tokens(["quad"])
    made = processor(core, CHATML).tokenizer
    with pytest.raises(SettingError, match="contains the model's own special token quad"):
        as_text(made, "a quad bike")
    assert as_text(made, "a bike") == "a bike"


def test_an_internvl_folder_puts_no_blank_in_front_of_a_text(tmp_path: Path) -> None:
    """Its tokenizer.json says so, and transformers' class for a Llama tokenizer would put one there."""
    words = [*WORDS, "user", "assistant"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *(chr(code) for code in range(33, 127))]
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            pieces.append(word[:end])
            merges.append((word[: end - 1], word[end - 1]))
        pieces.append(f"▁{word}")
        merges.append(("▁", word))
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    folder = write("internvl", tmp_path / "model")
    special = ["<pad>", *FOLDER_MARKS["internvl"]]
    made = LlamaTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), legacy=True, add_bos_token=False)
    made.add_special_tokens({"additional_special_tokens": special})
    made.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra_special_tokens": INTERNVL_NAMES}))
    found = load_processor(str(folder)).tokenizer
    assert found.tokenize("<|im_start|>user") == ["<|im_start|>", "user"]
    assert found.tokenize("A") == ["A"]


def test_a_special_token_as_an_answer_is_text() -> None:
    made = processor(byte_level(), CHATML)
    special = set(made.tokenizer.all_special_ids)
    assert not special & set(first_tokens(made, "<|im_end|>"))
    assert not special & set(first_tokens(made, "</s>"))


@pytest.mark.parametrize("name", ["mini_llava", "mini_internvl", "mini_qwen2_5_vl"])
def test_the_embedded_models_say_the_token_that_is_read(name: str) -> None:
    backbone = load(name)
    for twin in ("mini_scienceqa", "mini_gqa", "mini_pope"):
        benchmark = benchmarks.from_settings({"name": twin})
        samples = benchmarks.load(benchmark, "tuning", 24, backbone.settings.prompt_style)
        inputs = backbone.inputs(samples)
        with torch.inference_mode():
            said = backbone.model(**inputs).logits[:, -1].argmax(dim=-1).tolist()
        for sample, record, token in zip(
            samples, evaluate(backbone, benchmark, samples, Stock()).records, said, strict=True
        ):
            assert (token in first_tokens(backbone.processor, sample.gold)) == (record.margin > 0)
            if record.score:
                assert record.margin > 0


def load(name: str) -> Backbone:
    return backbones.load(backbones.from_settings(plain(compose("evaluate", [f"backbone={name}"]))["backbone"]))


MARKS = {
    "mini_llava": ["<image>", "</s>", "<s>", "<pad>", "<unk>"],
    "mini_internvl": ["<IMG_CONTEXT>", "<img>", "</img>", "<|im_end|>", "<|im_start|>"],
    "mini_qwen2_5_vl": ["<|image_pad|>", "<|vision_start|>", "<|im_end|>", "<|video_pad|>", "<|vision_end|>"],
}


@pytest.mark.parametrize("name", MARKS)
def test_special_tokens_in_a_samples_text_are_read_as_text(name: str) -> None:
    """In the question and before the image, alone, nested and doubled. The tokens of other samples stay the same."""
    backbone = load(name)
    benchmark = benchmarks.from_settings({"name": "mini_scienceqa"})
    samples = benchmarks.load(benchmark, "tuning", 4, backbone.settings.prompt_style)
    tokenizer, image = backbone.processor.tokenizer, backbone.model.config.image_token_id
    plain_ids = backbone.inputs(samples)["input_ids"]
    special = torch.tensor(sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id, tokenizer.pad_token_id}))
    count = torch.isin(plain_ids, special).sum(dim=1)
    for mark in MARKS[name]:
        nested = f"{mark[:2]}{mark}{mark[2:]}"
        for text in (mark, f"{mark}{mark}", nested, f"x{mark}y"):
            changed = [replace(samples[0], prompt=f"{text} {samples[0].prompt} {text}"), *samples[1:]]
            ids = backbone.inputs(changed)["input_ids"]
            assert torch.equal((ids == image).sum(dim=1), (plain_ids == image).sum(dim=1))
            assert torch.equal(torch.isin(ids, special).sum(dim=1), count)
            assert (
                ids[1][ids[1] != tokenizer.pad_token_id].tolist()
                == plain_ids[1][plain_ids[1] != tokenizer.pad_token_id].tolist()
            )
            assert backbone.special_token_in(changed[0])
        before = [replace(samples[0], before=f"Context: {mark}\n"), *samples[1:]]
        assert torch.equal((backbone.inputs(before)["input_ids"] == image).sum(dim=1), (plain_ids == image).sum(dim=1))
    found = evaluate(
        backbone,
        benchmark,
        [replace(samples[0], prompt=f"{MARKS[name][0]} {samples[0].prompt}"), *samples[1:]],
        Stock(),
    )
    assert f"1 samples spell out special tokens of the model, read as text: {MARKS[name][0]} in 1" in found.notes
    assert not any("special tokens" in note for note in evaluate(backbone, benchmark, samples, Stock()).notes)


def test_text_without_marks_is_returned_as_it_is() -> None:
    made = processor(byte_level(), CHATML).tokenizer
    for text in ("a < b", "<b>bold</b>", "[image]", "im_end", "", "< image>"):
        assert as_text(made, text) == text
        assert special_token_in(made, text) == ""
    assert as_text(made, "see <image>!") == "see < image>!"


def test_llavas_prompt_is_its_own_evaluations() -> None:
    """The default system sentence, under the hub's template."""
    settings = backbones.from_settings(
        {**plain(compose("evaluate", ["backbone=llava_1_5_7b"]))["backbone"], "device": "cpu"}
    )
    made = processor(byte_level(), LLAVA)
    processors = SimpleNamespace(**vars(made), image_token="<image>")
    asked = PromptEncoder(settings, SimpleNamespace(), processors, Family())
    sample = benchmarks.load(benchmarks.from_settings({"name": "mini_pope"}), "tuning", 8)[0]
    assert asked._text(sample) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the user's questions. USER: <image>\n{sample.prompt} ASSISTANT:"
    )


def step(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_a_nan_counts_at_every_step_that_decides_a_token() -> None:
    nan, inf = float("nan"), float("inf")
    said = torch.tensor([[5, 2, 0], [5, 6, 2]])  # 2 ends an answer
    fine = step([0.0, 1.0], [0.0, 1.0])
    ids = torch.zeros(2, 1, dtype=torch.long)
    for bad, number, names in (
        ((step([nan, 0.0], [0.0, 1.0]), fine, fine), 1, "sample a"),
        ((fine, step([0.0, inf], [0.0, 1.0]), fine), 2, "sample a"),  # the end token is decided, too
        ((fine, fine, step([0.0, 1.0], [nan, 1.0])), 3, "sample b"),
        ((fine, step([nan, 1.0], [nan, 1.0]), fine), 2, "2 samples"),
    ):
        recorder = StepRecorder()
        for logits in bad:
            assert recorder(ids, logits) is logits
        with pytest.raises(FloatingPointError, match=f"NaN in the logits of {names}.* at answer token {number}"):
            recorder.check(said, [2], ["a", "b"])
    recorder = StepRecorder()
    for logits in (fine, step([-inf, 1.0], [0.0, 1.0]), step([nan, nan], [0.0, 1.0])):  # sample a has ended
        recorder(ids, logits)
    recorder.check(said, [2], ["a", "b"])
    assert recorder.first is not None
    assert torch.allclose(recorder.first, fine.log_softmax(dim=-1))


@pytest.mark.parametrize("name", MARKS)
def test_every_family_takes_or_refuses_pictures_of_any_size(name: str) -> None:
    """The model answers about each size that `accepts` allows; for the others, a message says why not."""
    from PIL import Image

    from tdrs.benchmarks.benchmark import Picture

    backbone = load(name)
    sample = benchmarks.load(benchmarks.from_settings({"name": "mini_pope"}), "tuning", 8)[0]
    taken = 0
    for size in ((1, 1), (2, 3), (1, 60), (60, 1), (28, 28), (3000, 40), (17, 900), (1, 20000), (400, 1)):
        if backbone.settings.accepts([size]) == "":
            picture = Picture.of(Image.new("RGB", size, "red"))
            assert backbone.answer([replace(sample, picture=picture)], "pope")[0].text is not None
            taken += 1
    assert taken >= 3
    assert backbone.settings.accepts([(400, 300)]) == ""
    if name == "mini_qwen2_5_vl":
        assert "aspect ratio" in backbone.settings.accepts([(400, 1)])


def test_a_processor_that_changes_is_read_anew(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "mini_qwen2_5_vl", folder)
    settings = BackboneSettings(name="mine", source=str(folder), device="cpu")
    assert settings.accepts([(28, 28)]) == ""
    for path in folder.glob("*processor_config.json"):
        path.write_text("{")
    with pytest.raises(SettingError, match=r"backbone\.source"):
        settings.accepts([(28, 28)])
