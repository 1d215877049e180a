"""The protocol that races points of a search space: a few images for many points, all images for the best ones.

It asks for a few points, measures a first bundle of images of each, and lets those go on that may be the best
(`sweeps/race.py`). Its budget is a number of samples. What it asks for depends on its settings and on the records
alone. So a study that was stopped goes on with the same points, and the number of workers changes nothing.

With axes, all this happens at each condition (see `sweeps/protocol.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdrs.benchmarks import Record
from tdrs.configuration import with_settings
from tdrs.settings import SettingError, check_number

from .arms import Values
from .folder import read_outcome, study_folder
from .protocol import Look, Steps, stock
from .race import BUNDLE, Race
from .sampled import Adaptive, configured, tune, values_of
from .trial import COMPLETE, FAILED, STOCK, Outcome, Request, Settings, Trial


@dataclass(frozen=True, kw_only=True)
class Raced(Adaptive):
    """A checked `search` group.

    Args:
        samples: tuning samples that may be measured, beside those of the stock model and the controls.
        at_once: as in `Adaptive`; as many others may go on.
        after: names of finished studies of the same model and data. The points of the space that they chose are tried
            first. Those that they measured on the same tuning samples, beside the stock model, are known and cost
            nothing while their records are kept.
    """

    samples: int = 12800
    at_once: int = 8
    after: tuple = ()  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("samples", self.samples, 1, whole=True)
        if any(not isinstance(name, str) for name in self.after):
            raise SettingError("after", list(self.after), "must be a list of names of studies")

    def at(self, condition: Settings, outcome: Outcome, look: Look) -> Steps[None]:
        baseline = yield [stock("tuning", condition)]
        here = configured(outcome.config, Request("", "", {}, condition).merged, list(self.parsed.parts))
        points = [here, *({**here, **other} for other in self.start)]
        known, chosen_before = self._earlier(outcome.config, condition, baseline[0], look)
        start = list(_different(one for one in [*points, *chosen_before] if self.parsed.params(one)))
        failed: list[Trial] = []
        records = look(baseline[0])
        if not records:  # in a dry run, or if the stock model failed: the first points stand for all
            chosen, trials = here, (yield [Request(self.point, "tuning", one, condition) for one in start])
        else:
            values = _values(records)
            assert values is not None
            images, weights = [record.image_id for record in records], [record.weight for record in records]
            bundle = max(BUNDLE, int(outcome.config["batch_size"]))  # whole batches are measured
            given: dict[str, Any] = {"at_once": self.at_once, "seed": self.seed, "bundle": bundle, "known": known}
            race = Race(self.parsed, images, weights, values, start, self.samples, **given)
            while asked := race.ask():
                found = yield [Request(self.point, "tuning", one.settings, condition, upto=one.upto) for one in asked]
                failed += [trial for trial in found if trial.status == FAILED]
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
        shown = {trial.key for trial in trials if trial.status == FAILED}  # a finalist that failed
        failed = list({trial.key: trial for trial in failed if trial.key not in shown}.values())
        outcome.trials.extend([*baseline, *failed, *trials, *tried])
        outcome.rows.extend(rows)

    def _earlier(
        self, config: dict[str, Any], condition: Settings, baseline: Trial, look: Look
    ) -> tuple[list[tuple[Settings, Values]], list[Settings]]:
        """Points of the space in the studies of `after`: those measured on the same samples, and those chosen.

        Measured ones are those whose records are here and that stand beside the same evaluation of the stock model: so
        model, data and versions are the same, and none of them is measured again.
        """
        measured: list[tuple[Settings, Values]] = []
        chosen: list[Settings] = []
        here = with_settings(config, condition)
        for name in self.after:
            try:
                study = read_outcome(study_folder(Path(config["output"]), name))
            except FileNotFoundError:
                raise SettingError("search.after", name, f"is no finished study in {config['output']}") from None
            beside = [t.condition for t in study.trials if t.name == STOCK and t.cache_key == baseline.cache_key]
            for trial in [*study.trials, *study.rows]:
                there = with_settings(study.config, Request("", "", trial.settings, trial.condition).merged)
                point = self._point(there, config, condition)
                if point is None or any(there[part] != here[part] for part in ("backbone", "dataset")):
                    continue
                parts = ("attention", "batch_size", "batch_tokens")  # studies of earlier versions lack the last one
                alike = all(there.get(part) == here.get(part) for part in parts)
                if trial.split == "tuning" and trial.status == COMPLETE and alike and trial.condition in beside:
                    values = _values(look(trial))
                    if values is not None and all(point != other for other, _ in measured):
                        measured.append((point, values))
                elif trial in study.rows and trial.budget:
                    chosen.append(point)
        return measured, list(_different(chosen))

    def _point(self, there: Any, config: dict[str, Any], condition: Settings) -> Settings | None:
        """The point of the space that edits as a configuration does; None if there is none."""
        try:
            point = values_of(there, list(self.parsed.parts))
        except (KeyError, TypeError):  # another method, or a stage that is off
            return None
        if self.parsed.params(point) is None:
            return None
        merged = with_settings(config, Request("", "", point, condition).merged)
        return point if merged["intervention"] == there["intervention"] else None


def _different(points: Iterable[Settings]) -> Iterator[Settings]:
    """Each point once, in order."""
    seen: list[Settings] = []
    for point in points:
        if point not in seen:
            seen.append(point)
            yield point


def _values(records: Sequence[Record]) -> Values | None:
    """The scores and margins of records; None if there are none, since a trial failed."""
    if not records:
        return None
    return Values(np.array([r.score for r in records]), np.array([r.margin for r in records]))
