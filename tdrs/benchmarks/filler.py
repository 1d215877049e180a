"""Unrelated but fluent text of an exact length: the distance between image and question.

A grammar makes plain sentences about a countryside without colours and geometric shapes. The length is the number of
words and full stops; each is one token of the embedded models' tokenizer.
"""

import hashlib

import numpy as np

_PEOPLE = "farmer teacher sailor doctor baker singer writer guard miller pilot painter hunter".split()
_PLACES = "river village market forest harbor bridge garden station school valley library mill".split()
_THINGS = "letter basket hammer blanket ladder kettle bottle map lamp rope wagon drum".split()
_ADJECTIVES = "old quiet young tired busy famous heavy gentle narrow distant clever lonely".split()
_MOVES = "walks runs rides returns travels hurries".split()
_ACTS = "finds carries repairs sells hides washes borrows forgets".split()
_WHEN = "today often again early late sometimes".split()
_FUNCTION = "The Near Every a the to near and in for evening morning there is".split()

WORDS = sorted({*_PEOPLE, *_PLACES, *_THINGS, *_ADJECTIVES, *_MOVES, *_ACTS, *_WHEN, *_FUNCTION})


def _sentence(rng: np.random.Generator) -> list[str]:
    def pick(words: list[str]) -> str:
        return words[rng.integers(len(words))]

    match rng.integers(5):
        case 0:
            return ["The", pick(_ADJECTIVES), pick(_PEOPLE), pick(_MOVES), "to", "the", pick(_PLACES), "."]
        case 1:
            return ["The", pick(_PEOPLE), pick(_ACTS), "a", pick(_ADJECTIVES), pick(_THINGS), pick(_WHEN), "."]
        case 2:
            return ["Near", "the", pick(_PLACES), "there", "is", "a", pick(_ADJECTIVES), pick(_THINGS), "."]
        case 3:
            when = pick(["morning", "evening"])
            return ["Every", when, "the", pick(_PEOPLE), pick(_ACTS), "a", pick(_THINGS), "."]
        case _:
            return ["The", pick(_PEOPLE), "and", "the", pick(_PEOPLE), pick(_MOVES), pick(_WHEN), "."]


def filler(length: int, rng: np.random.Generator) -> str:
    """Sentences with `length` words and full stops together, ending in a full stop; "" for length 0.

    Raises:
        ValueError: `length` is negative.
    """
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    words: list[str] = []
    while len(words) < length:
        words += _sentence(rng)
    if length:
        words = [*words[: length - 1], "."]
    return " ".join(words).replace(" .", ".")


def filler_of(image: str, length: int, split: int, seed: int) -> str:
    """The filler of an image of a split, decided by the image's name: the same for all questions about it."""
    name = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8])
    return filler(length, np.random.default_rng([split, seed, name, 2]))
