"""Paired differences to the stock model on the held-out split, of every row of a study's table: a panel a condition.

    python -m analysis.comparison study=peers            # in a checkout
    python -m tdrs.analysis.comparison study=peers       # where tdrs is installed

redraws the figure and the table from the study's `study.json`, without a model.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tdrs.analysis.evidence import where
from tdrs.analysis.figure import STYLES, redraw, save
from tdrs.sweeps.trial import STOCK, Outcome

from tdrs import escape
from tdrs.entry_point import run_command
from tdrs.settings import SettingError

COLUMNS = 4  # panels a row


class Row(NamedTuple):
    """A method: its accuracy, its paired difference to the stock model with 95 % limits, whether it was tuned."""

    method: str
    accuracy: float
    difference: float
    low: float
    high: float
    tuned: bool


class Panel(NamedTuple):
    """A condition: what it is, how many samples, the stock model's accuracy with 95 % limits, a row a method."""

    condition: str
    n: int
    stock: tuple[float, float, float]
    rows: list[Row]


def numbers(outcome: Outcome) -> list[Panel]:
    """The figure's numbers, from a finished study; a row that failed, or whose stock model did, is left out."""
    panels: list[Panel] = []
    for row in outcome.rows:
        if row.name == STOCK and row.metrics:
            panels.append(Panel(where(outcome, row.condition), row.n, row.accuracy, []))
        elif row.difference:
            value, low, high = row.difference
            panels[-1].rows.append(Row(row.name, row.score, value, low, high, row.budget > 0))
    return panels


def draw(panels: list[Panel], folder: Path, warning: str = "", stamp: Mapping[str, str] | None = None) -> list[Path]:
    """Write `comparison.png`, `comparison.svg` and `comparison.md` into a folder; returns their paths.

    Args:
        warning: what must be said of the result first, in condition of the title.
        stamp: whose figure it is, for the files' metadata.
    """
    if not any(panel.rows for panel in panels):
        raise SettingError("study", (stamp or {}).get("Title"), "has no row beside a whole stock model")
    firsts = {panel.condition.split(", ")[0] for panel in panels}
    even = len(panels) // len(firsts) if len(panels) % len(firsts) == 0 else len(panels)
    columns = even if 1 < even <= COLUMNS else min(COLUMNS, len(panels))  # a row for each backbone, where that fits
    lines = -(-len(panels) // columns)
    height = 0.28 * max(len(panel.rows) for panel in panels) + 0.9
    canvas, axes = plt.subplots(
        lines, columns, figsize=(2.2 + 2.6 * columns, height * lines + 0.7),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis, panel in zip(axes.flat, panels, strict=False):
        _panel(axis, panel)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    canvas.supxlabel(
        "accuracy, difference to the stock model (points; paired, 95 % intervals)\n"
        "● better   ■ worse   ◆ the interval holds 0",
        fontsize=9,
    )
    tuned = any(row.tuned for panel in panels for row in panel.rows)
    how = "tuned rows chosen on the tuning split" if tuned else "settings given beforehand"
    canvas.suptitle(escape.label(warning, 120) or f"Held-out split, {how}", fontsize=11)
    table = folder / "comparison.md"
    table.write_text(markdown(panels), encoding="utf-8")
    return [*save(canvas, folder, "comparison", stamp), table]


def _panel(axis: Axes, panel: Panel) -> None:
    axis.axvline(0, color="0.35", linestyle="--", linewidth=1)
    for number, row in enumerate(panel.rows):
        color, marker = STYLES[0] if row.low > 0 else STYLES[1] if row.high < 0 else ("0.45", "D")
        errors = [[100 * (row.difference - row.low)], [100 * (row.high - row.difference)]]
        style: dict[str, Any] = {"markersize": 5, "capsize": 2, "elinewidth": 1}
        axis.errorbar([100 * row.difference], [number], xerr=errors, color=color, marker=marker, **style)
    axis.set_yticks(range(len(panel.rows)), [escape.label(row.method, 40) for row in panel.rows], fontsize=9)
    axis.set_ylim(len(panel.rows) - 0.4, -0.6)
    axis.set_title(f"{escape.label(panel.condition)}\nstock {panel.stock[0]:.3f}, n = {panel.n}", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)


def markdown(panels: list[Panel]) -> str:
    """All numbers as a table, a row a condition and method."""
    lines = ["| condition | method | n | accuracy | difference to stock [95 %] |", "|---|---|---|---|---|"]
    for panel in panels:
        lines.append(f"| {escape.markdown(panel.condition)} | stock | {panel.n} | {panel.stock[0]:.3f} | |")
        for row in panel.rows:
            difference = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            lines.append(f"| | {escape.markdown(row.method)} | {panel.n} | {row.accuracy:.3f} | {difference} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    drawn = lambda found, folder: draw(numbers(found), folder, found.warning, found.stamp)  # noqa: E731
    sys.exit(run_command(lambda: redraw(sys.argv[1:], drawn)))
