"""Where evaluations are kept: a folder each, named by the hash of what decides its records, shared by all studies.

    records/CACHE_KEY/batches.jsonl                                 while it runs: a line a finished batch
                     shard-2-of-4/batches.jsonl                    those of a shard, which another machine may bring
                     config.yaml, samples.parquet, result.json     once it is done, result.json last
                     failed.json                                   why the last attempt failed
                     lease                                         who is at work
                     NAME.damaged-1                                what was not as it was written

A process that dies loses at most the batch it was in: the next one reads the finished batches and goes on. Nothing here
is ever in a state that is not one of these; files are written under another name and moved into place. Every file has
a checksum and the evaluation's cache key. No number comes from a damaged one: the next process that measures the
evaluation sets it aside, says so, and measures it again.
"""

import hashlib
import io
import math
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tdrs import checked_file
from tdrs.benchmarks import Record
from tdrs.benchmarks.benchmark import mean_score
from tdrs.checked_file import ASIDE, Damaged
from tdrs.lease import Lease
from tdrs.settings import SettingError
from tdrs.statistics import accuracy_interval
from tdrs.stopping import Stop

Counts = dict[str, tuple[int, int]]
Asked = tuple[str, str, str, float]
_FIELDS = [column.name for column in fields(Record)]
_WHOLE = ("config.yaml", "samples.parquet", "result.json")  # result.json last: with it an evaluation is done
_IDENTITY = re.compile(r"[0-9a-f]{16}")


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
        """Write the three files of a folder named by the cache key; `result.json` last, with their checksums."""
        table = pa.table({name: [getattr(record, name) for record in self.records] for name in _FIELDS})
        samples = io.BytesIO()
        pq.write_table(table, samples)
        checked_file.write(folder / "samples.parquet", samples.getvalue())
        written = checked_file.write_yaml(folder / "config.yaml", config)
        result = {
            "metrics": {name: None if math.isnan(value) else value for name, value in self.metrics.items()},
            "n": len(self.records),
            "notes": self.notes,
            "clamped": self.clamped,
            "seconds": self.seconds,
            "finished": self.finished,
            "environment": self.environment,
            "files": {"samples.parquet": checked_file.sha256(samples.getvalue()), "config.yaml": written},
        }
        checked_file.write_json(folder / "result.json", result, folder.name)

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """What `save` wrote.

        Raises:
            FileNotFoundError: it is not finished.
            Damaged: a file is not what was written, or the metrics are not those of the rows.
        """
        try:
            return cls._read(folder)
        except Damaged:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
            raise Damaged(f"result.json or samples.parquet has another form ({type(error).__name__})") from None

    @classmethod
    def _read(cls, folder: Path) -> "Evaluation":
        result = checked_file.read_json(folder / "result.json", folder.name)
        contents = {}
        for name, digest in result["files"].items():
            try:
                contents[name] = (folder / name).read_bytes()
            except OSError:
                raise Damaged(f"{name} is missing or cannot be read") from None
            if checked_file.sha256(contents[name]) != digest:
                raise Damaged(f"{name} has another content than result.json says")
        rows = pq.read_table(io.BytesIO(contents["samples.parquet"])).to_pylist()
        records = [Record(**row) for row in rows]
        metrics = {name: math.nan if value is None else value for name, value in result["metrics"].items()}
        if len(records) != result["n"]:
            raise Damaged(f"result.json has {result['n']} samples, samples.parquet {len(records)}")
        for name, value in of_rows(records).items():
            if not alike(metrics[name], value):
                raise Damaged(f"result.json has {name} {metrics[name]:g}, its rows give {value:g}")
        return cls(
            records=records,
            metrics=metrics,
            notes=result["notes"],
            clamped=_counts(result["clamped"]),
            seconds=result["seconds"],
            finished=result["finished"],
            environment=result["environment"],
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


def of_rows(records: Sequence[Record]) -> dict[str, float]:
    """The metrics that every benchmark has: accuracy with its 95 % limits, and the mean margin."""
    weights = [record.weight for record in records]
    interval = accuracy_interval([r.score for r in records], [r.image_id for r in records], weights)
    margin = sum(r.margin * r.weight for r in records) / sum(weights) if records else math.nan
    limits = {"accuracy_low": interval.low, "accuracy_high": interval.high}
    return {"accuracy": mean_score(records), **limits, "margin": margin}


def alike(first: float, second: float) -> bool:
    """Whether two metrics are one, but for rounding; not measured is like not measured."""
    return math.isclose(first, second, abs_tol=1e-9) or (math.isnan(first) and math.isnan(second))


def is_cache_key(name: object) -> bool:
    """Whether a text has the form of an evaluation's cache key: 16 hexadecimal digits."""
    return isinstance(name, str) and _IDENTITY.fullmatch(name) is not None


def _batch(values: Mapping[str, Any]) -> Batch:
    """The batch of a line."""
    records = [Record(*row) for row in values["records"]]
    clamped, marked = _counts(values["clamped"]), values.get("marked") or {}
    return Batch(values["start"], records, clamped, values["seconds"], values["size"], marked)


def _is_batch(line: Mapping[str, Any], asked: Sequence[Asked], size: int) -> bool:
    """Whether a line is the batch of the samples that stand at its place."""
    try:
        batch = _batch(line)
        whole = batch.start % size == 0 and len(batch.records) == len(asked[batch.start : batch.start + size]) > 0
        return whole and asked_of(batch.records) == list(asked[batch.start : batch.start + size])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False


def asked_of(items: Sequence[Any]) -> list[Asked]:
    """What samples, or records, are known by: id, image, gold answer, weight."""
    return [(one.id, one.image_id, one.gold, float(one.weight)) for one in items]


class Records:
    """The evaluations under a folder.

    Args:
        lease_seconds: after so long without a sign of life a worker on another machine counts as dead.
    """

    def __init__(self, folder: Path, lease_seconds: float = 60) -> None:
        self.folder = folder
        self.lease_seconds = lease_seconds
        self._verified: dict[str, tuple[tuple[int, int, int], ...]] = {}  # the files' status when they were whole

    def path(self, cache_key: str) -> Path:
        """The folder of an evaluation, whether or not there is one.

        Raises:
            SettingError: the cache key is none, such as one that would lead out of the folder.
        """
        if not is_cache_key(cache_key):
            raise SettingError("cache_key", cache_key, "must be the name of a folder of records: 16 hexadecimal digits")
        return self.folder / cache_key

    def exists(self, cache_key: str) -> bool:
        """Whether there is anything of an evaluation."""
        path = self.path(cache_key)
        return path.is_symlink() or path.exists()

    def done(self, cache_key: str) -> bool:
        """Whether an evaluation is finished, and its files are whole."""
        folder = self.path(cache_key)
        try:
            status = [(folder / name).stat() for name in _WHOLE]
        except OSError:
            return False
        seen = tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in status)
        if self._verified.get(cache_key) != seen:
            try:
                Evaluation.read(folder)
            except (Damaged, FileNotFoundError):
                return False
            self._verified[cache_key] = seen
        return True

    def read(self, cache_key: str) -> Evaluation:
        """A finished evaluation; raises FileNotFoundError if it is not finished, Damaged if a file is not whole."""
        return Evaluation.read(self.path(cache_key))

    def outline(self, cache_key: str) -> dict[str, Any]:
        """What `result.json` of an evaluation says, without its samples; empty if it is not there, or is damaged."""
        try:
            return checked_file.read_json(self.path(cache_key) / "result.json", cache_key)
        except (FileNotFoundError, Damaged):
            return {}

    def environment(self, cache_key: str) -> dict[str, str]:
        """Where a finished evaluation was measured; empty if it is not finished."""
        return dict(self.outline(cache_key).get("environment", {}))

    def finish(self, cache_key: str, evaluation: Evaluation, config: Mapping[str, Any]) -> None:
        """Keep a finished evaluation; its batches are no longer needed."""
        folder = self.path(cache_key)
        evaluation.save(folder, config)
        for name in ("batches.jsonl", "failed.json"):
            (folder / name).unlink(missing_ok=True)
        for shard in folder.glob("shard-*"):
            self._keep_damaged(shard, cache_key)
            shutil.rmtree(shard, ignore_errors=True)

    @staticmethod
    def _keep_damaged(shard: Path, cache_key: str) -> None:
        """Move what is damaged out of the folder of a shard, which is to be removed."""
        path = shard / "batches.jsonl"
        faults = checked_file.read_lines(path, cache_key)[1]
        if faults:
            aside = checked_file.set_aside(path)
            print(f"{path}: {faults[0]}; it is now {shard.parent / f'{shard.name}.{aside.name}'}", file=sys.stderr)
        for aside in shard.glob(f"*{ASIDE}-*"):
            aside.rename(shard.parent / f"{shard.name}.{aside.name}")

    def _batch_files(self, cache_key: str) -> list[Path]:
        folder = self.path(cache_key)
        return [folder / "batches.jsonl", *sorted(folder.glob("shard-*/batches.jsonl"))]

    def batches(self, cache_key: str) -> list[Batch]:
        """The finished batches of an evaluation, those of its shards among them, by their first sample.

        Damaged ones are left out.
        """
        found: dict[int, Batch] = {}
        for path in self._batch_files(cache_key):
            for values in checked_file.read_lines(path, cache_key)[0]:
                with suppress(KeyError, TypeError, ValueError, AttributeError):  # of another version: asked again
                    batch = _batch(values)
                    found.setdefault(batch.start, batch)  # a second one is brought by another worker
        return [found[start] for start in sorted(found)]

    def append(self, cache_key: str, batch: Batch, shard: str | None = None) -> None:
        """Keep a batch, of a shard apart from others; nothing if another worker has finished the evaluation meanwhile.

        Raises:
            OSError: it cannot be written, for example because the disk is full; what was there is left.
        """
        if (self.path(cache_key) / "result.json").exists():
            return
        rows = [[getattr(record, name) for name in _FIELDS] for record in batch.records]
        values = vars(batch) | {"records": rows}
        checked_file.append_line(self._place(cache_key, shard) / "batches.jsonl", checked_file.seal(values, cache_key))

    def mend(
        self,
        cache_key: str,
        asked: Sequence[Asked],
        size: int,
        shard: str | None = None,
        unlike: Callable[[Evaluation], str] = lambda evaluation: "",
    ) -> None:
        """Set aside what is damaged of an evaluation, or not of these samples, and say so; the caller has claimed it.

        Damaged batches of other shards are left where they are, since others may be writing there.

        Args:
            asked: its samples, as `asked_of` has them.
            size: of its batches.
            unlike: what else is wrong with a whole evaluation.
        """
        folder = self.path(cache_key)
        try:
            evaluation = self.read(cache_key)
            if asked_of(evaluation.records) != list(asked):
                raise Damaged("samples.parquet has other samples than are asked")
            if what := unlike(evaluation):
                raise Damaged(f"result.json {what}")
        except FileNotFoundError:
            pass
        except Damaged as error:
            self._set_aside([folder / name for name in _WHOLE], error)
        try:
            checked_file.read_json(folder / "failed.json", cache_key)
        except FileNotFoundError:
            pass
        except Damaged as error:
            self._set_aside([folder / "failed.json"], error)
        path = self._place(cache_key, shard) / "batches.jsonl"
        lines, faults = checked_file.read_lines(path, cache_key)
        good = [line for line in lines if _is_batch(line, asked, size)]
        if len(good) < len(lines):
            faults.append(f"{len(lines) - len(good)} lines are no batches of the samples that are asked")
        if faults:
            aside = checked_file.keep_lines(path, good, cache_key)
            print(f"{path}: {faults[0]}; it is now {aside.name}, {len(good)} batches are kept", file=sys.stderr)

    @staticmethod
    def _set_aside(paths: Sequence[Path], error: Damaged) -> None:
        moved = [checked_file.set_aside(path).name for path in reversed(paths) if path.exists()]
        if moved:
            print(f"{paths[0].parent}: {error}; set aside as {', '.join(moved)}", file=sys.stderr)

    def _place(self, cache_key: str, shard: str | None) -> Path:
        """The folder that a worker writes batches into."""
        folder = self.path(cache_key)
        return folder if shard is None else folder / f"shard-{shard.replace('/', '-of-')}"

    def fail(self, cache_key: str, reason: str, attempts: int, trace: str) -> None:
        """Keep why an evaluation failed."""
        failure = Failure(reason, attempts, time.time(), trace)
        checked_file.write_json(self.path(cache_key) / "failed.json", asdict(failure), cache_key)

    def failure(self, cache_key: str) -> Failure | None:
        """Why the last attempt at an evaluation failed; None if none did, or if that is not known."""
        try:
            found = Failure(**checked_file.read_json(self.path(cache_key) / "failed.json", cache_key))
        except (FileNotFoundError, Damaged, TypeError):
            return None
        good = isinstance(found.reason, str) and isinstance(found.attempts, int) and isinstance(found.time, float)
        return found if good else None

    def pack(self, cache_key: str) -> bytes:
        """What is kept of an evaluation, as a zip file, for `unpack` elsewhere; empty if there is nothing."""
        folder = self.path(cache_key)
        names = _WHOLE if self.done(cache_key) else ("failed.json",)
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
        kept = [line for path in self._batch_files(cache_key) for line in checked_file.read_lines(path, cache_key)[0]]
        lines = sorted({(line["start"], checked_file.seal(line, cache_key)) for line in kept})
        if lines and not self.done(cache_key):
            files["batches.jsonl"] = "".join(f"{line}\n" for _, line in lines).encode()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # without a date: equal contents, equal bytes
        return packed.getvalue() if files else b""

    def unpack(self, cache_key: str, packed: bytes) -> None:
        """Keep what `pack` gave elsewhere, beside what there is; nothing if the evaluation is done here.

        Raises:
            ValueError: it is no such file.
        """
        if not packed or self.done(cache_key):
            return
        folder = self.path(cache_key)
        try:
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
        except zipfile.BadZipFile as error:
            raise ValueError(f"what was brought of {cache_key} is damaged: {error}") from None
        batches = files.pop("batches.jsonl", None)
        if batches:  # apart from those of this machine, under a name that equal ones have, too
            name = f"shard-{hashlib.sha256(batches).hexdigest()[:12]}"
            checked_file.write(folder / name / "batches.jsonl", batches)
        for name in ("failed.json", *_WHOLE):
            if name in files:
                checked_file.write(folder / name, files[name])

    def wait_for(self, cache_key: str, stop: Stop, shard: str | None = None) -> "Lease":
        """The right to run an evaluation, when whoever has it is through; raises KeyboardInterrupt if asked to stop."""
        while (lease := self.claim(cache_key, shard)) is None:
            time.sleep(0.2)
            stop.check()
        return lease

    def claim(self, cache_key: str, shard: str | None = None) -> "Lease | None":
        """The right to run an evaluation, or a shard of it, to be released; None if another process, here or elsewhere,
        has it."""
        folder = self.path(cache_key)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            print(f"{folder} is no folder; it is now {checked_file.set_aside(folder).name}", file=sys.stderr)
        return Lease.take(self._place(cache_key, shard), self.lease_seconds)
