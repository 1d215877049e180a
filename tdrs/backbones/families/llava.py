"""LLaVA-1.5: H. Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024, arXiv 2310.03744."""

from collections.abc import Mapping
from typing import Any

from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tdrs.backbones.families.family import Family
from tdrs.settings import SettingError


def _pad_or_crop(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise SettingError(name, value, "must be true (pad to a square) or false (crop)")


class Llava(Family):
    """Its own code pads a picture to a square. The hub's folders name CLIP's image processor, which crops."""

    model_type = "llava"
    prompt_style = "llava"
    image_settings = {"do_pad": _pad_or_crop}  # noqa: RUF012 - read only
    reads_in_pieces = True

    def prepare_processor(self, processor: Any, source: str, revision: str | None, image: Mapping[str, Any]) -> None:
        if image.get("do_pad"):
            processor.image_processor = LlavaImageProcessorPil.from_pretrained(
                source, revision=revision or "main", do_pad=True
            )

    def processor_values(self, config: Any) -> dict[str, Any]:
        return {"patch_size": config.vision_config.patch_size}

    def tile_side(self, config: Any) -> int:
        if config.vision_config.model_type == "pixtral":  # pictures of any size; each row is a run of its own
            return 0
        return int(config.vision_config.image_size // config.vision_config.patch_size)
