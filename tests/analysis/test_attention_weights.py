"""Recorded weights are the model's own, and the two figures made of them show what was measured."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tdrs import DC, TDRS, __version__, backbones, benchmarks, checked_file
from tdrs.analysis import attention, decay
from tdrs.analysis.attention_weights import Unedited, record_weights
from tdrs.analysis.figure import stored_measurement
from tdrs.backbones import Backbone
from tdrs.backbones.families import family_of
from tdrs.benchmarks.benchmark import Picture, PictureSet, Sample
from tdrs.configuration import compose, plain, with_settings
from tdrs.evaluation import plan
from tdrs.settings import SettingError
from tdrs.sweeps.folder import study_key
from tdrs.sweeps.trial import Outcome, Trial

MODELS = ["mini_llava", "mini_internvl", "mini_qwen2_5_vl"]


def outcome(output: Path, name: str) -> Outcome:
    """A finished study of the stock model alone, that nobody measured."""
    given = [f"backbone={name}", f"output={output}", "dataset=mini_pope", "dataset.gap=6", "study.name=s"]
    config = plain(compose("sweep", given))
    config["preset"]["held_out"] = 8
    planned = plan({**with_settings(config, {"intervention": "none"}), "split": "held_out", "limit": 8})
    samples = planned.load()
    metrics = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
    stock = Trial("stock", "held_out", {}, {"intervention": "none"}, planned.cache_key(samples), len(samples), metrics)
    found = Outcome("s", "compare", config, [], [stock], key=study_key(config), environment={"tdrs": __version__})
    folder = output / "studies" / "s"
    folder.mkdir(parents=True, exist_ok=True)
    checked_file.write_yaml(folder / "config.yaml", config)
    found.save(folder / "study.json")
    return found


@pytest.mark.parametrize("name", MODELS)
def test_unedited_weights_are_eager_attentions(name: str) -> None:
    config = plain(compose("evaluate", [f"backbone={name}", "backbone.attention=eager"]))
    backbone = backbones.load(backbones.from_settings(config["backbone"]))
    benchmark = benchmarks.from_settings({"name": "mini_pope", "gap": 5})
    samples = benchmarks.load(benchmark, "tuning", 3, backbone.settings.prompt_style)
    inputs = backbone.model_inputs(samples)
    with torch.inference_mode():
        output = backbone.model(**inputs, output_attentions=True, use_cache=False)
    real = inputs["attention_mask"].bool()
    found = record_weights(backbone, samples, Unedited())
    assert len(found) == len(output.attentions) == 4
    for (_, weights), own in zip(found, output.attentions, strict=True):
        for row in range(len(samples)):
            torch.testing.assert_close(weights[row][:, real[row]], own[row][:, real[row]], atol=1e-5, rtol=1e-4)


def test_there_is_no_map_over_several_pictures(monkeypatch: pytest.MonkeyPatch, mini_llava: Backbone) -> None:
    parts = [Picture.of(Image.new("RGB", (8, 8), color)) for color in ("red", "blue")]
    sample = Sample("0", "", PictureSet.of_parts(lambda: parts), "?", "?", "yes")
    monkeypatch.setattr(attention, "first_condition", lambda *_: (mini_llava, [sample]))
    with pytest.raises(SettingError, match="number = 0: its prompt has 2 pictures, so there is no single map"):
        attention.attention_maps(None)


def test_weights_by_distance_are_means_over_pairs() -> None:
    weights = torch.arange(1.0, 17).view(1, 1, 4, 4).tril()
    image = torch.tensor([[False, True, False, False]])
    sums, counts = decay._by_distance(SimpleNamespace(real=None), weights, image)  # rows 2 and 3 ask
    assert counts.tolist() == [2, 2, 2, 1]
    assert sums.tolist() == [11 + 16, 10 + 15, 9 + 14, 13]
    padded = SimpleNamespace(real=torch.tensor([False, True, True, True]).view(1, 1, 4, 1))
    sums, counts = decay._by_distance(padded, weights, image)
    assert counts.tolist() == [2, 2, 1, 0]


def test_bins_keep_every_pair() -> None:
    sums, counts = np.arange(300.0), np.full(300, 2.0)
    curve = decay._binned("x", sums, counts)
    assert sum(curve.pairs) == 2 * 299  # all but distance 0
    assert np.dot(curve.weight, curve.pairs) == pytest.approx(sums[1:].sum())
    assert curve.distance == sorted(curve.distance)


def test_kernels_are_pinned_at_both_ends() -> None:
    gaussian, quadratic = decay.kernels(1e-3)
    assert gaussian.weight[0] == quadratic.weight[0] == 1
    assert gaussian.weight[-1] == pytest.approx(3e-3)
    assert quadratic.weight[-1] == pytest.approx(2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_both_figures_are_measured_kept_and_drawn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decay, "SAMPLES", 4)
    folder = tmp_path / "studies" / "s"
    found = outcome(tmp_path, name)
    for module in (decay, attention):
        assert module.main(["study=s", f"output={tmp_path}"]) == 0
    monkeypatch.setattr(backbones, "load", lambda *a: pytest.fail("loaded again"))
    for module in (decay, attention):
        (folder / f"{module.__name__.split('.')[-1]}.png").unlink()
        assert module.main(["study=s", f"output={tmp_path}"]) == 0
        assert (folder / f"{module.__name__.split('.')[-1]}.png").read_bytes().startswith(b"\x89PNG")
    for kind in ("png", "svg"):
        assert found.key.encode() in (folder / f"decay.{kind}").read_bytes()
        assert found.key.encode() in (folder / f"attention.{kind}").read_bytes()
    curves = decay.decay_from(stored_measurement(folder / "decay.json", found)).measured
    assert list(curves) == ["logits", "weights"]
    assert [curve.name for curve in curves["logits"]] == ["RoPE alone", "+ DC", "+ DC + reRD"]
    assert curves["logits"][0] == curves["weights"][0]
    assert curves["logits"][1] != curves["weights"][1]
    maps = attention.attention_from(stored_measurement(folder / "attention.json", found)).maps
    assert len(maps) == 3 * 5
    for one in maps:
        assert np.shape(one.weights) == (4, 4)
        assert 0 < one.share < 1
        assert np.sum(one.weights) == pytest.approx(one.share)


def test_only_what_was_measured_for_the_study_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept numbers of another study or another model are not drawn; a model that has changed is not measured."""
    monkeypatch.setattr(decay, "SAMPLES", 4)
    found = outcome(tmp_path, "mini_llava")
    path = tmp_path / "studies" / "s" / "decay.json"
    assert decay.main(["study=s", f"output={tmp_path}"]) == 0
    assert stored_measurement(path, found)
    assert stored_measurement(path, replace(found, key="0")) is None
    changed = replace(found, rows=[replace(found.rows[0], cache_key="0" * 16)])
    assert stored_measurement(path, changed) is None
    changed.save(tmp_path / "studies" / "s" / "study.json")
    assert decay.main(["study=s", f"output={tmp_path}"]) == 2
    assert "its model, data or versions are no longer those of its records" in capsys.readouterr().err
    outcome(tmp_path, "mini_internvl")
    found.save(tmp_path / "studies" / "s" / "study.json")
    assert decay.main(["study=s", f"output={tmp_path}"]) == 2
    assert "study.json belongs to" in capsys.readouterr().err


def test_a_sample_must_be_one_of_the_studys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(tmp_path, "mini_llava")
    assert attention.main(["study=s", f"output={tmp_path}", "sample=8"]) == 2
    assert "sample = 8: must be below 8, the number of the study's samples" in capsys.readouterr().err


def test_the_mean_map_is_the_mean_of_all_layers(tmp_path: Path) -> None:
    maps = attention.attention_maps(outcome(tmp_path, "mini_llava")).maps
    mine = [m for m in maps if m.method == "+ SD + DC"]
    layers = [np.array(m.weights) for m in mine[1:]]
    assert np.array(mine[0].weights) == pytest.approx(np.mean(layers, axis=0))


def test_tokens_that_are_no_grid_are_refused() -> None:
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, patch_size=4), spatial_merge_size=2)
    assert family_of("unknown").token_grid(config, {}, 576) == (24, 24)
    assert family_of("qwen3_vl").token_grid(config, {"image_grid_thw": torch.tensor([[1, 8, 6]])}, 12) == (4, 3)
    assert family_of("mistral3").token_grid(config, {"image_sizes": torch.tensor([[32, 24]])}, 12) == (4, 3)
    with pytest.raises(SettingError, match="several tiles"):
        family_of("unknown").token_grid(config, {}, 256 * 7)
    tower = SimpleNamespace(image_size=[448, 448], patch_size=[14, 14])
    tiled = SimpleNamespace(vision_config=tower, downsample_ratio=0.5)
    assert family_of("internvl").token_grid(tiled, {}, 256) == (16, 16)
    with pytest.raises(SettingError, match="several tiles"):
        family_of("internvl").token_grid(tiled, {}, 256 * 4)


@pytest.mark.parametrize("word", ["gain=both", "sample=x"])
def test_bad_words(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(tmp_path, "mini_llava")
    assert attention.main(["study=s", f"output={tmp_path}", word]) == 2
    assert capsys.readouterr().err.startswith(f"error: {word.split('=')[0]} = ")


def test_methods_are_the_papers_stages() -> None:
    made: Any = decay.methods("weights")["+ DC"]
    assert made == TDRS(sd=False, dc=DC(3.0, 1.0), re=None, gain="weights")
