"""Tables of a user's own questions: JSON lines, CSV, Parquet, or a folder with one of them.

Nothing is guessed silently: a row that cannot be read stays in the table, with the reason why, so that it is named.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdrs.benchmarks.rows import open_rows
from tdrs.benchmarks.sources import Rows
from tdrs.settings import SettingError

LINES, COMMAS = (".jsonl", ".ndjson"), (".csv", ".tsv")
FORMATS = (*LINES, *COMMAS, ".parquet")
LONGEST_CELL = 1 << 30  # letters; a picture as base64 text may be long
BROKEN = "\0broken"  # the column of a row that cannot be read; no file has it

# The usual names of each column, the first one in a file counts.
USUAL: dict[str, tuple[str, ...]] = {
    "question": ("question", "query", "prompt"),
    "image": ("image", "images", "picture", "pictures", "image_path", "image_paths", "file_name", "path"),
    "passage": ("passage", "context", "document"),
    "answers": ("answers", "answer", "label", "gold", "target"),
    "choices": ("choices", "options"),
    "image_id": ("image_id", "imageId", "image_source"),
    "passage_id": ("passage_id", "document_id"),
    "id": ("id", "question_id", "uid"),
    "category": ("category", "categories"),
    "opening": ("opening",),
    "split": ("split",),
}


# The usual names of columns that have more pictures of a row.
MORE_PICTURES = re.compile(r"(image|img|picture|photo)(s|[_ -]?\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Lines(Sequence[dict[str, Any]]):
    """The rows of a text file, without pictures: these are named by a path or, as text, in base64."""

    found: list[dict[str, Any]]
    column_names: list[str]
    numbers: list[int] = field(default_factory=list)  # the line of each row

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, number: Any) -> Any:
        return self.found[number]

    def remove_columns(self, names: str) -> "Lines":
        """The rows; pictures are only names, so nothing is gained by leaving them out."""
        return self

    def select(self, numbers: Sequence[int]) -> "Lines":
        """The rows of these numbers."""
        return Lines([self.found[number] for number in numbers], self.column_names)

    def place(self, number: int) -> str:
        """A row in words, for messages."""
        return f"row {number} (line {self.numbers[number]})"


def files_of(source: str) -> list[Path]:
    """The table files of a source: the file itself, or those of a folder.

    Raises:
        SettingError: there is no such file or folder, it has no table, or tables of several formats.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() not in FORMATS:
            raise SettingError("source", source, f"must end in {', '.join(FORMATS)}, or be a folder with such a file")
        return [path]
    if not path.is_dir():
        raise SettingError("source", source, f"no such file or folder; allowed are {', '.join(FORMATS)} and folders")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in FORMATS)
    kinds = sorted({file.suffix.lower() for file in found})
    if len(kinds) != 1 or (len(found) > 1 and kinds != [".parquet"]):
        names = ", ".join(file.name for file in found[:4]) or "none"
        raise SettingError("source", source, f"must have one table, or Parquet files alone; it has {names}")
    return found


def in_texts(source: str) -> bool:
    """Whether the cells of a source are texts alone, as in CSV."""
    return files_of(source)[0].suffix.lower() in COMMAS


def open_table(source: str) -> Rows:
    """The rows of a source. Parquet is read from the disk as needed, the text formats are in memory.

    Raises:
        SettingError: the source cannot be read.
    """
    files = files_of(source)
    kind = files[0].suffix.lower()
    if kind == ".parquet":
        return open_rows(source, None, "rows", files=files)
    try:
        text = files[0].read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = files[0].read_bytes()[: error.start].count(b"\n") + 1
        raise SettingError("source", source, f"line {line} is not UTF-8; save the file in UTF-8") from None
    except OSError as error:
        raise SettingError("source", source, f"cannot be read: {error.strerror}") from None
    found = list(_json_lines(text) if kind in LINES else _cells(text, source, _delimiter(text, kind)))
    names = list(dict.fromkeys(name for _, row in found for name in row if name != BROKEN))
    if not names:
        why = f"line {found[0][0]} has {found[0][1][BROKEN]}" if found else "it is empty"
        raise SettingError("source", source, f"has no row of questions: {why}")
    return Lines([row for _, row in found], names, [number for number, _ in found])


def _json_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, {BROKEN: f"no JSON ({error})"}
            continue
        yield number, row if isinstance(row, dict) else {BROKEN: f"a {type(row).__name__}, not a JSON object"}


def _delimiter(text: str, kind: str) -> str:
    """What separates the cells of a text. Where the comma is the decimal sign, Excel writes semicolons into a .csv."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return "\t" if kind == ".tsv" else next((mark for mark in ",;\t" if mark in first), ",")


def _cells(text: str, source: str, separator: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file, each with the line where it begins. Lines of empty cells alone are no rows."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    begins = 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = _trimmed([cell.strip() for cell in cells], 0)
                twice = sorted({name for name in names if name and names.count(name) > 1})
                if twice:
                    raise SettingError("source", source, f"has the column {twice[0]!r} twice")
                continue
            cells = _trimmed(cells, len(names))
            row: dict[str, Any] = {name: cell or None for name, cell in zip(names, cells, strict=False) if name}
            if len(cells) != len(names):
                row = dict.fromkeys(filter(None, names))
                row[BROKEN] = f"{len(cells)} cells, not {len(names)} as the first line"
            yield line, row
    except csv.Error as error:
        raise SettingError("source", source, f"line {reader.line_num} is no CSV ({error})") from None


def _trimmed(cells: list[str], least: int) -> list[str]:
    """Cells without empty ones at the end, which spreadsheets add; at least so many."""
    while len(cells) > least and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def columns_of(given: Mapping[str, Any], names: Sequence[str], kinds: Sequence[str], source: str) -> dict[str, str]:
    """Which column of a table is the question, the answers, and so on.

    Args:
        given: what the user says: a column's name by its meaning; null says that there is none.
        names: the table's columns.
        kinds: the meanings that are looked for.

    Raises:
        SettingError: the table does not have a column that is named, or the pictures' column is named for more.
    """
    for kind, name in given.items():
        if name is not None and name not in names:
            raise SettingError(f"column.{kind}", name, f"{source} has no such column, but {', '.join(names)}")
    found = {kind: next((name for name in USUAL[kind] if name in names), None) for kind in kinds}
    found |= dict(given)
    for kind, name in found.items():
        media = next((one for one in ("image", "passage") if kind != one and name and name == found.get(one)), None)
        if media:
            raise SettingError(f"column.{kind}", name, f"is the column of the {media}; it cannot be the {kind}, too")
    return {kind: name for kind, name in found.items() if name is not None}
