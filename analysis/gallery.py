"""A page of samples for each benchmark: picture, prompt as the model gets it, gold answer, the model's answer.

    python -m analysis.gallery                                   # the four embedded benchmarks
    python -m analysis.gallery 'datasets=[mini_pope]' gap=0      # (python -m tdrs.analysis.gallery where installed)

writes `gallery-<dataset>.png` into `outputs/gallery`.
"""

import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np
from omegaconf import DictConfig

from tdrs import backbones, benchmarks, escape
from tdrs.analysis.figure import Figure
from tdrs.backbones import Backbone
from tdrs.benchmarks import Benchmark, Sample, Samples
from tdrs.configuration import compose, plain, run
from tdrs.settings import SettingError, check_choice, check_number

COLUMNS, WIDTH, LINES = 2, 50, 15  # cards in a row; characters in a line and lines of a card's text
PER_PICTURE = 12  # the most questions that share a picture
RIGHT, WRONG = "#0072B2", "#D55E00"


class Card(NamedTuple):
    """One sample; `score` is from 0 to 1."""

    picture: np.ndarray
    prompt: str
    gold: str
    answer: str
    score: float


class Gallery(NamedTuple):
    """A page: the data set's name, a title, and a card for each sample."""

    name: str
    title: str
    cards: list[Card]


def sample_cards(name: str, backbone: Backbone, benchmark: Benchmark, samples: Samples) -> Gallery:
    """Ask the stock model the samples; return a page with a card for each."""
    benchmark = benchmark.asked_by(backbone.settings.prompt_style)
    cards = []
    image = backbone.model.config.image_token_id
    for sample, answer in zip(samples, backbone.answer(samples, benchmark.real, benchmark.prompt), strict=True):
        ids = backbone.inputs([sample])["input_ids"][0].tolist()
        count = ids.count(image)
        first = ids.index(image)
        decode = backbone.processor.tokenizer.decode
        text = f"{decode(ids[:first])} [{count} image tokens] {decode(ids[first + count :])}"
        gold = f"{sample.gold}" + (f" of {', '.join(sample.answers)}" if sample.answers else "")
        score = benchmark.score(answer.text, sample).score
        cards.append(Card(np.asarray(backbone.open(sample.picture)), text, gold, answer.text, score))
    return Gallery(name, f"{name} ({len(samples)} samples), asked of {backbone.settings.name}", cards)


def pick(samples: Samples, count: int) -> Samples:
    """One sample of each of the first `count` pictures: the first picture's first question, the second's second, …"""
    pictures: dict[str, list[Sample]] = {}
    for sample in samples:
        pictures.setdefault(sample.image_id, []).append(sample)
    groups = list(pictures.values())[:count]
    return Samples([group[number % len(group)] for number, group in enumerate(groups)], samples.notes)


def _clip(text: str, width: int, lines: int) -> str:
    """Wrap a text to a width; leave out its middle if it has more than `lines` lines."""
    wrapped = [part for line in text.split("\n") for part in (textwrap.wrap(line.strip(), width) or [""])]
    if len(wrapped) > lines:
        left_out, head = len(wrapped) - lines + 1, lines // 4  # the question is at the end
        wrapped = [*wrapped[:head], f"[{left_out} lines more]", *wrapped[head + left_out :]]
    return "\n".join(wrapped)


def draw_gallery(page: Gallery) -> matplotlib.figure.Figure:
    """Draw a page; return the figure."""
    rows = -(-len(page.cards) // COLUMNS)
    figure = Figure(figsize=(7.2 * COLUMNS, 2.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, 2 * COLUMNS, width_ratios=[1, 1.65] * COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, card in enumerate(page.cards):
        row, column = divmod(number, COLUMNS)
        picture, text = axes[row][2 * column], axes[row][2 * column + 1]
        picture.imshow(card.picture, interpolation="nearest")
        style = {"fontsize": 8, "family": "monospace", "va": "top", "transform": text.transAxes}
        style["parse_math"] = False  # a prompt may have dollars
        text.text(0, 1, _clip(card.prompt, WIDTH, LINES), **style)
        verdict = {0.0: "wrong", 1.0: "right"}.get(card.score, f"score {card.score:.2f}")
        below = _clip(f"gold:  {card.gold}", WIDTH, 3) + f"\nmodel: {card.answer or '(nothing)'}  ({verdict})"
        color = RIGHT if card.score > 0.5 else WRONG
        text.text(0, 0, below, **{**style, "va": "bottom"}, color=color, weight="bold")
    figure.suptitle(escape.label(page.title, 120), fontsize=11)
    return figure


def write_gallery(page: Gallery, folder: Path) -> Path:
    """Write `gallery-<name>.png`; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gallery-{page.name}.png"
    draw_gallery(page).savefig(path, dpi=110)
    return path


def main_gallery(config: DictConfig) -> None:
    values = plain(config)
    check_number("samples", values["samples"], 1, whole=True)
    check_choice("split", values["split"], benchmarks.SPLITS)
    if not values["datasets"]:
        raise SettingError("datasets", values["datasets"], f"must name some of {', '.join(benchmarks.DATASETS)}")
    settings = backbones.from_settings(values["backbone"])
    pages = []
    if len(set(values["datasets"])) < len(values["datasets"]):
        raise SettingError("datasets", values["datasets"], "must be different data sets")
    for name in values["datasets"]:
        check_choice("datasets", name, list(benchmarks.DATASETS))
        given = plain(compose("evaluate", [f"dataset={name}"]))["dataset"] | {"filler": values["filler"]}
        benchmark = benchmarks.from_settings(given if values["gap"] is None else {**given, "gap": values["gap"]})
        several = PER_PICTURE * values["samples"]
        samples = benchmarks.load(benchmark, values["split"], several, settings.prompt_style, "samples")
        pages.append((name, benchmark, pick(samples, values["samples"])))
    backbone = backbones.load(settings)
    for name, benchmark, samples in pages:
        page = sample_cards(name, backbone, benchmark, samples)
        print(write_gallery(page, Path(values["output"]) / "gallery"))


USAGE = """
python -m analysis.gallery [datasets=[NAME,...]] [samples=6] [gap=12] [split=tuning] [backbone=...]   (--cfg prints all)
"""

if __name__ == "__main__":
    sys.exit(run("gallery", main_gallery, USAGE))
