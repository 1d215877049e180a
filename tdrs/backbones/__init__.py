"""Backbones: vision-language models in the hub's folder layout, with their processors."""

from tdrs.backbones.backbone_settings import BackboneSettings, from_settings
from tdrs.backbones.huggingface import Backbone, load

__all__ = ["Backbone", "BackboneSettings", "from_settings", "load"]
