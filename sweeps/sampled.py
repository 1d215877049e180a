"""The protocol that lets a sampler choose: Optuna's TPE, QMC or random points of a search space, on the tuning split.

Points are asked for `at_once`, then measured, then told in the order they were asked, so a study's points depend on its
seed and on nothing else: not on how many workers there are, nor on whether it was stopped and begun again. The first
points are the settings as configured, and those in `start`.

With `prune` a trial ends early when the margins of its gold answers so far, beside those of the best trial before it on
the same images, leave it less than one chance in ten to end above that one; a control's too, from 20 images on. The
objective must then be the mean margin (0/1 scores mostly tie). The sampler is told what the trial's mean is expected to
be: the best trial's plus their mean difference so far, since the first images may be easier than the others.

With axes, all this happens at each condition (see `sweeps/methods.py`).
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from tdrs.benchmarks import Record
from tdrs.configuration import with_settings
from tdrs.settings import SettingError, build, check_choice, check_number
from tdrs.statistics import chance_not_below_zero, paired_sums

from .engine import Engine
from .methods import Method, best, paired, stock
from .search import SAMPLERS, Search, Spaced
from .trials import COMPLETE, PRUNED, Outcome, Request, Settings, Trial, check_same_samples

optuna.logging.set_verbosity(optuna.logging.WARNING)  # its studies are not the user's
OBJECTIVES = ("accuracy", "margin")
# Images before a trial may end, and the chance below which it does. Of 37 whole trials of `search`, in 150 random
# orders of 20 of them, 52 % of the samples were seen and the best was never lost; at .05 58 %; at .2 41 %, but the best
# was lost in 30 %. Wilcoxon's test, which does not know how many images are left, saw 56 % at .1 and lost it in 15 %.
STARTUP, CHANCE = 20, 0.1


@dataclass(frozen=True, kw_only=True)
class Sampled(Spaced):
    """A checked `search` group.

    Args:
        trials: points in all; equal ones are measured once. `sampler` and `seed` choose these, too.
        at_once: points that are chosen before the results of any of them are known.
        start: points to begin with, after the configured one.
        prune: whether trials may end early; needs `objective: margin`.
    """

    trials: int = 40
    at_once: int = 4
    objective: str = "accuracy"
    prune: bool = False
    start: tuple = ()  # type: ignore[type-arg]
    point = "search"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective", self.objective, OBJECTIVES)
        for name in ("trials", "at_once"):
            check_number(name, getattr(self, name), 1, whole=True)
        if self.prune and self.objective != "margin":
            raise SettingError("prune", self.prune, "needs objective=margin: 0/1 scores mostly tie")

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        yield from (stock(split, condition) for split in ("tuning", "held_out"))
        for settings in [*self.parsed.ends(), *({**next(self.parsed.ends()), **one} for one in self.start)]:
            yield Request(self.point, "tuning", settings, condition)
        for method in self.reported():
            yield from method.possible(condition, dataset)


def from_settings(values: Mapping[str, Any]) -> Sampled:
    """The protocol out of the `search` group; raises SettingError."""
    try:
        search = build(Sampled, values)
        parsed = search.parsed
        search.reported()
        for number, one in enumerate(search.start):
            if not isinstance(one, Mapping) or not set(one) <= set(parsed.parts):
                raise SettingError(f"start[{number}]", one, f"must have keys of {', '.join(parsed.parts)}")
    except SettingError as error:
        raise error.under("search") from None
    return search


def configured(engine: Engine, settings: Settings, keys: Sequence[str]) -> Settings:
    """What the configuration, under settings, says for keys."""
    config: Any = with_settings(engine.config, settings)
    found = {}
    for key in keys:
        node = config
        for part in key.split("."):
            node = node[part]
        found[key] = node
    return found


def sample(
    engine: Engine,
    method: Method,
    condition: Settings,
    trials: int,
    sampler: str = "tpe",
    seed: int = 0,
    at_once: int = 4,
    start: Sequence[Settings] = (),
    objective: str = "accuracy",
    rival: Trial | None = None,
) -> list[Trial]:
    """Trials of a method's space on the tuning split, in the order they were asked for.

    Args:
        start: whole settings of the space to begin with; those outside it are left out.
        rival: with it, trials that have little chance to end above the best so far, at first this one, end early.
    """
    space = method.space
    assert space is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](seed))
    for settings in start:
        params = space.params(settings)
        if params is not None:
            study.enqueue_trial(params)
    found: list[Trial] = []
    while len(found) < trials:
        asked = [space.ask(study) for _ in range(min(at_once, trials - len(found)))]
        enough = None
        if rival and rival.status == COMPLETE:
            enough = _hopeless(engine.records(rival), rival.metrics[objective])
        requests = [
            Request(method.name, "tuning", {**method.settings, **settings}, condition, enough=enough)
            for _, settings in asked
        ]
        for (waiting, _), trial in zip(asked, engine.measure(requests), strict=True):
            if trial.status in (COMPLETE, PRUNED):
                study.tell(waiting, trial.value(objective))
            else:
                study.tell(waiting, state=TrialState.FAIL)
            found.append(trial)
            if rival and trial.status == COMPLETE and trial.metrics[objective] > rival.metrics[objective]:
                rival = trial
    return found


def _hopeless(rival: Sequence[Record], goal: float) -> Callable[[Sequence[Record]], float | None]:
    """What records so far make the mean margin of all expected to be, if there is little chance of a rival's goal."""
    images = len({record.image_id for record in rival})
    known = {record.id: record for record in rival}

    def enough(records: Sequence[Record]) -> float | None:
        same = [known[record.id] for record in records if record.id in known]  # batches may come in any order
        check_same_samples(same, records, "search.prune")
        theirs, ours = ([record.margin for record in some] for some in (same, records))
        clusters, weights = [record.image_id for record in records], [record.weight for record in records]
        _, _, sums, counts = paired_sums(theirs, ours, clusters, weights)
        unseen = max(1, images - len(sums))  # of the last image, not all questions may be asked yet
        if len(sums) < STARTUP or chance_not_below_zero(sums, unseen) >= CHANCE:
            return None
        return goal + float(sums.sum() / counts.sum())

    return enough


def choose(
    engine: Engine, search: Search, condition: Settings, objective: str = "accuracy", rival: Trial | None = None
) -> tuple[list[Request], list[Trial]]:
    """The held-out requests of the reported methods at a condition, and the trials that settings were chosen from.

    Args:
        objective: the metric that settings are chosen by.
        rival: as in `sample`.
    """
    requests: list[Request] = []
    tried: list[Trial] = []
    for method in search.reported():
        here = method.at(condition, engine.config["dataset"]["name"])
        settings, trials = here.settings, []
        if here.space is not None:
            merged = Request("", "", settings, condition).merged
            start = configured(engine, merged, list(here.space.parts))
            trials = sample(
                engine,
                here,
                condition,
                search.budget,
                search.sampler,
                search.seed,
                start=[start],
                objective=objective,
                rival=rival,
            )
            settings = best(trials, objective).settings
        requests.append(Request(method.name, "held_out", settings, condition, budget=len(trials)))
        tried += trials
    return requests, tried


def run(search: Sampled, engine: Engine, name: str) -> Outcome:
    """At each condition the stock model, the points, and held out: stock, the configured settings, the best point."""
    found: list[Trial] = []
    rows: list[Trial] = []
    method = Method(search.point, {}, search.parsed)
    for condition in search.conditions():
        baseline = engine.measure([stock("tuning", condition)])
        start = configured(engine, Request("", "", {}, condition).merged, list(search.parsed.parts))
        rival = baseline[0] if search.prune else None
        trials = sample(
            engine,
            method,
            condition,
            search.trials,
            search.sampler,
            search.seed,
            search.at_once,
            [start, *({**start, **one} for one in search.start)],
            search.objective,
            rival,
        )
        chosen = best(trials, search.objective)
        controls, tried = choose(engine, search, condition, search.objective, rival)
        requests = [
            stock("held_out", condition),
            Request("as configured", "held_out", {}, condition),
            Request(f"best of {len(trials)}", "held_out", chosen.settings, condition, budget=len(trials)),
            *controls,
        ]
        found += [*baseline, *trials, *tried]
        rows += paired(engine, requests)
    return Outcome(name, search.protocol, engine.config, found, rows)
