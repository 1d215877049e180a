"""What the methods share that combine the logits of two passes, and edit no attention in the first.

    ℓ* = (1 + α) ℓ − α ℓ′        ℓ and ℓ′ the logits of the first and of the second pass

A token whose probability in the first pass is below β times the largest one cannot be chosen.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tdrs.attention.method import Method
from tdrs.settings import SettingError, check_number


@dataclass(frozen=True, kw_only=True)
class TwoPasses(Method):
    """A combination of two passes.

    Args:
        beta: β, from 0 to 1; 0 excludes no token.
    """

    beta: float = 0.1

    without_effect: ClassVar[tuple[str, ...]] = ("layers", "heads", "phase")  # settings of an edit of attention

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta", self.beta, 0, 1)
        for name in self.without_effect:
            value = getattr(self, name)
            if value != getattr(Method, name):
                reason = f"has no effect on {type(self).__name__}: it must be {getattr(Method, name)}"
                raise SettingError(name, value, reason)


@dataclass(frozen=True, kw_only=True)
class Contrast(TwoPasses):
    """The logits of a pass, moved away from those of a second one.

    Args:
        alpha: α, at least 0; 0 is the stock model.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 0)

    @property
    def active(self) -> bool:
        return self.alpha > 0

    def contrast(self, first: torch.Tensor, second: torch.Tensor, step: int) -> torch.Tensor:
        """ℓ*, (B, vocabulary)."""
        return (1 + self.alpha) * first - self.alpha * second
