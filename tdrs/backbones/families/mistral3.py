"""Mistral Small 3.1 and Pixtral (arXiv 2410.07073), in transformers' form."""

from collections.abc import Mapping
from typing import Any

from tdrs.backbones.families.family import Family, whole_number


class Mistral3(Family):
    """It takes pictures of any size up to a limit. Marks at the ends of rows are text tokens."""

    model_type = "mistral3"
    image_settings = {"longest_edge": whole_number}  # noqa: RUF012 - read only
    reads_in_pieces = True

    def image_kwargs(self, processor: Any, image: Mapping[str, Any]) -> dict[str, Any]:
        return {"size": dict(image)} if image else {}

    def processor_values(self, config: Any) -> dict[str, Any]:
        return {"patch_size": config.vision_config.patch_size, "spatial_merge_size": config.spatial_merge_size}

    def tile_side(self, config: Any) -> int:
        return 0  # each row is a run of its own

    def token_grid(self, config: Any, inputs: Mapping[str, Any], count: int) -> tuple[int, int]:
        height, width = (int(side) for side in inputs["image_sizes"][0])
        cell = config.vision_config.patch_size * config.spatial_merge_size
        return height // cell, width // cell
