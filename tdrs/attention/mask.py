"""The structure of an attention mask: does it hide only the future and whole tokens of padding, and which tokens?

Sliding windows hide more, and attention in both directions (PaliGemma's prompt, Gemma 3's images) hides less.
"""

import math
import weakref
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Padding:
    """Keys that are padding. What follows from it is computed once for all layers that share a mask.

    Attributes:
        keys: which keys are padding, (B, 1, 1, K) boolean.
        among: a range of keys that contains all padding.
    """

    keys: torch.Tensor
    among: slice

    @cached_property
    def limits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """+∞ and −∞, but −∞ and +∞ at padding, (B, 1, 1, K). A minimum or maximum with them hides padding."""
        upper = torch.where(self.keys, -math.inf, math.inf)
        return upper, -upper

    @cached_property
    def counts(self) -> torch.Tensor:
        """How many keys up to each one are not padding, at least 1, (B, 1, K, 1) float32."""
        return (~self.keys).cumsum(dim=-1).transpose(-1, -2).clamp_min(1).float()

    @cached_property
    def first(self) -> torch.Tensor:
        """The first key that is not padding, (B, 1, 1, 1) float32."""
        return (~self.keys).float().argmax(dim=-1, keepdim=True).float()

    @cached_property
    def bounds(self) -> torch.Tensor | None:
        """The first key of each sample that is not padding, and the last one + 1, (B, 2) int32.

        None: there is padding between them.
        """
        real = ~self.keys[:, 0, 0]
        count = real.sum(dim=-1)
        first = real.int().argmax(dim=-1)
        last = real.shape[-1] - real.flip(-1).int().argmax(dim=-1)
        if not bool(((last - first == count) | (count == 0)).all()):
            return None
        return torch.stack([first, torch.where(count == 0, first, last)], dim=-1).int()


@dataclass(frozen=True)
class Structure:
    """What a mask hides.

    Attributes:
        plain: whether each row that is not padding sees all keys up to its own that are not padding.
        padding: None if no key is padding.
        forward: whether some row sees a key after its own.
    """

    plain: bool
    padding: Padding | None
    forward: bool


# Of the last few masks: the layers of a forward pass share one mask, or one for each of their types, and each of two
# passes has its own.
_LAST: list[tuple[weakref.ref[torch.Tensor], int, Structure]] = []
_KEPT = 6


def structure(mask: torch.Tensor, past: int) -> Structure:
    """The structure of a boolean or additive mask, (B, 1, Q, K), whose first row has index `past`."""
    for known, known_past, found in _LAST:
        if known() is mask and known_past == past:
            return found
    found = _find(mask, past)
    _LAST[:] = [(weakref.ref(mask), past, found), *_LAST[: _KEPT - 1]]
    return found


def _find(mask: torch.Tensor, past: int) -> Structure:
    rows, keys = mask.shape[-2:]
    least = None if mask.dtype == torch.bool else torch.finfo(mask.dtype).min / 2
    parts = [mask[:, :, start : start + 256] for start in range(0, rows, 256)]  # little memory at a time
    parts = parts if least is None else [part > least for part in parts]
    real = torch.stack([part.any(dim=2) for part in parts]).any(dim=0).unsqueeze(2)
    index = torch.arange(keys, device=mask.device)
    plain, forward = True, False
    for number, part in enumerate(parts if past + 1 < keys else ()):  # the last token alone sees what is not padding
        own = index[past + 256 * number :][: part.shape[2], None]
        padding = ~part.gather(-1, own.expand(*part.shape[:2], -1, 1))
        plain = plain and bool(((part == (real & (index <= own))) | padding).all())
        forward = forward or (not plain and bool((part & (index > own)).any()))
    padded = (~real).flatten(0, 2).any(dim=0).nonzero()
    among = slice(int(padded[0]), int(padded[-1]) + 1) if len(padded) else None
    return Structure(plain, None if among is None else Padding(~real, among), forward)
