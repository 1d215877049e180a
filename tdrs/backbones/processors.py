"""Load and save a model's processor with transformers' own classes, with torchvision and without it.

The processors of Qwen2.5-VL and InternVL need a video processor, which needs torchvision. torch's CPU build has no
matching torchvision in a package registry. Without torchvision, these processors are built for images alone, with the
PIL image processors. PIL prepares pictures in both cases, so that results do not depend on torchvision.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.utils.import_utils import is_torchvision_available

from tdrs.backbones.checkpoint import Incomplete
from tdrs.backbones.families import Family, ImagesOnly, family_of
from tdrs.settings import SettingError, first_line

# A picture whose sides have at least ORDINARY pixels, and whose long side is at most LONG times the short one, is
# always accepted.
ORDINARY, LONG = 32, 50
LARGEST = 1 << 26  # the most pixels that a picture may have while it is prepared


def load_processor(source: str, revision: str | None = None, image: Mapping[str, Any] | None = None) -> Any:
    """The processor of a hub id or of a local folder in the hub's layout; raises what `from_pretrained` raises.

    Args:
        image: the settings for pictures that calls will receive.

    Raises:
        SettingError: the model's family does not have such a setting.
        Incomplete: there is no chat template.
    """
    return _load(source, revision, image or {})[0]


def _load(source: str, revision: str | None, image: Mapping[str, Any]) -> tuple[Any, Family]:
    kind = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False).model_type
    family = family_of(kind)
    for name, value in image.items():
        if name not in family.image_settings:
            known = ", ".join(family.image_settings) or "nothing"
            raise SettingError(f"image.{name}", value, f"a model of type {kind} takes {known}")
    processor = _from_pretrained(source, revision, family)
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if not processor.chat_template:
        raise Incomplete("no chat template: chat_template.jinja, or chat_template in tokenizer_config.json")
    family.prepare_processor(processor, source, revision, image)
    return processor, family


def _from_pretrained(source: str, revision: str | None, family: Family) -> Any:
    given: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(source, **given, **family.tokenizer_options)
    if family.images_only is None or is_torchvision_available():
        whole = AutoProcessor.from_pretrained(source, **given)
        whole.tokenizer = tokenizer
        whole.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **given)
        return whole
    processor, image_processor = family.images_only
    settings, _ = processor.get_processor_dict(source, revision=revision)
    own = {name: settings[name] for name in ("image_seq_length", "chat_template") if name in settings}
    own.setdefault("chat_template", tokenizer.chat_template)
    return processor(image_processor.from_pretrained(source, revision=revision), tokenizer, None, **own)


@lru_cache
def _cached(
    source: str, revision: str | None, image: tuple[tuple[str, Any], ...], files: tuple[Any, ...]
) -> tuple[Any, Family]:
    """A processor to try picture sizes with. It is read again when its files change."""
    return _load(source, revision, dict(image))


def size_fault(source: str, revision: str | None, image: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Why a model's processor cannot accept a picture of a width and height; "" if it can.

    Ordinary sizes are accepted at once; others are tried with a blank picture.

    Args:
        source, revision, image: as for `load_processor`.
    """
    short, long = min(size), max(size)
    if short >= ORDINARY and long <= LONG * short:
        return ""
    files = sorted((path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in Path(source).glob("*.json"))
    processor, family = _cached(source, revision, tuple(sorted(image.items())), tuple(files))
    images = processor.image_processor
    edge = dict(images.size).get("shortest_edge", 0) if getattr(images, "do_center_crop", False) else 0
    # LLaVA's own image processor first pads to a square; CLIP's first scales the short side up to `edge`, then crops.
    sides = (long, long) if getattr(images, "do_pad", False) else (edge, edge * long // short)
    if sides[0] * sides[1] > LARGEST:
        return f"the processor would make it {sides[0]} × {sides[1]} pixels"
    try:
        images(Image.new("RGB", size), return_tensors="pt", **family.image_kwargs(processor, image))
    except Exception as error:  # each family's processor has errors of its own
        return first_line(error)
    return ""


def save_processor(processor: Any, folder: Path) -> None:
    """Write a processor in the hub's layout.

    The own method of a processor without a video processor would ask for one, so its parts are written one by one.
    """
    if not issubclass(type(processor), ImagesOnly):
        processor.save_pretrained(folder)
        return
    own: dict[str, Any] = {"processor_class": type(processor).__mro__[2].__name__}
    if hasattr(processor, "image_seq_length"):
        own["image_seq_length"] = processor.image_seq_length
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
