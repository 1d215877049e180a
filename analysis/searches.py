"""Searches replayed on a table of points: how good is the point that each finds, after how many samples?

    python -m analysis.searches study=search_table            # in a checkout
    python -m tdrs.analysis.searches study=search_table       # where tdrs is installed
    python -m analysis.searches table=docs/search_tables/mini_llava_scienceqa.npz   # its file

The table is a finished study of the protocol `points`: what every point answers on every tuning sample, and its
accuracy on the held-out split, which no search sees (`analysis/search_table.py`). Each search is replayed with the
images and the points in random orders (`analysis/search_policies.py`). Its regret is the best held-out accuracy of the
table minus that of the point it would choose. The regrets are stored in `searches.json`; `measure=true` replays again.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
from tqdm import tqdm

from tdrs import checked_file
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, measure_again, redraw, save, set_title, stored_measurement
from tdrs.analysis.search_policies import Policy, available, race
from tdrs.analysis.search_table import Table, table_of
from tdrs.analysis.study_results import StudyResults
from tdrs.checked_file import Damaged
from tdrs.commands import parse
from tdrs.entry_point import run_command
from tdrs.environment import shows_progress
from tdrs.file_hash import file_hash
from tdrs.settings import SettingError, check_choice

ORDERS = 200
EVALUATIONS = (1, 2.5, 5, 10, 20, 40, 80, 160, 301)  # budgets, in evaluations of all tuning samples
LONGEST = 80  # evaluations of searches other than random, whose models take longer with each trial
FEWER = {"GP": 40}  # orders of searches that take many seconds each
RACED = (2.5, 5, 10, 20)  # those that a race is run with


class RegretCurve(NamedTuple):
    """The regrets of a search, over random orders, by the number of samples it may measure.

    Attributes:
        orders: how many random orders there were.
        samples: budgets; those within which some order's search chooses nothing are left out.
        median, low, high: the median regret and its quartiles.
        mean: the mean regret.
    """

    name: str
    orders: int
    samples: list[float]
    median: list[float]
    low: list[float]
    high: list[float]
    mean: list[float]


def regrets_of(table: Table, seed: int, policies: Mapping[str, Policy]) -> dict[str, list[float]]:
    """For each search the regret of its choice within each budget, in one random order.

    It is nan if a search has no choice yet, or does not spend the budget because it has ended. Pruned TPE never has
    one where no point is better than the stock model.
    """
    shuffled, size = table.shuffled(np.random.default_rng(seed)), len(table.images)
    found = {}
    for name, policy in policies.items():
        if seed >= FEWER.get(name, seed + 1):
            continue
        most = len(table.points) if name == "random" else LONGEST
        trajectory = policy(shuffled, seed, size * most)
        end = trajectory[-1][0] if trajectory else 0
        budgets = [size * n for n in EVALUATIONS if size * n < end + size]
        chosen = [[point for spent, point in trajectory if spent <= budget][-1:] for budget in budgets]
        chosen += [[]] * (len(EVALUATIONS) - len(budgets))
        found[name] = [shuffled.regret(one[0]) if one else math.nan for one in chosen]
    found["race"] = [
        shuffled.regret(race(shuffled, seed, round(size * n))[-1][1]) if n in RACED else math.nan for n in EVALUATIONS
    ]
    return found


def regret_curves(
    table: Table, orders: int = ORDERS, jobs: int = -1, policies: Mapping[str, Policy] | None = None
) -> list[RegretCurve]:
    """The regrets of each search over random orders of images and points.

    Args:
        jobs: processes that share the orders; −1 is one for each core.
        policies: the searches beside the race; None is all that are available.
    """
    from joblib import Parallel, delayed  # type: ignore[import-untyped]  # it sets an environment variable

    policies = available() if policies is None else policies
    seeds = tqdm(range(orders), unit="order", disable=not shows_progress())
    found = Parallel(n_jobs=jobs)(delayed(regrets_of)(table, seed, policies) for seed in seeds)
    size, curves = len(table.images), []
    for name in found[0]:
        each = np.array([one[name] for one in found if name in one])
        known = np.isfinite(each).all(axis=0)
        low, median, high = np.quantile(each[:, known], [0.25, 0.5, 0.75], axis=0).tolist()
        samples = (size * np.array(EVALUATIONS)[known]).tolist()
        curves.append(RegretCurve(name, len(each), samples, median, low, high, each[:, known].mean(axis=0).tolist()))
    return curves


def draw_regrets(curves: Sequence[RegretCurve], axes: GivenAxes = None, title: str = "") -> matplotlib.figure.Figure:
    """Draw the median regret in points against the samples measured. The race has its quartiles as a band.

    Raises:
        SettingError: the number of Axes is wrong.
    """
    figure, (axis,) = axes_for(axes, [(0, 0)], (7.2, 4.4))
    for number, curve in enumerate(curves):
        color, marker = STYLES[number % len(STYLES)]
        line: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "-" if number < len(STYLES) else "--"}
        axis.plot(curve.samples, 100 * np.array(curve.median), markersize=4, label=curve.name, **line)
    low, high = (100 * np.array(values) for values in (curve.low, curve.high))  # the last one is the race
    axis.fill_between(curve.samples, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set(xscale="log", xlabel="tuning samples measured", ylabel="regret on the held-out split (points)")
    axis.set_ylim(bottom=0)
    axis.grid(color="0.92", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, title="median of the orders", bbox_to_anchor=(1, 1), loc="upper left")
    set_title([axis], axes, title)
    return figure


def measured(table: Table) -> Mapping[str, Any]:
    """The regret curves of a table, as they are stored."""
    return {"curves": [curve._asdict() for curve in regret_curves(table)]}


def write_regrets(values: Mapping[str, Any], table: Path) -> list[Path]:
    """Print the regrets on a table and write their figure beside it."""
    curves = [RegretCurve(**curve) for curve in values["curves"]]
    budgets = sorted({n for curve in curves for n in curve.samples})
    print("median (mean) regret in points over random orders, within a number of tuning samples")
    print("          orders" + "".join(f"{n:>13.0f}" for n in budgets))
    for curve in curves:
        shown = {
            n: f"{100 * m:.1f} ({100 * a:.1f})" for n, m, a in zip(curve.samples, curve.median, curve.mean, strict=True)
        }
        print(f"{curve.name:12}{curve.orders:>4}" + "".join(f"{shown.get(n, ''):>13}" for n in budgets))
    return save(
        draw_regrets(curves, title=f"{max(curve.orders for curve in curves)} random orders"), table.parent, table.stem
    )


def of_table(path: Path, again: bool) -> list[Path]:
    """Write the regrets on a table in a file of `Table.save`, beside it.

    Raises:
        SettingError: the file is not such a table.
    """
    table, stored = Table.load(path), path.with_suffix(".json")
    key = file_hash(path)
    try:
        values = checked_file.read_json(stored, key)
    except (FileNotFoundError, Damaged):
        again = True
    if again:
        values = dict(measured(table))
        checked_file.write_json(stored, values, key)
    return write_regrets(values, path)


def of_study(study: StudyResults, again: bool) -> list[Path]:
    """Write the regrets on a study's table, and the table, into the study's folder.

    Raises:
        SettingError: the study is not of the protocol `points`, or it has several conditions.
    """
    table, path = table_of(study), study.folder / "search_table.npz"
    values = stored_measurement(study.folder / "searches.json", study.outcome, lambda: measured(table), again)
    assert values is not None
    table.save(path)
    return [path, *write_regrets(values, path)]


def main(arguments: list[str]) -> int:
    """The command."""
    words, given = parse(arguments)
    if "table" not in given:
        return redraw(arguments, lambda study: of_study(study, measure_again(given)), ("measure",))
    try:
        for key in [*words, *given]:
            check_choice("option", key, ("table", "measure"))
        written = of_table(Path(given["table"]), measure_again(given))
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
