"""Hashes of whole files, with a cache: any difference between two checkpoints is found, and no file is read twice.

A process remembers the hashes of the files it has read; that of a large file is also kept in the user's cache folder.
The key depends on all that changes with the file: path, size, inode, and the times of the last change of the file and
of its inode, to the nanosecond.
"""

import hashlib
import json
import os
import time
from pathlib import Path

LARGE = 1 << 24  # bytes from which a hash is kept on the disk
SETTLED = 2.0  # seconds; a newer file may change again within one tick of the file system's clock

_known: dict[str, str] = {}  # hashes by key


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    values = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    key = hashlib.sha256(json.dumps([str(path.resolve()), *values]).encode()).hexdigest()
    if key in _known:
        return _known[key]
    kept = _folder() if status.st_size >= LARGE else None
    known = _remembered(kept / key, key) if kept else None
    if known:
        return known
    # checked before reading, which takes longer than SETTLED
    settled = time.time() - max(status.st_mtime, status.st_ctime) > SETTLED
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    after = path.stat()
    if settled and (after.st_mtime_ns, after.st_ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns):
        _known[key] = found
        if kept:
            _remember(kept / key, found)
    return found


def _folder() -> Path | None:
    """The folder of the cache; it need not exist. None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(given) if given.startswith("/") else Path(os.path.expanduser("~")) / ".cache"
    return home / "tdrs" / "hashes" if home.is_absolute() else None


def _line(key: str, found: str) -> str:
    """A hash as it is written, with a checksum of the hash and its key."""
    return f"{found} {hashlib.sha256(f'{key} {found}'.encode()).hexdigest()}"


def _remembered(kept: Path, key: str) -> str | None:
    """The hash in a file of the cache; None if there is none or it is damaged."""
    try:
        text = kept.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = text[: len(key)]
    return found if text == _line(key, found) else None


def _remember(kept: Path, found: str) -> None:
    """Write a hash. It is no error if the cache folder cannot be written."""
    partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(_line(kept.name, found), encoding="utf-8")
        partial.replace(kept)
    except OSError:
        return
