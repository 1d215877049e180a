"""The embedded models by name, each with the architecture that training needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from tdrs.zoo import mini_internvl, mini_llava, mini_qwen2_5_vl


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        untrained: makes the model with random weights.
        processor: makes its processor.
        style: the style of the prompts of its own evaluation (`tdrs.benchmarks.prompts`).
        axes: how many positions a token has: one, or with M-RoPE three.
    """

    untrained: Callable[[], PreTrainedModel]
    processor: Callable[[], Any]
    style: str
    axes: int = 1


_LLAVA = Family(mini_llava.untrained, mini_llava.processor, "llava")
FAMILIES = {
    "mini_llava": _LLAVA,
    "mini_llava_seed1": _LLAVA,
    "mini_llava_seed2": _LLAVA,
    "mini_llava_long": _LLAVA,
    "mini_internvl": Family(mini_internvl.untrained, mini_internvl.processor, "internvl"),
    "mini_qwen2_5_vl": Family(mini_qwen2_5_vl.untrained, mini_qwen2_5_vl.processor, "vlmevalkit", axes=3),
}
