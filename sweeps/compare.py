"""The protocol that compares named methods with the stock model on the held-out split.

At each condition (see `sweeps/protocol.py`) it measures the stock model and every method on the same samples. A method
with a space is tuned at that condition first, on the tuning split; all such methods have the same budget. Where answers
are yes or no and a method is tuned, the stock model is measured on the tuning split, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tdrs.benchmarks import DATASETS
from tdrs.configuration import with_settings
from tdrs.settings import SettingError

from .protocol import Look, MethodRow, Protocol, Steps, stock
from .sampled import tune
from .trial import Outcome, Request, Settings, Trial


@dataclass(frozen=True, kw_only=True)
class Compare(Protocol):
    """A checked `search` group.

    Args:
        methods: settings of each method by its name, with a space under `tune` if it is tuned. Without methods: the
            stock model alone.
    """

    methods: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.axes:
            raise SettingError("axes", None, "must not be empty")

    def reported(self) -> list[MethodRow]:
        return MethodRow.all_of(self.methods, "methods")

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        yield stock("held_out", condition)
        for row in self.reported():
            yield from row.possible(condition, dataset)

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        baseline: list[Trial] = []
        if any(row.space for row in self.reported()) and _yes_no(with_settings(outcome.config, condition)["dataset"]):
            baseline = yield [stock("tuning", condition)]  # analysis/answer_bias.py chooses a bias by it
        requests, tried = yield from tune(self, condition, outcome.config)
        rows = yield [stock("held_out", condition), *requests]
        outcome.trials.extend([*baseline, *tried])
        outcome.rows.extend(rows)


def _yes_no(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set's answers are yes or no, by its settings."""
    return dataset["name"] in DATASETS and bool(DATASETS[dataset["name"]].measures_of(str(dataset["rule"])))
