"""Attention against distance (the paper's Figure 1C): measured with RoPE alone, + DC, + DC + reRD; and the kernels.

    python -m analysis.decay study=sensitivity            # in a checkout
    python -m tdrs.analysis.decay study=sensitivity       # where tdrs is installed

measures the study's backbone on a few of its held-out prompts and stores the values in `decay.json`. The next time
the figure is drawn from that file without a model (`measure=true` measures again), unless the file belongs to another
study, or to other weights, versions or data. From Python: `tdrs.plot.decay(study)`.

A weight is the mean over layers, heads, samples and text queries after the image, for all pairs of a query and a key at
the same distance. Distances are in bins of equal width on a log scale. The kernels are r_dc and r_re at scale = 1, for
the geometric mean of the measured |A|_min, with the paper's multiples of it.
"""

import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import torch

from tdrs import escape
from tdrs.analysis.attention_weights import Unedited, first_condition, record_weights
from tdrs.analysis.evidence import condition_name
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, measure_again, redraw, save, set_title, stored_measurement
from tdrs.analysis.study_results import StudyResults
from tdrs.attention.call import Call
from tdrs.commands import parse
from tdrs.entry_point import run_command
from tdrs.interventions import Method
from tdrs.interventions.tdrs import DC, RE, TDRS
from tdrs.sweeps.trial import Outcome

SAMPLES, AT_ONCE = 16, 4
BINS = 24


class WeightCurve(NamedTuple):
    """Mean attention weight at each distance in tokens, and the number of pairs behind each mean."""

    name: str
    distance: list[float]
    weight: list[float]
    pairs: list[int]


class Decay(NamedTuple):
    """Measured curves for each gain, and the kernels over d / d_max.

    Attributes:
        title: the condition in words.
        samples: how many prompts were measured.
        a_min: the geometric mean of |A|_min.
    """

    title: str
    samples: int
    measured: dict[str, list[WeightCurve]]
    kernels: list[WeightCurve]
    a_min: float


def methods(gain: str) -> dict[str, Method]:
    """The methods of one panel, by their names in the legend."""
    return {
        "RoPE alone": Unedited(),
        "+ DC": TDRS(sd=False, re=None, gain=gain),
        "+ DC + reRD": TDRS(sd=False, gain=gain),
    }


def decay_curves(outcome: Outcome) -> Decay:
    """Measure the curves of a study's first condition. Loads its model. Raises the errors of `first_condition`."""
    condition, most = outcome.rows[0].condition, outcome.rows[0].n
    backbone, samples = first_condition(outcome, min(SAMPLES, most))
    measured: dict[str, list[WeightCurve]] = {}
    smallest: list[float] = []
    for gain in ("logits", "weights"):
        for name, method in methods(gain).items():
            sums, counts = np.zeros(0), np.zeros(0)
            for first in range(0, len(samples), AT_ONCE):
                batch = samples[first : first + AT_ONCE]
                image = backbone.image_tokens(backbone.inputs(batch)).cpu()
                for call, weights in record_weights(backbone, batch, method):
                    total, pairs = _by_distance(call, weights, image)
                    size = max(len(sums), len(total))
                    sums = np.pad(sums, (0, size - len(sums))) + np.pad(total, (0, size - len(total)))
                    counts = np.pad(counts, (0, size - len(counts))) + np.pad(pairs, (0, size - len(pairs)))
                    if isinstance(method, TDRS) and method.re is None and gain == "logits":
                        statistics: Any = method.statistics(call)
                        smallest.append(float(statistics.smallest.clamp_min(1e-6).log().mean()))
            measured.setdefault(gain, []).append(_binned(name, sums, counts))
    a_min = float(np.exp(np.mean(smallest)))
    return Decay(condition_name(outcome, condition), len(samples), measured, kernels(a_min), a_min)


def _by_distance(call: Call, weights: torch.Tensor, image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For each distance in tokens: the sum of weights and the number of visible pairs of text queries after the image.

    Args:
        image: which tokens belong to the image, (B, K).
    """
    batch, heads, rows, keys = weights.shape
    distance = (torch.arange(rows)[:, None] - torch.arange(keys)[None]).expand(batch, rows, keys)
    real = torch.ones(batch, rows, dtype=torch.bool) if call.real is None else call.real[:, 0, :, 0].cpu()
    asking = (image.cumsum(dim=1) > 0) & ~image & real
    visible = (distance >= 0) & asking[:, :, None] & real[:, None, :]
    at = distance[visible].numpy()
    sums = np.bincount(at, weights=weights.sum(dim=1)[visible].double().numpy(), minlength=rows)
    return sums, np.bincount(at, minlength=rows) * float(heads)


def _binned(name: str, sums: np.ndarray, counts: np.ndarray) -> WeightCurve:
    edges = np.unique(np.round(np.geomspace(1, len(sums), BINS + 1)).astype(int))
    curve = WeightCurve(name, [], [], [])
    for low, high in pairwise(edges):
        pairs = counts[low:high].sum()
        if pairs:
            curve.distance.append(float(np.sqrt(low * max(low, high - 1))))
            curve.weight.append(float(sums[low:high].sum() / pairs))
            curve.pairs.append(int(pairs))
    return curve


def kernels(a_min: float) -> list[WeightCurve]:
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
        curves.append(WeightCurve(name, shares.tolist(), values.tolist(), [0] * len(shares)))
    return curves


def draw_decay(decay: Decay, axes: GivenAxes = None) -> matplotlib.figure.Figure:
    """Draw a panel for each gain and one for the kernels; return the figure.

    Args:
        axes: three Axes; None makes a figure.

    Raises:
        SettingError: the number of Axes is wrong.
    """
    figure, panels = axes_for(axes, [(0, 0), (0, 1), (0, 2)], (12.5, 4.2))
    for axis, (gain, curves) in zip(panels, decay.measured.items(), strict=False):
        for (color, marker), curve in zip(STYLES, curves, strict=False):
            style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 3.5, "linewidth": 1.3}
            axis.plot(curve.distance, curve.weight, label=curve.name, **style)
        axis.set(xscale="log", yscale="log", xlabel="distance of query and key (tokens)")
        axis.set_title(f"measured, gain = {gain}")
        axis.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("mean attention weight")
    if axes is None:
        panels[1].sharey(panels[0])
    for (color, _), line, curve in zip(STYLES[1:], ("-", "--"), decay.kernels, strict=False):
        panels[2].plot(curve.distance, curve.weight, color=color, linestyle=line, label=curve.name)
    panels[2].set(xlabel="$d / d_{max}$", ylabel="kernel at scale = 1")
    panels[2].set_title(f"analytic, $|A|_{{min}}$ = {decay.a_min:.1e}")
    panels[2].legend(frameon=False, fontsize=9)
    for axis in panels:
        axis.grid(color="0.92", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    queries = f"text queries after the image, {decay.samples} prompts, mean over layers and heads"
    set_title(panels, axes, f"{escape.label(decay.title)}: {queries}")
    return figure


def decay_from(values: Mapping[str, Any]) -> Decay:
    """The curves in `decay.json`."""
    measured = {gain: [WeightCurve(*curve) for curve in curves] for gain, curves in values["measured"].items()}
    kernels = [WeightCurve(*curve) for curve in values["kernels"]]
    return Decay(**{**values, "measured": measured, "kernels": kernels})


def write_decay(decay: Decay, folder: Path, stamp: Mapping[str, str] | None = None) -> list[Path]:
    """Write `decay.png` and `decay.svg`, with a study's stamp in their metadata; return their paths."""
    return save(draw_decay(decay), folder, "decay", stamp, dpi=140)


def main(arguments: list[str]) -> int:
    """The command."""
    given = parse(arguments)[1]

    def write(study: StudyResults) -> list[Path]:
        measure = lambda: decay_curves(study.outcome)._asdict()  # noqa: E731
        path = study.folder / "decay.json"
        values = stored_measurement(path, study.outcome, measure, measure_again(given))
        assert values is not None
        return write_decay(decay_from(values), study.folder, study.outcome.stamp)

    return redraw(arguments, write, ("measure",))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
