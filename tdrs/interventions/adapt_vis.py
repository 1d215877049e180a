"""AdaptVis: S. Chen et al., "Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective on Focus
Areas", ICML 2025, arXiv 2503.01773.

    A'_ij = w A_ij        i the prompt's last row, j an image key, as `scaling_vis`
    w = w₁ if the stock model's probability of the answer's first token is below τ, else w₂

Read in the authors' code (shiqichen17/AdaptVis, model_zoo/llava15.py): the stock model answers first, and the whole
answer comes from one more generation, with w₁ or w₂. The probability is that of the most likely token, rounded there to
two digits, which it is not here. For yes/no questions, that code compares the largest logit, not a probability, with τ.
The README's examples are w₁ 0.5, w₂ 1.2 and τ 0.3; its script run.sh has 0.5, 1.5 and 0.4 for one data set.

Here the stock model and both factors run as three passes of one batch, which take the tokens of the chosen one.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.method import Method
from tdrs.attention.second_pass import SecondPass
from tdrs.interventions.scaling_vis import ScalingVis
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class AdaptVis(Method):
    """Multiply the answer position's logits of image keys by one of two numbers; the stock model's confidence chooses.

    Args:
        weight1: w₁, at least 0. If both are 1, this is the stock model.
        weight2: w₂, at least 0.
        threshold: τ, from 0 to 1: the confidence below which w₁ is taken.
        phase: the default is that of the authors' code.
    """

    weight1: float = 0.5
    weight2: float = 1.2
    threshold: float = 0.3
    phase: str = "prefill"

    advice = {"second_pass": "ScalingVis(weight=1.2), which has one factor"}  # noqa: RUF012 - read only

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("weight1", self.weight1, 0)
        check_number("weight2", self.weight2, 0)
        check_number("threshold", self.threshold, 0, 1)

    @property
    def active(self) -> bool:
        return self.weight1 != 1 or self.weight2 != 1

    @property
    def second_pass(self) -> SecondPass:
        where = {"layers": self.layers, "heads": self.heads, "phase": self.phase}
        low, high = (ScalingVis(weight=weight, **where) for weight in (self.weight1, self.weight2))  # type: ignore[arg-type]
        unsure = torch.zeros(0)

        def chosen(stock: torch.Tensor, first: torch.Tensor, second: torch.Tensor, step: int) -> torch.Tensor:
            nonlocal unsure
            if step == 0:  # the choice holds for the whole answer
                unsure = stock.softmax(dim=-1).amax(dim=-1, keepdim=True) < self.threshold
            return torch.where(unsure, first, second)

        return SecondPass(combine=chosen, attention=low, alternative=high)
