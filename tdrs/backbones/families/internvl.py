"""InternVL 2 to 3.5: Z. Chen et al., "How Far Are We to GPT-4V?", arXiv 2404.16821, in transformers' native form."""

from typing import Any

from tdrs.backbones.families.family import Family, whole_number


class InternVL(Family):
    """It cuts a picture into tiles."""

    model_type = "internvl"
    prompt_style = "internvl"
    image_settings = {"min_patches": whole_number, "max_patches": whole_number}  # noqa: RUF012 - read only
    # InternVL2's tokenizer puts no blank before a text; transformers' class for it would.
    tokenizer_options = {"add_prefix_space": False}  # noqa: RUF012 - read only
    reads_in_pieces = True

    def processor_values(self, config: Any) -> dict[str, Any]:
        return {"image_seq_length": self.tile_side(config) ** 2}

    def tile_side(self, config: Any) -> int:
        vision = config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)
