"""Real workers over real servers: whatever measures and wherever trials are told, a study's result is the same.

python -m tests.sweeps.test_machines       # the whole of `search=coordinate` on all nine pairs, 6 minutes
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import pytest
import torch

from tdrs.configuration import run
from tdrs.records import Records
from tdrs.sweep import main_sweep
from tdrs.sweeps.storage import load_optuna, open_storage
from tests.forked import Forked, sweep

from . import servers
from .crash import _timeless, running

WHOLE = ["search=coordinate", "preset.tuning=40", "preset.held_out=40", "study.name=pairs", "tracking=none"]
STEPS = "search.steps=[{key: intervention.dc.weight, label: weight, paper: 1, values: [0.3, 1, 3]}]"
SHORT = [
    *WHOLE, "dataset.gap=8", "~search.series.logits", "~search.controls", "~search.start",
    STEPS,
]  # fmt: skip


def here(
    output: Path, study: list[str], workers: str, storage: str, monkeypatch: pytest.MonkeyPatch, *more: str
) -> None:
    """A study's command, in this process: it starts in no time."""
    words = [*study, f"workers={workers}", f"study.storage={storage}", f"output={output}", *more]
    monkeypatch.setattr(sys, "argv", ["sweep", *words])
    assert run("sweep", main_sweep, "") == 0


def impatient(*words: str) -> int:
    """A study's command, for which a claim without a beat is void after 3 seconds."""
    Records.__init__.__defaults__ = (3.0,)
    return sweep(*words)


def start(
    output: Path,
    study: list[str],
    workers: str,
    storage: str,
    command: Callable[..., int] = sweep,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Forked:
    """A study's command, in a process."""
    words = (*study, f"workers={workers}", f"study.storage={storage}", f"output={output}")
    return Forked(command, words, output.with_suffix(".said"), environment)


def finish(process: Forked, code: int = 0) -> str:
    said, _ = process.communicate(timeout=200)
    assert process.returncode == code, said
    return said


def state(output: Path, storage: str, name: str = "pairs") -> Any:
    """What there is to compare of a finished study: its result, its lines, its trials in Optuna."""
    folder = output / "studies" / name
    study = _timeless(json.loads((folder / "study.json").read_text()))
    del study["config"]["study"], study["environment"]
    lines = [_timeless(json.loads(line)) for line in (folder / "trials.jsonl").read_text().splitlines()]
    trials = load_optuna(folder if storage == "journal" else open_storage(storage), name).get_trials()
    return study, lines, [(t.number, t.state.name, t.values, t.params, t.user_attrs["key"]) for t in trials]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As each worker has: the last digits depend on how many threads share a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("inline")
    with pytest.MonkeyPatch.context() as monkeypatch:
        here(output, SHORT, "inline", "journal", monkeypatch)
    return state(output, "journal")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    if not servers.binaries() or not find_spec("psycopg"):
        pytest.skip("PostgreSQL, or psycopg, is not installed")
    with servers.postgresql() as address:
        yield address


@pytest.fixture(scope="module")
def proxy(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not find_spec("grpc"):
        pytest.skip("grpcio is not installed")
    with servers.proxy(postgresql, tmp_path_factory.mktemp("proxy")) as address:
        yield address


def named(study: list[str], name: str) -> list[str]:
    return [word if not word.startswith("study.name=") else f"study.name={name}" for word in study]


def renamed(value: Any, name: str) -> Any:
    """A state of a study as if it had had this name."""
    study, lines, trials = value
    return {**study, "name": name}, lines, trials


@pytest.mark.parametrize("storage", ["postgresql", "proxy"])
def test_processes_find_the_same(
    storage: str, inline: Any, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name = request.getfixturevalue(storage), f"processes-{storage}"
    here(tmp_path, named(SHORT, name), "processes", where, monkeypatch)
    assert state(tmp_path, where, name) == renamed(inline, name)


def rays_workers(of: int) -> list[int]:
    """The processes in which the Ray that a process has started measures; others may test here, too."""
    parents: dict[int, int] = {}
    found = []
    for path, title in running().items():
        number = int(path.parent.name)
        with suppress(OSError):  # it ends meanwhile
            parents[number] = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
            if title.startswith(b"ray::Worker.measure"):
                found.append(number)

    def begun(number: int) -> bool:
        while number in parents and number != of:
            number = parents[number]
        return number == of

    return [number for number in found if begun(number)]


def batches(folder: Path) -> dict[str, int]:
    """How many batches a folder of records has of each evaluation; 1000 if that is finished."""
    counts = {
        path.parent.parent.name: path.read_bytes().count(b"\n") for path in folder.glob("*/shard-*/batches.jsonl")
    }
    return counts | {path.parent.name: 1000 for path in folder.glob("*/result.json")}


@pytest.mark.timeout(600)  # Ray takes long to start where other work runs
def test_rays_workers_may_die_and_be_stopped(
    inline: Any, postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one measured that was killed is measured again; what was asked before a stop is kept."""
    pytest.importorskip("ray")
    study, output = named(SHORT, "ray"), tmp_path / "stopped"
    given = {"TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}  # where workers keep batches; a path of Ray's must be short
    given["RAY_worker_niceness"] = "0"  # Ray's own is 15: beside other tests, workers would hardly run
    monkeypatch.setenv("RAY_worker_niceness", "0")
    process = start(output, [*study, "workers.count=1"], "ray", postgresql, environment=given)
    measuring: list[int] = []
    measured: dict[str, int] = {}
    while not measured:
        assert process.poll() is None, process.communicate()
        new = [worker for worker in rays_workers(process.pid) if worker not in measuring]
        measuring += new
        if new == measuring and new:
            os.kill(new[0], signal.SIGKILL)
        elif len(measuring) > 1:
            measured = {key: count for folder in tmp_path.glob("tdrs-*") for key, count in batches(folder).items()}
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = finish(process, 130)
    assert "attempt 1 of 2: " in said
    assert "the same command continues from there" in said
    kept = batches(output / "records")
    assert {key: count for key, count in measured.items() if kept.get(key, 0) < count} == {}
    left, end = set(measuring), time.monotonic() + 20
    while left and time.monotonic() < end:  # Ray ends them on its own
        left = {int(path.parent.name) for path, title in running().items() if title.startswith(b"ray::")} & left
    assert left == set()
    here(output, study, "ray", postgresql, monkeypatch)
    assert state(output, postgresql, "ray") == renamed(inline, "ray")


def test_a_leader_that_slept_writes_nothing_more_through_a_proxy(inline: Any, proxy: str, tmp_path: Path) -> None:
    """Another machine leads meanwhile. The one that wakes stops with one line, and the proxy has each trial once."""
    study = named(SHORT, "slept")
    slept = start(tmp_path / "a", study, "inline", proxy, impatient)
    while len(list(tmp_path.glob("a/records/*/result.json"))) < 2:
        assert slept.poll() is None, slept.communicate()
        time.sleep(0.01)
    slept.send_signal(signal.SIGSTOP)
    try:
        finish(start(tmp_path / "b", study, "inline", proxy, impatient))
    finally:
        slept.send_signal(signal.SIGCONT)
    said = finish(slept, 1)
    assert said.strip().splitlines()[-1].startswith("error: another machine leads this study now")
    assert "Traceback" not in said
    assert state(tmp_path / "b", proxy, "slept") == renamed(inline, "slept")
    assert not (tmp_path / "a" / "studies" / "slept" / "study.json").exists()


def test_four_machines_on_one_study(inline: Any, postgresql: str, tmp_path: Path) -> None:
    """Each has a folder of its own; each evaluation is measured once, and all end with the whole result."""
    study = named(SHORT, "four")
    running = [start(tmp_path / str(n), study, "inline", postgresql) for n in range(4)]
    said = [finish(process) for process in running]
    for n in range(4):
        assert state(tmp_path / str(n), postgresql, "four") == renamed(inline, "four")
    assert not any(word in text for text in said for word in ("Traceback", "failed", "locked", "is gone"))
    storage = open_storage(postgresql)
    (work,) = [one for one in storage.get_all_studies() if one.study_name.startswith("four evaluations")]
    trials = storage.get_all_trials(work._study_id)
    brought = Counter(trial.user_attrs["cache_key"] for trial in trials if "content" in trial.user_attrs)
    assert set(brought) == {line["cache_key"] for line in inline[1]}
    assert set(brought.values()) == {1}
    assert not any(trial.state.name == "RUNNING" for trial in trials)


if __name__ == "__main__":
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(TemporaryDirectory()))
        database = stack.enter_context(servers.postgresql())
        addresses = {"journal": "journal", "postgresql": database}
        addresses["proxy"] = stack.enter_context(servers.proxy(database, temporary))
        first: Any = None
        for where, address in addresses.items():
            for workers in ("inline", "processes", "ray"):
                begun, name = time.perf_counter(), f"{workers}-{where}"
                finish(start(temporary / name, named(WHOLE, name), workers, address))
                found = state(temporary / name, address, name)
                first = first or found
                same = "equal" if found == renamed(first, name) else "NOT EQUAL"
                seconds = time.perf_counter() - begun
                print(f"{workers:10} {where:11} {len(found[1])} trials, {seconds:3.0f} s  {same}", flush=True)
