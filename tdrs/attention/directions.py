"""Directions of cached keys, kept from one forward pass to the next and extended by the new keys.

A decoded token would otherwise un-rotate and scale all keys of the cache again. Kept directions are used only for keys
that are the same as before. A mark of each key shows that: its product with a fixed random vector. A cache that was
cropped, reordered, copied or changed in place has other marks, and so has one whose padding changed; the directions are
then computed anew. Marks are compared up to rounding, because products of other shapes round differently.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

ROOM = 64  # for how many more keys memory is reserved, at least
TOLERANCE = 1e-5  # of a mark, as a share of the key's length; rounding in float32 is about 1e-7
PADDING = 1e30  # the mark of padding; no key has it


def unit(x: torch.Tensor) -> torch.Tensor:
    """Vectors along the last axis scaled to length 1; 0 stays 0."""
    return x / _divisor(x)


def _divisor(x: torch.Tensor) -> torch.Tensor:
    return x.norm(dim=-1, keepdim=True).clamp_min(1e-20)


@dataclass(frozen=True)
class Directions:
    """Unit vectors of K keys; 0 in padding.

    Attributes:
        memory: they are its first K vectors, (B, Hₖ, K or more, D), float32.
        marks: the mark of each key, (B, Hₖ, K).
        allowed: by how much the mark of the same key may differ, (B, Hₖ, K).
        total: the sum of all vectors, (B, Hₖ, 1, D).
        before: how many vectors there were before the last extension, and their sum.
    """

    memory: torch.Tensor
    marks: torch.Tensor
    allowed: torch.Tensor
    total: torch.Tensor
    before: tuple[int, torch.Tensor]

    @property
    def vectors(self) -> torch.Tensor:
        """(B, Hₖ, K, D)."""
        return self.memory[:, :, : self.marks.shape[2]]

    @classmethod
    def of(cls, keys: torch.Tensor, marks: torch.Tensor) -> "Directions":
        """The directions of keys, (B, Hₖ, K, D), float32, which are 0 in padding."""
        memory = _reserve(keys, keys.shape[2])
        total = keys.new_zeros(keys[:, :, :1].shape)
        return cls(memory, marks[..., :0], marks[..., :0], total, (0, total)).extended(keys, marks)

    def begin(self, marks: torch.Tensor) -> bool:
        """Whether these are the directions of the first keys that have the marks (B, Hₖ, K)."""
        count = self.marks.shape[2]
        if self.marks.shape[:2] != marks.shape[:2] or self.marks.device != marks.device or count > marks.shape[2]:
            return False
        # False if there is a NaN, so what comes from a failed calculation is not used again
        return bool(((marks[..., :count] - self.marks).abs_() <= self.allowed).all())

    def extended(self, keys: torch.Tensor, marks: torch.Tensor) -> "Directions":
        """These directions and those of new keys, in the memory of these if there is room.

        Args:
            keys: the new keys, (B, Hₖ, N, D), float32, which are 0 in padding.
            marks: the marks of all keys, (B, Hₖ, K + N).
        """
        count, new = self.marks.shape[2], keys.shape[2]
        if not new:
            return self
        memory = self.memory
        # memory that was reserved in inference mode cannot be written outside of it
        if memory.shape[2] < count + new or (memory.is_inference() and not torch.is_inference_mode_enabled()):
            memory = _reserve(keys, count + new)
            memory[:, :, :count] = self.vectors
        divisor = _divisor(keys)
        vectors = torch.div(keys, divisor, out=memory[:, :, count : count + new])
        allowed = torch.cat((self.allowed, divisor.squeeze(-1) * TOLERANCE), dim=2)
        total = self.total + vectors.sum(dim=2, keepdim=True)
        return Directions(memory, marks, allowed, total, (count, self.total))


def _reserve(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Memory for `count` vectors and some more."""
    batch, heads, _, width = keys.shape
    return keys.new_empty(batch, heads, count + room(count), width)


def room(count: int) -> int:
    """For how many more keys memory is reserved beside that of `count` keys."""
    return max(ROOM, count // 8)


@lru_cache
def probe(width: int, device: torch.device) -> torch.Tensor:
    """The vector whose product with a key is the key's mark: random, of length 1, (D,), float32."""
    with torch.inference_mode(False):  # it is used in both modes
        return unit(torch.randn(width, generator=torch.Generator().manual_seed(width))).to(device)
