"""Recall from a text, generated or read from a file, asked of a tiny random language model; the roles of its tokens."""

import json
import math
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tdrs import backbones, benchmarks
from tdrs.attention.block import IMAGE, SYSTEM, TEXT
from tdrs.attention.method import Method
from tdrs.attention.second_pass import SecondPass
from tdrs.backbones import Backbone
from tdrs.backbones.prompt_encoder import TokenCache
from tdrs.backbones.text_encoder import TextEncoder
from tdrs.benchmarks import filler
from tdrs.benchmarks.benchmark import Samples
from tdrs.benchmarks.text import NAMES, facts_of
from tdrs.configuration import compose, plain
from tdrs.evaluation import evaluate, plan
from tdrs.interventions import from_settings
from tdrs.settings import SettingError

TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def language_model(folder: Path) -> Path:
    """A folder in the hub's layout: a random Llama with grouped heads, and a tokenizer of words and single digits."""
    said = "What is the pass key of The system user assistant Where was Bob born in Paris"
    words = {*NAMES, *filler.WORDS, *said.split(), *"0123456789", "\n", '"', ".", "?"}
    listed = ["<unk>", "<|start|>", "<|end|>", *sorted(words)]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(listed)}, unk_token="<unk>"))
    split = Regex(r"\n|[A-Za-z]+|[^\sA-Za-z]")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    core.add_special_tokens(["<|start|>", "<|end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**size, num_key_value_heads=2, vocab_size=len(tokenizer), eos_token_id=2, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("language_model"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    values = {"name": "tiny", "source": str(folder), "max_new_tokens": 3, "device": "cpu"}
    return backbones.load(backbones.from_settings(values))


def load(split: str = "tuning", limit: int | None = 6, **values: Any) -> Samples:
    return benchmarks.load(benchmarks.from_settings({"name": "text", **values}), split, limit)


def test_samples_depend_on_the_seed_alone() -> None:
    assert load().content == load().content != load(seed=1).content
    assert load(limit=3).content == Samples(load()[:3]).content
    assert {s.picture.digest for s in load(limit=50)}.isdisjoint(s.picture.digest for s in load("held_out", 50))
    facts, asked = facts_of("tuning", 0, 9, 0)
    assert len({key[0] for _, key in facts}) == 9
    sample = load(facts=9)[0]
    assert sample.gold == facts[asked][1]
    assert sample.opening == f'The pass key of {facts[asked][0]} is "'
    assert set(sample.options) == {key for _, key in facts}
    with pytest.raises(SettingError, match=r"limit = 1001: text has 1000 generated samples in tuning"):
        load(limit=1001)
    with pytest.raises(SettingError, match=r"dataset.facts = 10: must be a whole number from 1 to 9"):
        load(facts=10)


def test_the_gap_stands_between_passage_and_question_or_in_front() -> None:
    between, front = load(gap=20)[0], load(gap=20, filler="before_image")[0]
    assert between.prompt.endswith(f"\n{between.question}")
    assert (between.before, front.prompt) == ("", front.question)
    assert front.before.removeprefix("Context: ").strip() == between.prompt.removesuffix(f"\n{between.question}")


def decoded(backbone: Backbone, ids: torch.Tensor) -> str:
    return " ".join(backbone.processor.tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_the_tokens_of_the_passage_have_the_role_of_image_tokens(backbone: Backbone) -> None:
    samples = [*load(gap=8, limit=2), *load(facts=1, filler="before_image", gap=5, limit=1)]
    inputs = backbone.inputs(samples)
    marks = backbone.image_tokens(inputs)
    assert inputs["attention_mask"][:, -1].all()
    assert not inputs["attention_mask"].all()
    for sample, ids, marked in zip(samples, inputs["input_ids"], marks, strict=True):
        expected = " ".join(sample.picture.text.replace('"', ' " ').replace(".", " .").split())  # type: ignore[attr-defined]
        assert decoded(backbone, ids[marked]).replace(" ", "") == expected.replace(" ", "")
    recorded: list[torch.Tensor] = []
    with backbone.intervene(from_settings({"name": "vaf", "layers": "all"})) as session, torch.inference_mode():
        execute = session.execute
        session.execute = lambda call, method: (recorded.append(call.roles), execute(call, method))[1]  # type: ignore[func-returns-value]
        backbone.answer(samples, "text")
    roles = recorded[0]
    assert torch.equal(roles == IMAGE, marks)
    first = marks.long().argmax(dim=1, keepdim=True)
    columns = torch.arange(marks.shape[1])
    assert torch.equal(roles == SYSTEM, columns < first)
    assert (recorded[-1][:, marks.shape[1] :] == TEXT).all()
    assert recorded[-1].shape[1] > marks.shape[1]


def test_the_answer_is_continued_after_its_opening(backbone: Backbone) -> None:
    sample = load(limit=1)[0]
    ids = backbone.inputs([sample])["input_ids"][0]
    end = f'assistant \n The pass key of {sample.opening.split()[4]} is "'
    assert decoded(backbone, ids).endswith(end)
    with torch.inference_mode():
        logs = backbone.model(ids[None]).logits[0, -1].log_softmax(dim=-1)
    token = {key: backbone.processor.tokenizer.convert_tokens_to_ids(key[0]) for key in sample.options}
    other = max(float(logs[token[key]]) for key in sample.options if key != sample.gold)
    answer = backbone.answer([sample], "text")[0]
    assert answer.margin == pytest.approx(float(logs[token[sample.gold]]) - other, abs=1e-5)


def test_perplexity_is_that_of_the_right_answer_after_its_opening(backbone: Backbone) -> None:
    benchmark = benchmarks.from_settings({"name": "text", "rule": "perplexity"})
    samples = benchmarks.load(benchmark, "tuning", 6)
    found = evaluate(backbone, benchmark, samples, from_settings({"name": "none"}), 4).records
    losses, right = [], []
    for sample in samples:
        prompt = backbone.inputs([sample])["input_ids"][0]
        key = torch.tensor(backbone.processor.tokenizer.convert_tokens_to_ids(list(sample.gold)))  # a token is a digit
        with torch.inference_mode():
            logs = backbone.model(torch.cat([prompt, key])[None]).logits[0, -5:-1].log_softmax(dim=-1)
        losses.append(-float(logs[torch.arange(4), key].mean()))
        right.append(torch.equal(logs.argmax(dim=-1), key))
    assert [-record.margin for record in found] == pytest.approx(losses, abs=1e-4)
    assert [record.score for record in found] == right
    assert [record.answer for record in found] == [s.gold if r else "" for s, r in zip(samples, right, strict=True)]
    metrics, interval = benchmark.metrics(found), benchmark.intervals(found)["perplexity"]
    assert metrics["perplexity"] == interval.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert interval.low < interval.value < interval.high
    assert math.isnan(benchmark.metrics([])["perplexity"])
    assert benchmark.score("[[0.5, true]]", samples[0]).score == 1
    assert benchmark.score("[[0.5, false]]", samples[0]).answer == ""


@pytest.mark.parametrize("name", ["tdrs", "pai", "key_bias", "icd", "sid"])
def test_every_method_and_no_batch_changes_an_answer(backbone: Backbone, name: str) -> None:
    samples = load(gap=6, limit=4)
    benchmark = benchmarks.from_settings({"name": "text"})
    method = from_settings({"name": name, **({"pairs": "text_to_image"} if name == "tdrs" else {})})
    stock = evaluate(backbone, benchmark, samples, from_settings({"name": "none"}))
    together, alone = (evaluate(backbone, benchmark, samples, method, size) for size in (4, 1))
    assert [r.margin for r in together.records] == pytest.approx([r.margin for r in alone.records], abs=1e-4)
    assert [r.margin for r in together.records] != pytest.approx([r.margin for r in stock.records], abs=1e-6)


def test_a_batch_that_is_prepared_ahead_has_the_same_records(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, benchmark = load(gap=6, limit=6), benchmarks.from_settings({"name": "text"})
    where = []
    prepare = TextEncoder._prepared

    def noted(*given: Any) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return prepare(*given)

    monkeypatch.setattr(TextEncoder, "_prepared", noted)
    alone, ahead = (replace(backbone, tokens=TokenCache(), prepares_ahead=on) for on in (False, True))
    expected, found = (evaluate(one, benchmark, samples, from_settings({"name": "none"}), 2) for one in (alone, ahead))
    assert found.records == expected.records
    assert where == [True] * 3 + [True, False, False]


@dataclass(frozen=True, kw_only=True)
class Alone(Method):
    """The logits of a second pass without the passage."""

    @property
    def second_pass(self) -> SecondPass:
        return SecondPass(combine=lambda first, second, step: second, picture=False)


def test_a_second_pass_without_the_passage(backbone: Backbone) -> None:
    samples = load(gap=6, limit=4)
    with backbone.intervene(Alone()):
        found = backbone.answer(samples, "text")
    for sample, answer in zip(samples, found, strict=True):
        text = backbone.prompts.conversation(f"{sample.before}{sample.prompt}", 0) + sample.opening
        ids = backbone.processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logs = backbone.model(ids).logits[0, -1].log_softmax(dim=-1)
        tokens, shown, _ = json.loads(answer.first_token)
        assert shown == pytest.approx(logs[tokens].tolist(), abs=1e-3)


def test_a_change_of_pictures_is_refused_in_one_line(folder: Path, backbone: Backbone) -> None:
    words = ["backbone=language_model", f"backbone.source={folder}", "dataset=text", "intervention=vcd"]
    reason = "intervention = 'VCD': changes pictures, and a language model reads text alone"
    with pytest.raises(SettingError, match=reason):
        plan(plain(compose("evaluate", words)))
    with pytest.raises(SettingError, match=reason), backbone.intervene(from_settings({"name": "vcd"})):
        pass


def test_rated_continuations_are_refused_before_a_model_is_loaded(folder: Path) -> None:
    words = ["backbone=language_model", f"backbone.source={folder}", "dataset=text", "dataset.rule=perplexity"]
    planned = plan(plain(compose("evaluate", [*words, "intervention=icd", "limit=4"])))
    with pytest.raises(SettingError, match="intervention = 'ICD': combines two passes to choose tokens"):
        planned.load()


def test_all_off_is_the_stock_model(backbone: Backbone) -> None:
    samples = load(limit=4)
    off = from_settings({"name": "tdrs", "sd": False, "dc": None, "re": None})
    benchmark = benchmarks.from_settings({"name": "text"})
    stock = evaluate(backbone, benchmark, samples, from_settings({"name": "none"}))
    assert evaluate(backbone, benchmark, samples, off).records == stock.records


def test_a_model_and_a_data_set_must_fit(folder: Path) -> None:
    def planned(*words: str) -> None:
        plan(plain(compose("evaluate", list(words))))

    given = ["backbone=language_model", f"backbone.source={folder}"]
    with pytest.raises(SettingError, match=r"dataset = 'mini_pope': has pictures, and language_model reads text alone"):
        planned(*given, "dataset=mini_pope")
    with pytest.raises(SettingError, match=r"dataset = 'text': has passages of text, and mini_llava reads pictures"):
        planned("dataset=text")
    planned(*given, "dataset=text")


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    row = {"passage": "Bob was born in Paris", "question": "Where was Bob born?", "answer": "Paris", "opening": "in"}
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps({**row, "id": str(n)}) + "\n" for n in range(3)))
    return path


def test_passages_from_a_file(passages: Path, backbone: Backbone) -> None:
    samples = load("held_out", None, source=str(passages), tuning_share=0)
    assert len({sample.image_id for sample in samples}) == 1
    assert (samples[0].gold, samples[0].opening) == ("Paris", "in")
    inputs = backbone.inputs(samples)
    assert decoded(backbone, inputs["input_ids"][0][inputs["marks"][0]]) == "Bob was born in Paris"
    records = evaluate(backbone, benchmarks.from_settings({"name": "text"}), samples, from_settings({"name": "none"}))
    assert len(records.records) == 3
    passages.write_text('{"question": "Where?", "answer": "Paris", "passage": ""}\n')
    with pytest.raises(SettingError, match=r"1 unusable of 1 rows: row 0 \(line 1\) has an empty passage"):
        load("held_out", None, source=str(passages))


def test_a_folder_without_a_chat_template_is_one_line(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SettingError, match=r"backbone.source = .*: has no chat template"):
        backbones.load(backbones.from_settings({"name": "tiny", "source": str(tmp_path), "device": "cpu"}))


@pytest.mark.parametrize("filler", ["between", "before_image"])
@pytest.mark.parametrize("gap", [0, 4])
def test_white_space_around_a_passage_moves_no_mark(tmp_path: Path, backbone: Backbone, gap: int, filler: str) -> None:
    path = tmp_path / "spaces.jsonl"
    path.write_text(json.dumps({"passage": "\n  Bob was born \n", "question": "Where was Bob?", "answer": "Paris"}))
    sample = load("held_out", None, source=str(path), tuning_share=0, gap=gap, filler=filler)[0]
    inputs = backbone.inputs([sample])
    marked = decoded(backbone, inputs["input_ids"][0][inputs["marks"][0]])
    assert marked.replace("\n", "").split() == ["Bob", "was", "born"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "yes_no"}, "dataset.rule = 'yes_no': does not fit generated passages"),
        ({"rule": "multiple_choice"}, "dataset.rule = 'multiple_choice': does not fit generated passages"),
        ({"rows": 5}, "dataset.rows = 5: is of tables; generated passages do not have it"),
        ({"tuning_share": 0.5}, "dataset.tuning_share = 0.5: is of tables; generated passages do not have it"),
        ({"column": {"question": "q"}}, "dataset.column = {'question': 'q'}: is of tables"),
    ],
)
def test_a_setting_that_generated_passages_do_not_have_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        benchmarks.from_settings({"name": "text", **values})
    assert str(error.value).startswith(message)
