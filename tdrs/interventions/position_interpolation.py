"""Position interpolation: S. Chen et al., "Extending Context Window of Large Language Models via Positional
Interpolation", 2023, arXiv 2306.15595.

    position' = position / factor           for queries and keys

The paper fine-tunes the model for up to 1000 steps afterwards. Here the model stays as it is.
"""

from dataclasses import dataclass

from tdrs.attention.call import Call
from tdrs.attention.turned import Turned, turn
from tdrs.interventions.positions import Positions, own
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class PositionInterpolation(Positions):
    """All positions divided by one number.

    Args:
        factor: at least 1; 1 is the stock model. It should be about the length of the prompt over the longest trained
            one. The paper has 4 to 16 for LLaMA (2048 tokens to 8192 … 32768). The default suits the embedded models:
            a gap of 256 tokens makes prompts about 4 times as long as in training.
    """

    factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("factor", self.factor, 1)

    @property
    def active(self) -> bool:
        return self.factor != 1

    def statistics(self, call: Call) -> Turned:
        return turn(call, own(call) / self.factor)
