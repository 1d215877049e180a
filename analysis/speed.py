"""Speed: each method's attention time as a ratio to PyTorch's own (SDPA); a study's time beside a plain loop's.

`python -m tdrs.speed attention` and `… sweep` measure and draw it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure

from tdrs import escape
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, save


class SpeedCurve(NamedTuple):
    """The ratios of one way to compute attention at each length, in one dtype."""

    way: str
    dtype: str
    lengths: list[int]
    ratios: list[float]


def speed_curves(rows: Sequence[Mapping[str, Any]]) -> list[SpeedCurve]:
    """The measured rows as curves, without SDPA's own ratio, which is 1."""
    keys = dict.fromkeys((str(row["way"]), str(row["dtype"])) for row in rows if row["way"] != "SDPA")
    found = []
    for way, dtype in keys:
        some = [row for row in rows if (row["way"], row["dtype"]) == (way, dtype)]
        found.append(SpeedCurve(way, dtype, [row["length"] for row in some], [row["ratio"] for row in some]))
    return found


def draw_speed(curves: Sequence[SpeedCurve], axes: GivenAxes = None) -> matplotlib.figure.Figure:
    """Draw a panel for each dtype; return the figure.

    Args:
        axes: one Axes for each dtype; None makes a figure.
    """
    dtypes = list(dict.fromkeys(curve.dtype for curve in curves))
    figure, panels = axes_for(axes, [(0, column) for column in range(len(dtypes))], (6.4 * len(dtypes), 4.2))
    for axis, dtype in zip(panels, dtypes, strict=True):
        for number, curve in enumerate(curve for curve in curves if curve.dtype == dtype):
            color, marker = STYLES[number % len(STYLES)]
            dashes = "--" if number >= len(STYLES) else "-"
            axis.plot(curve.lengths, curve.ratios, dashes, color=color, marker=marker, label=escape.label(curve.way))
        axis.axhline(1, color="0.6", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        lengths = sorted({length for curve in curves for length in curve.lengths})
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axis.set_ylim(0.85, 4 * max(ratio for curve in curves for ratio in curve.ratios))  # room for the legend
        axis.minorticks_off()
        axis.set_xlabel("tokens")
        axis.set_ylabel("time, × SDPA")
        axis.set_title(f"attention of one layer, {dtype}", fontsize=10)
        axis.legend(fontsize=8, ncols=2)
        axis.grid(alpha=0.3)
    return figure


def draw_study_time(result: Mapping[str, Any], axes: GivenAxes = None) -> matplotlib.figure.Figure:
    """Draw the seconds of a study and of the plain loop, with what each part of the engine saves; return the figure.

    Args:
        result: what `python -m tdrs.speed sweep` measured.
        axes: one Axes; None makes a figure.
    """
    engine, saved = result["engine_seconds"], result["saved_seconds"]
    outside = engine * result["framework_share"]
    parts = {"measuring": engine - outside, "outside of batches": outside, **saved}
    figure, (axis,) = axes_for(axes, [(0, 0)], (7.6, 2.6))
    left = [0.0, 0.0]
    for (color, _), (name, seconds) in zip(STYLES, parts.items(), strict=False):
        rows = [row for row, lacks in ((0, saved), (1, ["outside of batches"])) if name not in lacks]
        starts = [left[row] for row in rows]
        axis.barh(rows, max(seconds, 0), left=starts, color=color, label=f"{name}, {seconds:.0f} s", height=0.6)
        for row in rows:
            left[row] += max(seconds, 0)
    axis.set_yticks([0, 1], ["engine", "plain loop"])
    axis.set_xlabel("seconds")
    axis.set_title(
        f"{escape.label(result['experiment'])}: {result['trials']} trials, {result['ratio']:.1f} × as fast", fontsize=10
    )
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    if axes is None:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    else:
        axis.legend(fontsize=8)
    return figure


def write_speed(curves: Sequence[SpeedCurve], folder: Path) -> list[Path]:
    """Write `attention.png` and `attention.svg`; return their paths."""
    return save(draw_speed(curves), folder, "attention")


def write_study_time(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `sweep_EXPERIMENT.png` and `.svg`; return their paths."""
    return save(draw_study_time(result), folder, f"sweep_{result['experiment']}")
