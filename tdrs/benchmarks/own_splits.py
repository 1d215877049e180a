"""Which rows of a table of questions are in which split. No image is in both, whatever its name is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tdrs.benchmarks.benchmark import Picture
from tdrs.benchmarks.rows import each
from tdrs.benchmarks.sources import BadRow, Rows, digest, in_split, name_of
from tdrs.benchmarks.tables import BROKEN
from tdrs.settings import SettingError

Found = Callable[[int, Any], Picture]  # the number of a row and the row → its picture, or its passage


@dataclass(frozen=True)
class SplitColumn:
    """The column that says which split a row is in, and which split each of its values is."""

    name: str
    values: Mapping[str, str]


@dataclass
class Images:
    """The images of a table's rows.

    Attributes:
        names: the name of each row's image, by the number of the row.
        splits: what the column of splits says of a row, if there is one.
        faults: why a row cannot be used. Such a row is in both splits, so that it is named.
        unused: how many rows have each other value of the column of splits.
        joined: how many names are of an image that another name is used for.
        parts: the hashes of an image's pictures, which are several for questions about lists of them.
    """

    names: dict[int, str] = field(default_factory=dict)
    splits: dict[int, str] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    joined: int = 0
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def numbers(self, split: str, share: float) -> list[int]:
        """The rows of a split, in their order; without a column of splits by a hash of the images' names."""
        return sorted({n for n in self.names if self._split(n, share) == split} | set(self.faults))

    def _split(self, number: int, share: float) -> str:
        if self.splits or self.unused:
            return self.splits[number]
        return "tuning" if in_split(self.names[number], "tuning", share) else "held_out"

    def notes(self, share: float) -> list[str]:
        """What a reader should know of the splits; `share` is that of `numbers`."""
        unused = ", ".join(f"{count} of {said!r}" for said, count in self.unused.items())
        notes = [f"rows of other splits are not used: {unused}"] if unused else []
        joined = f"{self.joined} names are of an image that also has another name; they count as one image"
        notes += [joined] if self.joined else []
        found: dict[str, set[str]] = {"tuning": set(), "held_out": set()}
        for number, name in self.names.items():
            found[self._split(number, share)].update(self.parts.get(name, ()))
        both = len(found["tuning"] & found["held_out"])
        lists = (
            f"{both} pictures are in both splits, in other lists of pictures; a column image_id joins such questions"
        )
        return [*notes, lists] if both else notes


def images_of(
    rows: Rows, found: Found, given: str | None, column: SplitColumn | None, reads: str | None, source: str
) -> Images:
    """The images of a table's rows, and what its column of splits says.

    Each different picture is read once. Names of images with the same content are one image.

    Args:
        given: the column with the names of images; without one, an image is named by its content.
        reads: the column of the texts that `found` needs.

    Raises:
        SettingError: an image is in both splits.
    """
    images = Images()
    contents: dict[str, str] = {}  # of an image, by its name
    for number, row in enumerate(each(_slim(rows, [given, column.name if column else None, reads]))):
        try:
            if row.get(BROKEN):
                raise BadRow(str(row[BROKEN]))
            said = name_of(row, column.name).strip() if column else ""
            split = column.values.get(said, "") if column else ""
            if column and not split:
                images.unused[said] = images.unused.get(said, 0) + 1
                continue
            picture = found(number, row)
            name = name_of(row, given).strip() if given else digest(picture)
            known = images.parts.get(name, ())
            if not known or (given and len(picture.parts) > 1):  # a name may be of several sets of pictures
                contents.setdefault(name, digest(picture))
                images.parts[name] = tuple(dict.fromkeys([*known, *(part.digest for part in picture.parts)]))
        except BadRow as error:
            images.faults[number] = str(error)
            continue
        images.names[number] = name
        if column:
            images.splits[number] = split
    _join(images, contents)
    if column:
        _check(images, rows, column, source)
    return images


def _slim(rows: Rows, columns: list[str | None]) -> Rows:
    """The rows with the columns that are needed alone, where that saves reading."""
    if not hasattr(rows, "select_columns"):
        return rows
    needed = [name for name in dict.fromkeys(columns) if name in rows.column_names]
    return rows.select_columns(needed) if needed else ({} for _ in range(len(rows)))


def _join(images: Images, contents: Mapping[str, str]) -> None:
    """Give names of images with the same content one name, the first in the alphabet."""
    first: dict[str, str] = {}
    for name, content in contents.items():
        first[content] = min(name, first.get(content, name))
    images.joined = sum(first[content] != name for name, content in contents.items())
    images.names = {n: first[contents[name]] if name in contents else name for n, name in images.names.items()}
    for name, content in contents.items():
        if (one := first[content]) != name:
            images.parts[one] = tuple(dict.fromkeys([*images.parts[one], *images.parts[name]]))


def _check(images: Images, rows: Rows, column: SplitColumn, source: str) -> None:
    """Raises SettingError if an image is in both splits."""
    place = getattr(rows, "place", "row {}".format)
    known: dict[str, int] = {}
    for number, split in images.splits.items():
        first = known.setdefault(images.names[number], number)
        if images.splits[first] != split:
            where = f"{place(first)} in the split {images.splits[first]}, {place(number)} in {split}"
            allowed = f"{source} has one image in both splits: {where}; column.split=null splits by image"
            raise SettingError("column.split", column.name, allowed)
