"""Replayed searches: the table of a study, regrets by hand, and the race beside whole evaluations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdrs.analysis import searches
from tdrs.analysis.search_policies import POLICIES, race
from tdrs.analysis.search_table import Table, table_of
from tdrs.analysis.study_results import StudyResults
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.sweeps.space import Space
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import FAILED, STOCK
from tdrs.tracking import Tracker

from ..sweeps.pretend import configuration

SPACE = {
    "intervention.gain": ["logits", "weights"],
    "intervention.dc.weight": {"low": 0.01, "high": 5, "log": True, "off_at": 0},
}


def results(output: Path, *words: str, **search: Any) -> StudyResults:
    study = Study(configuration(output, *words, **search), Tracker("none", output))
    return StudyResults(study.run(), Records(output / "records"), study.folder)


@pytest.fixture
def points(tmp_path: Path, pretended: list[str]) -> StudyResults:
    return results(tmp_path, "search=points", space=SPACE, trials=30)


def test_the_table_is_what_the_records_say(points: StudyResults) -> None:
    table = table_of(points)
    trials = {t.cache_key: t for t in points.outcome.trials if t.split == "tuning" and t.name == "point"}
    assert 15 < len(table.points) == len(trials) < 30  # points without DC are one point
    frame = points.samples()
    for number, settings in enumerate(table.points):
        alike = [t for t in points.outcome.trials if t.settings == settings]
        tuning, held_out = (next(t for t in alike if t.split == split) for split in ("tuning", "held_out"))
        assert table.scores[1 + number].mean() == tuning.metrics["accuracy"]
        assert table.held_out[1 + number] == held_out.metrics["accuracy"]
        own = points.records.read(tuning.cache_key).records
        assert table.margins[1 + number].tolist() == [record.margin for record in own]
    assert set(table.images) == set(frame[frame["split"] == "tuning"]["image_id"])


def test_only_points_with_one_condition_are_a_table(tmp_path: Path, pretended: list[str]) -> None:
    grid = results(tmp_path / "a", "search=grid", space={"intervention.gain": ["logits", "weights"]}, controls={})
    two = results(tmp_path / "b", "search=points", space=SPACE, trials=3, axes={"dataset.gap": [4, 8]})
    for study in (grid, two):
        with pytest.raises(SettingError, match="study = 'small': must be of the protocol points, with one condition"):
            table_of(study)


def table(seed: int = 0, points: int = 60) -> Table:
    """Points whose accuracy rises with their weight."""
    rng = np.random.default_rng(seed)
    space = Space.of({"intervention.dc.weight": {"low": 0.01, "high": 1, "log": True}}, "space")
    weights = np.sort(np.exp(rng.uniform(np.log(0.01), 0, points)))
    share = np.concatenate([[0.3], np.linspace(0.2, 0.7, points)])
    margins = 5 * (share[:, None] - rng.random(256)[None])
    settings = [{"intervention.dc.weight": float(weight)} for weight in weights]
    return Table(space, settings, (margins > 0).astype(float), margins, np.arange(256) // 2, np.ones(256), share)


def test_an_order_moves_whole_images_and_keeps_each_points_numbers() -> None:
    first = table()
    other = first.shuffled(np.random.default_rng(1))
    assert (other.images[::2] == other.images[1::2]).all()
    assert other.images.tolist() != first.images.tolist()
    assert other.points != first.points
    for number in (0, 7, 59):
        at = first.points.index(other.points[number])
        assert other.held_out[1 + number] == first.held_out[1 + at]
        assert other.scores[1 + number].mean() == first.scores[1 + at].mean()
    assert other.regret(other.points.index(first.points[59])) == 0
    assert other.regret(other.points.index(first.points[0])) == pytest.approx(0.5)


def test_a_table_is_read_as_it_was_saved(tmp_path: Path) -> None:
    saved = table()
    saved.save(tmp_path / "table.npz")
    found = Table.load(tmp_path / "table.npz")
    assert found.points == saved.points
    assert found.space == saved.space
    for name in ("scores", "images", "weights", "held_out"):
        np.testing.assert_array_equal(getattr(found, name), getattr(saved, name))
    np.testing.assert_allclose(found.margins, saved.margins, rtol=1e-3, atol=1e-3)
    (tmp_path / "other.npz").write_text("no table")
    with pytest.raises(SettingError, match=r"table = '.*other.npz': must be a file that"):
        Table.load(tmp_path / "other.npz")


def test_whole_evaluations_give_the_best_of_those_measured() -> None:
    shuffled = table().shuffled(np.random.default_rng(2))
    means, size = shuffled.tuning, len(shuffled.images)
    found = POLICIES["random"](shuffled, 0, 20 * size)
    assert found == [((n + 1) * size, int(means[: n + 1].argmax())) for n in range(20)]


@pytest.mark.parametrize("name", POLICIES)
def test_a_search_keeps_to_its_budget_and_improves(name: str) -> None:
    if name == "CMA-ES":
        pytest.importorskip("cmaes")
    shuffled, budget = table().shuffled(np.random.default_rng(2)), 14 * 256
    found = POLICIES[name](shuffled, 0, budget)
    spent = [samples for samples, _ in found]
    assert spent == sorted(spent)
    assert 0 < spent[-1] <= budget
    assert found == POLICIES[name](shuffled, 0, budget)
    means = shuffled.tuning if name != "pruned TPE" else shuffled.margins[1:].mean(axis=1)
    chosen = [means[number] for _, number in found]
    assert chosen == sorted(chosen)
    assert shuffled.regret(found[-1][1]) < 0.12  # of 0.5


def test_pruning_measures_more_points_within_a_budget() -> None:
    shuffled, budget = table().shuffled(np.random.default_rng(2)), 14 * 256
    for name in ("ASHA", "Hyperband", "pruned TPE"):
        spent = [samples for samples, _ in POLICIES[name](shuffled, 0, budget)]
        steps = np.diff(spent)
        assert (steps % 32 == 0).all()
        assert steps.min() < 256


def test_the_race_is_within_its_budget() -> None:
    shuffled = table().shuffled(np.random.default_rng(2))
    ((spent, number),) = race(shuffled, 0, 12 * 256)
    assert spent <= 12 * 256
    assert shuffled.regret(number) < 0.03


@pytest.mark.parametrize("margin", [-9.0, np.nan])
def test_a_search_without_a_choice_has_no_regret(margin: float) -> None:
    """The stock model is better than every point, or margins were not measured."""
    found = table(points=8)
    margins = found.margins.copy()
    margins[1:] = margin
    policies = {name: POLICIES[name] for name in ("random", "pruned TPE")}
    regrets = searches.regrets_of(found._replace(margins=margins), 0, policies)
    assert np.isnan(regrets["pruned TPE"]).all()
    assert np.isfinite(regrets["random"][:3]).all()
    (curve,) = [c for c in searches.regret_curves(found._replace(margins=margins), 2, 1, policies) if "TPE" in c.name]
    assert curve.samples == []


def test_a_table_needs_the_stock_model_and_a_point(points: StudyResults) -> None:
    trials = points.outcome.trials
    for name, said in ((STOCK, "the stock model failed on a split"), ("point", "no point was measured on both splits")):
        left = [replace(trial, status=FAILED) if trial.name == name else trial for trial in trials]
        failed = StudyResults(replace(points.outcome, trials=left), points.records, points.folder)
        with pytest.raises(SettingError, match=f"study = 'small': cannot be a table: {said}"):
            table_of(failed)


def test_curves_are_quantiles_over_orders() -> None:
    cheap = {"random": POLICIES["random"]}
    found = [table().shuffled(np.random.default_rng(seed)) for seed in range(3)]
    first = [one.regret(POLICIES["random"](one, 0, 256)[0][1]) for one in found]
    curves = {curve.name: curve for curve in searches.regret_curves(table(), 3, 1, cheap)}
    assert curves["random"].median[0] == np.median(first)
    assert curves["random"].mean[0] == pytest.approx(np.mean(first))
    assert curves["random"].samples == [256 * n for n in searches.EVALUATIONS if n <= 60]
    assert curves["race"].samples == [256 * n for n in searches.RACED]
    figure = searches.draw_regrets(list(curves.values()))
    assert [line.get_label() for line in figure.axes[0].lines] == ["random", "race"]


def test_the_command_keeps_what_it_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table().save(tmp_path / "small.npz")
    curve = searches.RegretCurve("race", 200, [640.0, 1280.0], [0.05, 0.01], [0.02, 0.0], [0.06, 0.02], [0.04, 0.012])
    calls: list[int] = []

    def replay(table: Table) -> list[searches.RegretCurve]:
        calls.append(len(table.points))
        return [curve]

    monkeypatch.setattr(searches, "regret_curves", replay)
    for words in ((), (), ("measure=true",)):
        assert searches.main([f"table={tmp_path / 'small.npz'}", *words]) == 0
    assert calls == [60, 60]
    shown = capsys.readouterr().out
    assert "race         200    5.0 (4.0)    1.0 (1.2)" in shown
    assert f"{tmp_path / 'small.png'}" in shown
    assert searches.main(["table=x.npz", "output=y"]) == 2
    for wrong in ("ture", "True", ""):
        assert searches.main([f"table={tmp_path / 'small.npz'}", f"measure={wrong}"]) == 2
        assert f"measure = '{wrong}': must be one of true, false" in capsys.readouterr().err
    assert calls == [60, 60]


TABLES = Path(__file__).parents[2] / "docs/search_tables"


@pytest.mark.parametrize("name", ["mini_llava_scienceqa", "mini_qwen2_5_vl_gqa"])
def test_the_race_needs_less_than_half_of_what_random_search_needs(name: str) -> None:
    """On what 301 points answer: within 10 evaluations' samples it is better than random search within 20."""
    points = Table.load(TABLES / f"{name}.npz")
    size, raced, drawn = len(points.images), [], []
    for seed in range(2):
        shuffled = points.shuffled(np.random.default_rng(seed))
        raced.append(shuffled.regret(race(shuffled, seed, 10 * size)[-1][1]))
        drawn.append(shuffled.regret(POLICIES["random"](shuffled, seed, 20 * size)[-1][1]))
    assert np.mean(raced) < np.mean(drawn)
