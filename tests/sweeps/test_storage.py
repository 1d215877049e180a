"""`study.storage`: which forms there are, and what is said, before a model is loaded, where it cannot be used."""

import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from tdrs.addresses import check_storage
from tdrs.configuration import run
from tdrs.settings import SettingError
from tdrs.sweep import main_sweep
from tdrs.sweeps import storage as storage_module
from tdrs.sweeps.storage import check_study, load_optuna, open_storage
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker

from .pretend import configuration
from .servers import free_port


@pytest.mark.parametrize(
    "given", ["journal", "postgresql+psycopg://me@host/db", "postgresql:///db", "grpc://host:13000"]
)
def test_forms(given: str) -> None:
    check_storage(given)


@pytest.mark.parametrize("given", [None, 3, "", "sqlite:///x.db", "grpc://host", "grpc://:13000", "mysql://host/db"])
def test_other_forms(given: Any) -> None:
    with pytest.raises(SettingError, match="must be journal, postgresql"):
        check_storage(given)


def test_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingError, match="PGPASSWORD") as error:
        check_storage("postgresql+psycopg://me:secret@host/db")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("form", ["grpc://127.0.0.1:{}", "postgresql://127.0.0.1:{}/db"])
def test_a_server_that_is_not_there(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pretended: list[str]
) -> None:
    pytest.importorskip("grpc" if form.startswith("grpc") else "psycopg")
    monkeypatch.setattr(storage_module, "PATIENCE", 1)
    where = form.format(free_port())
    given = ["preset=smoke", f"study.storage={where}", f"output={tmp_path}", "tracking=none"]
    assert run("sweep", main_sweep, "", given) == 2
    said = capsys.readouterr().err
    assert f"study.storage = {where!r}: " in said
    assert said.count("\n") == 1
    assert pretended == []


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingError, match=r"needs more packages: pip install 'psycopg\[binary\]' grpcio protobuf"):
        open_storage("postgresql+psycopg://127.0.0.1:1/db")


def test_a_study_of_another_kind_is_not_touched() -> None:
    storage = InMemoryStorage()
    check_study(storage, "mine", "a")
    load_optuna(storage, "mine", create=True).set_user_attr("key", "a")
    check_study(storage, "mine", "a")
    with pytest.raises(SettingError, match=r"study.name = 'mine': the storage has a study of this name"):
        check_study(storage, "mine", "b")


def test_two_folders_one_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretended: list[str]) -> None:
    """The second finds all that the first measured, and its report equals; each trial is in Optuna once."""
    storage = InMemoryStorage()
    monkeypatch.setattr("tdrs.sweeps.study.open_storage", lambda where: storage)
    outcomes = []
    for name in ("a", "b"):
        config = configuration(tmp_path / name)
        config["study"]["storage"] = "grpc://somewhere:1"
        study = Study(config, Tracker("none", tmp_path / name))
        outcomes.append(study.run())
        assert (study.progress.evaluated > 0) == (name == "a")
    assert outcomes[0].rows == outcomes[1].rows
    assert outcomes[0].trials == outcomes[1].trials
    keys = [trial.user_attrs["key"] for trial in load_optuna(storage, "small").get_trials()]
    assert sorted(keys) == sorted({trial.key for trial in outcomes[0].trials})
    assert not (tmp_path / "a" / "studies" / "small" / "study.journal").exists()
