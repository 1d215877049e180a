"""What a study asks for: conditions, method rows, and protocols.

A protocol is a generator: it yields lists of requests and is sent their trials, in the same order. It knows nothing of
how they are run. A trial is paired with the stock model's, if that is in the same list at the same condition.

A condition is a combination of the axes' values, such as a backbone, a data set and a distance. An axis is a list of
values of the configuration key that it is named after (`backbone` and `dataset` take the names of their groups), or of
mappings that each set several keys at once. A method row is a mapping of keys of `intervention` and `attention` alone.
With a search space under `tune`, the row reports the point of the space that is best on the tuning split.
"""

import math
import re
import shlex
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from itertools import combinations, product
from typing import Any, ClassVar, Self, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler

from tdrs import commands
from tdrs.benchmarks import DATASETS, Record
from tdrs.environment import quiet
from tdrs.settings import LARGEST_SEED, SettingError, build, check_choice, check_number

from .space import Space
from .trial import AXIS_GROUPS, COMPLETE, STOCK, STOCK_SETTINGS, Outcome, Request, Settings, Trial, check_method_keys

T = TypeVar("T")
Look = Callable[[Trial], Sequence[Record]]  # the records of a trial, of the samples it saw
Steps = Generator[list[Request], list[Trial], T]  # requests out, their trials in, T at the end
PROTOCOLS = {  # module: class
    "coordinate": "Coordinate",
    "grid": "Grid",
    "sampled": "Sampled",
    "raced": "Raced",
    "points": "Points",
    "compare": "Compare",
    "tradeoff": "Tradeoff",
    "transfer": "Transfer",
}
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, constant_liar=True),
    "qmc": lambda seed: QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),
    "random": lambda seed: RandomSampler(seed=seed),
}


UNBIASED = ("qmc", "random")  # samplers whose points do not depend on results


@contextmanager
def silent_optuna() -> Iterator[None]:
    """Without Optuna's log, and without its warnings that a sampler is experimental."""
    with quiet("optuna"), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def spread(space: Space, sampler: str, seed: int, count: int, first: Mapping[str, Any] | None = None) -> list[Settings]:
    """Points of a space that a sampler chooses without results, in its order; some may be equal.

    Args:
        sampler: one of `UNBIASED`.
        count: how many.
        first: Optuna's parameters of the first point; None lets the sampler choose it.
    """
    with silent_optuna():
        study = optuna.create_study(sampler=SAMPLERS[sampler](seed))
        if first is not None:
            study.enqueue_trial(dict(first))
        return [space.settings(study.ask(space.distributions()).params) for _ in range(count)]


def from_settings(values: Mapping[str, Any]) -> "Protocol":
    """The protocol of a `search` group.

    Raises:
        SettingError: the protocol or a setting is unknown, or a value is not allowed.
    """
    name = values.get("protocol")
    check_choice("search.protocol", name, list(PROTOCOLS))
    kind = getattr(import_module(f"{__package__}.{name}"), PROTOCOLS[str(name)])
    try:
        found: Protocol = kind.of(values)
        found.reported()
    except SettingError as error:
        raise error.under("search") from None
    return found


def no_records(trial: Trial) -> Sequence[Record]:
    """No records of any trial, for protocols that do not look at them."""
    return ()


def run(steps: Steps[T], answer: Callable[[list[Request]], list[Trial]]) -> T:
    """Run a protocol to its end; returns what it returns.

    Args:
        answer: gives the trials of requests, in the same order.
    """
    try:
        requests = next(steps)
        while True:
            requests = steps.send(answer(requests))
    except StopIteration as end:
        return end.value


def check_axes(axes: Mapping[str, Any]) -> None:
    """Raises SettingError unless each axis is a list of values of keys that decide records, and no two set one key."""
    setter: dict[str, str] = {}
    for name, axis in axes.items():
        if not isinstance(axis, list) or not axis:
            raise SettingError(f"axes.{name}", axis, "must be a list of at least one value")
        if {} in axis:
            raise SettingError(f"axes.{name}", axis, "each mapping must set at least one key")
        for key in dict.fromkeys(key for value in axis for key in (value if isinstance(value, Mapping) else [name])):
            group, _, rest = str(key).partition(".")
            if group not in AXIS_GROUPS:
                allowed = f"{key} does not change what is measured; an axis sets keys of {', '.join(AXIS_GROUPS)}"
                raise SettingError(f"axes.{name}", axis, allowed)
            if rest == "name":
                raise SettingError(f"axes.{name}", axis, f"{key} alone is no choice; use the key {group}")
            if setter.setdefault(key, name) != name:
                allowed = f"sets {key}, as axes.{setter[key]} does; take one away: {_without(axes, setter[key])}"
                raise SettingError(f"axes.{name}", axis, allowed)


def _without(axes: Mapping[str, Any], name: str) -> str:
    """The override that removes an axis; Hydra's grammar has no key for a name with a dot, so all others are set."""
    left = {other: axis for other, axis in axes.items() if other != name}
    plain = re.fullmatch(r"[A-Za-z_]\w*", name)
    return shlex.quote(f"~search.axes.{name}" if plain else f"search.axes={commands.value(left)}")


def conditions(axes: Mapping[str, Any]) -> list[Settings]:
    """Every combination of the axes' values; the first axis changes slowest. Without axes: one empty condition."""
    parts = [[value if isinstance(value, Mapping) else {key: value} for value in axis] for key, axis in axes.items()]
    return [{key: value for part in combination for key, value in part.items()} for combination in product(*parts)]


def check_effect(axes: Mapping[str, Any], cache_keys: Sequence[Sequence[str]]) -> None:
    """Raises SettingError if two values of an axis measure the same at all conditions that are otherwise equal.

    Args:
        cache_keys: of the evaluations at each condition, in the order of `conditions`.
    """
    numbers = list(product(*(range(len(axis)) for axis in axes.values())))
    found = dict(zip(numbers, map(list, cache_keys), strict=True))
    for at, (name, axis) in enumerate(axes.items()):
        for first, second in combinations(range(len(axis)), 2):
            pairs = [(one, (*one[:at], second, *one[at + 1 :])) for one in numbers if one[at] == first]
            if all(found[one] == found[other] for one, other in pairs):
                allowed = f"{axis[first]!r} and {axis[second]!r} measure the same; take one away"
                raise SettingError(f"search.axes.{name}", axis, allowed)


def check_tuned(points: Sequence[Request], key: Callable[[Request], str]) -> None:
    """Raises SettingError if there is nothing to tune: all points that a name may have are the stock model.

    Args:
        points: what may be requested, at all conditions.
        key: the cache key of a request.
    """
    unedited: dict[str, set[bool]] = {}
    for one in points:
        if one.split == "tuning" and one.name != STOCK:
            same = key(one) == key(stock("tuning", one.condition))
            unedited.setdefault(one.name, set()).add(same)
    for name, found in unedited.items():
        if found == {True}:
            raise SettingError("search", name, "every point of its space is the stock model: there is nothing to tune")


def by_dataset(value: Any, dataset: str) -> Any:
    """A value on a data set. It may be a mapping of values by benchmark (`pope`, also for its twin) and `other`.

    Args:
        dataset: a name in `conf/dataset`.
    """
    if not isinstance(value, Mapping):
        return value
    real = DATASETS[dataset].real if dataset in DATASETS else ""
    return value.get(real, value["other"])


@dataclass(frozen=True)
class MethodRow:
    """Settings under a name. With a space, its keys are chosen on the tuning split.

    A value may be a mapping by benchmark, as in `by_dataset`.
    """

    name: str
    settings: Settings
    space: Space | None = None

    @classmethod
    def of(cls, name: str, values: Any, group: str) -> Self:
        """The row of a mapping; raises SettingError under `group`."""
        if not isinstance(values, Mapping) or name == STOCK:
            raise SettingError(f"{group}.{name}", values, "must be settings of another name than stock")
        if not isinstance(name, str) or not name.strip():
            raise SettingError(group, name, "a method's name must be text")
        settings = {key: value for key, value in values.items() if key != "tune"}
        check_method_keys(settings, f"{group}.{name}")
        for key, value in settings.items():
            if isinstance(value, Mapping) and "other" not in value:
                raise SettingError(f"{group}.{name}.{key}", dict(value), "must have a value for `other`")
        if "tune" not in values:
            return cls(name, settings)
        space = Space.of(values["tune"], f"{group}.{name}.tune")
        check_method_keys(values["tune"], f"{group}.{name}.tune")
        return cls(name, settings, space)

    @classmethod
    def all_of(cls, values: Mapping[str, Any], group: str) -> list[Self]:
        """The rows of a mapping by name; raises SettingError under `group`."""
        return [cls.of(name, given, group) for name, given in values.items()]

    def at(self, condition: Settings, dataset: str) -> Self:
        """The row at a condition; `dataset` is the configured one, for a condition that sets none."""
        name = condition.get("dataset", dataset)
        return replace(self, settings={key: by_dataset(value, name) for key, value in self.settings.items()})

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        """Requests that show every value the row may have at a condition."""
        settings = self.at(condition, dataset).settings
        yield Request(self.name, "held_out", settings, condition)
        for ends in self.space.ends() if self.space else ():
            yield Request(self.name, "tuning", {**settings, **ends}, condition)


def stock(split: str, condition: Settings) -> Request:
    """The stock model at a condition."""
    return Request(STOCK, split, STOCK_SETTINGS, condition)


def best(trials: Sequence[Trial], objective: str) -> Trial:
    """The complete trial with the highest metric; the earliest among equals, and if none is complete."""
    complete = [trial for trial in trials if trial.status == COMPLETE] or trials
    return max(complete, key=lambda trial: trial.metrics.get(objective, float("-inf")))


def objective_value(trial: Trial, objective: str) -> float:
    """The objective of a trial that has metrics; its expected value if it was pruned.

    Raises:
        SettingError: it was not measured, since a sample has no margin.
    """
    value = trial.value(objective)
    if math.isnan(value):
        allowed = "was not measured: a sample has no gold answer that the model can score; use accuracy"
        raise SettingError("search.objective", objective, allowed)
    return value


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A checked `search` group.

    Args:
        axes: the axes of the conditions. Without axes: the configured backbone and data set.
        budget: trials on the tuning split for each method row that has a space, the first at its own settings.
        sampler, seed: what chooses the other trials.
    """

    objective = "accuracy"  # the metric that settings are chosen by, and the value of Optuna's trials
    adaptive: ClassVar[bool] = False  # whether later requests depend on earlier results
    needs_kl: ClassVar[bool] = False  # whether choices depend on `kl` (`Trial.kl`), also in a dry run
    protocol: str
    axes: dict = field(default_factory=dict)  # type: ignore[type-arg]
    budget: int = 8
    sampler: str = "tpe"
    seed: int = 0

    def __post_init__(self) -> None:
        check_axes(self.axes)
        check_choice("sampler", self.sampler, list(SAMPLERS))
        check_number("budget", self.budget, 1, whole=True)
        check_number("seed", self.seed, 0, LARGEST_SEED, whole=True)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The protocol of plain settings; raises SettingError."""
        return build(cls, values)

    def run(self, config: dict[str, Any], look: Look = no_records) -> Steps[Outcome]:
        """Ask for the trials at every condition; returns the study's outcome.

        Args:
            config: the study's plain configuration.
            look: gives the records of a trial.
        """
        outcome = Outcome(str(config["study"]["name"]), self.protocol, config, [], [])
        for condition in conditions(self.axes):
            yield from self.at(condition, outcome, look)
        return outcome

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        """Ask for the trials at a condition, and add them to the outcome."""
        raise NotImplementedError

    def reported(self) -> list[MethodRow]:
        """The method rows of each condition, tuned there if they have a space; raises SettingError."""
        raise NotImplementedError

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        """Requests that show every value a trial could have at a condition; they are checked before the first one runs.

        Args:
            dataset: the configured one.
        """
        raise NotImplementedError

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's parameters. By default there are none: settings are attributes of Optuna's trials only."""
        return {}

    def params(self, trial: Trial) -> dict[str, Any]:
        """Optuna's parameters of a trial. A value outside its distribution is left out."""
        known = self.distributions()
        return {key: value for key, value in trial.settings.items() if key in known and _holds(known[key], value)}


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


@dataclass(frozen=True, kw_only=True)
class Controlled(Protocol):
    """A protocol that reports controls: method rows beside its own.

    Args:
        controls: settings by name, with a space under `tune` if they are tuned.
    """

    controls: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def reported(self) -> list[MethodRow]:
        return MethodRow.all_of(self.controls, "controls")


@dataclass(frozen=True, kw_only=True)
class Spaced(Controlled):
    """A protocol with a search space; a trial at one of its points has the name `point`.

    Args:
        space: see `sweeps/space.py`.
    """

    space: dict  # type: ignore[type-arg]
    point: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_method_keys(self.space, "space")

    @cached_property
    def parsed(self) -> Space:
        return Space.of(self.space, "space")

    def distributions(self) -> dict[str, BaseDistribution]:
        return self.parsed.distributions()

    def params(self, trial: Trial) -> dict[str, Any]:
        if trial.name != self.point:
            return super().params(trial)
        return self.parsed.params(trial.settings) or {}
