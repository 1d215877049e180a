"""The protocol of the paper's Figure 3: one setting after the other, each at its best before the next begins.

For every series (a reading, say `gain=logits`) and every step in order, all values of the step's setting are measured,
the earlier settings fixed at their best, the later ones at the paper's value. Ties go to the paper's value, then to
the value nearest to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tdrs.settings import SettingError, build

Settings = dict[str, Any]  # dotted configuration key → value


@dataclass(frozen=True)
class Step:
    """One setting to sweep.

    Args:
        key: the dotted configuration key.
        label: what the figure's axis calls it.
        paper: the paper's value; must be among the values.
        values: a list for all series, or a list for each series by its name.
        set: settings that change from this step on, e.g. the weight that turns a stage on.
    """

    key: str
    label: str
    paper: float
    values: list | dict  # type: ignore[type-arg]
    set: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def values_for(self, series: str) -> list[float]:
        return list(self.values[series] if isinstance(self.values, Mapping) else self.values)


@dataclass(frozen=True)
class Coordinate:
    """A checked `search` group."""

    protocol: str
    series: dict  # type: ignore[type-arg]
    steps: tuple[Step, ...]
    start: dict = field(default_factory=dict)  # type: ignore[type-arg]

    @property
    def trials(self) -> int:
        """Measurements in all, repeated ones included."""
        return sum(len(step.values_for(series)) for series in self.series for step in self.steps)

    def initial(self, series: str) -> Settings:
        """Where a series starts: every step at the paper's value, then `start`, then the series' own settings."""
        return {step.key: step.paper for step in self.steps} | self.start | self.series[series]

    def paper(self, series: str) -> Settings:
        """All steps at the paper's values, under the series' own settings."""
        return {step.key: step.paper for step in self.steps} | self.series[series]

    def possible(self) -> Iterator[Settings]:
        """Every value a trial could have, to be checked before the first one runs."""
        for series in self.series:
            for step in self.steps:
                for value in step.values_for(series):
                    yield self.initial(series) | step.set | {step.key: value}


def from_settings(values: Mapping[str, Any]) -> Coordinate:
    """The protocol out of the `search` group.

    Raises:
        SettingError: a name is unknown, a list is empty, or the paper's value is not in it.
    """
    try:
        steps = [build(Step, step, f"steps[{number}]") for number, step in enumerate(values.get("steps") or ())]
        search = build(Coordinate, {**values, "steps": tuple(steps)})
        if search.protocol != "coordinate":
            raise SettingError("protocol", search.protocol, "must be coordinate")
        if not search.series or not steps:
            raise SettingError("series" if steps else "steps", None, "must not be empty")
        for number, step in enumerate(steps):
            for series in search.series:
                if isinstance(step.values, Mapping) and series not in step.values:
                    raise SettingError(f"steps[{number}].values", list(step.values), f"lacks the series {series}")
                if step.paper not in step.values_for(series):
                    raise SettingError(
                        f"steps[{number}].values", step.values_for(series), f"must contain the paper's {step.paper:g}"
                    )
    except SettingError as error:
        raise error.under("search") from None
    return search


@dataclass(frozen=True)
class Point:
    """One value of a step: the whole settings it was measured under, and its metrics on the tuning split."""

    value: float
    settings: Settings
    metrics: dict[str, float]

    @property
    def score(self) -> float:
        return self.metrics["accuracy"]


@dataclass(frozen=True)
class Curve:
    """One step of one series, measured."""

    series: str
    step: Step
    points: list[Point]

    @property
    def best(self) -> Point:
        """The highest score; among equals the paper's value, then the value nearest to it in rank."""
        order = [point.value for point in sorted(self.points, key=lambda p: p.value)]
        paper = order.index(self.step.paper)
        return max(self.points, key=lambda p: (p.score, -abs(order.index(p.value) - paper)))


def run(search: Coordinate, measure: Callable[[str, Settings], dict[str, float]]) -> list[Curve]:
    """Measure all series; `measure(series, settings)` returns the metrics of settings on the tuning split."""
    curves: list[Curve] = []
    for series in search.series:
        current = search.initial(series)
        for step in search.steps:
            current |= step.set
            points = []
            for value in step.values_for(series):
                settings = {**current, step.key: value}
                points.append(Point(value, settings, measure(series, settings)))
            curves.append(Curve(series, step, points))
            current = dict(curves[-1].best.settings)
    return curves


def best_settings(curves: Sequence[Curve], series: str) -> Settings:
    """Where a series ended."""
    return [curve for curve in curves if curve.series == series][-1].best.settings
