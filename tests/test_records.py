"""The store of evaluations: batches in whole lines, files in place or absent, leases that end with their holder."""

import errno
import fcntl
import json
import math
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tdrs import lease as lease_module
from tdrs import results as results_module
from tdrs.benchmarks import Record
from tdrs.lease import Lease, LostLease
from tdrs.records import Records
from tdrs.results import Batch, Evaluation, of_rows
from tests.forked import Forked

A, B = "a" * 16, "b" * 16


def batch(start: int, count: int = 2) -> Batch:
    records = [
        Record(str(n), f"i{n}", "q", "p", "a", "g", 0.1 * n, math.pi * n, "x", 1.0) for n in range(start, start + count)
    ]
    return Batch(start, records, {"dc.w_min": (1, 4)}, 0.25, 2)


def test_batches_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    store = Records(tmp_path)
    assert store.batches(A) == []
    for start in (0, 2):
        store.append(A, batch(start))
    assert store.batches(A) == [batch(0), batch(2)]


def test_records_without_first_tokens_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were kept before records had that column."""
    columns = results_module._COLUMNS
    assert columns[-1] == "first_token"
    monkeypatch.setattr(results_module, "_COLUMNS", columns[:-1])
    store = Records(tmp_path)
    store.append(A, batch(0))
    store.finish(B, evaluation(), {})
    monkeypatch.setattr(results_module, "_COLUMNS", columns)
    assert store.batches(A) == [batch(0)]
    assert store.read(B).records == batch(0).records
    assert store.read(B).records[0].first_token == ""


def test_a_torn_line_is_left_out_and_overwritten(tmp_path: Path) -> None:
    store = Records(tmp_path)
    store.append(A, batch(0))
    path = tmp_path / A / "batches.jsonl"
    whole = path.read_bytes()
    store.append(A, batch(2))
    for length in (1, 20, len(whole) - 1):
        path.write_bytes(whole + whole[:length])
        assert store.batches(A) == [batch(0)]
        store.append(A, batch(2))
        assert store.batches(A) == [batch(0), batch(2)]
    path.write_bytes(whole[:9])
    store.append(A, batch(0))
    assert store.batches(A) == [batch(0)]


def test_a_batch_that_two_workers_brought_counts_once(tmp_path: Path) -> None:
    store = Records(tmp_path)
    for start in (0, 0, 2, 0, 2, 4):
        store.append(A, batch(start))
    assert [b.start for b in store.batches(A)] == [0, 2, 4]


def fill(folder: Path) -> int:
    """Append two batches, the second where files may not grow; the number of the error."""
    store = Records(folder)
    store.append(A, batch(0))
    size = (folder / A / "batches.jsonl").stat().st_size
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
    try:
        store.append(A, batch(2))
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """In a process whose files may not grow beyond some size, as on a disk that is full."""
    assert Forked(fill, (tmp_path,), tmp_path / "said", {}).wait() in (errno.EFBIG, errno.ENOSPC)
    assert Records(tmp_path).batches(A) == [batch(0)]
    assert (tmp_path / A / "batches.jsonl").read_bytes().count(b"\n") == 1


def hold(folder: Path, seconds: float, locks: bool) -> int:
    """Take a lease, and keep it until the process is killed."""
    if not locks:
        fcntl.flock = lambda *_: None
    lease = Lease.take(folder, seconds)
    print("held", flush=True)
    time.sleep(100)
    return 0 if lease else 1


def holder(folder: Path, seconds: float, locks: bool = True) -> Forked:
    """A process that has a lease."""
    folder.mkdir(exist_ok=True)
    process = Forked(hold, (folder, seconds, locks), folder / "said", {})
    while not (folder / "said").exists() or (folder / "said").read_text() != "held\n":
        assert process.poll() is None
        time.sleep(0.01)
    return process


def evaluation() -> Evaluation:
    return Evaluation(
        batch(0).records, {**of_rows(batch(0).records), "f1": math.nan}, ["note"], {"dc.w_min": (1, 4)}, 1.5, 99.0
    )


def test_a_finished_evaluation(tmp_path: Path) -> None:
    store = Records(tmp_path)
    store.append(A, batch(0))
    store.fail(A, "RuntimeError: x", 1, "trace")
    assert store.failure(A).reason == "RuntimeError: x"
    assert not store.done(A)
    store.finish(A, evaluation(), {"x": 1})
    assert store.done(A)
    found = store.read(A)
    assert math.isnan(found.metrics.pop("f1"))
    assert found == Evaluation(**{**vars(evaluation()), "metrics": of_rows(batch(0).records)})
    assert store.failure(A) is None
    assert sorted(p.name for p in (tmp_path / A).iterdir()) == ["config.yaml", "result.json", "samples.parquet"]


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results_module.pq, "write_table", full)
    store = Records(tmp_path)
    store.append(A, batch(0))
    with pytest.raises(OSError, match="No space left"):
        store.finish(A, evaluation(), {})
    assert not store.done(A)
    assert store.batches(A) == [batch(0)]
    assert [p.name for p in (tmp_path / A).iterdir()] == ["batches.jsonl"]


def test_a_lease_is_held_by_one(tmp_path: Path) -> None:
    store = Records(tmp_path)
    first = store.claim(A)
    assert first is not None
    assert store.claim(A) is None
    assert store.claim(B) is not None
    first.release()
    with store.claim(A) as again:
        assert again is not None


def test_a_worker_killed_here_is_replaced_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path / A, 1000)
    assert Records(tmp_path).claim(A) is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    lease = Records(tmp_path).claim(A)
    assert lease is not None
    lease.release()


def test_a_worker_elsewhere_is_replaced_when_its_lease_is_touched_no_more(tmp_path: Path) -> None:
    """Its lock cannot be seen from here: on a shared folder all there is, is what it wrote."""
    path = tmp_path / A / "lease"
    path.parent.mkdir()
    path.write_text(json.dumps({"machine": "elsewhere", "process": 1, "token": "x"}))
    store = Records(tmp_path, lease_seconds=2)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # it is touched
        os.utime(path)
        assert store.claim(A) is None
        time.sleep(0.05)
    assert Lease.taken(tmp_path / A, 2)
    time.sleep(2.1)
    with store.claim(A) as lease:
        assert lease is not None
        assert json.loads(path.read_text())["token"] != "x"


@pytest.mark.parametrize(
    "text",
    [
        '{"machine": "elsewhere", "process": 1, "deadline": 9e12}', "", "\0" * 40, "[]", "null", "{", "[" * 100000,
        '{"machine": null, "process": "x", "token": 1}', '{"machine": "elsewhere", "process": 1e999, "token": "x"}',
    ],
)  # fmt: skip
def test_a_lease_of_no_known_form_stops_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / A / "lease"
    path.parent.mkdir()
    path.write_text(text)
    lease = Records(tmp_path).claim(A)
    assert lease is not None
    lease.release()


def test_a_lease_that_was_left_long_ago_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / A / "lease"
    path.parent.mkdir()
    path.write_text(json.dumps({"machine": "elsewhere", "process": 1, "token": "x"}))
    os.utime(path, (time.time() - 700, time.time() - 700))
    assert not Lease.taken(tmp_path / A, 60)
    lease = Records(tmp_path).claim(A)
    assert lease is not None
    lease.release()


def test_the_holder_touches_its_lease(tmp_path: Path) -> None:
    with Lease.take(tmp_path / A, 0.4):
        first = (tmp_path / A / "lease").stat().st_mtime_ns
        time.sleep(0.35)
        assert (tmp_path / A / "lease").stat().st_mtime_ns > first


@pytest.fixture
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that grants every lock."""
    monkeypatch.setattr(lease_module.fcntl, "flock", lambda *_: None)


@pytest.mark.usefixtures("_no_locks")
def test_where_no_lock_works_one_has_the_lease(tmp_path: Path) -> None:
    process = holder(tmp_path / A, 2, locks=False)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert Lease.take(tmp_path / A, 2) is None
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)  # a machine that sleeps
    end = time.monotonic() + 20
    while (taken := Lease.take(tmp_path / A, 2)) is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    taken.check()  # the one that woke has touched nothing
    assert Lease.take(tmp_path / A, 2) is None  # not in this process either
    process.send_signal(signal.SIGKILL)
    process.wait()
    taken.release()


@pytest.mark.usefixtures("_no_locks")
def test_who_has_lost_its_lease_knows(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = Lease.take(tmp_path, 60, "lock")
    first.check()
    path.write_text(json.dumps({"machine": "elsewhere and more", "process": 7, "token": "x"}))
    with pytest.raises(LostLease, match=r"process 7 on elsewhere has .* now; this one stops"):
        first.check()
    first.release()
    assert json.loads(path.read_text())["token"] == "x"  # it is the other's
    path.unlink()
    again = Lease.take(tmp_path, 60, "lock")
    path.unlink()
    with pytest.raises(LostLease, match="another process"):
        again.check()
    again.release()
