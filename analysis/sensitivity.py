"""Sensitivity curves (the paper's Figure 3): accuracy on the tuning split against each setting, swept in turn.

    python -m analysis.sensitivity study=sqa_ablation            # in a checkout
    python -m tdrs.analysis.sensitivity study=sqa_ablation       # where tdrs is installed

redraws the figure from the study's `study.json`, without a model.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from tdrs.sweeps.study import Outcome

from tdrs.settings import SettingError

# Okabe & Ito's palette: told apart by the colour-blind, and by their markers in black and white.
STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"),
    ("#E69F00", "v"), ("#56B4E9", "P"), ("0.2", "X"),
)  # fmt: skip
TICKS_ABOVE = 0.01  # below it a symmetric-log axis is linear, so that 0 has a place


class Series(NamedTuple):
    """One curve: values swept, accuracies with 95 % limits, the chosen value."""

    name: str
    values: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]
    best: float


class Panel(NamedTuple):
    """One setting: its axis label, the paper's value, a curve a series; `has_zero` asks for an axis that shows 0."""

    label: str
    paper: float
    series: list[Series]

    @property
    def has_zero(self) -> bool:
        return any(0 in series.values for series in self.series)


class Sensitivity(NamedTuple):
    """All panels in the protocol's order, the stock model's accuracy with its limits, and what was measured on."""

    title: str
    n: int
    stock: tuple[float, float, float]
    panels: list[Panel]


def numbers(outcome: Outcome) -> Sensitivity:
    """The figure's numbers, from a finished study's stored evaluations."""
    panels: dict[str, Panel] = {}
    for curve in outcome.curves:
        points = sorted(curve.points, key=lambda point: point.value)
        panel = panels.setdefault(curve.step.key, Panel(curve.step.label, curve.step.paper, []))
        metrics = [point.metrics for point in points]
        panel.series.append(
            Series(
                name=curve.series,
                values=[point.value for point in points],
                accuracy=[m["accuracy"] for m in metrics],
                low=[m["accuracy_low"] for m in metrics],
                high=[m["accuracy_high"] for m in metrics],
                best=curve.best.value,
            )
        )
    config = outcome.config
    gap = config["dataset"].get("gap")
    where = f"{config['backbone']['name']}, {config['dataset']['name']}" + (f" at a gap of {gap} tokens" if gap else "")
    stock = outcome.stock
    return Sensitivity(
        title=f"T-DRS in {where}",
        n=config["preset"]["tuning"],
        stock=(stock["accuracy"], stock["accuracy_low"], stock["accuracy_high"]),
        panels=list(panels.values()),
    )


def draw(figure: Sensitivity, folder: Path) -> list[Path]:
    """Draw `sensitivity.png` and `sensitivity.svg` into a folder; returns their paths."""
    count = len(figure.panels)
    canvas, axes = plt.subplots(1, count, figsize=(3.6 * count, 4.2), sharey=True, squeeze=False, layout="constrained")
    for number, (axis, panel) in enumerate(zip(axes[0], figure.panels, strict=True), start=1):
        _panel(axis, panel, figure.stock)
        axis.set_title(f"{number}. {panel.label.split(' (')[0]}", fontsize=10)
    axes[0][0].set_ylabel(f"accuracy on the tuning split (n = {figure.n})")
    handles, labels = axes[0][0].get_legend_handles_labels()
    handles.append(Line2D([], [], linestyle="", marker="o", color="0.3", markersize=11, markerfacecolor="none"))
    labels.append("chosen, and kept for the next panels")
    canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    canvas.suptitle(
        f"{figure.title}: each setting in turn, the earlier ones at their best; 95 % intervals", fontsize=11
    )
    paths = [folder / "sensitivity.png", folder / "sensitivity.svg"]
    for path in paths:
        canvas.savefig(path, dpi=150)
    plt.close(canvas)
    return paths


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
    width = max(positive) / min(positive)
    for number, ((color, marker), series) in enumerate(zip(STYLES, panel.series, strict=False)):
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
            label=f"gain = {series.name}" if series.name in ("logits", "weights") else series.name,
        )
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
        axis.set_xlim(-0.003, max(max(series.values) for series in panel.series) * 1.6)
        axis.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
        axis.minorticks_off()
    axis.set_xlabel(panel.label)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def redraw(arguments: list[str], draw_from: Callable[[Path, Path], list[Path]]) -> int:
    """Redraw a figure from stored records: `study=NAME [output=FOLDER]`; returns the exit code.

    Args:
        draw_from: from a study's `study.json` and its folder to the files written.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    folder = Path(given.get("output", "outputs")) / given.get("study", "")
    try:
        if "study" not in given or not (folder / "study.json").exists():
            have = sorted(p.parent.name for p in Path(given.get("output", "outputs")).glob("*/study.json"))
            raise SettingError(
                "study", given.get("study"), f"must be a finished study: {', '.join(have) or 'none yet'}"
            )
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in draw_from(folder / "study.json", folder):
        print(path)
    return 0


def main(arguments: list[str]) -> int:
    """The command."""
    return redraw(arguments, lambda path, folder: draw(numbers(Outcome.read(path)), folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
