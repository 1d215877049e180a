"""SPIN: S. Sarkar, Y. Che, A. Gavin, P. A. Beerel and S. Kundu, "Mitigating Hallucinations in Vision-Language Models
through Image-Guided Head Suppression", EMNLP 2025, arXiv 2505.16411.

    O'_hi = O_hi          h among the k heads with the largest Σ_j A_hij, j the image keys, i a chosen query row
    O'_hi = ε O_hi        all other heads

Read in the authors' code (YUECHE77/SPIN, attentionSPIN.py): k = ⌊r H⌋; A are the logits before the softmax, not the
weights; the row is that of the next token, while the prompt is read and at each answer token, `rows=last`. The paper
suppresses heads for each text query token, `rows=text`. Their ranking goes through a softmax of the sums over their
standard deviation, which keeps the order unless it rounds to ties. Defaults of the code: r 0.95, ε 0, all layers; the
README's command for POPE has 0.8 and 0.1. With few heads, k is coarse: of 4 heads, 0.95 keeps 3.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, TEXT, Block
from tdrs.attention.method import Method
from tdrs.settings import check_choice, check_number


@dataclass(frozen=True, kw_only=True)
class SPIN(Method):
    """At the answer position, or in all text rows, suppress the heads that attend least to the image.

    A prompt without an image is not edited.

    Args:
        routed_heads: r, the share of a layer's heads that keep their output, from 0 to 1; 1 is the stock model.
        small_num_mask: ε, the factor on the output of the others, from 0 to 1; 1 is the stock model.
        rows: `last`: the answer position, as in the authors' code; `text`: every row of text after the image, as in the
            paper.
        heads: the heads that may be suppressed. All heads are ranked.
    """

    routed_heads: float = 0.95
    small_num_mask: float = 0.0
    rows: str = "last"

    head_score = "image_logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("routed_heads", self.routed_heads, 0, 1)
        check_number("small_num_mask", self.small_num_mask, 0, 1)
        check_choice("rows", self.rows, ("last", "text"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    @property
    def active(self) -> bool:
        return self.routed_heads < 1 and self.small_num_mask < 1

    @property
    def last_row_only(self) -> bool:
        return self.rows == "last"

    def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
        image = block.visible(block.keys_of(IMAGE))
        sums = block.logits.masked_fill(~image, 0).sum(dim=-1, keepdim=True)
        count = weights.shape[1]
        order = sums.argsort(dim=1, descending=True, stable=True)
        kept = torch.zeros_like(sums, dtype=torch.bool).scatter_(1, order[:, : int(self.routed_heads * count)], True)
        rows = block.last if self.rows == "last" else block.queries(TEXT)
        suppressed = rows & image.any(dim=-1, keepdim=True) & ~kept
        return torch.where(suppressed, weights * self.small_num_mask, weights)
