"""The protocol that measures points of a search space on both splits, and chooses none.

Points of a QMC or random sampler are spread evenly over the space, whatever their results are. So they say without bias
which settings matter (`analysis/importance.py`), and searches can be replayed on them (`analysis/searches.py`).

With axes, all this happens at each condition (see `sweeps/protocol.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from tdrs.settings import check_choice, check_number

from .protocol import UNBIASED, Look, Spaced, Steps, spread, stock
from .sampled import check_start, tune
from .trial import Outcome, Request, Settings


@dataclass(frozen=True, kw_only=True)
class Points(Spaced):
    """A checked `search` group.

    Args:
        trials: points of the sampler, `qmc` or `random`; equal ones are measured once.
        start: points to measure before them; keys that one lacks have the space's first value.
    """

    trials: int = 300
    sampler: str = "qmc"
    start: tuple = ()  # type: ignore[type-arg]
    point: ClassVar[str] = "point"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("sampler", self.sampler, UNBIASED)
        check_number("trials", self.trials, 1, whole=True)
        check_start(self.start, self.parsed)

    def possible(self, condition: Settings, dataset: str) -> Iterator[Request]:
        yield from (stock(split, condition) for split in ("tuning", "held_out"))
        for settings in [*self.parsed.ends(), *self.first()]:
            request = Request(self.point, "tuning", settings, condition)
            yield from (request, replace(request, split="held_out"))
        for row in self.reported():
            yield from row.possible(condition, dataset)

    def first(self) -> list[Settings]:
        """The points of `start`, with a value for each key."""
        return [{**next(self.parsed.ends()), **one} for one in self.start]

    def points(self) -> list[Settings]:
        """All points, in the order of asking."""
        return [*self.first(), *spread(self.parsed, self.sampler, self.seed, self.trials)]

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        asked = [Request(self.point, "tuning", point, condition) for point in self.points()]
        trials = yield [stock("tuning", condition), *asked]
        held_out = yield [replace(one, split="held_out") for one in asked]
        controls, tried = yield from tune(self, condition, outcome.config)
        rows = yield [stock("held_out", condition), *controls]
        outcome.trials.extend([*trials, *held_out, *tried])
        outcome.rows.extend(rows)
