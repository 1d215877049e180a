"""Accuracy against distance, of every method of a study over `dataset.gap` and `dataset.filler`.

A panel a benchmark and backbone; a colour a method, a full line for text between image and question, a dashed one for
the same text before the image.

    python -m analysis.distance study=zoo_card            # in a checkout
    python -m tdrs.analysis.distance study=zoo_card       # where tdrs is installed

redraws the figure and the tables from the study's `study.json`, without a model.
"""

import math
import sys
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from tdrs.analysis.figure import STYLES, redraw, save, span
from tdrs.sweeps.trial import STOCK, Outcome

from tdrs import escape
from tdrs.configuration import with_settings
from tdrs.entry_point import run_command
from tdrs.settings import SettingError

TRAINED = 32  # tokens: the longest text the embedded models were trained with
POSITIONS = {"between": "text between image and question", "before_image": "the same text before the image"}
LINES: dict[str, Literal["-", "--"]] = {"between": "-", "before_image": "--"}


class Point(NamedTuple):
    """Accuracy with its 95 % limits at a gap, in tokens, and on how many samples."""

    gap: int
    accuracy: float
    low: float
    high: float
    n: int


class Panel(NamedTuple):
    """One backbone on one benchmark, each named with what else the axes set of it: a line a method and position of the
    text; the stock model's accuracy with blank pictures and no text, or nan."""

    backbone: str
    dataset: str
    lines: dict[tuple[str, str], list[Point]]
    blank: float


def numbers(outcome: Outcome) -> list[Panel]:
    """The figure's numbers, from a finished study. A gap of 0 stands in the lines of both positions.

    Rows with blank pictures are in no line.
    """
    panels: dict[tuple[str, str], Panel] = {}
    for row in outcome.rows:
        if not row.metrics:
            continue
        dataset = with_settings(outcome.config, dict(row.condition))["dataset"]
        names = _names(outcome, row.condition)
        panel = panels.setdefault(names, Panel(*names, {}, math.nan))
        gap = dataset["gap"]
        if dataset["blank"]:
            if row.name == STOCK and not gap:
                panels[names] = panel._replace(blank=row.score)
            continue
        value, low, high = row.accuracy
        point = Point(gap, value, low, high, row.n)
        for position in POSITIONS if gap == 0 else [dataset["filler"]]:
            panel.lines.setdefault((row.name, position), []).append(point)
    for panel in panels.values():
        far = {key for key, line in panel.lines.items() if any(point.gap for point in line)}
        near = {(method, "between") for method, _ in panel.lines} if not far else set()
        for key in set(panel.lines) - far - near:
            del panel.lines[key]  # a position that no text ever stood in
        for line in panel.lines.values():
            line.sort()
    return [panel for panel in panels.values() if panel.lines]


def _names(outcome: Outcome, condition: Mapping[str, Any]) -> tuple[str, str]:
    """A condition's panel: backbone and data set, each with the axes' settings except the text."""
    parts = {group: [outcome.named(condition, group)] for group in ("backbone", "dataset")}
    for key, value in condition.items():
        group, _, name = key.partition(".")
        if key not in ("backbone", "dataset", "dataset.gap", "dataset.filler", "dataset.blank"):
            known = group in parts and name
            parts[group if known else "dataset"].append(f"{name if known else key}={value}")
    backbone, dataset = (", ".join(texts) for texts in parts.values())
    return backbone, dataset


def draw(panels: list[Panel], folder: Path, warning: str = "", stamp: Mapping[str, str] | None = None) -> list[Path]:
    """Write `distance.png`, `distance.svg` and `distance.md` into a folder; returns their paths.

    Args:
        warning: what must be said of the result first, in place of the title.
        stamp: whose figure it is, for the files' metadata.
    """
    if not panels:
        raise SettingError("study", (stamp or {}).get("Title"), "has no row that was measured whole")
    backbones = list(dict.fromkeys(panel.backbone for panel in panels))
    datasets = list(dict.fromkeys(panel.dataset for panel in panels))
    methods = list(dict.fromkeys(method for panel in panels for method, _ in panel.lines))
    width, height = max(9.0, 3 * len(datasets)), 2.3 if len(backbones) > 1 else 3.4
    canvas, axes = plt.subplots(
        len(backbones), len(datasets), figsize=(width, height * len(backbones) + 1.1),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for panel in panels:
        axis = axes[backbones.index(panel.backbone)][datasets.index(panel.dataset)]
        _panel(axis, panel)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        axis.set_title(escape.label(dataset), fontsize=10)
    for row, backbone in zip(axes, backbones, strict=True):
        row[0].set_ylabel(f"{escape.label(backbone)}\naccuracy", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("unrelated text (tokens)", fontsize=9)
    canvas.legend(handles=_legend(panels, methods), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    size = span(point.n for panel in panels for line in panel.lines.values() for point in line)
    what = "the stock model" if methods == [STOCK] else "every method"
    title = f"Accuracy against distance, {what}: held-out split, n = {size}; 95 % intervals"
    canvas.suptitle(escape.label(warning, 120) or title, fontsize=11)
    tables = folder / "distance.md"
    parts = [f"## {escape.markdown(name)}\n\n{markdown(panels, name)}\n" for name in backbones]
    tables.write_text("\n".join(parts), encoding="utf-8")
    return [*save(canvas, folder, "distance", stamp), tables]


def _legend(panels: list[Panel], methods: list[str]) -> list[Artist]:
    """Methods by colour and marker, positions of the text by line; the stock model alone has a colour for each."""
    positions = list(dict.fromkeys(position for panel in panels for _, position in panel.lines))
    handles: list[Artist] = []
    if methods == [STOCK]:
        for number, position in enumerate(positions):
            color, marker = STYLES[number]
            handles.append(
                Line2D([], [], color=color, marker=marker, linestyle=LINES[position], label=POSITIONS[position])
            )
    else:
        for method, (color, marker) in zip(methods, cycle(STYLES), strict=False):
            handles.append(Line2D([], [], color=color, marker=marker, label=escape.label(method)))
        handles += [
            Line2D([], [], color="0.3", linestyle=LINES[position], label=POSITIONS[position]) for position in positions
        ]
    if any(panel.backbone.startswith("mini_") for panel in panels):
        handles.append(Patch(color="0.93", label=f"distances seen in training (0 to {TRAINED})"))
    if not all(math.isnan(panel.blank) for panel in panels):
        handles.append(Line2D([], [], color="0.4", linestyle=":", linewidth=1.2, label="blank pictures, no text"))
    return handles


def _panel(axis: Axes, panel: Panel) -> None:
    if panel.backbone.startswith("mini_"):
        axis.axvspan(-4, TRAINED, color="0.93", zorder=0)
    if not math.isnan(panel.blank):
        axis.axhline(panel.blank, color="0.4", linestyle=":", linewidth=1.2)
    methods = list(dict.fromkeys(method for method, _ in panel.lines))
    for number, ((method, position), points) in enumerate(panel.lines.items()):
        alone = methods == [STOCK]
        color, marker = STYLES[(number if alone else methods.index(method)) % len(STYLES)]
        errors = [[p.accuracy - p.low for p in points], [p.high - p.accuracy for p in points]]
        axis.errorbar(
            [p.gap for p in points], [p.accuracy for p in points], yerr=errors, color=color, marker=marker,
            linestyle=LINES[position], markersize=4, linewidth=1.3, elinewidth=0.8, capsize=2,
        )  # fmt: skip
    axis.set_xscale("symlog", base=2, linthresh=16, linscale=0.8)
    gaps = sorted({p.gap for points in panel.lines.values() for p in points})
    axis.set_xticks(gaps, [str(gap) for gap in gaps], fontsize=8)
    axis.minorticks_off()
    axis.set_xlim(-4, max(gaps) * 1.3)
    axis.set_ylim(0, 1.04)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def markdown(panels: list[Panel], backbone: str) -> str:
    """A backbone's numbers as a table: a row a benchmark, method and position of the text, a column a gap."""
    panels = [panel for panel in panels if panel.backbone == backbone]
    gaps = sorted({p.gap for panel in panels for line in panel.lines.values() for p in line})
    lines = ["| | blank pictures | " + " | ".join(f"gap {gap}" for gap in gaps) + " |", "|---" * (len(gaps) + 2) + "|"]
    for panel in panels:
        for (method, position), line in panel.lines.items():
            found = {point.gap: point for point in line}
            first = position == "between"
            name = escape.code(panel.dataset) + ("" if method == STOCK else f", {escape.markdown(method)}")
            name = name if first else "— the same text before the image"
            blank = first and method == STOCK and not math.isnan(panel.blank)
            shown = [f"{panel.blank:.3f}" if blank else ""]
            for gap in gaps:
                point = found.get(gap) if first or gap else None
                shown.append(f"{point.accuracy:.3f} [{point.low:.3f}, {point.high:.3f}]" if point else "")
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    drawn = lambda found, folder: draw(numbers(found), folder, found.warning, found.stamp)  # noqa: E731
    sys.exit(run_command(lambda: redraw(sys.argv[1:], drawn)))
