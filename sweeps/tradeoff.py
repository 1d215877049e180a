"""The protocol that looks for what a gain costs: points of each method's space that no other point of it dominates.

    objectives:
      - {metric: accuracy, at: {dataset.gap: 256}}
      - {metric: kl, at: {dataset.gap: 0}}

An objective is a metric at some of the conditions: at those that have all values of `at`, and their mean if there are
several. Its direction follows from the metric. Every point is measured at every condition on the tuning split; Optuna's
sampler is told one value an objective. The Pareto front of each method on the tuning split, thinned to `front` points,
is measured on the held-out split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import optuna
from optuna.trial import TrialState

from tdrs.settings import SettingError, build, check_choice, check_number

from .joint import Joint, Point
from .protocol import SAMPLERS, Look, MethodRow, Steps, no_records, objective_value, silent_optuna, stock
from .sampled import configured
from .trial import COMPLETE, PLANNED, STOCK, Outcome, Settings, Trial

Direction = Literal["maximize", "minimize"]
GAINS = ("accuracy", "margin")  # what the first objective may be
# `kl` is that of a trial; `time` is the time of a sample beside the stock model's. It depends on the machine, and so do
# points that are chosen by it.
METRICS: dict[str, Direction] = {"accuracy": "maximize", "margin": "maximize", "kl": "minimize", "time": "minimize"}


@dataclass(frozen=True)
class Objective:
    """A metric at some conditions.

    Args:
        metric: one of `METRICS`.
        at: what its conditions have in common; nothing for all conditions.
    """

    metric: str
    at: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, list(METRICS))

    @property
    def direction(self) -> Direction:
        """`maximize` or `minimize`."""
        return METRICS[self.metric]

    def __str__(self) -> str:
        where = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.at.items())
        return f"{self.metric} at {where}" if where else self.metric

    def holds(self, condition: Settings) -> bool:
        """Whether the metric is taken at a condition."""
        return all(key in condition and condition[key] == value for key, value in self.at.items())


@dataclass(frozen=True, kw_only=True)
class Tradeoff(Joint):
    """A checked `search` group.

    Args:
        objectives: at least two; the first one is what is gained, the others are what it costs.
        budget: points of each method's space on the tuning split, the first at its own settings.
        at_once: points that are chosen before the results of any of them are known.
        front: the most points of each method that are reported.
    """

    adaptive: ClassVar[bool] = True
    needs_kl: ClassVar[bool] = True
    objectives: tuple = ()  # type: ignore[type-arg]
    budget: int = 24
    at_once: int = 4
    front: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("at_once", self.at_once, 1, whole=True)
        check_number("front", self.front, 1, whole=True)
        found = self.parsed
        if len(found) < 2:
            raise SettingError(
                "objectives", list(self.objectives), "must be at least two: what is gained, and the cost"
            )
        if found[0].metric not in GAINS:
            allowed = f"is what is gained: must be one of {', '.join(GAINS)}"
            raise SettingError("objectives[0].metric", found[0].metric, allowed)
        for number, one in enumerate(found):
            if not any(one.holds(condition) for condition in self.conditions):
                raise SettingError(f"objectives[{number}].at", one.at, "is at none of the conditions of search.axes")
            if one in found[:number]:
                raise SettingError(f"objectives[{number}]", self.objectives[number], "is there twice")

    @property
    def parsed(self) -> list[Objective]:
        """The objectives; raises SettingError."""
        return [build(Objective, one, f"objectives[{number}]") for number, one in enumerate(self.objectives)]

    @property
    def directions(self) -> list[Direction]:
        """Of each objective, `maximize` or `minimize`: those of Optuna's study."""
        return [one.direction for one in self.parsed]

    def values(self, point: Point, baselines: Sequence[Trial]) -> list[float] | None:
        """The value of each objective at a point; None if it is not complete.

        Args:
            baselines: the stock model's trials at every condition.

        Raises:
            SettingError: records do not have the distributions that `kl` needs.
        """
        if not point.complete or not all(trial.status == COMPLETE for trial in baselines):
            return None
        found = []
        for one in self.parsed:
            pairs = [pair for pair in zip(point.trials, baselines, strict=True) if one.holds(pair[0].condition)]
            values = [_value(one.metric, trial, baseline) for trial, baseline in pairs]
            found.append(sum(values) / len(values))
        return found

    def valued(self, outcome: Outcome) -> list[tuple[MethodRow, Settings, list[float] | None]]:
        """The points of an outcome in the order of asking: method row, point of its space, and values of objectives."""
        rows = {row.name: row for row in self.reported()}
        baselines = [trial for trial in outcome.trials if trial.name == STOCK][: len(self.conditions)]
        points: dict[tuple[str, str], Point] = {}
        for trial in outcome.trials:
            if trial.name != STOCK:
                space = rows[trial.name].space
                settings = {key: trial.settings[key] for key in space.parts} if space else {}
                points.setdefault((trial.name, repr(settings)), Point(settings, [])).trials.append(trial)
        first = [(name, Point(point.settings, point.trials[: len(baselines)])) for (name, _), point in points.items()]
        return [(rows[name], point.settings, self.values(point, baselines)) for name, point in first]

    def run(self, config: dict[str, Any], look: Look = no_records) -> Steps[Outcome]:
        outcome = Outcome(str(config["study"]["name"]), self.protocol, config, [], [])
        baselines = yield [stock("tuning", condition) for condition in self.conditions]
        outcome.trials.extend(baselines)
        chosen: dict[str, tuple[MethodRow, Settings]] = {}
        for row in self.reported():
            found, measured = yield from self._sample(row, baselines, config)
            outcome.trials.extend(trial for point in measured for trial in point.trials)
            for number, point in enumerate(found, 1):
                chosen[front_name(row.name, number)] = row, point.settings
        yield from self.report(chosen, outcome)
        return outcome

    def _sample(
        self, row: MethodRow, baselines: Sequence[Trial], config: dict[str, Any]
    ) -> Steps[tuple[list[Point], list[Point]]]:
        """Ask for points of a row's space; returns its thinned front, the least costly point first, and all points."""
        space = row.space
        assert space is not None
        first = self.request(row, "tuning", {}, self.conditions[0], config).merged
        start = space.params(configured(config, first, list(space.parts)))
        with silent_optuna():
            study = optuna.create_study(directions=self.directions, sampler=SAMPLERS[self.sampler](self.seed))
        if start is not None:
            study.enqueue_trial(start)
        points: list[Point] = []
        valued: list[tuple[Point, list[float]]] = []
        while len(points) < self.budget:
            with silent_optuna():
                count = min(self.at_once, self.budget - len(points))
                asked = [study.ask(space.distributions()) for _ in range(count)]
            measured = yield from self.measure(row, [space.settings(one.params) for one in asked], config)
            for waiting, point in zip(asked, measured, strict=True):
                values = self.values(point, baselines)
                if values is None:
                    study.tell(waiting, state=TrialState.FAIL)
                else:
                    study.tell(waiting, values)
                    valued.append((point, values))
                points.append(point)
        best = pareto_front([values for _, values in valued], self.directions)
        best.sort(key=lambda number: (_costs(valued[number][1], self.directions), number))
        gains = [valued[number][1][0] for number in best]
        found = [valued[best[at]][0] for at in thinned(gains, self.front)]
        everything = [*baselines, *(trial for point in points for trial in point.trials)]
        if not found and any(trial.status == PLANNED for trial in everything):
            found = points[: self.front]  # in a plan, where nothing is measured yet, any points
        return found, points


def front_name(method: str, number: int) -> str:
    """The name of a reported row: a method's point on its front, from 1, the least costly first."""
    return f"{method}, point {number}"


def _value(metric: str, trial: Trial, baseline: Trial) -> float:
    if metric == "time":
        return (trial.seconds / trial.n) / (baseline.seconds / baseline.n) if baseline.seconds else 1.0
    if metric != "kl":
        return objective_value(trial, metric)
    if trial.kl is None:
        which = f"the records {trial.cache_key} or the stock model's {baseline.cache_key}"
        allowed = f"{which} have no first-token distributions: an earlier version made them; move them away"
        raise SettingError("search.objectives", metric, allowed)
    return trial.kl


def _costs(values: Sequence[float], directions: Sequence[str]) -> tuple[float, ...]:
    """What a point costs, the second objective first, then what it gains: smaller is better."""
    signed = [-value if direction == "maximize" else value for value, direction in zip(values, directions, strict=True)]
    return (*signed[1:], signed[0])


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """The numbers of the points that no other point dominates, in order; of equal points, the first.

    A point dominates another if it is at least as good in every objective, and better in one.

    Args:
        points: values of the objectives.
        directions: `maximize` or `minimize`, of each objective.
    """
    costs = [_costs(values, directions) for values in points]

    def dominated(number: int) -> bool:
        mine = costs[number]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or at < number)
            for at, other in enumerate(costs)
            if at != number
        )

    return [number for number in range(len(costs)) if not dominated(number)]


def thinned(values: Sequence[float], most: int) -> list[int]:
    """The numbers of at most `most` values, in their order: the lowest, the highest, and those nearest to even steps
    between them. With `most` of 1 it is the highest."""
    order = sorted(range(len(values)), key=lambda number: (values[number], number))
    if len(order) <= most:
        return list(range(len(values)))
    chosen = [order[-1]] if most == 1 else [order[0], order[-1]]
    low, high = values[order[0]], values[order[-1]]
    for step in range(1, most - 1):
        target = low + step * (high - low) / (most - 1)
        left = [number for number in order if number not in chosen]
        chosen.append(min(left, key=lambda number: abs(values[number] - target)))
    return sorted(chosen)
