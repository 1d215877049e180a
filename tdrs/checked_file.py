"""Files with a checksum and the key of their owner.

A JSON object has `key`, for example an evaluation's cache key, and `sha256`, a hash of everything else. A file that was
cut, garbled or edited, or that belongs to another owner, is therefore detected. YAML files, which people read, have the
hash in their first line. A file is written under another name, flushed to the disk, and moved into place.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

import yaml

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_HEAD = "# sha256 "
ASIDE = ".damaged"  # the end of a damaged file's name, before a number


class Damaged(ValueError):
    """A file differs from what was written. The message, one line, names the file and the difference."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Write a file in one step: under another name, flushed to the disk, then moved into place.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system supports it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def seal(values: Mapping[str, Any], key: str) -> str:
    """One line of JSON: the values, the key of their owner, and a checksum of both."""
    text = json.dumps({**values, "key": key}, sort_keys=True)
    return json.dumps({**values, "key": key, "sha256": sha256(text.encode())})


def unseal(line: bytes, key: str, name: str) -> dict[str, Any]:
    """The values of a line that `seal` made.

    Args:
        name: the file's name, for the error.

    Raises:
        Damaged: the line is damaged, or has another key.
    """
    try:
        values = json.loads(line)
        given = values.pop("sha256")
        text = json.dumps(values, sort_keys=True)
        owner = values.pop("key")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{name} is no whole record with a checksum") from None
    if given != sha256(text.encode()):
        raise Damaged(f"{name} has another content than its checksum says")
    if owner != key:
        raise Damaged(f"{name} belongs to {str(owner)[:40]}")
    return dict(values)


def write_json(path: Path, values: Mapping[str, Any], key: str) -> None:
    """Write values as a sealed JSON file. Raises the errors of `write`."""
    write(path, (seal(values, key) + "\n").encode())


def read_json(path: Path, key: str) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        FileNotFoundError: there is no file.
        Damaged: the file is damaged, or has another key.
    """
    return unseal(_content(path), key, path.name)


def _content(path: Path) -> bytes:
    if path.is_symlink():
        raise Damaged(f"{path.name} is a link")
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe, which would be waited for
        raise Damaged(f"{path.name} is no file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:  # a folder in its place, a bad block, no permission
        raise Damaged(f"{path.name} cannot be read: {os.strerror(error.errno or 0)}") from None


def write_yaml(path: Path, values: Mapping[str, Any]) -> str:
    """Write a line with a checksum, and the values as YAML. Returns the checksum of the whole file."""
    text = yaml.dump(dict(values), Dumper=_DUMPER, sort_keys=False, allow_unicode=True).encode()
    content = f"{_HEAD}{sha256(text)}\n".encode() + text
    write(path, content)
    return sha256(content)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read what `write_yaml` wrote. Raises the errors of `read_json`."""
    head, _, text = _content(path).partition(b"\n")
    if head != f"{_HEAD}{sha256(text)}".encode():
        raise Damaged(f"{path.name} has another content than its checksum says")
    return dict(yaml.load(text, _LOADER))


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, completely or not at all. An incomplete line at the end of the file is removed first.

    Raises:
        OSError: it cannot be written; the lines before are unchanged.
    """
    text = line.encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    free(path)
    with path.open("a+b", buffering=0) as file:
        _cut_torn_line(file)
        whole = file.tell()
        try:
            if file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise


def cut_torn_line(path: Path) -> None:
    """Remove an incomplete line of JSON at the end of a file, which a killed process has left."""
    try:
        torn = path.read_bytes().rpartition(b"\n")[2]
        if torn.startswith(b"{"):
            with path.open("r+b", buffering=0) as file:
                _cut_torn_line(file)
    except FileNotFoundError:
        return


def _cut_torn_line(file: RawIOBase) -> None:
    """Keep complete lines only, and seek to the end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read(1) != b"\n":
        file.seek(0)
        file.truncate((file.read() or b"").rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def read_lines(path: Path, key: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The values of the good lines of a file, and the faults of the damaged ones; both empty if there is no file.

    An incomplete last line, which a killed process has left, is skipped and is no fault.
    """
    try:
        content = _content(path)
    except FileNotFoundError:
        return [], []
    except Damaged as error:
        return [], [str(error)]
    found, faults = [], []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            found.append(unseal(line, key, f"{path.name}, line {number},"))
        except Damaged as error:
            faults.append(str(error))
    torn = content.rpartition(b"\n")[2]
    if torn and not torn.startswith(b"{"):  # an incomplete line begins like every line
        faults.append(f"{path.name} ends in {len(torn)} bytes that are no line")
    return found, faults


def keep_lines(path: Path, lines: list[dict[str, Any]], key: str) -> Path:
    """Set a damaged file of lines aside and write its good lines in its place; returns the damaged file's new path."""
    aside = set_aside(path)
    write(path, "".join(seal(line, key) + "\n" for line in lines).encode())
    return aside


def is_no_file(path: Path) -> bool:
    """Whether a path is something other than a file, such as a link or a folder."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def free(path: Path) -> None:
    """If a path is a link or a folder, set that aside and print a line. A link's target stays as it is."""
    if is_no_file(path):
        print(f"{path} is no file; it is now {set_aside(path).name}", file=sys.stderr)


def set_aside(path: Path) -> Path:
    """Move a damaged file to a name that says so, and return the new path.

    Raises:
        FileNotFoundError: another process has moved it.
    """
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}{ASIDE}-{number}")):
        number += 1
    path.rename(aside)
    return aside
