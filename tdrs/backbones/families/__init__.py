"""Families of vision-language models, one adapter per file. Without an adapter, the defaults of `Family` apply."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tdrs.backbones.families.family import TRANSPARENCY, Family
from tdrs.settings import check_choice

__all__ = ["FAMILIES", "TRANSPARENCY", "Family", "check_image_setting", "family_of", "is_language_model"]


def _adapters() -> list[type[Family]]:
    """The adapters in the files of this folder, in the order of the files and of their lines."""
    found: dict[type[Family], None] = {}
    for file in iter_modules(__path__):
        for kind in vars(import_module(f"{__name__}.{file.name}")).values():
            if isinstance(kind, type) and issubclass(kind, Family) and kind.model_type:
                found.setdefault(kind)
    return list(found)


FAMILIES: dict[str, Family] = {kind.model_type: kind() for kind in _adapters()}


def family_of(model_type: str) -> Family:
    """The adapter for a `model_type` of config.json; the defaults if there is none."""
    return FAMILIES.get(model_type, Family())


def is_language_model(model_type: str) -> bool:
    """Whether models of a `model_type` of config.json read text alone."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return model_type in known[0] and model_type not in known[1]


def check_image_setting(name: str, value: Any) -> None:
    """Raises SettingError if no family has the image setting, or the value is not allowed."""
    checks = {known: check for family in FAMILIES.values() for known, check in family.image_settings.items()}
    check_choice("image", name, list(checks))
    checks[name](f"image.{name}", value)
