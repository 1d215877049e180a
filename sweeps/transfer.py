"""The protocol that asks whether one setting serves all conditions.

Points of each method's space are measured at every condition on the tuning split. For each condition the point with the
highest accuracy there is chosen, and one point for all: the one with the highest mean accuracy over conditions. Each of
these is reported on the held-out split of every condition.

The points are the same at every condition and do not depend on results (QMC or random), so no condition's choice has
had more of a search than another's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tdrs.settings import SettingError

from .joint import Joint, Point
from .protocol import UNBIASED, Look, MethodRow, Steps, best, no_records, spread, stock
from .sampled import configured
from .trial import Outcome, Settings

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Transfer(Joint):
    """A checked `search` group.

    Args:
        budget: points of each method's space on the tuning split, the first at its own settings.
        sampler: `qmc` or `random`.
    """

    budget: int = 24
    sampler: str = "qmc"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler not in UNBIASED:
            allowed = "must be qmc or random: all conditions choose among the same points"
            raise SettingError("sampler", self.sampler, allowed)

    @property
    def sources(self) -> list[str]:
        """What settings are tuned on: each condition by its name, then `ALL` of them."""
        return [*map(self.named, self.conditions), ALL]

    def run(self, config: dict[str, Any], look: Look = no_records) -> Steps[Outcome]:
        outcome = Outcome(str(config["study"]["name"]), self.protocol, config, [], [])
        outcome.trials.extend((yield [stock("tuning", condition) for condition in self.conditions]))
        chosen: dict[str, tuple[MethodRow, Settings]] = {}
        for row in self.reported():
            points = yield from self.measure(row, self._points(row, config), config)
            outcome.trials.extend(trial for point in points for trial in point.trials)
            for source, number in zip(self.sources, chosen_points(points), strict=True):
                chosen[source_name(row.name, source)] = row, points[number].settings
        yield from self.report(chosen, outcome)
        return outcome

    def _points(self, row: MethodRow, config: dict[str, Any]) -> list[Settings]:
        """The configured point, if it lies in the space, and others that the sampler spreads over the space."""
        space = row.space
        assert space is not None
        first = self.request(row, "tuning", {}, self.conditions[0], config).merged
        start = space.params(configured(config, first, list(space.parts)))
        return spread(space, self.sampler, self.seed, self.budget, start)


def source_name(method: str, source: str) -> str:
    """The name of a reported row: a method, tuned on a condition or on all."""
    return f"{method}, tuned on {source}"


def chosen_points(points: Sequence[Point]) -> list[int]:
    """For each condition the number of the point with the highest accuracy there, then that with the highest mean.

    Of equal points it is the earliest. A point that is not complete at a condition is not chosen for it.
    """
    count = len(points[0].trials)
    found = []
    for at in range(count):
        trials = [point.trials[at] for point in points]
        found.append(next(number for number, one in enumerate(trials) if one is best(trials, "accuracy")))
    means = [
        sum(trial.metrics["accuracy"] for trial in point.trials) / count if point.complete else float("-inf")
        for point in points
    ]
    return [*found, means.index(max(means))]
