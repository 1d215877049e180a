"""No edit: the stock model, the row every table has."""

from dataclasses import dataclass

import torch

from tdrs.attention.core import Block, Call


@dataclass(frozen=True)
class Stock:
    """A' = A. No layer is active, so the model's own attention runs, bit for bit."""

    @property
    def needs_rotation(self) -> bool:
        return False

    def active(self, layer: int) -> bool:
        return False

    def statistics(self, call: Call, whole: bool) -> None:
        return None

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits
