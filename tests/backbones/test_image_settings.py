"""How pictures are prepared is a setting: it reaches the processor, decides the cache key, and is checked by name."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tdrs import backbones
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.benchmarks.benchmark import Picture, Sample
from tdrs.settings import SettingError
from tests.backbones.folders import write


def load(folder: Path, kind: str, **settings: object) -> Backbone:
    return backbones.load(BackboneSettings(kind, str(folder), device="cpu", **settings))


def sample(width: int = 128, height: int = 32) -> Sample:
    rows = Image.radial_gradient("L").resize((width, height)).convert("RGB")
    return Sample("0", "0", Picture.of(rows), "What color is the circle?", "What color is the circle?", "red")


@pytest.mark.parametrize(
    ("kind", "image"),
    [("llava", {"do_pad": True}), ("internvl", {"max_patches": 1}), ("qwen2_5_vl", {"min_pixels": 65536})],
)
def test_settings_reach_the_processor_and_the_embeddings(kind: str, image: dict[str, object], tmp_path: Path) -> None:
    folder = write(kind, tmp_path / kind)
    usual, other = load(folder, kind), load(folder, kind, image=image)
    assert usual.settings.decisive != other.settings.decisive
    with torch.inference_mode():
        ids = [b.inputs([sample()])["input_ids"] for b in (usual, other)]
        pixels = [b.inputs([sample()])["pixel_values"] for b in (usual, other)]
        embeddings = [b.images.encode(sample().picture) for b in (usual, other)]
    assert pixels[0].shape != pixels[1].shape or not torch.equal(*pixels)
    assert embeddings[0].shape != embeddings[1].shape or not torch.equal(*embeddings)
    for tokens, found, backbone in zip(ids, embeddings, (usual, other), strict=True):
        assert int((tokens == backbone.model.config.image_token_id).sum()) == len(found)


def test_padding_keeps_what_cropping_cuts(tmp_path: Path) -> None:
    """LLaVA's own preparation: a square with the mean colour around the whole picture."""
    folder = write("llava", tmp_path / "llava")
    padded = load(folder, "llava", image={"do_pad": True}).inputs([sample()])["pixel_values"][0]
    assert torch.allclose(padded[:, 0, :], padded[:, 0, :1].expand_as(padded[:, 0, :]), atol=1e-4)  # above: one colour
    assert padded[:, padded.shape[1] // 2].std() > 10 * padded[:, 0].std(dim=-1).max()


def test_a_system_prompt_is_put_in_front(tmp_path: Path) -> None:
    folder = write("qwen2_5_vl", tmp_path / "qwen")
    usual, other = load(folder, "qwen2_5_vl"), load(folder, "qwen2_5_vl", system="Is there a circle?")
    texts = [b.processor.tokenizer.decode(b.inputs([sample()])["input_ids"][0]) for b in (usual, other)]
    assert texts[1].index("circle") < texts[1].index("<|vision_start|>")
    assert "circle" not in texts[0].split("<|vision_start|>")[0]
    assert usual.settings.decisive != other.settings.decisive


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            {"tiles": 6},
            "image = 'tiles': must be one of do_pan_and_scan, do_image_splitting, min_patches, max_patches, do_pad",
        ),
        ({"do_pad": 1}, r"image.do_pad = 1: must be true \(pad to a square\) or false \(crop\)"),
        ({"max_patches": 0}, "image.max_patches = 0: must be a whole number of at least 1"),
        ({"do_image_splitting": "no"}, "image.do_image_splitting = 'no': must be true or false"),
    ],
)
def test_bad_settings_are_named(image: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        BackboneSettings("x", "embedded:mini_llava", image=image)


def test_a_setting_of_another_model_is_named_before_the_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"backbone.image.max_patches = 6: a model of type llava takes do_pad"):
        load(write("llava", tmp_path / "llava"), "llava", image={"max_patches": 6})


def test_missing_weights_say_where_they_were_looked_for_and_what_would_get_them() -> None:
    settings = BackboneSettings("x", "nobody/nothing-at-all", device="cpu")
    with pytest.raises(
        SettingError, match=r"is not in .*hub, and the hub does not provide it; `hf download nobody/nothing"
    ):
        backbones.load(settings)
