"""Which layers or heads are edited: `all`, a list, a range, or a share of the depth."""

import re
from collections.abc import Sequence

from tdrs.settings import SettingError

Selection = str | Sequence[int]
ALLOWED = "must be 'all', a list of numbers from 0, a range like '4-17', or a share of the depth like '15%-60%'"


def check_selection(name: str, value: Selection) -> Selection:
    """Check a selection. Returns it, with a list turned into a tuple.

    Raises:
        SettingError: it selects nothing, or cannot be parsed.
    """
    if isinstance(value, str):
        ends = re.fullmatch(r"(\d+)(%?)-(\d+)(%?)", value)
        ordered = ends is not None and ends[2] == ends[4] and int(ends[1]) <= int(ends[3])
        if value != "all" and not (ordered and ends is not None and not (ends[2] and int(ends[3]) > 100)):
            raise SettingError(name, value, ALLOWED)
        return value
    numbers = tuple(value)
    if not numbers or not all(type(n) is int and n >= 0 for n in numbers):
        raise SettingError(name, value, ALLOWED)
    return numbers


def names_numbers(value: Selection) -> bool:
    """Whether a checked selection names numbers that a model may not have; `all` and shares of the depth do not."""
    return not isinstance(value, str) or (value != "all" and "%" not in value)


def resolve(name: str, value: Selection, count: int) -> frozenset[int]:
    """The numbers from 0 to count − 1 that a checked selection names.

    A range includes both ends. A share such as "28%-46%" contains each layer n whose middle, (n + ½) / count, lies in
    it, and at least the layer nearest to its centre. So one setting means the same depth in models of 4 and 32 layers.

    Raises:
        SettingError: a number is not below `count`.
    """
    if isinstance(value, str):
        if value == "all":
            return frozenset(range(count))
        first, last = (int(end.rstrip("%")) for end in value.split("-"))
        if value.endswith("%"):
            chosen = [n for n in range(count) if first <= 100 * (n + 0.5) / count <= last]
            centre = (first + last) / 200
            return frozenset(chosen or [min(range(count), key=lambda n: abs((n + 0.5) / count - centre))])
        numbers: Sequence[int] = range(first, last + 1)
    else:
        numbers = value
    if max(numbers) >= count:
        shown = value if isinstance(value, str) else list(value)
        raise SettingError(name, shown, f"must be from 0 to {count - 1} in this model")
    return frozenset(numbers)
