"""InternVL 2 to 3: Z. Chen et al., "How Far Are We to GPT-4V?", arXiv 2404.16821, in transformers' native form."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tdrs.backbones.families.family import Family, ImagesOnly, whole_number


class InternVLImagesOnly(ImagesOnly, InternVLProcessor):
    """InternVL's processor for text and images."""


class InternVL(Family):
    """It cuts a picture into tiles. Its forward takes the embeddings of a batch as one tensor."""

    model_type = "internvl"
    image_settings = {"min_patches": whole_number, "max_patches": whole_number}  # noqa: RUF012 - read only
    image_opening = "<img>"
    # InternVL2's tokenizer puts no blank before a text; transformers' class for it would.
    tokenizer_options = {"add_prefix_space": False}  # noqa: RUF012 - read only
    images_only = InternVLImagesOnly, GotOcr2ImageProcessorPil

    def processor_values(self, config: Any) -> dict[str, Any]:
        vision = config.vision_config
        side = vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio
        return {"image_seq_length": int(side**2)}

    def pack(self, embeddings: Sequence[torch.Tensor]) -> Any:
        return torch.cat(list(embeddings))
