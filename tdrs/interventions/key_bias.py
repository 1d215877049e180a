"""A constant added to the logits of chosen keys. It multiplies their softmax weights relative to the other keys.

    A'_ij = A_ij + ln w        j a key of the chosen role

Y. Zhang et al., "Prompt Highlighter: Interactive Control for Multi-Modal LLMs", CVPR 2024, arXiv 2312.04302, adds
ln w to selected keys. Q. Zhang et al., "Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs" (PASTA),
ICLR 2024, arXiv 2311.02262, adds ln α to the keys that are *not* selected, in chosen heads. The softmax ignores a
constant that is added to a whole row, so this is w = 1/α here, with `heads` (its α = 0.01 is w = 100).
"""

import math
from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, SYSTEM, TEXT, Block
from tdrs.attention.fused import FusedEdit, functions_in
from tdrs.attention.method import Method
from tdrs.settings import check_choice, check_number

ROLES = {"system": SYSTEM, "image": IMAGE, "text": TEXT}


@dataclass(frozen=True, kw_only=True)
class KeyBias(Method):
    """Keys of one role count w times as much.

    Args:
        keys: `image`; `system`: keys before the first image token; `text`: all other keys.
        weight: w, above 0. Above 1 highlights the keys, below 1 dims them, 1 is the stock model.
    """

    keys: str = "image"
    weight: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("keys", self.keys, list(ROLES))
        check_number("weight", self.weight, 0, above=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    @property
    def active(self) -> bool:
        return self.weight != 1

    @property
    def fused(self) -> FusedEdit | None:
        return FusedEdit(
            functions=functions_in("tdrs.interventions.pointwise_tile", "KEY_BIAS"),
            flags=ROLES[self.keys],
            numbers=(math.log2(self.weight),),
            roles=True,
        )

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits + math.log(self.weight) * block.keys_of(ROLES[self.keys])
