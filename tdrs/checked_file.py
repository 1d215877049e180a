"""Files that say whether they are whole: a checksum, and the key of what they belong to.

A JSON object is kept with `key`, for example an evaluation's cache key, and `sha256`, a hash of all else. So a file
that is cut off, garbled, edited, or of another owner is told from what was written. YAML files, which people read, have
the hash in their first line. A file is written under another name, flushed to the disk, and moved into place.
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
ASIDE = ".damaged"  # what the name of a damaged file ends with, before a number


class Damaged(ValueError):
    """A file is not what was written. The message says which file, and how it differs, in one line."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Write a file whole: under a name of this process's own, flushed to the disk, then moved into place.

    Raises:
        OSError: it cannot be written; what was there is left.
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
    """Flush a folder's names to the disk, where the system can."""
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
    """One line of JSON: the values, whose they are, and the checksum of both."""
    text = json.dumps({**values, "key": key}, sort_keys=True)
    return json.dumps({**values, "key": key, "sha256": sha256(text.encode())})


def unseal(line: bytes, key: str, name: str) -> dict[str, Any]:
    """The values of what `seal` made.

    Args:
        name: of the file, for the error.

    Raises:
        Damaged: it is anything else, or has another key.
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
    """Write values as a sealed JSON file; raises as `write`."""
    write(path, (seal(values, key) + "\n").encode())


def read_json(path: Path, key: str) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        FileNotFoundError: there is no file.
        Damaged: it is damaged, or has another key.
    """
    return unseal(_content(path), key, path.name)


def _content(path: Path) -> bytes:
    if path.is_symlink():
        raise Damaged(f"{path.name} is a link")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:  # a folder in its place, a bad block, no permission
        raise Damaged(f"{path.name} cannot be read: {os.strerror(error.errno or 0)}") from None


def write_yaml(path: Path, values: Mapping[str, Any]) -> str:
    """Write values as YAML under a line with their checksum; returns the checksum of the whole file."""
    text = yaml.dump(dict(values), Dumper=_DUMPER, sort_keys=False, allow_unicode=True).encode()
    content = f"{_HEAD}{sha256(text)}\n".encode() + text
    write(path, content)
    return sha256(content)


def read_yaml(path: Path) -> dict[str, Any]:
    """What `write_yaml` wrote; raises as `read_json`."""
    head, _, text = _content(path).partition(b"\n")
    if head != f"{_HEAD}{sha256(text)}".encode():
        raise Damaged(f"{path.name} has another content than its checksum says")
    return dict(yaml.load(text, _LOADER))


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which then has it whole or not at all; a torn line at the end is cut before.

    Raises:
        OSError: it cannot be written; what was there is left.
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
    """Take away what a kill has left of a line of JSON at the end of a file, where there is one."""
    try:
        torn = path.read_bytes().rpartition(b"\n")[2]
        if torn.startswith(b"{"):
            with path.open("r+b", buffering=0) as file:
                _cut_torn_line(file)
    except FileNotFoundError:
        return


def _cut_torn_line(file: RawIOBase) -> None:
    """Leave whole lines only, and stand at their end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read(1) != b"\n":
        file.seek(0)
        file.truncate((file.read() or b"").rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def read_lines(path: Path, key: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The sealed lines of a file, and what is wrong with those that are damaged; nothing where there is no file.

    A line without an end at the end of the file, which a kill has torn, is left out and not counted as damage.
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
    if torn and not torn.startswith(b"{"):  # a torn line begins as every line does
        faults.append(f"{path.name} ends in {len(torn)} bytes that are no line")
    return found, faults


def keep_lines(path: Path, lines: list[dict[str, Any]], key: str) -> Path:
    """Set a damaged file of lines aside and leave the good ones in its place; returns where the damaged one is."""
    aside = set_aside(path)
    write(path, "".join(seal(line, key) + "\n" for line in lines).encode())
    return aside


def is_no_file(path: Path) -> bool:
    """Whether something stands in the place of a file that is none, such as a link or a folder."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def free(path: Path) -> None:
    """Set aside what stands in the place of a file and is none, such as a link, whose target is left alone; say so."""
    if is_no_file(path):
        print(f"{path} is no file; it is now {set_aside(path).name}", file=sys.stderr)


def set_aside(path: Path) -> Path:
    """Move a damaged file to a name that says so, and return it.

    Raises:
        FileNotFoundError: somebody else did.
    """
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}{ASIDE}-{number}")):
        number += 1
    path.rename(aside)
    return aside
