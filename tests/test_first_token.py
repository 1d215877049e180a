"""The short form of a first token's distribution, and the divergence of two, against values by hand."""

import json
import math

import numpy as np
import pytest
import torch

from tdrs import benchmarks
from tdrs.backbones import Backbone
from tdrs.evaluation import evaluate
from tdrs.first_token import MOST, compact, divergence
from tdrs.interventions import Stock, Temperature
from tdrs.results import divergences, weighted_mean


def short(*probabilities: float) -> str:
    with np.errstate(divide="ignore"):
        return compact(np.log(probabilities))


def exact(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sum(np.exp(first) * (first - second)))


def test_the_short_form_has_the_likely_tokens_and_the_rest() -> None:
    assert json.loads(short(0.25, 0.75)) == [[1, 0], [-0.2876821, -1.386294], None]
    assert json.loads(short(0, 1, 0)) == [[1], [0.0], None]  # excluded tokens have no probability
    many = json.loads(compact(np.full(100, -math.log(100))))
    assert len(many[0]) == MOST
    assert math.exp(many[2]) == pytest.approx(1 - MOST / 100)


def test_divergences_by_hand() -> None:
    assert divergence(short(0.5, 0.5), short(0.25, 0.75)) == (
        pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    )
    assert divergence(short(0.25, 0.75), short(0.5, 0.5)) == pytest.approx(
        0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), abs=1e-6
    )
    assert divergence(short(0.2, 0.8), short(0.2, 0.8)) == 0
    assert divergence(short(1, 0, 0), short(0.5, 0.25, 0.25)) == pytest.approx(
        math.log(2), abs=1e-6
    )  # all others are one
    # two tokens that only one model keeps are compared as one
    assert divergence("[[0,1],[-0.6931472,-1.386294],-1.386294]", "[[0,2],[-1.386294,-0.6931472],-1.386294]") == (
        pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75), abs=1e-6)
    )


@pytest.mark.parametrize(("first", "second"), [("", "[[0],[0.0],null]"), ("[[0],[0.0],null]", ""), ("", "")])
def test_what_was_not_kept_has_no_divergence(first: str, second: str) -> None:
    assert math.isnan(divergence(first, second))


def test_it_is_never_more_than_the_whole_and_close_to_it() -> None:
    """Data-processing inequality. Of flat distributions of 5000 tokens much is lost, of peaked ones little."""
    rng = np.random.default_rng(0)
    for scale, close in ((0.5, 0.0), (2, 0.0), (8, 0.8), (12, 0.95)):
        for _ in range(20):
            first, noise = rng.normal(scale=scale, size=5000), rng.normal(size=5000)
            logs = [values - np.logaddexp.reduce(values) for values in (first, first + noise)]
            whole, kept = exact(*logs), divergence(*map(compact, logs))
            assert close * whole <= kept <= whole + 1e-6


def test_records_of_the_embedded_model_lose_little(mini_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean divergence that is computed from records is that of the whole vocabulary, less at most 1 %."""
    benchmark = benchmarks.from_settings({"name": "mini_scienceqa", "gap": 256})
    samples = benchmarks.load(benchmark, "tuning", 16)
    whole: list[np.ndarray] = []

    def keep(logs: np.ndarray) -> str:
        whole.append(np.asarray(logs, dtype=np.float64))
        return compact(logs)

    monkeypatch.setattr("tdrs.backbones.backbone.compact", keep)
    methods = Stock(), Temperature(tau=0.7)
    stock, edited = (evaluate(mini_llava, benchmark, samples, method).records for method in methods)
    count = len(stock)
    true = [exact(before, after) for before, after in zip(whole[:count], whole[count:], strict=True)]
    found = divergences(stock, edited)
    assert np.mean(true) > 0.1
    assert weighted_mean(found, stock) == pytest.approx(np.mean(true), rel=0.01)
    assert all(kept <= value + 1e-5 for kept, value in zip(found, true, strict=True))
    assert torch.tensor([len(record.first_token) for record in stock]).float().mean() < 450
