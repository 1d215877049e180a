"""One study has one leader, also where no lock works, and one that was replaced writes nothing more."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from optuna.storages import InMemoryStorage

from tdrs import evaluation as evaluation_module
from tdrs.configuration import run
from tdrs.lease import LostLease
from tdrs.records import Records
from tdrs.sweep import main_sweep
from tdrs.sweeps.store import Board, Store
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker

from . import pretend
from .pretend import configuration

SPACE = {"intervention.tau": [0.5, 0.8, 0.9]}


def replaced(monkeypatch: pytest.MonkeyPatch, output: Path, after: int) -> None:
    """After so many evaluations another process has taken the study's lead."""
    count = 0

    def run_batches(*given: Any) -> Any:
        nonlocal count
        count += 1
        yield from pretend.run_batches(*given)
        if count == after:
            path = output / "studies" / "small" / "lock"
            path.write_text(json.dumps({"machine": "elsewhere", "process": 7, "token": "x"}))

    monkeypatch.setattr(evaluation_module, "run_batches", run_batches)


def test_a_leader_that_was_replaced_writes_nothing_more(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, tmp_path, 2)
    config = configuration(tmp_path, "search=grid", "intervention=temperature", space=SPACE, controls={})
    study = Study(config, Tracker("mlflow", tmp_path))
    with pytest.raises(LostLease, match=r"process 7 on elsewhere has .*studies/small now; this one stops"):
        study.run()
    folder = tmp_path / "studies" / "small"
    assert len((folder / "trials.jsonl").read_text().splitlines()) == 1
    assert not (folder / "study.json").exists()
    assert json.loads((folder / "lock").read_text())["token"] == "x"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert sorted(one.info.status for one in runs) == ["FINISHED", "RUNNING"]  # the study's is the other's to end
    assert len(study.log.lines.trials) == 1


def test_the_command_says_so_in_one_line(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced(monkeypatch, tmp_path, 1)
    words = ["search=grid", "++search.space={intervention.gain: [logits]}", "preset=smoke", "tracking=none"]
    assert run("sweep", main_sweep, "", [*words, "study.name=small", f"output={tmp_path}"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "trials asked for" not in line]
    assert len(said) == 1
    assert said[0].startswith("error: process 7 on elsewhere has ")


def test_a_leader_that_slept_too_long_is_replaced_in_the_storage(tmp_path: Path) -> None:
    """Machines that share no folder: the one that wakes finds its claim ended."""
    storage = InMemoryStorage()
    slept, awake = (Store(Records(tmp_path / name, 0.4), Board(storage, "work")) for name in ("a", "b"))
    before = slept.lead(tmp_path / "a")
    assert before is not None
    before.check()
    assert awake.lead(tmp_path / "b") is None
    slept._claims._held.clear()  # it beats no more
    for _ in range(100):
        right = awake.lead(tmp_path / "b")
        if right is not None:
            break
        awake._claims._board._time = -10.0
        subprocess.run(["sleep", "0.05"], check=True)
    assert right is not None
    with pytest.raises(LostLease, match="another machine leads this study now"):
        before.check()
    right.check()
