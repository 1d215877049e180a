"""Sensitivity curves (the paper's Figure 3): accuracy on the tuning split against each setting, swept in turn.

    python -m analysis.sensitivity study=sqa_ablation            # in a checkout
    python -m tdrs.analysis.sensitivity study=sqa_ablation       # where tdrs is installed

redraws the figure from the study's `study.json`, without a model. From Python: `tdrs.plot.sensitivity(study)`.
"""

import json
import sys
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tdrs import escape
from tdrs.analysis.evidence import condition_name
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, redraw, save, set_title
from tdrs.analysis.study_results import StudyResults
from tdrs.entry_point import run_command
from tdrs.settings import SettingError
from tdrs.sweeps.trial import STOCK, Outcome

LINEAR_BELOW = 0.01  # a symmetric-log axis is linear below this value, so that it can show 0


class SeriesCurve(NamedTuple):
    """A series' accuracy at each value of one setting, with 95 % limits, and the value that was chosen."""

    name: str
    values: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]
    best: float


class SettingCurves(NamedTuple):
    """One setting under one condition: its key, label and value in the paper, and a curve for each series."""

    key: str
    label: str
    paper: float
    series: list[SeriesCurve]

    @property
    def has_zero(self) -> bool:
        """Whether the axis must show 0."""
        return any(0 in series.values for series in self.series)


class ConditionCurves(NamedTuple):
    """One condition: how many samples, the stock model's accuracy with its limits, and the settings in their order."""

    condition: str
    n: int
    stock: tuple[float, float, float]
    settings: list[SettingCurves]


def sensitivity_curves(outcome: Outcome) -> list[ConditionCurves]:
    """The curves of a finished study of the protocol `coordinate`, from its first round; one item for each condition.

    Other protocols have no curves: their conditions have no settings here.
    """
    found: dict[str, ConditionCurves] = {}
    for trial in outcome.trials:
        if trial.name == STOCK and trial.metrics:
            name = condition_name(outcome, trial.condition)
            found[json.dumps(trial.condition)] = ConditionCurves(name, trial.n, trial.accuracy, [])
    for curve in outcome.curves:
        condition = found.get(json.dumps(curve.condition))
        if curve.round > 1 or condition is None:
            continue
        setting = next((one for one in condition.settings if one.key == curve.key), None)
        if setting is None:
            setting = SettingCurves(curve.key, curve.label, curve.paper, [])
            condition.settings.append(setting)
        trials = [outcome.trials[number] for number in curve.trials]
        points = sorted((value, *t.accuracy) for value, t in zip(curve.values, trials, strict=True) if t.metrics)
        setting.series.append(
            SeriesCurve(
                name=curve.series,
                values=[point[0] for point in points],
                accuracy=[point[1] for point in points],
                low=[point[2] for point in points],
                high=[point[3] for point in points],
                best=curve.chosen,
            )
        )
    return list(found.values())


def draw_sensitivity(
    curves: list[ConditionCurves], axes: GivenAxes = None, study: str = ""
) -> matplotlib.figure.Figure:
    """Draw a panel for each condition (rows) and setting (columns); return the figure.

    Args:
        axes: one Axes for each panel, row by row; None makes a figure.
        study: the study's name, for the error message.

    Raises:
        SettingError: there are no curves, or the number of Axes is wrong.
    """
    cells = [(row, column) for row, one in enumerate(curves) for column in range(len(one.settings))]
    if not cells:
        allowed = "has no curves: they are those of the protocol coordinate, of trials that were measured"
        raise SettingError("study", study, allowed)
    columns = 1 + max(column for _, column in cells)
    size = (3.6 * columns, 3.4 * len(curves) + 0.9)
    figure, panels = axes_for(axes, cells, size, sharey="row")
    for axis, (row, column) in zip(panels, cells, strict=True):
        condition = curves[row]
        setting = condition.settings[column]
        _draw_setting(axis, setting, condition.stock)
        axis.set_title(f"{column + 1}. {escape.formula(setting.label.split(' (')[0])}", fontsize=10)
        if column == 0:
            name = escape.label(condition.condition)
            axis.set_ylabel(f"{name}\naccuracy on the tuning split (n = {condition.n})", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    handles.append(Line2D([], [], linestyle="", marker="o", color="0.3", markersize=11, markerfacecolor="none"))
    labels.append("chosen, and kept for the next panels")
    if axes is None:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    else:
        panels[0].legend(handles, labels, frameon=False, fontsize=7)
    set_title(panels, axes, "T-DRS: each setting in turn, the earlier ones at their best; 95 % intervals")
    return figure


def _draw_setting(axis: Axes, setting: SettingCurves, stock: tuple[float, float, float]) -> None:
    value, low, high = stock
    axis.axhspan(low, high, color="0.92", zorder=0)
    axis.axhline(value, color="0.35", linestyle="--", linewidth=1, label="stock, with its interval")
    axis.axvline(setting.paper, color="0.6", linestyle=":", linewidth=1.2, label="paper's value", zorder=1)
    if setting.has_zero:
        axis.set_xscale("symlog", linthresh=LINEAR_BELOW, linscale=0.6)
    else:
        axis.set_xscale("log")
    positive = [value for series in setting.series for value in series.values if value > 0]
    width = max(positive) / min(positive) if positive else 1
    for number, ((color, marker), series) in enumerate(zip(cycle(STYLES), setting.series, strict=False)):
        # side by side, so that no interval hides another one
        shift = width ** (0.012 * (number - (len(setting.series) - 1) / 2))
        shown = [value * shift for value in series.values]
        errors = [
            [a - b for a, b in zip(series.accuracy, series.low, strict=True)],
            [b - a for a, b in zip(series.accuracy, series.high, strict=True)],
        ]
        label = f"gain = {series.name}" if series.name in ("logits", "weights") else escape.label(series.name)
        axis.errorbar(
            shown, series.accuracy, yerr=errors, color=color, marker=marker, label=label,
            markersize=5, linewidth=1.4, elinewidth=0.8, capsize=2,
        )  # fmt: skip
        if series.best not in series.values:  # its trial failed
            continue
        at = series.values.index(series.best)
        ring: dict[str, Any] = {"color": color, "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.4}
        axis.plot(shown[at], series.accuracy[at], marker, **ring)
    if setting.has_zero:
        axis.set_xlim(-0.003, max(value for series in setting.series for value in series.values) * 1.6)
        axis.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
        axis.minorticks_off()
    axis.set_xlabel(escape.formula(setting.label))
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def write_sensitivity(
    curves: list[ConditionCurves], folder: Path, stamp: Mapping[str, str] | None = None
) -> list[Path]:
    """Write `sensitivity.png` and `sensitivity.svg`; return their paths.

    Args:
        stamp: which study the figure belongs to, for the files' metadata.
    """
    figure = draw_sensitivity(curves, study=(stamp or {}).get("Title", ""))
    return save(figure, folder, "sensitivity", stamp, dpi=150)


def main(arguments: list[str]) -> int:
    """The command."""

    def write(study: StudyResults) -> list[Path]:
        return write_sensitivity(sensitivity_curves(study.outcome), study.folder, study.outcome.stamp)

    return redraw(arguments, write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
