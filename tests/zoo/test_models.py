"""The models in the package: the hub's layout, every pair of model and twin loads, runs, and knows its answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_torchvision_available

from tdrs import Stock, backbones, benchmarks
from tdrs.backbones import Backbone
from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.backbones.processors import load_processor
from tdrs.configuration import choice, folder
from tdrs.evaluation import evaluate
from tdrs.zoo import cards
from tdrs.zoo.families import FAMILIES

MODELS = sorted(path.name for path in EMBEDDED.iterdir())
TWINS = ("mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope")
ARCHITECTURES = {
    "mini_llava": "LlavaForConditionalGeneration",
    "mini_internvl": "InternVLForConditionalGeneration",
    "mini_qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


LONGEST = {"mini_llava_long": 512}  # the longest text in training, in tokens; 32 for the other models


def family(name: str) -> str:
    return name.split("_seed")[0].removesuffix("_long")


@pytest.fixture(scope="module", params=MODELS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbones.load(backbones.from_settings(choice("backbone", request.param)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_card_shows_the_scores_that_are_kept(name: str) -> None:
    card = (EMBEDDED / name / "README.md").read_text(encoding="utf-8")
    scores = cards.known_scores()[name]
    assert cards.with_scores(card, scores) == card
    assert cards.form_sentence(scores, LONGEST.get(name, 32)) in " ".join(card.split())
    changed = {dataset: one | {"samples": 7, "answers": [5, 7]} for dataset, one in scores.items()}
    other = cards.with_scores(card, changed)
    assert other.count(", n = 7 |") == 4
    assert "20 of 28 answers" in " ".join(other.split())


@pytest.mark.parametrize(
    ("answer", "options", "good"),
    [("B", "ABC", True), ("b.", "ABC", True), ("D", "ABC", False), ("A B", "ABC", False), ("", "ABC", False),
     ("left", "", True), ("to the left", "", False), ("", "", False)],
)  # fmt: skip
def test_the_form_of_an_answer(answer: str, options: str, good: bool) -> None:
    sample = next(iter(benchmarks.load(benchmarks.from_settings({"name": "mini_gqa"}), "tuning", 1)))
    assert cards.has_form(answer, replace(sample, options=tuple(options))) == good


def test_three_architectures_three_seeds_and_long_distances() -> None:
    assert set(MODELS) == set(FAMILIES)
    assert [name for name in MODELS if family(name) == "mini_llava"] == [
        "mini_llava", "mini_llava_long", "mini_llava_seed1", "mini_llava_seed2"
    ]  # fmt: skip
    assert all((folder() / "backbone" / f"{name}.yaml").exists() for name in MODELS)
    assert all(choice("backbone", name)["prompt_style"] == FAMILIES[name].style for name in MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_small_and_in_the_hubs_layout(name: str) -> None:
    files = {path.name: path.stat().st_size for path in (EMBEDDED / name).iterdir()}
    assert set(files) >= {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    assert not [file for file in files if Path(file).suffix in (".bin", ".pt", ".py")]
    assert sum(files.values()) <= 5e6
    config = json.loads((EMBEDDED / name / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURES[family(name)]]
    processor = load_processor(str(EMBEDDED / name))
    made = FAMILIES[name].processor()
    assert processor.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert processor.chat_template == made.chat_template
    if not is_torchvision_available():
        assert type(processor) is type(made)


TEXTS = {
    "mini_llava": "USER: <image>\nWhat is it? ASSISTANT:",
    "mini_internvl": "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
    "mini_qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_chat_template_is_the_hubs_text(name: str) -> None:
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert FAMILIES[name].processor().apply_chat_template(turn, add_generation_prompt=True) == TEXTS[name]


@pytest.mark.parametrize("twin", TWINS)
def test_it_knows_every_twin_at_the_trained_distances_and_needs_the_picture(backbone: Backbone, twin: str) -> None:
    """Held out, few samples: far from chance with the picture, near it without; answers are of the right sort."""
    scores = {}
    for blank in (False, True):
        benchmark = benchmarks.from_settings({"name": twin, "gap": 16, "blank": blank})
        samples = benchmarks.load(benchmark, "held_out", 48, backbone.settings.prompt_style)
        found = evaluate(backbone, benchmark, samples, Stock(), batch_size=48)
        scores[blank] = found.metrics["accuracy"]
        assert blank or all(record.answer for record in found.records)
    assert scores[False] > 0.7
    assert scores[True] < 0.7
    assert scores[True] < scores[False] - 0.25


def test_two_stock_evaluations_give_the_same_records(backbone: Backbone) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_textvqa", "gap": 40})
    samples = benchmarks.load(benchmark, "held_out", 24, backbone.settings.prompt_style)
    one, two = (evaluate(backbone, benchmark, samples, Stock(), batch_size=8).records for _ in range(2))
    assert one == two
