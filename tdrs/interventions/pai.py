"""PAI: S. Liu, K. Zheng and W. Chen, "Paying More Attention to Image: A Training-Free Method for Alleviating
Hallucination in LVLMs", ECCV 2024, arXiv 2407.21771.

    A'_ij = A_ij + α |A_ij|        i the last query row, j an image key, in the pass with the image
    ℓ = γ (ℓ_image − ℓ_text) + ℓ_text        the next token's logits; ℓ_text are of a pass without the image, unedited

Read in the authors' code (LALBJ/PAI, attention.py and CFG.py): ℓ are log-probabilities, which gives the same tokens and
distributions as logits; a token whose ℓ_image is below the largest one plus ln 0.1 cannot be chosen; the prompt without
the image is the same text without the image token; the edit is off in the second pass. Each half has a switch of its
own there: `gamma=1` is the edit alone, `alpha=0` the contrast alone. Defaults of the code: α 0.2, layers 2 to 31 of 32;
γ is 1.1 where a model is loaded, and the command for POPE has 2.
"""

from dataclasses import dataclass
from typing import Any

import torch

from tdrs.attention.block import IMAGE, Block
from tdrs.attention.method import Method
from tdrs.attention.second_pass import SecondPass
from tdrs.attention.selection import Selection
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class PAI(Method):
    """Raise the answer position's logits of image keys, and contrast the answer with one without the image.

    Args:
        alpha: α, at least 0; 0 edits no attention.
        gamma: γ, at least 0; 1 is without the contrast, in one pass.
        beta: tokens less than β times as likely as the likeliest one, with the image, cannot be chosen; from 0 to 1.
        layers: the default is that of the authors' code, as a share of the depth.
    """

    alpha: float = 0.2
    gamma: float = 1.1
    beta: float = 0.1
    layers: Selection = "6%-100%"

    advice = {"second_pass": "PAI(gamma=1), which edits attention alone"}  # noqa: RUF012 - read only

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 0)
        check_number("gamma", self.gamma, 0)
        check_number("beta", self.beta, 0, 1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    @property
    def active(self) -> bool:
        return self.alpha > 0 or self.gamma != 1

    @property
    def edits_attention(self) -> bool:
        return self.alpha > 0

    @property
    def last_row_only(self) -> bool:
        return True

    @property
    def second_pass(self) -> SecondPass | None:
        if self.gamma == 1:
            return None
        return SecondPass(combine=self._contrast, picture=False, plausibility=self.beta)

    @property
    def effective(self) -> dict[str, Any]:
        values = super().effective
        if self.gamma == 1:
            return {name: value for name, value in values.items() if name not in ("gamma", "beta")}
        return values if self.alpha > 0 else values | {"layers": "all", "heads": "all", "phase": "both"}

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        added = block.logits.abs() * self.alpha
        return block.logits + added * (block.last & block.keys_of(IMAGE))

    def _contrast(self, image: torch.Tensor, text: torch.Tensor, step: int) -> torch.Tensor:
        return self.gamma * (image - text) + text
