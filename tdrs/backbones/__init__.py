"""Backbones: vision-language models in the hub's folder layout, with their processors."""

from tdrs.backbones.huggingface import Backbone, BackboneSettings, from_settings, load

__all__ = ["Backbone", "BackboneSettings", "from_settings", "load"]
