"""No edit: the stock model, the row every table has.

A' = A
"""

from dataclasses import dataclass

import torch

from tdrs.attention.call import Block
from tdrs.interventions.method import Method


@dataclass(frozen=True, kw_only=True)
class Stock(Method):
    """Never active, so the model's own attention runs, bit for bit."""

    @property
    def active(self) -> bool:
        return False

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits
