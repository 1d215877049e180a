"""What the embedded models score without an edit: measured, kept in `scores.yaml`, shown as the table of each card."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from tdrs import backbones, benchmarks
from tdrs.configuration import choice
from tdrs.evaluation import evaluate
from tdrs.interventions.none import Stock

Scores = dict[str, dict[str, Any]]  # data set → {"blank": accuracy, "between" and "before_image": gap → with limits}
DATASETS = ("mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope")
GAPS = (0, 16, 32, 128, 256, 512)
SAMPLES, BATCH = 500, 64
_KEPT = Path(__file__).parent / "scores.yaml"


@lru_cache(maxsize=1)
def known_scores() -> dict[str, Scores]:
    """The scores of the embedded models, by name."""
    return dict(yaml.safe_load(_KEPT.read_text(encoding="utf-8")))


def measure(name: str, folder: Path) -> Scores:
    """The accuracy of a model in a folder at each distance, with 95 % limits; a few minutes on a CPU.

    Args:
        name: the embedded model whose settings it has.
    """
    backbone = backbones.load(backbones.from_settings(choice("backbone", name) | {"source": str(folder)}))
    conditions: list[dict[str, Any]] = [{"gap": 0, "blank": True}]
    conditions += [{"gap": gap, "filler": "between"} for gap in GAPS]
    conditions += [{"gap": gap, "filler": "before_image"} for gap in GAPS if gap]
    scores: Scores = {dataset: {"blank": 0.0, "between": {}, "before_image": {}} for dataset in DATASETS}
    for dataset in tqdm(DATASETS, desc="scores", unit="data set", disable=None):
        for condition in conditions:
            benchmark = benchmarks.from_settings({"name": dataset, **condition})
            samples = benchmarks.load(benchmark, "held_out", SAMPLES, backbone.settings.prompt_style)
            metrics = evaluate(backbone, benchmark, samples, Stock(), BATCH).metrics
            value, low, high = (round(metrics[f"accuracy{limit}"], 3) for limit in ("", "_low", "_high"))
            if "blank" in condition:
                scores[dataset]["blank"] = value
            else:
                scores[dataset][condition["filler"]][condition["gap"]] = [value, low, high]
    return scores


def table(scores: Scores) -> str:
    """The scores as a Markdown table: a row a data set, and one for the same text in front of the image."""
    gaps = sorted({gap for one in scores.values() for gap in one["between"]})
    head = ["", "blank pictures", *(f"gap {gap}" for gap in gaps)]
    lines = ["| " + " | ".join(head)[1:] + " |", "|---" * len(head) + "|"]
    for dataset, one in scores.items():
        lines.append(_row([f"`{dataset}`", f"{one['blank']:.3f}"], one["between"], gaps))
        if one.get("before_image"):
            lines.append(_row(["— the same text before the image", ""], one["before_image"], gaps))
    return "\n".join(lines)


def _row(first: list[str], cells: Mapping[int, list[float]], gaps: list[int]) -> str:
    shown = ["{:.3f} [{:.3f}, {:.3f}]".format(*cells[gap]) if gap in cells else "" for gap in gaps]
    return f"| {' | '.join([*first, *shown])} |"


def with_table(card: str, scores: Scores) -> str:
    """A card whose table of scores is the one of these scores."""
    lines = card.split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith("| | blank pictures"))
    after = next(number for number in range(first, len(lines)) if not lines[number].startswith("|"))
    return "\n".join([*lines[:first], table(scores), *lines[after:]])


def write(name: str, recipe: Mapping[str, Any], folder: Path, scores: Scores) -> None:
    """Write `scores.yaml` beside a trained model and a card, with its recipe, into it.

    Args:
        folder: the model's folder.
    """
    text = yaml.safe_dump({name: scores}, sort_keys=False, default_flow_style=None)
    (folder.parent / "scores.yaml").write_text(text, encoding="utf-8")
    card = (
        f"# {name}\n\nTrained by `python -m tdrs.zoo.train backbone={name}` with this recipe:\n\n"
        f"```yaml\n{yaml.safe_dump(dict(recipe), sort_keys=False)}```\n\n## Measured\n\n"
        f"Accuracy without an edit on {SAMPLES} held-out samples of each data set, in brackets 95 % limits. A gap is\n"
        f"unrelated text between image and question, in tokens.\n\n{table(scores)}\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
