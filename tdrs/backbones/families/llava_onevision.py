"""LLaVA-OneVision: B. Li et al., "LLaVA-OneVision: Easy Visual Task Transfer", arXiv 2408.03326."""

from typing import Any

from tdrs.backbones.families.family import Family


class LlavaOnevision(Family):
    """As LLaVA-NeXT, with other tiles and a SigLIP tower."""

    model_type = "llava_onevision"
    reads_in_pieces = True

    def processor_values(self, config: Any) -> dict[str, Any]:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return {"num_image_tokens": side**2, "vision_aspect_ratio": config.vision_aspect_ratio}

    def tile_side(self, config: Any) -> int:
        return 0  # tiles are joined, lose their padding, and have a token at the end of each row
