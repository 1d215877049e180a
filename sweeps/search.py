"""What the settings of all protocols have in common: which methods are reported and how tuned, Optuna's parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler

from tdrs.settings import LARGEST_SEED, check_choice, check_number

from .methods import Method, check_axes, conditions
from .space import Space
from .trials import Request, Settings, Trial, check_method_keys

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, constant_liar=True),
    "qmc": lambda seed: QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),
    "random": lambda seed: RandomSampler(seed=seed),
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """A checked `search` group.

    Args:
        axes: the conditions; the first axis changes slowest. Without axes: the configured backbone and data set.
        budget: trials on the tuning split for each method that has a space, the first at its own settings.
        sampler, seed: what chooses the others.
    """

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

    def reported(self) -> list[Method]:
        """The methods that have a row at each condition, tuned there where they have a space; raises SettingError."""
        raise NotImplementedError

    def conditions(self) -> list[Settings]:
        """Every condition, in the order in which they are measured."""
        return list(conditions(self.axes))

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        """Requests that show every value a trial could have at a condition, to be checked before the first one runs.

        Args:
            dataset: the configured one.
        """
        raise NotImplementedError

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's parameters; by default none, settings are attributes of trials only."""
        return {}

    def params(self, trial: Trial) -> dict[str, Any]:
        """Optuna's parameters of a trial; a value outside its distribution is an attribute only."""
        known = self.distributions()
        return {key: value for key, value in trial.settings.items() if key in known and _holds(known[key], value)}


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


@dataclass(frozen=True, kw_only=True)
class Controlled(Search):
    """With methods that are reported beside what the protocol itself is about.

    Args:
        controls: settings by name, with a space under `tune` where they are to be tuned.
    """

    controls: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def reported(self) -> list[Method]:
        return Method.all_of(self.controls, "controls")


@dataclass(frozen=True, kw_only=True)
class Spaced(Controlled):
    """With a search space, each point of which is a trial of this name.

    Args:
        space: see `sweeps/space.py`.
    """

    space: dict  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_method_keys(self.space, "space")

    @property
    def point(self) -> str:
        """What the protocol's own trials are called."""
        raise NotImplementedError

    @property
    def parsed(self) -> Space:
        return Space.of(self.space, "space")

    def distributions(self) -> dict[str, BaseDistribution]:
        return self.parsed.distributions()

    def params(self, trial: Trial) -> dict[str, Any]:
        if trial.name != self.point:
            return super().params(trial)
        return self.parsed.params(trial.settings) or {}
