"""Addresses of stores. One with a password is refused and never printed: files and messages would show it."""

import re
from importlib.metadata import entry_points
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from tdrs.settings import SettingError, hidden

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
JOURNAL = "journal"  # the study storage that is a file of the study
SCHEMES = ("http", "https", *DATABASES, "file", "databricks", "databricks-uc", "uc")


def check_password(name: str, value: str, instead: str) -> None:
    """Raises SettingError if an address has a password, even percent-encoded or in the query.

    Args:
        instead: the environment variables that can hold the password.
    """
    shown = hidden(value)
    if shown == value and "://" not in value and re.search(r":.*@", unquote(value)):  # such as file:user:word@host
        shown = "***"
    if shown != value:
        raise SettingError(name, shown, f"must have no password, records would show it: use {instead}")


def check_storage(value: object) -> None:
    """Raises SettingError unless `value` is a form of `study.storage`; nothing is opened."""
    if value == JOURNAL:
        return
    allowed = "must be journal, postgresql://HOST/NAME or grpc://HOST:PORT"
    try:
        url = make_url(value) if isinstance(value, str) else None
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.get_backend_name() not in ("postgresql", "grpc"):
        raise SettingError("study.storage", value, allowed)
    check_password("study.storage", str(value), "PGUSER and PGPASSWORD")
    if url.get_backend_name() == "grpc" and not (url.host and url.port):
        raise SettingError("study.storage", value, allowed)


def check_tracking(value: object) -> None:
    """Raises SettingError unless `value` is null or the address of a store for MLflow. Nothing is opened."""
    name = "tracking.uri"
    if value is None:
        return
    if not isinstance(value, str) or not value.strip():
        raise SettingError(name, value, "must be an address, or null")
    check_password(name, value, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGUSER and PGPASSWORD")
    scheme = value.partition(":")[0].lower() if ":" in value else ("databricks" if value == "databricks" else "file")
    known = (*SCHEMES, *(point.name for point in entry_points(group="mlflow.tracking_store")))
    if scheme.partition("+")[0] not in known:
        raise SettingError(
            name, value, f"must begin with {', '.join(f'{one}:' for one in SCHEMES[:7])}, or be a folder"
        )
    if scheme in ("http", "https"):
        _check_web(name, value)
    elif scheme.partition("+")[0] in DATABASES:
        _check_database(name, value)
    elif scheme == "file" and value.removeprefix("file://").startswith("~"):
        raise SettingError(name, value, "write the home folder out")


def _check_web(name: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"\s", value):
        raise SettingError(name, value, "must be http://HOST:PORT")


def _check_database(name: str, value: str) -> None:
    try:
        url = make_url(value)
        if url.get_backend_name() == "sqlite" and (url.database or ":memory:").startswith((":memory:", "~")):
            raise SettingError(name, value, "must be sqlite:////FOLDER/NAME.db, the home folder written out")
        url.get_dialect().import_dbapi()
    except (ArgumentError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(name, value, "must be a database's address, such as postgresql://HOST/NAME") from None
    except ImportError as error:
        raise SettingError(name, value, f"needs a package that is not installed: {error.name}") from None
    except Exception as error:  # SQLAlchemy has its own error for an unknown driver
        raise SettingError(name, value, f"must be a database's address: {error}") from None
