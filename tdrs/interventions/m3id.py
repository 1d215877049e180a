"""M3ID: A. Favero et al., "Multi-Modal Hallucination Control by Visual Information Grounding", CVPR 2024, arXiv
2403.14003.

    ℓ* = ℓ + (1 − γ_t) / γ_t (ℓ − ℓ′),  γ_t = exp(−λ t)        ℓ′ the logits without the image, t the answer token

The model forgets the image as its answer grows, so the contrast grows with t.

Read in the code of ONLY (zifuwan/ONLY, only_sample.py), which has M3ID to compare with: λ 0.02, t from 0, so that the
first token is the stock model's, and a cutoff β 0.1. No code of M3ID's authors was found.
"""

import math
from dataclasses import dataclass

import torch

from tdrs.attention.second_pass import SecondPass
from tdrs.interventions.contrast import TwoPasses
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class M3ID(TwoPasses):
    """Move the answer away from the one without the image, the more the longer it is.

    Args:
        rate: λ, at least 0: how fast the contrast grows; 0 is the stock model.
    """

    rate: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rate", self.rate, 0)

    @property
    def active(self) -> bool:
        return self.rate > 0

    @property
    def second_pass(self) -> SecondPass:
        return SecondPass(combine=self._contrast, picture=False, plausibility=self.beta)

    def _contrast(self, first: torch.Tensor, second: torch.Tensor, step: int) -> torch.Tensor:
        return first + math.expm1(self.rate * step) * (first - second)
