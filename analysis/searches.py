"""Searches replayed on a table of points: how good is the point that each finds, after how many samples?

    python -m analysis.searches study=search_table            # in a checkout
    python -m tdrs.analysis.searches study=search_table       # where tdrs is installed

The table is a finished study of the protocol `points`: what every point answers on every tuning sample, and its
accuracy on the held-out split, which no search sees. Each search is replayed with the images and the points in random
orders. Its regret is the best held-out accuracy of the table minus that of the point it would choose. The regrets are
stored in the study's folder; `measure=true` replays again, some ten minutes on a core.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import optuna
from optuna.trial import create_trial
from tqdm import tqdm

from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, redraw, save, set_title, stored_measurement
from tdrs.analysis.study_results import StudyResults
from tdrs.entry_point import run_command
from tdrs.environment import shows_progress
from tdrs.settings import SettingError
from tdrs.sweeps.protocol import SAMPLERS, silent_optuna
from tdrs.sweeps.race import Encoder, Race, Values
from tdrs.sweeps.space import Space
from tdrs.sweeps.trial import COMPLETE, STOCK, Settings

ORDERS = 200
WHOLE = (1, 2, 5, 10, 20, 40, 80)  # points that are measured on all samples, for searches that measure so
BUDGETS = (3200, 6400, 12800)  # samples, for the race


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


class RegretCurve(NamedTuple):
    """The regrets of a search, over random orders, by the number of samples it measured: median and quartiles."""

    name: str
    samples: list[float]
    median: list[float]
    low: list[float]
    high: list[float]


def table_of(study: StudyResults) -> Table:
    """The table of a finished study of the protocol `points`.

    Raises:
        SettingError: the study has another protocol, or several conditions.
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
    different = {by_split["tuning"][key].cache_key: key for key in reversed(keys)}
    different.pop(by_split["tuning"][STOCK].cache_key, None)
    rows = [STOCK, *(key for key in keys if key in different.values())]
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


def random_search(table: Table, seed: int) -> list[int]:
    """Points in random order, each measured whole; the number of the best one after each of `WHOLE`."""
    means = table.tuning
    return [int(means[:count].argmax()) for count in WHOLE if count <= len(means)]


def tpe_search(table: Table, seed: int) -> list[int]:
    """Points that TPE chooses, each measured whole; the number of the best one after each of `WHOLE`.

    A point that TPE asks for is the nearest one of the table that it has not had, and TPE is told so.
    """
    encoder = Encoder(table.space)
    positions = np.array([encoder(point) for point in table.points])
    means = table.tuning
    distributions = table.space.distributions()
    free, found = np.ones(len(positions), dtype=bool), []
    with silent_optuna():
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS["tpe"](seed))
        for _ in range(min(max(WHOLE), len(positions))):
            asked = study.ask(distributions)
            near = np.abs(positions - encoder(table.space.settings(asked.params))).sum(axis=1)
            number = int(np.where(free, near, np.inf).argmin())
            free[number] = False
            found.append(number)
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            params = table.space.params(table.points[number])
            study.add_trial(create_trial(params=params, distributions=distributions, value=float(means[number])))
    return [max(found[:count], key=lambda number: float(means[number])) for count in WHOLE if count <= len(found)]


def race(table: Table, seed: int, samples: int) -> tuple[int, int]:
    """The number of the point that a race chooses, and how many samples it measured."""
    numbers = {repr(point): number for number, point in enumerate(table.points)}

    def values(row: int, upto: int) -> Values:
        return Values(table.scores[row, :upto], table.margins[row, :upto])

    given: dict[str, Any] = {"seed": seed, "propose": lambda rng: table.points}
    images, weights, stock = table.images.tolist(), table.weights.tolist(), values(0, len(table.images))
    found = Race(table.space, images, weights, stock, [], samples, **given)
    while asked := found.ask():
        found.tell(asked, [values(1 + numbers[repr(one.settings)], one.upto) for one in asked])
    return numbers[repr(found.arms[found.chosen()].settings)], found.spent


def regret_curves(table: Table, orders: int = ORDERS) -> list[RegretCurve]:
    """The regrets of each search over random orders of images and points."""
    size = len(table.images)
    whole: dict[str, Callable[[Table, int], list[int]]] = {"random": random_search, "TPE": tpe_search}
    regrets: dict[str, list[list[float]]] = {name: [] for name in whole}
    raced: list[list[tuple[float, int]]] = []
    for seed in tqdm(range(orders), unit="order", disable=not shows_progress()):
        shuffled = table.shuffled(np.random.default_rng(seed))
        for name, search in whole.items():
            regrets[name].append([shuffled.regret(number) for number in search(shuffled, seed)])
        runs = [race(shuffled, seed, budget) for budget in BUDGETS]
        raced.append([(shuffled.regret(number), spent) for number, spent in runs])
    counts = [float(count * size) for count in WHOLE if count <= len(table.points)]
    curves = [_curve(name, counts, np.array(found)) for name, found in regrets.items()]
    both = np.array(raced)
    return [*curves, _curve("race", both[..., 1].mean(axis=0).tolist(), both[..., 0])]


def _curve(name: str, samples: list[float], regrets: np.ndarray) -> RegretCurve:
    low, median, high = np.quantile(regrets, [0.25, 0.5, 0.75], axis=0).tolist()
    return RegretCurve(name, samples, median, low, high)


def draw_regrets(curves: Sequence[RegretCurve], axes: GivenAxes = None, title: str = "") -> matplotlib.figure.Figure:
    """Draw the median regret in points against the samples measured, with quartiles as a band.

    Raises:
        SettingError: the number of Axes is wrong.
    """
    figure, (axis,) = axes_for(axes, [(0, 0)], (6.4, 4.2))
    for (color, marker), curve in zip(STYLES, curves, strict=False):
        low, median, high = (100 * np.array(values) for values in (curve.low, curve.median, curve.high))
        axis.plot(curve.samples, median, color=color, marker=marker, markersize=5, label=curve.name)
        axis.fill_between(curve.samples, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set(xscale="log", xlabel="tuning samples measured", ylabel="regret on the held-out split (points)")
    axis.set_ylim(bottom=0)
    axis.grid(color="0.92", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, title="median and quartiles")
    set_title([axis], axes, title)
    return figure


def main(arguments: list[str]) -> int:
    """The command."""

    def write(study: StudyResults) -> list[Path]:
        def measure() -> Mapping[str, Any]:
            return {"curves": [curve._asdict() for curve in regret_curves(table_of(study))]}

        again = "measure=true" in arguments
        values = stored_measurement(study.folder / "searches.json", study.outcome, measure, again)
        assert values is not None
        curves = [RegretCurve(**curve) for curve in values["curves"]]
        for curve in curves:
            shown = ", ".join(f"{n:.0f}: {100 * m:.1f}" for n, m in zip(curve.samples, curve.median, strict=True))
            print(f"{curve.name:8} median regret in points, by samples: {shown}")
        return save(draw_regrets(curves, title=f"{study.name}: {ORDERS} orders"), study.folder, "searches")

    return redraw(arguments, write, ("measure",))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
