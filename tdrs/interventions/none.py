"""No edit: the stock model, which every table has a row for.

A' = A
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import Block
from tdrs.attention.method import Method


@dataclass(frozen=True, kw_only=True)
class Stock(Method):
    """Never active, so the model's own attention runs, bit for bit."""

    @property
    def active(self) -> bool:
        return False

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits
