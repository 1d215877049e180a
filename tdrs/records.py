"""Where evaluations are kept: a folder each, named by the hash of what decides its records, shared by all studies.

    records/IDENTITY/batches.jsonl                                 while it runs: a line a finished batch
                     shard-2-of-4/batches.jsonl                    those of a shard, which another machine may bring
                     config.yaml, samples.parquet, result.json     once it is done, result.json last
                     failed.json                                   why the last attempt failed
                     lease                                         who is at work

A process that dies loses at most the batch it was in: the next one reads the finished batches and goes on. Nothing here
is ever in a state that is not one of these; files are written under another name and moved into place.
"""

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from io import RawIOBase
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tdrs.benchmarks import Record
from tdrs.settings import SettingError
from tdrs.stopping import Stop

Counts = dict[str, tuple[int, int]]
_FIELDS = [column.name for column in fields(Record)]
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_WHOLE = ("config.yaml", "samples.parquet", "result.json")  # result.json last: with it an evaluation is done


@dataclass(frozen=True)
class Batch:
    """A finished batch.

    Attributes:
        start: the number of its first sample.
        records: one a sample.
        clamped: how many w_min were clamped, and of how many.
        seconds: how long it took.
        size: how many samples were asked at a time: the batch size, or less once memory ran out.
        marked: special tokens of the model that samples spell out, and in how many.
    """

    start: int
    records: list[Record]
    clamped: Counts
    seconds: float
    size: int
    marked: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        records: one a sample.
        metrics: the benchmark's, and the accuracy's 95 % limits, the mean margin, the share of clamped w_min.
        notes: what a reader of the metrics should know.
        clamped: how many w_min were clamped, and of how many.
        seconds: how long its batches took.
        finished: when, in seconds since 1970.
        environment: versions and machine of the process that finished it; empty if they were not kept.
    """

    records: list[Record]
    metrics: dict[str, float]
    notes: list[str]
    clamped: Counts
    seconds: float
    finished: float
    environment: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write the three files; `result.json` last, so that a folder with it is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: [getattr(record, name) for record in self.records] for name in _FIELDS})
        _write(folder / "samples.parquet", lambda path: pq.write_table(table, path))
        text = yaml.dump(dict(config), Dumper=_DUMPER, sort_keys=False)
        _write(folder / "config.yaml", lambda path: path.write_text(text))
        result = {
            "metrics": {name: None if math.isnan(value) else value for name, value in self.metrics.items()},
            "n": len(self.records),
            "notes": self.notes,
            "clamped": self.clamped,
            "seconds": self.seconds,
            "finished": self.finished,
            "environment": self.environment,
        }
        _write(folder / "result.json", lambda path: path.write_text(json.dumps(result, indent=2)))

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """What `save` wrote."""
        result = json.loads((folder / "result.json").read_text())
        rows = pq.read_table(folder / "samples.parquet").to_pylist()
        metrics = {name: math.nan if value is None else value for name, value in result["metrics"].items()}
        return cls(
            records=[Record(**row) for row in rows],
            metrics=metrics,
            notes=result["notes"],
            clamped=_counts(result["clamped"]),
            seconds=result["seconds"],
            finished=result["finished"],
            environment=result.get("environment", {}),
        )


@dataclass(frozen=True)
class Failure:
    """Why an evaluation failed, how often it was tried, when last (seconds since 1970), and where in the code."""

    reason: str
    attempts: int
    time: float
    trace: str


def _counts(values: Mapping[str, Sequence[int]]) -> Counts:
    return {name: (count, of) for name, (count, of) in values.items()}


def read_lines(path: Path) -> list[str]:
    """The whole lines of a file, none if there is no file; one that a kill or a full disk has torn is left out."""
    try:
        return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which then has it whole or not at all.

    Raises:
        OSError: it cannot be written; what was there is left.
    """
    text = line.encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        _cut_torn_line(file)
        whole = file.tell()
        try:
            if file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(whole)
            raise


def _cut_torn_line(file: RawIOBase) -> None:
    """Leave whole lines only, and stand at their end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read(1) != b"\n":
        file.seek(0)
        file.truncate((file.read() or b"").rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a name of this process's own, then move it into place."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Records:
    """The evaluations under a folder.

    Args:
        lease_seconds: after so long without a sign of life a worker on another machine counts as dead.
    """

    def __init__(self, folder: Path, lease_seconds: float = 60) -> None:
        self.folder = folder
        self.lease_seconds = lease_seconds

    def path(self, identity: str) -> Path:
        """The folder of an evaluation, whether or not there is one.

        Raises:
            SettingError: the identity is none, such as one that would lead out of the folder.
        """
        if not re.fullmatch(r"[0-9a-z]{1,64}", identity):
            raise SettingError("identity", identity, "must be the name of a folder of records, of letters and digits")
        return self.folder / identity

    def exists(self, identity: str) -> bool:
        """Whether there is anything of an evaluation."""
        path = self.path(identity)
        return path.is_symlink() or path.exists()

    def done(self, identity: str) -> bool:
        return (self.path(identity) / "result.json").exists()

    def read(self, identity: str) -> Evaluation:
        """A finished evaluation; raises FileNotFoundError if it is not finished."""
        return Evaluation.read(self.path(identity))

    def environment(self, identity: str) -> dict[str, str]:
        """Where a finished evaluation was measured; empty if that was not kept, or it is not finished."""
        try:
            result = json.loads((self.path(identity) / "result.json").read_text())
        except FileNotFoundError:
            return {}
        return dict(result.get("environment", {}))

    def finish(self, identity: str, evaluation: Evaluation, config: Mapping[str, Any]) -> None:
        """Keep a finished evaluation; its batches are no longer needed."""
        folder = self.path(identity)
        evaluation.save(folder, config)
        for name in ("batches.jsonl", "failed.json"):
            (folder / name).unlink(missing_ok=True)
        for shard in folder.glob("shard-*"):
            shutil.rmtree(shard, ignore_errors=True)

    def batches(self, identity: str) -> list[Batch]:
        """The finished batches of an evaluation, those of its shards among them, by their first sample."""
        found: dict[int, Batch] = {}
        folder = self.path(identity)
        for path in (folder / "batches.jsonl", *sorted(folder.glob("shard-*/batches.jsonl"))):
            for line in read_lines(path):
                values = json.loads(line)
                start = values["start"]
                if start not in found:  # else it is one that two workers brought
                    records = [Record(*row) for row in values["records"]]
                    clamped, marked = _counts(values["clamped"]), values.get("marked") or {}
                    found[start] = Batch(start, records, clamped, values["seconds"], values["size"], marked)
        return [found[start] for start in sorted(found)]

    def append(self, identity: str, batch: Batch, shard: str | None = None) -> None:
        """Keep a batch, of a shard apart from others; a torn line at the end of the file is overwritten.

        Raises:
            OSError: it cannot be written, for example because the disk is full; what was there is left.
        """
        rows = [[getattr(record, name) for name in _FIELDS] for record in batch.records]
        values = vars(batch) | {"records": rows}
        append_line(self._place(identity, shard) / "batches.jsonl", json.dumps(values))

    def _place(self, identity: str, shard: str | None) -> Path:
        """The folder that a worker writes batches into."""
        folder = self.path(identity)
        return folder if shard is None else folder / f"shard-{shard.replace('/', '-of-')}"

    def fail(self, identity: str, reason: str, attempts: int, trace: str) -> None:
        """Keep why an evaluation failed."""
        failure = Failure(reason, attempts, time.time(), trace)
        folder = self.path(identity)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "failed.json", lambda path: path.write_text(json.dumps(asdict(failure))))

    def failure(self, identity: str) -> Failure | None:
        """Why the last attempt at an evaluation failed; None if none did."""
        try:
            return Failure(**json.loads((self.path(identity) / "failed.json").read_text()))
        except FileNotFoundError:
            return None

    def pack(self, identity: str) -> bytes:
        """What is kept of an evaluation, as a zip file, for `unpack` elsewhere; empty if there is nothing."""
        folder = self.path(identity)
        names = _WHOLE if self.done(identity) else ("failed.json",)
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
        batches = [folder / "batches.jsonl", *sorted(folder.glob("shard-*/batches.jsonl"))]
        lines = sorted({line for path in batches for line in read_lines(path)}, key=lambda x: json.loads(x)["start"])
        if lines and not self.done(identity):
            files["batches.jsonl"] = "".join(lines).encode()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # without a date: equal contents, equal bytes
        return packed.getvalue() if files else b""

    def unpack(self, identity: str, packed: bytes) -> None:
        """Keep what `pack` gave elsewhere, beside what there is; nothing if the evaluation is done here.

        Raises:
            ValueError: it is no such file.
        """
        if not packed or self.done(identity):
            return
        folder = self.path(identity)
        try:
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
        except zipfile.BadZipFile as error:
            raise ValueError(f"what was brought of {identity} is damaged: {error}") from None
        batches = files.pop("batches.jsonl", None)
        if batches:  # apart from those of this machine, under a name that equal ones have, too
            self._keep(folder / f"shard-{hashlib.sha256(batches).hexdigest()[:12]}" / "batches.jsonl", batches)
        for name in ("failed.json", *_WHOLE):
            if name in files:
                self._keep(folder / name, files[name])

    @staticmethod
    def _keep(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, lambda partial: partial.write_bytes(content))

    def wait_for(self, identity: str, stop: Stop, shard: str | None = None) -> "Lease":
        """The right to run an evaluation, when whoever has it is through; raises KeyboardInterrupt if asked to stop."""
        while (lease := self.claim(identity, shard)) is None:
            time.sleep(0.2)
            stop.check()
        return lease

    def claim(self, identity: str, shard: str | None = None) -> "Lease | None":
        """The right to run an evaluation, or a shard of it, to be released; None if another process, here or elsewhere,
        has it."""
        return Lease.take(self._place(identity, shard), self.lease_seconds)


def lock(path: Path) -> TextIO | None:
    """A file, created if need be and locked until it is closed or the process ends; None if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def machine() -> str:
    """This machine, or container: processes here see each other's file locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


class Lease:
    """A claim on a folder: a file lock, which ends with the process, and a deadline for those who cannot see the lock.

    The holder moves the deadline on while it lives. A worker that dies on this machine is replaced at once, one on
    another machine that shares the folder when its deadline has passed. Two workers on one evaluation would only waste
    time: their batches are equal.

    Attributes:
        ending: called before the folder is given back.
    """

    def __init__(self, file: TextIO, seconds: float) -> None:
        self.ending: Callable[[], None] = lambda: None
        self._file = file
        self._seconds = seconds
        self._over = threading.Event()
        self._renew()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, folder: Path, seconds: float) -> "Lease | None":
        """The lease of a folder, or None if somebody alive has it."""
        file = lock(folder / "lease")
        if file is None:
            return None
        file.seek(0)
        try:
            held = json.loads(file.read() or "{}")
        except ValueError:
            held = {}
        if held and held["machine"] != machine() and held["deadline"] > time.time():
            file.close()
            return None
        return cls(file, seconds)

    def _renew(self) -> None:
        values = {"machine": machine(), "process": os.getpid(), "deadline": time.time() + self._seconds}
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(values))
        self._file.flush()

    def _keep(self) -> None:
        while not self._over.wait(self._seconds / 4):
            try:
                self._renew()
            except OSError:  # a full disk: the lock still holds here
                continue

    def release(self) -> None:
        """Give the folder back."""
        self.ending()
        self._over.set()
        self._thread.join()
        self._file.seek(0)
        self._file.truncate()
        self._file.close()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
