"""Families of vision-language models, one adapter per file. Without an adapter, the defaults of `Family` apply."""

from typing import Any

from tdrs.backbones.families.family import TRANSPARENCY, Family, ImagesOnly
from tdrs.backbones.families.internvl import InternVL
from tdrs.backbones.families.llava import Llava
from tdrs.backbones.families.qwen2_5_vl import Qwen2_5_VL
from tdrs.settings import check_choice

__all__ = ["FAMILIES", "TRANSPARENCY", "Family", "ImagesOnly", "check_image_setting", "family_of"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (Llava(), InternVL(), Qwen2_5_VL())}


def family_of(model_type: str) -> Family:
    """The adapter for a `model_type` of config.json; the defaults if there is none."""
    return FAMILIES.get(model_type, Family())


def check_image_setting(name: str, value: Any) -> None:
    """Raises SettingError if no family has the image setting, or the value is not allowed."""
    checks = {known: check for family in FAMILIES.values() for known, check in family.image_settings.items()}
    check_choice("image", name, list(checks))
    checks[name](f"image.{name}", value)
