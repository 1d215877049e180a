"""The second forward pass of a method that combines the next-token logits of two, or of three.

The passes run as one batch: the rows of the second pass follow those of the first, and all take the same tokens.
`tdrs.backbones` does that for every model. A method only says what the second pass sees and how the logits are
combined.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tdrs.settings import SettingError

if TYPE_CHECKING:
    from tdrs.attention.method import Method

# The logits of the first and of the second pass, and of the third if there is one, (B, vocabulary) float32, and the
# number of the answer token, from 0, → the combined logits, of the same shape.
Combine = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class PictureChange:
    """A change of the values that the vision tower receives.

    Attributes:
        name: decides the result, with the picture. Image embeddings are kept under it, so it must name every setting.
        apply: the new values from the old ones, float32, and a generator on the CPU that is seeded by the name and the
            picture. So the result depends neither on the batch nor on the device.
    """

    name: str
    apply: Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SecondPass:
    """What the second pass sees, and how its logits are combined with those of the first pass.

    Attributes:
        combine: see `Combine`. It need not consider tokens that are excluded (−∞).
        picture: whether it sees the picture; in a language model, the passage.
        change: a change of the picture; None leaves it as it is.
        system: its system prompt; None is that of the first pass.
        preface: text in front of the question; "" is none.
        attention: the edit of its attention; None is the stock model's. The method's own edit acts in the first pass.
        alternative: the edit of attention of a third pass, which sees what the second one does; None is no third pass.
        plausibility: β: only tokens whose probability in the first pass is at least β times the largest one can be
            chosen (X. L. Li et al., "Contrastive Decoding", ACL 2023, arXiv 2210.15097); 0 excludes no token.
    """

    combine: Combine
    picture: bool = True
    change: PictureChange | None = None
    system: str | None = None
    preface: str = ""
    attention: "Method | None" = None
    alternative: "Method | None" = None
    plausibility: float = 0.0

    @property
    def prompt(self) -> tuple[object, ...]:
        """What decides its tokens, beside the sample; () if they are those of the first pass."""
        decides = self.picture, self.system, self.preface
        return () if decides == (True, None, "") else decides

    @property
    def others(self) -> "list[Method | None]":
        """The edit of attention of the second pass, and of the third if there is one."""
        return [self.attention] if self.alternative is None else [self.attention, self.alternative]

    def combined(self, first: torch.Tensor, *others: torch.Tensor, step: int) -> torch.Tensor:
        """The combined logits, (B, vocabulary). −∞ in the first pass stays. A failed calculation gives NaN in its row.

        Args:
            first, others: the logits of each pass.

        Raises:
            ValueError: `combine` returned something else than logits.
        """
        excluded = first == -torch.inf
        found: Any = self.combine(first, *others, step)
        if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != (first.shape, first.dtype):
            shown = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f"combine returned {shown}, not {first.dtype} {tuple(first.shape)}")
        failed = [~(logits.isfinite() | excluded).all(dim=-1, keepdim=True) for logits in (first, *others)]
        return found.masked_fill(excluded, -torch.inf).masked_fill(torch.stack(failed).any(dim=0), torch.nan)

    def implausible(self, first: torch.Tensor) -> torch.Tensor:
        """Which tokens cannot be chosen, from the logits of the first pass, (B, vocabulary) boolean."""
        if not self.plausibility:
            return torch.zeros_like(first, dtype=torch.bool)
        beta = torch.tensor(self.plausibility, device=first.device)
        return first < first.amax(dim=-1, keepdim=True) + beta.log()


def second_pass_of(method: "Method") -> SecondPass | None:
    """A method's second pass; None if it has none, or if its settings edit nothing."""
    return method.second_pass if method.active else None


def check_second_pass(method: "Method", *, pictures: bool = True, rated: bool = False) -> None:
    """Check that a method's second pass is possible. A method with one pass is.

    Args:
        pictures: whether the model reads pictures.
        rated: whether the samples have continuations to rate.

    Raises:
        SettingError: it is not.
    """
    second = second_pass_of(method)
    if second is None:
        return
    name = type(method).__name__
    if second.change is not None and not pictures:
        raise SettingError("intervention", name, "changes pictures, and a language model reads text alone")
    if rated:
        reason = "combines two passes to choose tokens, and these samples have continuations to rate, not to choose"
        raise SettingError("intervention", name, reason)
