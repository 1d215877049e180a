"""Loading from a local folder in the hub's layout, and the messages if that fails."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tdrs import TDRS, Stock, backbones, benchmarks
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.evaluation import evaluate
from tdrs.settings import SettingError


def test_a_local_folder_is_the_same_model(tmp_path: Path, mini_llava: Backbone) -> None:
    shutil.copytree(EMBEDDED / "mini_llava", tmp_path / "llava")
    twin = benchmarks.from_settings({"name": "mini_scienceqa", "gap": 60})
    samples = benchmarks.load(twin, "tuning", 6)
    local = backbones.load(BackboneSettings("mine", str(tmp_path / "llava"), device="cpu"))
    assert evaluate(local, twin, samples, Stock()).records == evaluate(mini_llava, twin, samples, Stock()).records


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_layers_spread_over_devices_are_the_same_model(mini_llava: Backbone) -> None:
    """Without a GPU, the same loading puts all layers on the CPU."""
    twin = benchmarks.from_settings({"name": "mini_scienceqa", "gap": 60})
    samples = benchmarks.load(twin, "tuning", 6)
    spread = backbones.load(BackboneSettings("mini_llava", "embedded:mini_llava", device="spread", dtype="float32"))
    method = TDRS(pairs="text_to_image", distance="position", heads=[1])
    assert evaluate(spread, twin, samples, method).records == evaluate(mini_llava, twin, samples, method).records


def test_spreading_needs_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdrs.backbones.backbone_settings.find_spec", lambda name: None)
    with pytest.raises(SettingError, match="device = 'spread': needs accelerate: pip install accelerate"):
        BackboneSettings("x", "embedded:mini_llava", device="spread")


def test_half_precision_answers_alike(mini_llava: Backbone) -> None:
    twin = benchmarks.from_settings({"name": "mini_scienceqa"})
    samples = benchmarks.load(twin, "tuning", 40)
    settings = BackboneSettings("mini_llava", "embedded:mini_llava", device="cpu", dtype="bfloat16")
    half, full = (evaluate(b, twin, samples, Stock()).records for b in (backbones.load(settings), mini_llava))
    assert sum(a.prediction == b.prediction for a, b in zip(half, full, strict=True)) >= 36


def test_image_tokens_and_prompt_reach_the_model(mini_llava: Backbone) -> None:
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 30}), "tuning", 3)
    inputs = mini_llava.inputs(samples)
    image = inputs["input_ids"] == mini_llava.model.config.image_token_id
    assert image.sum(dim=1).tolist() == [16, 16, 16]
    assert inputs["pixel_values"].shape == (3, 3, 64, 64)
    unknown = mini_llava.processor.tokenizer.unk_token_id
    assert not (inputs["input_ids"] == unknown).any()
    assert inputs["attention_mask"][:, -1].all()  # padded on the left


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED / "mini_llava", tmp_path / "llava")
    (tmp_path / "llava" / "model.safetensors").unlink()
    with pytest.raises(SettingError, match=r"backbone.source = .*: no model.safetensors") as error:
        backbones.load(BackboneSettings("mine", str(tmp_path / "llava"), device="cpu"))
    assert "\n" not in str(error.value)


def test_a_hub_id_that_is_not_here_is_named() -> None:
    with pytest.raises(
        SettingError,
        match=r"backbone.source = 'llava-hf/llava-1.5-7b-hf': is not in .*hub, and the hub does not provide it",
    ) as error:
        backbones.load(BackboneSettings("llava", "llava-hf/llava-1.5-7b-hf", device="cpu"))
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"the folder has no config\.json"):
        BackboneSettings("mine", str(tmp_path))
