"""Training the embedded models: turns are the evaluation's prompts, stopping and going on, starting from another."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText

from tdrs import backbones, benchmarks
from tdrs.analysis.distance import TRAINED
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.benchmarks import prompts
from tdrs.benchmarks.benchmark import Picture, Sample
from tdrs.configuration import compose, plain
from tdrs.settings import SettingError, build
from tdrs.zoo import cards, train
from tdrs.zoo.families import FAMILIES
from tdrs.zoo.start import start_from
from tdrs.zoo.turns import CHARACTERS, NOWHERE, PICTURES, SORTS, Pictures, Recipe, Scene, Turn

TINY = Recipe(
    seed=3, start="random", gap=32, align_steps=2, skills_steps=2, all_steps=2, batch_size=2, rows=2, length=200,
    learning_rate=1e-3, warmup_steps=2,
)  # fmt: skip
FOLDERS = sorted(path.name for path in EMBEDDED.iterdir())


def shipped(name: str) -> Recipe:
    return build(Recipe, plain(compose("train", []))["recipes"][name])


def pictures(name: str, recipe: Recipe) -> Pictures:
    family = FAMILIES[name]
    return Pictures(recipe, family.processor(), family.style, family.axes)


@pytest.fixture(params=["mini_llava", "mini_internvl", "mini_qwen2_5_vl"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_training_turns_are_the_prompts_of_the_evaluation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut out of its row, every turn has the ids, and the positions, that a prompt with the same text gets."""
    said: list[Turn] = []
    original = Scene.turn

    def turn(*arguments: Any) -> Turn:
        said.append(original(*arguments))
        return said[-1]

    monkeypatch.setattr(Scene, "turn", turn)
    data = pictures(name, replace(TINY, align_steps=0, skills_steps=0, all_steps=20))
    torch.manual_seed(0)
    model: Any = FAMILIES[name].untrained()
    settings = BackboneSettings(name, f"embedded:{FOLDERS[0]}", device="cpu", prompt_style=FAMILIES[name].style)
    backbone = Backbone.of(settings, model, data.processor)
    sorts: Counter[str] = Counter()
    moved = 0
    for number in range(12):
        said.clear()
        item = data[number]
        turns = iter(said)
        for row in range(2):
            ids, kinds = item["ids"][row], item["turns"][row]
            prefix = data.processor.tokenizer.decode(ids[kinds == 0])
            before = f"Context: {prefix.split('Context :')[1].split(' .')[0]}." if "Context" in prefix else ""
            moved += bool(before)
            for one in range(1, int(kinds.max()) + 1):
                spoken = next(turns)
                sorts[spoken.sort] += 1
                where = (kinds == 0) | (kinds == one)
                if before:  # what the text says is checked by the next test; here the whole of it is taken over
                    text = prefix.split("Context :")[1]
                    for mark in ("<image>", "<img>", "<|vision_start|>"):
                        text = text.split(mark)[0]
                    before = f"Context: {text.strip()}\n"
                sample = Sample(
                    "0", "0", Picture.of(Image.new("RGB", (64, 64))), "", spoken.prompt, spoken.answer, before=before
                )
                made = backbone.inputs([sample])
                wanted = made["input_ids"][0]
                assert ids[where][: len(wanted)].tolist() == wanted.tolist()
                rest = data.processor.tokenizer(spoken.answer, add_special_tokens=False)["input_ids"]
                assert ids[where][len(wanted) :].tolist() == [*rest, data.end]
                if name == "mini_qwen2_5_vl":
                    positions = model.model.get_rope_index(
                        made["input_ids"], made["mm_token_type_ids"], made["image_grid_thw"]
                    )[0][:, 0]
                else:
                    positions = torch.arange(len(wanted))[None]
                assert item["positions"][:, row][:, where][:, : len(wanted)].equal(positions)
                labels = item["labels"][row][where]
                if spoken.sort != "match":
                    assert labels[len(wanted) - 1 : -1].tolist() == [*rest, data.end]
                    assert (labels[: len(wanted) - 1] == -100).all()
    assert moved >= 1
    assert min(sorts[sort] for sort in ("choose", "ask", "exist", "read")) >= 3


def test_what_is_read_halfway_up_is_true(name: str) -> None:
    """At each question mark the word asked for; at each option its letter; at each name the cell it stands in."""
    data = pictures(name, replace(TINY, align_steps=0, skills_steps=20, all_steps=0))
    words = {number: word for word, number in data.ids.items()}
    seen: Counter[str] = Counter()
    for number in range(30):
        item = data[number]
        for row in range(2):
            ids = [words[i] for i in item["ids"][row].tolist()]
            for at in np.flatnonzero(item["words"][row] != -100):
                word = words[int(item["words"][row][at])]
                if ids[at] != "?":
                    assert ids[at - 2 : at] == [word, "."]
                    seen["option"] += 1
            for at in np.flatnonzero(item["places"][row] != -100):
                seen["nowhere" if item["places"][row][at] == NOWHERE else "place"] += 1
    assert min(seen[kind] for kind in ("option", "place", "nowhere")) > 10


def test_places_of_names() -> None:
    scene = Scene("objects", np.random.default_rng(4))
    one = scene.objects[0]
    assert scene.places(f"What color is the {one.shape} ?".split()) == {4: one.cell}
    assert scene.places(f"What shape is the {one.color} object ?".split()) == {5: one.cell}
    assert scene.places("the object above".split()) == {}
    missing = next(shape for shape in ("bar", "moon", "ring", "cross", "circle", "square") if shape not in
                   [thing.shape for thing in scene.objects])  # fmt: skip
    assert scene.places(["a", one.color, missing]) == {2: NOWHERE}
    twice = Scene("objects", np.random.default_rng(4))
    twice.objects = [replace(one, cell=1), replace(one, cell=2)]
    assert twice.places(["the", one.shape]) == {}


def test_every_word_of_the_twins_is_known(name: str) -> None:
    tokens = FAMILIES[name].processor().tokenizer
    for twin in ("mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"):
        for style in prompts.STYLES:
            benchmark = benchmarks.from_settings({"name": twin, "gap": 40})
            for sample in benchmarks.load(benchmark, "tuning", 100, style):
                gold = sample.gold.upper() if sample.answers else sample.gold
                ids = tokens(f"{sample.prompt} {gold}")["input_ids"]
                assert tokens.unk_token_id not in ids, sample.prompt


def test_a_sign_is_read_as_it_is_written(name: str) -> None:
    tokens = FAMILIES[name].processor().tokenizer
    for text in ("K7", "42", "B", "0"):
        ids = tokens(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text)
        assert tokens.decode(ids) == text


def test_a_scene_says_what_each_cell_shows() -> None:
    known = set(FAMILIES["mini_llava"].processor().tokenizer.get_vocab())
    for stage in PICTURES.values():
        for kind in stage:
            scene = Scene(kind, np.random.default_rng(4))
            assert scene.pixels.shape == (64, 64, 3)
            assert len(scene.shown) == len(scene.objects) + sum(len(sign.text) for sign in scene.signs) > 0
            assert {word for pair in scene.shown.values() for word in pair} <= known
    assert len(CHARACTERS) == 33


@pytest.mark.parametrize("model", ["mini_llava", "mini_internvl", "mini_qwen2_5_vl", "mini_llava_long"])
def test_texts_stay_within_the_stated_gap(model: str) -> None:
    """Between image and question or in front of the image, never both."""
    recipe = shipped(model)
    data = pictures(model, recipe)
    context, newline = (data.ids[token] for token in ("Context", "\n"))
    lengths = []
    for number in range((recipe.steps - 4) * recipe.batch_size, recipe.steps * recipe.batch_size):
        item = data[number]
        for ids, turns in zip(item["ids"].tolist(), item["turns"], strict=True):
            places = [turns[i] == 0 for i, token in enumerate(ids) if token == context]
            assert not (any(places) and not all(places))
            for at in (i for i, token in enumerate(ids) if token == context):
                lengths.append(ids.index(newline, at) - at - 2)
    assert max(lengths) <= recipe.gap
    assert max(lengths) > 0.85 * recipe.gap
    assert min(lengths) >= 1


def test_stopping_and_going_on_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.train("mini_llava", TINY, tmp_path / "whole")
    original, calls = train._answer_loss, []

    def third_stops(*arguments: object) -> object:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train, "_answer_loss", third_stops)
    with pytest.raises(KeyboardInterrupt):
        train.train("mini_llava", TINY, tmp_path / "pieces")
    pieces = train.train("mini_llava", TINY, tmp_path / "pieces")
    one, two = (AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (whole, pieces))
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    with pytest.raises(SettingError, match="holds another recipe's checkpoint"):
        train.train("mini_llava", replace(TINY, seed=4), tmp_path / "pieces")


@pytest.mark.parametrize("name", ["mini_internvl", "mini_qwen2_5_vl"])
def test_a_trained_folder_loads_as_a_backbone(name: str, tmp_path: Path) -> None:
    """Trained from another's decoder, for a few steps, and asked through the path of the hub's models."""
    recipe = replace(TINY, start="embedded:mini_llava", length=240)
    folder = train.train(name, recipe, tmp_path)
    backbone = backbones.load(BackboneSettings(name, str(folder), device="cpu", max_new_tokens=2))
    assert backbone.model.config.get_text_config()._attn_implementation == "sdpa"
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_gqa", "gap": 3}), "tuning", 3)
    assert len(backbone.answer(samples, "gqa")) == 3


def test_a_model_of_the_same_class_starts_as_a_whole() -> None:
    torch.manual_seed(0)
    family = FAMILIES["mini_llava_long"]
    model: Any = family.untrained()
    start_from("embedded:mini_llava", model, family.processor().tokenizer)
    theirs = AutoModelForImageTextToText.from_pretrained(EMBEDDED / "mini_llava").state_dict()
    assert all(value.equal(theirs[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mini_internvl", "mini_qwen2_5_vl"])
def test_a_decoder_starts_from_another(name: str) -> None:
    """Word by word in the embedding; what only the new one has, its biases, starts at zero."""
    torch.manual_seed(0)
    model: Any = FAMILIES[name].untrained()
    tokens = FAMILIES[name].processor().tokenizer
    start_from("embedded:mini_llava", model, tokens)
    theirs: Any = AutoModelForImageTextToText.from_pretrained(EMBEDDED / "mini_llava")
    old = FAMILIES["mini_llava"].processor().tokenizer.get_vocab()
    for word in ("circle", "\n", "K"):
        mine = model.get_input_embeddings().weight[tokens.get_vocab()[word]]
        assert mine.equal(theirs.get_input_embeddings().weight[old[word]])
    own = model.model.language_model.state_dict()
    given = theirs.model.language_model.state_dict()
    assert own["layers.2.mlp.up_proj.weight"].equal(given["layers.2.mlp.up_proj.weight"])
    assert own["layers.3.self_attn.q_proj.weight"].equal(given["layers.3.self_attn.q_proj.weight"])
    assert all((value == 0).all() for key, value in own.items() if key not in given)
    with pytest.raises(SettingError, match=r"recipe.start = '/nowhere'"):
        start_from("/nowhere", model, tokens)


def test_the_command_takes_the_backbones_own_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[Recipe] = []

    def remember(name: str, recipe: Recipe, folder: Path) -> Path:
        found.append(recipe)
        (folder / "model").mkdir(parents=True)
        return folder / "model"

    monkeypatch.setattr(train, "train", remember)
    monkeypatch.setattr(cards, "measure", lambda name, folder, longest: cards.known_scores()[name])
    for name in FAMILIES:
        train.main_train(compose("train", [f"backbone={name}", "recipe.seed=7", f"output={tmp_path}"]))
        assert asdict(found[-1]) == asdict(shipped(name)) | {"seed": 7}
        written = next(tmp_path.rglob(f"{name}-seed7/scores.yaml"))
        assert yaml.safe_load(written.read_text()) == {name: cards.known_scores()[name]}
    assert [found[n].seed for n in range(3)] == [7, 7, 7]
    assert [shipped(name).seed for name in FAMILIES] == [0, 1, 2, 0, 0, 0]
    assert {name: shipped(name).gap for name in FAMILIES} == TRAINED
    with pytest.raises(SettingError, match="backbone = 'llava_1_5_7b': must be one of mini_llava, mini_llava_seed1"):
        train.main_train(compose("train", ["backbone=llava_1_5_7b"]))
    assert "choose" in SORTS
