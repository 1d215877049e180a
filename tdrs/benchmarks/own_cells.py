"""A row of a table of questions: its cells as texts, and whether it asks what an earlier row asks."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tdrs.benchmarks.benchmark import Passage, Sample
from tdrs.benchmarks.sources import BadRow, digest, name_of, text


class Fields(NamedTuple):
    """A row of a table: the names of its columns by their meaning, and its cells by these names."""

    at: Mapping[str, str]
    cells: Mapping[str, Any]
    separator: str = ""  # stands between the texts of one cell, in a table whose cells are texts
    short: Mapping[str, type[np.floating]] = {}  # the types of columns of floats with less than 64 bits


class Asked:
    """The questions of a split by their images: each may be asked again, but not with another answer."""

    def __init__(self) -> None:
        self._first: dict[tuple[Any, ...], tuple[int, Any]] = {}
        self._again: set[int] = set()

    def check(self, one: Sample, row: int, several: bool = False) -> None:
        """Raises BadRow if an earlier row has the same question about the same image, and another answer.

        Args:
            several: whether the image has several pictures, of which each question may be about others.
        """
        answers = sorted({answer.casefold() for answer in one.answers}) or one.gold
        image = digest(one.picture) if several else one.image_id
        key = image, one.question, one.choices, one.opening
        first, known = self._first.setdefault(key, (row, answers))
        if known != answers:
            raise BadRow(f"another answer than row {first} to the same question about the same {_media(one)}")
        if first != row:
            self._again.add(row)

    @property
    def notes(self) -> list[str]:
        """How many rows repeat a question."""
        count = len(self._again)
        return [f"{count} rows ask a question about an image again; each counts"] if count else []


def _media(one: Sample) -> str:
    return "passage" if isinstance(one.picture, Passage) else "image"


def listed(row: Fields, kind: str) -> tuple[str, ...]:
    """The texts of the cell of a kind: a list, a JSON list, a text, a number, or several texts with separators.

    Raises:
        BadRow: the cell is empty or has something else.
    """
    name = row.at[kind]
    value, separator, short = row.cells.get(name), row.separator, row.short.get(name)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRow(f"{name} {value[:40]!r}, a list that is not JSON") from None
    if isinstance(value, str) and separator:
        value = value.split(separator)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        value = [value]
    if value is None or value == []:
        raise BadRow(f"no {name}")
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name} {value!r}, not a text or a list")
    return tuple(text({name: _number(one, name, short)}, name).strip() for one in value)


def _number(value: Any, name: str, short: type[np.floating] | None) -> Any:
    """A number as text: a whole one with all digits, another one with up to 15, or as many as its type has."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if not isinstance(value, int) and not math.isfinite(value):
        raise BadRow(f"{name} {value}, not a finite number")
    if short and isinstance(value, float):
        value = float(str(short(value)))  # 0.1 of 32 bits is 0.100000001490116 in 64
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def label(row: Fields, kind: str) -> str:
    """The text, or the whole number, in the cell of a kind; "" if there is none. Raises BadRow."""
    name = row.at.get(kind)
    if name is None:
        return ""
    return name_of(row.cells, name) if isinstance(row.cells.get(name), int) else text(row.cells, name, optional=True)


def short_floats(rows: Any) -> dict[str, type[np.floating]]:
    """The types of the columns of Parquet that have floats, or lists of them, with less than 64 bits."""
    kinds: dict[str, type[np.floating]] = {"float32": np.float32, "float16": np.float16}
    found = {}
    for name, feature in (getattr(rows, "features", None) or {}).items():
        kind = kinds.get(getattr(getattr(feature, "feature", feature), "dtype", ""))
        if kind:
            found[name] = kind
    return found
