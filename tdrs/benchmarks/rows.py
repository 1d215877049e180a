"""Opening and reading rows: a hub id, a folder in the hub's layout, Parquet files, or a saved `datasets` directory."""

import glob
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError
from datasets.features.features import require_decoding

from tdrs.file_hash import file_hash
from tdrs.settings import SettingError, first_line

BLOCK = 1000  # rows that are decoded at once


def open_rows(
    source: str, config: str | None, split: str, revision: str | None = None, files: Sequence[Path] = ()
) -> datasets.Dataset:
    """The rows of one split. Pictures stay encoded.

    Args:
        source: a hub id (owner/name); a folder in the hub's layout, where `config` is a folder of Parquet files or a
            configuration of its card; a Parquet file; a folder that `save_to_disk` wrote, one set or a dict of splits.
        config: the configuration; ignored if the source has none.
        files: the source's Parquet files, if they are known already.

    Raises:
        SettingError: `source` cannot be found or read.
    """
    try:
        rows = _parquet(files, split) if files else _open(source, config, split, revision)
    except SettingError:
        raise
    except DatasetGenerationError as error:
        why = " ".join(str(error.__cause__ or error).split())
        raise SettingError("source", source, f"cannot be read as one table ({why[:300]})") from error
    except Exception as error:  # the library's errors do not name the setting
        raise SettingError("source", source, f"cannot be read as split {split!r} ({first_line(error)})") from error
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(name, type(feature)(datasets.Image(decode=False)))
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
    if not (path / "README.md").exists():  # no card says where a configuration's files are
        for folder in [*within, path / "data"]:
            files = sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}.parquet"))
            if files:
                return _parquet(files, split)
    files = datasets.load_dataset_builder(str(path), config).config.data_files
    if split not in files:
        raise SettingError("source", source, f"has no split {split!r}, but {', '.join(files)}")
    return _parquet([Path(file) for file in files[split]], split)


def _parquet(files: Sequence[Path], split: str) -> datasets.Dataset:
    """Load Parquet files; the library caches them under a hash of their contents.

    By default the library finds cached files by the last part of a folder's name, or by a file's size and time. Another
    folder, or a later file, may have the same.
    """
    linked = next((str(file) for file in files if "::" in str(file)), None)
    if linked:
        raise SettingError("source", linked, "must have no :: in its path, which the library reads as an address")
    content = hashlib.sha256("".join(file_hash(file) for file in files).encode()).hexdigest()[:24]
    return datasets.load_dataset(
        "parquet", content, data_files={split: [glob.escape(str(file)) for file in files]}, split=split
    )


def each(rows: Any, numbers: Sequence[int] | None = None) -> Iterator[Any]:
    """The rows of these numbers, in this order; None is all. Whole blocks are decoded at once, which is much faster."""
    if not isinstance(rows, datasets.Dataset) or any(map(require_decoding, rows.features.values())):
        yield from rows if numbers is None else rows.select(numbers)
        return
    chosen = rows if numbers is None else rows.select(numbers)
    for block in chosen.with_format("arrow").iter(BLOCK):
        yield from block.to_pylist()
