"""Idefics3 (arXiv 2408.12637), SmolVLM and SmolVLM2 (arXiv 2504.05299)."""

from typing import Any

from tdrs.backbones.families.family import Family, true_or_false


class Idefics3(Family):
    """It cuts a picture into tiles, with marks between them, which are text tokens."""

    model_type = "idefics3"
    image_settings = {"do_image_splitting": true_or_false}  # noqa: RUF012 - read only
    reads_in_pieces = True

    def processor_values(self, config: Any) -> dict[str, Any]:
        return {"image_seq_len": self.tile_side(config) ** 2}

    def tile_side(self, config: Any) -> int:
        return int(config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor)


class SmolVLM(Idefics3):
    """The same with another processor, which needs the package num2words."""

    model_type = "smolvlm"
