"""The store of evaluations: batches in whole lines, files in place or absent, leases that end with their holder."""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tdrs import records as records_module
from tdrs.benchmarks import Record
from tdrs.records import Batch, Evaluation, Lease, Records, append_line, read_lines


def batch(start: int, count: int = 2) -> Batch:
    records = [
        Record(str(n), f"i{n}", "q", "p", "a", "g", 0.1 * n, math.pi * n, "x", 1.0) for n in range(start, start + count)
    ]
    return Batch(start, records, {"dc.w_min": (1, 4)}, 0.25, 2)


def test_batches_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    store = Records(tmp_path)
    assert store.batches("a") == []
    for start in (0, 2):
        store.append("a", batch(start))
    assert store.batches("a") == [batch(0), batch(2)]


def test_a_torn_line_is_left_out_and_overwritten(tmp_path: Path) -> None:
    store = Records(tmp_path)
    store.append("a", batch(0))
    path = tmp_path / "a" / "batches.jsonl"
    whole = path.read_bytes()
    store.append("a", batch(2))
    for length in (1, 20, len(whole) - 1):
        path.write_bytes(whole + whole[:length])
        assert store.batches("a") == [batch(0)]
        store.append("a", batch(2))
        assert store.batches("a") == [batch(0), batch(2)]
    path.write_bytes(whole[:9])
    store.append("a", batch(0))
    assert store.batches("a") == [batch(0)]


def test_a_batch_that_two_workers_brought_counts_once(tmp_path: Path) -> None:
    store = Records(tmp_path)
    for start in (0, 0, 2, 0, 2, 4):
        store.append("a", batch(start))
    assert [b.start for b in store.batches("a")] == [0, 2, 4]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """In a process whose files may not grow beyond some size, as on a disk that is full."""
    code = """
import resource, signal, sys
from pathlib import Path
from tests.test_records import batch
from tdrs.records import Records
store = Records(Path(sys.argv[1]))
store.append("a", batch(0))
size = (Path(sys.argv[1]) / "a" / "batches.jsonl").stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
try:
    store.append("a", batch(2))
except OSError as error:
    print("refused", error.errno)
assert store.batches("a") == [batch(0)]
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    assert done.stdout.startswith("refused")
    assert (tmp_path / "a" / "batches.jsonl").read_bytes().count(b"\n") == 1


def evaluation() -> Evaluation:
    return Evaluation(batch(0).records, {"accuracy": 0.5, "f1": math.nan}, ["note"], {"dc.w_min": (1, 4)}, 1.5, 99.0)


def test_a_finished_evaluation(tmp_path: Path) -> None:
    store = Records(tmp_path)
    store.append("a", batch(0))
    store.fail("a", "RuntimeError: x", 1, "trace")
    assert store.failure("a").reason == "RuntimeError: x"
    assert not store.done("a")
    store.finish("a", evaluation(), {"x": 1})
    assert store.done("a")
    found = store.read("a")
    assert math.isnan(found.metrics.pop("f1"))
    assert found == Evaluation(**{**vars(evaluation()), "metrics": {"accuracy": 0.5}})
    assert store.failure("a") is None
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.yaml", "result.json", "samples.parquet"]


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records_module.pq, "write_table", full)
    store = Records(tmp_path)
    store.append("a", batch(0))
    with pytest.raises(OSError, match="No space left"):
        store.finish("a", evaluation(), {})
    assert not store.done("a")
    assert store.batches("a") == [batch(0)]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["batches.jsonl"]


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "x" / "lines"
    assert read_lines(path) == []
    append_line(path, "one")
    append_line(path, "two")
    assert read_lines(path) == ["one\n", "two\n"]


def test_a_lease_is_held_by_one(tmp_path: Path) -> None:
    store = Records(tmp_path)
    first = store.claim("a")
    assert first is not None
    assert store.claim("a") is None
    assert store.claim("b") is not None
    first.release()
    with store.claim("a") as again:
        assert again is not None


def test_a_worker_killed_here_is_replaced_at_once(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from tdrs.records import Lease\n"
    code += "Lease.take(Path(sys.argv[1]), 1000); print('held', flush=True); time.sleep(100)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert Records(tmp_path).claim("a") is None
    holder.kill()
    holder.wait()
    lease = Records(tmp_path).claim("a")
    assert lease is not None
    lease.release()


def test_a_worker_elsewhere_is_replaced_when_its_deadline_has_passed(tmp_path: Path) -> None:
    """Its lock cannot be seen from here: on a shared folder all there is, is what it wrote."""
    (tmp_path / "a").mkdir()
    held = {"machine": "elsewhere", "process": 1, "deadline": time.time() + 1000}
    (tmp_path / "a" / "lease").write_text(json.dumps(held))
    store = Records(tmp_path)
    assert store.claim("a") is None
    (tmp_path / "a" / "lease").write_text(json.dumps({**held, "deadline": time.time() - 1}))
    with store.claim("a") as lease:
        assert lease is not None


def test_the_holder_moves_its_deadline_on(tmp_path: Path) -> None:
    with Lease.take(tmp_path / "a", 0.4):
        first = json.loads((tmp_path / "a" / "lease").read_text())["deadline"]
        later, end = first, time.monotonic() + 20
        while later == first and time.monotonic() < end:
            with suppress(ValueError):  # it is just being written
                later = json.loads((tmp_path / "a" / "lease").read_text())["deadline"]
        assert later > first
