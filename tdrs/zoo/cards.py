"""The scores of the embedded models without an edit: measured, kept in `scores.yaml`, shown in the models' cards."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from tdrs import backbones, benchmarks
from tdrs.benchmarks import Sample
from tdrs.configuration import choice
from tdrs.evaluation import evaluate
from tdrs.interventions.none import Stock

# For each data set: `samples`, their number; `blank`, the accuracy with blank pictures; `between` and `before_image`,
# for each gap the accuracy and its limits; `answers`, for gaps up to the longest in training: how many answers have the
# form that was asked for, and how many there are.
Scores = dict[str, dict[str, Any]]
DATASETS = ("mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope")
GAPS = (0, 16, 32, 128, 256, 512)
SAMPLES, BATCH = 500, 64
_KEPT = Path(__file__).parent / "scores.yaml"


@lru_cache(maxsize=1)
def known_scores() -> dict[str, Scores]:
    """The scores of the embedded models, by name."""
    return dict(yaml.safe_load(_KEPT.read_text(encoding="utf-8")))


def measure(name: str, folder: Path, longest: int) -> Scores:
    """Measure the scores of a model at each distance; a few minutes on a CPU.

    Args:
        name: the embedded model whose settings are used.
        folder: the folder of the measured model.
        longest: the longest text in training, in tokens.
    """
    backbone = backbones.load(backbones.from_settings(choice("backbone", name) | {"source": str(folder)}))
    conditions: list[dict[str, Any]] = [{"gap": 0, "blank": True}]
    conditions += [{"gap": gap, "filler": "between"} for gap in GAPS]
    conditions += [{"gap": gap, "filler": "before_image"} for gap in GAPS if gap]
    scores: Scores = {dataset: {"between": {}, "before_image": {}, "answers": [0, 0]} for dataset in DATASETS}
    for dataset in tqdm(DATASETS, desc="scores", unit="data set", disable=None):
        for condition in conditions:
            benchmark = benchmarks.from_settings({"name": dataset, **condition})
            samples = benchmarks.load(benchmark, "held_out", SAMPLES, backbone.settings.prompt_style)
            evaluation = evaluate(backbone, benchmark, samples, Stock(), BATCH)
            value, low, high = (round(evaluation.metrics[f"accuracy{limit}"], 3) for limit in ("", "_low", "_high"))
            one = scores[dataset]
            one["samples"] = len(samples)
            if "blank" in condition:
                one["blank"] = value
                continue
            one[condition["filler"]][condition["gap"]] = [value, low, high]
            if condition["gap"] <= longest:
                pairs = zip(samples, evaluation.records, strict=True)
                good = sum(has_form(record.prediction, sample) for sample, record in pairs)
                one["answers"] = [one["answers"][0] + good, one["answers"][1] + len(samples)]
    return scores


def has_form(answer: str, sample: Sample) -> bool:
    """Whether an answer has the form that was asked for: one of the sample's options, or in an open question one word.

    Case and a full stop at the end do not matter.
    """
    words = answer.strip().removesuffix(".").lower().split()
    return len(words) == 1 and (not sample.options or words[0] in {option.lower() for option in sample.options})


def table(scores: Scores) -> str:
    """The scores as a Markdown table. Each data set has a row, and a second one for the text in front of the image."""
    gaps = sorted({gap for one in scores.values() for gap in one["between"]})
    head = ["", "blank pictures", *(f"gap {gap}" for gap in gaps)]
    lines = ["| " + " | ".join(head)[1:] + " |", "|---" * len(head) + "|"]
    for dataset, one in scores.items():
        lines.append(_row([f"`{dataset}`, n = {one['samples']}", f"{one['blank']:.3f}"], one["between"], gaps))
        if one.get("before_image"):
            lines.append(_row(["— the same text before the image", ""], one["before_image"], gaps))
    return "\n".join(lines)


def _row(first: list[str], cells: Mapping[int, list[float]], gaps: list[int]) -> str:
    shown = ["{:.3f} [{:.3f}, {:.3f}]".format(*cells[gap]) if gap in cells else "" for gap in gaps]
    return f"| {' | '.join([*first, *shown])} |"


def form_sentence(scores: Scores, longest: int) -> str:
    """The beginning of a card's sentence on how many answers have the form that was asked for, up to the longest gap in
    training."""
    good, count = (sum(one["answers"][part] for one in scores.values()) for part in (0, 1))
    return f"At gaps up to {longest}, {good} of {count} answers have the form that was asked for"


def with_scores(card: str, scores: Scores) -> str:
    """A card with its table, and its number of answers in the right form, made from scores."""
    counted = re.search(r"\d+ of \d+", form_sentence(scores, 0))
    assert counted
    lines = re.sub(r"\d+ of \d+(?= answers)", counted[0], card).split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith("| | blank pictures"))
    after = next(number for number in range(first, len(lines)) if not lines[number].startswith("|"))
    return "\n".join([*lines[:first], table(scores), *lines[after:]])


def write(name: str, recipe: Mapping[str, Any], folder: Path, scores: Scores) -> None:
    """Write a card with the recipe into a trained model's folder, and `scores.yaml` beside that folder.

    Args:
        folder: the model's folder.
    """
    text = yaml.safe_dump({name: scores}, sort_keys=False, default_flow_style=None)
    (folder.parent / "scores.yaml").write_text(text, encoding="utf-8")
    card = (
        f"# {name}\n\nTrained by `python -m tdrs.zoo.train backbone={name}` with this recipe:\n\n"
        f"```yaml\n{yaml.safe_dump(dict(recipe), sort_keys=False)}```\n\n## Measured\n\n"
        f"Accuracy without an edit on at most {SAMPLES} held-out samples of each data set, in whole images, with 95 %\n"
        f"limits. A gap is unrelated text between image and question, in tokens.\n\n{table(scores)}\n\n"
        f"{form_sentence(scores, recipe['gap'])}: a letter, a word, yes or no.\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
