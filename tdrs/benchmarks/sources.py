"""From the rows of a source to samples, with their pictures.

Rows that cannot be used are named and counted; the settings say whether they are refused or left out.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import datasets

from tdrs.benchmarks.benchmark import Accepts, Benchmark, Passage, Picture, Sample, Samples, anything
from tdrs.benchmarks.draw import by_image, fair_order, shared_pictures
from tdrs.benchmarks.pictures import Pictures, which
from tdrs.benchmarks.rows import each, open_rows
from tdrs.settings import SettingError, check_choice, check_number, first_line

BAD_ROWS = ("refuse", "skip")
Rows = Any  # a datasets.Dataset, or rows with the methods of one that are used here
Context = Callable[[str], tuple[str, str]]  # the name of an image → the texts before it and after it
Make = Callable[[int, Any, Context], Sample]  # number of a row, its columns without the image → the sample


class BadRow(Exception):
    """A row cannot become a sample. The message says why."""


def check_columns(rows: datasets.Dataset, needed: Sequence[str], source: str) -> None:
    """Raises SettingError unless the rows have all needed columns."""
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise SettingError("source", source, f"lacks the column {', '.join(missing)}; needed are {', '.join(needed)}")


def text(row: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    """A field's text; "" if it is null and optional.

    Raises:
        BadRow: the field is null, blank, not text, or the text "nan", which stands for a missing value.
    """
    value = row.get(name)
    if value is None and optional:
        return ""
    if value is None:
        raise BadRow(f"no {name}")
    if not isinstance(value, str):
        raise BadRow(f"{name} {value!r}, not text")
    if not value.strip() and not optional:
        raise BadRow(f"an empty {name}")
    if value.strip().lower() == "nan":
        raise BadRow(f"{name} {value!r}, a missing value that was written as text")
    return value


def texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field's list of texts. Raises BadRow if it is not a list, or if an item is not text."""
    values = row.get(name)
    if values is None:
        raise BadRow(f"no {name}")
    if not isinstance(values, list | tuple):
        raise BadRow(f"{name} {values!r}, not a list of texts")
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise BadRow(f"{value!r} as item {number} of {name}, not text")
    return tuple(values)


# What stands for a picture in the text of a question, in the formats of LLaVA, lmms-eval and MMMU.
PLACE = re.compile(r"<image(?:[ _]?\d+)?>")


def check_places(said: str, count: int) -> bool:
    """Whether a text says where a picture stands, which is read as text.

    Raises:
        BadRow: it says so of one of several pictures, which all stand in front of the question.
    """
    mark = PLACE.search(said)
    if mark and count > 1:
        raise BadRow(f"{mark[0]!r} in its text, which gives each of its {count} pictures a place")
    return mark is not None


def name_of(row: Mapping[str, Any], name: str) -> str:
    """The name of a row or an image, as text. Raises BadRow unless the field is text or a whole number."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(row, name)


def in_split(image: str, split: str, tuning_share: float) -> bool:
    """Whether an image belongs to a split. A share of the images, chosen by a hash of their names, is for tuning."""
    number = int(hashlib.sha1(image.encode()).hexdigest()[:8], 16) / 16**8
    return (number < tuning_share) == (split == "tuning")


class Unique:
    """Names that must be different in each row of a split."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}

    def check(self, what: str, name: str, row: int) -> None:
        """Raises BadRow if an earlier row has the name."""
        if (first := self._rows.setdefault(name, row)) != row:
            raise BadRow(f"the {what} of row {first}")


def digest(found: Picture) -> str:
    """A hash of an encoded picture. Raises BadRow if there is no picture."""
    try:
        return found.digest
    except OSError as error:
        raise BadRow(first_line(error)) from None


_SIZES: dict[str, tuple[int, int] | str] = {}  # by a picture's digest: its width and height, or why it is corrupt


def check_picture(found: Picture, accepts: Accepts) -> None:
    """Raises BadRow if a picture is missing or corrupt, or if the model cannot take their number or a size."""
    if isinstance(found, Passage):
        return
    digest(found)
    sizes = []
    for number, part in enumerate(found.parts, 1):
        if part.digest not in _SIZES:
            try:
                _SIZES[part.digest] = part.open().size
            except OSError as error:
                _SIZES[part.digest] = f"a corrupt image ({first_line(error)})"
        size = _SIZES[part.digest]
        if isinstance(size, str):
            raise BadRow(size + which(number, len(found.parts)))
        sizes.append(size)
    refused = accepts(sizes)
    if refused:
        shown = " and ".join(f"{width} × {height}" for width, height in sizes)
        raise BadRow(f"{'an image' if len(sizes) == 1 else f'{len(sizes)} images'} of {shown} pixels ({refused})")


@dataclass(frozen=True, kw_only=True)
class Sourced(Benchmark):
    """Settings of a real set.

    Args:
        source: hub id, local folder in the hub's layout, Parquet file, or a saved `datasets` directory.
        revision: the hub commit; None is the newest one.
        rows: how many rows the held-out split must have; None is any number.
        bad_rows: a row that cannot be used, for example without an image, is an error (`refuse`), or is left out and
            counted (`skip`).
    """

    columns: ClassVar[tuple[str, ...]]  # that the rows must have
    image_column: ClassVar[str]  # names the image of a row; "" where rows have no such name
    id_column: ClassVar[str] = ""  # is different in each row; "" where there is none
    source: str
    revision: str | None = None
    rows: int | None = None
    bad_rows: str = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("bad_rows", self.bad_rows, BAD_ROWS)
        if self.rows is not None:
            check_number("rows", self.rows, 1, whole=True)

    def origin(self, split: str) -> tuple[str | None, str]:
        """The configuration and the split of the source that have a split."""
        return getattr(self, "config", None), getattr(self, split)

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        rows = open_rows(self.source, *self.origin(split), self.revision)
        check_columns(rows, self.columns, self.source)
        self.check_count(len(rows), split)
        pictures = Pictures(rows, self.source)
        ids = Unique()

        def make(number: int, row: Any, context: Context) -> Sample:
            picture = pictures[number]
            image = name_of(row, self.image_column) if self.image_column else digest(picture)
            one = self.sample(row, number, picture, image, style, context(image))
            if self.id_column:
                ids.check(self.id_column, one.id, number)
            return one

        return self.gather(rows, make, split, limit, accepts)

    def check_count(self, count: int, split: str) -> None:
        """Raises SettingError unless the held-out split has `rows` rows."""
        if split == "held_out" and self.rows is not None and count != self.rows:
            allowed = f"{self.source} has {count} rows in the held-out split; null takes any number"
            raise SettingError("rows", self.rows, allowed)

    def gather(
        self,
        rows: Rows,
        make: Make,
        split: str,
        limit: int | None,
        accepts: Accepts,
        numbers: Sequence[int] | None = None,
        same_picture: bool = True,
    ) -> Samples:
        """Turn the good rows into samples, with a limit a fair draw of whole images. Bad rows are refused or counted.

        The texts of all rows are checked, and the pictures of the drawn ones.

        Args:
            make: turns a row into a sample: its number, its columns without the image, and the texts around an image.
            numbers: the rows that belong to the split; None is all.
            accepts: as in `Benchmark.load`.
            same_picture: whether rows about one image must have the same picture, or of several one in common; they may
                also show parts of it.

        Raises:
            SettingError: a row is bad and `bad_rows` is `refuse`, or no row is good.
        """
        faults: dict[int, str] = {}
        drafts: dict[int, Sample] = {}
        texts_only = rows.remove_columns("image") if "image" in rows.column_names else rows
        chosen = range(len(rows)) if numbers is None else numbers
        shown = partial(_shown, place=getattr(rows, "place", "row {}".format))
        for number, row in zip(chosen, each(texts_only, numbers), strict=True):
            try:
                drafts[number] = make(number, row, lambda image: ("", ""))
            except BadRow as error:
                faults[number] = str(error)
        at: dict[str, list[int]] = {}
        for number, draft in drafts.items():
            at.setdefault(draft.image_id, []).append(number)
        whole = self.merged(list(drafts.values()))
        sizes = {name: len(some) for name, some in by_image(whole).items()}
        found: list[int] = []
        taken = 0
        for name in sizes if limit is None else fair_order(whole):
            if limit is not None and taken and taken + sizes[name] > limit:
                break
            bad = _bad_pictures({number: drafts[number].picture for number in at[name]}, accepts, same_picture)
            good = [number for number in at[name] if number not in bad]
            faults |= bad
            found += good
            taken += len(self.merged([drafts[number] for number in good]))
        if faults and self.bad_rows == "refuse":
            allowed = f"{len(faults)} unusable of {len(chosen)} rows: {shown(faults)}; bad_rows=skip leaves them out"
            raise SettingError("source", self.source, allowed)
        del drafts, whole, at  # a large set would be in memory twice
        context = lru_cache(maxsize=None)(lambda image: self.context(split, image))
        found = sorted(found) if limit is None else found
        drawn = zip(found, each(texts_only, found), strict=True)
        samples = self.merged([make(number, row, context) for number, row in drawn])
        if limit is not None and len(samples) > limit:  # the first image alone has more questions
            samples = self.merged(samples[:limit])
        if not samples:
            raise SettingError("source", self.source, f"has no usable row ({shown(faults) or 'it is empty'})")
        notes = [f"{len(faults)} rows of {self.source} left out: {shown(faults)}"] if faults else []
        if limit is not None and len(samples) < limit:
            why = "images are taken whole" if len(found) + len(faults) < len(chosen) else "there are no more"
            notes.append(f"{len(samples)} samples for a limit of {limit}: {why}")
        return Samples(samples, [*notes, *shared_pictures(samples)])


def _shown(faults: Mapping[int, str], place: Callable[[int], str]) -> str:
    """The first three faults, by row."""
    some = [f"{place(number)} has {fault}" for number, fault in sorted(faults.items())]
    return "; ".join(some[:3]) + ("; …" if len(some) > 3 else "")


def _bad_pictures(pictures: Mapping[int, Picture], accepts: Accepts, same: bool) -> dict[int, str]:
    """The bad rows about one image: their picture cannot be used, or is not the `same` as the first row's picture.

    Rows with several pictures belong together if they have one in common, also by way of other rows.
    """
    bad: dict[int, str] = {}
    good: dict[int, set[str]] = {}
    for number, found in pictures.items():
        try:
            check_picture(found, accepts)
            good[number] = {part.digest for part in found.parts}
        except BadRow as error:
            bad[number] = str(error)
    if not same or not good:
        return bad
    first, joined = next(iter(good.items()))
    waiting = dict(good)
    while more := [number for number, parts in waiting.items() if parts & joined]:
        joined = joined.union(*(waiting.pop(number) for number in more))
    return bad | dict.fromkeys(waiting, f"another picture than row {first}, under the same name of an image")
