"""Temperature: the plainest way to sharpen attention, and so the control that separates "sharper" from "further".

A' = A / τ
"""

from dataclasses import dataclass

import torch

from tdrs.attention.call import Block
from tdrs.interventions.method import Method
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class Temperature(Method):
    """All logits divided by one number.

    Args:
        tau: τ, above 0; below 1 sharpens, 1 is the stock model. The default doubles the logits, as T-DRS's reading
            `sd_form=full` does.
    """

    tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tau", self.tau, 0, above=True)

    @property
    def active(self) -> bool:
        return self.tau != 1

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits / self.tau
