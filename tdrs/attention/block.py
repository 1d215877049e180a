"""Blocks of query rows of an attention call: what a method's `edit` works on.

Notation as in `call.py`: A are the logits, i is a query row, j is a key, V is the set of visible pairs.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from tdrs.attention.directions import unit

if TYPE_CHECKING:
    from tdrs.attention.call import Call

SYSTEM, IMAGE, TEXT = 0, 1, 2  # the role of a token: before the first image token, an image token, any other


@dataclass
class Block:
    """Query rows `start` to `stop` of a call against its first `keys` keys. Arrays are (B or 1, H or 1, R, K).

    An array is computed when a method first asks for it. A method must not change it in place, unless its description
    says "newly allocated".

    Attributes:
        computed_logits: A, if it is already known; use `logits`.
    """

    call: "Call"
    start: int
    stop: int
    keys: int
    computed_logits: torch.Tensor | None = field(default=None, repr=False)
    _directions: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _distances: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def logits(self) -> torch.Tensor:
        """A, (B, H, R, K), float32."""
        if self.computed_logits is None:
            self.computed_logits = self.call.logits(self.start, self.stop, self.keys)
        return self.computed_logits

    def with_logits(self, logits: torch.Tensor) -> "Block":
        """The same rows and keys with other logits, (B, H, R, K)."""
        found = replace(self, computed_logits=logits)
        found._directions, found._distances = self._directions, self._distances
        return found

    @property
    def unrotated_query(self) -> torch.Tensor:
        """The queries of these rows before rotation, float32, (B, H, R, D)."""
        if self.call.query.shape[2] == 1:
            return self.call.unrotated_token[0]
        return self.call.unrotated(self.call.query[:, :, self.start : self.stop], self.call.past + self.start)

    def cosine(self, features: str, factor: float = 1.0) -> torch.Tensor:
        """q·k / (‖q‖‖k‖) times a factor, (B, H, R, K), newly allocated.

        Args:
            features: vectors before (`pre_rope`) or after (`post_rope`) rotation.
        """
        query = self._query_directions(features) * factor
        return self.call.product(query, self.call.key_directions(features)[:, :, : self.keys])

    def _query_directions(self, features: str) -> torch.Tensor:
        """The queries of these rows, scaled to length 1 (0 stays 0), (B, H, R, D)."""
        if features not in self._directions:
            rows = self.call.query[:, :, self.start : self.stop]
            self._directions[features] = unit(self.unrotated_query if features == "pre_rope" else rows.float())
        return self._directions[features]

    @property
    def _rows(self) -> torch.Tensor:
        """i, (1, 1, R, 1)."""
        return self.call.index[None, None, self.call.past + self.start : self.call.past + self.stop, None]

    @cached_property
    def _future(self) -> tuple[int, torch.Tensor | None]:
        """The first key that is in the future of some row; which keys from there on are in each row's, (1, 1, R, F).

        None: no key is.
        """
        first = self.call.past + self.start + 1
        return first, self._rows < self.call.index[first : self.keys] if first < self.keys else None

    def distance(self, of: str) -> torch.Tensor:
        """The distance of i and j, (B or 1, 1, R, K), float32.

        Args:
            of: `index`: |i − j| in tokens; `position`: the difference of the model's position ids, the largest over
                their axes.
        """
        if of not in self._distances:
            if of == "index":
                self._distances[of] = (self._rows.float() - self.call.index[: self.keys].float()).abs_()
            else:
                assert self.call.positions is not None, "the method must list 'positions' in its needs"
                keys = self.call.positions[:, : self.keys].float()
                rows = keys[:, self.call.past + self.start : self.call.past + self.stop]
                gaps = (rows[:, :, None] - keys[:, None]).abs_()
                self._distances[of] = gaps.amax(dim=-1).unsqueeze(1)
        return self._distances[of]

    @cached_property
    def hidden(self) -> torch.Tensor:
        """Pairs that are not in V, (B or 1, 1, R, K) boolean."""
        if self.call.real is None:
            return self._rows < self.call.index[: self.keys]
        return ~(self.call.seen(self.start, self.stop, self.keys) & self.call.real[:, :, self.start : self.stop])

    def hide(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """Set (B, H or 1, R, K) values of hidden pairs to `fill` (0, ∞ or −∞), in place. Returns `values`.

        In a plain call, rows of padding are left as they are: the caller must ignore what it reduces over such a row.
        """
        if not self.call.plain:
            return values.masked_fill_(self.hidden, fill)
        first, future = self._future
        if future is not None:
            values[..., first:].masked_fill_(future, fill)  # slow, so not on all keys
        if self.call.padding is not None:
            columns = slice(self.call.padding.among.start, min(self.call.padding.among.stop, self.keys))
            among = values[..., columns]
            upper, lower = (bound[..., columns] for bound in self.call.padding.limits)
            if fill == 0:
                among.mul_(upper > 0)
            elif fill > 0:
                torch.maximum(among, lower, out=among)
            else:
                torch.minimum(among, upper, out=among)
        return values

    def _in_real_rows(self, reduced: torch.Tensor, fill: float) -> torch.Tensor:
        """(B, H or 1, R, 1) with `fill` in rows of padding."""
        if self.call.real is None:
            return reduced
        return reduced.masked_fill(~self.call.real[:, :, self.start : self.stop], fill)

    @cached_property
    def counts(self) -> torch.Tensor:
        """The number of visible keys of each row, at least 1, (B or 1, 1, R, 1)."""
        if not self.call.plain:
            return (~self.hidden).sum(dim=-1, keepdim=True).clamp_min(1).float()
        rows = slice(self.call.past + self.start, self.call.past + self.stop)
        return self._rows.float() + 1 if self.call.padding is None else self.call.padding.counts[:, :, rows]

    @cached_property
    def last(self) -> torch.Tensor:
        """Whether a row is the last one of its sample, (B or 1, 1, R, 1) boolean."""
        rows = torch.arange(self.start, self.stop, device=self.call.query.device).view(1, 1, -1, 1)
        return rows == self.call.last_rows

    def queries(self, role: int) -> torch.Tensor:
        """Whether the token of a row has this role, (B, 1, R, 1) boolean."""
        assert self.call.roles is not None, "the method must list 'roles' in its needs"
        rows = self.call.roles[:, self.call.past + self.start : self.call.past + self.stop]
        return (rows == role)[:, None, :, None]

    def keys_of(self, role: int) -> torch.Tensor:
        """Whether the token of a key has this role, (B, 1, 1, K) boolean."""
        assert self.call.roles is not None, "the method must list 'roles' in its needs"
        return (self.call.roles[:, : self.keys] == role)[:, None, None]

    def visible(self, keys: torch.Tensor) -> torch.Tensor:
        """Which of the chosen keys, (B, 1, 1, K) boolean, each row sees, (B, 1, R, K) boolean, newly allocated.

        In a plain call, rows of padding are left as they are.
        """
        shown = keys.expand(-1, -1, self.stop - self.start, -1).float()
        return self.hide(shown.clone(), 0) > 0

    def mean_cosine(self, features: str) -> torch.Tensor:
        """The mean cosine over each row's visible keys (0 if it has none), (B, H, R, 1); `features` as in `cosine`.

        In a plain call this is the query's product with the sum of the key directions up to its own.
        """
        if not self.call.plain:
            return self.hide(self.cosine(features), 0).sum(dim=-1, keepdim=True) / self.counts
        sums = self.call.direction_sums(features, self.call.past + self.start, self.call.past + self.stop)
        query = self._query_directions(features)
        grouped = query.unflatten(1, (sums.shape[1], -1))
        return (grouped * sums.unsqueeze(2)).sum(dim=-1, keepdim=True).view(*query.shape[:3], 1) / self.counts

    def row_max(self, values: torch.Tensor) -> torch.Tensor:
        """The largest value over each row's visible keys, (B, H, R, K) → (B, H, R, 1). Values must be at least 0."""
        return self.hide(values.clone(), 0).amax(dim=-1, keepdim=True)

    def span(self, of: str) -> torch.Tensor:
        """d_max of each row: the largest distance of a visible key (0 if it has none), (B or 1, 1, R, 1)."""
        if of == "index" and (self.call.plain or self.call.mask is None):
            first = 0 if self.call.padding is None else self.call.padding.first
            return self._in_real_rows(self._rows.float() - first, 0)
        distance = self.distance(of).expand(self.call.query.shape[0], -1, -1, -1)
        return self._in_real_rows(self.row_max(distance), 0)

    @property
    def smallest_logit(self) -> torch.Tensor:
        """|A|_min of each row: the smallest |A| over its visible keys (∞ if it has none), (B, H, R, 1)."""
        return self._in_real_rows(self.hide(self.logits.abs(), math.inf).amin(dim=-1, keepdim=True), math.inf)

    @property
    def smallest_weight(self) -> torch.Tensor:
        """The smallest softmax(A) over each row's visible keys (∞ if it has none), (B, H, R, 1)."""
        total = self.hide(self.logits.clone(), -math.inf).logsumexp(dim=-1, keepdim=True)
        smallest = self.hide(self.logits.clone(), math.inf).amin(dim=-1, keepdim=True)
        return self._in_real_rows(torch.where(total.isinf(), math.inf, (smallest - total).exp_()), math.inf)
