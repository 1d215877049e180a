"""NTK-aware scaling: bloc97, "NTK-Aware Scaled RoPE allows LLaMA models to have extended (8k+) context size without any
fine-tuning and minimal perplexity degradation", Reddit, r/LocalLLaMA, 2023; described in B. Peng et al. (YaRN), ICLR
2024, arXiv 2309.00071.

    base' = base · α^(D / (D − 2))          D the number of rotated coordinates of a head

Pair n = 0, 1, … D/2 − 1 turns by base^(−2n/D) a position, so its frequency is multiplied by α^(−2n / (D − 2)): the
fastest pair stays as it is, and the slowest turns by 1/α. The author's three lines of code, read in copies, have α 8
for Llama at 16384 instead of 2048 tokens.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.call import Call
from tdrs.attention.turned import Turned, turn
from tdrs.interventions.positions import Positions, own
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class NTK(Positions):
    """A larger base of the rotation.

    Args:
        alpha: α, at least 1; 1 is the stock model. The author's code has 8.
    """

    alpha: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 1)

    @property
    def active(self) -> bool:
        return self.alpha != 1

    def statistics(self, call: Call) -> Turned:
        assert call.frequencies is not None
        turns = call.frequencies.turns
        pairs = turns.shape[-1]
        powers = torch.arange(pairs, device=turns.device) / max(pairs - 1, 1)  # one pair alone stays as it is
        return turn(call, own(call), turns=turns * self.alpha**-powers)
