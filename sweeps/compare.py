"""The protocol that compares named methods with the stock model on the held-out split.

At each condition (see `sweeps/protocol.py`) it measures the stock model and every method on the same samples. A method
with a space is tuned at that condition first, on the tuning split; all such methods have the same budget. Where answers
are yes or no and a method is tuned, the stock model is measured on the tuning split, too.

With `also`, the rows of each condition are measured once more under other settings of the data, such as a distance of
training: what do the settings that were chosen at the condition do there?
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tdrs.benchmarks import DATASETS
from tdrs.configuration import with_settings
from tdrs.settings import SettingError, check_choice

from .protocol import Look, MethodRow, Protocol, Steps, check_axes, conditions, stock
from .sampled import tune
from .trial import Outcome, Request, Settings, Trial


@dataclass(frozen=True, kw_only=True)
class Compare(Protocol):
    """A checked `search` group.

    Args:
        methods: settings of each method by its name, with a space under `tune` if it is tuned. Without methods: the
            stock model alone.
        also: settings under which the rows of every condition are reported, too, such as {dataset.gap: 32}; they are
            chosen at the condition alone.
        rivals: other explanations of a gain, each with the tuned rows that stand for it; see `analysis/rivals.py`.
    """

    methods: dict = field(default_factory=dict)  # type: ignore[type-arg]
    also: dict = field(default_factory=dict)  # type: ignore[type-arg]
    rivals: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.axes:
            raise SettingError("axes", None, "must not be empty")
        for key, value in self.also.items():
            if not str(key).startswith("dataset."):
                raise SettingError(f"also.{key}", value, "must be a setting of the data, such as dataset.gap")
        if self.also:
            check_axes({key: [value] for key, value in self.also.items()})
            here = conditions(self.axes)
            there = [self.beside(one) for one in here]
            same = [one for one in there if one in here]
            if same:
                raise SettingError("also", self.also, f"gives a condition of the axes: {same[0]}")
            if any(one in there[:number] for number, one in enumerate(there)):
                raise SettingError("also", self.also, "conditions of the axes are the same under it; take some away")

        tuned = [name for name, values in self.methods.items() if isinstance(values, Mapping) and "tune" in values]
        for name, rows in self.rivals.items():
            if not isinstance(rows, list) or not rows:
                raise SettingError(f"rivals.{name}", rows, "must be a list of names of tuned methods")
            for row in rows:
                check_choice(f"rivals.{name}", row, tuned)

    def beside(self, condition: Settings) -> Settings:
        """A condition under the settings of `also`."""
        return {**condition, **self.also}

    def reported(self) -> list[MethodRow]:
        return MethodRow.all_of(self.methods, "methods")

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        for here in [condition, self.beside(condition)] if self.also else [condition]:
            yield stock("held_out", here)
            for row in self.reported():
                yield from row.possible(here, dataset)

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        baseline: list[Trial] = []
        if any(row.space for row in self.reported()) and _yes_no(with_settings(outcome.config, condition)["dataset"]):
            baseline = yield [stock("tuning", condition)]  # analysis/answer_bias.py chooses a bias by it
        requests, tried = yield from tune(self, condition, outcome.config)
        rows = yield [stock("held_out", condition), *requests]
        outcome.trials.extend([*baseline, *tried])
        outcome.rows.extend(rows)
        if self.also:
            there = self.beside(condition)
            again = [replace(request, condition=there) for request in requests]
            outcome.rows.extend((yield [stock("held_out", there), *again]))


def _yes_no(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set's answers are yes or no, by its settings."""
    return dataset["name"] in DATASETS and bool(DATASETS[dataset["name"]].measures_of(str(dataset["rule"])))
