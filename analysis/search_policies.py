"""Searches, replayed on a table of points (`analysis/search_table.py`). None of them sees the held-out split.

Each one gives its *trajectory*: how many tuning samples it has measured, and the number of the point that it would
choose then. A search that asks for points of the whole space gets the nearest point of the table that it has not had,
and is told so.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from tdrs.analysis.search_table import Table
from tdrs.sweeps.arms import Values
from tdrs.sweeps.protocol import SAMPLERS, silent_optuna
from tdrs.sweeps.race import Encoder, Race
from tdrs.sweeps.sampled import expected_difference

Trajectory = list[tuple[int, int]]  # samples measured so far, and the number of the point that would be chosen
Policy = Callable[[Table, int, int], Trajectory]  # of a table, a seed and the largest number of samples

BATCH = 32  # samples of a batch, after which a trial may be pruned; the race measures half of that at first
REDUCTION = 3  # one in so many trials goes on from a rung of successive halving


class Nearest:
    """Gives the points of a table that are nearest to points of its space, each once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._encoder = Encoder(table.space)
        self._positions = np.array([self._encoder(point) for point in table.points])
        self._free = np.ones(len(table.points), dtype=bool)

    def take(self, params: dict[str, Any]) -> int:
        """The number of the nearest point that was not taken before."""
        here = self._encoder(self._table.space.settings(params))
        far = np.abs(self._positions - here).sum(axis=1)
        number = int(np.where(self._free, far, np.inf).argmin())
        self._free[number] = False
        return number

    @property
    def left(self) -> bool:
        """Whether a point is left."""
        return bool(self._free.any())


def random_search(table: Table, seed: int, samples: int) -> Trajectory:
    """Points in random order, each measured on all samples."""
    return _best_so_far(table, list(range(len(table.points))), samples)


def _best_so_far(table: Table, order: list[int], samples: int) -> Trajectory:
    size, means = len(table.images), table.tuning

    def better(one: int, other: int) -> int:
        return other if means[other] > means[one] else one

    return [(n * size, best) for n, best in enumerate(accumulate(order[: samples // size], better), start=1)]


def sampled(sampler: Callable[[int], BaseSampler], told: bool = True, trials: int | None = None) -> Policy:
    """The policy that measures each point that an Optuna sampler asks for on all samples.

    Args:
        told: whether the sampler is told of the table's point. If not, it is told the value of that point as if it
            were the one that it asked for: CMA-ES only learns from trials of its own.
        trials: the largest number of trials, for samplers that take long.
    """

    def search(table: Table, seed: int, samples: int) -> Trajectory:
        size, means, distributions = len(table.images), table.tuning, table.space.distributions()
        nearest, order = Nearest(table), []
        with silent_optuna():
            study = optuna.create_study(direction="maximize", sampler=sampler(seed))
            for _ in range(min(samples // size, trials or samples)):
                if not nearest.left:
                    break
                asked = study.ask(distributions)
                number = nearest.take(asked.params)
                order.append(number)
                if told:
                    study.tell(asked, state=TrialState.FAIL)
                    study.add_trial(_trial(table, number, float(means[number])))
                else:
                    study.tell(asked, float(means[number]))
        return _best_so_far(table, order, samples)

    return search


def _trial(table: Table, number: int, value: float) -> FrozenTrial:
    """A finished trial at a point of the table."""
    params, distributions = table.space.params(table.points[number]), table.space.distributions()
    return create_trial(params=params, distributions=distributions, value=value)


def halving(pruner: Callable[[int], BasePruner], sampler: Callable[[int], BaseSampler]) -> Policy:
    """The policy that measures points batch by batch, until one of Optuna's pruners ends it.

    Args:
        pruner: of the number of batches that a whole evaluation has.
    """

    def search(table: Table, seed: int, samples: int) -> Trajectory:
        size, spent, found = len(table.images), 0, list[tuple[int, int]]()
        nearest, means, best = Nearest(table), table.tuning, -1
        ends = [*range(BATCH, size, BATCH), size]
        totals = np.cumsum(table.scores[1:] * table.weights, axis=1) / np.cumsum(table.weights)
        with silent_optuna():
            # Hyperband chooses a trial's bracket by the study's name
            study = optuna.create_study(
                study_name=str(seed), direction="maximize", sampler=sampler(seed), pruner=pruner(len(ends))
            )
            while nearest.left and spent + size <= samples:
                trial = study.ask(table.space.distributions())
                number = nearest.take(trial.params)
                seen = _until_pruned(trial, totals[number, np.array(ends) - 1])
                spent += ends[seen - 1]
                whole = seen == len(ends)
                study.tell(trial, None if not whole else float(means[number]), None if whole else TrialState.PRUNED)
                if whole and (best < 0 or means[number] > means[best]):
                    best = number
                if best >= 0:
                    found.append((spent, best))
        return found

    return search


def _until_pruned(trial: Trial, means: np.ndarray) -> int:
    """How many batches are measured until a trial is pruned."""
    for step, mean in enumerate(means.tolist(), start=1):
        trial.report(mean, step)
        if step < len(means) and trial.should_prune():
            return step
    return len(means)


def pruned_tpe(table: Table, seed: int, samples: int) -> Trajectory:
    """TPE on the mean margin; a trial ends early by the rule of `sweeps/sampled.py`."""
    size, spent, found = len(table.images), 0, list[tuple[int, int]]()
    if np.isnan(table.margins).any():
        return found  # its objective was not measured
    means = np.average(table.margins, axis=1, weights=table.weights)
    names, images = table.images.tolist(), len(set(table.images.tolist()))
    nearest, best = Nearest(table), -1
    with silent_optuna():
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS["tpe"](seed))
        while nearest.left and spent + size <= samples:
            asked = study.ask(table.space.distributions())
            number = nearest.take(asked.params)
            seen, value = size, float(means[1 + number])
            for end in range(BATCH, size, BATCH):
                theirs, ours = (table.margins[1 + one, :end].tolist() for one in (best, number))
                less = expected_difference(theirs, ours, names[:end], table.weights[:end].tolist(), images)
                if less is not None:
                    seen, value = end, float(means[1 + best]) + less
                    break
            spent += seen
            study.tell(asked, state=TrialState.FAIL)
            study.add_trial(_trial(table, number, value))
            if seen == size and means[1 + number] > means[1 + best]:  # the first to beat is the stock model, row 0
                best = number
            if best >= 0:
                found.append((spent, best))
    return found


def race(table: Table, seed: int, samples: int) -> Trajectory:
    """The race of `sweeps/race.py` with a budget; its choice at the end."""
    numbers = {repr(point): number for number, point in enumerate(table.points)}

    def values(row: int, upto: int) -> Values:
        return Values(table.scores[row, :upto], table.margins[row, :upto])

    given: dict[str, Any] = {"seed": seed, "points": table.points}
    images, weights, stock = table.images.tolist(), table.weights.tolist(), values(0, len(table.images))
    found = Race(table.space, images, weights, stock, [], samples, **given)
    while asked := found.ask():
        found.tell(asked, [values(1 + numbers[repr(one.settings)], one.upto) for one in asked])
    return [(found.spent, numbers[repr(found.arms[found.chosen()].settings)])]


def _cma_es(seed: int) -> BaseSampler:
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


POLICIES: dict[str, Policy] = {
    "random": random_search,
    "QMC": sampled(SAMPLERS["qmc"]),
    "TPE": sampled(SAMPLERS["tpe"]),
    "GP": sampled(lambda seed: GPSampler(seed=seed), trials=20),
    "CMA-ES": sampled(_cma_es, told=False),
    "ASHA": halving(lambda batches: SuccessiveHalvingPruner(1, REDUCTION), SAMPLERS["random"]),
    "Hyperband": halving(lambda batches: HyperbandPruner(1, batches, REDUCTION), SAMPLERS["tpe"]),
    "pruned TPE": pruned_tpe,
}


def available() -> dict[str, Policy]:
    """The policies whose packages are installed; a line on standard error names one that is left out."""
    if find_spec("cmaes"):
        return POLICIES
    print("CMA-ES is left out: it needs cmaes (pip install 'tdrs[searches]')", file=sys.stderr)
    return {name: policy for name, policy in POLICIES.items() if name != "CMA-ES"}
