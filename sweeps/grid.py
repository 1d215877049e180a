"""The protocol that measures every cell of a grid on the tuning split, then reports the best one on the held-out split.

Cells are enumerated, not sampled: none is measured twice, and one that fails is tried again and, if it still fails, is
shown as failed with its reason. Settings that are not the method's (`dataset.gap`, say) make places: each has a stock
model of its own, and the best cell is the one with the largest difference to it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tdrs.settings import SettingError, build

from .engine import Engine
from .methods import paired, stock
from .sampled import choose
from .search import Spaced
from .space import Range
from .trials import STOCK, Outcome, Request, Settings, Trial


@dataclass(frozen=True, kw_only=True)
class Grid(Spaced):
    """A checked `search` group, whose space has lists only."""

    point = "cell"

    def cells(self) -> list[Request]:
        """The stock model at each place, and every cell, on the tuning split."""
        requests: list[Request] = []
        for cell in self.parsed.cells():
            place, settings = split_place(cell)
            if stock("tuning", place) not in requests:
                requests.append(stock("tuning", place))
            requests.append(Request(self.point, "tuning", settings, place))
        return requests

    def possible(self, dataset: str) -> Iterator[Request]:
        for request in self.cells():
            yield request
            yield Request(request.name, "held_out", request.settings, request.place)
        for method in self.reported():
            yield from method.possible({}, dataset)


def split_place(settings: Settings) -> tuple[Settings, Settings]:
    """What is not of the method, and what is."""
    own = {key: value for key, value in settings.items() if key.split(".")[0] in ("intervention", "attention")}
    return {key: value for key, value in settings.items() if key not in own}, own


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
    """All cells with their paired differences, and on the held-out split the stock model, the best cell, controls."""
    cells = paired(engine, search.cells())
    before = {json.dumps(cell.place): cell.score for cell in cells if cell.name == STOCK}

    def gain(cell: Trial) -> float:
        baseline = before[json.dumps(cell.place)]
        return cell.score - baseline if math.isfinite(baseline) else -math.inf

    measured = [cell for cell in cells if cell.name != STOCK]
    chosen = max(measured, key=gain)
    place = chosen.place
    controls, tried = choose(engine, search, place)
    held_out = [
        stock("held_out", place),
        Request("as configured", "held_out", {}, place),
        Request(f"best of {len(measured)}", "held_out", chosen.settings, place, budget=len(measured)),
        *controls,
    ]
    return Outcome(name, search.protocol, engine.config, cells + tried, paired(engine, held_out))
