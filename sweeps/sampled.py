"""The protocol that lets an Optuna sampler (TPE, QMC or random) choose points of a search space on the tuning split.

It asks for `at_once` points, measures them, and tells their results in the order of asking. So the points of a study
depend on its seed alone, not on the number of workers or on whether the study was stopped and resumed. The first points
are the settings as configured, and those in `start`.

With `prune` a trial ends early when it has less than one chance in ten to end above the incumbent, the best trial
before it. The test pairs the margins of the gold answers so far with the incumbent's on the same images, from 20 images
on; it applies to controls, too. The objective must then be the mean margin, since 0/1 scores mostly tie. The sampler is
told the expected mean of a pruned trial: the incumbent's mean plus their mean difference so far, because the first
images may be easier than the others.

With axes, all this happens at each condition (see `sweeps/protocol.py`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, ClassVar

import optuna
from optuna.trial import TrialState

from tdrs.benchmarks import Record
from tdrs.configuration import with_settings
from tdrs.results import check_same_samples, of_rows
from tdrs.settings import SettingError, check_choice, check_number
from tdrs.statistics import chance_not_below_zero, paired_sums

from .protocol import SAMPLERS, Look, MethodRow, Protocol, Spaced, Steps, best, objective_value, silent_optuna, stock
from .space import Space
from .trial import COMPLETE, PRUNED, Outcome, Request, Settings, Trial

OBJECTIVES = ("accuracy", "margin")
# Images before a trial may be pruned, and the chance below which it is. For 37 complete trials of `search`, in 150
# random orders of 20 of them, 52 % of the samples were measured and the best was never lost; at .05 58 %; at .2 41 %,
# but the best was lost in 30 %. Wilcoxon's test, which does not know how many images are left, measured 56 % at .1 and
# lost it in 15 %.
STARTUP, CHANCE = 20, 0.1


@dataclass(frozen=True, kw_only=True)
class Adaptive(Spaced):
    """A search whose points depend on the results of earlier ones.

    Args:
        at_once: new points that are chosen before the results of any of them are known.
        start: points to begin with, after the configured one.
    """

    at_once: int = 4
    start: tuple = ()  # type: ignore[type-arg]
    point: ClassVar[str] = "search"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("at_once", self.at_once, 1, whole=True)
        check_start(self.start, self.parsed)

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        yield from (stock(split, condition) for split in ("tuning", "held_out"))
        for settings in [*self.parsed.ends(), *({**next(self.parsed.ends()), **one} for one in self.start)]:
            yield Request(self.point, "tuning", settings, condition)
        for row in self.reported():
            yield from row.possible(condition, dataset)


@dataclass(frozen=True, kw_only=True)
class Sampled(Adaptive):
    """A checked `search` group.

    Args:
        trials: points in all; equal ones are measured once. `sampler` and `seed` choose these, too.
        prune: whether trials may end early; needs `objective: margin`.
    """

    trials: int = 40
    objective: str = "accuracy"
    prune: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective", self.objective, OBJECTIVES)
        check_number("trials", self.trials, 1, whole=True)
        if self.prune and self.objective != "margin":
            raise SettingError("prune", self.prune, "needs objective=margin: 0/1 scores mostly tie")

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        row = MethodRow(self.point, {}, self.parsed)
        start = configured(outcome.config, Request("", "", {}, condition).merged, list(self.parsed.parts))
        baseline = yield [stock("tuning", condition)]
        incumbent = baseline[0] if self.prune else None
        first = [start, *({**start, **one} for one in self.start)]
        trials = yield from sample(self, row, condition, self.trials, first, incumbent, self.at_once)
        controls, tried = yield from tune(self, condition, outcome.config, incumbent)
        chosen = best(trials, self.objective).settings
        rows = yield [
            stock("held_out", condition),
            Request("as configured", "held_out", {}, condition),
            Request(f"best of {len(trials)}", "held_out", chosen, condition, budget=len(trials)),
            *controls,
        ]
        outcome.trials.extend([*baseline, *trials, *tried])
        outcome.rows.extend(rows)


def check_start(start: Sequence[Any], space: Space) -> None:
    """Raises SettingError unless each point to begin with sets keys of a space to values that lie in it."""
    for number, one in enumerate(start):
        if not isinstance(one, Mapping) or not set(one) <= set(space.parts):
            raise SettingError(f"start[{number}]", one, f"must have keys of {', '.join(space.parts)}")
        for key, value in one.items():
            if Space({key: space.parts[key]}).params(one) is None:
                raise SettingError(f"start[{number}].{key}", value, f"lies outside the space: {space.words(key)}")


def configured(config: Mapping[str, Any], settings: Settings, keys: Sequence[str]) -> Settings:
    """The values that a configuration, under settings, has for keys."""
    return values_of(with_settings(config, settings), keys)


def values_of(config: Mapping[str, Any], keys: Sequence[str]) -> Settings:
    """The values of dotted keys of a configuration. Raises KeyError or TypeError if it does not have one."""
    return {key: reduce(getitem, key.split("."), config) for key in keys}


def sample(
    search: Protocol,
    row: MethodRow,
    condition: Settings,
    trials: int,
    start: Sequence[Settings],
    incumbent: Trial | None,
    at_once: int = 4,
) -> Steps[list[Trial]]:
    """Ask for trials of a method row's space on the tuning split; returns them in the order of asking.

    Args:
        search: whose sampler, seed and objective choose.
        start: whole settings of the space to begin with; those outside the space are left out.
        incumbent: the trial to beat at first. With it, trials that have little chance to beat the best so far are
            pruned.
    """
    space = row.space
    assert space is not None
    with silent_optuna():
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[search.sampler](search.seed))
    for settings in start:
        params = space.params(settings)
        if params is not None:
            study.enqueue_trial(params)

    def goal(trial: Trial) -> float:
        return trial.metrics[search.objective] if trial.status == COMPLETE else -math.inf

    found: list[Trial] = []
    while len(found) < trials:
        asked = [study.ask(space.distributions()) for _ in range(min(at_once, trials - len(found)))]
        beat = incumbent if incumbent and incumbent.status == COMPLETE else None
        points = [{**row.settings, **space.settings(one.params)} for one in asked]
        measured = yield [Request(row.name, "tuning", point, condition, incumbent=beat) for point in points]
        for waiting, trial in zip(asked, measured, strict=True):
            if trial.status in (COMPLETE, PRUNED):
                study.tell(waiting, objective_value(trial, search.objective))
            else:
                study.tell(waiting, state=TrialState.FAIL)
            found.append(trial)
            if incumbent and goal(trial) > goal(incumbent):
                incumbent = trial
    return found


def should_prune(incumbent: Sequence[Record], records: Sequence[Record]) -> float | None:
    """Whether a trial has little chance to reach the incumbent's mean margin: its expected mean margin, or else None.

    Args:
        incumbent: all records of the incumbent.
        records: those of the trial so far, in any order.

    Raises:
        SettingError: the records are not of the same samples.
    """
    known = {record.id: record for record in incumbent}
    same = [known[record.id] for record in records if record.id in known]
    check_same_samples(same, records, "search.prune")
    theirs, ours = ([record.margin for record in some] for some in (same, records))
    clusters, weights = [record.image_id for record in records], [record.weight for record in records]
    images = len({record.image_id for record in incumbent})
    difference = expected_difference(theirs, ours, clusters, weights, images)
    return None if difference is None else of_rows(incumbent)["margin"] + difference


def expected_difference(
    theirs: Sequence[float], ours: Sequence[float], clusters: Sequence[str], weights: Sequence[float], images: int
) -> float | None:
    """The mean difference of a trial's margins to an incumbent's, if it has little chance to end above it; else None.

    Args:
        theirs, ours: margins of the incumbent and of the trial on the samples so far.
        clusters, weights: the images and weights of these samples.
        images: how many images there are in all.
    """
    _, _, sums, counts = paired_sums(theirs, ours, clusters, weights)
    unseen = max(1, images - len(sums))  # not all questions on the last image may be asked yet
    if len(sums) < STARTUP or chance_not_below_zero(sums, unseen) >= CHANCE:
        return None
    return float(sums.sum() / counts.sum())


def tune(
    search: Protocol, condition: Settings, config: Mapping[str, Any], incumbent: Trial | None = None
) -> Steps[tuple[list[Request], list[Trial]]]:
    """Ask for the tuning trials of the reported method rows; returns the rows' held-out requests, and these trials.

    Args:
        config: the study's plain configuration.
        incumbent: as in `sample`.
    """
    requests: list[Request] = []
    tried: list[Trial] = []
    for row in search.reported():
        here = row.at(condition, config["dataset"]["name"])
        settings, trials = here.settings, []
        if here.space is not None:
            merged = Request("", "", settings, condition).merged
            start = [configured(config, merged, list(here.space.parts))]
            trials = yield from sample(search, here, condition, search.budget, start, incumbent)
            settings = best(trials, search.objective).settings
        requests.append(Request(row.name, "held_out", settings, condition, budget=len(trials)))
        tried += trials
    return requests, tried
