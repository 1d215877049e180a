"""The pictures of a table: bytes, base64 text or paths, one in a cell or several. Each is read when it is needed."""

import base64
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tdrs.benchmarks.benchmark import Picture, PictureSet

SMALLEST = 32  # bytes; no picture has fewer


class Pictures:
    """The pictures of a table by the numbers of their rows. Each is read when it is needed.

    Args:
        source: the table's source. Relative paths in the table begin at this folder, or at the folder of this file.
        column: the column of the pictures.
    """

    def __init__(self, rows: Any, source: str, column: str = "image") -> None:
        path = Path(source).expanduser()
        self._rows = rows
        self._column = column
        self._folder = path.parent if path.is_file() else path
        self._known: dict[int, Picture] = {}

    def __getitem__(self, number: int) -> Picture:
        if number not in self._known:
            self._known[number] = Picture(lambda: encoded(self._rows[number].get(self._column), self._folder))
        return self._known[number]


class PictureLists(Pictures):
    """The pictures of a table whose cells may have several each.

    Args:
        separator: stands between the pictures of one cell, in a table whose cells are texts; "" in others.
    """

    def __init__(self, rows: Any, source: str, column: str, separator: str) -> None:
        super().__init__(rows, source, column)
        self._separator = separator
        self._firsts: dict[str, int] = {}
        features = getattr(rows, "features", None)  # of Parquet; each look copies all of them
        self._in_memory, self._kind = features is None, (features or {}).get(column)

    def __getitem__(self, number: int) -> Picture:
        number = self._first(number)
        if number not in self._known and self._may_have_several(number):
            self._known[number] = PictureSet.of_parts(partial(self._parts, number))
        return super().__getitem__(number)

    def _first(self, number: int) -> int:
        """The first row with the same cell, in a table that is in memory: each picture is read once."""
        if not self._in_memory:
            return number
        return self._firsts.setdefault(json.dumps(self._rows[number].get(self._column)), number)

    def _may_have_several(self, number: int) -> bool:
        if self._in_memory:
            value = self._rows[number].get(self._column)
            return isinstance(value, list) or self._marked(value)
        # a row of Parquet is read only when it is needed
        return hasattr(self._kind, "feature") or getattr(self._kind, "dtype", "") in ("string", "large_string")

    def _marked(self, value: Any) -> bool:
        """Whether a text may name several pictures."""
        marked = isinstance(value, str) and (value.startswith("[") or (self._separator and self._separator in value))
        return bool(marked)

    def _parts(self, number: int) -> list[Picture]:
        count = len(self._cells(number))
        return [Picture(partial(self._encoded, number, place, count)) for place in range(count)]

    def _encoded(self, number: int, place: int, count: int) -> bytes:
        try:
            return encoded(self._cells(number)[place], self._folder)
        except OSError as error:
            raise OSError(f"{error}{which(place + 1, count)}") from None

    def _cells(self, number: int) -> list[Any]:
        """The values of the pictures in a cell: those of a list, of a JSON list, or of texts with separators."""
        value = self._rows[number].get(self._column)
        if self._marked(value):
            value = self._split(value)
        return (value or [None]) if isinstance(value, list) else [value]

    def _split(self, value: str) -> Any:
        try:
            encoded(value, self._folder)
        except OSError:
            pass
        else:
            return value  # the name of one file
        try:
            return json.loads(value) if value.startswith("[") else [one.strip() for one in value.split(self._separator)]
        except ValueError:
            return value


def encoded(value: Any, folder: Path) -> bytes:
    """The encoded picture in a table's cell: bytes, base64 text, a path, a mapping with one of these, or a list of one.

    Raises:
        FileNotFoundError: there is no picture, or its file is missing.
        OSError: the value has another form.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise FileNotFoundError("no image")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        more = (
            f"{len(value)} images, not one" if isinstance(value, list) else f"an image of type {type(value).__name__}"
        )
        raise OSError(more)
    if _is_file(folder / value):
        return (folder / value).read_bytes()
    try:
        found = base64.b64decode(re.sub(r"^data:[^,]*,|\s", "", value), validate=True)
    except ValueError:
        found = b""
    if len(found) < SMALLEST:  # a name without an ending may be base64, too
        raise FileNotFoundError(f"no image: {value[:80]!r} is no file in {folder}, and not base64")
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long: it is base64 text
        return False


def which(number: int, count: int) -> str:
    """Which of several pictures a message is about, in brackets; "" for the only one."""
    return f" (image {number} of {count})" if count > 1 else ""
