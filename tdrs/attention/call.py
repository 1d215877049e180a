"""One attention call of one layer, as a method sees it.

Logits, and everything computed from them, are float32, whatever the model's dtype. A quantity is computed when it is
first used.

Notation, as in the paper: A are the logits that enter the softmax, i is a query row, j is a key. V is the set of
visible pairs: the model's mask shows the key to the query, and neither of the two is padding. The mask of most models
hides the future alone; a sliding window hides distant keys, too; attention in both directions shows some of the future.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from tdrs.attention.block import Block
from tdrs.attention.directions import PADDING, Directions, probe, unit
from tdrs.attention.mask import Padding, Structure, structure
from tdrs.attention.rope import Frequencies, unrotate
from tdrs.attention.tally import Tally

# How many logits a pass over the map may cache for the next pass, less the space that copies of padded keys and values
# take. On the CPU this is enough for the whole map at 1300 tokens and 8 heads.
CACHED_LOGITS = {"cpu": 13 << 19, "cuda": 1 << 26, "meta": 1 << 26}

ORDINARY = 1e9  # padding whose numbers are at most this gives logits that can be hidden, and values that 0 takes away


@dataclass
class Call:
    """One attention call of one layer.

    Args:
        query: rotated queries, (B, H, Q, D).
        key, value: rotated keys and values, the cache's past included, (B, Hₖ, K, D). Query head h reads key head
            h // (H / Hₖ).
        scaling: the factor in front of q·k, usually 1/√D.
        mask: the output of transformers' mask function: None (causal, no padding), boolean (True = visible) or
            additive, (B, 1, Q, K).
        rotation: (cos, sin) of all K positions, (B or 1, K, D). This argument and the next three are given only if the
            method needs them.
        positions: the model's own position ids of all K tokens, (B or 1, K, axes): one axis, or three with M-RoPE.
        roles: SYSTEM, IMAGE or TEXT for each of the K tokens, (B, K).
        frequencies: how the rotation depends on positions.
        tile_side: the rows of the square of image tokens of a picture, or of each tile that it is cut into; 0: they
            form no squares; None: not known.
        states: the hidden states that enter the layer, of all K tokens, (B or 1, K, width).
        layer: the number of the decoder layer, from 0.
        heads: which query heads are edited, (1, H, 1, 1) boolean; None means all.
        block_elements: the largest number of logits in a block; None makes the whole map one block.
        loops: whether a method may run a loop in C, see `loops.py`, in the place of operators of PyTorch.
        first_row: the first query row that is edited. Statistics still cover all rows.
        wanted: the first query row whose output is used. The output of earlier rows is 0.
        layout: which coordinates the rotation turns together; see `rope`.
        softcap: the bound c of a model that caps its logits, A = c tanh(q·k scaling / c) (Gemma 2); None means no cap.
            A method edits the capped logits, because they enter the softmax.
        tally: what the method counts, see `Tally`. Copies of a call made with `dataclasses.replace` share it.
        memory: what a method keeps for later layers of the same forward pass.
        kept: what a method keeps for later forward passes with the same cache.
        directions: those of the keys of earlier calls, by kind of feature. They are used if the keys are the same.
            `blocked` keeps `Directions`; the fused kernels keep them in another form.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    mask: torch.Tensor | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    positions: torch.Tensor | None = None
    roles: torch.Tensor | None = None
    frequencies: Frequencies | None = None
    tile_side: int | None = None
    states: torch.Tensor | None = None
    layer: int = 0
    heads: torch.Tensor | None = None
    block_elements: int | None = None
    loops: bool = False
    first_row: int = 0
    wanted: int = 0
    layout: str = "halves"
    softcap: float | None = None
    tally: Tally = field(default_factory=Tally)
    memory: dict[Any, Any] = field(default_factory=dict)
    kept: dict[Any, Any] = field(default_factory=dict)
    directions: dict[str, Any] = field(default_factory=dict)
    # Results that are computed once: unit keys by kind of feature; for each kind, how many unit keys are summed and
    # their sum; the logits of blocks, by first row.
    _directions: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _sums: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict, init=False, repr=False)
    _cached_logits: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def past(self) -> int:
        """How many keys were in the cache before this call. Query row r has index past + r."""
        return self.key.shape[2] - self.query.shape[2]

    def seen(self, start: int, stop: int, keys: int) -> torch.Tensor:
        """Which of the first `keys` keys the mask shows to query rows `start` to `stop`, (B, 1, R, K) boolean."""
        assert self.mask is not None
        mask = self.mask[:, :, start:stop, :keys]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

    @cached_property
    def real(self) -> torch.Tensor | None:
        """Which query rows are not padding, (B, 1, Q, 1) boolean; None if no row is padding.

        A right-padded query row sees real keys, so its row of the mask does not show that it is padding. Whether it
        sees its own key does.
        """
        if self.mask is None:
            return None
        own = self.mask[..., : self.key.shape[2]].diagonal(self.past, dim1=-2, dim2=-1).unsqueeze(-1)
        return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2

    @cached_property
    def _structure(self) -> Structure | None:
        return None if self.mask is None else structure(self.mask, self.past)

    @cached_property
    def plain(self) -> bool:
        """Whether the mask hides only the future and whole tokens of padding. A block then need not test each pair.

        This is False if the whole map is one block: the reference execution tests each pair.
        """
        return self.block_elements is not None and (self._structure is None or self._structure.plain)

    @property
    def forward(self) -> bool:
        """Whether the mask shows a query a key after its own."""
        return self._structure is not None and self._structure.forward

    @cached_property
    def padding(self) -> Padding | None:
        """In a plain call, the keys that are padding; None if no key is."""
        return self._structure.padding if self.plain and self._structure else None

    @property
    def regular(self) -> bool:
        """Whether the mask hides only the future and padding at the ends of samples, in any execution."""
        found = self._structure
        return found is None or (found.plain and (found.padding is None or found.padding.bounds is not None))

    @property
    def bounds(self) -> torch.Tensor | None:
        """In a regular call, the first key of each sample that is not padding, and the last one + 1, (B, 2) int32; None
        if no key is padding."""
        found = self._structure
        return found.padding.bounds if found is not None and found.plain and found.padding is not None else None

    def without_padding(self, x: torch.Tensor) -> torch.Tensor:
        """Keys or values, (B, Hₖ, K, D), of a plain call, whose padding cannot reach any other number.

        Padding that holds NaN or huge numbers is set to 0. In place, unless `x` is the call's own key or value.
        """
        if self.padding is None:
            return x
        among = x[:, :, self.padding.among]
        if x is self.key or x is self.value:
            if float(among.abs().amax()) <= ORDINARY:  # NaN is not
                return x
            x = x.clone()
            among = x[:, :, self.padding.among]
        among.masked_fill_(self.padding.keys[..., self.padding.among].transpose(-1, -2), 0)
        return x

    def without_padded_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Set rows of padding to 0 in (B, H, Q, …), in place. Returns the same array.

        Such rows see nothing, which gives NaN, or see padding. A NaN in any other row stays, so that it is noticed.
        """
        if self.real is None:
            return x
        rows = slice(None)
        if self.plain:
            if self.padding is None or self.padding.among.stop <= self.past:
                return x
            rows = slice(max(0, self.padding.among.start - self.past), self.padding.among.stop - self.past)
        x[:, :, rows].masked_fill_(~self.real[:, :, rows], 0)
        return x

    @cached_property
    def last_rows(self) -> torch.Tensor:
        """The last query row of each sample that is not padding, (B or 1, 1, 1, 1)."""
        rows = torch.arange(self.query.shape[2], device=self.query.device).view(1, 1, -1, 1)
        return (rows if self.real is None else rows * self.real).amax(dim=2, keepdim=True)

    @cached_property
    def float_key(self) -> torch.Tensor:
        """Rotated keys, float32, (B, Hₖ, K, D)."""
        return self.without_padding(self.key.float())

    @property
    def unrotated_key(self) -> torch.Tensor:
        """Keys before rotation, float32, (B, Hₖ, K, D); 0 in padding."""
        return self._features("pre_rope", 0)

    def _features(self, features: str, first: int) -> torch.Tensor:
        """The keys from `first` on before (`pre_rope`) or after (`post_rope`) rotation, float32, 0 in padding."""
        if features == "post_rope":
            key = self.key[:, :, first:].float()
        elif self.query.shape[2] == 1 and first + 1 == self.key.shape[2]:
            key = self.unrotated_token[1]
        else:
            key = self.unrotated(self.key[:, :, first:], first)
        if self.padding is None or self.padding.among.stop <= first:
            return key
        return key.masked_fill(self.padding.keys[..., first:].transpose(-1, -2), 0)

    def unrotated(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Queries or keys, (B, H or Hₖ, N, D), of the tokens from `first` on before rotation, float32."""
        assert self.rotation is not None, "the method must list 'rotation' in its needs"
        cos, sin = (part[:, first : first + x.shape[2]] for part in self.rotation)
        return unrotate(x, cos, sin, self.layout)

    @cached_property
    def unrotated_token(self) -> tuple[torch.Tensor, torch.Tensor]:
        """In a call with one row, the query and the last key before rotation, at once, (B, H or Hₖ, 1, D), float32."""
        both = torch.cat((self.query, self.key[:, :, -1:]), dim=1)
        heads = self.query.shape[1]
        both = self.unrotated(both, self.past)
        return both[:, :heads], both[:, heads:]

    def key_directions(self, features: str) -> torch.Tensor:
        """Keys scaled to length 1 (0 stays 0), before (`pre_rope`) or after (`post_rope`) rotation, (B, Hₖ, K, D)."""
        if features not in self._directions:
            if self.plain and not self.key.requires_grad:
                known = self._extended_directions(features)
                self.directions[features] = known
                self._directions[features], self._sums[features] = known.vectors, known.before
            else:
                self._directions[features] = unit(self._features(features, 0))
        return self._directions[features]

    def _extended_directions(self, features: str) -> Directions:
        """The directions of earlier calls, extended by the new keys; or all of them anew."""
        known: Directions | None = self.directions.get(features)
        if known is None or not known.begin(self._marks):
            return Directions.of(self._features(features, 0), self._marks)
        return known.extended(self._features(features, known.marks.shape[2]), self._marks)

    @cached_property
    def _marks(self) -> torch.Tensor:
        """The mark of each key, (B, Hₖ, K); see `Directions`."""
        marks = self.float_key @ self._probe if self._only_row is None else self._only_row[1]
        return marks if self.padding is None else marks.masked_fill(self.padding.keys.squeeze(1), PADDING)

    def direction_sums(self, features: str, start: int, stop: int) -> torch.Tensor:
        """For keys `start` to `stop`: the sum of the directions of all keys up to that key, (B, Hₖ, stop − start, D).

        Only for a plain call.
        """
        directions = self.key_directions(features)
        known, total = self._sums.get(features, (start + 1, directions[:, :, :1]))
        if known > start:
            known, total = 0, torch.zeros_like(total)
        if known < start:
            total = total + directions[:, :, known:start].sum(dim=2, keepdim=True)  # blocks come in order
        self._sums[features] = start, total
        rows = directions[:, :, start:stop]
        return total + (rows if stop == start + 1 else rows.cumsum(dim=2))

    @cached_property
    def index(self) -> torch.Tensor:
        """0, 1, … K − 1."""
        return torch.arange(self.key.shape[2], device=self.query.device)

    @property
    def _probe(self) -> torch.Tensor:
        return probe(self.key.shape[3], self.key.device)

    @cached_property
    def _only_row(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """If a token is decoded and marks are needed: its q·k, (B, H, 1, K), and the keys' marks, in one product."""
        if self.query.shape[2] > 1 or not self.directions:
            return None
        batch, heads, _, width = self.query.shape
        groups = self.key.shape[1]
        rows = (self.query.float() * self.scaling).reshape(batch, groups, -1, width)
        rows = torch.cat((rows, self._probe.expand(batch, groups, 1, width)), dim=2)
        found = rows @ self.float_key.transpose(-1, -2)
        return found[:, :, :-1].reshape(batch, heads, 1, -1), found[:, :, -1]

    def logits(self, start: int, stop: int, keys: int) -> torch.Tensor:
        """A of query rows `start` to `stop` against the first `keys` keys, (B, H, R, K), float32."""
        if self._only_row is not None and keys == self.key.shape[2]:
            return self.capped(self._only_row[0])
        query = self.query[:, :, start:stop].float() * self.scaling
        return self.capped(self.product(query, self.float_key[:, :, :keys]))

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits within the model's bound, if it has one."""
        return logits if self.softcap is None else (logits / self.softcap).tanh_().mul_(self.softcap)

    def product(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Products of each query head with its group's key head: (B, H, R, D) × (B, Hₖ, K, D) → (B, H, R, K)."""
        batch, heads, rows, width = query.shape
        groups = key.shape[1]
        grouped = query.reshape(batch, groups, heads // groups * rows, width)
        return (grouped @ key.transpose(-1, -2)).view(batch, heads, rows, -1)

    def blocks(self, first: int = 0) -> Iterator[Block]:
        """The map from query row `first` on, in blocks of rows of at most `block_elements` logits, or of one row."""
        for start, stop, keys in self._edges(first):
            yield Block(self, start, stop, keys, self._cached_logits.get(start))

    def _edges(self, start: int) -> Iterator[tuple[int, int, int]]:
        """First row, last row + 1 and number of keys of each block."""
        rows_left, keys = self.query.shape[2], self.key.shape[2]
        if self.block_elements is None:
            yield start, rows_left, keys
            return
        width = self.query.shape[0] * self.query.shape[1]
        while start < rows_left:
            if self.forward:
                stop = min(rows_left, start + max(1, self.block_elements // (width * keys)))
                yield start, stop, keys
                start = stop
                continue
            # Row r sees past + r + 1 keys: the later the rows of a block, the fewer they are.
            rows = max(1, self.block_elements // (width * (self.past + start + 1)))
            stop = min(rows_left, start + rows)
            while stop - start > 1 and width * (stop - start) * (self.past + stop) > self.block_elements:
                stop -= max(1, (stop - start) // 8)
            yield start, stop, self.past + stop
            start = stop

    def _cache_logits(self, block: Block) -> None:
        """Keep a block's logits for the next pass, if they were computed, are needed again and there is room."""
        logits = block.computed_logits if block.start >= self.first_row else None
        room = CACHED_LOGITS.get(self.query.device.type, CACHED_LOGITS["cpu"])
        if self.padding is not None:
            room -= self.key.numel() + self.value.numel()
        if logits is not None and sum(x.numel() for x in self._cached_logits.values()) + logits.numel() <= room:
            self._cached_logits[block.start] = logits

    def smallest(self, per_row: Callable[[Block], torch.Tensor]) -> torch.Tensor:
        """The smallest value over all rows, (…, 1, 1). This is one pass over the map.

        Args:
            per_row: gives a value for each row of a block, (…, R, 1).
        """
        found = self._over_rows(per_row)
        return found if found.shape[2] == 1 else found.amin(dim=2, keepdim=True)

    def largest(self, per_row: Callable[[Block], torch.Tensor]) -> torch.Tensor:
        """The largest value over all rows; see `smallest`."""
        found = self._over_rows(per_row)
        return found if found.shape[2] == 1 else found.amax(dim=2, keepdim=True)

    def _over_rows(self, per_row: Callable[[Block], torch.Tensor]) -> torch.Tensor:
        found = []
        for block in self.blocks():
            found.append(per_row(block))
            self._cache_logits(block)
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)
