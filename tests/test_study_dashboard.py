"""A study in Optuna's dashboard: pruned trials are pruned there, its files stay as they are, errors are one line."""

import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from tdrs import study_dashboard
from tdrs.kept import Kept
from tdrs.study import main
from tdrs.study_dashboard import view
from tdrs.sweeps.storage import load_optuna
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import COMPLETE, PRUNED
from tdrs.tracking import Tracker

from .browser import Browser, needs_chromium
from .forked import Forked
from .sweeps.pretend import configuration, pretend
from .sweeps.servers import free_port


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    output = tmp_path_factory.mktemp("dashboard")
    space = {"intervention.tau": {"low": 0.2, "high": 1.0}}
    given = {"trials": 8, "prune": True, "objective": "margin", "controls": {}, "space": space}
    config = configuration(output, "search=sampled", "intervention=temperature", **given)
    config["preset"] = {"tuning": 400, "held_out": 8}
    config["batch_size"] = 20
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretend(monkeypatch)
        Study(config, Tracker("none", output)).run()
    return Kept(output, "small")


def content(study: Kept) -> dict[str, tuple[bytes, int]]:
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in study.folder.iterdir() if path.is_file()
    }


def test_pruned_trials_are_shown_as_pruned(study: Kept) -> None:
    before = content(study)
    shown = view(study).get_all_trials(0)
    tuning = [trial for trial in study.trials if trial.split == "tuning"]
    assert {trial.status for trial in tuning} == {COMPLETE, PRUNED}
    for trial, one in zip(tuning, shown, strict=True):
        assert one.state == (TrialState.PRUNED if trial.status == PRUNED else TrialState.COMPLETE)
        assert one.value == trial.value("margin")
        assert one.intermediate_values == {trial.n: trial.metrics["margin"]}
        assert (trial.n < 400) == (trial.status == PRUNED)
    best = max((one for one in shown if one.state == TrialState.COMPLETE), key=lambda one: one.value or 0)
    assert view(study).get_best_trial(0).number == best.number
    assert content(study) == before


def test_new_trials_are_shown_while_a_study_runs(study: Kept, tmp_path: Path) -> None:
    copied = Kept(_copy(study, tmp_path), study.name)
    shown = view(copied)
    before = len(shown.get_all_trials(0))
    load_optuna(copied.folder, study.name).add_trial(create_trial(value=1.0, user_attrs={"key": "new"}))
    assert [one.value for one in shown.get_all_trials(0)[before:]] == [1.0]
    (copied.folder / "study.journal").rename(tmp_path / "old")  # as a study does whose weights have changed
    load_optuna(copied.folder, study.name, create=True).add_trial(create_trial(value=2.0, user_attrs={"key": "newer"}))
    assert [one.value for one in shown.get_all_trials(0)] == [2.0]


def _copy(study: Kept, output: Path) -> Path:
    folder = output / "studies" / study.name
    folder.mkdir(parents=True)
    for path in study.folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return output


def test_a_study_in_a_database(study: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = RDBStorage(f"sqlite:///{tmp_path}/trials.db")
    journal = load_optuna(study.folder, study.name)
    optuna.copy_study(
        from_study_name=study.name, from_storage=journal._storage, to_storage=storage, to_study_name=study.name
    )
    monkeypatch.setattr(study_dashboard, "open_storage", lambda value: storage)
    stored = [(one.number, one.state, one.value) for one in view(study).get_all_trials(0)]
    monkeypatch.undo()
    assert stored == [(one.number, one.state, one.value) for one in view(study).get_all_trials(0)]


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["dashboard", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_errors_are_one_line(study: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = f"output={study.output}"
    assert "study = 'other': must be one of small" in fails(capsys, "other", at)
    for port in ("0", "65536", "x", "80.5"):
        assert "must be a whole number from 1 to 65535" in fails(capsys, "small", at, f"port={port}")
    pytest.importorskip("optuna_dashboard")
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        said = fails(capsys, "small", at, f"port={port}")
    assert f"port = {port}: cannot be used (Address already in use); give another one" in said
    copied = _copy(study, tmp_path)
    (copied / "studies" / "small" / "study.journal").write_text("no journal\n")
    assert "its trials cannot be read" in fails(capsys, "small", f"output={copied}")
    (copied / "studies" / "small" / "study.journal").unlink()
    assert "has no trials on the tuning split yet" in fails(capsys, "small", f"output={copied}")
    assert not (copied / "studies" / "small" / "study.journal").exists()


def test_a_missing_package(study: Kept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert "pip install optuna-dashboard" in fails(capsys, "small", f"output={study.output}")


def serve(*words: str) -> int:
    return main(["dashboard", *words])


@pytest.fixture(scope="module")
def served(study: Kept, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Forked, Path]]:
    """The address of a dashboard in a process, the process, and the file of what it says."""
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")
    log, port = tmp_path_factory.mktemp("said") / "log", free_port()
    process = Forked(serve, ("small", f"output={study.output}", f"port={port}"), log, {})
    address = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=5)
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    yield address, process, log
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)


@needs_chromium
def test_the_page(study: Kept, served: tuple[str, Forked, Path], tmp_path: Path) -> None:
    before = content(study)
    address, _, log = served
    page = log.read_text().split()[1]
    assert page == f"{address}/dashboard/studies/0"
    with Browser(tmp_path) as browser:
        browser.open(page)
        browser.wait("document.body.innerText.includes('Best Trial')", 60)
        browser.wait("document.body.innerText.includes('margin')", 60)
        browser.open(f"{page}/trials")
        browser.wait("document.body.innerText.includes('Trial 7')", 60)
        shown = browser.ask("document.body.innerText").splitlines()
        assert [one for one in browser.requests if not one.startswith((address, "data:", "blob:"))] == []
        assert browser.faults == []
    statuses = [trial.status.capitalize() for trial in study.trials if trial.split == "tuning"]
    lines = [line for line in shown if line in ("Complete", "Pruned")]
    assert lines[: len(statuses)] == statuses
    assert content(study) == before


def test_it_cannot_be_written_and_ctrl_c_stops_it(study: Kept, served: tuple[str, Forked, Path]) -> None:
    before = content(study)
    address, process, log = served
    with urllib.request.urlopen(f"{address}/api/studies/0", timeout=20) as answer:
        trials = json.load(answer)["trials"]
    assert [one["state"] for one in trials] == [
        trial.status.capitalize() for trial in study.trials if trial.split == "tuning"
    ]
    for method, path in (("DELETE", "/api/studies/0"), ("PUT", "/api/studies/0/note"), ("POST", "/api/studies")):
        request = urllib.request.Request(address + path, data=b"{}", method=method)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=20)
    assert content(study) == before
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    said = log.read_text().splitlines()
    assert said == [f"small: {address}/dashboard/studies/0   (Ctrl-C stops it)", "stopped"]
    with socket.socket() as one:
        assert one.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0
