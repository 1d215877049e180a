"""Several methods in one run: each edits the logits, or the weights, that the one before it has left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.method import Method, check_method
from tdrs.attention.second_pass import SecondPass
from tdrs.attention.tally import Tally
from tdrs.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Several(Method):
    """What follows from the methods that stand in `parts`."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(method.needs for method in self.parts))

    @property
    def last_row_only(self) -> bool:
        return all(method.last_row_only for method in self.parts)

    @property
    def reads_whole_map(self) -> bool:
        return any(method.reads_whole_map for method in self.parts)

    @property
    def row_local(self) -> bool:
        return all(method.row_local for method in self.parts)

    @property
    def edits_weights(self) -> bool:
        return any(method.edits_weights for method in self.parts)


@dataclass(frozen=True, kw_only=True)
class Together(Several):
    """Methods that are applied in order, each on its own layers, heads and phase.

    The softmax is between logits and weights, so methods that edit weights come after all others.

    Statistics of a later method, such as |A|_min, are those of the edited logits. If one of them has a second pass, the
    others act in the first pass only.

    Args:
        methods: at least two of different kinds, with their settings; at most one has a second pass.

    Raises:
        SettingError: a value is not allowed.
    """

    methods: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "methods", tuple(self.methods))
        names = [type(method).__name__ for method in self.methods]
        for method in self.methods:
            check_method(method)
            if isinstance(method, Together):
                raise SettingError("methods", type(method).__name__, "cannot be one of several methods")
        if len(names) < 2 or len(set(names)) < len(names):
            raise SettingError("methods", names, "must be at least two methods, each once")
        late = [type(method).__name__ for method in self.methods[1:] if method.starts_over]
        if late:
            raise SettingError("methods", late, "computes logits anew, so it must be the first of several methods")
        two = [type(method).__name__ for method in self.methods if method.second_pass]
        if len(two) > 1:
            raise SettingError("methods", two, "combine two passes each; only one of them can")
        if any(method.second_pass and method.second_pass.alternative for method in self.methods):
            raise SettingError("methods", two, "answers by its second or third pass, which no other method edits")
        for name in ("layers", "heads"):
            if getattr(self, name) != "all":
                raise SettingError(name, getattr(self, name), f"each of several methods has {name} of its own")
        if self.phase != "both":
            raise SettingError("phase", self.phase, "each of several methods has a phase of its own")

    @property
    def parts(self) -> tuple[Method, ...]:
        return tuple(sorted((method for method in self.methods if method.active), key=lambda one: one.edits_weights))

    @property
    def active(self) -> bool:
        return bool(self.parts)

    @property
    def edits_attention(self) -> bool:
        return any(method.edits_attention for method in self.parts)

    @property
    def second_pass(self) -> SecondPass | None:
        return next((method.second_pass for method in self.parts if method.second_pass), None)

    @property
    def effective(self) -> dict[str, Any]:
        found = [method.effective for method in self.parts]
        if len(found) < 2:
            return found[0] if found else {}
        return {"method": type(self).__name__, "parts": found}


@dataclass(frozen=True, kw_only=True)
class InOrder(Several):
    """Edits of one attention call, in order.

    Args:
        steps: each method, and the query heads that it edits, (1, H, 1, 1) boolean; None means all. Methods that edit
            weights are last.
    """

    steps: tuple[tuple[Method, torch.Tensor | None], ...] = ()

    @property
    def parts(self) -> tuple[Method, ...]:
        return tuple(method for method, _ in self.steps)

    def statistics(self, call: Call) -> object:
        found: list[object] = []
        for number, (method, _) in enumerate(self.steps):
            found.append(method.statistics(EditedCall.of(call, self._edit_by(found, number)) if number else call))
        return found

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        assert isinstance(statistics, list)
        return self._edit_by(statistics, len(self.steps))(block).logits

    def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
        assert isinstance(statistics, list)
        for (method, heads), known in zip(self.steps, statistics, strict=True):
            if method.edits_weights:
                weights = method.reweighed(block, weights, known, heads)
        return weights

    def _edit_by(self, statistics: Sequence[object], count: int) -> Callable[[Block], Block]:
        """The first `count` edits."""
        steps = list(zip(self.steps[:count], statistics, strict=False))

        def edited(block: Block) -> Block:
            for (method, heads), known in steps:
                block = block.with_logits(method.edited(block, known, heads))
            return block

        return edited


@dataclass
class EditedCall(Call):
    """A call whose blocks have edited logits.

    Args:
        after: the edit of a block.
    """

    after: Callable[[Block], Block] = field(default=lambda block: block)

    @classmethod
    def of(cls, call: Call, after: Callable[[Block], Block]) -> "EditedCall":
        """A call under an edit. It has a tally of its own: what the edit counts is counted when the call is edited."""
        given = {one.name: getattr(call, one.name) for one in fields(Call) if one.init}
        return cls(**given | {"tally": Tally()}, after=after)

    def blocks(self, first: int = 0) -> Any:
        for block in super().blocks(first):
            yield self.after(block)

    def _cache_logits(self, block: Block) -> None:
        """Keep nothing: kept logits would be edited again."""
