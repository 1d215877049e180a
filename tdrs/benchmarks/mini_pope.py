"""mini_pope: the embedded twin of POPE, generated from a seed.

An object has a colour and a shape ("a red circle"); there are 64 kinds. Some kinds are much more frequent than others,
and each kind often appears together with certain others, its companions. So the three ways in which POPE chooses absent
objects differ, as they do on photographs: `random` takes any absent kind, `popular` the most frequent ones, and
`adversarial` those that appear most often together with the objects in the picture. How often kinds appear, alone and
together, is counted on pictures of the training split. Each image has six questions in each category: three with the
answer yes, which are the same in all categories, and three with the answer no.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any, ClassVar

import datasets
import numpy as np
from PIL import Image

from tdrs.benchmarks.benchmark import Sample
from tdrs.benchmarks.embedded import SEEDS, Embedded
from tdrs.benchmarks.pope import CATEGORIES, FEATURES, POPERules, merge
from tdrs.benchmarks.scenes import COLORS, GRID, SHAPES, Object, draw

KINDS = tuple((color, shape) for color in COLORS for shape in SHAPES)
ASKED = 3  # questions with each answer, in each category of an image
_COMPANIONS = 4
_COUNTED = 2000  # pictures on which kinds are counted


@lru_cache(maxsize=1)
def _world() -> tuple[np.ndarray, np.ndarray]:
    """The probability of each kind, (64,), and the companions of each kind, (64, 4). They do not depend on a seed."""
    rng = np.random.default_rng(20251)
    share = 1 / np.arange(1, len(KINDS) + 1) ** 0.8
    rng.shuffle(share)
    likely = share / share.sum()
    companions = [rng.choice(len(KINDS), _COMPANIONS, replace=False, p=likely) for _ in KINDS]
    return likely, np.array(companions)


def sample_kinds(rng: np.random.Generator) -> list[int]:
    """3 to 5 different kinds. The first is drawn by its probability.

    Each other one is, six times in ten, a companion of a kind that is already there; else it is drawn like the first.
    """
    likely, companions = _world()
    count = int(rng.integers(3, 6))
    kinds: list[int] = []
    while len(kinds) < count:
        if kinds and rng.random() < 0.6:
            kind = int(rng.choice(companions[kinds[int(rng.integers(len(kinds)))]]))
        else:
            kind = int(rng.choice(len(KINDS), p=likely))
        if kind not in kinds:
            kinds.append(kind)
    return kinds


def scene(split: str, number: int, seed: int) -> tuple[list[int], np.ndarray]:
    """The kinds in an image, and its picture."""
    rng = np.random.default_rng([SEEDS[split], seed, number, 30])
    kinds = sample_kinds(rng)
    cells = rng.choice(GRID * GRID, len(kinds), replace=False)
    objects = [Object(*KINDS[kind], int(cell)) for kind, cell in zip(kinds, cells, strict=True)]
    return kinds, draw(objects, rng)


@lru_cache(maxsize=4)
def statistics(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How many pictures of the training split show each kind, (64,), and each pair of kinds, (64, 64)."""
    together = np.zeros((len(KINDS), len(KINDS)), dtype=int)
    for number in range(_COUNTED):
        kinds = sample_kinds(np.random.default_rng([SEEDS["train"], seed, number, 30]))
        for kind in kinds:
            together[kind, kinds] += 1
    frequency = together.diagonal().copy()
    np.fill_diagonal(together, 0)
    return frequency, together


def negatives(category: str, present: list[int], chosen: list[int], seed: int, rng: np.random.Generator) -> list[int]:
    """Three absent kinds, by POPE's definition of the category.

    Args:
        chosen: the present kinds that are asked for. `adversarial` takes for each of them the absent kind that appears
            most often together with it.
    """
    frequency, together = statistics(seed)
    if category == "random":
        absent = [kind for kind in range(len(KINDS)) if kind not in present]
        return [int(kind) for kind in rng.choice(absent, ASKED, replace=False)]
    if category == "popular":
        return [int(kind) for kind in np.argsort(-frequency, kind="stable") if kind not in present][:ASKED]
    taken: list[int] = []
    for kind in chosen:
        order = np.argsort(-together[kind], kind="stable")
        taken.append(next(int(other) for other in order if other not in present and other not in taken))
    return taken


def question(kind: int) -> str:
    """POPE's question about an object."""
    color, shape = KINDS[kind]
    return f"Is there {'an' if color[0] in 'aeiou' else 'a'} {color} {shape} in the image?"


def rows(split: str, images: int, seed: int = 0) -> list[dict[str, Any]]:
    """All rows of the first images, in the columns of the real set (`image` as a uint8 array), image by image."""
    result: list[dict[str, Any]] = []
    for number in range(images):
        present, picture = scene(split, number, seed)
        rng = np.random.default_rng([SEEDS[split], seed, number, 31])
        chosen = [int(kind) for kind in rng.choice(present, ASKED, replace=False)]
        for category in CATEGORIES:
            absent = negatives(category, present, chosen, seed, rng)
            for yes, no in zip(chosen, absent, strict=True):
                for kind, answer in ((yes, "yes"), (no, "no")):
                    result.append(
                        {
                            "question_id": str(len(result)),
                            "question": question(kind),
                            "answer": answer,
                            "image_source": f"{split}-{number}",
                            "image": picture,
                            "category": category,
                        }
                    )
    return result


def dataset(split: str, images: int, seed: int = 0) -> datasets.Dataset:
    """The rows with the columns and types of the real set."""
    table = [{**row, "image": Image.fromarray(row["image"])} for row in rows(split, images, seed)]
    return datasets.Dataset.from_list(table, features=FEATURES)


@dataclass(frozen=True, kw_only=True)
class MiniPOPE(POPERules, Embedded):
    """The embedded twin of POPE. A sample is a pair of image and question, which may count in several categories."""

    sizes: ClassVar[dict[str, int]] = {"tuning": 1200, "held_out": 2400}
    rows_per_image: ClassVar[int] = len(CATEGORIES) * 2 * ASKED

    def rows(self, split: str, count: int) -> list[dict[str, Any]]:
        return rows(split, ceil(count / (2 * ASKED)), self.seed)  # an image has at least so many pairs

    def generate(self, split: str, count: int, style: str) -> list[Sample]:
        return merge(merge(super().generate(split, count, style))[:count])
