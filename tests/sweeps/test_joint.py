"""The protocols whose points are measured at several conditions: fronts by hand, choices, figures, refusals."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tdrs import backbones, evaluation, plot
from tdrs.analysis import report, tradeoff, transfer
from tdrs.analysis.study_results import load_study
from tdrs.benchmarks import Record
from tdrs.interventions.tdrs import TDRS
from tdrs.kept import Kept
from tdrs.results import check_same_samples
from tdrs.settings import SettingError
from tdrs.statistics import holm, paired_difference, sign_flip
from tdrs.study_dashboard import view
from tdrs.sweeps.joint import Point
from tdrs.sweeps.study import Study
from tdrs.sweeps.tradeoff import pareto_front, thinned
from tdrs.sweeps.transfer import chosen_points
from tdrs.sweeps.trial import FAILED, Outcome, Trial
from tdrs.tracking import Tracker

from . import pretend
from .pretend import configuration

METHODS = {
    "edit": {
        "intervention": "tdrs",
        "intervention.gain": "weights",
        "tune": {"intervention.dc.weight": {"low": 0.01, "high": 5, "log": True}},
    },
    "temperature": {"intervention": "temperature", "tune": {"intervention.tau": {"low": 0.2, "high": 0.9}}},
}
OBJECTIVES = [{"metric": "accuracy", "at": {"dataset.gap": 5}}, {"metric": "kl", "at": {"dataset.gap": 0}}]


def front_study(output: Path, **search: Any) -> Study:
    given: dict[str, Any] = {"axes": {"dataset.gap": [5, 0]}, "objectives": OBJECTIVES, "methods": METHODS}
    config = configuration(output, "search=tradeoff", **given | {"budget": 6, "front": 3} | search)
    return Study(config, Tracker("none", output))


def matrix_study(output: Path, **search: Any) -> Study:
    given: dict[str, Any] = {"axes": {"dataset": ["mini_pope", "mini_scienceqa"]}, "methods": METHODS}
    return Study(configuration(output, "search=transfer", **given | {"budget": 5} | search), Tracker("none", output))


def test_fronts_by_hand() -> None:
    directions = ("maximize", "minimize")
    assert pareto_front([(1, 5), (2, 6), (2, 5), (0, 1), (2, 5), (-1, 1)], directions) == [2, 3]
    assert pareto_front([(1, 5), (2, 6)], directions) == [0, 1]
    assert pareto_front([(1, 5), (2, 6)], ("minimize", "minimize")) == [0]
    assert pareto_front([(1, 1, 3), (1, 2, 2), (1, 2, 3), (0, 0, 0)], ("maximize", "minimize", "minimize")) == [0, 1, 3]
    assert pareto_front([], directions) == []
    assert thinned([0.4, 0.5, 0.6], 3) == [0, 1, 2]
    assert thinned([0, 1, 1.5, 2, 7, 9, 10], 3) == [0, 4, 6]  # 7 is nearest to 5
    assert thinned([3, 9, 6], 1) == [1]


def test_a_point_is_compared_with_the_next_temperature_that_costs_as_much(tmp_path: Path) -> None:
    """By values of the tuning split: accuracy to gain, divergence as its cost."""
    search = front_study(tmp_path).protocol
    heat = {"temperature, point 1": [0.5, 0.1], "temperature, point 2": [0.6, 0.3], "temperature, point 3": [0.7, 0.9]}
    for costs, beside in ((0.05, 1), (0.1, 1), (0.2, 2), (0.9, 3), (2.0, 3)):
        tuned = heat | {"edit, point 1": [0.65, costs]}
        assert tradeoff._beside("edit, point 1", tuned, ["temperature"], search) == f"temperature, point {beside}"
    assert tradeoff._beside("edit, point 1", {"edit, point 1": [0.65, 0.1]}, [], search) == "stock"


def bernoulli(first: float, second: float) -> float:
    """KL of two coins whose log-odds are given."""
    p, q = (1 / (1 + math.exp(-odds)) for odds in (first, second))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_a_front_is_chosen_on_the_tuning_split_and_drawn_from_the_held_out_one(
    tmp_path: Path, pretended: list[str]
) -> None:
    study = front_study(tmp_path)
    outcome = study.run()
    rows = {(row.name, row.condition["dataset.gap"]): row for row in outcome.rows}
    assert [row.name for row in outcome.rows[:2]] == ["stock", "edit, point 1"]
    assert {row.split for row in outcome.rows} == {"held_out"}

    def read(name: str, gap: int) -> list[Record]:
        return study.records.read(rows[name, gap].cache_key).records

    for name, settings in METHODS.items():
        points = [trial for trial in outcome.trials if trial.name == name]
        assert len(points) == 2 * 6
        assert {trial.split for trial in points} == {"tuning"}
        near, far = ([t for t in points if t.condition["dataset.gap"] == gap] for gap in (0, 5))
        values = [(one.score, other.kl) for one, other in zip(far, near, strict=True)]
        best = pareto_front(values, ("maximize", "minimize"))
        chosen = sorted((values[number][1], number) for number in best)
        kept = [chosen[at][1] for at in thinned([values[number][0] for _, number in chosen], 3)]
        reported = [rows[f"{name}, point {number}", 5].settings for number in range(1, len(kept) + 1)]
        assert reported == [far[number].settings for number in kept]
        assert all(one["intervention"] == settings["intervention"] for one in reported)

    found = tradeoff.fronts(outcome, study.records)
    assert list(found.methods) == ["temperature", "edit"]  # it is drawn first, beneath
    assert [one.metric for one in found.measures] == ["accuracy", "kl", "accuracy"]
    raw, drawn = [], [one for points in found.methods.values() for one in points]
    assert all("gain=weights dc.weight=" in one.settings for one in found.methods["edit"])
    for one in drawn:
        row = rows[one.name, 5]
        assert row.difference is not None
        assert one.values[0].value == pytest.approx(row.difference[0])
        before, after = read("stock", 0), read(one.name, 0)
        check_same_samples(before, after, "test")
        odds = [(first.margin, second.margin) for first, second in zip(before, after, strict=True)]
        by_hand = sum(bernoulli(*pair) for pair in odds) / len(odds)
        assert one.values[1].value == pytest.approx(by_hand, abs=1e-5)
        assert rows[one.name, 0].kl == pytest.approx(by_hand, abs=1e-5)
        assert one.values[1].low < by_hand < one.values[1].high
        if one.method == "temperature":
            assert (one.beside, one.verdict) == ("", "")
            continue
        first, second = ([r.score for r in read(name, 5)] for name in (one.beside, one.name))
        images = [r.image_id for r in read("stock", 5)]
        assert one.gain == pytest.approx(paired_difference(first, second, images))
        raw.append(sign_flip(first, second, images))
    assert [one.p_holm for one in drawn if one.beside] == pytest.approx(holm(raw))

    page, written = report.report_study(outcome, study.records, study.folder)
    assert page.answers[-1].startswith("Each point is compared with the temperature's point")
    assert {"tradeoff.png", "tradeoff.svg", "tradeoff.md"} <= {path.name for path in study.folder.iterdir()}
    html = written[0].read_text()
    assert html.count("<figure>") == 1
    assert page.answers[0].split(":")[0] in html
    again = front_study(tmp_path)
    assert again.planned == {}  # a plan knows the divergences, too
    assert again.run() == outcome
    assert tradeoff.main(["study=small", f"output={tmp_path}"]) == 0

    # Optuna's dashboard shows a trial a point, with both objectives
    shown = view(Kept(tmp_path, "small"))
    assert [one.name for one in shown.get_study_directions(0)] == ["MAXIMIZE", "MINIMIZE"]
    assert shown.get_study_system_attrs(0)["study:metric_names"] == ["accuracy at gap 5", "kl at gap 0"]
    trials = shown.get_all_trials(0)
    assert [one.params["method"] for one in trials] == ["edit"] * 6 + ["temperature"] * 6
    assert [tuple(one.values) for one in trials[6:]] == values
    assert [one.params["intervention.tau"] for one in trials[6:]] == [t.settings["intervention.tau"] for t in far]
    drawn_ = plot.tradeoff(load_study("small", tmp_path))
    assert len(drawn_.axes) == len(found.measures) - 1


def test_several_conditions_of_an_objective_are_averaged(tmp_path: Path, pretended: list[str]) -> None:
    axes = {"dataset": ["mini_pope", "mini_scienceqa"], "dataset.gap": [0, 5]}
    one = {"metric": "margin", "at": {"dataset.gap": 5}}
    outcome = front_study(tmp_path, axes=axes, objectives=[one, {"metric": "accuracy"}, {"metric": "kl"}]).run()
    found = tradeoff.fronts(outcome, Study(outcome.config, Tracker("none", tmp_path)).records)
    assert [one.metric for one in found.measures] == ["margin", "accuracy", "kl"]
    point = found.methods["edit"][0]
    own = [row for row in outcome.rows if row.name == point.name]
    assert len(own) == 4
    changes = [row.difference[0] for row in own if row.difference]
    assert point.values[1].value == pytest.approx(sum(changes) / 4)
    assert point.values[2].value == pytest.approx(sum(row.kl for row in own) / 4)


def test_conditions_have_equal_weight_whatever_their_sizes() -> None:
    """Two samples at one condition, all right, and six at the other, none right."""
    kept = {"a" * 16: (2, 1.0), "b" * 16: (6, 0.0)}

    class Store:
        def read(self, cache_key: str) -> Any:
            number, score = kept[cache_key]
            return SimpleNamespace(records=[record(at, score) for at in range(number)])

    def record(at: int, score: float) -> Record:
        return Record(str(at), str(at), "", "", "", "", score, 0.0, "", 1.0)

    rows = [Trial("m", "held_out", {"dataset": key}, {}, key, n, seconds=1.0) for key, (n, _) in kept.items()]
    after = tradeoff._samples(rows, Store(), {})  # type: ignore[arg-type]
    assert after is not None
    before = after._replace(records=[replace(one, score=0.0) for one in after.records])
    assert tradeoff._measured("accuracy", before, after).value == pytest.approx(0.5)


def test_a_method_that_fails_has_no_front(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretend.run_batches

    def some_fail(backbone: Any, benchmark: Any, samples: Any, method: Any, *rest: Any, **more: Any) -> Any:
        if isinstance(method, TDRS):
            raise RuntimeError("the GPU fell off")
        return asked(backbone, benchmark, samples, method, *rest, **more)

    monkeypatch.setattr(evaluation, "run_batches", some_fail)
    study = front_study(tmp_path)
    outcome = study.run()
    assert {trial.name for trial in outcome.failures} == {"edit"}
    assert {row.name.split(",")[0] for row in outcome.rows} == {"stock", "temperature"}
    assert list(tradeoff.fronts(outcome, study.records).methods) == ["temperature"]


def test_a_margin_that_was_not_measured_is_no_objective(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretend, "margin", lambda *_: math.nan)
    with pytest.raises(SettingError, match=r"search.objective = 'margin': was not measured: a sample has no gold"):
        front_study(tmp_path, objectives=[{"metric": "margin"}, {"metric": "kl"}]).run()


def test_old_records_have_no_divergence_and_are_named_where_it_is_needed(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretend, "compact", lambda logs: "")
    compared = configuration(tmp_path, "search=compare", axes={"dataset.gap": [0]})
    compared["search"]["methods"] = {"sharper": {"intervention": "temperature", "intervention.tau": 0.3}}
    assert Study(compared, Tracker("none", tmp_path)).run().rows[1].kl is None
    with pytest.raises(SettingError, match=r"search.objectives = 'kl': the records [0-9a-f]{16} or the stock model's"):
        front_study(tmp_path).run()


def test_each_condition_chooses_among_the_same_points(tmp_path: Path, pretended: list[str]) -> None:
    study = matrix_study(tmp_path)
    outcome = study.run()
    names = ["mini_pope", "mini_scienceqa"]
    for method in METHODS:
        trials = {
            name: [t for t in outcome.trials if t.name == method and t.condition["dataset"] == name] for name in names
        }
        assert [t.settings for t in trials["mini_pope"]] == [t.settings for t in trials["mini_scienceqa"]]
        points = [Point({}, list(pair)) for pair in zip(*trials.values(), strict=True)]
        for source, number in zip([*names, "all"], chosen_points(points), strict=True):
            own_rows = [row for row in outcome.rows if row.name == f"{method}, tuned on {source}"]
            assert [row.condition["dataset"] for row in own_rows] == names
            assert all(row.settings == points[number].trials[0].settings for row in own_rows)
            assert all(row.budget == 5 for row in own_rows)

    found = transfer.matrices(outcome, study.records)
    assert [matrix.method for matrix in found] == list(METHODS)
    rows = {(row.name, row.condition["dataset"]): row for row in outcome.rows}
    raw, kept = [], []
    for matrix in found:
        assert list(matrix.cells) == [(source, target) for source in [*names, "all"] for target in names]
        for (source, target), cell in matrix.cells.items():
            row, own = (rows[f"{matrix.method}, tuned on {name}", target] for name in (source, target))
            assert cell.to_stock == pytest.approx(row.difference)
            if source == target:
                assert cell.to_own is None
                continue
            assert cell.to_own is not None
            assert cell.to_own.value == pytest.approx(row.score - own.score)
            assert cell.same == (row.cache_key == own.cache_key)
            before, after = (study.records.read(one.cache_key).records for one in (own, row))
            first, second = ([r.score for r in part] for part in (before, after))
            raw.append(sign_flip(first, second, [r.image_id for r in before], [r.weight for r in before]))
            kept.append(cell.p_own)
    assert kept == pytest.approx(holm(raw))

    page, written = report.report_study(outcome, study.records, study.folder)
    assert len(page.answers) == 2 * (2 + 1)
    assert "mini_pope" in written[0].read_text()
    assert {"transfer.png", "transfer.svg", "transfer.md"} <= {path.name for path in study.folder.iterdir()}
    assert matrix_study(tmp_path).planned == {}
    assert transfer.main(["study=small", f"output={tmp_path}"]) == 0
    assert len(plot.transfer(load_study("small", tmp_path)).axes) == len(METHODS)
    with pytest.raises(SettingError, match="study = 'small': has the protocol transfer, and no front"):
        tradeoff.fronts(outcome, study.records)


def point(*scores: float | None) -> Point:
    made = [Trial("m", "tuning", {}, {}, "0" * 16, 8, {} if s is None else {"accuracy": s}) for s in scores]
    return Point({}, [one if one.metrics else Trial(**vars(one) | {"status": FAILED}) for one in made])


def test_choices_by_hand() -> None:
    """The best of each condition, then the best mean; the earliest of equals; none that failed."""
    points = [point(0.5, 0.5), point(0.9, 0.1), point(0.2, 0.8), point(0.5, 0.8), point(0.9, 0.4)]
    assert chosen_points(points) == [1, 2, 3]
    assert chosen_points([point(None, 0.9), point(0.3, 0.2), point(0.1, 0.3)]) == [1, 0, 1]


@pytest.mark.parametrize(
    ("make", "changed", "said"),
    [
        (front_study, {"objectives": OBJECTIVES[:1]}, r"search.objectives = .*: must be at least two"),
        (
            front_study,
            {"objectives": [{"metric": "f1"}] * 2},
            r"search.objectives\[0\].metric = 'f1': must be one of",
        ),
        (
            front_study,
            {"objectives": OBJECTIVES[::-1]},
            r"search.objectives\[0\].metric = 'kl': is what is gained: must be one of accuracy, margin",
        ),
        (front_study, {"objectives": [OBJECTIVES[0]] * 2}, r"search.objectives\[1\] = .*: is there twice"),
        (front_study, {"objectives": ["kl", "time"]}, r"search.objectives\[0\].settings = 'kl': must be a group"),
        (
            front_study,
            {"objectives": [OBJECTIVES[0], {"metric": "kl", "at": {"dataset.gap": 7}}]},
            r"search.objectives\[1\].at = {'dataset.gap': 7}: is at none of the conditions of search.axes",
        ),
        (front_study, {"front": 0}, "search.front = 0: must be a whole number of at least 1"),
        (front_study, {"axes": {"dataset.gap": [5]}}, "search.axes = .*: must give at least two conditions"),
        (matrix_study, {"axes": {"dataset.gap": [5, 5]}}, "search.axes.dataset.gap = .*: 5 and 5 measure the same"),
        (
            matrix_study,
            {"methods": {"m": {"intervention": "pai"}}},
            "search.methods.m = .*: must have a space",
        ),
        (matrix_study, {"methods": {}}, "search.methods = {}: must have at least one method"),
        (matrix_study, {"sampler": "tpe"}, "search.sampler = 'tpe': must be qmc or random: all conditions choose"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, changed: Any, said: str
) -> None:
    monkeypatch.setattr(backbones, "load", lambda *a: pytest.fail("loaded"))
    with pytest.raises(SettingError, match=said):
        make(tmp_path, **changed)
    assert not list(tmp_path.iterdir())


def test_a_study_without_a_measured_row_has_no_figure(tmp_path: Path) -> None:
    empty = Outcome("t", "tradeoff", {}, [], [Trial("m", "held_out", {}, {}, "0" * 16, 8, status=FAILED)])
    assert report.write_answers(empty, None, tmp_path) == ([], [])
