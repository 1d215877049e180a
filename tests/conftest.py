"""Small random models of real architectures, and the embedded model, shared by all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may look for anything on a hub
# two processes of two threads each would stand in their own way
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tdrs import backbones, tracking_store
from tdrs.attention import core
from tdrs.attention.call import Call
from tdrs.backbones import Backbone
from tdrs.configuration import compose, plain
from tests.sweeps.pretend import pretend

SLOW = ("test_crash.py", "test_machines.py", "test_ui.py", "test_damage.py", "test_examples.py", "test_pages.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first: a worker that begins one last keeps the other waiting."""
    items.sort(key=lambda item: item.path.name not in SLOW)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow needs more than a second to make a database: it makes one, and later ones are copies of it."""
    made, make = tmp_path_factory.mktemp("database") / "mlflow.db", tracking_store.new_database

    def copy(path: Path) -> None:
        if not made.exists():
            make(made)
        shutil.copyfile(made, path)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tracking_store, "new_database", copy)
        yield


def tiny_llama(**settings: object) -> LlamaForCausalLM:
    """A random Llama of two layers with grouped queries."""
    torch.manual_seed(0)
    values: dict[str, object] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.3,
        "max_position_embeddings": 512,
    }
    return LlamaForCausalLM(LlamaConfig(**{**values, **settings})).eval()


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def mini_llava() -> Backbone:
    config = plain(compose("evaluate", []))
    return backbones.load(backbones.from_settings(config["backbone"]))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call that reaches the core."""
    found: list[Call] = []
    execute = core.EXECUTIONS["auto"]

    def record(call: Call, method: Any) -> torch.Tensor:
        found.append(call)
        return execute(call, method)

    monkeypatch.setitem(core.EXECUTIONS, "auto", record)
    return found


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Studies without a model, for one test; see `tests/sweeps/pretend.py`."""
    return pretend(monkeypatch)
