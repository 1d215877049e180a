"""The store: statuses, runs found again by their keys, a store that is down, nothing at all when tracking is off."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tdrs.benchmarks import Record
from tdrs.records import Evaluation
from tdrs.settings import SettingError
from tdrs.tracking import Tracker, open_tracker


def runs(output: Path, experiment: str) -> list[Any]:
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def statuses(output: Path, experiment: str) -> list[str]:
    return [run.info.status for run in runs(output, experiment)]


def log(tracker: Tracker, output: Path, key: str = "k", parent: str = "", error: str = "") -> None:
    record = Record("0", "i", "q", "p", "a", "g", 1.0, 0.5, "", 1.0)
    evaluation = Evaluation([record], {"accuracy": 1.0}, [], {}, 2.0, 1000.0)
    evaluation.save(output / "r", {"a": 1})
    folder = None if error else output / "r"
    tracker.log("s", "name", key, {"t": "1"}, {"p": 3}, {"accuracy": 1.0}, folder, parent, error)


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_studys_status(tmp_path: Path, error: BaseException | None, status: str) -> None:
    tracker = Tracker("mlflow", tmp_path)

    def work() -> None:
        with tracker.study("s", "key", "title", {}):
            assert statuses(tmp_path, "s") == ["RUNNING"]
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            work()
    else:
        work()
    assert statuses(tmp_path, "s") == [status]
    with Tracker("mlflow", tmp_path).study("s", "key", "title", {}):
        pass
    assert statuses(tmp_path, "s") == ["FINISHED"]  # the same run, gone on with


def test_a_trial_is_written_once_whole(tmp_path: Path) -> None:
    with Tracker("mlflow", tmp_path).study("s", "key", "title", {}) as parent:
        for _ in range(2):
            tracker = Tracker("mlflow", tmp_path)
            for _ in range(2):
                log(tracker, tmp_path, parent=parent)
    (child,) = [run for run in runs(tmp_path, "s") if run.data.tags["key"] == "k"]
    assert child.info.status == "FINISHED"
    assert (child.info.start_time, child.info.end_time) == (998_000, 1_000_000)
    assert child.data.params == {"p": "3"}
    assert child.data.metrics == {"accuracy": 1.0, "running_accuracy": 1.0}


def test_a_trial_that_failed_and_one_that_was_cut_are_made_whole(tmp_path: Path) -> None:
    tracker = Tracker("mlflow", tmp_path)
    with tracker.study("s", "key", "title", {}) as parent:
        log(tracker, tmp_path, "failed", parent, error="no memory")
        assert tracker.client is not None
        tags = {"key": "cut", "mlflow.parentRunId": parent}
        tracker.client.create_run(tracker._experiment(tracker.client, "s"), tags=tags)  # a kill came right after
    found = {run.data.tags["key"]: run for run in runs(tmp_path, "s")}
    assert found["failed"].info.status == "FAILED"
    assert found["failed"].data.tags["error"] == "no memory"
    again = Tracker("mlflow", tmp_path)
    for key in ("failed", "cut"):
        log(again, tmp_path, key, parent)
    assert len(runs(tmp_path, "s")) == 3
    assert set(statuses(tmp_path, "s")) == {"FINISHED"}


def test_a_store_that_is_down_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker("mlflow", tmp_path, "http://127.0.0.1:9")
    with tracker.study("s", "key", "title", {}) as parent:
        assert parent == ""
        log(tracker, tmp_path)
    assert capsys.readouterr().err.count("tracking stopped (") == 1
    assert tracker.down
    assert "sync s" in tracker.next_steps("s")[0]


def test_deleted_runs(tmp_path: Path) -> None:
    tracker = Tracker("mlflow", tmp_path)
    for key in ("a", "b"):
        with tracker.study("s", key, "title", {}) as parent:
            log(tracker, tmp_path, f"child of {key}", parent)
    assert Tracker("mlflow", tmp_path).delete("s", {"a"}) == 2
    assert {run.data.tags["key"] for run in runs(tmp_path, "s")} == {"b", "child of b"}


def test_off(tmp_path: Path) -> None:
    with open_tracker({"name": "none"}, tmp_path / "out") as tracker:
        with tracker.study("x", "y", "z", {}) as parent:
            assert parent == ""
            log(tracker, tmp_path)
        assert tracker.next_steps("x") == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "wandb"}, r"tracking.name = 'wandb': must be one of mlflow, none"),
        ({"name": "mlflow", "uri": 5}, r"tracking.uri = 5: must be an address, or null"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said), open_tracker(settings, tmp_path):
        pass


def test_metrics_of_any_name_are_logged_once_each(tmp_path: Path) -> None:
    tracker = Tracker("mlflow", tmp_path)
    names = ["a|b", "a.b", "a/../b", "é 中", "x" * 300, "x" * 300 + "y", "$\\foo{", "a\nb", "'\""]
    with tracker.study("s", "key", "title", {}) as run:
        tracker.describe(run, "text", {name: float(number) for number, name in enumerate(names)}, [])
        assert not tracker.down
        assert tracker.client
        assert sorted(tracker.client.get_run(run).data.metrics.values()) == list(range(len(names)))
