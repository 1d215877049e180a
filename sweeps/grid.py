"""The protocol that measures every cell of a grid on the tuning split and reports the best one on the held-out split.

Cells are enumerated, not sampled, so none is measured twice. A cell that fails is tried again; if it fails again, it is
shown as failed, with the reason. With axes, all this happens at each condition (see `sweeps/protocol.py`), which has a
stock model and a best cell of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from tdrs.settings import SettingError

from .protocol import Look, Spaced, Steps, best, stock
from .sampled import tune
from .space import Range
from .trial import STOCK, Outcome, Request, Settings


@dataclass(frozen=True, kw_only=True)
class Grid(Spaced):
    """A checked `search` group whose space consists of lists."""

    point: ClassVar[str] = "cell"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, part in self.parsed.parts.items():
            if isinstance(part, Range):
                raise SettingError(f"space.{key}", self.space[key], "must be a list: a grid has cells")

    def cells(self, condition: Settings) -> list[Request]:
        """The stock model and every cell at a condition, on the tuning split."""
        cells = [Request(self.point, "tuning", settings, condition) for settings in self.parsed.cells()]
        return [stock("tuning", condition), *cells]

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        for request in self.cells(condition):
            yield from (request, replace(request, split="held_out"))
        for row in self.reported():
            yield from row.possible(condition, dataset)

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        trials = yield self.cells(condition)
        cells = [trial for trial in trials if trial.name != STOCK]
        controls, tried = yield from tune(self, condition, outcome.config)
        rows = yield [
            stock("held_out", condition),
            Request("as configured", "held_out", {}, condition),
            Request(f"best of {len(cells)}", "held_out", best(cells, "accuracy").settings, condition, len(cells)),
            *controls,
        ]
        outcome.trials.extend([*trials, *tried])
        outcome.rows.extend(rows)
