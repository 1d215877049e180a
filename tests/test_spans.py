"""The division of an evaluation's time: nothing is counted twice, other threads do not count, nothing is kept on."""

import threading
import time
from dataclasses import replace

import pytest

from tdrs import Stock, benchmarks, spans
from tdrs.backbones import Backbone
from tdrs.backbones.prompt_encoder import TokenCache
from tdrs.evaluation import evaluate
from tdrs.spans import DECODER, PARTS, PREPARING, TOWER, measured, span


def test_a_span_within_another_counts_for_the_inner_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    with measured() as division:  # every look at the clock is 10 s after the one before
        with span(TOWER), span(PREPARING):
            pass
        with span(DECODER):
            pass
    assert division.seconds == {**dict.fromkeys(PARTS, 0.0), TOWER: 20.0, PREPARING: 10.0, DECODER: 10.0}
    assert division.idle == pytest.approx(1 - 30 / division.whole)


def test_other_threads_and_errors() -> None:
    with measured() as division:
        other = threading.Thread(target=span(PREPARING)(lambda: time.sleep(0.01)))
        other.start()
        other.join()
        with pytest.raises(ZeroDivisionError), span(TOWER):
            _ = 1 / 0
    assert division.seconds[PREPARING] == 0 < division.seconds[TOWER]
    with span(PREPARING):  # nobody measures
        pass
    assert division.seconds[PREPARING] == 0
    assert spans._measuring is None


def test_an_evaluation_divides(mini_llava: Backbone) -> None:
    samples = benchmarks.load(benchmark := benchmarks.from_settings({"name": "mini_pope", "gap": 3}), "tuning", 4)
    with measured() as division:
        evaluate(replace(mini_llava, tokens=TokenCache()), benchmark, samples, Stock(), batch_size=4)
    assert all(division.seconds[part] > 0 for part in (PREPARING, TOWER, DECODER))
    assert sum(division.seconds.values()) < division.whole
    assert 0 < division.idle < 1
