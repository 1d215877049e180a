"""A search space: the values that each configuration key may have, as an experiment's YAML lists them.

    space:
      intervention.gain: [logits, weights]                              # one of these
      intervention.dc.weight: {low: 0.01, high: 5, log: true, off_at: 0}   # a number between two, or switched off

With `off_at`, a parameter beside the number chooses whether the key has that value. So stages can be switched on and
off while every trial has the same parameters, as samplers of several parameters at once require.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tdrs.settings import SettingError, build

from .trial import Settings


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Args:
        log: spread over decades rather than evenly.
        whole: whole numbers only.
        off_at: a value outside the range that switches something off.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    off_at: float | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SettingError("low", self.low, f"must be below high = {self.high:g}")
        if self.log and self.low <= 0:
            raise SettingError("low", self.low, "must be above 0 with log=true")
        if self.whole and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise SettingError("low", self.low, "both ends must be whole with whole=true")
        if self.off_at is not None and self.low <= self.off_at <= self.high:
            raise SettingError("off_at", self.off_at, f"must be outside {self.low:g} to {self.high:g}")

    def ends(self) -> list[float]:
        """The lowest and the highest value, and the value that switches off."""
        found = [int(end) if self.whole else end for end in (self.low, self.high)]
        return found if self.off_at is None else [*found, self.off_at]


def _encode(value: Any) -> Any:
    """A value of a type that Optuna takes."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def check_distinct(values: Sequence[Any], name: str) -> None:
    """Raises SettingError under `name` if a list has a value twice; 1 and 1.0 are one value, 1 and true are two."""
    for number, value in enumerate(values):
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[:number]):
            raise SettingError(name, values, f"has {value!r} twice")


@dataclass(frozen=True)
class Space:
    """Values by key: a list, or a range."""

    parts: dict[str, list[Any] | Range]

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> "Space":
        """The space in a mapping; raises SettingError under `name`."""
        if not isinstance(values, Mapping) or not values:
            raise SettingError(name, values, "must name at least one setting and its values")
        parts: dict[str, list[Any] | Range] = {}
        for key, given in values.items():
            if isinstance(given, Mapping):
                parts[key] = build(Range, given, f"{name}.{key}")
            elif isinstance(given, list) and given:
                check_distinct(given, f"{name}.{key}")
                parts[key] = list(given)
            else:
                raise SettingError(f"{name}.{key}", given, "must be a list of at least one value, or low and high")
        return cls(parts)

    def words(self, key: str) -> str:
        """The values of a key, to show."""
        part = self.parts[key]
        if isinstance(part, list):
            return f"must be one of {', '.join(map(str, part))}"
        off = "" if part.off_at is None else f", or {part.off_at:g}"
        return f"must be from {part.low:g} to {part.high:g}{off}"

    @property
    def plain(self) -> dict[str, Any]:
        """The mapping that `of` reads."""
        return {key: asdict(part) if isinstance(part, Range) else part for key, part in self.parts.items()}

    def ends(self) -> Iterator[Settings]:
        """Settings in which each key has each of its values or ends once; they are checked before a trial runs."""
        first = {key: part.ends()[0] if isinstance(part, Range) else part[0] for key, part in self.parts.items()}
        for key, part in self.parts.items():
            values = part.ends() if isinstance(part, Range) else part
            yield from (first | {key: value} for value in values)

    def cells(self) -> list[Settings]:
        """Every combination of the lists' values; the first key changes slowest."""
        values = [part for part in self.parts.values() if isinstance(part, list)]
        return [dict(zip(self.parts, cell, strict=True)) for cell in product(*values)]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's parameters; a key with `off_at` has one more, `KEY.on`."""
        found: dict[str, BaseDistribution] = {}
        for key, part in self.parts.items():
            if isinstance(part, list):
                found[key] = CategoricalDistribution([_encode(value) for value in part])
                continue
            if part.off_at is not None:
                found[f"{key}.on"] = CategoricalDistribution([True, False])
            if part.whole:
                found[key] = IntDistribution(int(part.low), int(part.high), log=part.log)
            else:
                found[key] = FloatDistribution(part.low, part.high, log=part.log)
        return found

    def settings(self, params: Mapping[str, Any]) -> Settings:
        """The settings of Optuna's parameters."""
        found: Settings = {}
        for key, part in self.parts.items():
            if isinstance(part, list):
                found[key] = next(value for value in part if _encode(value) == params[key])
            else:
                found[key] = params[key] if params.get(f"{key}.on", True) else part.off_at
        return found

    def params(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Optuna's parameters of settings; None if a value lies outside the space."""
        found: dict[str, Any] = {}
        for key, part in self.parts.items():
            value = settings.get(key)
            if isinstance(part, list):
                if value not in part:
                    return None
                found[key] = _encode(value)
                continue
            if part.off_at is not None:
                found[f"{key}.on"] = value != part.off_at
                value = part.low if value == part.off_at else value
            if not isinstance(value, int | float) or not part.low <= value <= part.high:
                return None
            found[key] = value
        return found
