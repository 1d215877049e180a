"""Paired differences to the stock model on the held-out split, for every row of a study; a panel for each condition.

    python -m analysis.comparison study=peers            # in a checkout
    python -m tdrs.analysis.comparison study=peers       # where tdrs is installed

redraws the figure and its table from the study's `study.json`, without a model. From Python:
`tdrs.plot.comparison(study)`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
from matplotlib.axes import Axes

from tdrs import escape
from tdrs.analysis.answer_bias import Controls, readings
from tdrs.analysis.evidence import condition_name
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, redraw, save, set_title
from tdrs.analysis.samples import row_link
from tdrs.analysis.study_results import StudyResults
from tdrs.entry_point import run_command
from tdrs.settings import SettingError
from tdrs.sweeps.trial import STOCK, Outcome

COLUMNS = 4  # panels in a row, at most


class RowDifference(NamedTuple):
    """A row: its accuracy, its paired difference to the stock model with 95 % limits, and whether it was tuned.

    `link` is the address of its samples, which the SVG's point leads to; "" is none.
    """

    method: str
    accuracy: float
    difference: float
    low: float
    high: float
    tuned: bool
    link: str = ""


class ConditionDifferences(NamedTuple):
    """A condition: how many samples, the stock model's accuracy with 95 % limits, and the other rows."""

    condition: str
    n: int
    stock: tuple[float, float, float]
    rows: list[RowDifference]


def paired_differences(outcome: Outcome) -> list[ConditionDifferences]:
    """The differences of a finished study, one item for each condition.

    A row is left out if it failed or its stock model did.
    """
    found: list[ConditionDifferences] = []
    for row in outcome.rows:
        if row.name == STOCK and row.metrics:
            found.append(ConditionDifferences(condition_name(outcome, row.condition), row.n, row.accuracy, []))
        elif row.difference:
            value, low, high = row.difference
            found[-1].rows.append(RowDifference(row.name, row.score, value, low, high, row.budget > 0, row_link(row)))
    return found


def draw_comparison(
    differences: list[ConditionDifferences], axes: GivenAxes = None, warning: str = "", study: str = ""
) -> matplotlib.figure.Figure:
    """Draw a panel for each condition; return the figure.

    Args:
        axes: one Axes for each condition; None makes a figure.
        warning: what must be said before the result; it takes the title's place.
        study: the study's name, for the error message.

    Raises:
        SettingError: no row has a difference, or the number of Axes is wrong.
    """
    if not any(condition.rows for condition in differences):
        raise SettingError("study", study, "has no row beside a whole stock model")
    backbones = {condition.condition.split(", ")[0] for condition in differences}
    even = len(differences) // len(backbones) if len(differences) % len(backbones) == 0 else len(differences)
    columns = even if 1 < even <= COLUMNS else min(COLUMNS, len(differences))  # a row for each backbone if that fits
    cells = [divmod(number, columns) for number in range(len(differences))]
    height = 0.28 * max(len(condition.rows) for condition in differences) + 0.9
    size = (2.2 + 2.6 * columns, height * (1 + cells[-1][0]) + 0.7)
    figure, panels = axes_for(axes, cells, size, sharex=True, sharey=True)
    for axis, condition in zip(panels, differences, strict=True):
        _draw_condition(axis, condition)
    meaning = (
        "accuracy, difference to the stock model (points; paired, 95 % intervals)\n"
        "● better   ■ worse   ◆ the interval holds 0"
    )
    if axes is None:
        figure.supxlabel(meaning, fontsize=9)
    else:
        for axis in panels:
            axis.set_xlabel(meaning, fontsize=8)
    tuned = any(row.tuned for condition in differences for row in condition.rows)
    how = "tuned rows chosen on the tuning split" if tuned else "settings given beforehand"
    set_title(panels, axes, f"Held-out split, {how}", escape.label(warning, 120))
    return figure


def _draw_condition(axis: Axes, condition: ConditionDifferences) -> None:
    axis.axvline(0, color="0.35", linestyle="--", linewidth=1)
    for number, row in enumerate(condition.rows):
        color, marker = STYLES[0] if row.low > 0 else STYLES[1] if row.high < 0 else ("0.45", "D")
        # with few samples a limit may equal the difference except for rounding
        errors = [[100 * max(0, row.difference - row.low)], [100 * max(0, row.high - row.difference)]]
        style: dict[str, Any] = {"markersize": 5, "capsize": 2, "elinewidth": 1}
        drawn = axis.errorbar([100 * row.difference], [number], xerr=errors, color=color, marker=marker, **style)
        drawn.lines[0].set_url(row.link or None)
    axis.set_yticks(range(len(condition.rows)), [escape.label(row.method, 40) for row in condition.rows], fontsize=9)
    axis.set_ylim(len(condition.rows) - 0.4, -0.6)
    stock = f"stock {condition.stock[0]:.3f}, n = {condition.n}"
    axis.set_title(f"{escape.label(condition.condition)}\n{stock}", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)


def markdown(differences: list[ConditionDifferences], controls: Controls | None = None) -> str:
    """All numbers as a table, a line for each condition and row, and for what `answer_bias` says below a row."""
    lines = ["| condition | method | n | accuracy | difference to stock [95 %] |", "|---|---|---|---|---|"]
    for condition in differences:

        def line(name: str, accuracy: float, difference: str = "", head: str = "", n: int = condition.n) -> str:
            shown = [escape.markdown(head), escape.markdown(name), str(n), f"{accuracy:.3f}", difference]
            return f"| {' | '.join(shown)} |".replace("|  |", "| |").replace("|  |", "| |")

        def below(row: str, at: str = condition.condition) -> list[str]:
            found = readings(controls, at, row)
            return [line(one.name, one.accuracy.value, _shown(*one.difference)) for one in found]

        lines += [line("stock", condition.stock[0], head=condition.condition), *below(STOCK)]
        for row in condition.rows:
            lines.append(line(row.method, row.accuracy, _shown(row.difference, row.low, row.high)))
            lines += below(row.method)
    return "\n".join(lines) + "\n"


def _shown(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def write_comparison(
    differences: list[ConditionDifferences],
    folder: Path,
    warning: str = "",
    stamp: Mapping[str, str] | None = None,
    controls: Controls | None = None,
) -> list[Path]:
    """Write `comparison.png`, `comparison.svg` and `comparison.md`; return their paths.

    Args:
        stamp: which study the figure belongs to, for the files' metadata.
        controls: for yes/no questions; the table has them, the figure has not.
    """
    figure = draw_comparison(differences, warning=warning, study=(stamp or {}).get("Title", ""))
    table = folder / "comparison.md"
    table.write_text(markdown(differences, controls), encoding="utf-8")
    return [*save(figure, folder, "comparison", stamp), table]


def main(arguments: list[str]) -> int:
    """The command."""

    def write(study: StudyResults) -> list[Path]:
        differences = paired_differences(study.outcome)
        return write_comparison(differences, study.folder, study.warning, study.outcome.stamp, study.controls)

    return redraw(arguments, write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
