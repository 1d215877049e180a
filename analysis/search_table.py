"""A table for replays of searches: what each point of a space answers on every tuning sample.

It comes from a finished study of the protocol `points` and is kept in one small file.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from tdrs.analysis.study_results import StudyResults
from tdrs.settings import SettingError
from tdrs.sweeps.space import Space
from tdrs.sweeps.trial import COMPLETE, STOCK, Settings


class Table(NamedTuple):
    """What points of a space answer.

    Attributes:
        points: different ones, none of which edits as another does.
        scores, margins: of the tuning samples, (1 + points, samples); the first row is the stock model's.
        images, weights: of the tuning samples.
        held_out: accuracies on the held-out split, (1 + points,).
    """

    space: Space
    points: list[Settings]
    scores: np.ndarray
    margins: np.ndarray
    images: np.ndarray
    weights: np.ndarray
    held_out: np.ndarray

    def save(self, path: Path) -> None:
        """Write the table: scores as they are, margins in half precision, both compressed."""
        about = {"space": self.space.plain, "points": self.points}
        np.savez_compressed(
            path,
            about=np.array(json.dumps(about)),
            scores=self.scores.astype(np.uint8 if np.isin(self.scores, (0, 1)).all() else np.float32),
            margins=self.margins.astype(np.float16),
            images=self.images,
            weights=self.weights,
            held_out=self.held_out,
        )

    @classmethod
    def load(cls, path: Path) -> "Table":
        """Read what `save` wrote.

        Raises:
            SettingError: the file is not such a table.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in ("scores", "margins", "images", "weights", "held_out")}
                about = json.loads(str(file["about"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise SettingError("table", str(path), "must be a file that `analysis.searches` wrote") from error
        scores, margins = found.pop("scores").astype(float), found.pop("margins").astype(float)
        return cls(Space.of(about["space"], "space"), about["points"], scores, margins, **found)

    def shuffled(self, rng: np.random.Generator) -> "Table":
        """The table with its images and its points in another order."""
        _, index = np.unique(self.images, return_inverse=True)
        place = rng.permutation(int(index.max()) + 1)
        samples = np.argsort(place[index], kind="stable")
        order = rng.permutation(len(self.points))
        rows = np.concatenate(([0], order + 1))
        scores, margins = (values[np.ix_(rows, samples)] for values in (self.scores, self.margins))
        points = [self.points[number] for number in order]
        return Table(
            self.space, points, scores, margins, self.images[samples], self.weights[samples], self.held_out[rows]
        )

    @property
    def tuning(self) -> np.ndarray:
        """The points' accuracies on the tuning split, (points,)."""
        return np.average(self.scores[1:], axis=1, weights=self.weights)

    def regret(self, number: int) -> float:
        """The regret of a point."""
        return float(self.held_out[1:].max() - self.held_out[1 + number])


def table_of(study: StudyResults) -> Table:
    """The table of a finished study of the protocol `points`.

    Raises:
        SettingError: the study has another protocol, several conditions, or no point that was measured.
    """
    outcome = study.outcome
    if outcome.protocol != "points" or len(study.conditions) > 1:
        raise SettingError("study", study.name, "must be of the protocol points, with one condition")
    space = Space.of(outcome.config["search"]["space"], "search.space")
    by_split: dict[str, dict[str, Any]] = {"tuning": {}, "held_out": {}}
    for trial in [*outcome.rows, *outcome.trials]:
        if trial.status == COMPLETE and trial.name in (STOCK, "point"):
            key = STOCK if trial.name == STOCK else repr(sorted(trial.settings.items()))
            by_split[trial.split].setdefault(key, trial)
    keys = [key for key in by_split["tuning"] if key in by_split["held_out"] and key != STOCK]
    if any(STOCK not in trials for trials in by_split.values()):
        raise SettingError("study", study.name, "cannot be a table: the stock model failed on a split")
    different = {by_split["tuning"][key].cache_key: key for key in reversed(keys)}
    different.pop(by_split["tuning"][STOCK].cache_key, None)
    rows = [STOCK, *(key for key in keys if key in different.values())]
    if len(rows) == 1:
        allowed = "cannot be a table: no point was measured on both splits and edits what the stock model does"
        raise SettingError("study", study.name, allowed)
    records = [study.records.read(by_split["tuning"][key].cache_key).records for key in rows]
    return Table(
        space=space,
        points=[by_split["tuning"][key].settings for key in rows[1:]],
        scores=np.array([[record.score for record in some] for some in records]),
        margins=np.array([[record.margin for record in some] for some in records]),
        images=np.array([record.image_id for record in records[0]]),
        weights=np.array([record.weight for record in records[0]]),
        held_out=np.array([by_split["held_out"][key].metrics["accuracy"] for key in rows]),
    )
