"""Accuracy against distance, for every method of a study over `dataset.gap` and `dataset.filler`.

There is a panel for each benchmark and backbone. A colour is a method; a full line is text between image (or passage)
and question, a dashed line the same text before the image.

    python -m analysis.distance study=zoo_card            # in a checkout
    python -m tdrs.analysis.distance study=zoo_card       # where tdrs is installed

redraws the figure and its tables from the study's `study.json`, without a model. From Python:
`tdrs.plot.distance(study)`.
"""

import math
import sys
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib.figure
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tdrs import escape
from tdrs.analysis.answer_bias import NAME, Controls, readings
from tdrs.analysis.evidence import condition_name, condition_names
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, redraw, save, set_title, span
from tdrs.analysis.study_results import StudyResults
from tdrs.benchmarks import DATASETS
from tdrs.configuration import with_settings
from tdrs.entry_point import run_command
from tdrs.settings import SettingError
from tdrs.sweeps.trial import STOCK, Outcome

TRAINED = {  # the longest text that the embedded models were trained with, in tokens
    "mini_llava": 32,
    "mini_llava_seed1": 32,
    "mini_llava_seed2": 32,
    "mini_llava_long": 512,
    "mini_internvl": 32,
    "mini_qwen2_5_vl": 32,
}
TEXT_SETTINGS = ("dataset.gap", "dataset.filler", "dataset.blank")  # what tells the points of one panel apart
POSITIONS = {"between": "text between {} and question", "before_image": "the same text before the {}"}
BESIDE = "minus the stock model at this yes-rate"
LINES: dict[str, Literal["-", "--"]] = {"between": "-", "before_image": "--"}


class Point(NamedTuple):
    """Accuracy with its 95 % limits at a gap, in tokens, the number of samples, and the condition in words."""

    gap: int
    accuracy: float
    low: float
    high: float
    n: int
    condition: str = ""


class DistanceCurves(NamedTuple):
    """One backbone on one benchmark.

    Attributes:
        backbone, dataset: in words, each with its settings from the axes, except those of the text.
        lines: the points of each method and position of the text.
        blank: the stock model's accuracy with blank pictures and no text; nan if it was not measured.
        media: what the questions are about: `image`, or `passage` for language models.
    """

    backbone: str
    dataset: str
    lines: dict[tuple[str, str], list[Point]]
    blank: float
    media: str = "image"


def distance_curves(outcome: Outcome) -> list[DistanceCurves]:
    """The curves of a finished study. A gap of 0 belongs to the lines of both positions.

    Rows with blank pictures are in no line.
    """
    found: dict[tuple[str, str], DistanceCurves] = {}
    for row in outcome.rows:
        if not row.metrics:
            continue
        dataset = with_settings(outcome.config, dict(row.condition))["dataset"]
        names = condition_names(outcome, row.condition, without=TEXT_SETTINGS)
        media = "image" if DATASETS[dataset["name"]].pictures else "passage"
        curves = found.setdefault(names, DistanceCurves(names[0], names[1], {}, math.nan, media))
        gap = dataset["gap"]
        if dataset["blank"]:
            if row.name == STOCK and not gap:
                found[names] = curves._replace(blank=row.score)
            continue
        value, low, high = row.accuracy
        point = Point(gap, value, low, high, row.n, condition_name(outcome, row.condition))
        for position in POSITIONS if gap == 0 else [dataset["filler"]]:
            curves.lines.setdefault((row.name, position), []).append(point)
    for curves in found.values():
        far = {key for key, line in curves.lines.items() if any(point.gap for point in line)}
        near = {(method, "between") for method, _ in curves.lines} if not far else set()
        for key in set(curves.lines) - far - near:
            del curves.lines[key]  # no row has text at this position
        for line in curves.lines.values():
            line.sort()
    return [curves for curves in found.values() if curves.lines]


def draw_distance(
    curves: list[DistanceCurves], axes: GivenAxes = None, warning: str = "", study: str = ""
) -> matplotlib.figure.Figure:
    """Draw a panel for each backbone (rows) and data set (columns); return the figure.

    Args:
        axes: one Axes for each item of `curves`; None makes a figure.
        warning: what must be said before the result; it takes the title's place.
        study: the study's name, for the error message.

    Raises:
        SettingError: there are no curves, or the number of Axes is wrong.
    """
    if not curves:
        raise SettingError("study", study, "has no row that was measured whole")
    backbones = list(dict.fromkeys(panel.backbone for panel in curves))
    datasets = list(dict.fromkeys(panel.dataset for panel in curves))
    methods = list(dict.fromkeys(method for panel in curves for method, _ in panel.lines))
    size = (max(9.0, 3 * len(datasets)), (2.3 if len(backbones) > 1 else 3.4) * len(backbones) + 1.1)
    cells = [(backbones.index(panel.backbone), datasets.index(panel.dataset)) for panel in curves]
    figure, panels = axes_for(axes, cells, size, sharex=True, sharey=True)
    for axis, panel, (row, column) in zip(panels, curves, cells, strict=True):
        _draw_panel(axis, panel)
        if row == min(r for r, c in cells if c == column):
            axis.set_title(escape.label(panel.dataset), fontsize=10)
        if column == min(c for r, c in cells if r == row):
            axis.set_ylabel(f"{escape.label(panel.backbone)}\naccuracy", fontsize=9)
        if row == max(r for r, c in cells if c == column):
            axis.set_xlabel("unrelated text (tokens)", fontsize=9)
            axis.tick_params(labelbottom=True)
    handles = _legend(curves, methods)
    if axes is None:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    else:
        panels[0].legend(handles=handles, frameon=False, fontsize=7)
    n = span(point.n for panel in curves for line in panel.lines.values() for point in line)
    what = "the stock model" if methods == [STOCK] else "every method"
    title = f"Accuracy against distance, {what}: held-out split, n = {n}; 95 % intervals"
    set_title(panels, axes, title, escape.label(warning, 120))
    return figure


def _legend(curves: list[DistanceCurves], methods: list[str]) -> list[Artist]:
    """Methods by colour and marker, positions of the text by line; the stock model alone has a colour for each."""
    positions = list(dict.fromkeys(position for panel in curves for _, position in panel.lines))
    media = " or ".join(dict.fromkeys(panel.media for panel in curves))
    said = {position: text.format(media) for position, text in POSITIONS.items()}
    handles: list[Artist] = []
    if methods == [STOCK]:
        for number, position in enumerate(positions):
            color, marker = STYLES[number]
            handles.append(Line2D([], [], color=color, marker=marker, linestyle=LINES[position], label=said[position]))
    else:
        for method, (color, marker) in zip(methods, cycle(STYLES), strict=False):
            handles.append(Line2D([], [], color=color, marker=marker, label=escape.label(method)))
        handles += [
            Line2D([], [], color="0.3", linestyle=LINES[position], label=said[position]) for position in positions
        ]
    if longest := sorted({_trained(panel) for panel in curves} - {0}):
        ends = " or ".join(map(str, longest))
        handles.append(Patch(color="0.93", label=f"distances seen in training (0 to {ends})"))
    if not all(math.isnan(panel.blank) for panel in curves):
        handles.append(
            Line2D([], [], color="0.4", linestyle=":", linewidth=1.2, label=f"blank {_blank(curves)}, no text")
        )
    return handles


def _blank(curves: list[DistanceCurves]) -> str:
    """What is blank in the control, in words."""
    return " or ".join(dict.fromkeys({"image": "pictures", "passage": "passages"}[panel.media] for panel in curves))


def _trained(panel: DistanceCurves) -> int:
    """The longest text that a panel's model was trained with, in tokens; 0 if that is not known."""
    return TRAINED.get(panel.backbone.split(", ")[0], 0)


def _draw_panel(axis: Axes, panel: DistanceCurves) -> None:
    if trained := _trained(panel):
        axis.axvspan(-4, trained, color="0.93", zorder=0)
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


def markdown(curves: list[DistanceCurves], backbone: str, controls: Controls | None = None) -> str:
    """A backbone's numbers as a table: a line for each benchmark, method and position of the text, a column a gap.

    Below a line stands what `answer_bias` says of it: the tuned bias's accuracy, or a method minus the stock model at
    the method's yes-rate.
    """
    curves = [panel for panel in curves if panel.backbone == backbone]
    gaps = sorted({p.gap for panel in curves for line in panel.lines.values() for p in line})
    lines = [
        f"| | blank {_blank(curves)} | " + " | ".join(f"gap {gap}" for gap in gaps) + " |",
        "|---" * (len(gaps) + 2) + "|",
    ]
    for panel in curves:
        for (method, position), line in panel.lines.items():
            found = {point.gap: point for point in line}
            first = position == "between"
            name = escape.code(panel.dataset) + ("" if method == STOCK else f", {escape.markdown(method)}")
            name = name if first else f"— {POSITIONS[position].format(panel.media)}"
            blank = first and method == STOCK and not math.isnan(panel.blank)
            shown = [f"{panel.blank:.3f}" if blank else ""]
            for gap in gaps:
                point = found.get(gap) if first or gap else None
                shown.append(f"{point.accuracy:.3f} [{point.low:.3f}, {point.high:.3f}]" if point else "")
            lines.append(f"| {name} | {' | '.join(shown)} |")
            lines += _below(method, {gap: found[gap] for gap in found if first or gap}, gaps, controls)
    return "\n".join(lines)


def _below(method: str, points: Mapping[int, Point], gaps: list[int], controls: Controls | None) -> list[str]:
    """The lines of a table below a method's; none where the control says nothing."""
    found = {gap: one for gap, point in points.items() for one in readings(controls, point.condition, method)}
    shown = [""]
    for gap in gaps:
        one = found.get(gap)
        if one is None:
            shown.append("")
        elif method == STOCK:
            shown.append("{:.3f} [{:.3f}, {:.3f}]".format(*one.accuracy))
        else:
            shown.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*one.difference))
    name = NAME if method == STOCK else BESIDE
    return [f"| — {name} | {' | '.join(shown)} |"] if found else []


def write_distance(
    curves: list[DistanceCurves],
    folder: Path,
    warning: str = "",
    stamp: Mapping[str, str] | None = None,
    controls: Controls | None = None,
) -> list[Path]:
    """Write `distance.png`, `distance.svg` and `distance.md`; return their paths.

    Args:
        stamp: which study the figure belongs to, for the files' metadata.
        controls: for yes/no questions; the tables have them, the figure has not.
    """
    figure = draw_distance(curves, warning=warning, study=(stamp or {}).get("Title", ""))
    backbones = dict.fromkeys(panel.backbone for panel in curves)
    tables = folder / "distance.md"
    parts = [f"## {escape.markdown(name)}\n\n{markdown(curves, name, controls)}\n" for name in backbones]
    tables.write_text("\n".join(parts), encoding="utf-8")
    return [*save(figure, folder, "distance", stamp), tables]


def main(arguments: list[str]) -> int:
    """The command."""

    def write(study: StudyResults) -> list[Path]:
        curves = distance_curves(study.outcome)
        return write_distance(curves, study.folder, study.warning, study.outcome.stamp, study.controls)

    return redraw(arguments, write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
