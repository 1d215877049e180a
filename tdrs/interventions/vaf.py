"""VAF: H. Yin et al., "ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in Multimodal Large
Language Models", CVPR 2025, arXiv 2503.13107.

    A'_ij = β_image A_ij    j an image key
    A'_ij = β_system A_ij   j a key of the system prompt: before the first image token
                            i a text row: a token after the image

A factor on a logit raises a positive one and lowers a negative one: the edit depends on the sign of A.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, SYSTEM, TEXT, Block
from tdrs.attention.fused import FusedEdit, functions_in
from tdrs.attention.method import Method
from tdrs.attention.selection import Selection
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class VAF(Method):
    """In text rows, enhance the logits of image keys and suppress those of the system prompt.

    Args:
        image: β_image, at least 0. The paper uses 1.15.
        system: β_system, at least 0. The paper uses 0.95. If both are 1, this is the stock model.
        layers: the default is the paper's, layers 9 to 14 of 32, as a share of the depth.
    """

    image: float = 1.15
    system: float = 0.95
    layers: Selection = "28%-46%"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("image", self.image, 0)
        check_number("system", self.system, 0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    @property
    def active(self) -> bool:
        return self.image != 1 or self.system != 1

    @property
    def fused(self) -> FusedEdit | None:
        return FusedEdit(
            functions=functions_in("tdrs.interventions.pointwise_tile", "VAF"),
            numbers=(self.image, self.system),
            roles=True,
        )

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        factor = 1 + (self.image - 1) * block.keys_of(IMAGE) + (self.system - 1) * block.keys_of(SYSTEM)
        return block.logits * torch.where(block.queries(TEXT), factor, 1.0)
