"""Attention maps (the paper's Figure 4): what the answer position sees of the picture: RoPE alone, + SD + DC, + reRD.

    python -m analysis.attention study=sensitivity            # in a checkout
    python -m tdrs.analysis.attention study=sensitivity       # where tdrs is installed

measures the study's backbone on one of its held-out prompts and keeps the numbers in `attention.json`; with that file
there, the figure is drawn without a model (`measure=true` measures again; numbers of another study of this name, or of
other weights, versions or data, are not used). `sample=N` chooses the prompt, `gain=logits`
the reading. A map is the mean over heads of the last prompt position's weights on the image's tokens, one row a layer
and one for their mean, laid over the picture; above each stands the share of all attention that the image has.
"""

import base64
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image
from tdrs.analysis.evidence import where
from tdrs.analysis.figure import keep, kept, redraw, save
from tdrs.analysis.watch import Unedited, subject, watch
from tdrs.sweeps.trial import Outcome

from tdrs import escape
from tdrs.commands import parse
from tdrs.entry_point import run_command
from tdrs.interventions import Method
from tdrs.interventions.tdrs import TDRS
from tdrs.settings import SettingError, check_choice

LAYERS = 4  # rows of the figure beside the mean: the first layers, the last, and some between


class Map(NamedTuple):
    """Weights on the image's tokens, rows × columns, and the share of attention that they are."""

    method: str
    layer: str
    weights: list[list[float]]
    share: float


class Maps(NamedTuple):
    """The figure: whose attention, on what, and the maps; `picture` is a PNG in base64."""

    title: str
    question: str
    picture: str
    maps: list[Map]


def methods(gain: str) -> dict[str, Method]:
    """The figure's columns."""
    return {
        "RoPE alone": Unedited(),
        "+ SD + DC": TDRS(re=None, gain=gain),
        "+ SD + DC + reRD": TDRS(gain=gain),
    }


def grid(count: int, thw: list[int] | None, merge: int) -> tuple[int, int]:
    """Rows and columns of an image's tokens.

    Args:
        count: how many there are.
        thw: Qwen2.5-VL's grid of patches (time, height, width); None of the others, whose images are squares.
        merge: how many patches a token is wide.

    Raises:
        SettingError: they are no grid, as where InternVL cuts a picture into several tiles.
    """
    if thw is not None:
        return thw[1] // merge, thw[2] // merge
    side = round(count**0.5)
    if side * side != count:
        raise SettingError("backbone", count, "the image's tokens are several tiles, which have no one map")
    return side, side


def numbers(outcome: Outcome, number: int = 0, gain: str = "logits") -> Maps:
    """Measure; needs the model."""
    condition = outcome.rows[0].condition
    backbone, samples = subject(outcome, number + 1)
    sample = samples[number]
    inputs = backbone.inputs([sample])
    image = (inputs["input_ids"][0] == backbone.model.config.image_token_id).nonzero()[:, 0].cpu()
    thw = inputs["image_grid_thw"][0].tolist() if "image_grid_thw" in inputs else None
    merge = getattr(getattr(backbone.model.config, "vision_config", None), "spatial_merge_size", 1)
    rows, columns = grid(len(image), thw, merge)
    maps: list[Map] = []
    for name, method in methods(gain).items():
        layers = [weights[0, :, -1].mean(dim=0)[image] for _, weights in watch(backbone, [sample], method)]
        chosen = sorted({round(x) for x in np.linspace(0, len(layers) - 1, min(LAYERS, len(layers)))})
        parts = [("mean of all layers", sum(layers) / len(layers)), *((f"layer {n}", layers[n]) for n in chosen)]
        for layer, values in parts:
            square: Any = values.reshape(rows, columns)
            maps.append(Map(name, layer, square.tolist(), float(square.sum())))
    buffer = io.BytesIO()
    sample.image.save(buffer, "PNG")
    title = f"{where(outcome, condition)}, gain = {gain}"
    gold = f"{sample.question} (gold: {sample.gold})"
    return Maps(title, gold, base64.b64encode(buffer.getvalue()).decode(), maps)


def draw(figure: Maps, folder: Path, stamp: Mapping[str, str] | None = None) -> list[Path]:
    """Write `attention.png` and `attention.svg` into a folder, with a study's stamp; returns their paths."""
    names, layers = (list(dict.fromkeys(getattr(m, part) for m in figure.maps)) for part in ("method", "layer"))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(figure.picture))))
    canvas, axes = plt.subplots(
        len(layers), len(names) + 1, figsize=(2.5 * (len(names) + 1), 2.35 * len(layers) + 0.7), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    height, width = picture.shape[:2]
    for row, layer in zip(axes, layers, strict=True):
        row[0].imshow(picture)
        row[0].set_ylabel(layer, fontsize=9)
        here = [m for m in figure.maps if m.layer == layer]
        top = max(max(map(max, m.weights)) for m in here)
        for axis, one in zip(row[1:], here, strict=True):
            axis.imshow(picture, alpha=0.35)
            shown = axis.imshow(
                np.array(one.weights), extent=(0, width, height, 0), cmap="viridis", alpha=0.75, vmin=0, vmax=top
            )
            axis.set_title(f"{one.method}\nimage has {one.share:.1%}", fontsize=9)
        canvas.colorbar(shown, ax=row[-1], shrink=0.85, label="weight of a token", format="%.2g").ax.tick_params(
            labelsize=7
        )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    title, question = escape.label(figure.title, 120), escape.label(figure.question, 120)
    canvas.suptitle(f"{title}\nThe answer position's attention. {question}", fontsize=10)
    return save(canvas, folder, "attention", stamp)


def read(values: Mapping[str, Any]) -> Maps:
    """The figure's numbers out of what was kept of a measurement."""
    return Maps(**{**values, "maps": [Map(*one) for one in values["maps"]]})


def main(arguments: list[str]) -> int:
    """The command."""
    words, options = parse(arguments)
    given = dict.fromkeys(words, "") | options
    gain, number = given.get("gain", "logits"), given.get("sample", "0")

    def make(outcome: Outcome, folder: Path) -> list[Path]:
        path = folder / "attention.json"
        values = None if {"sample", "gain", "measure"} & set(given) else kept(path, outcome)
        if values is None:
            check_choice("gain", gain, ("logits", "weights"))
            if not number.isdecimal():
                raise SettingError("sample", number, "must be a whole number of at least 0")
            values = numbers(outcome, int(number), gain)._asdict()
            keep(path, outcome, values)
        return draw(read(values), folder, outcome.stamp)

    return redraw(arguments, make, ("measure", "sample", "gain"))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
