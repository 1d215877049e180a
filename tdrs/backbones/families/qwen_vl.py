"""Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631)."""

from collections.abc import Callable, Mapping
from typing import Any

from tdrs.backbones.families.family import Family, whole_number


class Qwen2_5_VL(Family):
    """It takes pictures of any size between two limits. Its own code puts pictures of mode RGBA on white."""

    model_type = "qwen2_5_vl"
    prompt_style = "vlmevalkit"
    image_settings = {"min_pixels": whole_number, "max_pixels": whole_number}  # noqa: RUF012 - read only
    transparency = "rgba_white"
    reads_in_pieces = True

    def image_kwargs(self, processor: Any, image: Mapping[str, Any]) -> dict[str, Any]:
        names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # its names for limits in pixels
        size = {names[name]: value for name, value in image.items() if name in names}
        return {"size": {**dict(processor.image_processor.size), **size}} if size else {}

    def change_pixels(self, config: Any, pixels: Any, change: Callable[[Any], Any]) -> Any:
        vision = config.vision_config  # a picture is a film of several equal frames: they stay equal
        frames = pixels.unflatten(1, (-1, vision.temporal_patch_size, vision.patch_size**2))
        return change(frames[:, :, :1].contiguous()).expand_as(frames).flatten(1)

    def token_grid(self, config: Any, inputs: Mapping[str, Any], count: int) -> tuple[int, int]:
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        merge = config.vision_config.spatial_merge_size
        return rows // merge, columns // merge


class Qwen2VL(Qwen2_5_VL):
    """The same but for the vision tower."""

    model_type = "qwen2_vl"


class Qwen3VL(Qwen2_5_VL):
    """The tower also adds to the image tokens in the first decoder layers; position axes take turns in the rotation."""

    model_type = "qwen3_vl"
