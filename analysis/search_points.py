"""The points of a search that an analysis may count: complete, different, and drawn by the sampler.

Everything is read from a finished study's trials on the tuning split, at one condition at a time. Trials that are left
out are counted, with the reason.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tdrs.analysis.evidence import condition_name
from tdrs.checked_file import Damaged
from tdrs.records import Records
from tdrs.results import alike, check_same_samples
from tdrs.settings import SettingError, check_choice
from tdrs.sweeps.protocol import UNBIASED, conditions
from tdrs.sweeps.sampled import OBJECTIVES, configured
from tdrs.sweeps.space import Space
from tdrs.sweeps.trial import COMPLETE, PRUNED, STOCK, Outcome, Request, Settings, Trial

POINTS = {"sampled": "search", "points": "point"}  # protocols whose points are analysed: protocol → name of its points
EARLY, FAILURES, EQUAL = "ended early", "failed", "edit as an earlier point does"
GIVEN, UNMEASURED, OUTSIDE = "were given in search.start", "have no value of the objective", "lie outside the space"


class SearchPoints(NamedTuple):
    """The points of a search at one condition.

    Attributes:
        sampler: what drew the points.
        objective: `accuracy` or `margin`.
        history: status and value of every trial, in the order of asking; the value is nan if there is none.
        drawn: complete, different points that the sampler drew.
        measured: all complete, different points, those that were given included.
        left_out: how many trials are not in `drawn`, by reason.
        stock: the stock model's value on the tuning split; None if it was not measured.
    """

    condition: str
    space: Space
    sampler: str
    objective: str
    history: list[tuple[str, float]]
    drawn: list[Trial]
    measured: list[Trial]
    left_out: dict[str, int]
    stock: float | None

    @property
    def unbiased(self) -> bool:
        """Whether the sampler drew points without looking at results."""
        return self.sampler in UNBIASED

    @property
    def values(self) -> np.ndarray:
        """The objective of the points in `drawn`."""
        return np.array([trial.metrics[self.objective] for trial in self.drawn])

    @property
    def best(self) -> Trial:
        """The measured point with the highest objective, the earliest among equals; there must be one."""
        return max(self.measured, key=lambda trial: trial.metrics[self.objective])

    @property
    def counted(self) -> str:
        """How many trials are counted, and how many are left out for which reason, in a sentence."""
        left = "; ".join(f"{number} {reason}" for reason, number in self.left_out.items())
        asked = len(self.history)
        text = f"{len(self.drawn)} of {asked} trials are counted"
        return f"{text}; left out: {left}." if left else f"{text}: all are complete and different."


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
    # points of a sampler that looks at results are biased as a whole, so those given beforehand are no worse
    given = _given(outcome, condition, space) if search["sampler"] in UNBIASED else 0
    history: list[tuple[str, float]] = []
    drawn: dict[str, Trial] = {}
    measured: dict[str, Trial] = {}
    left_out: Counter[str] = Counter()
    for number, trial in enumerate(trials):
        known = trial.status == PRUNED or objective in trial.metrics
        value = trial.value(objective) if trial.status in (COMPLETE, PRUNED) and known else math.nan
        history.append((trial.status, value))
        if trial.status == PRUNED:
            left_out[EARLY] += 1
        elif trial.status != COMPLETE:
            left_out[FAILURES] += 1
        elif not math.isfinite(value):
            left_out[UNMEASURED] += 1
        elif space.params(trial.settings) is None:
            left_out[OUTSIDE] += 1
        else:
            measured.setdefault(trial.cache_key, trial)
            if number < given:
                left_out[GIVEN] += 1
            elif drawn.setdefault(trial.cache_key, trial) is not trial:
                left_out[EQUAL] += 1
    return SearchPoints(
        condition_name(outcome, condition), space, search["sampler"], objective, history,
        [*drawn.values()], [*measured.values()], dict(left_out), stock[0] if stock else None,
    )  # fmt: skip


def _given(outcome: Outcome, condition: Settings, space: Space) -> int:
    """How many of the first points of a condition were given beforehand rather than drawn."""
    start = list(outcome.config["search"].get("start", ()))
    if outcome.protocol != "sampled":
        return len(start)
    own = configured(outcome.config, Request("", "", {}, condition).merged, list(space.parts))
    return sum(space.params({**own, **one}) is not None for one in [{}, *start])


class ImageSums(NamedTuple):
    """The objective of points image by image.

    Attributes:
        sums: of the weighted values, points × images.
        counts: of the weights, by image.
    """

    sums: np.ndarray
    counts: np.ndarray

    def drawn(self, times: np.ndarray) -> np.ndarray:
        """The objective of each point if each image is drawn so many times: (points,) for (images,)."""
        return self.sums @ times / (self.counts @ times)


def image_sums(trials: Sequence[Trial], objective: str, records: Records) -> ImageSums | str:
    """The objective of trials image by image, from their records; or why there is none, in words."""
    rows = []
    first = None
    counts: np.ndarray = np.zeros(0)
    for trial in trials:
        try:
            found = records.read(trial.cache_key).records
            first = first or found
            check_same_samples(first, found, trial.name)
        except FileNotFoundError:
            return "records of a point are missing"
        except (Damaged, SettingError) as error:
            return f"records of a point cannot be used: {error}"
        _, index = np.unique([record.image_id for record in found], return_inverse=True)
        weights = np.array([record.weight for record in found])
        values = np.array([record.margin if objective == "margin" else record.score for record in found])
        rows.append(np.bincount(index, weights=values * weights))
        counts = np.bincount(index, weights=weights)
        if not alike(rows[-1].sum() / counts.sum(), trial.metrics[objective]):
            return f"the mean {objective} of a point's records is not the {objective} of its trial"
    if len(counts) < 2:
        return "all samples are of one image"
    return ImageSums(np.array(rows), counts)
