"""Replayed searches: the table of a study, regrets by hand, and the race beside whole evaluations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdrs.analysis import searches
from tdrs.analysis.searches import Table
from tdrs.analysis.study_results import StudyResults
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.sweeps.space import Space
from tdrs.sweeps.study import Study
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
    table = searches.table_of(points)
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
            searches.table_of(study)


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


def test_searches_find_the_best_of_what_they_have_measured() -> None:
    shuffled = table().shuffled(np.random.default_rng(2))
    means = shuffled.tuning
    found = searches.random_search(shuffled, 0)
    assert found == [int(means[:count].argmax()) for count in (1, 2, 5, 10, 20, 40)]
    asked = searches.tpe_search(shuffled, 0)
    assert [means[number] for number in asked] == sorted(means[number] for number in asked)
    number, spent = searches.race(shuffled, 0, 12 * 256)
    assert spent <= 12 * 256
    assert shuffled.regret(number) < 0.03


def test_curves_are_quantiles_over_orders() -> None:
    curves = {curve.name: curve for curve in searches.regret_curves(table(), orders=3)}
    found = [table().shuffled(np.random.default_rng(seed)) for seed in range(3)]
    first = [one.regret(searches.random_search(one, 0)[0]) for one in found]
    assert curves["random"].median[0] == np.median(first)
    assert curves["random"].samples[:2] == [256, 512]
    assert list(curves) == ["random", "TPE", "race"]
    assert len(curves["race"].samples) == len(searches.BUDGETS)
    figure = searches.draw_regrets(list(curves.values()))
    assert [line.get_label() for line in figure.axes[0].lines] == ["random", "TPE", "race"]
