"""The protocol that races points of a search space: a few images for many points, all images for the best ones.

It asks for a few points, measures a first bundle of images of each, and lets those go on that may be the best
(`sweeps/race.py`). Its budget is a number of samples. What it asks for depends on its settings and on the records
alone. So a study that was stopped goes on with the same points, and the number of workers changes nothing.

With axes, all this happens at each condition (see `sweeps/protocol.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tdrs.benchmarks import Record
from tdrs.settings import check_number

from .protocol import Look, Steps, stock
from .race import Race, Values
from .sampled import Adaptive, configured, tune
from .trial import Outcome, Request, Settings


@dataclass(frozen=True, kw_only=True)
class Raced(Adaptive):
    """A checked `search` group.

    Args:
        samples: tuning samples that may be measured, beside those of the stock model and the controls.
        at_once: as in `Adaptive`; as many others may go on.
    """

    samples: int = 12800
    at_once: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("samples", self.samples, 1, whole=True)

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        baseline = yield [stock("tuning", condition)]
        here = configured(outcome.config, Request("", "", {}, condition).merged, list(self.parsed.parts))
        start = [one for one in [here, *({**here, **other} for other in self.start)] if self.parsed.params(one)]
        records = look(baseline[0])
        if not records:  # in a dry run, or if the stock model failed: the first points stand for all
            chosen, trials = here, (yield [Request(self.point, "tuning", one, condition) for one in start])
        else:
            values = _values(records)
            assert values is not None
            images, weights = [record.image_id for record in records], [record.weight for record in records]
            race = Race(self.parsed, images, weights, values, start, self.samples, self.at_once, self.seed)
            while asked := race.ask():
                found = yield [Request(self.point, "tuning", one.settings, condition, upto=one.upto) for one in asked]
                race.tell(asked, [_values(look(trial)) for trial in found])
            chosen = race.arms[race.chosen()].settings if race.arms else here
            ends = ((arm.settings, None if n in race.finalists else arm.seen) for n, arm in enumerate(race.arms))
            trials = yield [Request(self.point, "tuning", one, condition, upto=n, ended=True) for one, n in ends]
        controls, tried = yield from tune(self, condition, outcome.config)
        rows = yield [
            stock("held_out", condition),
            Request("as configured", "held_out", {}, condition),
            Request(f"best of {len(trials)}", "held_out", chosen, condition, budget=len(trials)),
            *controls,
        ]
        outcome.trials.extend([*baseline, *trials, *tried])
        outcome.rows.extend(rows)


def _values(records: Sequence[Record]) -> Values | None:
    """The scores and margins of records; None if there are none, since a trial failed."""
    if not records:
        return None
    return Values(np.array([r.score for r in records]), np.array([r.margin for r in records]))
