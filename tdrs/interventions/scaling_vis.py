"""ScalingVis: S. Chen et al., "Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective on Focus
Areas", ICML 2025, arXiv 2503.01773.

    A'_ij = w A_ij        i the prompt's last row, j an image key

Read in the authors' code (shiqichen17/AdaptVis, modeling_llama_add_attn.py): the factor is on the logits before the
mask, in all layers and heads, and only while the prompt is read. The README's example is w = 1.2, out of 0, 0.5, 0.8,
1.2, 1.5 and 2. A factor on a logit raises a positive one and lowers a negative one. AdaptVis, which chooses between two
factors by the confidence of a stock answer, is in `adapt_vis.py`.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, Block
from tdrs.attention.method import Method
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class ScalingVis(Method):
    """Multiply the answer position's logits of image keys by one number.

    Args:
        weight: w, at least 0; 1 is the stock model.
        phase: the default is that of the authors' code.
    """

    weight: float = 1.2
    phase: str = "prefill"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("weight", self.weight, 0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    @property
    def active(self) -> bool:
        return self.weight != 1

    @property
    def last_row_only(self) -> bool:
        return True

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return torch.where(block.last & block.keys_of(IMAGE), block.logits * self.weight, block.logits)
