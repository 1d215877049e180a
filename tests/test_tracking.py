"""The store: statuses, runs found again by their keys, a store that is down, nothing at all when tracking is off."""

import shutil
import sqlite3
import threading
import time
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tdrs import tracking_store
from tdrs.benchmarks import Record
from tdrs.commands import value
from tdrs.configuration import run
from tdrs.results import Evaluation, of_rows
from tdrs.settings import SettingError
from tdrs.sweep import main_sweep
from tdrs.tracking import Run, Tracker, open_tracker
from tdrs.tracking_store import database_uri


def runs(output: Path, experiment: str) -> list[Any]:
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def statuses(output: Path, experiment: str) -> list[str]:
    return [run.info.status for run in runs(output, experiment)]


def log(tracker: Tracker, output: Path, key: str = "k", parent: str = "", error: str = "") -> None:
    record = Record("0", "i", "q", "p", "a", "g", 1.0, 0.5, "", 1.0)
    evaluation = Evaluation([record], of_rows([record]), [], {}, 2.0, 1000.0)
    evaluation.save(output / "r", {"a": 1})
    folder = None if error else output / "r"
    tracker.log(Run("s", "name", key, {"t": "1"}, {"p": 3}, {"accuracy": 1.0}, folder, parent, error))


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


@pytest.mark.parametrize(("leader", "status"), [("dead", "KILLED"), ("next", "RUNNING")])
def test_the_guard_of_a_dead_leader_leaves_the_runs_of_the_next_one(tmp_path: Path, leader: str, status: str) -> None:
    """The next leader's tag is on the study's run from the time on when it takes over."""
    uri = database_uri(tmp_path / "mlflow.db")
    client = MlflowClient(uri)
    number = client.create_experiment("study")
    parent = client.create_run(number, tags={"leader": leader}).info.run_id
    child = client.create_run(number, tags={"mlflow.parentRunId": parent}).info.run_id
    guard = tracking_store.start_guard(uri, parent, "dead")
    assert guard
    guard.communicate("")  # its leader has died
    assert [client.get_run(one).info.status for one in (parent, child)] == [status, status]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store with a run in it."""
    output = tmp_path_factory.mktemp("good")
    with Tracker("mlflow", output).study("s", "key", "title", {}):
        pass
    return output / "mlflow.db"


def spoil(store: Path, how: str) -> None:
    whole = store.read_bytes()
    if how in ("older", "newer"):
        with closing(sqlite3.connect(store)) as database, database:
            version = "acf3f17fdcc7" if how == "older" else "ffffffffffff"
            database.execute("update alembic_version set version_num = ?", (version,))
    else:
        store.write_bytes({"cut": whole[:100_000], "garbage": b"x" * 4096, "empty": b""}[how])


@pytest.mark.parametrize("how", ["newer", "cut", "garbage", "empty"])
def test_a_store_that_is_spoilt_stops_nothing_and_is_repaired(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    mended = tmp_path / "mended"  # MLflow keeps open what a process has opened; `sync` is a process of its own
    mended.mkdir()
    for folder in (tmp_path, mended):
        shutil.copy(good, folder / "mlflow.db")
        spoil(folder / "mlflow.db", how)
    tracker = Tracker("mlflow", tmp_path)
    with tracker.study("s", "key", "title", {}) as parent:
        log(tracker, tmp_path, parent=parent)
    assert bool(tracker.down) == (how != "empty")  # an empty one is filled
    assert bool(tracker.down) == ("sync s output=" in tracker.next_steps("s")[0])
    capsys.readouterr()
    again = Tracker("mlflow", mended, repair=True)
    with again.study("s", "key", "title", {}) as parent:
        log(again, mended, parent=parent)
    assert again.down == ""
    assert statuses(mended, "s") == ["FINISHED", "FINISHED"]
    if how != "empty":
        assert "it is now" in capsys.readouterr().err  # nothing is thrown away
        assert len(list(mended.glob("mlflow.db.*"))) == 1


def test_a_locked_store_stops_nothing(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_store, "BUSY", 0.1)
    shutil.copy(good, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as database:
        database.execute("begin exclusive")
        tracker = Tracker("mlflow", tmp_path)
        assert "locked" in tracker.down
        assert Tracker("mlflow", tmp_path, repair=True).down
    assert not Tracker("mlflow", tmp_path).down


def test_a_deleted_experiment_is_restored_also_in_the_middle(good: Path, tmp_path: Path) -> None:
    shutil.copy(good, tmp_path / "mlflow.db")
    tracker = Tracker("mlflow", tmp_path)
    client = tracker.client
    assert client
    with tracker.study("s", "key", "title", {}) as parent:
        log(tracker, tmp_path, "a", parent)
        client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
        log(tracker, tmp_path, "b", parent)
    assert not tracker.down
    assert sorted(run.data.tags["key"] for run in runs(tmp_path, "s")) == ["a", "b", "key"]
    assert set(statuses(tmp_path, "s")) == {"FINISHED"}
    client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
    assert Tracker("mlflow", tmp_path).delete("s", {"key"}) == 0  # somebody has done it


def test_a_folder_that_is_moved_takes_its_artifacts_with_it(good: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new? 100%#"
    old.mkdir()
    shutil.copy(good, old / "mlflow.db")
    first = Tracker("mlflow", old)
    with first.study("s", "key", "title", {}) as parent:
        log(first, old, "a", parent)
    first.client = None
    old.rename(new)
    tracker = Tracker("mlflow", new)
    with tracker.study("s", "key", "title", {}) as parent:
        log(tracker, new, "b", parent)
    assert not tracker.down
    assert not old.exists()
    client = MlflowClient(database_uri(new / "mlflow.db"))
    found = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    files = {
        run.data.tags["key"]: sorted(file.path for file in client.list_artifacts(run.info.run_id)) for run in found
    }
    whole = ["config.yaml", "result.json", "samples.parquet"]
    assert files == {"a": whole, "b": whole, "key": []}
    assert list((new / "mlartifacts").rglob("result.json"))
    shutil.rmtree(new / "mlartifacts")
    again = Tracker("mlflow", new, repair=True)
    with again.study("s", "key", "title", {}) as parent:
        log(again, new, "b", parent)  # of "a" this process remembers the old place
    assert again.down == ""
    assert len(list((new / "mlartifacts").rglob("result.json"))) == 1
    assert len(client.search_runs([client.get_experiment_by_name("s").experiment_id])) == 3


class Silent(BaseHTTPRequestHandler):
    """A server that takes requests and says nothing for a while, or nonsense."""

    seconds = 0.0

    def do_GET(self) -> None:
        time.sleep(self.seconds)
        with suppress(OSError):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>not MLflow</html>")

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("seconds", [0.0, 3.0], ids=["nonsense", "silence"])
def test_a_server_that_does_not_answer_is_waited_for_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(tracking_store, "PATIENCE", 1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Silent,), {"seconds": seconds}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    begun = time.monotonic()
    tracker = Tracker("mlflow", tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
    assert time.monotonic() - begun < 2.5
    assert tracker.down
    assert "tracking.uri=null" in tracker.next_steps("s")[1]
    assert "the same command" in tracker.next_steps("evaluate", "the same command")[0]
    server.shutdown()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("foo://x", "must begin with http:"),
        ("localhost:5000", "must begin with http:"),
        ("http://", "must be http://HOST:PORT"),
        ("http://h:port", "must be http://HOST:PORT"),
        ("", "must be an address, or null"),
        ("sqlite://", "must be sqlite:"),
        ("~/runs", "write the home folder out"),
        ("postgresql+nothing://h/x", "must be a database's address"),
    ],
)
def test_an_address_of_no_known_form(tmp_path: Path, uri: str, said: str) -> None:
    with pytest.raises(SettingError, match=said), open_tracker({"name": "mlflow", "uri": uri}, tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "http://u:hush@h",
        "http://u%3Ahush@h:5000",
        "https://hush@h",
        "postgresql://u:hush@h/x",
        "postgresql://u:hu/hush@h/x",
        "postgresql://u@h/x?password=hush",
        "postgresql://u@h/x?pass%77ord=hush",
        "postgresql://u@h/x?sslpassword=hush",
        "http%3A%2F%2Fu:hush@h",
    ],
)
@pytest.mark.parametrize(
    "setting", ["tracking.uri", "study.storage", "+tracking.url", "backbone.source", "tracking", "workers.address"]
)
def test_a_password_is_refused_and_never_shown(
    tmp_path: Path, uri: str, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(config: object) -> None:
        raise AssertionError("reached")

    workers = ["workers=ray"] if setting == "workers.address" else []
    assert run("sweep", never, "", [*workers, f"{setting}='{uri}'", f"output={tmp_path}/out"]) == 2
    said = capsys.readouterr()
    assert "hush" not in said.err + said.out
    assert len(said.err.splitlines()) == 1
    if setting == "tracking.uri":
        assert "MLFLOW_TRACKING_PASSWORD" in said.err
        assert "PGPASSWORD" in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:1/hunt3r@127.0.0.1:1/db", "http://u:1/hunt3r@h", "http://u:12@h", "postgresql://u[x:hunt3r@h/db",
        "postgresql://u#x:hunt3r@h/db", "postgresql://u?x:hunt3r@h/db", "postgresql://u@x:hunt3r@h/db",
        "postgresql://h/db?api_key=hunt3r", "postgresql://h/db?passphrase=hunt3r", "file:u:hunt3r@h",
        "http:/u:hunt3r@h", "//u:hunt3r@h",
    ],
)  # fmt: skip
def test_a_password_in_any_place_is_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for setting in ("tracking.uri", "study.storage", "output", "dataset.source"):
        if "://" not in address and setting != "tracking.uri":
            continue
        given = ["dataset=scienceqa"] if setting == "dataset.source" else []
        assert run("sweep", main_sweep, "", ["preset=smoke", *given, f"{setting}={value(address)}"]) == 2
        said = capsys.readouterr()
        assert "hunt3r" not in said.err + said.out
        assert len(said.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
