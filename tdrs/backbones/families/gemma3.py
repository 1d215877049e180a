"""Gemma 3: Gemma Team, "Gemma 3 Technical Report", arXiv 2503.19786."""

import math
from typing import Any

from tdrs.backbones.families.family import Family, true_or_false


class Gemma3(Family):
    """Image tokens attend to each other in both directions; five of six layers attend through a sliding window."""

    model_type = "gemma3"
    image_settings = {"do_pan_and_scan": true_or_false}  # noqa: RUF012 - read only

    def processor_values(self, config: Any) -> dict[str, Any]:
        return {"image_seq_length": config.mm_tokens_per_image}

    def tile_side(self, config: Any) -> int:
        return math.isqrt(config.mm_tokens_per_image)
