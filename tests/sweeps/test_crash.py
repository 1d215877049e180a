"""SIGKILL in the middle, and two leaders where no lock works: the study equals the undisturbed one afterwards."""

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Forked, sweep

from . import crash


def start(output: Path, *more: str, command: Callable[..., int] = sweep) -> Forked:
    """The study's command, in a process that has imported the libraries."""
    output.mkdir(exist_ok=True)
    return Forked(command, (*crash.STUDY, *more, f"output={output}"), output / "said", {})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    crash.finish(start(output))
    return output


@pytest.fixture(scope="module")
def whole(undisturbed: Path) -> dict[str, Any]:
    return crash.state(undisturbed)


def kill_in_the_middle(process: Any, output: Path, progress: int) -> None:
    """Kill when so much is done."""
    while crash.batches(output) < progress:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_one_worker(whole: dict[str, Any], tmp_path: Path) -> None:
    process = start(tmp_path)
    kill_in_the_middle(process, tmp_path, 42)
    assert not (tmp_path / "studies" / "crash" / "study.json").exists()
    for _ in range(100):  # the guard ends the parent's run
        if "RUNNING" not in {run.info.status for run in crash.runs(tmp_path)}:
            break
        time.sleep(0.2)
    assert "KILLED" in {run.info.status for run in crash.runs(tmp_path)}
    assert "RUNNING" not in {run.info.status for run in crash.runs(tmp_path)}
    crash.finish(start(tmp_path))
    assert crash.state(tmp_path) == whole


def test_two_workers(whole: dict[str, Any], tmp_path: Path) -> None:
    """The second joins the first; when that is killed it goes on and leads."""
    first = start(tmp_path)
    while not (tmp_path / "studies" / "crash" / "config.yaml").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    second = start(tmp_path)
    kill_in_the_middle(first, tmp_path, 42)
    crash.finish(second)
    assert crash.state(tmp_path) == whole


def test_three_workers_find_what_one_finds(whole: dict[str, Any], tmp_path: Path) -> None:
    """Each evaluation is run once, by whoever claims it; helpers fail at nothing, and are gone at the end."""
    process = start(tmp_path, "workers=processes", "workers.count=3")
    crash.finish(process)
    assert crash.state(tmp_path) == whole
    logs = [path.read_text() for path in sorted((tmp_path / "studies" / "crash").glob("worker-*.log"))]
    assert len(logs) == 2
    assert not any("Traceback" in log or "failed" in log for log in logs)
    assert not list(tmp_path.glob("records/*/failed.json"))
    children = [path for path, line in crash.running().items() if str(tmp_path).encode() in line]
    assert children == []


def sweep_where_every_lock_is_granted(*words: str) -> int:
    """The study's command, where locks work as on some shared file systems."""
    fcntl.flock = lambda *_: None
    return sweep(*words)


def test_two_that_start_at_once_where_every_lock_is_granted(undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "both"
    for process in [start(output, command=sweep_where_every_lock_is_granted) for _ in range(2)]:
        crash.finish(process)
    assert crash.state(output) == crash.state(undisturbed)
    left = [path.name for path in output.rglob("*") if path.suffix in (".partial", ".new") or ".damaged" in path.name]
    assert not left
    assert not list(output.glob("records/*/batches.jsonl"))
    assert set(os.listdir(output / "studies" / "crash")) == set(os.listdir(undisturbed / "studies" / "crash"))
