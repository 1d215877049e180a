"""The store: statuses, an unknown tracker, and nothing at all when tracking is off."""

import os
import signal
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tdrs.settings import SettingError
from tdrs.tracking import Tracker, open_tracker


def statuses(output: Path, experiment: str) -> list[str]:
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    return [run.info.status for run in client.search_runs([client.get_experiment_by_name(experiment).experiment_id])]


def test_statuses(tmp_path: Path) -> None:
    with open_tracker({"name": "mlflow"}, tmp_path) as tracker:
        with tracker.run("good", "a", {}):
            assert statuses(tmp_path, "good") == ["RUNNING"]
        assert statuses(tmp_path, "good") == ["FINISHED"]

        def fail(experiment: str, error: BaseException) -> None:
            with tracker.run(experiment, "b", {}):
                raise error

        for experiment, error, status in (("bad", RuntimeError("x"), "FAILED"), ("cut", KeyboardInterrupt(), "KILLED")):
            with pytest.raises(type(error)):
                fail(experiment, error)
            assert statuses(tmp_path, experiment) == [status]


def test_sigterm_is_a_stop_and_the_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), open_tracker({"name": "none"}, tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_children_left_running_by_a_killed_process(tmp_path: Path) -> None:
    tracker = Tracker("mlflow", tmp_path)
    with tracker.run("study", "parent", {}) as parent:
        child = tracker.run("study", "child", {"identity": "x"}, parent.id)
        child.__enter__()
        assert tracker.resume(parent.id)
        assert sorted(statuses(tmp_path, "study")) == ["KILLED", "RUNNING"]
        assert tracker.finished_children("study", parent.id) == set()
        assert not tracker.resume("no such run")


def test_off(tmp_path: Path) -> None:
    with open_tracker({"name": "none"}, tmp_path) as tracker:
        with tracker.run("x", "y", {}) as run:
            run.metrics({"a": 1.0})
            run.params({"b": 2})
        assert tracker.next_steps("x") == []
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(SettingError, match=r"tracking.name = 'wandb': must be one of mlflow, none"),
        open_tracker({"name": "wandb"}, tmp_path),
    ):
        pass
