"""What others have published: the paper's numbers, and of a backbone without an edit a score that ours can be held to.

A stock score that is far from the published one says that something on the way differs (prompt, preparation of
pictures, precision, rule, weights), and then so may everything that is measured on top of it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.benchmarks import DATASETS

# T-DRS (arXiv 2511.09868), Tables 1 and 2: accuracy in per cent, on POPE F1. Stage 0 is the stock model, 3 all stages.
NAMESAKES = {"llava": "LLaVA-1.5-7B", "internvl": "InternVL2-8B", "qwen": "Qwen2.5-VL-7B"}
REPORTED = {
    ("llava", "scienceqa"): {0: 67.9, 1: 68.1, 2: 68.8, 3: 69.2},
    ("llava", "gqa"): {0: 62.0, 3: 63.1},
    ("llava", "textvqa"): {0: 58.2, 3: 59.0},
    ("llava", "pope"): {0: 85.7, 1: 85.8, 2: 86.0, 3: 86.1},
    ("internvl", "scienceqa"): {0: 96.6, 1: 96.9, 2: 97.1, 3: 97.3},
    ("internvl", "gqa"): {0: 62.6, 3: 62.8},
    ("internvl", "textvqa"): {0: 79.1, 3: 79.7},
    ("internvl", "pope"): {0: 87.0, 1: 86.8, 2: 87.2, 3: 87.4},
    ("qwen", "scienceqa"): {0: 79.4, 1: 79.8, 2: 80.4, 3: 80.7},
    ("qwen", "gqa"): {0: 57.9, 3: 58.3},
    ("qwen", "textvqa"): {0: 84.5, 3: 85.0},
    ("qwen", "pope"): {0: 86.4, 1: 86.6, 2: 86.9, 3: 87.3},
}
REAL = {"llava_1_5_7b": "llava", "internvl2_8b": "internvl", "qwen2_5_vl_7b": "qwen"}
POINTS = 3.0  # further off than this is said


class Published(NamedTuple):
    """A published score of a backbone without an edit: `value` from 0 to 1, of `metric`, and where it stands."""

    value: float
    metric: str
    where: str

    def distance(self, measured: float) -> float:
        """How many points a measured score is above (below: negative) the published one."""
        return 100 * (measured - self.value)

    def warning(self, measured: float) -> str:
        """What is to be said of a measured score that is too far off; "" where it is not."""
        points = self.distance(measured)
        if abs(points) <= POINTS + 1e-9:
            return ""
        return (
            f"the stock model's {self.metric}, {100 * measured:.1f} %, is {points:+.1f} points off the published "
            f"{100 * self.value:.1f} % ({self.where})"
        )


def published(backbone: Mapping[str, Any], dataset: Mapping[str, Any]) -> Published | None:
    """The published score of a backbone on a held-out split, both by their configurations; None if there is none.

    Of an embedded backbone it is the card's, at the card's distances; of a real one, the paper's stock model.
    """
    name, asked_as_usual = str(backbone["name"]), dataset["prompt"] == "backbone" and dataset["seed"] == 0
    if not asked_as_usual:
        return None
    if str(backbone["source"]) == f"embedded:{name}":
        return _on_the_card(name, dataset)
    kind = DATASETS[dataset["name"]]
    known = REPORTED.get((REAL.get(name, ""), str(dataset["name"])))
    if known is None or dataset["gap"] or dataset["blank"]:
        return None
    return Published(
        known[0] / 100, "F1" if kind.real == "pope" else "accuracy", f"the paper's {NAMESAKES[REAL[name]]}"
    )


def _on_the_card(name: str, dataset: Mapping[str, Any]) -> Published | None:
    """The cell of the table in a card, where the settings have one."""
    card = EMBEDDED / name / "README.md"
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in card.read_text().splitlines()
        if line.startswith("| ")
    ]
    at = next((n for n, row in enumerate(rows) if row[0] == f"`{dataset['name']}`"), None)
    head = next((row for row in rows if "blank pictures" in row), None)
    column = "blank pictures" if dataset["blank"] else f"gap {dataset['gap']}"
    if at is None or head is None or column not in head or dataset.get("ocr_tokens"):
        return None
    if dataset["blank"] and dataset["gap"]:
        return None
    before = dataset["filler"] == "before_image" and dataset["gap"] > 0
    number = re.match(r"\d\.\d+", rows[at + before][head.index(column)])
    return Published(float(number[0]), "accuracy", f"the card of {name}") if number else None
