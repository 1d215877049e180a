"""A bias on the stock model's log-odds of yes: the answers it moves, how it is chosen, and the rows of the table."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tdrs.analysis import answer_bias, evidence, report, tables
from tdrs.analysis.answer_bias import biased, fixed_answers, matched_bias, tuned_bias, yes_rate
from tdrs.benchmarks.benchmark import mean_score
from tdrs.benchmarks.yes_no import roc_area, yes_margins
from tdrs.records import Records
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker

from ..benchmarks.test_yes_no import drawn, made
from ..sweeps.pretend import configuration


def test_a_bias_moves_answers_whose_log_odds_cross_zero() -> None:
    records = made([-2.0, -0.5, 0.5, 2.0], "yyyn")
    assert biased(records, 0.0) == records
    said = {bias: "".join(one.answer[0] for one in biased(records, bias)) for bias in (-3.0, -1.0, 1.0, 3.0)}
    assert said == {-3.0: "nnnn", -1.0: "nnny", 1.0: "nyyy", 3.0: "yyyy"}
    after = biased(records, 1.0)
    assert [one.score for one in after] == [0, 1, 1, 0]
    assert list(yes_margins(after)) == [-1.0, 0.5, 1.5, 3.0]
    assert roc_area(after) == roc_area(records)


def test_answers_that_no_bias_can_change() -> None:
    records = made([-1.0, -1.0, -1.0, 1.0], "yyyy")
    records[0] = replace(records[0], answer="", prediction="maybe")
    records[1] = replace(records[1], answer="yes", score=1.0)  # against its log-odds
    records[2] = replace(records[2], margin=math.nan)
    assert fixed_answers(records) == 3
    for bias in (-9.0, 9.0):
        after = biased(records, bias)
        assert [one.answer for one in after[:3]] == ["", "yes", "no"]
        assert [one.score for one in after[:3]] == [0, 1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_the_biases_are_the_best_of_all(seed: int) -> None:
    """Against a search over many biases, with weights, ties, and answers that cannot change."""
    rng = np.random.default_rng(seed)
    records = [replace(one, weight=float(rng.integers(1, 4))) for one in drawn(45, seed)]
    records[3] = replace(records[3], answer="", score=0.0)
    tried = np.arange(-5, 5, 0.025)
    accuracies = [mean_score(biased(records, bias)) for bias in tried]
    found = tuned_bias(records)
    assert mean_score(biased(records, found)) == pytest.approx(max(accuracies))
    nearer = [a for a, bias in zip(accuracies, tried, strict=True) if abs(bias) < abs(found) - 0.1]
    assert all(a < max(accuracies) - 1e-9 for a in nearer)
    rate = 0.7
    off = min(abs(yes_rate(biased(records, bias)) - rate) for bias in tried)
    assert abs(yes_rate(biased(records, matched_bias(records, rate))) - rate) == pytest.approx(off)


def test_no_bias_among_equals_is_none() -> None:
    assert tuned_bias(made([-1.0, 1.0], "ny")) == 0
    assert tuned_bias(made([1.0, 2.0], "yn")) == 0  # 0, and one that takes both for no, are right once
    assert tuned_bias(made([-2.0, -1.0, -3.0], "yyn")) == 2.5


AXES = {"dataset": ["mini_pope", "mini_scienceqa"]}


def test_rows_of_a_study_with_and_without_tuning_records(tmp_path: Path, pretended: list[str]) -> None:
    space = {"intervention.tau": [0.3, 1.0]}
    config = configuration(tmp_path, "search=grid", "intervention=temperature", axes=AXES, space=space)
    config["preset"] = {"tuning": 30, "held_out": 40}
    outcome, records = Study(config, Tracker("none", tmp_path)).run(), Records(tmp_path / "records")
    found = evidence.compare_rows(outcome, records)
    controls = answer_bias.controls(outcome, records, found)
    ((condition, control),) = controls.items()
    assert "mini_pope" in condition
    stock = next(one.trial for one in found if one.condition == condition)
    tuning = next(one for one in outcome.trials if one.name == "stock" and one.condition == stock.condition)
    before = records.read(stock.cache_key).records
    chosen_on = records.read(tuning.cache_key).records
    bias = tuned_bias(chosen_on)
    assert control.bias == bias
    rows = tables.table_rows(outcome, found, controls)
    row = next(one for one in rows if one.name == answer_bias.NAME)
    assert row.value[0] == pytest.approx(100 * mean_score(biased(before, bias)))
    assert row.difference is not None
    assert row.difference[0] == pytest.approx(row.value[0] - 100 * mean_score(before))
    assert [one.measure for one in rows if one.name == answer_bias.NAME][1:] == ["F1", "balanced accuracy", "ROC area"]
    matched = [one for one in rows if one.measure == answer_bias.MATCHED]
    for one in matched:
        own = next(row for row in rows if (row.condition, row.name, row.measure) == (condition, one.name, "accuracy"))
        assert one.difference is not None
        assert one.difference[0] == pytest.approx(own.value[0] - one.value[0])
    assert len(matched) == sum(one.condition == condition for one in found) - 1
    page = report.study_report(outcome, records, tmp_path / "studies" / "small")
    said = f"{bias:+.3f} nats on the log-odds of yes, chosen on n = {len(chosen_on)} tuning records"
    assert any(said in note for note in page.notes)
    assert answer_bias.NAME in tables.markdown(page.rows)
    left = answer_bias.controls(replace(outcome, trials=[]), records, found)[condition]
    assert "was not measured on the tuning split" in left.missing
    assert left.notes[0] == left.missing
    assert left.matches == control.matches


def test_a_comparison_measures_the_stock_model_on_the_tuning_split(tmp_path: Path, pretended: list[str]) -> None:
    """It does where answers are yes or no and a method is tuned, so that the row with the tuned bias is there."""
    methods = {"tuned": {"intervention": "temperature", "tune": {"intervention.tau": [0.3, 1.0]}}}
    config = configuration(tmp_path, "search=compare", axes=AXES, methods=methods, budget=2)
    config["preset"] = {"tuning": 30, "held_out": 40}
    outcome, records = Study(config, Tracker("none", tmp_path)).run(), Records(tmp_path / "records")
    stock = [one for one in outcome.trials if one.name == "stock"]
    assert [one.condition["dataset"] for one in stock] == ["mini_pope"]
    (control,) = answer_bias.controls(outcome, records, evidence.compare_rows(outcome, records)).values()
    assert control.bias == tuned_bias(records.read(stock[0].cache_key).records)
