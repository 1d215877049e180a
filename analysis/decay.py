"""Attention against distance (the paper's Figure 1C): measured with RoPE alone, + DC, + DC + reRD; and the kernels.

    python -m analysis.decay study=sensitivity            # in a checkout
    python -m tdrs.analysis.decay study=sensitivity       # where tdrs is installed

measures the study's backbone on a few of its held-out prompts and keeps the numbers in `decay.json`; with that file
there, the figure is drawn without a model (`measure=true` measures again). Numbers of another study of this name, or of
other weights, versions or data, are not used.

Weights are means over layers, heads, samples and text queries after the image, of all pairs of a query and a key so far
apart; distances are in bins of equal width on a log scale. Kernels are r_dc and r_re at scale = 1, for the geometric
mean of the |A|_min that were met, with the paper's multiples.
"""

import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from tdrs.analysis.evidence import where
from tdrs.analysis.figure import STYLES, keep, kept, redraw, save
from tdrs.analysis.watch import Unedited, subject, watch
from tdrs.sweeps.trial import Outcome

from tdrs import escape
from tdrs.attention.call import Call
from tdrs.entry_point import run_command
from tdrs.interventions import Method
from tdrs.interventions.tdrs import DC, RE, TDRS

SAMPLES, AT_ONCE = 16, 4
BINS = 24


class Curve(NamedTuple):
    """Mean attention weight at each distance (tokens), and on how many pairs it rests."""

    name: str
    distance: list[float]
    weight: list[float]
    pairs: list[int]


class Decay(NamedTuple):
    """The figure: measured curves for each gain, and the kernels over d / d_max."""

    title: str
    samples: int
    measured: dict[str, list[Curve]]
    kernels: list[Curve]
    a_min: float


def methods(gain: str) -> dict[str, Method]:
    """The curves of a panel."""
    return {
        "RoPE alone": Unedited(),
        "+ DC": TDRS(sd=False, re=None, gain=gain),
        "+ DC + reRD": TDRS(sd=False, gain=gain),
    }


def numbers(outcome: Outcome) -> Decay:
    """Measure; needs the model."""
    condition, most = outcome.rows[0].condition, outcome.rows[0].n
    backbone, samples = subject(outcome, min(SAMPLES, most))
    measured: dict[str, list[Curve]] = {}
    smallest: list[float] = []
    for gain in ("logits", "weights"):
        for name, method in methods(gain).items():
            sums, counts = np.zeros(0), np.zeros(0)
            for first in range(0, len(samples), AT_ONCE):
                batch = samples[first : first + AT_ONCE]
                image = (backbone.inputs(batch)["input_ids"] == backbone.model.config.image_token_id).cpu()
                for call, weights in watch(backbone, batch, method):
                    total, pairs = _by_distance(call, weights, image)
                    size = max(len(sums), len(total))
                    sums = np.pad(sums, (0, size - len(sums))) + np.pad(total, (0, size - len(total)))
                    counts = np.pad(counts, (0, size - len(counts))) + np.pad(pairs, (0, size - len(pairs)))
                    if isinstance(method, TDRS) and method.re is None and gain == "logits":
                        statistics: Any = method.statistics(call)
                        smallest.append(float(statistics.smallest.clamp_min(1e-6).log().mean()))
            measured.setdefault(gain, []).append(_binned(name, sums, counts))
    a_min = float(np.exp(np.mean(smallest)))
    return Decay(where(outcome, condition), len(samples), measured, kernels(a_min), a_min)


def _by_distance(call: Call, weights: torch.Tensor, image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of each distance in tokens the sum of weights and the number of visible pairs, of text queries after the image.

    Args:
        image: which tokens are of the image, (B, K).
    """
    batch, heads, rows, keys = weights.shape
    distance = (torch.arange(rows)[:, None] - torch.arange(keys)[None]).expand(batch, rows, keys)
    real = torch.ones(batch, rows, dtype=torch.bool) if call.real is None else call.real[:, 0, :, 0].cpu()
    asking = (image.cumsum(dim=1) > 0) & ~image & real
    visible = (distance >= 0) & asking[:, :, None] & real[:, None, :]
    at = distance[visible].numpy()
    sums = np.bincount(at, weights=weights.sum(dim=1)[visible].double().numpy(), minlength=rows)
    return sums, np.bincount(at, minlength=rows) * float(heads)


def _binned(name: str, sums: np.ndarray, counts: np.ndarray) -> Curve:
    edges = np.unique(np.round(np.geomspace(1, len(sums), BINS + 1)).astype(int))
    curve = Curve(name, [], [], [])
    for low, high in pairwise(edges):
        pairs = counts[low:high].sum()
        if pairs:
            curve.distance.append(float(np.sqrt(low * max(low, high - 1))))
            curve.weight.append(float(sums[low:high].sum() / pairs))
            curve.pairs.append(int(pairs))
    return curve


def kernels(a_min: float) -> list[Curve]:
    """r_dc and r_re over d / d_max at scale = 1, with the paper's multiples of |A|_min (Stages 2 and 3)."""
    shares = np.linspace(0, 1, 101)
    curves = []
    for name, stage in (
        ("$r_{dc}$, Gaussian, to 3 × $|A|_{min}$", DC()),
        ("$r_{re}$, rational quadratic, to 2 ×", RE()),
    ):
        c = -math.log(min(max(stage.w_min * a_min, 1e-12), 1 - 1e-6))
        t = shares**2
        gaussian = isinstance(stage, DC)
        values = np.exp(-c * t) if gaussian else (1 + c * t) ** (-c / math.log1p(c))  # σ tied: b = c
        curves.append(Curve(name, shares.tolist(), values.tolist(), [0] * len(shares)))
    return curves


def draw(decay: Decay, folder: Path, stamp: Mapping[str, str] | None = None) -> list[Path]:
    """Write `decay.png` and `decay.svg` into a folder, with a study's stamp; returns their paths."""
    canvas, axes = plt.subplots(1, 3, figsize=(12.5, 4.2), layout="constrained")
    for axis, (gain, curves) in zip(axes, decay.measured.items(), strict=False):
        for (color, marker), curve in zip(STYLES, curves, strict=False):
            axis.plot(curve.distance, curve.weight, color=color, marker=marker, markersize=3.5, linewidth=1.3,
                      label=curve.name)  # fmt: skip
        axis.set(
            xscale="log", yscale="log", xlabel="distance of query and key (tokens)", title=f"measured, gain = {gain}"
        )
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("mean attention weight")
    axes[1].sharey(axes[0])
    for (color, _), line, curve in zip(STYLES[1:], ("-", "--"), decay.kernels, strict=False):
        axes[2].plot(
            curve.distance,
            curve.weight,
            color=color,
            linestyle=line,
            label=curve.name,
        )
    axes[2].set(
        xlabel="$d / d_{max}$", ylabel="kernel at scale = 1", title=f"analytic, $|A|_{{min}}$ = {decay.a_min:.1e}"
    )
    axes[2].legend(frameon=False, fontsize=9)
    for axis in axes:
        axis.grid(color="0.92", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    of = f"text queries after the image, {decay.samples} prompts, mean over layers and heads"
    canvas.suptitle(f"{escape.label(decay.title)}: {of}", fontsize=11)
    return save(canvas, folder, "decay", stamp, dpi=140)


def read(values: Mapping[str, Any]) -> Decay:
    """The figure's numbers out of what was kept of a measurement."""
    measured = {gain: [Curve(*curve) for curve in curves] for gain, curves in values["measured"].items()}
    return Decay(**{**values, "measured": measured, "kernels": [Curve(*curve) for curve in values["kernels"]]})


def main(arguments: list[str]) -> int:
    """The command."""

    def make(outcome: Outcome, folder: Path) -> list[Path]:
        path = folder / "decay.json"
        values = None if "measure=true" in arguments else kept(path, outcome)
        if values is None:
            values = numbers(outcome)._asdict()
            keep(path, outcome, values)
        return draw(read(values), folder, outcome.stamp)

    return redraw(arguments, make, ("measure",))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
