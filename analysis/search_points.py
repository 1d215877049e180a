"""The points of a search that an analysis may count: complete, different, and drawn by the sampler.

Everything is read from a finished study's trials on the tuning split, at one condition at a time. Trials that are left
out are counted, with the reason.

A race measures the points of an evenly spread sequence, half of them in order and half of them because they look good.
So the longest beginning of the sequence that it measured whole is what a sampler draws that looks at no results.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tdrs import interventions
from tdrs.analysis.evidence import condition_name
from tdrs.analysis.search_scores import Scores
from tdrs.configuration import with_settings
from tdrs.settings import SettingError, check_choice
from tdrs.sweeps.protocol import UNBIASED, conditions
from tdrs.sweeps.race import sequence
from tdrs.sweeps.sampled import OBJECTIVES, configured
from tdrs.sweeps.space import Space
from tdrs.sweeps.trial import COMPLETE, PRUNED, STOCK, Outcome, Request, Settings, Trial

# protocols whose points are analysed: protocol → name of its points
POINTS = {"sampled": "search", "points": "point", "raced": "search"}
EARLY, FAILURES, EQUAL = "ended early", "failed", "edit as an earlier point does"
GIVEN, UNMEASURED, OUTSIDE = "were given in search.start", "have no value of the objective", "lie outside the space"
CHOSEN = "were given, or chosen by looking at results"


class SearchPoints(NamedTuple):
    """The points of a search at one condition.

    Attributes:
        sampler: what drew the points.
        objective: `accuracy` or `margin`.
        trials: every trial, in the order of asking.
        drawn: different points that the sampler drew, and that count: complete ones, or in a race all.
        measured: all different points that count, those that were given included.
        left_out: how many trials are not in `drawn`, by reason.
        stock: the stock model's value on the tuning split; None if it was not measured.
        raced: whether points saw the first samples only, some of them more than others.
        chosen: the settings that a race chose; None if it is not known, or no race.
        estimates: in a race, the value of each point over all samples, by cache key; see `estimated`.
    """

    condition: str
    space: Space
    sampler: str
    objective: str
    trials: list[Trial]
    drawn: list[Trial]
    measured: list[Trial]
    left_out: dict[str, int]
    stock: float | None
    raced: bool = False
    chosen: Settings | None = None
    estimates: Mapping[str, float] = {}

    def value(self, trial: Trial) -> float:
        """The objective of a trial over all samples; nan if it is not known."""
        if trial.cache_key in self.estimates:
            return self.estimates[trial.cache_key]
        if trial.status == PRUNED and not self.raced:
            return trial.value(self.objective)
        return trial.metrics.get(self.objective, math.nan) if trial.status == COMPLETE else math.nan

    def estimated(self, scores: Scores) -> "SearchPoints":
        """The points of a race with their values estimated over all samples.

        Args:
            scores: of the points in `measured`.
        """
        means = scores.means.clip(0, 1) if self.objective == "accuracy" else scores.means
        found = zip(self.measured, means, strict=True)
        return self._replace(estimates={trial.cache_key: float(value) for trial, value in found})

    @property
    def history(self) -> list[tuple[str, float]]:
        """Status and value of every trial, in the order of asking; the value is nan if there is none."""
        return [(trial.status, self.value(trial)) for trial in self.trials]

    @property
    def unbiased(self) -> bool:
        """Whether the sampler drew points without looking at results."""
        return self.sampler in UNBIASED

    @property
    def values(self) -> np.ndarray:
        """The objective of the points in `drawn`."""
        return np.array([self.value(trial) for trial in self.drawn])

    @property
    def complete(self) -> list[Trial]:
        """The points in `measured` that saw all samples."""
        return [trial for trial in self.measured if trial.status == COMPLETE]

    @property
    def best(self) -> Trial:
        """The point that a race chose, or the complete one with the highest objective, the earliest among equals."""
        chosen = [trial for trial in self.complete if trial.settings == self.chosen]
        return chosen[0] if chosen else max(self.complete, key=self.value)

    @property
    def counted(self) -> str:
        """How many trials are counted, and how many are left out for which reason, in a sentence."""
        left = "; ".join(f"{number} {reason}" for reason, number in self.left_out.items())
        asked = len(self.history)
        text = f"{len(self.drawn)} of {asked} trials are counted"
        if left:
            return f"{text}; left out: {left}."
        return f"{text}: all are different." if self.raced else f"{text}: all are complete and different."


def has_points(outcome: Outcome) -> bool:
    """Whether a study's protocol measures points of one search space."""
    return outcome.protocol in POINTS


def own_objective(outcome: Outcome) -> str:
    """The metric that a study searched for; `accuracy` for the protocol `points`, which has none."""
    return str(outcome.config["search"].get("objective", "accuracy"))


def search_points(outcome: Outcome, objective: str | None = None) -> list[SearchPoints]:
    """The points of a study, one item for each condition.

    Args:
        objective: `accuracy` or `margin`; None is the study's own, and `accuracy` for the protocol `points`, which has
            none.

    Raises:
        SettingError: the study's protocol has no search space, or there is no such objective.
    """
    if not has_points(outcome):
        allowed = f"has no search space: its protocol is {outcome.protocol}, and must be one of {', '.join(POINTS)}"
        raise SettingError("study", outcome.name, allowed)
    search = outcome.config["search"]
    objective = own_objective(outcome) if objective is None else objective
    check_choice("objective", objective, OBJECTIVES)
    space = Space.of(search["space"], "search.space")
    return [_points_at(outcome, condition, space, objective) for condition in conditions(search["axes"])]


def _points_at(outcome: Outcome, condition: Settings, space: Space, objective: str) -> SearchPoints:
    search = outcome.config["search"]
    here = [trial for trial in outcome.trials if trial.split == "tuning" and trial.condition == condition]
    trials = [trial for trial in here if trial.name == POINTS[outcome.protocol]]
    stock = [trial.metrics[objective] for trial in here if trial.name == STOCK and objective in trial.metrics]
    raced = outcome.protocol == "raced"
    sampler = "qmc" if raced else search["sampler"]  # a race's sampler is that of its controls
    points = SearchPoints(
        condition_name(outcome, condition), space, sampler, objective, trials,
        [], [], {}, stock[0] if stock else None, raced, _chosen(outcome, condition) if raced else None,
    )  # fmt: skip
    drawn: dict[str, Trial] = {}
    measured: dict[str, Trial] = {}
    left_out: Counter[str] = Counter()
    # points of a sampler that looks at results are biased as a whole, so those given beforehand are no worse
    given = _given(outcome, condition, space) if not raced and sampler in UNBIASED else 0
    spread = _beginning(outcome, condition, space, trials) if raced else []
    for number, trial in enumerate(trials):
        if trial.status == PRUNED and not raced:
            left_out[EARLY] += 1
        elif trial.status not in (COMPLETE, PRUNED):
            left_out[FAILURES] += 1
        elif not math.isfinite(trial.metrics.get(objective, math.nan)):
            left_out[UNMEASURED] += 1
        elif space.params(trial.settings) is None:
            left_out[OUTSIDE] += 1
        else:
            measured.setdefault(trial.cache_key, trial)
            if number < given:
                left_out[GIVEN] += 1
            elif raced and trial.settings not in spread:
                left_out[CHOSEN] += 1
            elif drawn.setdefault(trial.cache_key, trial) is not trial:
                left_out[EQUAL] += 1
    return points._replace(drawn=[*drawn.values()], measured=[*measured.values()], left_out=dict(left_out))


def _chosen(outcome: Outcome, condition: Settings) -> Settings | None:
    """The settings that a race chose at a condition: those of the row that a budget was spent on."""
    rows = [row for row in outcome.rows if row.condition == condition and row.name.startswith("best of ")]
    return rows[0].settings if rows else None


def _beginning(outcome: Outcome, condition: Settings, space: Space, trials: list[Trial]) -> list[Settings]:
    """The longest beginning of a race's sequence in which each point was measured, or edits as one that was.

    A race measures a point that edits as an earlier one does, and does not keep it.
    """

    def edit(settings: Settings) -> Any:
        merged = with_settings(outcome.config, Request("", "", settings, condition).merged)
        return json.dumps(interventions.from_settings(merged["intervention"]).effective, sort_keys=True)

    known = [trial.settings for trial in trials]
    found: list[Settings] = []
    try:
        edits = {edit(settings) for settings in known}
        for settings in sequence(space, outcome.config["search"]["seed"]):
            if settings not in known and edit(settings) not in edits:
                break
            found.append(settings)
    except SettingError:  # a method of a package that is not installed here: what edits alike is not known
        return [settings for settings in found if settings in known]
    return found


def _given(outcome: Outcome, condition: Settings, space: Space) -> int:
    """How many of the first points of a condition were given beforehand rather than drawn."""
    start = list(outcome.config["search"].get("start", ()))
    if outcome.protocol != "sampled":
        return len(start)
    own = configured(outcome.config, Request("", "", {}, condition).merged, list(space.parts))
    return sum(space.params({**own, **one}) is not None for one in [{}, *start])
