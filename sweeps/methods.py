"""What protocols have in common: conditions, methods by name, and rows that are paired with the stock model.

A condition is a combination of the axes' values: a backbone, a data set, a distance. An axis is a list of values of the
configuration key it is named after (`backbone` and `dataset` take the names of their groups), or of mappings, each of
which sets several keys at once. A method is a mapping of keys of `intervention` and `attention` alone; under `tune` it
may have a search space, whose best point on the tuning split is what is reported.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from tdrs import commands
from tdrs.benchmarks import DATASETS
from tdrs.settings import SettingError

from .engine import Engine
from .space import Space
from .trials import AXIS_GROUPS, COMPLETE, STOCK, STOCK_SETTINGS, Request, Settings, Trial, check_method_keys


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
    """The override that takes an axis away; one with a dot in its name has no key of its own in Hydra's grammar."""
    left = {other: axis for other, axis in axes.items() if other != name}
    plain = re.fullmatch(r"[A-Za-z_]\w*", name)
    return shlex.quote(f"~search.axes.{name}" if plain else f"search.axes={commands.value(left)}")


def conditions(axes: Mapping[str, Any]) -> Iterator[Settings]:
    """Every combination of the axes' values, the first axis slowest; one empty condition without any axis."""
    parts = [[value if isinstance(value, Mapping) else {key: value} for value in axis] for key, axis in axes.items()]
    for combination in product(*parts):
        yield {key: value for part in combination for key, value in part.items()}


def check_effect(axes: Mapping[str, Any], cache_keys: Sequence[Sequence[str]]) -> None:
    """Raises SettingError if two values of an axis measure the same at all otherwise equal conditions.

    Args:
        cache keys: of the evaluations at each condition, in the order of `conditions`.
    """
    numbers = list(product(*(range(len(axis)) for axis in axes.values())))
    found = dict(zip(numbers, map(list, cache_keys), strict=True))
    for at, (name, axis) in enumerate(axes.items()):
        for first, second in combinations(range(len(axis)), 2):
            others = [
                (condition, (*condition[:at], second, *condition[at + 1 :]))
                for condition in numbers
                if condition[at] == first
            ]
            if all(found[one] == found[other] for one, other in others):
                allowed = f"{axis[first]!r} and {axis[second]!r} measure the same; take one away"
                raise SettingError(f"search.axes.{name}", axis, allowed)


def by_dataset(value: Any, dataset: str) -> Any:
    """A value; where it differs between benchmarks, of values by benchmark (`pope`, also for its twin) and `other`.

    Args:
        dataset: a name in `conf/dataset`.
    """
    if not isinstance(value, Mapping):
        return value
    real = DATASETS[dataset].real if dataset in DATASETS else ""
    return value.get(real, value["other"])


@dataclass(frozen=True)
class Method:
    """Settings under a name; with a space, those in it are chosen on the tuning split. Values may be `by_dataset`."""

    name: str
    settings: Settings
    space: Space | None = None

    @classmethod
    def of(cls, name: str, values: Any, group: str) -> "Method":
        """The method of a mapping; raises SettingError under `group`."""
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
    def all_of(cls, values: Mapping[str, Any], group: str) -> "list[Method]":
        """The methods of a mapping by name; raises SettingError under `group`."""
        return [cls.of(name, given, group) for name, given in values.items()]

    def at(self, condition: Settings, dataset: str) -> "Method":
        """The method at a condition; `dataset` is the configured one, where the condition has none."""
        name = condition.get("dataset", dataset)
        return replace(self, settings={key: by_dataset(value, name) for key, value in self.settings.items()})

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        """Requests that show every value the method may have at a condition."""
        settings = self.at(condition, dataset).settings
        yield Request(self.name, "held_out", settings, condition)
        for ends in self.space.ends() if self.space else ():
            yield Request(self.name, "tuning", {**settings, **ends}, condition)


def stock(split: str, condition: Settings) -> Request:
    """The stock model at a condition."""
    return Request(STOCK, split, STOCK_SETTINGS, condition)


def best(trials: Sequence[Trial], objective: str) -> Trial:
    """The whole trial of the highest metric; the earliest among equals, and where nothing was measured."""
    whole = [trial for trial in trials if trial.status == COMPLETE] or trials
    return max(whole, key=lambda trial: trial.metrics.get(objective, float("-inf")))


def paired(engine: Engine, requests: Sequence[Request]) -> list[Trial]:
    """Trials with their paired differences to the stock model's trial at the same condition, which is one of them."""
    trials = engine.measure(requests)
    baseline = {json.dumps(trial.condition): trial for trial in trials if trial.name == STOCK}
    return [
        trial
        if trial.name == STOCK
        else replace(trial, difference=engine.difference(baseline[json.dumps(trial.condition)], trial))
        for trial in trials
    ]
