"""Sensitivity curves (the paper's Figure 3): accuracy on the tuning split against each setting, swept in turn.

    python -m analysis.sensitivity study=sqa_ablation            # in a checkout
    python -m tdrs.analysis.sensitivity study=sqa_ablation       # where tdrs is installed

redraws the figure from the study's `study.json`, without a model.
"""

import json
import sys
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from tdrs.analysis.evidence import where
from tdrs.analysis.figure import STYLES, redraw, save
from tdrs.sweeps.trial import STOCK, Outcome

from tdrs import escape
from tdrs.entry_point import run_command
from tdrs.settings import SettingError

TICKS_ABOVE = 0.01  # below it a symmetric-log axis is linear, so that 0 has a position


class Series(NamedTuple):
    """One curve: values swept, accuracies with 95 % limits, the chosen value."""

    name: str
    values: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]
    best: float


class Panel(NamedTuple):
    """One setting: key, axis label, the paper's value, a curve a series; `has_zero` asks for an axis that shows 0."""

    key: str
    label: str
    paper: float
    series: list[Series]

    @property
    def has_zero(self) -> bool:
        return any(0 in series.values for series in self.series)


class Line(NamedTuple):
    """One condition (a backbone and a data set): its panels in the protocol's order, the stock model's accuracy with
    its limits, and the number of samples."""

    condition: str
    n: int
    stock: tuple[float, float, float]
    panels: list[Panel]


def numbers(outcome: Outcome) -> list[Line]:
    """The figure's numbers, from a finished study's stored evaluations: the first round, a line a condition."""
    lines: dict[str, Line] = {}
    for trial in outcome.trials:
        if trial.name == STOCK and trial.metrics:
            lines[json.dumps(trial.condition)] = Line(where(outcome, trial.condition), trial.n, trial.accuracy, [])
    for curve in outcome.curves:
        line = lines.get(json.dumps(curve.condition))
        if curve.round > 1 or line is None:
            continue
        panel = next((p for p in line.panels if p.key == curve.key), None)
        if panel is None:
            panel = Panel(curve.key, curve.label, curve.paper, [])
            line.panels.append(panel)
        trials = [outcome.trials[number] for number in curve.trials]
        points = sorted((value, *t.accuracy) for value, t in zip(curve.values, trials, strict=True) if t.metrics)
        panel.series.append(
            Series(
                name=curve.series,
                values=[point[0] for point in points],
                accuracy=[point[1] for point in points],
                low=[point[2] for point in points],
                high=[point[3] for point in points],
                best=curve.chosen,
            )
        )
    return list(lines.values())


def draw(lines: list[Line], folder: Path, stamp: Mapping[str, str] | None = None) -> list[Path]:
    """Draw `sensitivity.png` and `sensitivity.svg` into a folder, with a study's stamp; returns their paths."""
    if not any(line.panels for line in lines):
        allowed = "has no curves: they are those of the protocol coordinate, of trials that were measured"
        raise SettingError("study", (stamp or {}).get("Title"), allowed)
    count = max(len(line.panels) for line in lines)
    canvas, axes = plt.subplots(
        len(lines), count, figsize=(3.6 * count, 3.4 * len(lines) + 0.9), sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, line in zip(axes, lines, strict=True):
        for number, (axis, panel) in enumerate(zip(row, line.panels, strict=True), start=1):
            _panel(axis, panel, line.stock)
            axis.set_title(f"{number}. {escape.formula(panel.label.split(' (')[0])}", fontsize=10)
        row[0].set_ylabel(f"{escape.label(line.condition)}\naccuracy on the tuning split (n = {line.n})", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    handles.append(Line2D([], [], linestyle="", marker="o", color="0.3", markersize=11, markerfacecolor="none"))
    labels.append("chosen, and kept for the next panels")
    canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    canvas.suptitle("T-DRS: each setting in turn, the earlier ones at their best; 95 % intervals", fontsize=11)
    return save(canvas, folder, "sensitivity", stamp, dpi=150)


def _panel(axis: Axes, panel: Panel, stock: tuple[float, float, float]) -> None:
    value, low, high = stock
    axis.axhspan(low, high, color="0.92", zorder=0)
    axis.axhline(value, color="0.35", linestyle="--", linewidth=1, label="stock, with its interval")
    axis.axvline(panel.paper, color="0.6", linestyle=":", linewidth=1.2, label="paper's value", zorder=1)
    if panel.has_zero:
        axis.set_xscale("symlog", linthresh=TICKS_ABOVE, linscale=0.6)
    else:
        axis.set_xscale("log")
    positive = [value for series in panel.series for value in series.values if value > 0]
    width = max(positive) / min(positive) if positive else 1
    for number, ((color, marker), series) in enumerate(zip(cycle(STYLES), panel.series, strict=False)):
        # side by side, so that no interval hides another
        shift = width ** (0.012 * (number - (len(panel.series) - 1) / 2))
        shown = [value * shift for value in series.values]
        errors = [
            [a - b for a, b in zip(series.accuracy, series.low, strict=True)],
            [b - a for a, b in zip(series.accuracy, series.high, strict=True)],
        ]
        axis.errorbar(
            shown,
            series.accuracy,
            yerr=errors,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            label=f"gain = {series.name}" if series.name in ("logits", "weights") else escape.label(series.name),
        )
        if series.best not in series.values:  # it failed
            continue
        at = series.values.index(series.best)
        axis.plot(
            shown[at],
            series.accuracy[at],
            marker,
            color=color,
            markersize=11,
            markerfacecolor="none",
            markeredgewidth=1.4,
        )
    if panel.has_zero:
        axis.set_xlim(-0.003, max(value for series in panel.series for value in series.values) * 1.6)
        axis.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
        axis.minorticks_off()
    axis.set_xlabel(escape.formula(panel.label))
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def main(arguments: list[str]) -> int:
    """The command."""
    return redraw(arguments, lambda outcome, folder: draw(numbers(outcome), folder, outcome.stamp))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
