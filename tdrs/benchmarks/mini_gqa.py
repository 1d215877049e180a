"""mini_gqa: the embedded twin of GQA, generated from a seed.

A picture shows 3 to 6 coloured objects, whose colours and shapes may repeat. Questions are open, with one-word answers.
There are six kinds: `color` ("What color is the circle?"), `shape` ("What shape is the red object?"), `verify` ("Is the
circle red?"), `side` ("Is the circle on the left or on the right side of the picture?"), `relate` ("What color is the
object above the moon?"), `count` ("How many red objects are there?"). "Above", "below", "left" and "right" compare rows
and columns of the grid. A question is asked only if its answer is unambiguous. Four questions share an image.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import numpy as np
from PIL import Image

from tdrs.benchmarks.embedded import SEEDS, Embedded
from tdrs.benchmarks.gqa import IMAGES, QUESTIONS, GQARules
from tdrs.benchmarks.scenes import COLORS, GRID, SHAPES, Object, draw

QUESTIONS_PER_IMAGE = 4
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
RELATIONS = ("left of", "right of", "above", "below")

Asked = tuple[str, str] | None  # question and answer; None if the scene has no question of a kind


def sample_crowd(rng: np.random.Generator) -> list[Object]:
    """3 to 6 objects in distinct cells, in cell order. Each has one of four colours and one of four shapes."""
    count = int(rng.integers(3, 7))
    cells = np.sort(rng.choice(GRID * GRID, count, replace=False))
    colors = rng.choice(list(COLORS), 4, replace=False)
    shapes = rng.choice(SHAPES, 4, replace=False)
    return [Object(str(rng.choice(colors)), str(rng.choice(shapes)), int(cell)) for cell in cells]


def holds(relation: str, one: Object, other: Object) -> bool:
    """Whether `one` is left of, right of, above or below `other`, by its column or row."""
    (row, column), (row2, column2) = divmod(one.cell, GRID), divmod(other.cell, GRID)
    return {"left of": column < column2, "right of": column > column2, "above": row < row2, "below": row > row2}[
        relation
    ]


def _pick(values: list[Any], rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


def _named(objects: list[Object]) -> dict[int, str]:
    """A phrase for each object that can be named: its shape if no other object has it, else its colour and shape.

    An object whose colour and shape another object has, too, cannot be named.
    """
    shapes = Counter(thing.shape for thing in objects)
    pairs = Counter((thing.color, thing.shape) for thing in objects)
    names = {}
    for number, thing in enumerate(objects):
        if shapes[thing.shape] == 1:
            names[number] = thing.shape
        elif pairs[thing.color, thing.shape] == 1:
            names[number] = f"{thing.color} {thing.shape}"
    return names


def _unique_shape(objects: list[Object], rng: np.random.Generator) -> Object | None:
    """An object whose shape no other object has; None if there is none."""
    counts = Counter(thing.shape for thing in objects)
    unique = [thing for thing in objects if counts[thing.shape] == 1]
    return _pick(unique, rng) if unique else None


def _color(objects: list[Object], rng: np.random.Generator) -> Asked:
    thing = _unique_shape(objects, rng)
    if thing is None:
        return None
    return f"What color is the {thing.shape}?", thing.color


def _shape(objects: list[Object], rng: np.random.Generator) -> Asked:
    counts = Counter(thing.color for thing in objects)
    unique = [thing for thing in objects if counts[thing.color] == 1]
    if not unique:
        return None
    thing = _pick(unique, rng)
    return f"What shape is the {thing.color} object?", thing.shape


def _verify(objects: list[Object], rng: np.random.Generator) -> Asked:
    """Half of the answers are yes. A question with answer no names the colour of another object, if one differs."""
    thing = _unique_shape(objects, rng)
    if thing is None:
        return None
    if rng.random() < 0.5:
        return f"Is the {thing.shape} {thing.color}?", "yes"
    others = sorted({other.color for other in objects} - {thing.color}) or [c for c in COLORS if c != thing.color]
    return f"Is the {thing.shape} {_pick(others, rng)}?", "no"


def _side(objects: list[Object], rng: np.random.Generator) -> Asked:
    """Ask for the half of the picture that an object is in: left or right, or top or bottom."""
    names = _named(objects)
    if not names:
        return None
    number = _pick(list(names), rng)
    row, column = divmod(objects[number].cell, GRID)
    if rng.random() < 0.5:
        question = f"Is the {names[number]} on the left or on the right side of the picture?"
        return question, "left" if column < GRID // 2 else "right"
    question = f"Is the {names[number]} at the top or at the bottom of the picture?"
    return question, "top" if row < GRID // 2 else "bottom"


def _relate(objects: list[Object], rng: np.random.Generator) -> Asked:
    names = _named(objects)
    single = []
    for other in names:
        for relation in RELATIONS:
            found = [thing for thing in objects if holds(relation, thing, objects[other])]
            if len(found) == 1:
                single.append((found[0], relation, other))
    if not single:
        return None
    thing, relation, other = _pick(single, rng)
    attribute = _pick(["color", "shape"], rng)
    return f"What {attribute} is the object {relation} the {names[other]}?", getattr(thing, attribute)


def _count(objects: list[Object], rng: np.random.Generator) -> Asked:
    """Count the objects of a colour. Now and then no object has it."""
    color = _pick([thing.color for thing in objects] if rng.random() < 0.9 else list(COLORS), rng)
    return f"How many {color} objects are there?", NUMBERS[sum(thing.color == color for thing in objects)]


KINDS: dict[str, Callable[[list[Object], np.random.Generator], Asked]] = {
    "color": _color,
    "shape": _shape,
    "verify": _verify,
    "side": _side,
    "relate": _relate,
    "count": _count,
}


def ask(objects: list[Object], rng: np.random.Generator) -> tuple[str, str]:
    """A question and its answer, of a random kind that the scene allows; each such kind is equally likely."""
    for kind in rng.permutation(list(KINDS)):
        asked = KINDS[str(kind)](objects, rng)
        if asked:
            return asked
    raise AssertionError("counting is always possible")


def scene(split: str, number: int, seed: int) -> tuple[list[Object], np.ndarray]:
    """The objects and the picture of an image."""
    rng = np.random.default_rng([SEEDS[split], seed, number, 10])
    objects = sample_crowd(rng)
    return objects, draw(objects, rng)


def rows(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The first `count` questions in the columns of the real set, each with its picture (`image`, a uint8 array)."""
    result = []
    for number in range(count):
        image, turn = divmod(number, QUESTIONS_PER_IMAGE)
        if turn == 0:
            objects, picture = scene(split, image, seed)
            asked: set[str] = set()
        rng = np.random.default_rng([SEEDS[split], seed, number, 11])
        question, answer = ask(objects, rng)
        while question in asked:
            question, answer = ask(objects, rng)
        asked.add(question)
        names = {"id": f"{split}-{number}", "imageId": f"{split}-{image}"}
        result.append({**names, "question": question, "answer": answer, "image": picture})
    return result


def tables(split: str, count: int, seed: int = 0) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Questions and images as the two tables of the real set, with its columns and types."""
    made = rows(split, count, seed)
    images = {row["imageId"]: Image.fromarray(row["image"]) for row in made}
    questions = [{name: row[name] for name in QUESTIONS} for row in made]
    pictures = [{"id": key, "image": image} for key, image in images.items()]
    return (
        datasets.Dataset.from_list(questions, features=QUESTIONS),
        datasets.Dataset.from_list(pictures, features=IMAGES),
    )


@dataclass(frozen=True, kw_only=True)
class MiniGQA(GQARules, Embedded):
    """The embedded twin of GQA."""

    rows_per_image: ClassVar[int] = QUESTIONS_PER_IMAGE

    def rows(self, split: str, count: int) -> list[dict[str, Any]]:
        return rows(split, count, self.seed)
