"""The protocol that measures every cell of a grid on the tuning split, then reports the best one on the held-out split.

Cells are enumerated, not sampled: none is measured twice, and one that fails is tried again and, if it still fails, is
shown as failed with its reason. With axes, all this happens at each condition (see `sweeps/methods.py`): each has a
stock model and a best cell of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tdrs.settings import SettingError, build

from .engine import Engine
from .methods import best, paired, stock
from .sampled import choose
from .search import Spaced
from .space import Range
from .trials import STOCK, Outcome, Request, Settings, Trial


@dataclass(frozen=True, kw_only=True)
class Grid(Spaced):
    """A checked `search` group, whose space has lists only."""

    point = "cell"

    def cells(self, condition: Settings) -> list[Request]:
        """The stock model and every cell at a condition, on the tuning split."""
        cells = [Request(self.point, "tuning", settings, condition) for settings in self.parsed.cells()]
        return [stock("tuning", condition), *cells]

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        for request in self.cells(condition):
            yield request
            yield Request(request.name, "held_out", request.settings, condition)
        for method in self.reported():
            yield from method.possible(condition, dataset)


def from_settings(values: Mapping[str, Any]) -> Grid:
    """The protocol out of the `search` group; raises SettingError."""
    try:
        search = build(Grid, values)
        for key, part in search.parsed.parts.items():
            if isinstance(part, Range):
                raise SettingError(f"space.{key}", search.space[key], "must be a list: a grid has cells")
        search.reported()
    except SettingError as error:
        raise error.under("search") from None
    return search


def run(search: Grid, engine: Engine, name: str) -> Outcome:
    """At each condition: all cells with paired differences; held out, the stock model, the best cell, the controls."""
    trials: list[Trial] = []
    rows: list[Trial] = []
    for condition in search.conditions():
        cells = paired(engine, search.cells(condition))
        measured = [cell for cell in cells if cell.name != STOCK]
        chosen = best(measured, "accuracy")
        controls, tried = choose(engine, search, condition)
        held_out = [
            stock("held_out", condition),
            Request("as configured", "held_out", {}, condition),
            Request(f"best of {len(measured)}", "held_out", chosen.settings, condition, budget=len(measured)),
            *controls,
        ]
        trials += [*cells, *tried]
        rows += paired(engine, held_out)
    return Outcome(name, search.protocol, engine.config, trials, rows)
