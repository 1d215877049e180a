"""Where a study's trials are written as an Optuna study: `study.storage`.

    journal                  study.journal in the study's folder
    postgresql://HOST/NAME   a PostgreSQL database; user and password as PGUSER, PGPASSWORD or ~/.pgpass say
    grpc://HOST:PORT         Optuna's proxy, which has the database behind it

Through a database or a proxy machines that share no folder work on one study (`sweeps/store.py`).
"""

import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError

from tdrs.addresses import JOURNAL, check_storage
from tdrs.checked_file import Damaged
from tdrs.environment import quiet
from tdrs.settings import SettingError, first_line

PATIENCE = 20  # seconds that a server has to answer in, also on a busy machine


def open_storage(value: str) -> BaseStorage | None:
    """A database or a proxy, by its address; None for the journal.

    Raises:
        SettingError: it cannot be reached, a package for it is missing, or the address is of no known form.
    """
    check_storage(value)
    try:
        return None if value == JOURNAL else _open(value)
    except ImportError:
        allowed = "needs more packages: pip install 'psycopg[binary]' grpcio protobuf"
        raise SettingError("study.storage", value, allowed) from None
    except Exception as error:  # each library below has errors of its own for a server that is not there
        raise SettingError("study.storage", value, f"cannot be opened: {first_line(error)}") from error


def _open(value: str) -> BaseStorage:
    url = make_url(value)
    if url.get_backend_name() == "grpc":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            proxy = GrpcStorageProxy(host=str(url.host), port=int(url.port or 0))
        proxy.wait_server_ready(timeout=PATIENCE)
        return proxy
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    engine: dict[str, Any] = {"pool_pre_ping": True, "connect_args": {"connect_timeout": PATIENCE}}
    for attempt in range(5):
        try:
            return get_storage(RDBStorage(url.render_as_string(), engine_kwargs=engine))
        except (IntegrityError, ProgrammingError):  # another worker is making the same tables
            if attempt == 4:
                raise
            time.sleep(0.5)
    raise AssertionError


def load_optuna(storage: BaseStorage | Path, name: str, create: bool = False) -> optuna.Study:
    """A study's trials on the tuning split as an Optuna study.

    Args:
        storage: or the study's folder, for the journal in it.
        create: for the leader, which alone writes.

    Raises:
        Damaged: the journal is another study's.
    """
    if isinstance(storage, Path):
        if create:
            # Only the leader writes, and it has the study's lease. A killed leader may leave Optuna's own lock here,
            # which Optuna would wait 30 seconds for.
            (storage / "study.journal.lock").unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(storage / "study.journal")))
        others = set(optuna.get_all_study_names(storage)) - {name}
        if others:
            raise Damaged(f"belongs to the study {min(others)[:40]}")
    if create:
        with quiet("optuna"):
            return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    return optuna.load_study(storage=storage, study_name=name)


def check_study(storage: BaseStorage, name: str, key: str) -> None:
    """Raises SettingError if a storage that others use has a study of this name over other settings."""
    try:
        study = optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        return
    if study.user_attrs.get("key", key) != key:
        raise SettingError("study.name", name, "the storage has a study of this name over other settings: take another")
