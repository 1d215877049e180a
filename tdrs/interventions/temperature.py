"""Temperature: the simplest way to sharpen attention. As a control, it separates "sharper" from "further".

A' = A / τ
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import Block
from tdrs.attention.fused import FusedEdit, functions_in
from tdrs.attention.method import Method
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class Temperature(Method):
    """Divide all logits by one number.

    Args:
        tau: τ, above 0. Below 1 sharpens the weights, 1 is the stock model. The default doubles the logits, as the
            T-DRS reading `sd_form=full` does.
    """

    tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tau", self.tau, 0, above=True)

    @property
    def active(self) -> bool:
        return self.tau != 1

    @property
    def factor(self) -> float:
        return 1 / self.tau

    @property
    def fused(self) -> FusedEdit | None:
        return FusedEdit(
            functions=functions_in("tdrs.interventions.pointwise_tile", "TEMPERATURE"), numbers=(self.factor,)
        )

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits / self.tau
