"""PAI: S. Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs",
ECCV 2024, arXiv 2407.21771. Only the part that edits attention logits; its contrast of output logits is a decoding
method.

    A'_ij = A_ij + α |A_ij|        i the last query row, j an image key
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, Block
from tdrs.attention.method import Method
from tdrs.attention.selection import Selection
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class PAI(Method):
    """Raise the answer position's logits of image keys by a share of their size.

    Args:
        alpha: α, at least 0; 0 is the stock model. The paper uses 0.2 for LLaVA-1.5.
        layers: the default is that of the paper's code, layers 2 to 31 of 32, as a share of the depth.
    """

    alpha: float = 0.2
    layers: Selection = "6%-100%"

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
        added = block.logits.abs() * self.alpha
        return block.logits + added * (block.last & block.keys_of(IMAGE))
