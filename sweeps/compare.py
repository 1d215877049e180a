"""The protocol that compares named methods, side by side with the stock model, on the held-out split.

At each condition (see `sweeps/methods.py`) the stock model is measured, then every method, on the same samples. A
method with a space is tuned at that condition first, on the tuning split; all such methods have the same budget.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tdrs.settings import SettingError, build

from .engine import Engine
from .methods import Method, paired, stock
from .sampled import choose
from .search import Search
from .trials import Outcome, Request, Settings, Trial


@dataclass(frozen=True, kw_only=True)
class Compare(Search):
    """A checked `search` group.

    Args:
        methods: settings of each method by its name, with a space under `tune` where it is to be tuned. None is the
            stock model alone.
    """

    methods: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def reported(self) -> list[Method]:
        return Method.all_of(self.methods, "methods")

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        yield stock("held_out", condition)
        for method in self.reported():
            yield from method.possible(condition, dataset)


def from_settings(values: Mapping[str, Any]) -> Compare:
    """The protocol out of the `search` group.

    Raises:
        SettingError: a name is unknown, an axis is empty or no list, or a method is no mapping.
    """
    try:
        search = build(Compare, values)
        if not search.axes:
            raise SettingError("axes", None, "must not be empty")
        search.reported()
    except SettingError as error:
        raise error.under("search") from None
    return search


def run(search: Compare, engine: Engine, name: str) -> Outcome:
    """Every method and the stock model at every condition."""
    trials: list[Trial] = []
    rows: list[Trial] = []
    for condition in search.conditions():
        requests, tried = choose(engine, search, condition)
        trials += tried
        rows += paired(engine, [stock("held_out", condition), *requests])
    return Outcome(name, search.protocol, engine.config, trials, rows)
