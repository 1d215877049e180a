"""Self-Extend: H. Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning", ICML 2024,
arXiv 2401.01325.

    A'_ij = A_ij                                                    d < n
    A'_ij = A at query position ⌊i/g⌋ + n − ⌊n/g⌋, key ⌊j/g⌋        d ≥ n

i, j are positions and d = i − j; g is the group size, n the neighbour window. The authors' code (datamllab/LongLM,
self_extend_patch/Llama.py) shifts queries by n − n/g without rounding; it differs where g does not divide n. There d
counts tokens. Here it is the difference of position ids, the largest of the three with M-RoPE, and each axis is
grouped: with one axis both are the same.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.turned import Turned, turn
from tdrs.interventions.positions import Positions, own
from tdrs.settings import SettingError, check_choice


@dataclass(frozen=True, kw_only=True)
class SelfExtend(Positions):
    """Distant keys at grouped positions.

    Args:
        group: g, tokens in a group, at least 1; 1 is the stock model. The default is that of the authors' code.
        window: n, the distance from which positions are grouped, at least 1. The authors' code has 1024, a quarter of
            the length that Llama 2 was trained with. The default is a quarter of the embedded models' 128.
        shift: `floor`: n − ⌊n/g⌋, the paper; `exact`: n − n/g, the authors' code.
    """

    group: int = 8
    window: int = 32
    shift: str = "floor"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "window"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingError(name, value, "must be a whole number, at least 1")
        check_choice("shift", self.shift, ("floor", "exact"))

    @property
    def active(self) -> bool:
        return self.group > 1

    def statistics(self, call: Call) -> Turned:
        grouped = (own(call) / self.group).floor()
        share = self.window / self.group
        return turn(call, grouped + self.window - (share // 1 if self.shift == "floor" else share), grouped)

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        near = block.distance("position") < self.window
        return torch.where(near, block.logits, super().edit(block, statistics))
