"""Backbones: vision-language models in the hub's folder layout, with their processors."""

from tdrs.backbones.backbone import Backbone, load
from tdrs.backbones.backbone_settings import BackboneSettings, from_settings
from tdrs.backbones.decoding import Answer
from tdrs.backbones.image_embeddings import EmbeddingStore

__all__ = ["Answer", "Backbone", "BackboneSettings", "EmbeddingStore", "from_settings", "load"]
