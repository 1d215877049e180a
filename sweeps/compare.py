"""The protocol that compares named methods, side by side with the stock model, on the held-out split.

At each place (see `sweeps/methods.py`) the stock model is measured, then every method, on the same samples. A method
with a space is tuned at that place first, on the tuning split; all such methods have the same budget.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tdrs.settings import SettingError, build, check_choice, check_number

from .engine import Engine
from .methods import Method, check_axes, paired, places, stock
from .sampled import SAMPLERS, choose
from .trials import Outcome, Request, Trial


@dataclass(frozen=True)
class Compare:
    """A checked `search` group.

    Args:
        axes: the places; the first axis changes slowest.
        methods: settings of each method by its name, with a space under `tune` where it is to be tuned. None is the
            stock model alone.
        budget: trials on the tuning split for each method that is tuned, the first at its own settings.
        sampler, seed: what chooses the others.
    """

    protocol: str
    axes: dict  # type: ignore[type-arg]
    methods: dict = field(default_factory=dict)  # type: ignore[type-arg]
    budget: int = 8
    sampler: str = "tpe"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, list(SAMPLERS))
        check_number("budget", self.budget, 1, whole=True)
        check_number("seed", self.seed, 0, whole=True)

    def parsed(self) -> list[Method]:
        return [Method.of(name, values, "methods") for name, values in self.methods.items()]

    def possible(self, dataset: str) -> Iterator[Request]:
        """Requests that show every value a trial could have, to be checked before the first one runs.

        Args:
            dataset: the configured one.
        """
        for place in places(self.axes):
            yield stock("held_out", place)
            for method in self.parsed():
                yield from method.possible(place, dataset)


def from_settings(values: Mapping[str, Any]) -> Compare:
    """The protocol out of the `search` group.

    Raises:
        SettingError: a name is unknown, an axis is empty or no list, or a method is no mapping.
    """
    try:
        search = build(Compare, values)
        check_axes(search.axes)
        if not search.axes:
            raise SettingError("axes", None, "must not be empty")
        search.parsed()
    except SettingError as error:
        raise error.under("search") from None
    return search


def run(search: Compare, engine: Engine, name: str) -> Outcome:
    """Every method and the stock model at every place."""
    trials: list[Trial] = []
    rows: list[Trial] = []
    for place in places(search.axes):
        requests = [stock("held_out", place)]
        for method in search.parsed():
            request, found = choose(engine, method, place, search.budget, search.sampler, search.seed)
            requests.append(request)
            trials += found
        rows += paired(engine, requests)
    return Outcome(name, search.protocol, engine.config, trials, rows)
