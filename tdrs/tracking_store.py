"""Opening MLflow's store of runs, and repairing the local one.

The local store is `mlflow.db` in the output folder, with its files in `mlartifacts`. It is made by one process at a
time. If the folder was moved, its paths are corrected. With `repair`, an older database is upgraded and a damaged one
is replaced. The store at an address is only opened, within a bounded time.
"""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import mlflow.store.db
from alembic.script import ScriptDirectory
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from tdrs.addresses import DATABASES

BUSY = 5  # seconds after which a local store that another program has locked counts as down
PATIENCE = 15  # seconds after which a store that does not answer counts as down
# How long the libraries wait for a remote store. By their defaults they try a server that is down for minutes.
_WAITING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "6", "PGCONNECT_TIMEOUT": "10"}
T = TypeVar("T")

# A separate process, which survives a kill -9 of the study's process: it ends the runs if that one dies.
_GUARD = """
import sys
if sys.stdin.read() != "ended":
    from mlflow.tracking import MlflowClient
    client, (parent, leader) = MlflowClient(sys.argv[1]), sys.argv[2:]
    run = client.get_run(parent)
    where = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    for one in [run, *client.search_runs([run.info.experiment_id], where)]:
        # another process may lead by now: what runs then is its own
        if client.get_run(parent).data.tags.get("leader") != leader:
            break
        if client.get_run(one.info.run_id).info.status == "RUNNING":
            client.set_terminated(one.info.run_id, "KILLED")
"""


class Store:
    """MLflow's store at an address, or the local one of an output folder.

    Args:
        output: the folder of the local store.
        uri: the address; None is the local store.
        repair: whether `open` repairs a local database that is damaged or of an older MLflow.

    Attributes:
        local: whether it is the local store.
        uri: the address.
    """

    def __init__(self, output: Path, uri: str | None, repair: bool) -> None:
        self.local = uri is None
        self._root = output.resolve()
        self._database = self._root / "mlflow.db"
        self._repair = repair
        self.uri = database_uri(self._database) if uri is None else uri

    def open(self) -> MlflowClient:
        """A client of the store, which has answered.

        Raises:
            Exception: the store cannot be used; the libraries below raise errors of many kinds.
        """
        if not self.local:
            return within(PATIENCE, self._client)
        self._create()
        if self._repair:
            self._mend()
        self._relocate()
        return self._client()

    def artifacts(self, experiment: str) -> str | None:
        """Where the files of an experiment go; None leaves it to the store."""
        return (self._root / "mlartifacts" / experiment).as_uri() if self.local else None

    def _client(self) -> MlflowClient:
        if not self.local:
            for name, value in _WAITING.items():
                os.environ.setdefault(name, value)
            if self.uri.startswith(DATABASES):
                _connect(self.uri)
        client = MlflowClient(tracking_uri=self.uri)
        client.search_experiments(max_results=1)
        return client

    def _create(self) -> None:
        """Make the local store if there is none. It is made under another name, so that it is whole or not there."""
        self._root.mkdir(parents=True, exist_ok=True)
        new = self._root / f"mlflow.db.{os.getpid()}.new"
        with (self._root / "mlflow.lock").open("a", encoding="utf-8") as lock:
            _take(lock.fileno())
            if not self._database.exists() or not self._database.stat().st_size:
                new.unlink(missing_ok=True)
                new_database(new)
                self._put(new)

    def _put(self, new: Path) -> None:
        """Move a new database into place, unless another process was first, which happens where locks do not work."""
        if self._database.exists() and not self._database.stat().st_size:
            self._database.unlink()
        try:
            os.link(new, self._database)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            new.replace(self._database)
        new.unlink(missing_ok=True)

    def _mend(self) -> None:
        """Upgrade a database of an older MLflow. Set one that cannot be used aside and make a new one."""
        damage = version = ""
        try:
            with closing(sqlite3.connect(self._database, timeout=BUSY)) as database:
                (said,) = database.execute("pragma quick_check(1)").fetchone()
                damage = "" if said == "ok" else str(said)
                with suppress(sqlite3.OperationalError):  # no such table: MLflow makes all of them
                    (version,) = database.execute("select version_num from alembic_version").fetchone() or ("",)
        except sqlite3.OperationalError:  # locked or not readable
            raise
        except sqlite3.DatabaseError as error:
            damage = str(error)
        current = ScriptDirectory(str(Path(mlflow.store.db.__file__).parents[1] / "db_migrations")).get_current_head()
        if not damage and version in ("", current):
            return
        aside = self._set_aside("damaged" if damage else "other")
        if not damage:
            shutil.copy(aside, self._database)
            upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", self.uri]
            if not subprocess.run(upgrade, capture_output=True, check=False).returncode:
                print(f"mlflow.db of an older MLflow was upgraded; as it was, it is {aside}", file=sys.stderr)
                return
            self._database.unlink()
        self._create()
        why = f"was damaged ({damage})" if damage else "was made by another MLflow and cannot be upgraded"
        text = f"mlflow.db {why}; it is now {aside}. This study goes into a new one: sync the other studies, too"
        print(text, file=sys.stderr)

    def _set_aside(self, ending: str) -> Path:
        """Move the database to another name, and return that."""
        found, number = Path(f"{self._database}.{ending}"), 1
        while found.exists():
            number += 1
            found = Path(f"{self._database}.{ending}-{number}")
        for end in ("-journal", "-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                Path(f"{self._database}{end}").rename(f"{found}{end}")
        return found

    def _relocate(self) -> None:
        """Point the database at this folder's files. MLflow keeps absolute paths, and folders are moved."""
        mark = "/mlartifacts/"
        here = self._root.as_uri() + mark
        with closing(sqlite3.connect(self._database, timeout=BUSY)) as database, database:
            database.execute("begin immediate")  # a database that is locked or read-only says so at once
            rows = database.execute("select experiment_id, artifact_location from experiments").fetchall()
            for number, location in rows:
                if not str(location).startswith("file:") or mark not in location:
                    continue
                new = here + location.rpartition(mark)[2]
                database.execute(
                    "update runs set artifact_uri = ? || '/' || run_uuid || '/artifacts' where experiment_id = ? "
                    "and artifact_uri like 'file:%' and artifact_uri != ? || '/' || run_uuid || '/artifacts'",
                    (new, number, new),
                )
                if new != location:
                    database.execute(
                        "update experiments set artifact_location = ? where experiment_id = ?", (new, number)
                    )


def database_uri(path: Path) -> str:
    """The address of an SQLite file. Any letter may be in its path."""
    plain = f"sqlite:///{path}"
    # MLflow makes the folder of a `sqlite:` address without decoding it
    return plain if make_url(plain).database == str(path) else f"sqlite+pysqlite:///{quote(str(path))}"


def new_database(path: Path) -> None:
    """Make a local store's database."""
    MlflowClient(tracking_uri=database_uri(path)).search_experiments(max_results=1)


def _connect(uri: str) -> None:
    """Raises the driver's error if a database does not answer. MLflow itself would try for minutes."""
    engine = create_engine(uri, poolclass=NullPool)
    if engine.url.get_backend_name() != "sqlite":
        engine.connect().close()
    elif Path(engine.url.database or "").exists():
        with engine.connect() as connection:
            connection.exec_driver_sql("begin immediate")


def start_guard(uri: str, parent: str, leader: str) -> "subprocess.Popen[str] | None":
    """Start the process that ends a study's runs if this one dies; None where no process can be started.

    Args:
        leader: the tag `leader` that the study's run has while this process leads. With another tag nothing is ended.
    """
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _GUARD, uri, parent, leader],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
    except OSError:
        return None


def within(seconds: float, action: Callable[[], T]) -> T:
    """What an action returns.

    Raises:
        TimeoutError: the action takes longer; it goes on in a thread that nobody waits for.
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
    """Lock a file. Raises TimeoutError if another process has it for a minute."""
    end = time.monotonic() + 60
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError("another process holds mlflow.lock") from None
            time.sleep(0.1)
