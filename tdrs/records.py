"""The store of evaluations: one folder each, named by its cache key and shared by all studies.

    records/CACHE_KEY/batches.jsonl                                while it runs: one line for each finished batch
                      shard-2-of-4/batches.jsonl                   the same for a shard, from any machine
                      config.yaml, samples.parquet, result.json    when it is finished; result.json is written last
                      failed.json                                  why the last attempt failed
                      lease                                        which process works on it
                      NAME.damaged-1                               a file that was damaged

A process that dies loses at most its current batch: the next process reads the finished batches and continues. Files
are written under another name and moved into place, so no other state exists. Every file has a checksum and its cache
key. No number is taken from a damaged file: whoever measures the evaluation next sets the file aside, prints one line,
and measures again.
"""

import hashlib
import io
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tdrs import checked_file
from tdrs.checked_file import ASIDE, Damaged
from tdrs.lease import Lease
from tdrs.results import FILES, Asked, Batch, Evaluation, Failure, asked_of
from tdrs.settings import SettingError
from tdrs.stopping import Stop

_CACHE_KEY = re.compile(r"[0-9a-f]{16}")
_OTHER_FORM = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # of a line that is no batch


def is_cache_key(name: object) -> bool:
    """Whether a text has the form of an evaluation's cache key: 16 hexadecimal digits."""
    return isinstance(name, str) and _CACHE_KEY.fullmatch(name) is not None


def _answers(line: Mapping[str, Any], asked: Sequence[Asked], size: int) -> bool:
    """Whether a line is a whole batch of these samples."""
    try:
        return Batch.of_line(line).answers(asked, size)
    except _OTHER_FORM:
        return False


class Records:
    """The evaluations in a folder.

    Args:
        lease_seconds: a worker on another machine counts as dead after this time without a sign of life.
    """

    def __init__(self, folder: Path, lease_seconds: float = 60) -> None:
        self.folder = folder
        self.lease_seconds = lease_seconds
        self._verified: dict[str, tuple[tuple[int, int, int], ...]] = {}  # the files' status when they were whole

    def path(self, cache_key: str) -> Path:
        """The folder of an evaluation; it need not exist.

        Raises:
            SettingError: the text is not a cache key; it could lead out of the folder.
        """
        if not is_cache_key(cache_key):
            raise SettingError("cache_key", cache_key, "must be the name of a folder of records: 16 hexadecimal digits")
        return self.folder / cache_key

    def exists(self, cache_key: str) -> bool:
        """Whether anything of an evaluation exists."""
        path = self.path(cache_key)
        return path.is_symlink() or path.exists()

    def done(self, cache_key: str) -> bool:
        """Whether an evaluation is finished and none of its files is damaged."""
        state = self.state(cache_key)
        if state is not None and self._verified.get(cache_key) != state:
            try:
                self.read(cache_key)
            except (Damaged, FileNotFoundError):
                return False
            self._verified[cache_key] = state
        return state is not None

    def state(self, cache_key: str) -> tuple[tuple[int, int, int], ...] | None:
        """The state of a finished evaluation's files (times, sizes, numbers); None if one is missing."""
        try:
            status = [(self.path(cache_key) / name).stat() for name in FILES]
        except OSError:
            return None
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in status)

    def read(self, cache_key: str) -> Evaluation:
        """Read a finished evaluation. Raises FileNotFoundError if it is not finished, Damaged if a file is damaged."""
        return Evaluation.read(self.path(cache_key))

    def outline(self, cache_key: str) -> dict[str, Any]:
        """The content of `result.json`, without the samples; empty if the file is missing or damaged."""
        try:
            return checked_file.read_json(self.path(cache_key) / "result.json", cache_key)
        except (FileNotFoundError, Damaged):
            return {}

    def environment(self, cache_key: str) -> dict[str, str]:
        """Versions and machine of a finished evaluation; empty if it is not finished."""
        return dict(self.outline(cache_key).get("environment", {}))

    def finish(self, cache_key: str, evaluation: Evaluation, config: Mapping[str, Any]) -> None:
        """Keep a finished evaluation, and remove its batches."""
        folder = self.path(cache_key)
        evaluation.save(folder, config)
        for name in ("batches.jsonl", "failed.json"):
            (folder / name).unlink(missing_ok=True)
        for shard in folder.glob("shard-*"):
            self._keep_damaged(shard, cache_key)
            shutil.rmtree(shard, ignore_errors=True)

    @staticmethod
    def _keep_damaged(shard: Path, cache_key: str) -> None:
        """Move damaged files out of the folder of a shard, which will be removed."""
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
        """The finished batches of an evaluation and its shards, ordered by their first sample, without damaged ones."""
        found: dict[int, Batch] = {}
        for path in self._batch_files(cache_key):
            for values in checked_file.read_lines(path, cache_key)[0]:
                with suppress(*_OTHER_FORM):  # written by another version: the batch is asked again
                    batch = Batch.of_line(values)
                    found.setdefault(batch.start, batch)  # two workers may bring the same batch
        return [found[start] for start in sorted(found)]

    def append(self, cache_key: str, batch: Batch, shard: str | None = None) -> None:
        """Keep a batch. Each shard has a file of its own. If the evaluation is finished already, nothing is written.

        Raises:
            OSError: the batch cannot be written, for example because the disk is full. The earlier ones are unchanged.
        """
        if (self.path(cache_key) / "result.json").exists():
            return
        line = checked_file.seal(batch.as_line(), cache_key)
        checked_file.append_line(self._folder_of(cache_key, shard) / "batches.jsonl", line)

    def mend(
        self,
        cache_key: str,
        asked: Sequence[Asked],
        size: int,
        shard: str | None = None,
        unlike: Callable[[Evaluation], str] = lambda evaluation: "",
    ) -> None:
        """Set aside damaged files, and files that belong to other samples; print a line for each.

        The caller must hold the claim. Damaged batches of other shards stay, since other workers may be writing there.

        Args:
            asked: the samples, as `asked_of` gives them.
            size: the batch size.
            unlike: says what else is wrong with a finished evaluation; "" if nothing is.
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
            self._set_aside([folder / name for name in FILES], error)
        try:
            checked_file.read_json(folder / "failed.json", cache_key)
        except FileNotFoundError:
            pass
        except Damaged as error:
            self._set_aside([folder / "failed.json"], error)
        path = self._folder_of(cache_key, shard) / "batches.jsonl"
        lines, faults = checked_file.read_lines(path, cache_key)
        good = [line for line in lines if _answers(line, asked, size)]
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

    def _folder_of(self, cache_key: str, shard: str | None) -> Path:
        """The folder into which a worker writes batches."""
        folder = self.path(cache_key)
        return folder if shard is None else folder / f"shard-{shard.replace('/', '-of-')}"

    def fail(self, cache_key: str, reason: str, attempts: int, trace: str) -> None:
        """Write down why an evaluation failed."""
        failure = Failure(reason, attempts, time.time(), trace)
        checked_file.write_json(self.path(cache_key) / "failed.json", asdict(failure), cache_key)

    def failure(self, cache_key: str) -> Failure | None:
        """Why the last attempt at an evaluation failed; None if none failed, or if the file is damaged."""
        try:
            found = Failure(**checked_file.read_json(self.path(cache_key) / "failed.json", cache_key))
        except (FileNotFoundError, Damaged, TypeError):
            return None
        good = isinstance(found.reason, str) and isinstance(found.attempts, int) and isinstance(found.time, float)
        return found if good else None

    def pack(self, cache_key: str) -> bytes:
        """All that is kept of an evaluation, as a zip file for `unpack` on another machine; empty if nothing exists."""
        folder = self.path(cache_key)
        names = FILES if self.done(cache_key) else ("failed.json",)
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
        kept = [line for path in self._batch_files(cache_key) for line in checked_file.read_lines(path, cache_key)[0]]
        lines = sorted({(line["start"], checked_file.seal(line, cache_key)) for line in kept})
        if lines and not self.done(cache_key):
            files["batches.jsonl"] = "".join(f"{line}\n" for _, line in lines).encode()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # no date: equal contents give equal bytes
        return packed.getvalue() if files else b""

    def unpack(self, cache_key: str, packed: bytes) -> None:
        """Add what `pack` gave on another machine. If the evaluation is finished here, nothing is written.

        Raises:
            ValueError: the bytes are not from `pack`, or are damaged.
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
        if batches:  # in a file apart from the batches of this machine; equal contents give equal names
            name = f"shard-{hashlib.sha256(batches).hexdigest()[:12]}"
            checked_file.write(folder / name / "batches.jsonl", batches)
        for name in ("failed.json", *FILES):
            if name in files:
                checked_file.write(folder / name, files[name])

    def wait_for(self, cache_key: str, stop: Stop, shard: str | None = None) -> Lease:
        """As `claim`, but wait until no other process has it. Raises KeyboardInterrupt if the user asks to stop."""
        while (lease := self.claim(cache_key, shard)) is None:
            time.sleep(0.2)
            stop.check()
        return lease

    def claim(self, cache_key: str, shard: str | None = None) -> Lease | None:
        """The right to run an evaluation or a shard; the caller releases it. None if another process has it."""
        folder = self.path(cache_key)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            print(f"{folder} is no folder; it is now {checked_file.set_aside(folder).name}", file=sys.stderr)
        return Lease.take(self._folder_of(cache_key, shard), self.lease_seconds)
