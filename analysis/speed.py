"""What speed there is: attention's time as a ratio to PyTorch's own (SDPA) against length, per method; a study's time
beside a plain loop's.

`python -m tdrs.speed attention` and `… sweep` measure and draw it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from tdrs.analysis.figure import STYLES, save

from tdrs import escape


class Line(NamedTuple):
    """One way's ratios at its lengths, in one dtype."""

    way: str
    dtype: str
    lengths: list[int]
    ratios: list[float]


def numbers(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The rows of the benchmark as lines; SDPA's own, which is 1, is left out."""
    keys = dict.fromkeys((str(row["way"]), str(row["dtype"])) for row in rows if row["way"] != "SDPA")
    found = []
    for way, dtype in keys:
        some = [row for row in rows if (row["way"], row["dtype"]) == (way, dtype)]
        found.append(Line(way, dtype, [row["length"] for row in some], [row["ratio"] for row in some]))
    return found


def draw(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Write `attention.png` and `attention.svg`, a panel a dtype; returns their paths."""
    dtypes = list(dict.fromkeys(line.dtype for line in lines))
    canvas, axes = plt.subplots(1, len(dtypes), figsize=(6.4 * len(dtypes), 4.2), squeeze=False, layout="constrained")
    for panel, dtype in zip(axes[0], dtypes, strict=True):
        for number, line in enumerate(line for line in lines if line.dtype == dtype):
            color, marker = STYLES[number % len(STYLES)]
            dashes = "--" if number >= len(STYLES) else "-"
            panel.plot(line.lengths, line.ratios, dashes, color=color, marker=marker, label=escape.label(line.way))
        panel.axhline(1, color="0.6", linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        lengths = sorted({length for line in lines for length in line.lengths})
        panel.set_xticks(lengths, [str(length) for length in lengths])
        panel.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        panel.set_ylim(0.85, 4 * max(line.ratios[n] for line in lines for n in range(len(line.ratios))))  # the legend's
        panel.minorticks_off()
        panel.set_xlabel("tokens")
        panel.set_ylabel("time, × SDPA")
        panel.set_title(f"attention of one layer, {dtype}", fontsize=10)
        panel.legend(fontsize=8, ncols=2)
        panel.grid(alpha=0.3)
    return save(canvas, folder, "attention")


def draw_study(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `sweep_EXPERIMENT.png` and `.svg`: seconds of the engine, and what each of its devices saves of the plain
    loop's; returns their paths."""
    engine, saved = result["engine_seconds"], result["saved_seconds"]
    outside = engine * result["framework_share"]
    parts = {"measuring": engine - outside, "outside of batches": outside, **saved}
    canvas, axis = plt.subplots(figsize=(7.6, 2.6), layout="constrained")
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
    canvas.legend(loc="outside lower center", ncols=3, fontsize=8)
    return save(canvas, folder, f"sweep_{result['experiment']}")
