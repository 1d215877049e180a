"""One attention call, as a method sees it: the call itself, and the blocks of query rows that its map is edited in.

Logits, and all that is made of them, are float32 whatever the model's dtype. What is asked for is computed when it is
asked for.

Notation as in the paper: A are logits, i a query row, j a key, V the visible pairs: causal, neither side padding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch

from tdrs.attention.mask import Structure, structure
from tdrs.attention.rope import unrotate

# Of the pass that finds |A|_min so many logits are kept for the next one, less what copies of padded keys and values
# take: all of 1300 tokens of 8 heads, some of more.
KEPT_ELEMENTS = {"cpu": 13 << 19, "cuda": 1 << 26}
SYSTEM, IMAGE, TEXT = 0, 1, 2  # a token's role: before the first image token, an image token, any other


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
        rotation: (cos, sin) of all K positions, (B or 1, K, D); here, as the next two, if the method needs it.
        positions: the model's own position ids of all K tokens, (B or 1, K, axes): one axis, with M-RoPE three.
        roles: SYSTEM, IMAGE or TEXT for each of the K tokens, (B, K).
        layer: the decoder layer's number.
        heads: the query heads that are edited, (1, H, 1, 1) boolean; None is all.
        block_elements: the size of a block; None is the whole map as one block.
        first_row: the first query row that is edited; statistics are of all rows.
        wanted: the first query row whose output is asked for; rows before it are 0.

    Attributes:
        clamped: for each w_min that was turned into a kernel, tensors (clamped, of how many).
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    mask: torch.Tensor | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    positions: torch.Tensor | None = None
    roles: torch.Tensor | None = None
    layer: int = 0
    heads: torch.Tensor | None = None
    block_elements: int | None = None
    first_row: int = 0
    wanted: int = 0
    clamped: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    # what was made already: by features; the same, with how many keys are summed; blocks' logits by their first row
    _directions: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _sums: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def past(self) -> int:
        """Keys that were in the cache before this call: query row r stands at index past + r."""
        return self.key.shape[2] - self.query.shape[2]

    def seen(self, start: int, stop: int, keys: int) -> torch.Tensor:
        """Which of the first `keys` keys the mask lets these query rows see, (B, 1, R, K) boolean."""
        assert self.mask is not None
        mask = self.mask[:, :, start:stop, :keys]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

    @cached_property
    def real(self) -> torch.Tensor | None:
        """Query rows that are not padding, (B, 1, Q, 1) boolean; None if none is.

        A right-padded query row sees real keys, and the mask does not show that the row is padding: its own key does.
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
        """Whether nothing is hidden but the future and whole tokens of padding: a block then need not test each pair.

        Never where the whole map is one block: the specification looks at each.
        """
        return self.block_elements is not None and (self._structure is None or self._structure.plain)

    @property
    def padded_keys(self) -> torch.Tensor | None:
        """Keys that are padding, (B, 1, 1, K) boolean, in a plain call; None if none is."""
        return self._structure.padding if self.plain and self._structure else None

    @property
    def padding(self) -> slice:
        """In a plain call, the keys among which all padding is."""
        return self._structure.among if self.plain and self._structure else slice(0, 0)

    def without_padding(self, x: torch.Tensor) -> torch.Tensor:
        """Keys or values, (B, Hₖ, K, D), in a plain call with 0 where the token is padding, whatever stood there.

        Written over what is given, unless that is the call's own.
        """
        if self.padded_keys is None:
            return x
        x = x.clone() if x is self.key or x is self.value else x
        x[:, :, self.padding].masked_fill_(self.padded_keys[..., self.padding].transpose(-1, -2), 0)
        return x

    def without_padded_rows(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, Q, …) with 0, in place, in rows of padding, which see nothing (NaN) or padding; a NaN elsewhere is to
        be seen."""
        if self.real is None:
            return x
        rows = slice(None)
        if self.plain:
            rows = slice(max(0, self.padding.start - self.past), max(0, self.padding.stop - self.past))
        x[:, :, rows].masked_fill_(~self.real[:, :, rows], 0)
        return x

    @cached_property
    def key_bounds(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """+∞ and −∞, at padded keys −∞ and +∞, (B, 1, 1, K): a minimum or maximum with them hides padding."""
        if self.padded_keys is None:
            return None
        upper = torch.where(self.padded_keys, -math.inf, math.inf)
        return upper, -upper

    @cached_property
    def last_rows(self) -> torch.Tensor:
        """Each sample's last query row that is not padding, (B or 1, 1, 1, 1)."""
        rows = torch.arange(self.query.shape[2], device=self.query.device).view(1, 1, -1, 1)
        return (rows if self.real is None else rows * self.real).amax(dim=2, keepdim=True)

    @cached_property
    def float_key(self) -> torch.Tensor:
        return self.without_padding(self.key.float())

    @property
    def unrotated_key(self) -> torch.Tensor:
        """Keys before rotation, float32, (B, Hₖ, K, D)."""
        assert self.rotation is not None, "the method must list 'rotation' in its needs"
        return self.without_padding(unrotate(self.key, *self.rotation))

    def key_directions(self, features: str) -> torch.Tensor:
        """Keys of length 1 (0 stays 0), before (`pre_rope`) or after (`post_rope`) rotation, (B, Hₖ, K, D)."""
        if features not in self._directions:
            self._directions[features] = _unit(self.unrotated_key if features == "pre_rope" else self.float_key)
        return self._directions[features]

    def direction_sums(self, features: str, start: int, stop: int) -> torch.Tensor:
        """Of the directions of all keys up to each of these, the sum, in a plain call, (B, Hₖ, stop − start, D)."""
        directions = self.key_directions(features)
        known, total = self._sums.get(features, (0, torch.zeros_like(directions[:, :, :1])))
        if known > start:
            known, total = 0, torch.zeros_like(total)
        total = total + directions[:, :, known:start].sum(dim=2, keepdim=True)  # blocks come in their order
        self._sums[features] = start, total
        return total + directions[:, :, start:stop].cumsum(dim=2)

    @cached_property
    def index(self) -> torch.Tensor:
        """0, 1, … K − 1."""
        return torch.arange(self.key.shape[2], device=self.query.device)

    def product(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Products of each query head with its group's key head: (B, H, R, D) × (B, Hₖ, K, D) → (B, H, R, K)."""
        batch, heads, rows, width = query.shape
        groups = key.shape[1]
        grouped = query.reshape(batch, groups, heads // groups * rows, width)
        return (grouped @ key.transpose(-1, -2)).view(batch, heads, rows, -1)

    def blocks(self, first: int = 0) -> Iterator["Block"]:
        """The map from a query row on in blocks of rows, each of at most `block_elements` elements or one row."""
        for start, stop, keys in self._edges(first):
            block = Block(self, start, stop, keys)
            if start in self._kept:
                block.__dict__["logits"] = self._kept[start]
            yield block

    def _edges(self, start: int) -> Iterator[tuple[int, int, int]]:
        """First row, last row + 1 and number of keys of each block."""
        rows_left, keys = self.query.shape[2], self.key.shape[2]
        if self.block_elements is None:
            yield start, rows_left, keys
            return
        width = self.query.shape[0] * self.query.shape[1]
        while start < rows_left:
            # row r sees past + r + 1 keys: rows of a block are few where each is long
            rows = max(1, self.block_elements // (width * (self.past + start + 1)))
            stop = min(rows_left, start + rows)
            while stop - start > 1 and width * (stop - start) * (self.past + stop) > self.block_elements:
                stop -= max(1, (stop - start) // 8)
            yield start, stop, self.past + stop
            start = stop

    def _keep(self, block: "Block") -> None:
        """Keep a block's logits for the next pass, if it comes there, if there are any and there is room."""
        logits = block.__dict__.get("logits") if block.start >= self.first_row else None
        bound = KEPT_ELEMENTS.get(self.query.device.type, KEPT_ELEMENTS["cpu"])
        if self.padded_keys is not None:
            bound -= self.key.numel() + self.value.numel()
        if logits is not None and sum(x.numel() for x in self._kept.values()) + logits.numel() <= bound:
            self._kept[block.start] = logits

    def smallest(self, rows: Callable[["Block"], torch.Tensor]) -> torch.Tensor:
        """The smallest over all rows of what `rows` gives for those of a block, (…, R, 1) → (…, 1, 1); a pass."""
        return self._all_rows(rows).amin(dim=2, keepdim=True)

    def largest(self, rows: Callable[["Block"], torch.Tensor]) -> torch.Tensor:
        """As `smallest`, the largest."""
        return self._all_rows(rows).amax(dim=2, keepdim=True)

    def _all_rows(self, rows: Callable[["Block"], torch.Tensor]) -> torch.Tensor:
        found = []
        for block in self.blocks():
            found.append(rows(block))
            self._keep(block)
        return torch.cat(found, dim=2)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-20)


@dataclass
class Block:
    """Rows `start` to `stop` of a call's map against its first `keys` keys. Arrays are (B or 1, H or 1, R, K).

    What a method asks for is made when it asks, and it must not change it in place unless it says "newly allocated".
    """

    call: Call
    start: int
    stop: int
    keys: int
    _directions: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _distances: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def logits(self) -> torch.Tensor:
        """A, (B, H, R, K), float32."""
        query = self.call.query[:, :, self.start : self.stop].float() * self.call.scaling
        return self.call.product(query, self.call.float_key[:, :, : self.keys])

    @property
    def unrotated_query(self) -> torch.Tensor:
        """These rows' queries before rotation, float32, (B, H, R, D)."""
        assert self.call.rotation is not None, "the method must list 'rotation' in its needs"
        rows = slice(self.call.past + self.start, self.call.past + self.stop)
        cos, sin = self.call.rotation
        return unrotate(self.call.query[:, :, self.start : self.stop], cos[:, rows], sin[:, rows])

    def cosine(self, features: str, factor: float = 1.0) -> torch.Tensor:
        """q·k / (‖q‖‖k‖), before (`pre_rope`) or after (`post_rope`) rotation, times a factor; (B, H, R, K), newly
        allocated."""
        query = self._query_directions(features) * factor
        return self.call.product(query, self.call.key_directions(features)[:, :, : self.keys])

    def _query_directions(self, features: str) -> torch.Tensor:
        """These rows' queries, of length 1 (0 stays 0), (B, H, R, D)."""
        if features not in self._directions:
            rows = self.call.query[:, :, self.start : self.stop]
            self._directions[features] = _unit(self.unrotated_query if features == "pre_rope" else rows.float())
        return self._directions[features]

    @property
    def _rows(self) -> torch.Tensor:
        """i, (1, 1, R, 1)."""
        return self.call.index[None, None, self.call.past + self.start : self.call.past + self.stop, None]

    @cached_property
    def _future(self) -> tuple[int, torch.Tensor]:
        """The first key that is not the past of all rows; which ones from there on are a row's future, (1, 1, R, F)."""
        first = self.call.past + self.start + 1
        return first, self._rows < self.call.index[first : self.keys]

    def distance(self, of: str) -> torch.Tensor:
        """Distance of i and j, (B or 1, 1, R, K), float32.

        `index`: |i − j|, in tokens; `position`: of the model's position ids, the largest over their axes.
        """
        if of not in self._distances:
            if of == "index":
                self._distances[of] = (self._rows.float() - self.call.index[: self.keys].float()).abs_()
            else:
                assert self.call.positions is not None, "the method must list 'positions' in its needs"
                places = self.call.positions[:, : self.keys].float()
                rows = places[:, self.call.past + self.start : self.call.past + self.stop]
                gaps = (rows[:, :, None] - places[:, None]).abs_()
                self._distances[of] = gaps.amax(dim=-1).unsqueeze(1)
        return self._distances[of]

    @cached_property
    def hidden(self) -> torch.Tensor:
        """Pairs not in V, (B or 1, 1, R, K) boolean."""
        future = self._rows < self.call.index[: self.keys]
        if self.call.real is None:
            return future
        visible = self.call.seen(self.start, self.stop, self.keys) & self.call.real[:, :, self.start : self.stop]
        return future | ~visible

    def hide(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """Set (B, H or 1, R, K) values of hidden pairs to 0, ∞ or −∞, in place; returns them.

        In a plain call rows of padding are left as they are: what is reduced over a row's keys is to be read of the
        others alone.
        """
        if not self.call.plain:
            return values.masked_fill_(self.hidden, fill)
        first, future = self._future
        values[..., first:].masked_fill_(future, fill)  # slow, so not of all keys
        if self.call.key_bounds is not None:
            padding = slice(self.call.padding.start, min(self.call.padding.stop, self.keys))
            among = values[..., padding]
            upper, lower = (bound[..., padding] for bound in self.call.key_bounds)
            if fill == 0:
                among.mul_(upper > 0)
            elif fill > 0:
                torch.maximum(among, lower, out=among)
            else:
                torch.minimum(among, upper, out=among)
        return values

    def _of_real_rows(self, reduced: torch.Tensor, fill: float) -> torch.Tensor:
        """(B, H or 1, R, 1) with `fill` in rows of padding."""
        if self.call.real is None:
            return reduced
        return reduced.masked_fill(~self.call.real[:, :, self.start : self.stop], fill)

    @cached_property
    def counts(self) -> torch.Tensor:
        """Visible keys of each row, at least 1, (B or 1, 1, R, 1)."""
        if not self.call.plain:
            return (~self.hidden).sum(dim=-1, keepdim=True).clamp_min(1).float()
        rows = slice(self.call.past + self.start, self.call.past + self.stop)
        if self.call.padded_keys is None:
            return self._rows.float() + 1
        return (~self.call.padded_keys).cumsum(dim=-1)[..., rows].transpose(-1, -2).clamp_min(1).float()

    @cached_property
    def last(self) -> torch.Tensor:
        """Whether a row is its sample's last one, (B or 1, 1, R, 1) boolean."""
        rows = torch.arange(self.start, self.stop, device=self.call.query.device).view(1, 1, -1, 1)
        return rows == self.call.last_rows

    def queries(self, role: int) -> torch.Tensor:
        """Whether a row's token is of this role, (B, 1, R, 1) boolean."""
        assert self.call.roles is not None, "the method must list 'roles' in its needs"
        rows = self.call.roles[:, self.call.past + self.start : self.call.past + self.stop]
        return (rows == role)[:, None, :, None]

    def keys_of(self, role: int) -> torch.Tensor:
        """Whether a key's token is of this role, (B, 1, 1, K) boolean."""
        assert self.call.roles is not None, "the method must list 'roles' in its needs"
        return (self.call.roles[:, : self.keys] == role)[:, None, None]

    def mean_cosine(self, features: str) -> torch.Tensor:
        """The mean cosine of each row's visible keys (0 where it has none), (B, H, R, 1).

        In a plain call it is the query's product with the sum of the keys' directions up to its own.
        """
        if not self.call.plain:
            return self.hide(self.cosine(features), 0).sum(dim=-1, keepdim=True) / self.counts
        sums = self.call.direction_sums(features, self.call.past + self.start, self.call.past + self.stop)
        query = self._query_directions(features)
        grouped = query.unflatten(1, (sums.shape[1], -1))
        return (grouped * sums.unsqueeze(2)).sum(dim=-1, keepdim=True).view(*query.shape[:3], 1) / self.counts

    def row_max(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of (B, H, R, K) values of at least 0 over each row's visible keys, (B, H, R, 1)."""
        return self.hide(values.clone(), 0).amax(dim=-1, keepdim=True)

    def span(self, of: str) -> torch.Tensor:
        """d_max of each row, the largest distance of a visible key (0 where it has none), (B or 1, 1, R, 1)."""
        if of == "index" and self.call.mask is None:  # then the first key is visible to all
            return self._rows.float()
        distance = self.distance(of).expand(self.call.query.shape[0], -1, -1, -1)
        return self._of_real_rows(self.row_max(distance), 0)

    @property
    def smallest_logit(self) -> torch.Tensor:
        """|A|_min of each row over its visible keys (inf where it has none), (B, H, R, 1)."""
        return self._of_real_rows(self.hide(self.logits.abs(), math.inf).amin(dim=-1, keepdim=True), math.inf)

    @property
    def smallest_weight(self) -> torch.Tensor:
        """The smallest softmax(A) of each row over its visible keys (inf where it has none), (B, H, R, 1)."""
        total = self.hide(self.logits.clone(), -math.inf).logsumexp(dim=-1, keepdim=True)
        smallest = self.hide(self.logits.clone(), math.inf).amin(dim=-1, keepdim=True)
        return self._of_real_rows(torch.where(total.isinf(), math.inf, (smallest - total).exp_()), math.inf)
