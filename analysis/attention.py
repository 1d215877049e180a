"""Attention maps (the paper's Figure 4): the answer position's weights on the picture: RoPE alone, + SD + DC, + reRD.

    python -m analysis.attention study=sensitivity            # in a checkout
    python -m tdrs.analysis.attention study=sensitivity       # where tdrs is installed

measures the study's backbone on one of its held-out prompts and stores the values in `attention.json`. The next time
the figure is drawn from that file without a model (`measure=true` measures again), unless the file belongs to another
study, or to other weights, versions or data. `sample=N` chooses the prompt, `gain=logits` the reading. From Python:
`tdrs.plot.attention(study)`.

A map is the mean over heads of the last prompt position's weights on the image's tokens, laid over the picture. There
is a row for each of some layers and one for the mean of all layers. Above each map stands the image's share of all
attention.
"""

import base64
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
from PIL import Image

from tdrs import escape
from tdrs.analysis.attention_weights import Unedited, first_condition, record_weights
from tdrs.analysis.evidence import condition_name
from tdrs.analysis.figure import GivenAxes, axes_for, measure_again, redraw, save, set_title, stored_measurement
from tdrs.analysis.study_results import StudyResults
from tdrs.commands import parse
from tdrs.entry_point import run_command
from tdrs.interventions import Method
from tdrs.interventions.tdrs import TDRS
from tdrs.settings import SettingError, check_choice
from tdrs.sweeps.trial import Outcome

LAYERS = 4  # rows beside the mean: the first layer, the last, and some between


class AttentionMap(NamedTuple):
    """Weights on the image's tokens, rows × columns, and their sum, the image's share of all attention."""

    method: str
    layer: str
    weights: list[list[float]]
    share: float


class AttentionMaps(NamedTuple):
    """The maps of one prompt; `picture` is a PNG in base64."""

    title: str
    question: str
    picture: str
    maps: list[AttentionMap]


def methods(gain: str) -> dict[str, Method]:
    """The methods, by the names of the figure's columns."""
    return {
        "RoPE alone": Unedited(),
        "+ SD + DC": TDRS(re=None, gain=gain),
        "+ SD + DC + reRD": TDRS(gain=gain),
    }


def attention_maps(outcome: Outcome, number: int = 0, gain: str = "logits") -> AttentionMaps:
    """Measure the maps of one held-out prompt of a study's first condition. Loads its model.

    Args:
        number: the number of the prompt, from 0.
        gain: `logits` or `weights`.

    Raises:
        SettingError: an argument is not allowed, the tokens form no grid, or an error of `first_condition`.
    """
    check_choice("gain", gain, ("logits", "weights"))
    backbone, samples = first_condition(outcome, number + 1)
    sample = samples[number]
    if not backbone.reads_pictures:
        raise SettingError("backbone", backbone.settings.name, "reads text alone; there is no map over a picture")
    if (count := len(sample.picture.parts)) > 1:
        raise SettingError("number", number, f"its prompt has {count} pictures, so there is no single map")
    inputs = backbone.inputs([sample])
    image = backbone.image_tokens(inputs)[0].nonzero()[:, 0].cpu()
    rows, columns = backbone.prompts.family.token_grid(backbone.model.config, inputs, len(image))
    maps: list[AttentionMap] = []
    for name, method in methods(gain).items():
        layers = [weights[0, :, -1].mean(dim=0)[image] for _, weights in record_weights(backbone, [sample], method)]
        chosen = sorted({round(x) for x in np.linspace(0, len(layers) - 1, min(LAYERS, len(layers)))})
        parts = [("mean of all layers", sum(layers) / len(layers)), *((f"layer {n}", layers[n]) for n in chosen)]
        for layer, values in parts:
            square: Any = values.reshape(rows, columns)
            maps.append(AttentionMap(name, layer, square.tolist(), float(square.sum())))
    png = io.BytesIO()
    sample.image.save(png, "PNG")
    title = f"{condition_name(outcome, outcome.rows[0].condition)}, gain = {gain}"
    question = f"{sample.question} (gold: {sample.gold})"
    return AttentionMaps(title, question, base64.b64encode(png.getvalue()).decode(), maps)


def draw_attention(maps: AttentionMaps, axes: GivenAxes = None) -> matplotlib.figure.Figure:
    """Draw a row for each layer: the picture, then a map for each method; return the figure.

    Args:
        axes: one Axes for each picture and map, row by row; None makes a figure.

    Raises:
        SettingError: the number of Axes is wrong.
    """
    names, layers = (list(dict.fromkeys(getattr(one, part) for one in maps.maps)) for part in ("method", "layer"))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(maps.picture))))
    columns = len(names) + 1
    cells = [(row, column) for row in range(len(layers)) for column in range(columns)]
    figure, panels = axes_for(axes, cells, (2.5 * columns, 2.35 * len(layers) + 0.7))
    height, width = picture.shape[:2]
    for number, layer in enumerate(layers):
        first, *others = panels[number * columns : (number + 1) * columns]
        first.imshow(picture)
        first.set_ylabel(layer, fontsize=9)
        of_layer = [one for one in maps.maps if one.layer == layer]
        top = max(max(map(max, one.weights)) for one in of_layer)
        for axis, one in zip(others, of_layer, strict=True):
            axis.imshow(picture, alpha=0.35)
            shown = axis.imshow(
                np.array(one.weights), extent=(0, width, height, 0), cmap="viridis", alpha=0.75, vmin=0, vmax=top
            )
            axis.set_title(f"{one.method}\nimage has {one.share:.1%}", fontsize=9)
        bar = figure.colorbar(shown, ax=others[-1], shrink=0.85, label="weight of a token", format="%.2g")
        bar.ax.tick_params(labelsize=7)
    for axis in panels:
        axis.set_xticks([])
        axis.set_yticks([])
    title, question = escape.label(maps.title, 120), escape.label(maps.question, 120)
    set_title(panels, axes, f"{title}\nThe answer position's attention. {question}")
    return figure


def attention_from(values: Mapping[str, Any]) -> AttentionMaps:
    """The maps in `attention.json`."""
    return AttentionMaps(**{**values, "maps": [AttentionMap(*one) for one in values["maps"]]})


def write_attention(maps: AttentionMaps, folder: Path, stamp: Mapping[str, str] | None = None) -> list[Path]:
    """Write `attention.png` and `attention.svg`, with a study's stamp in their metadata; return their paths."""
    return save(draw_attention(maps), folder, "attention", stamp)


def main(arguments: list[str]) -> int:
    """The command."""
    words, options = parse(arguments)
    given = dict.fromkeys(words, "") | options
    gain, number = given.get("gain", "logits"), given.get("sample", "0")

    def write(study: StudyResults) -> list[Path]:
        check_choice("gain", gain, ("logits", "weights"))
        if not number.isdecimal():
            raise SettingError("sample", number, "must be a whole number of at least 0")
        measure = lambda: attention_maps(study.outcome, int(number), gain)._asdict()  # noqa: E731
        again = measure_again(given) or bool({"sample", "gain"} & set(given))
        values = stored_measurement(study.folder / "attention.json", study.outcome, measure, again)
        assert values is not None
        return write_attention(attention_from(values), study.folder, study.outcome.stamp)

    return redraw(arguments, write, ("measure", "sample", "gain"))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
