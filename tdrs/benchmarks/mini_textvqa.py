"""mini_textvqa: the embedded twin of TextVQA, generated from a seed.

A picture shows 2 to 4 signs with letters and digits. The question is "What does the red sign say?", "What letter is on
…" or "What number is on …". Ten simulated annotators answer each question, in upper or lower case. Now and then one
misreads a character, reads another sign, or answers "unanswerable". Two questions share an image.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import numpy as np
from PIL import Image

from tdrs.benchmarks.embedded import SEEDS, Embedded
from tdrs.benchmarks.signs import Sign, draw_signs, sample_signs
from tdrs.benchmarks.textvqa import ANNOTATORS, FEATURES, TextVQARules

QUESTIONS_PER_IMAGE = 2
_ALIKE = dict(zip("BCDEFGHJKLMNPQRSTUVWXYZ0123456789", "8GQFEHMUXTWMF0P57VUVKVTDT7Z8956F3G"[:33], strict=True))
_MISREAD, _OTHER_SIGN, _GAVE_UP = 0.06, 0.02, 0.02  # shares of the annotators' answers; the others are right


def _annotate(sign: Sign, signs: list[Sign], rng: np.random.Generator) -> str:
    fate = rng.random()
    text = sign.text
    if fate < _MISREAD:
        place = int(rng.integers(len(text)))
        text = text[:place] + _ALIKE[text[place]] + text[place + 1 :]
    elif fate < _MISREAD + _OTHER_SIGN:
        text = signs[int(rng.integers(len(signs)))].text
    elif fate < _MISREAD + _OTHER_SIGN + _GAVE_UP:
        return "unanswerable"
    return text if rng.random() < 0.5 else text.lower()


def ask(sign: Sign, rng: np.random.Generator) -> str:
    """A question about one sign. If it shows a letter or a number alone, half of the questions say which of the two."""
    if sign.text.isdigit() and rng.random() < 0.5:
        return f"What number is on the {sign.color} sign?"
    if sign.text.isalpha() and rng.random() < 0.5:
        return f"What letter is on the {sign.color} sign?"
    return f"What does the {sign.color} sign say?"


def scene(split: str, number: int, seed: int) -> tuple[list[Sign], np.ndarray]:
    """The signs and the picture of an image."""
    rng = np.random.default_rng([SEEDS[split], seed, number, 20])
    signs = sample_signs(rng)
    return signs, draw_signs(signs, rng)


def rows(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The first `count` rows in the columns of the real set (`image` as a uint8 array)."""
    result = []
    for number in range(count):
        image, turn = divmod(number, QUESTIONS_PER_IMAGE)
        if turn == 0:
            signs, picture = scene(split, image, seed)
            order = np.random.default_rng([SEEDS[split], seed, image, 21]).permutation(len(signs))
        rng = np.random.default_rng([SEEDS[split], seed, number, 22])
        sign = signs[int(order[turn])]
        result.append(
            {
                "image_id": f"{split}-{image}",
                "question_id": number,
                "question": ask(sign, rng),
                "image": picture,
                "answers": [_annotate(sign, signs, rng) for _ in range(ANNOTATORS)],
                "ocr_tokens": [one.text for one in signs],
            }
        )
    return result


def dataset(split: str, count: int, seed: int = 0) -> datasets.Dataset:
    """The rows with the columns and types of the real set."""
    table = [{**row, "image": Image.fromarray(row["image"])} for row in rows(split, count, seed)]
    return datasets.Dataset.from_list(table, features=FEATURES)


@dataclass(frozen=True, kw_only=True)
class MiniTextVQA(TextVQARules, Embedded):
    """The embedded twin of TextVQA. Its perfect OCR tokens would give the answer away, so they are off by default."""

    rows_per_image: ClassVar[int] = QUESTIONS_PER_IMAGE
    ocr_tokens: bool | None = False

    def rows(self, split: str, count: int) -> list[dict[str, Any]]:
        return rows(split, count, self.seed)
