"""The protocol that measures every cell of a grid on the tuning split, then reports the best one on the held-out split.

Cells are enumerated, not sampled: none is measured twice, and one that fails is tried again and, if it still fails, is
shown as failed with its reason. Settings that are not the method's (`dataset.gap`, say) make places: each has a stock
model of its own, and the best cell is the one with the largest difference to it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution

from tdrs.settings import SettingError, build, check_choice, check_number

from .engine import Engine
from .methods import Method, pair, paired, stock
from .sampled import SAMPLERS, choose
from .space import Range, Space
from .trials import STOCK, Outcome, Request, Settings, Trial


@dataclass(frozen=True)
class Grid:
    """A checked `search` group.

    Args:
        space: lists of values by configuration key; see `sweeps/space.py`.
        controls: methods that are reported beside.
        budget, sampler, seed: how a control that has a space is tuned.
    """

    protocol: str
    space: dict  # type: ignore[type-arg]
    controls: dict = field(default_factory=dict)  # type: ignore[type-arg]
    budget: int = 8
    sampler: str = "tpe"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, list(SAMPLERS))
        check_number("budget", self.budget, 1, whole=True)
        check_number("seed", self.seed, 0, whole=True)

    @property
    def parsed(self) -> Space:
        return Space.of(self.space, "space")

    def methods(self) -> list[Method]:
        return [Method.of(name, values, "controls") for name, values in self.controls.items()]

    def cells(self) -> list[Request]:
        """The stock model at each place, and every cell, on the tuning split."""
        requests: list[Request] = []
        for cell in self.parsed.cells():
            place, settings = split_place(cell)
            if stock("tuning", place) not in requests:
                requests.append(stock("tuning", place))
            requests.append(Request("cell", "tuning", settings, place))
        return requests

    def possible(self, dataset: str) -> Iterator[Request]:
        """Every request, to be checked before the first one runs.

        Args:
            dataset: the configured one.
        """
        for request in self.cells():
            yield request
            yield Request(request.name, "held_out", request.settings, request.place)
        for method in self.methods():
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
        search.methods()
    except SettingError as error:
        raise error.under("search") from None
    return search


def run(search: Grid, engine: Engine, name: str) -> Outcome:
    """All cells with their paired differences, and on the held-out split the stock model, the best cell, controls."""
    requests = search.cells()
    trials = engine.measure(requests)
    baseline = {json.dumps(trial.place): trial for trial in trials if trial.name == STOCK}
    cells = pair(engine, trials, baseline)

    def gain(cell: Trial) -> float:
        before = baseline[json.dumps(cell.place)].score
        return cell.score - before if math.isfinite(before) else -math.inf

    measured = [cell for cell in cells if cell.name != STOCK]
    chosen = max(measured, key=gain)
    place = chosen.place
    held_out = [
        stock("held_out", place),
        Request("as configured", "held_out", {}, place),
        Request(f"best of {len(measured)}", "held_out", chosen.settings, place, budget=len(measured)),
    ]
    controls: list[Trial] = []
    for control in search.methods():
        request, found = choose(engine, control, place, search.budget, search.sampler, search.seed)
        held_out.append(request)
        controls += found
    return Outcome(name, search.protocol, engine.config, cells + controls, paired(engine, held_out))


def distributions(search: Grid) -> dict[str, BaseDistribution]:
    """Optuna's parameters."""
    return search.parsed.distributions()
