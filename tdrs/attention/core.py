"""The attention core: what a method may ask about one attention call, and the two ways to execute its edit.

An intervention edits logits, a block of query rows at a time. `reference` gives it the whole map as one block: it is
the specification. `blocked` walks over blocks of rows and gives each its keys up to the last visible one, so that extra
memory is that of one block. Logits, edits and softmax are float32 whatever the model's dtype.

Notation as in the paper: A are logits, i a query row, j a key, V the visible pairs: causal, neither side padding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from tdrs.attention.rope import unrotate

# Elements of one (batch, head, row, key) block: a few arrays of this size stay in a core's cache, or fill a GPU.
BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 25}


@dataclass
class Call:
    """One attention call of one layer.

    Args:
        query: rotated queries, (B, H, Q, D).
        key, value: rotated keys and values with the cache's past, (B, Hₖ, K, D); query head h reads
            key head h // (H / Hₖ).
        scaling: the factor in front of q·k, usually 1/√D.
        mask: what transformers' mask function made: None (causal, no padding), boolean (True = may be seen) or
            additive, (B, 1, Q, K).
        rotation: (cos, sin) of all K positions, (B or 1, K, D), where the method asks for unrotated vectors.
        block_elements: the size of a block; None is `BLOCK_ELEMENTS` of the device.

    Attributes:
        clamped: for each w_min that was turned into a kernel, tensors (clamped, of how many).
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    mask: torch.Tensor | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    block_elements: int | None = None
    clamped: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    @property
    def past(self) -> int:
        """Keys that were in the cache before this call: query row r stands at index past + r."""
        return self.key.shape[2] - self.query.shape[2]

    @cached_property
    def visible(self) -> torch.Tensor | None:
        """V without its causal part, (B, 1, Q, K) boolean; None if nothing is padding.

        A right-padded query row sees real keys, and the mask does not show that the row is padding: its own key does.
        """
        if self.mask is None:
            return None
        seen = self.mask if self.mask.dtype == torch.bool else self.mask > torch.finfo(self.mask.dtype).min / 2
        seen = seen[..., : self.key.shape[2]]
        own = seen.diagonal(self.past, dim1=-2, dim2=-1)
        return seen & own.unsqueeze(-1)

    @cached_property
    def unrotated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys before rotation, float32, (B, H, Q, D) and (B, Hₖ, K, D)."""
        assert self.rotation is not None
        cos, sin = self.rotation
        return unrotate(self.query, cos[:, self.past :], sin[:, self.past :]), unrotate(self.key, cos, sin)

    def directions(self, features: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys of length 1 (0 stays 0), before (`pre_rope`) or after (`post_rope`) rotation."""
        if features not in self._directions:
            pair = self.unrotated if features == "pre_rope" else (self.query.float(), self.key.float())
            unit = tuple(torch.nn.functional.normalize(x, dim=-1, eps=1e-20) for x in pair)
            self._directions[features] = (unit[0], unit[1])
        return self._directions[features]

    @cached_property
    def _directions(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    @cached_property
    def _float(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query.float() * self.scaling, self.key.float(), self.value.float()

    def product(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Products of each query head with its group's key head: (B, H, R, D) × (B, Hₖ, K, D) → (B, H, R, K)."""
        batch, heads, rows, width = query.shape
        groups = key.shape[1]
        grouped = query.reshape(batch, groups, heads // groups * rows, width)
        return (grouped @ key.transpose(-1, -2)).view(batch, heads, rows, -1)

    def blocks(self, whole: bool) -> Iterator["Block"]:
        """The map as one block (`whole`), or in blocks of query rows of bounded size."""
        rows_left, keys = self.query.shape[2], self.key.shape[2]
        if whole:
            yield Block(self, 0, rows_left, keys)
            return
        width = self.query.shape[0] * self.query.shape[1]
        limit = self.block_elements or BLOCK_ELEMENTS.get(self.query.device.type, BLOCK_ELEMENTS["cpu"])
        start = 0
        while start < rows_left:
            # row r sees past + r + 1 keys: rows of a block are few where each is long
            rows = max(1, limit // (width * (self.past + start + 1)))
            stop = min(rows_left, start + rows)
            while stop - start > 1 and width * (stop - start) * (self.past + stop) > limit:
                stop -= max(1, (stop - start) // 8)
            yield Block(self, start, stop, self.past + stop)
            start = stop

    @cached_property
    def spans(self) -> torch.Tensor:
        """d_max of each sample over this call's visible pairs, (B or 1, 1, 1, 1)."""
        return self.row_spans.amax(dim=2, keepdim=True)

    @cached_property
    def row_spans(self) -> torch.Tensor:
        """The largest |i − j| over each row's visible keys (0 where it has none), (B or 1, 1, Q, 1)."""
        rows = torch.arange(self.past, self.key.shape[2], device=self.query.device).view(1, 1, -1, 1)
        if self.visible is None:
            return rows.float()
        first = self.visible.float().argmax(dim=-1, keepdim=True)  # the first visible key is the farthest
        return torch.where(self.visible.any(dim=-1, keepdim=True), rows - first, 0).float()

    def smallest_logit(self, whole: bool) -> torch.Tensor:
        """|A|_min of each sample and head over this call's visible pairs, (B, H, 1, 1); a pass over the map."""
        smallest = [block.smallest_logit for block in self.blocks(whole)]
        return torch.cat(smallest, dim=2).amin(dim=2, keepdim=True)


@dataclass
class Block:
    """Rows `start` to `stop` of a call's map against its first `keys` keys. Arrays are (B or 1, H or 1, R, K)."""

    call: Call
    start: int
    stop: int
    keys: int

    @cached_property
    def logits(self) -> torch.Tensor:
        """A, (B, H, R, K), float32; a method may change it in place."""
        query, key, _ = self.call._float
        return self.call.product(query[:, :, self.start : self.stop], key[:, :, : self.keys])

    def cosine(self, features: str) -> torch.Tensor:
        """q·k / (‖q‖‖k‖), (B, H, R, K), newly allocated."""
        query, key = self.call.directions(features)
        return self.call.product(query[:, :, self.start : self.stop], key[:, :, : self.keys])

    @cached_property
    def _offset(self) -> torch.Tensor:
        """i − j, (1, 1, R, K)."""
        device = self.call.query.device
        rows = torch.arange(self.call.past + self.start, self.call.past + self.stop, device=device)
        return (rows[:, None] - torch.arange(self.keys, device=device))[None, None]

    @cached_property
    def distance(self) -> torch.Tensor:
        """|i − j| in tokens, (1, 1, R, K), float32."""
        return self._offset.abs().float()

    @cached_property
    def hidden(self) -> torch.Tensor:
        """Pairs not in V, (B or 1, 1, R, K) boolean."""
        future = self._offset < 0
        if self.call.visible is None:
            return future
        return future | ~self.call.visible[:, :, self.start : self.stop, : self.keys]

    @cached_property
    def counts(self) -> torch.Tensor:
        """Visible keys of each row, at least 1, (B or 1, 1, R, 1)."""
        return (~self.hidden).sum(dim=-1, keepdim=True).clamp_min(1).float()

    @cached_property
    def smallest_logit(self) -> torch.Tensor:
        """|A|_min of each row over its visible keys (inf where it has none), (B, H, R, 1)."""
        return self.logits.abs().masked_fill_(self.hidden, math.inf).amin(dim=-1, keepdim=True)


class Intervention(Protocol):
    """A method that edits pre-softmax logits."""

    @property
    def needs_rotation(self) -> bool:
        """Whether the edit asks for vectors before rotation."""
        ...

    def active(self, layer: int) -> bool:
        """Whether this layer is edited at all; where not, the model's own attention runs."""
        ...

    def statistics(self, call: Call, whole: bool) -> object:
        """What the edit needs to know of the whole map, before the first block."""
        ...

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        """The block's new logits, (B, H, R, K); hidden pairs are masked afterwards."""
        ...


def _attend(call: Call, intervention: Intervention, whole: bool) -> torch.Tensor:
    statistics = intervention.statistics(call, whole)
    value = call._float[2].transpose(-1, -2)
    parts = []
    for block in call.blocks(whole):
        edited = intervention.edit(block, statistics).masked_fill_(block.hidden, -math.inf)
        weights = edited.softmax(dim=-1)
        if call.visible is not None:  # a row without a visible key is NaN here; its output is 0, and nobody reads it
            weights.nan_to_num_(nan=0.0)
        parts.append(call.product(weights, value[..., : block.keys]))
    return torch.cat(parts, dim=2).to(call.query.dtype)


def reference(call: Call, intervention: Intervention) -> torch.Tensor:
    """The specification: the edit over the whole map at once. Returns the attention output, (B, H, Q, D)."""
    return _attend(call, intervention, whole=True)


def blocked(call: Call, intervention: Intervention) -> torch.Tensor:
    """The same in blocks of query rows; equal to `reference` up to the rounding of sums."""
    return _attend(call, intervention, whole=False)


EXECUTIONS = {"blocked": blocked, "reference": reference}
