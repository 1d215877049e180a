"""The embedded model's folder, and training: turns equal to the evaluation's prompts, stopping and going on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tdrs import benchmarks
from tdrs.backbones.huggingface import EMBEDDED
from tdrs.configuration import compose, plain
from tdrs.settings import SettingError, build
from tdrs.zoo import mini_llava, train
from tdrs.zoo.turns import GAP, PICTURES, SORTS, Pictures, Recipe, Scene

TINY = Recipe(
    seed=3, align_steps=2, name_steps=2, look_up_steps=2, choose_steps=2, all_steps=2, batch_size=2,
    length=200, learning_rate=1e-3, warmup_steps=2,
)  # fmt: skip


def test_the_package_holds_a_small_model_in_the_hubs_layout() -> None:
    folder = EMBEDDED / "mini_llava"
    files = {path.name for path in folder.iterdir()}
    assert files >= {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5e6
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.get_vocab() == mini_llava.tokenizer().get_vocab()
    assert processor.chat_template == mini_llava.CHAT_TEMPLATE


def test_the_chat_template_is_the_hubs_text() -> None:
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = mini_llava.processor().apply_chat_template(turn, add_generation_prompt=True)
    assert text == "USER: <image>\nWhat is it? ASSISTANT:"


def test_training_turns_are_the_prompts_of_the_evaluation() -> None:
    """Cut out of the packed sequence, every turn is what the processor makes of the same text."""
    only = {"align_steps": 0, "name_steps": 0, "look_up_steps": 0, "choose_steps": 0, "all_steps": 8}
    processor = mini_llava.processor()
    tokens = processor.tokenizer
    pictures = Pictures(Recipe(**{**TINY.__dict__, **only, "length": 304}), processor)
    kinds: dict[str, int] = {}
    moved = 0
    for item in (pictures[n] for n in range(16)):
        start = int((item["turns"] == 0).sum())
        prefix = tokens.decode(item["ids"][:start])
        before = prefix.removeprefix("<s> USER :").split("<image>")[0]
        moved += "Context" in before
        for turn in range(1, item["turns"].max() + 1):
            where = (item["turns"] == 0) | (item["turns"] == turn)
            ids, positions = item["ids"][where], item["positions"][where]
            assert positions.tolist() == list(range(len(ids)))
            answer = np.flatnonzero(item["labels"][where] != -100)
            if item["sorts"][where].max() == SORTS.index("match"):
                continue
            prompt = tokens.decode(ids[start : answer[0] + 1]).removesuffix("ASSISTANT :")
            made = tokens(f"USER: {before}" + "<image>" * 16 + f"\n{prompt}ASSISTANT:")["input_ids"]
            assert ids[: answer[0] + 1].tolist() == made
            sort = SORTS[item["sorts"][where].max()]
            kinds[sort] = kinds.get(sort, 0) + 1
    assert moved >= 1
    assert min(kinds.get(sort, 0) for sort in ("choose", "ask", "exist", "read")) >= 3


def test_every_word_of_the_twins_is_known() -> None:
    tokens = mini_llava.tokenizer()
    for name in ("mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"):
        for sample in benchmarks.load(benchmarks.from_settings({"name": name, "gap": 40}), "tuning", 300):
            ids = tokens(f"{sample.prompt} {sample.gold.upper() if sample.answers else sample.gold}")["input_ids"]
            assert tokens.unk_token_id not in ids, sample.prompt


def test_a_sign_is_read_as_it_is_written() -> None:
    tokens = mini_llava.tokenizer()
    for text in ("K7", "42", "B", "0"):
        ids = tokens(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text)
        assert tokens.decode(ids) == text


def test_a_scene_says_what_each_cell_shows() -> None:
    for kind in PICTURES:
        scene = Scene(kind, np.random.default_rng(4))
        assert scene.pixels.shape == (64, 64, 3)
        assert len(scene.shown) == len(scene.objects) + sum(len(sign.text) for sign in scene.signs) > 0
        words = {word for pair in scene.shown.values() for word in pair}
        assert words <= set(mini_llava.vocabulary())


def test_hints_stay_within_the_stated_gap() -> None:
    recipe = build(Recipe, plain(compose("train", []))["recipe"])
    processor = mini_llava.processor()
    pictures = Pictures(recipe, processor)
    context, newline = (processor.tokenizer.get_vocab()[t] for t in ("Context", "\n"))
    lengths = []
    for n in range((recipe.steps - 5) * recipe.batch_size, (recipe.steps - 4) * recipe.batch_size):
        ids = pictures[n]["ids"].tolist()
        for at in (i for i, token in enumerate(ids) if token == context):
            lengths.append(ids.index(newline, at) - at - 2)
    assert max(lengths) == GAP
    assert min(lengths) >= 1


def test_stopping_and_going_on_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.train(TINY, tmp_path / "whole")
    original, calls = train._answer_loss, []

    def third_stops(*arguments: object) -> object:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train, "_answer_loss", third_stops)
    with pytest.raises(KeyboardInterrupt):
        train.train(TINY, tmp_path / "pieces")
    pieces = train.train(TINY, tmp_path / "pieces")
    one, two = (LlavaForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (whole, pieces))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert "choose" in SORTS
    other = Recipe(**{**TINY.__dict__, "seed": 4})
    with pytest.raises(SettingError, match="holds another recipe's checkpoint"):
        train.train(other, tmp_path / "pieces")
