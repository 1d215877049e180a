"""A bias on the stock model's log-odds of yes: the answers it moves, how it is chosen, and the rows of the table."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdrs import evaluation
from tdrs.analysis import answer_bias, distance, evidence, report, summary, tables, tradeoff
from tdrs.analysis.answer_bias import biased, fixed_answers, matched_bias, tuned_bias, yes_rate
from tdrs.benchmarks import Record
from tdrs.benchmarks.benchmark import mean_score
from tdrs.benchmarks.yes_no import roc_area, yes_margins
from tdrs.records import Records
from tdrs.results import Batch
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker

from ..benchmarks.test_yes_no import drawn, made
from ..sweeps import pretend
from ..sweeps.pretend import configuration
from ..sweeps.test_joint import front_study, matrix_study


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
    controls = answer_bias.controls(outcome, records)
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
    left = answer_bias.controls(replace(outcome, trials=[]), records)[condition]
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
    (control,) = answer_bias.controls(outcome, records).values()
    assert control.bias == tuned_bias(records.read(stock[0].cache_key).records)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, pretended: list[str]) -> None:
    """Wrong answers are the other one of yes and no, so that a bias can move them."""

    def wrong(record: Record) -> Record:
        other = {"yes": "no", "no": "yes"}.get(record.gold)
        return record if record.score or other is None else replace(record, answer=other, prediction=other)

    def run_batches(*given: Any, **more: Any) -> Iterator[Batch]:
        for batch in pretend.run_batches(*given, **more):
            yield replace(batch, records=[wrong(one) for one in batch.records])

    monkeypatch.setattr(evaluation, "run_batches", run_batches)


def points(text: str) -> str:
    return text.replace("−", "-")


def test_tables_beside_the_figures_have_the_control(tmp_path: Path, said: None) -> None:
    """The printed summary, the comparison and the table of distance: below the stock model, and below each method."""
    methods = {"tuned": {"intervention": "temperature", "tune": {"intervention.tau": [0.3, 1.0]}}}
    for axes in ({"dataset": ["mini_pope", "mini_gqa"]}, {"dataset": ["mini_pope"], "dataset.gap": [0, 8]}):
        config = configuration(tmp_path / str(len(axes)), "search=compare", axes=axes, methods=methods, budget=2)
        config["preset"] = {"tuning": 60, "held_out": 60}
        study = Study(config, Tracker("none", tmp_path))
        outcome = study.run()
        page, _ = report.report_study(outcome, study.records, study.folder)
        controls = answer_bias.controls(outcome, study.records)
        assert page.controls == controls
        assert len(controls) == len(axes.get("dataset.gap", [0]))
        lines = summary.table(outcome, page.controls)
        without = [line.split() for line in summary.table(outcome)]
        assert [words for words in map(str.split, lines) if words in without] == without
        printed = summary.description(outcome, study.records)
        tables_ = {name: study.folder / f"{name}.md" for name in ("comparison", "distance")}
        for control in controls.values():
            assert control.accuracy is not None
            assert control.paired is not None
            assert control.bias
            tuned = "{:.3f} [{:.3f}, {:.3f}]".format(*control.accuracy)
            change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*control.paired.difference)
            match = control.matches["tuned"]
            matched = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*match.difference)
            own, *_ = [line for line in lines if line.strip().startswith(answer_bias.NAME) and tuned in line]
            assert change in own
            own, *_ = [line for line in lines if line.endswith(answer_bias.MATCHED) and matched in line]
            assert f"{match.accuracy.value:.3f}" in own
            assert own in printed
            if "dataset.gap" in axes:
                text = tables_["distance"].read_text()
                rows = [line for line in text.splitlines() if line.startswith(f"| — {answer_bias.NAME}")]
                assert [tuned in line for line in rows] == [True]
                rows = [line for line in text.splitlines() if distance.BESIDE in line]
                assert [matched in line for line in rows] == [True]
            else:
                text = tables_["comparison"].read_text()
                assert f"| | {answer_bias.NAME} | 60 | {control.accuracy.value:.3f} | {change} |" in text
                assert f"| | {answer_bias.MATCHED} | 60 | {match.accuracy.value:.3f} | {matched} |" in text
                assert text.count(answer_bias.MATCHED) == 1


def test_tables_of_several_conditions_have_the_control(tmp_path: Path, said: None) -> None:
    """The table of `transfer`, and that of `tradeoff`, whose measures pool conditions."""
    matrix = matrix_study(tmp_path)
    outcome = matrix.run()
    report.report_study(outcome, matrix.records, matrix.folder)
    (control,) = answer_bias.controls(outcome, matrix.records).values()
    lines = [line for line in (matrix.folder / "transfer.md").read_text().splitlines() if line.startswith("|")]
    assert lines[0].endswith("| to stock at this yes-rate |")
    parts = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert len(parts) == 2 * 3 * 2 + 1
    *cells, bias = parts
    for method, source, _, target, *numbers in cells:
        match = control.matches[f"{method}, tuned on {source}"]
        shown = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in match.difference))
        assert points(numbers[-1]) == (shown if target == "mini_pope" else "")
    assert control.accuracy is not None
    assert bias[:5] == [answer_bias.NAME, "", "", "mini_pope", f"{100 * control.accuracy.value:.1f}"]

    front = front_study(tmp_path, axes={"dataset": ["mini_pope"], "dataset.gap": [5, 0]}, objectives=OBJECTIVES_OF_ALL)
    outcome = front.run()
    report.report_study(outcome, front.records, front.folder)
    found = tradeoff.fronts(outcome, front.records)
    rows = {(row.name, row.condition["dataset.gap"]): row for row in outcome.rows}

    def pooled(name: str, gaps: tuple[int, ...]) -> float:
        each = [[front.records.read(rows[one, gap].cache_key).records for one in ("stock", name)] for gap in gaps]
        moved = [(biased(a, matched_bias(a, yes_rate(b))), b) for a, b in each]
        return sum(mean_score(b) - mean_score(a) for a, b in moved) / len(moved)

    for some in found.methods.values():
        for one in some:
            gained, divergence, cost = one.at_yes_rate
            assert divergence is None
            assert gained is not None
            assert cost is not None
            assert gained.value == pytest.approx(pooled(one.name, (5, 0)))
            assert cost.value == pytest.approx(pooled(one.name, (0,)))
    text = (front.folder / "tradeoff.md").read_text()
    assert text.count("at this yes-rate") == 2
    assert any(found.bias) == (f"| {answer_bias.NAME} |" in text)


OBJECTIVES_OF_ALL = [{"metric": "accuracy"}, {"metric": "kl", "at": {"dataset.gap": 0}}]
