"""What the protocols `tradeoff` and `transfer` share: each point of a method's space is measured at every condition."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tdrs.settings import SettingError

from .protocol import MethodRow, Protocol, Steps, conditions, stock
from .trial import COMPLETE, Outcome, Request, Settings, Trial


@dataclass(frozen=True)
class Point:
    """A point of a method's space with its trials on the tuning split, one at each condition, in their order."""

    settings: Settings
    trials: list[Trial]

    @property
    def complete(self) -> bool:
        """Whether it was measured whole at every condition."""
        return all(trial.status == COMPLETE for trial in self.trials)


@dataclass(frozen=True, kw_only=True)
class Joint(Protocol):
    """A checked `search` group whose conditions are measured together.

    Args:
        methods: settings of each method by its name, with a space under `tune`.
    """

    methods: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods:
            raise SettingError("methods", self.methods, "must have at least one method")
        if len(self.conditions) < 2:
            raise SettingError("axes", self.axes, "must give at least two conditions")
        for name, values in self.methods.items():
            if isinstance(values, Mapping) and "tune" not in values:
                raise SettingError(f"methods.{name}", dict(values), "must have a space under tune")

    @property
    def conditions(self) -> list[Settings]:
        """Every condition, in the order of the axes' values."""
        return conditions(self.axes)

    def reported(self) -> list[MethodRow]:
        return MethodRow.all_of(self.methods, "methods")

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        yield from (stock(split, condition) for split in ("tuning", "held_out"))
        for row in self.reported():
            yield from row.possible(condition, dataset)

    def named(self, condition: Settings) -> str:
        """A condition by its values that differ between conditions, such as `mini_pope`."""
        keys = [key for key in condition if len({str(one.get(key)) for one in self.conditions}) > 1]
        return " ".join(str(condition[key]) for key in keys)

    def request(
        self, row: MethodRow, split: str, settings: Settings, condition: Settings, config: Mapping[str, Any]
    ) -> Request:
        """The request for a point of a row's space at a condition."""
        fixed = row.at(condition, config["dataset"]["name"]).settings
        return Request(row.name, split, {**fixed, **settings}, condition)

    def measure(self, row: MethodRow, points: Sequence[Settings], config: Mapping[str, Any]) -> Steps[list[Point]]:
        """Ask for points of a row's space at every condition on the tuning split, each beside the stock model."""
        asked = []
        for condition in self.conditions:
            asked.append(stock("tuning", condition))
            asked += [self.request(row, "tuning", point, condition, config) for point in points]
        trials = yield asked
        size = 1 + len(points)
        return [Point(point, trials[number::size]) for number, point in enumerate(points, 1)]

    def report(self, chosen: Mapping[str, tuple[MethodRow, Settings]], outcome: Outcome) -> Steps[None]:
        """Ask for the chosen settings on the held-out split, at every condition beside the stock model, and add them to
        the outcome.

        Args:
            chosen: a method row and a point of its space, by the name of their row in the table.
        """
        asked = []
        for condition in self.conditions:
            asked.append(stock("held_out", condition))
            for name, (row, point) in chosen.items():
                settings = self.request(row, "held_out", point, condition, outcome.config).settings
                asked.append(Request(name, "held_out", settings, condition, budget=self.budget))
        outcome.rows.extend((yield asked))
