"""LLaVA-NeXT (LLaVA-1.6): H. Liu et al., 2024, a picture as a whole and in tiles."""

from typing import Any

from tdrs.backbones.families.family import Family


class LlavaNext(Family):
    """The tokens are those of the whole picture, then those of the tiles, row by row, each with a token at its end."""

    model_type = "llava_next"
    prompt_style = "llava"
    reads_in_pieces = True

    def processor_values(self, config: Any) -> dict[str, Any]:
        return {
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        }

    def tile_side(self, config: Any) -> int:
        return 0  # tiles are joined, lose their padding, and have a token at the end of each row
