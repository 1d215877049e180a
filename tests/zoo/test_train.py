"""The embedded model's folder, and training: turns equal to the evaluation's prompts, stopping and going on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tdrs.backbones.huggingface import EMBEDDED
from tdrs.configuration import compose, plain
from tdrs.settings import SettingError, build
from tdrs.zoo import mini_llava, train
from tdrs.zoo.turns import GAP, SORTS, Pictures, Recipe

TINY = Recipe(
    seed=3, align_steps=2, name_steps=2, look_up_steps=2, choose_steps=2, batch_size=2, length=200,
    learning_rate=1e-3, warmup_steps=2,
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
    """Cut out of the packed sequence, every multiple-choice turn is what the processor makes of the same text."""
    recipe = Recipe(**{**TINY.__dict__, "align_steps": 0, "name_steps": 0, "look_up_steps": 0})
    processor = mini_llava.processor()
    pictures = Pictures(recipe, processor)
    seen = 0
    for n in range(4):
        item = pictures[n]
        for turn in range(1, item["turns"].max() + 1):
            where = (item["turns"] == 0) | (item["turns"] == turn)
            ids, positions = item["ids"][where], item["positions"][where]
            assert positions.tolist() == list(range(len(ids)))
            text = processor.tokenizer.decode(ids[20:])
            if "option ' s letter" not in text:
                continue
            seen += 1
            answer = item["labels"][where]
            said = ids[: np.flatnonzero(answer != -100)[0] + 1]
            prompt = text.split(" ASSISTANT :")[0] + " ASSISTANT:"
            made = processor.tokenizer("USER: " + "<image>" * 16 + "\n" + prompt)["input_ids"]
            assert said.tolist() == made
    assert seen > 4


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
