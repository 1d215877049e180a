"""A batch in parts of similar length, each with a bounded number of tokens.

Prompts are padded to the longest of those that are read together. A picture's tiles and a question's text can make one
six times as long as another.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tdrs.benchmarks.benchmark import Sample


def cut(lengths: Sequence[int], size: int, tokens: int) -> list[list[int]]:
    """The numbers of a batch's prompts in parts, the longest prompts first. They depend on the arguments alone.

    Args:
        lengths: of the prompts, in tokens.
        size: the most prompts in a part.
        tokens: the most tokens in a part, padding included. A longer prompt is alone.
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    parts: list[list[int]] = []
    while order:
        count = max(1, min(size, tokens // lengths[order[0]]))
        parts.append(order[:count])
        order = order[count:]
    return parts


def part(tensors: Mapping[str, Any], samples: Sequence[Sample], numbers: Sequence[int]) -> dict[str, Any] | None:
    """The tensors of some prompts of a batch, as the processor would give them for these prompts alone.

    A tensor of the shape of `input_ids` has a row for each prompt; any other one has an entry for each prompt or for
    each picture. None if one has neither.

    Args:
        tensors: of the batch, left-padded, without pixels.
        samples: of the batch.
        numbers: which of them, in which order.
    """
    shape = tensors["input_ids"].shape
    pictures: list[list[int]] = []
    for sample in samples:
        first = pictures[-1][-1] + 1 if pictures else 0
        pictures.append(list(range(first, first + len(sample.picture.parts))))
    entries = {
        pictures[-1][-1] + 1: [number for one in numbers for number in pictures[one]],
        len(samples): list(numbers),
    }
    longest = int(tensors["attention_mask"][list(numbers)].sum(dim=1).max())
    found = {}
    for name, value in tensors.items():
        if value.shape == shape:
            found[name] = value[list(numbers), shape[1] - longest :]
        elif value.ndim and len(value) in entries:
            found[name] = value[entries[len(value)]]
        else:
            return None
    return found
