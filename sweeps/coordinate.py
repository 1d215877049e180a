"""The protocol of the paper's Figure 3: it tunes one setting after the other.

For every series (a reading, such as `gain=logits`) and every step in order, it measures all values of the step's
setting on the tuning split. Earlier settings are fixed at their best, later ones at the paper's value. Ties go to the
paper's value, then to the value nearest to it. A second round repeats the steps from where the first ended. Then it
measures on the held-out split: the stock model, each series at the paper's settings and at its best, and the controls.
With axes, all this happens at each condition (see `sweeps/protocol.py`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tdrs.settings import SettingError, build, check_number

from .protocol import Controlled, Look, Steps, by_dataset, stock
from .sampled import tune
from .space import check_distinct
from .trial import Curve, Outcome, Request, Settings, Trial, check_method_keys


@dataclass(frozen=True)
class Step:
    """One setting to sweep.

    Args:
        key: the dotted configuration key.
        label: what the figure's axis calls it.
        paper: the paper's value, or values by benchmark (`pope`, also for its twin) and `other`.
        values: a list for all series, or a list for each series by its name; it must contain the paper's value.
        set: settings that change from this step on in the first round, such as the weight that turns a stage on;
            `paper` is the paper's value of the step with that key.
    """

    key: str
    label: str
    paper: float | dict  # type: ignore[type-arg]
    values: list | dict  # type: ignore[type-arg]
    set: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def values_for(self, series: str) -> list[float]:
        return list(self.values[series] if isinstance(self.values, Mapping) else self.values)

    def paper_for(self, dataset: str) -> float:
        """The paper's value on a data set, by its name in `conf/dataset`."""
        return float(by_dataset(self.paper, dataset))


@dataclass(frozen=True, kw_only=True)
class Coordinate(Controlled):
    """A checked `search` group.

    Args:
        series: settings by the series' names.
        start: settings at the beginning that are not the paper's.
        rounds: how often the steps are repeated.
    """

    series: dict  # type: ignore[type-arg]
    steps: tuple[Step, ...]
    start: dict = field(default_factory=dict)  # type: ignore[type-arg]
    rounds: int = 1
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rounds", self.rounds, 1, whole=True)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        given = values.get("steps") or ()
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise SettingError("steps", given, "must be a list of steps")
        steps = [build(Step, step, f"steps[{number}]") for number, step in enumerate(given)]
        search = build(cls, {**values, "steps": tuple(steps)})
        if not search.series or not steps:
            raise SettingError("series" if steps else "steps", None, "must not be empty")
        for series, settings in search.series.items():
            check_method_keys(settings, f"series.{series}")
        check_method_keys(search.start, "start")
        for number, step in enumerate(steps):
            check_method_keys({step.key: step.values}, f"steps[{number}]")
            if isinstance(step.paper, Mapping) and "other" not in step.paper:
                raise SettingError(f"steps[{number}].paper", dict(step.paper), "must have a value for `other`")
            for series in search.series:
                if isinstance(step.values, Mapping) and series not in step.values:
                    raise SettingError(f"steps[{number}].values", list(step.values), f"lacks the series {series}")
                for value in step.values_for(series):
                    check_number(f"steps[{number}].values", value, -math.inf)
                check_distinct(step.values_for(series), f"steps[{number}].values")
            for key, value in step.set.items():
                if value == "paper" and key not in {other.key for other in steps}:
                    raise SettingError(f"steps[{number}].set.{key}", value, "no step has this key")
            check_method_keys(step.set, f"steps[{number}].set")
        return search

    def paper(self, series: str, dataset: str) -> Settings:
        """All steps at the paper's values, under the series' own settings."""
        return {step.key: step.paper_for(dataset) for step in self.steps} | self.series[series]

    def initial(self, series: str, dataset: str) -> Settings:
        """Where a series starts: the paper's values, then `start`, then the series' own settings."""
        return self.paper(series, dataset) | self.start | self.series[series]

    def set_from(self, step: Step, dataset: str) -> Settings:
        """What changes from a step on."""
        paper = {other.key: other.paper_for(dataset) for other in self.steps}
        return {key: paper[key] if value == "paper" else value for key, value in step.set.items()}

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        name = condition.get("dataset", dataset)
        yield from (stock(split, condition) for split in ("tuning", "held_out"))
        for series in self.series:
            for step in self.steps:
                if step.paper_for(name) not in step.values_for(series):
                    allowed = f"must contain the paper's {step.paper_for(name):g}"
                    raise SettingError(f"search.steps.{step.key}.values", step.values_for(series), allowed)
                for value in step.values_for(series):
                    settings = self.initial(series, name) | self.set_from(step, name) | {step.key: value}
                    yield Request(series, "tuning", settings, condition)
        for row in self.reported():
            yield from row.possible(condition, dataset)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Each step's values, and the series' settings."""
        found: dict[str, BaseDistribution] = {}
        for step in self.steps:
            values = [value for series in self.series for value in step.values_for(series)]
            values += [value for value in [self.start.get(step.key)] if isinstance(value, int | float)]
            found[step.key] = FloatDistribution(min(values), max(values))
        for key in dict.fromkeys(key for settings in self.series.values() for key in settings):
            given = [settings[key] for settings in self.series.values() if key in settings]
            found[key] = CategoricalDistribution(list(dict.fromkeys(given)))
        return found

    def tuned(self, condition: Settings, dataset: str, outcome: Outcome) -> Steps[dict[str, Settings]]:
        """Ask for the steps of all series at a condition; adds trials and curves to the outcome.

        Returns:
            The settings at which each series ended.
        """
        current = {series: self.initial(series, dataset) for series in self.series}
        for number in range(1, self.rounds + 1):
            for step in self.steps:
                requests: list[Request] = []
                for series in self.series:
                    if number == 1:
                        current[series] |= self.set_from(step, dataset)
                    for value in step.values_for(series):
                        requests.append(Request(series, "tuning", {**current[series], step.key: value}, condition))
                measured = yield requests
                paper = step.paper_for(dataset)
                for series in self.series:
                    values = step.values_for(series)
                    mine = [trial for trial in measured if trial.name == series]
                    best = chosen(values, mine, paper)
                    current[series] = {**current[series], step.key: best}
                    at = [len(outcome.trials) + n for n in range(len(mine))]
                    curve = Curve(series, condition, number, step.key, step.label, paper, values, at, best)
                    outcome.curves.append(curve)
                    outcome.trials.extend(mine)
        return current

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        dataset = condition.get("dataset", outcome.config["dataset"]["name"])
        outcome.trials.extend((yield [stock("tuning", condition)]))
        first = len(outcome.curves)
        ends = yield from self.tuned(condition, dataset, outcome)
        requests = [stock("held_out", condition)]
        for series in self.series:
            requests.append(Request(f"{series}, paper", "held_out", self.paper(series, dataset), condition))
            asked = sum(len(curve.trials) for curve in outcome.curves[first:] if curve.series == series)
            requests.append(Request(f"{series}, tuned", "held_out", ends[series], condition, budget=asked))
        controls, tried = yield from tune(self, condition, outcome.config)
        outcome.trials.extend(tried)
        outcome.rows.extend((yield [*requests, *controls]))


def chosen(values: Sequence[float], trials: Sequence[Trial], paper: float) -> float:
    """The value with the highest score; among equals the paper's, then the one nearest to it in rank."""
    order = sorted(values)
    rank = order.index(paper)
    found = max(zip(values, trials, strict=True), key=lambda p: (p[1].score, -abs(order.index(p[0]) - rank)))
    return found[0]
