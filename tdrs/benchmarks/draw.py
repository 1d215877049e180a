"""A fair draw: an order of a split's images in which, for every n, the first n questions represent the whole split.

A file may be sorted by category, answer, subject or image, so its first rows represent nothing. Here the images are
first ordered by a hash of their names. Then they are taken one by one. Each time, the next `WINDOW` images are
compared, and the image is taken that makes the questions so far most similar to the whole split: in the shares of
categories, answers, kinds of question and strata. The order depends only on the contents of the rows. The order of the
rows in the file, the prompt, the gap, the model and the method do not change it. A smaller draw is the beginning of a
larger one.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tdrs.benchmarks.benchmark import PictureSet, Sample

WINDOW = 64  # few, so that an image that differs from the others does not wait for long
COMMON = 0.02  # values that a smaller share of the questions have are counted as one value, "other"


def traits(sample: Sample) -> list[tuple[str, str]]:
    """The traits over which a draw is balanced: pairs of a dimension and the sample's value in it."""
    word = sample.question.split(maxsplit=1)[0].lower() if sample.question.strip() else ""
    found = [("kind", word), ("answer", sample.gold), ("options", str(len(sample.options)))]
    found += [("category", f"{name}: {sample.gold}" if sample.options else name) for name in sample.categories]
    return found + [(f"stratum {number}", value) for number, value in enumerate(sample.strata)]


def by_image(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each image, in their order."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.image_id, []).append(sample)
    return found


def fair_order(samples: Sequence[Sample]) -> list[str]:
    """The names of all images, in the order of the draw."""
    images = by_image(samples)
    waiting = sorted(images, key=lambda name: hashlib.sha256(name.encode()).digest())
    counts, sizes = _table([images[name] for name in waiting])
    share = counts.sum(axis=0) / sizes.sum()
    sums, size = np.zeros(len(share)), 0.0
    rows = list(range(len(waiting)))
    order: list[str] = []
    while rows:
        near = rows[:WINDOW]
        totals = sizes[near, None] + size
        distance = ((sums + counts[near] - totals * share) ** 2 / share).sum(axis=1)
        best = near[int(np.argmin(distance.round(9)))]  # rounded: equal ones must be equal on every machine
        rows.remove(best)
        order.append(waiting[best])
        sums, size = sums + counts[best], size + sizes[best]
    return order


def _table(images: Sequence[Sequence[Sample]]) -> tuple[np.ndarray, np.ndarray]:
    """How often each trait occurs in each image's questions, (images, traits); how many questions it has, (images,)."""
    each = [Counter(trait for sample in some for trait in traits(sample)) for some in images]
    sizes = np.array([len(some) for some in images], dtype=float)
    totals: Counter[tuple[str, str]] = Counter()
    for counted in each:
        totals.update(counted)
    common = {trait for trait, count in totals.items() if count >= COMMON * sizes.sum()}
    column = {trait: number for number, trait in enumerate(sorted(common | {(name, "") for name, _ in totals}))}
    table = np.zeros((len(images), len(column)))
    for number, counted in enumerate(each):
        for trait, count in counted.items():
            table[number, column[trait if trait in common else (trait[0], "")]] += count
    return table[:, table.any(axis=0)], sizes


def shared_pictures(samples: Sequence[Sample]) -> list[str]:
    """A note on pictures that stand in several sets of pictures: their questions are not independent."""
    names: dict[str, set[str]] = {}
    for sample in samples:
        for part in sample.picture.parts if isinstance(sample.picture, PictureSet) else ():
            names.setdefault(part.digest, set()).add(sample.image_id)
    count = sum(len(some) > 1 for some in names.values())
    told = "intervals take these as independent, both splits may have them; a column image_id can join these questions"
    return [f"{count} pictures are in questions of different image_id: {told}"] if count else []
