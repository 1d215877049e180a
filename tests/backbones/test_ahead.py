"""The next batch is prepared in a thread: equal records and errors, nothing left running, nothing made twice."""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tdrs import Stock, backbones, benchmarks
from tdrs.backbones import Backbone, ahead
from tdrs.backbones.ahead import Ahead
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.backbones.prompt_encoder import PromptEncoder
from tdrs.benchmarks.benchmark import Picture
from tdrs.configuration import compose, plain
from tdrs.evaluation import evaluate

NAME = "next batch"


def load(name: str, store: EmbeddingStore | None, prepares_ahead: bool) -> Backbone:
    config = plain(compose("evaluate", [f"backbone={name}"]))
    return replace(backbones.load(backbones.from_settings(config["backbone"]), store), prepares_ahead=prepares_ahead)


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture
def where(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The threads that prepared tokens and pictures, and read features, in order."""
    found: dict[str, list[str]] = {}

    def watch(kind: Any, name: str) -> None:
        real, calls = getattr(kind, name), found.setdefault(name, [])

        def noted(*given: Any, **named: Any) -> Any:
            calls.append("ahead" if threading.current_thread().name == NAME else "main")
            return real(*given, **named)

        monkeypatch.setattr(kind, name, noted)

    watch(PromptEncoder, "_prepared")
    watch(PromptEncoder, "_of_picture")
    watch(EmbeddingStore, "get")
    return found


@pytest.mark.parametrize("name", ["mini_llava", "mini_internvl", "mini_qwen2_5_vl"])
def test_records_are_equal_bit_for_bit(name: str, tmp_path: Path, where: dict[str, list[str]]) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_gqa", "gap": 3})
    alone = load(name, None, False)
    samples = benchmarks.load(benchmark, "tuning", 14, alone.settings.prompt_style)
    random = torch.get_rng_state()
    expected = evaluate(alone, benchmark, samples, Stock(), batch_size=4)
    assert set(where["_prepared"]) == {"main"}
    for calls in where.values():
        calls.clear()
    for _ in range(2):  # nothing is stored, then all is
        beside = load(name, EmbeddingStore(tmp_path, 1 << 30), True)
        found = evaluate(beside, benchmark, samples, Stock(), batch_size=4)
        assert found.records == expected.records
        assert found.notes == expected.notes
    assert torch.equal(torch.get_rng_state(), random)
    assert where["_prepared"] == ["main", *["ahead"] * (math.ceil(len(samples) / 4) - 1)] * 2
    first, whole = (len({sample.picture.digest for sample in some}) for some in (samples[:4], samples))
    assert where["_of_picture"].count("ahead") == whole - first
    assert where["_of_picture"].count("main") == first + 1  # the second time, a blank one tells the form
    assert where["get"].count("ahead") == whole - first
    where["_prepared"].clear()
    assert evaluate(beside, benchmark, samples, Stock(), batch_size=4).records == expected.records
    assert where["_prepared"] == []


def no_file() -> bytes:
    raise OSError("no picture there")


@pytest.mark.parametrize(("read", "said"), [(lambda: b"torn", "no picture in a known"), (no_file, "no picture there")])
def test_a_bad_picture_is_an_error_of_its_own_batch(mini_llava: Backbone, read: Callable[[], bytes], said: str) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_gqa", "gap": 3})
    samples = list(benchmarks.load(benchmark, "tuning", 8))[:6]
    samples[5] = replace(samples[5], picture=Picture(read))
    messages, counts = [], []
    for prepares_ahead in (False, True):
        backbone = replace(mini_llava, prepares_ahead=prepares_ahead)
        seen = len(backbone.answer(samples[:2], "gqa", then=samples[2:4]))
        seen += len(backbone.answer(samples[2:4], "gqa", then=samples[4:]))
        with pytest.raises(OSError, match=said) as error:
            backbone.answer(samples[4:], "gqa")
        messages.append(str(error.value))
        counts.append(seen)
    assert messages[0] == messages[1]
    assert counts == [4, 4]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), torch.OutOfMemoryError("x")])
def test_an_error_stops_the_thread_after_what_it_is_at(error: BaseException) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), []

    def slow() -> dict[str, Any]:
        begun.set()
        go_on.wait(30)
        done.append("slow")
        return {}

    made = Ahead()

    def fails() -> None:
        with made.beside([("a", slow), ("b", lambda: done.append("never"))]):
            begun.wait(30)
            threading.Timer(0.05, go_on.set).start()
            raise error

    with pytest.raises(type(error)):
        fails()
    assert done == ["slow"]


def test_what_is_made_is_taken_once() -> None:
    made, calls = Ahead(), []

    def make(name: str) -> Callable[[], dict[str, str]]:
        return lambda: calls.append(name) or {"name": name}  # type: ignore[func-returns-value]

    def fail() -> None:
        calls.append("fail")
        raise ValueError("x")

    with made.beside([("a", make("a")), ("nothing", lambda: None), ("b", fail), ("c", make("c"))]):
        pass
    assert calls == ["a", "fail"]
    assert made.take("a", make("again")) == {"name": "a"}
    assert made.take("a", make("again")) == {"name": "again"}
    assert made.take("nothing", make("now")) == {"name": "now"}
    with pytest.raises(ValueError, match="x"):
        made.take("b", fail)
    with made.beside([("d", make("d"))]):
        pass
    with made.beside(()):  # the next batch is another one
        pass
    assert made.take("d", make("anew")) == {"name": "anew"}


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "ROOM", 100)
    made = Ahead()
    with made.beside([(number, lambda: torch.zeros(20)) for number in range(5)]):  # 80 bytes each
        pass
    assert list(made._made) == [0, 1]
