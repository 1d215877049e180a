"""mini_scienceqa: the embedded twin of ScienceQA-IMG, generated from a seed.

Rows carry exactly the columns of `lmms-lab/ScienceQA` (ScienceQA-IMG): a picture of 3-5 coloured objects, a question
with 2-5 choices, the index of the right one, and a hint. The hint is `gap` tokens of unrelated text: it puts distance
between the image and the question, and has no other effect. Four questions share an image and its hint.

There are three kinds of question, named by `topic`: `color` ("What color is the circle?"), `shape` ("What shape is the
red object?"), `presence` ("Which shape is in the picture?"). For the first two, wrong choices are taken first from the
other objects of the picture. So it is not enough to know which colours and shapes are in the picture.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import datasets
import numpy as np
from PIL import Image

from tdrs.benchmarks.embedded import SEEDS, Embedded
from tdrs.benchmarks.filler import filler_of
from tdrs.benchmarks.scenes import COLORS, SHAPES, Object, draw, sample_objects
from tdrs.benchmarks.scienceqa import FEATURES, ScienceQARules

QUESTIONS_PER_IMAGE = 4
TOPICS = ("color", "shape", "presence")
LECTURE = "An object has a color and a shape."


def ask(objects: list[Object], topic: str, rng: np.random.Generator) -> dict[str, Any]:
    """A question of the given topic about a scene: `question`, `choices` (list of words) and `answer` (index)."""
    thing = objects[rng.integers(len(objects))]
    if topic == "presence":
        attribute = "shape" if rng.random() < 0.5 else "color"
        question = f"Which {attribute} is in the picture?"
    else:
        attribute = topic
        question = (
            f"What color is the {thing.shape}?" if topic == "color" else f"What shape is the {thing.color} object?"
        )
    words = list(COLORS) if attribute == "color" else list(SHAPES)
    gold = getattr(thing, attribute)
    shown = [getattr(other, attribute) for other in objects if other is not thing]
    absent = [word for word in words if word != gold and word not in shown]
    rng.shuffle(shown)
    rng.shuffle(absent)
    wrong = absent if topic == "presence" else shown + absent
    choices = [gold, *wrong[: int(rng.integers(1, 5))]]
    rng.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(gold)}


def rows(split: str, count: int, gap: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """The first `count` rows of a split, in the columns of the real set (`image` as a uint8 array).

    A row depends only on the split, the seed, its image and its number. Another `gap` changes the hint and nothing
    else, so results at two gaps can be paired.
    """
    result = []
    for number in range(count):
        image_number, turn = divmod(number, QUESTIONS_PER_IMAGE)
        if turn == 0:
            scene_rng = np.random.default_rng([SEEDS[split], seed, image_number, 0])
            objects = sample_objects(scene_rng)
            image = draw(objects, scene_rng)
        rng = np.random.default_rng([SEEDS[split], seed, number, 1])
        topic = str(rng.choice(TOPICS, p=(0.4, 0.4, 0.2)))
        hint = filler_of(f"{split}-{image_number}", gap, SEEDS[split], seed)
        result.append(
            {
                "image": image,
                **ask(objects, topic, rng),
                "hint": hint,
                "task": "closed choice",
                "grade": "grade1",
                "subject": "natural science",
                "topic": topic,
                "category": "Pictures",
                "skill": "Name what a picture shows",
                "lecture": LECTURE,
                "solution": "",
            }
        )
    return result


@lru_cache(maxsize=8)
def dataset(split: str, count: int, gap: int = 0, seed: int = 0) -> datasets.Dataset:
    """The rows as a `datasets.Dataset` with exactly the columns and types of the real set."""
    table = [{**row, "image": Image.fromarray(row["image"])} for row in rows(split, count, gap, seed)]
    return datasets.Dataset.from_list(table, features=FEATURES)


@dataclass(frozen=True, kw_only=True)
class MiniScienceQA(ScienceQARules, Embedded):
    """The embedded twin of ScienceQA-IMG. The text of a gap between image and question is its hint."""

    rows_per_image: ClassVar[int] = QUESTIONS_PER_IMAGE

    def rows(self, split: str, count: int) -> list[dict[str, Any]]:
        return rows(split, count, self.gap if self.filler == "between" else 0, self.seed)

    def context(self, split: str, image: str) -> tuple[str, str]:
        return super().context(split, image)[0], ""
