"""A lease says which process works on a folder: a file lock, and a token for machines that do not see the lock.

The processes of one machine see each other's locks, so a process that dies is replaced at once. Machines that share a
folder may not see them, and some file systems grant every lock. So the holder also writes a token into the file, and
touches the file while it lives. A process that sees no touch for long enough, by its own clock, replaces the token. A
holder that was paused for so long finds another token there, and must stop (`check`). So no folder has two writers.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any, TextIO

from tdrs.checked_file import free

ABANDONED = 10  # a lease that was not touched for this many times its seconds is replaced at once
SETTLE = 0.1  # seconds to wait, in case two processes take a lease at the same time and overwrite each other's token


class LostLease(RuntimeError):
    """Another process has replaced this one, which must write nothing more. The message is one line."""


def lock(path: Path) -> TextIO | None:
    """Open, and if need be create, a file that is locked until it is closed or the process ends.

    None if another process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free(path)
    file = path.open("a+", encoding="utf-8", errors="replace")
    if _flock(file):
        return file
    file.close()
    return None


def _flock(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locks_work(path: Path) -> bool:
    """Whether the file system refuses a second lock of a file that this process has locked."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return not _flock(file)


def machine() -> str:
    """This machine, or container: processes here see each other's file locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


_own: set[str] = set()  # tokens that this process holds
_watched: dict[Path, tuple[str, int, float]] = {}  # token, time of the last touch, and since when both are unchanged


def _holder(path: Path) -> dict[str, str | int]:
    """What the file of a lease says about its holder; empty if there is no file, or if it cannot be understood."""
    try:
        found = json.loads(path.read_bytes())
        return {"machine": str(found["machine"]), "process": int(found["process"]), "token": str(found["token"])}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}


def _process_lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _alive(path: Path, holder: dict[str, str | int], seconds: float) -> bool:
    """Whether the holder that a file names lives, judged without the lock."""
    if not holder:
        return False
    token, here = str(holder["token"]), holder["machine"] == machine()
    if here and holder["process"] == os.getpid():
        return token in _own
    if here and not _process_lives(int(holder["process"])):
        return False
    touched = path.stat().st_mtime_ns
    if time.time() - touched / 1e9 > ABANDONED * seconds:
        return False
    now = time.monotonic()
    known = _watched.get(path)
    if known is None or known[:2] != (token, touched):
        _watched[path] = token, touched, now
        return True
    return now - known[2] < seconds


class Lease:
    """A claim on a folder, to be released.

    Two workers on one evaluation would only waste time: their batches are equal. Two leaders of a study would log its
    runs twice, so a leader calls `check` before each write.
    """

    def __init__(self, path: Path, file: TextIO, seconds: float) -> None:
        self._path = path
        self._file = file
        self._seconds = seconds
        self._token = uuid.uuid4().hex
        self._over = threading.Event()
        self._write(json.dumps({"machine": machine(), "process": os.getpid(), "token": self._token}))
        _own.add(self._token)
        self._thread = threading.Thread(target=self._touch, daemon=True)

    @classmethod
    def take(cls, folder: Path, seconds: float, name: str = "lease") -> "Lease | None":
        """The lease of a folder, or None if somebody alive has it.

        Args:
            seconds: a holder that has not touched the file for this time counts as dead.
            name: the name of the file.
        """
        path = folder / name
        file = lock(path)
        if file is None:
            return None
        holder, locked = _holder(path), _locks_work(path)
        here = bool(holder) and holder["machine"] == machine()
        if not (here and locked) and _alive(path, holder, seconds):
            file.close()
            return None
        lease = cls(path, file, seconds)
        if not locked:
            time.sleep(SETTLE)
            if not lease.holds:
                lease._forget()
                return None
        lease._thread.start()
        return lease

    @classmethod
    def taken(cls, folder: Path, seconds: float, name: str = "lease") -> bool:
        """Whether somebody alive has the lease of a folder; nothing is written."""
        path = folder / name
        try:
            with path.open("rb") as file:  # looking needs no right to write
                if not _flock(file):
                    return True
                holder = _holder(path)
                here = bool(holder) and holder["machine"] == machine()
                return not (here and _locks_work(path)) and _alive(path, holder, seconds)
        except OSError:  # there is none, or it cannot be looked at
            return False

    @property
    def holds(self) -> bool:
        """Whether the folder still has the token of this lease."""
        return _holder(self._path).get("token") == self._token

    def check(self) -> None:
        """Raises LostLease if another process has replaced this one."""
        if self.holds:
            return
        holder = _holder(self._path)
        who = f"process {holder['process']} on {str(holder['machine']).split()[0]}" if holder else "another process"
        raise LostLease(f"{who} has {self._path.parent} now; this one stops, what it measured is kept")

    def _write(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()

    def _touch(self) -> None:
        while not self._over.wait(self._seconds / 4):
            try:
                if self.holds:
                    os.utime(self._path)
            except OSError:  # the folder is gone, or the disk is read-only now
                continue

    def _forget(self) -> None:
        _own.discard(self._token)
        self._file.close()

    def release(self) -> None:
        """Give the folder back."""
        self._over.set()
        self._thread.join()
        if self.holds:
            self._write("")
        self._forget()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
