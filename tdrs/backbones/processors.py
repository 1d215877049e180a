"""A model's processor by transformers' own classes, with torchvision and without it.

Qwen2.5-VL's and InternVL's processors each want their video processor, which needs torchvision; where that is missing
(torch's CPU build has none that matches in a package registry) they are built for images alone, with the image
processors' PIL classes. Pictures are prepared by PIL either way, so what is measured does not depend on torchvision.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    InternVLProcessor,
    Qwen2_5_VLProcessor,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

from tdrs.backbones.checkpoint import Incomplete
from tdrs.settings import SettingError, check_choice, check_number, first_line


class _ImagesOnly:
    """Accepts that there is no video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


class Qwen2_5_VLImagesOnly(_ImagesOnly, Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor for text and images."""


class InternVLImagesOnly(_ImagesOnly, InternVLProcessor):
    """InternVL's processor for text and images."""


IMAGES_ONLY: dict[str, tuple[Any, Any]] = {
    "qwen2_5_vl": (Qwen2_5_VLImagesOnly, Qwen2VLImageProcessorPil),
    "internvl": (InternVLImagesOnly, GotOcr2ImageProcessorPil),
}


# What may become of a transparent picture, and what each family's own code does: Qwen's puts mode RGBA, and no other,
# on white (qwen_vl_utils); the others' call convert("RGB").
TRANSPARENCY = ("family", "drop", "white")
_FAMILY = {"qwen2_5_vl": "rgba_white"}

ORDINARY, LONG = 32, 50  # pictures with sides of so many pixels, and at most so long for their width, are always taken
LARGEST = 1 << 26  # pixels that a picture may have while it is prepared


# What may be set of the way pictures are prepared, by the model's type; each has its own names for it.
IMAGE_SETTINGS: dict[str, tuple[str, ...]] = {
    "llava": ("do_pad",),
    "internvl": ("min_patches", "max_patches"),
    "qwen2_5_vl": ("min_pixels", "max_pixels"),
}


def check_image_setting(name: str, value: Any) -> None:
    """Raises SettingError unless some model has the setting, and the value is of its kind."""
    check_choice("image", name, [known for names in IMAGE_SETTINGS.values() for known in names])
    if name == "do_pad":
        if not isinstance(value, bool):
            raise SettingError(f"image.{name}", value, "must be true (pad to a square) or false (crop)")
    else:
        check_number(f"image.{name}", value, 1, whole=True)


def load_processor(source: str, revision: str | None = None, image: Mapping[str, Any] | None = None) -> Any:
    """The processor of a hub id or a local folder in the hub's layout; raises what `from_pretrained` raises.

    Args:
        image: settings for pictures that calls will be given.

    Raises:
        SettingError: this type of model has no such setting.
        Incomplete: there is no chat template.
    """
    given: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    kind = AutoConfig.from_pretrained(source, **given).model_type
    for name, value in (image or {}).items():
        if name not in IMAGE_SETTINGS.get(kind, ()):
            known = ", ".join(IMAGE_SETTINGS.get(kind, ())) or "nothing"
            raise SettingError(f"image.{name}", value, f"a model of type {kind} takes {known}")
    processor = _load(source, kind, given)
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if not processor.chat_template:
        raise Incomplete("no chat template: chat_template.jinja, or chat_template in tokenizer_config.json")
    if (image or {}).get("do_pad"):  # the hub's folder names CLIP's image processor, which crops
        processor.image_processor = LlavaImageProcessorPil.from_pretrained(
            source, revision=revision or "main", do_pad=True
        )
    return processor


def transparency(kind: str, setting: str) -> str:
    """What `Picture.open` is given, by a model's type and the setting."""
    return _FAMILY.get(kind, "drop") if setting == "family" else setting


@lru_cache
def _loaded(source: str, revision: str | None, image: tuple[tuple[str, Any], ...], files: tuple[Any, ...]) -> Any:
    """A processor to try sizes of pictures with, read once until its files change."""
    return load_processor(source, revision, dict(image))


def size_fault(source: str, revision: str | None, image: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Why a model's processor cannot take a picture of a width and height; "" where it can.

    Ordinary sizes are taken at once, others tried with a blank picture.

    Args:
        source, revision, image: as for `load_processor`.
    """
    short, long = min(size), max(size)
    if short >= ORDINARY and long <= LONG * short:
        return ""
    files = sorted((path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in Path(source).glob("*.json"))
    processor = _loaded(source, revision, tuple(sorted(image.items())), tuple(files))
    images = processor.image_processor
    edge = dict(images.size).get("shortest_edge", 0) if getattr(images, "do_center_crop", False) else 0
    # LLaVA's own way pads to a square before all else; CLIP's scales the short side up to its own before it crops
    sides = (long, long) if getattr(images, "do_pad", False) else (edge, edge * long // short)
    if sides[0] * sides[1] > LARGEST:
        return f"the processor would make it {sides[0]} × {sides[1]} pixels"
    try:
        images(Image.new("RGB", size), return_tensors="pt", **image_kwargs(processor, image))
    except Exception as error:  # each family's processor has errors of its own
        return first_line(error)
    return ""


def image_kwargs(processor: Any, image: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor's call is given for settings of pictures; limits of pixels are sizes there."""
    names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    size = {names[name]: value for name, value in image.items() if name in names}
    others = {name: value for name, value in image.items() if name not in names}
    return others | ({"size": {**dict(processor.image_processor.size), **size}} if size else {})


def _load(source: str, kind: str, given: dict[str, Any]) -> Any:
    revision = given["revision"]
    # InternVL2's tokenizer puts no blank in front of a text; transformers' class for it would
    own_tokenizer = given | ({"add_prefix_space": False} if kind == "internvl" else {})
    if kind not in IMAGES_ONLY or is_torchvision_available():
        whole = AutoProcessor.from_pretrained(source, **given)
        whole.tokenizer = AutoTokenizer.from_pretrained(source, **own_tokenizer)
        whole.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **given)
        return whole
    processor, image_processor = IMAGES_ONLY[kind]
    settings, _ = processor.get_processor_dict(source, revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(source, **own_tokenizer)
    own = {name: settings[name] for name in ("image_seq_length", "chat_template") if name in settings}
    own.setdefault("chat_template", tokenizer.chat_template)
    return processor(image_processor.from_pretrained(source, revision=revision), tokenizer, None, **own)


def save_processor(processor: Any, folder: Path) -> None:
    """Write a processor in the hub's layout, also one without a video processor, whose own method would ask for it."""
    if not issubclass(type(processor), _ImagesOnly):
        processor.save_pretrained(folder)
        return
    own: dict[str, Any] = {"processor_class": type(processor).__mro__[2].__name__}
    if hasattr(processor, "image_seq_length"):
        own["image_seq_length"] = processor.image_seq_length
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
