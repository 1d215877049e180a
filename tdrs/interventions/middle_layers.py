"""Heads-guided attention in middle layers: Z. Jiang et al., "Devils in Middle Layers of Large Vision-Language Models:
Interpreting, Detecting and Mitigating Object Hallucinations via Attention Lens", CVPR 2025, arXiv 2411.16724.

    A'_hij = A_hij + α mean_h |A_hij|        i the last query row, j an image key, the mean over all query heads h
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, Block
from tdrs.attention.method import Method
from tdrs.attention.selection import Selection
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class MiddleLayers(Method):
    """Raise the answer position's logits of image keys by the mean |A| over the heads.

    Args:
        alpha: α, at least 0; 0 is the stock model. The paper uses 0.5 for LLaVA-1.5-7B.
        layers: the default is the paper's, layers 5 to 18 of 32, as a share of the depth.
    """

    alpha: float = 0.5
    layers: Selection = "15%-60%"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    @property
    def active(self) -> bool:
        return self.alpha > 0

    @property
    def last_row_only(self) -> bool:
        return True

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        agreed = block.logits.abs().mean(dim=1, keepdim=True) * self.alpha
        return block.logits + agreed * (block.last & block.keys_of(IMAGE))
