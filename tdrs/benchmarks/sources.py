"""Where rows come from: a hub id, a folder in the hub's layout, a Parquet file, a saved `datasets` directory.

Rows that cannot be used are named and counted, and refused or left out as the settings say; never silently.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from tdrs.benchmarks.benchmark import Benchmark, Picture, Sample, Samples
from tdrs.settings import SettingError, check_choice, check_number, first_line

BAD_ROWS = ("refuse", "skip")


class BadRow(Exception):
    """A row that cannot become a sample; the message says why."""


def open_rows(source: str, config: str | None, split: str, revision: str | None = None) -> datasets.Dataset:
    """The rows of one split, pictures left encoded.

    Args:
        source: a hub id (owner/name); a folder in the hub's layout, `config` being a folder of Parquet files in it or a
            configuration of its card; a Parquet file; a folder that `save_to_disk` wrote, one set or a dict of splits.
        config: the configuration; of no matter where a source has none.

    Raises:
        SettingError: `source` cannot be found or read.
    """
    try:
        rows = _open(source, config, split, revision)
    except SettingError:
        raise
    except Exception as error:  # the library's errors name neither the setting nor what to do
        raise SettingError("source", source, f"cannot be read as split {split!r} ({first_line(error)})") from error
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _open(source: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
    path = Path(source).expanduser()
    if not path.exists():
        if source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise SettingError("source", source, "no such file or folder, and not a hub id (owner/name)")
        return datasets.load_dataset(source, config, split=split, revision=revision)
    if path.is_file():
        return _parquet([path], split)
    within = [path / config, path] if config else [path]
    for folder in within:
        if (folder / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(folder))[split]
        if (folder / "state.json").exists():
            return datasets.load_from_disk(str(folder))
    if not (path / "README.md").exists():  # no card that says where a configuration's files are
        for folder in [*within, path / "data"]:
            files = sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}.parquet"))
            if files:
                return _parquet(files, split)
    files = datasets.load_dataset_builder(str(path), config).config.data_files
    if split not in files:
        raise SettingError("source", source, f"has no split {split!r}, but {', '.join(files)}")
    return _parquet([Path(file) for file in files[split]], split)


def _parquet(files: Sequence[Path], split: str) -> datasets.Dataset:
    """Files by their names: the library keeps what it read of a folder by the last part of the name alone."""
    return datasets.load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)


def check_columns(rows: datasets.Dataset, needed: Sequence[str], source: str) -> None:
    """Raises SettingError unless the rows have all columns that are needed."""
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise SettingError("source", source, f"lacks the column {', '.join(missing)}; needed are {', '.join(needed)}")


def picture(rows: datasets.Dataset, number: int) -> Picture:
    """The picture of a row, read from the table when it is looked at."""

    def read() -> bytes:
        image = rows[number]["image"] or {}
        if image.get("bytes"):
            return bytes(image["bytes"])
        if image.get("path"):
            return Path(image["path"]).read_bytes()
        raise FileNotFoundError("no image")

    return Picture(read)


class Checked:
    """Pictures that were looked at once, so that one shared by many questions is decoded once."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {}

    def check(self, key: str, found: Picture) -> None:
        """Raises BadRow if the picture is missing or does not decode."""
        if key not in self._faults:
            try:
                found.open().load()
                self._faults[key] = ""
            except FileNotFoundError:
                self._faults[key] = "no image"
            except OSError as error:
                self._faults[key] = f"a corrupt image ({first_line(error)})"
        if self._faults[key]:
            raise BadRow(self._faults[key])


@dataclass(frozen=True, kw_only=True)
class Sourced(Benchmark):
    """Settings of a real set.

    Args:
        source: hub id, local folder in the hub's layout, Parquet file, or a saved `datasets` directory.
        revision: the hub commit; None is the newest.
        rows: how many rows the held-out split must have; None is any number.
        bad_rows: a row without an image, with a corrupt one, or otherwise unusable is an error (`refuse`) or left out
            and counted (`skip`).
    """

    source: str
    revision: str | None = None
    rows: int | None = None
    bad_rows: str = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("bad_rows", self.bad_rows, BAD_ROWS)
        if self.rows is not None:
            check_number("rows", self.rows, 1, whole=True)

    def check_count(self, count: int, split: str) -> None:
        """Raises SettingError if the held-out split has other than `rows` rows."""
        if split == "held_out" and self.rows is not None and count != self.rows:
            allowed = f"{self.source} has {count} rows in the held-out split; null takes any number"
            raise SettingError("rows", self.rows, allowed)

    def gather(
        self, rows: Sequence[Any] | datasets.Dataset, make: Callable[[int, Any], Sample], limit: int | None
    ) -> Samples:
        """Samples of the first good rows, at most `limit`; bad ones are refused or counted.

        Raises:
            SettingError: a row is bad and `bad_rows` is `refuse`, or no row is good.
        """
        samples: list[Sample] = []
        faults: list[str] = []
        number = -1
        for number, row in _numbered(rows):
            if limit is not None and len(samples) == limit:
                break
            try:
                samples.append(make(number, row))
            except BadRow as error:
                faults.append(f"row {number} has {error}")
        shown = "; ".join(faults[:3]) + ("; …" if len(faults) > 3 else "")
        if faults and self.bad_rows == "refuse":
            allowed = f"{len(faults)} unusable of {number + 1} rows: {shown}; bad_rows=skip leaves them out"
            raise SettingError("source", self.source, allowed)
        if not samples:
            raise SettingError("source", self.source, f"has no usable row ({shown or 'it is empty'})")
        return Samples(samples, [f"{len(faults)} rows of {self.source} left out: {shown}"] if faults else [])


def _numbered(rows: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their numbers, without the pictures' bytes: those are read through `picture`."""
    texts = (
        rows.remove_columns("image") if isinstance(rows, datasets.Dataset) and "image" in rows.column_names else rows
    )
    yield from enumerate(texts)
