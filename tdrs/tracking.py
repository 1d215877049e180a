"""MLflow: every study and evaluation is logged, with a status that is always true, from records that stay if it fails.

A study is a parent run, its trials are children, each written when it is over. Only swept settings are params; the
whole configuration and the samples are artifacts. A run is found again by its key, so logging twice writes once. A
store that cannot be reached stops nothing: the records are complete, and `python -m tdrs.study sync` writes the rest.
It also repairs: runs that lost their files get them again, and a damaged `mlflow.db` is replaced by a new one.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a server that is down is told from a slow one at once
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "6")
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")

import mlflow.store.db
from alembic.script import ScriptDirectory
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from tdrs.addresses import DATABASES, check_tracking
from tdrs.commands import command, study_command
from tdrs.lease import LostLease
from tdrs.results import FILES, Evaluation
from tdrs.settings import check_choice, first_line
from tdrs.stopping import uninterrupted

KINDS = ("mlflow", "none")
BUSY = 5  # seconds until a local store that another program has locked counts as down
PATIENCE = 15  # seconds until a store that does not answer counts as down
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "INVALID_PARAMETER_VALUE")  # deleted by somebody meanwhile
LONGEST = 240  # letters of a metric's name; the store takes 250
T = TypeVar("T")
for _name in ("mlflow", "alembic"):  # creating the store is no news
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # the error it logs is raised, too, and said once

# A process of its own, which outlives a kill -9: when the study's process is gone without a word, it ends its runs.
_GUARD = """
import sys
if sys.stdin.read() != "ended":
    from mlflow.tracking import MlflowClient
    client, parent = MlflowClient(sys.argv[1]), sys.argv[2]
    run = client.get_run(parent)
    where = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    for one in [run, *client.search_runs([run.info.experiment_id], where)]:
        if one.info.status == "RUNNING":
            client.set_terminated(one.info.run_id, "KILLED")
"""


class Tracker:
    """A store of runs.

    Args:
        kind: `mlflow`, or `none`, which logs nothing.
        output: the folder whose `mlflow.db` is the store.
        uri: another store, e.g. a server's address.
        repair: whether a damaged or older `mlflow.db` is repaired, and runs that lost their files get them again.

    Attributes:
        down: why logging stopped; "" while it works.
        uri: the store's address.
    """

    def __init__(self, kind: str, output: Path, uri: str | None = None, repair: bool = False) -> None:
        self.client: MlflowClient | None = None
        self.down = ""
        self._output = output
        self._local = uri is None
        self.uri = uri or ""
        self._repair = repair
        self._known: dict[str, dict[str, tuple[str, str]]] = {}  # of each parent: key → run and status
        self._experiments: dict[str, str] = {}
        if kind == "mlflow":
            try:
                self.client = self._open() if self._local else _within(PATIENCE, self._open)
            except Exception as error:  # whatever a store makes its libraries raise
                self._give_up(error)

    def _open(self) -> MlflowClient:
        """The client of a store that answers."""
        if self._local:
            self._root = self._output.resolve()
            self._store = self._root / "mlflow.db"
            self.uri = database_uri(self._store)
            self._create()
            if self._repair:
                self._mend()
            self._relocate()
        elif self.uri.startswith(DATABASES):  # MLflow itself would try for minutes
            engine = create_engine(self.uri, poolclass=NullPool)
            if engine.url.get_backend_name() != "sqlite":
                engine.connect().close()
            elif Path(engine.url.database or "").exists():
                with engine.connect() as connection:
                    connection.exec_driver_sql("begin immediate")
        client = MlflowClient(tracking_uri=self.uri)
        client.search_experiments(max_results=1)
        return client

    def _create(self) -> None:
        """Make the local store if there is none: one process alone, and it is whole or not there."""
        self._root.mkdir(parents=True, exist_ok=True)
        new = self._root / f"mlflow.db.{os.getpid()}.new"
        with (self._root / "mlflow.lock").open("a", encoding="utf-8") as lock:
            _take(lock.fileno())
            if not self._store.exists() or not self._store.stat().st_size:
                new.unlink(missing_ok=True)
                MlflowClient(tracking_uri=database_uri(new)).search_experiments(max_results=1)
                self._put(new)

    def _put(self, new: Path) -> None:
        """Move a new store into place, unless another process, which the lock did not keep out, was first."""
        if self._store.exists() and not self._store.stat().st_size:
            self._store.unlink()
        try:
            os.link(new, self._store)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            new.replace(self._store)
        new.unlink(missing_ok=True)

    def _mend(self) -> None:
        """Bring a local store of an older MLflow up to date; put one that cannot be used aside and begin a new one."""
        damage = version = ""
        try:
            with closing(sqlite3.connect(self._store, timeout=BUSY)) as database:
                (said,) = database.execute("pragma quick_check(1)").fetchone()
                damage = "" if said == "ok" else str(said)
                with suppress(sqlite3.OperationalError):  # no such table: MLflow makes all of them
                    (version,) = database.execute("select version_num from alembic_version").fetchone() or ("",)
        except sqlite3.OperationalError:  # locked, or not to be read
            raise
        except sqlite3.DatabaseError as error:
            damage = str(error)
        current = ScriptDirectory(str(Path(mlflow.store.db.__file__).parents[1] / "db_migrations")).get_current_head()
        if not damage and version in ("", current):
            return
        aside = self._aside("damaged" if damage else "other")
        if not damage:
            shutil.copy(aside, self._store)
            upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", self.uri]
            if not subprocess.run(upgrade, capture_output=True, check=False).returncode:
                print(f"mlflow.db of an older MLflow was upgraded; as it was, it is {aside}", file=sys.stderr)
                return
            self._store.unlink()
        self._create()
        why = f"was damaged ({damage})" if damage else "was made by another MLflow and cannot be upgraded"
        text = f"mlflow.db {why}; it is now {aside}. This study goes into a new one: sync the other studies, too"
        print(text, file=sys.stderr)

    def _aside(self, ending: str) -> Path:
        """The local store under another name."""
        found, number = Path(f"{self._store}.{ending}"), 1
        while found.exists():
            number += 1
            found = Path(f"{self._store}.{ending}-{number}")
        for end in ("-journal", "-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                Path(f"{self._store}{end}").rename(f"{found}{end}")
        return found

    def _relocate(self) -> None:
        """Point the local store at this folder's artifacts, wherever it stood before: MLflow keeps absolute places."""
        mark = "/mlartifacts/"
        here = self._root.as_uri() + mark
        with closing(sqlite3.connect(self._store, timeout=BUSY)) as database, database:
            database.execute("begin immediate")  # a store that is locked, or read-only, says so at once
            rows = database.execute("select experiment_id, artifact_location from experiments").fetchall()
            for number, place in rows:
                if not str(place).startswith("file:") or mark not in place:
                    continue
                new = here + place.rpartition(mark)[2]
                database.execute(
                    "update runs set artifact_uri = ? || '/' || run_uuid || '/artifacts' where experiment_id = ? "
                    "and artifact_uri like 'file:%' and artifact_uri != ? || '/' || run_uuid || '/artifacts'",
                    (new, number, new),
                )
                if new != place:
                    database.execute(
                        "update experiments set artifact_location = ? where experiment_id = ?", (new, number)
                    )

    def _give_up(self, error: Exception) -> None:
        """Go on without a store, and say so."""
        self.down = first_line(error)
        self.client = None
        print(f"tracking stopped ({self.down}); the records are complete without it", file=sys.stderr)

    def _attempt(self, action: Callable[[MlflowClient], T]) -> T | None:
        """What an action returns; None without a store, or when this one fails, which is said once."""
        for attempt in range(2):
            if not self.client:
                break
            try:
                with uninterrupted():
                    return action(self.client)
            except Exception as error:  # whatever a store makes its libraries raise
                if attempt or not isinstance(error, MlflowException) or error.error_code not in _GONE:
                    self._give_up(error)
                self._known.clear()  # somebody may have deleted what was there
                self._experiments.clear()
        return None

    def next_steps(self, experiment: str, later: str = "") -> list[str]:
        """What to type and open to look at an experiment's runs; nothing without a store.

        Args:
            later: the command that logs what could not be logged now; of a study, `sync`, unless another is given.
        """
        found = self._attempt(lambda client: self._experiment(client, experiment))
        page = f"#/experiments/{found}/runs?workflowType=machine_learning"
        if self.down:
            return [f"tracking was unavailable; later:  {later}"] if later else self.later(experiment)
        if not found:
            return []
        if not self._local:
            return [f"runs:    {self.uri.rstrip('/')}/{page}"]
        ui = command("mlflow", "ui", "--host", "127.0.0.1", "--backend-store-uri", self.uri)
        return [f"next:    {ui}", f"         then open http://127.0.0.1:5000/{page}"]

    def later(self, experiment: str) -> list[str]:
        """What to do where the store was down: what repairs it, or writes the runs to another one."""
        if experiment == "evaluate":
            return ["tracking was unavailable; later, the same command finds the records and logs the run"]
        sync = study_command("sync", experiment, self._output.absolute())
        if self._local:
            return [f"tracking was unavailable; {'again' if self._repair else 'this repairs it'}:  {sync}"]
        return [
            f"tracking was unavailable; when it answers again:  {sync}",
            f"         or, into {self._output.absolute()}/mlflow.db:  {sync} tracking.uri=null",
        ]

    def _find(self, client: MlflowClient, name: str) -> str:
        """The number of an experiment, "" if there is none; one that was deleted is restored, with its runs."""
        if name not in self._experiments:
            found = client.get_experiment_by_name(name)
            if not found:
                return ""
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
                print(f"the experiment {name} was deleted in MLflow; it is restored", file=sys.stderr)
            self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _experiment(self, client: MlflowClient, name: str) -> str:
        found = self._find(client, name)
        if not found:
            found = self._experiments[name] = client.create_experiment(
                name,
                artifact_location=(self._root / "mlartifacts" / name).as_uri() if self._local else None,
                tags={"mlflow.experimentKind": "custom_model_development"},  # opens at its runs, not at LLM traces
            )
        return found

    def _children(self, client: MlflowClient, experiment: str, parent: str) -> dict[str, tuple[str, str]]:
        """By key the runs under a parent ("" for those under none), with their statuses."""
        if parent not in self._known:
            number = self._find(client, experiment)
            where = f"tags.`mlflow.parentRunId` = '{parent}'" if parent else ""
            found: dict[str, tuple[str, str]] = {}
            token = None
            while number:
                page = client.search_runs([number], where, max_results=1000, page_token=token)
                for run in page:
                    if "key" in run.data.tags and (parent or "mlflow.parentRunId" not in run.data.tags):
                        found[run.data.tags["key"]] = (run.info.run_id, run.info.status)
                token = page.token
                if not token:
                    break
            self._known[parent] = found
        return self._known[parent]

    @contextmanager
    def study(self, name: str, key: str, title: str, tags: Mapping[str, str]) -> Iterator[str]:
        """A parent run, begun or gone on with; its id, "" without a store.

        It ends FINISHED, FAILED after an exception, KILLED after Ctrl-C, SIGTERM, or the death of this process.

        Args:
            name: the experiment.
            key: what it is found by when the study goes on.
        """
        with uninterrupted():  # a run that is begun has its guard
            parent = self._attempt(lambda client: self._begin(client, name, key, title, tags)) or ""
            guard = _guard(self.uri, parent) if parent else None
        if not parent:
            yield parent
            return
        status = "FAILED"
        try:
            yield parent
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except LostLease:  # the run is another process's now
            status = ""
            raise
        finally:
            if status:
                self._attempt(lambda client: client.set_terminated(parent, status))
            if guard and guard.stdin:
                with suppress(OSError), guard.stdin:
                    guard.stdin.write("ended" if self.client else "")  # else it ends what runs, if the store answers
                if self.client:
                    with suppress(subprocess.TimeoutExpired):
                        guard.wait(PATIENCE)

    def _begin(self, client: MlflowClient, name: str, key: str, title: str, tags: Mapping[str, str]) -> str:
        known = self._children(client, name, "").get(key)
        if known:
            client.update_run(known[0], status="RUNNING")
            return known[0]
        values = {**tags, "key": key, "mlflow.source.name": "tdrs"}
        run = client.create_run(self._experiment(client, name), tags=values, run_name=title)
        return str(run.info.run_id)

    def log(
        self,
        experiment: str,
        name: str,
        key: str,
        tags: Mapping[str, str],
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        folder: Path | None,
        parent: str = "",
        error: str = "",
        data: tuple[str, str, str, int] | None = None,
    ) -> None:
        """Write one run, whole: settings, metrics, an evaluation's files; nothing if it is there.

        Args:
            key: what it is found by.
            folder: of the evaluation, which is read if the run is to be written; None where there is no whole one.
            error: why it failed.
            data: the samples: data set, split, a hash of their content, how many.
        """

        status = "FAILED" if error else "FINISHED"

        def missing(client: MlflowClient) -> bool:
            run, before = self._children(client, experiment, parent).get(key, ("", ""))
            whole = before == status
            if whole and folder and self._repair:
                whole = set(FILES) <= {file.path for file in client.list_artifacts(run)}
            return not whole

        if not self._attempt(missing):
            return
        evaluation = Evaluation.read(folder) if folder else None

        def write(client: MlflowClient) -> None:
            known = self._children(client, experiment, parent)
            end = int(1000 * evaluation.finished) if evaluation else get_current_time_millis()
            start = end - int(1000 * evaluation.seconds) if evaluation else end
            values = {**tags, "key": key, "mlflow.source.name": "tdrs"}
            if parent:
                values["mlflow.parentRunId"] = parent
            if error:
                values["error"] = error[:500]
            if key in known:
                run = known[key][0]
                client.log_batch(run, tags=[RunTag(k, v) for k, v in ({"error": ""} | values).items()])
            else:
                created = client.create_run(self._experiment(client, experiment), start, values, name)
                run = created.info.run_id
            logged = [Metric(k, value, end, 0) for k, value in _named(metrics).items()]
            logged += [Metric("running_accuracy", v, end, step) for step, v in _running(evaluation)]
            client.log_batch(run, logged, [Param(k, str(value)) for k, value in params.items()])
            if data:
                name_, split, digest, n = data
                source = {"dataset": name_, "split": split}
                made = Dataset(name_, digest[:12], "tdrs", json.dumps(source), profile=json.dumps({"num_rows": n}))
                client.log_inputs(run, [DatasetInput(made, [InputTag("mlflow.data.context", split)])])
            if folder:
                for file in FILES:
                    client.log_artifact(run, str(folder / file))
            client.set_terminated(run, status, end)
            known[key] = (run, status)

        self._attempt(write)

    def describe(self, run: str, text: str | None, metrics: Mapping[str, float], files: list[Path]) -> None:
        """A run's description (None leaves it), metrics and files; nothing without a store."""

        def write(client: MlflowClient) -> None:
            if text is not None:
                client.set_tag(run, "mlflow.note.content", text)
            now = get_current_time_millis()
            named = [Metric(name, value, now, 0) for name, value in _named(metrics).items()]
            for first in range(0, len(named), 1000):  # the store takes so many at a time
                client.log_batch(run, named[first : first + 1000])
            for file in files:
                client.log_artifact(run, str(file))

        if run:
            self._attempt(write)

    def keep(self, experiment: str, parent: str, keys: set[str]) -> None:
        """Delete the children of a parent run but those with these keys; MLflow can restore them until `mlflow gc`."""

        def remove(client: MlflowClient) -> None:
            known = self._children(client, experiment, parent)
            for key in set(known) - keys:
                client.delete_run(known.pop(key)[0])

        if parent:
            self._attempt(remove)

    def delete(self, experiment: str, keys: set[str]) -> int:
        """Delete parent runs by their keys, with their children; returns how many runs that were."""

        def remove(client: MlflowClient) -> int:
            there = client.get_experiment_by_name(experiment)
            if not there or there.lifecycle_stage == "deleted":
                return 0
            parents = [run for key, (run, _) in self._children(client, experiment, "").items() if key in keys]
            runs = [run for parent in parents for run, _ in self._children(client, experiment, parent).values()]
            for run in [*runs, *parents]:
                client.delete_run(run)
            return len(runs) + len(parents)

        return self._attempt(remove) or 0


def database_uri(path: Path) -> str:
    """The address of an SQLite file, whatever letters its path has."""
    plain = f"sqlite:///{path}"
    # of `sqlite:` MLflow makes the folder without decoding it
    return plain if make_url(plain).database == str(path) else f"sqlite+pysqlite:///{quote(str(path))}"


def _within(seconds: float, action: Callable[[], T]) -> T:
    """What an action returns.

    Raises:
        TimeoutError: it takes longer; it is left to itself.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(action())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return found[0]


def _take(lock: int) -> None:
    """Lock a file; raises TimeoutError if another process has it for a minute."""
    end = time.monotonic() + 60
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError("another process holds mlflow.lock") from None
            time.sleep(0.1)


def _guard(uri: str, parent: str) -> "subprocess.Popen[str] | None":
    """The process that ends a study's runs if this one cannot; None where no process can be started."""
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _GUARD, uri, parent],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
    except OSError:
        return None


def metric_name(text: str, taken: Container[str], longest: int = LONGEST) -> str:
    """A name that the store takes for a metric, and that is not taken yet; for other letters than it takes, dots."""
    name = re.sub(r"^\.+", "_", re.sub(r"[^\w.\- ]", ".", text)) or "_"
    if len(name) <= longest and name not in taken:
        return name
    return f"{name[: longest - 9]}.{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under names that the store takes."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found[metric_name(name, found)] = value
    return found


def _running(evaluation: Evaluation | None, points: int = 20) -> list[tuple[int, float]]:
    """The accuracy of the first samples at up to so many places; the step is how many samples they are."""
    records = evaluation.records if evaluation else []
    stops = sorted({round(len(records) * (i + 1) / points) for i in range(points)} - {0})
    found = []
    for stop in stops:
        weights = sum(record.weight for record in records[:stop])
        found.append((stop, sum(record.score * record.weight for record in records[:stop]) / weights))
    return found


@contextmanager
def open_tracker(settings: Mapping[str, Any], output: Path, repair: bool = False) -> Iterator[Tracker]:
    """The store that `tracking` settings describe; `repair` as in `Tracker`.

    Raises:
        SettingError: `tracking.name` is unknown, or `tracking.uri` no address.
    """
    check_choice("tracking.name", settings.get("name"), KINDS)
    check_tracking(settings.get("uri"))
    yield Tracker(settings["name"], output, settings.get("uri"), repair)
