"""Prompts that are longer than a model was made for are counted in the notes of an evaluation, and by the doctor."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from tdrs import Stock, backbones, benchmarks
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.limits import trained_positions, window_of
from tdrs.benchmarks import Sample
from tdrs.doctor import _tokens
from tdrs.evaluation import evaluate, run_batches
from tdrs.results import Batch
from tests.backbones.folders import write

BENCHMARK = benchmarks.from_settings({"name": "mini_gqa", "gap": 8})
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}


@pytest.fixture(scope="module")
def loaded() -> Backbone:
    return backbones.load(BackboneSettings("mini_qwen2_5_vl", "embedded:mini_qwen2_5_vl", device="cpu"))


@pytest.fixture
def qwen(loaded: Backbone) -> Iterator[Backbone]:
    """A model with M-RoPE; a test may change how many positions it has."""
    config = loaded.model.config.get_text_config()
    before = config.max_position_embeddings
    yield loaded
    config.max_position_embeddings = before


def asked(count: int = 6) -> list[Sample]:
    return list(benchmarks.load(BENCHMARK, "tuning", 30))[:count]


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (LlamaConfig(max_position_embeddings=2048), 2048),
        (LlamaConfig(max_position_embeddings=64, rope_parameters=YARN), 256),  # Qwen names the number before
        (LlamaConfig(max_position_embeddings=512, rope_parameters=YARN), 512),  # Llama 3 the one after
        (LlamaConfig(max_position_embeddings=512, rope_parameters={"rope_type": "linear", "factor": 8.0}), 512),
        (object(), None),
    ],
)
def test_trained_positions(config: Any, most: int | None) -> None:
    assert trained_positions(config) == most


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (MistralConfig(sliding_window=16, num_hidden_layers=3), (16, 3)),
        (MistralConfig(sliding_window=None), (0, 0)),
        (Qwen2Config(sliding_window=16, use_sliding_window=False), (0, 0)),
        (Gemma3TextConfig(sliding_window=16, num_hidden_layers=7), (16, 6)),
    ],
)
def test_windows(config: Any, found: tuple[int, int]) -> None:
    assert window_of(config) == found


def test_the_notes_count_prompts_beyond_the_positions(qwen: Backbone) -> None:
    """An image takes as many positions as its longer side, and as many tokens as it has cells."""
    samples = asked()
    tokens = qwen.model_inputs(samples)
    lengths = tokens["attention_mask"].sum(dim=1).tolist()
    positions = [length - 16 + 4 for length in lengths]
    most = sorted(positions)[2]
    longer = sum(count > most for count in positions)
    assert 0 < longer < sum(count > most for count in lengths)
    qwen.model.config.get_text_config().max_position_embeddings = most
    note = (
        f"{longer} prompts are longer than the {most} positions that the model was made for (max_position_embeddings)"
    )
    assert evaluate(qwen, BENCHMARK, samples, Stock(), batch_size=2).notes == [note]
    assert evaluate(qwen, BENCHMARK, samples, Stock(), batch_size=6).notes == [note]
    assert f"{note}, of 6" in _tokens(qwen, samples).lines
    qwen.model.config.get_text_config().max_position_embeddings = max(positions)
    assert evaluate(qwen, BENCHMARK, samples, Stock()).notes == []


def test_a_stored_batch_keeps_the_count(qwen: Backbone) -> None:
    qwen.model.config.get_text_config().max_position_embeddings = 4
    (batch,) = run_batches(qwen, BENCHMARK, asked(), Stock(), 6)
    assert list(batch.over.values()) == [6]
    assert Batch.of_line(batch.as_line()) == batch
    assert "over" not in replace(batch, over={}).as_line()


@pytest.mark.parametrize(("name", "noted"), [("gemma3", True), ("paligemma", False)])
def test_a_window_that_hides_the_beginning(name: str, noted: bool, tmp_path: Path) -> None:
    """PaliGemma's window hides nothing within a prompt."""
    attention = "eager" if name == "paligemma" else "sdpa"
    settings = BackboneSettings(name, str(write(name, tmp_path)), device="cpu", attention=attention, max_new_tokens=1)
    notes = evaluate(backbones.load(settings), BENCHMARK, asked(), Stock()).notes
    assert notes == ["6 prompts are longer than the window of 8 tokens of 1 of 2 layers"] * noted


def test_rated_answers_count_a_prompt_once(qwen: Backbone) -> None:
    qwen.model.config.get_text_config().max_position_embeddings = 4
    samples = [replace(sample, rated=("yes", "no", "red")) for sample in asked(count=3)]
    (batch,) = run_batches(qwen, BENCHMARK, samples, Stock(), 3)
    assert list(batch.over.values()) == [3]
