"""Qwen2.5-VL: S. Bai et al., "Qwen2.5-VL Technical Report", arXiv 2502.13923."""

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tdrs.backbones.families.family import Family, ImagesOnly, whole_number


class Qwen2_5_VLImagesOnly(ImagesOnly, Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor for text and images."""


class Qwen2_5_VL(Family):
    """It takes pictures of any size between two limits. Its own code puts pictures of mode RGBA on white."""

    model_type = "qwen2_5_vl"
    image_settings = {"min_pixels": whole_number, "max_pixels": whole_number}  # noqa: RUF012 - read only
    transparency = "rgba_white"
    image_opening = "<|vision_start|>"
    images_only = Qwen2_5_VLImagesOnly, Qwen2VLImageProcessorPil

    def image_kwargs(self, processor: Any, image: Mapping[str, Any]) -> dict[str, Any]:
        names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # its names for limits in pixels
        size = {names[name]: value for name, value in image.items() if name in names}
        return {"size": {**dict(processor.image_processor.size), **size}} if size else {}
