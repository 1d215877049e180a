"""Load and save a model's processor with transformers' own classes, for images alone.

Some processors (Qwen's, InternVL's, LLaVA-OneVision's) want a video processor, which needs torchvision. torch's CPU
build has no matching torchvision in a package registry. So these processors are built without video, and PIL prepares
the pictures; results then do not depend on torchvision.
"""

import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils.import_utils import is_torchvision_available

from tdrs.backbones.checkpoint import Incomplete
from tdrs.backbones.families import Family, family_of
from tdrs.settings import SettingError, first_line

# A picture whose sides have at least ORDINARY pixels, and whose long side is at most LONG times the short one, is
# always accepted.
ORDINARY, LONG = 32, 50
# The settings of a processor that `save_processor` keeps.
KEPT = (
    "image_seq_length",
    "image_seq_len",
    "num_image_tokens",
    "vision_feature_select_strategy",
    "vision_aspect_ratio",
)
LARGEST = 1 << 26  # the most pixels that a picture may have while it is prepared


class ImagesOnly:
    """A mixin for processor classes: accepts that there is no video processor."""

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class does: SmolVLM's own method reads settings of the video processor."""
        return ProcessorMixin.apply_chat_template(self, *args, **kwargs)  # type: ignore[arg-type]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


@lru_cache
def images_only(kind: Any) -> Any:
    """A processor class without video: its third argument, the video processor, may be None."""
    return type(f"{kind.__name__}ImagesOnly", (ImagesOnly, kind), {})


def pixtral_processor() -> Any:
    """transformers' `PixtralProcessor`, without torchvision, too.

    Its file imports a function from the module of torchvision's image processor. The module of PIL's has the same one.
    """
    wanted = "transformers.models.pixtral.image_processing_pixtral"
    missing = not is_torchvision_available() and wanted not in sys.modules
    if missing:
        sys.modules[wanted] = import_module("transformers.models.pixtral.image_processing_pil_pixtral")
    try:
        return import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    finally:
        if missing:
            del sys.modules[wanted]


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
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    family = family_of(config.model_type)
    for name, value in image.items():
        if name not in family.image_settings:
            known = ", ".join(family.image_settings) or "nothing"
            raise SettingError(f"image.{name}", value, f"a model of type {config.model_type} takes {known}")
    processor = _from_pretrained(source, revision, family, config)
    own = processor.chat_template or processor.tokenizer.chat_template
    processor.chat_template = own or family.chat_template
    if not processor.chat_template:
        raise Incomplete("no chat template: chat_template.jinja, or chat_template in tokenizer_config.json")
    family.prepare_processor(processor, source, revision, image)
    return processor, family


def _from_pretrained(source: str, revision: str | None, family: Family, config: Any) -> Any:
    given: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    parts = {
        "tokenizer": AutoTokenizer.from_pretrained(source, **given, **family.tokenizer_options),
        "image_processor": AutoImageProcessor.from_pretrained(source, backend="pil", **given),
        "video_processor": None,
    }
    settings, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
    kind = _processor_class(source, revision, config, settings.get("processor_class"))
    attributes = kind.get_attributes()
    unknown = [name for name in attributes if name not in parts]
    if unknown:
        raise Incomplete(f"{kind.__name__} needs {', '.join(unknown)}; only models of pictures and text are supported")
    if "video_processor" in attributes:
        kind = images_only(kind)
    return kind.from_args_and_dict([parts[name] for name in attributes], settings)


def _processor_class(source: str, revision: str | None, config: Any, name: str | None) -> Any:
    """The class that the folder's files name, or the one of the model's type; raises Incomplete if there is none."""
    if name is None:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)
        name = settings.get("processor_class")
    if name == "PixtralProcessor":
        return pixtral_processor()
    found = processor_class_from_name(name) if name else None
    if found is None and type(config) in PROCESSOR_MAPPING:
        found = PROCESSOR_MAPPING[type(config)]
    if found is None:
        raise Incomplete(f"transformers has no processor for a model of type {config.model_type}")
    return found


@lru_cache
def _cached(
    source: str, revision: str | None, image: tuple[tuple[str, Any], ...], files: tuple[Any, ...]
) -> tuple[Any, Family]:
    """A processor to try picture sizes with. It is read again when its files change."""
    return _load(source, revision, dict(image))


def _key(source: str, revision: str | None, image: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a processor depends on: its name, the settings and the state of its files."""
    found = [path for pattern in ("*.json", "*.jinja") for path in Path(source).glob(pattern)]
    files = sorted((path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in found)
    return source, revision, tuple(sorted(image.items())), tuple(files)


def size_fault(source: str, revision: str | None, image: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Why a model's processor cannot accept a picture of a width and height; "" if it can.

    Ordinary sizes are accepted at once; others are tried with a blank picture.

    Args:
        source, revision, image: as for `load_processor`.
    """
    short, long = min(size), max(size)
    if short >= ORDINARY and long <= LONG * short:
        return ""
    processor, family = _cached(*_key(source, revision, image))
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


def several_fault(source: str, revision: str | None, image: Mapping[str, Any], count: int) -> str:
    """Why a model's processor cannot accept a prompt with a number of pictures; "" if it can. It is tried once.

    Args:
        source, revision, image: as for `load_processor`.
    """
    return _several(*_key(source, revision, image), count)


@lru_cache
def _several(
    source: str, revision: str | None, image: tuple[tuple[str, Any], ...], files: tuple[Any, ...], count: int
) -> str:
    return fault_of_several(*_cached(source, revision, image, files), dict(image), count)


def fault_of_several(processor: Any, family: Family, image: Mapping[str, Any], count: int) -> str:
    """`several_fault` for a loaded processor."""
    try:
        single, several = (
            processor.apply_chat_template([user_turn("?", number)], add_generation_prompt=True) for number in (1, count)
        )
        if single == several:
            return "the chat template has a place for one"
        pictures = [Image.new("RGB", (64, 64))] * count
        text = [family.processor_text(several)]
        processor(text=text, images=[pictures], return_tensors="pt", **family.image_kwargs(processor, image))
    except Exception as error:  # each family's processor and template have errors of their own
        return first_line(error)
    return ""


def user_turn(prompt: str, count: int = 1) -> dict[str, Any]:
    """The user's turn, as chat templates take it: a number of pictures, then the prompt."""
    return {"role": "user", "content": [*({"type": "image"} for _ in range(count)), {"type": "text", "text": prompt}]}


def save_processor(processor: Any, folder: Path) -> None:
    """Write a processor in the hub's layout.

    The own method of a processor without a video processor would ask for one, so its parts are written one by one.
    """
    if not issubclass(type(processor), ImagesOnly):
        processor.save_pretrained(folder)
        return
    own: dict[str, Any] = {"processor_class": type(processor).__mro__[2].__name__}
    own |= {name: getattr(processor, name) for name in KEPT if hasattr(processor, name)}
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
