"""Rows beside their rival explanations: who stands for one is chosen on the tuning split, differences by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdrs.analysis import rivals
from tdrs.analysis.report import report_study
from tdrs.analysis.study_results import load_study
from tdrs.settings import SettingError
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker

from ..sweeps.pretend import configuration

AXES = {"data": [{"dataset": "mini_pope", "dataset.gap": 9}, {"dataset": "mini_scienceqa", "dataset.gap": 9}]}
METHODS: dict[str, Any] = {
    "warm": {"intervention": "temperature", "tune": {"intervention.tau": [0.5, 0.6, 0.7]}},
    "cold": {"intervention": "temperature", "tune": {"intervention.tau": [0.5, 1.5, 2.0]}},
    "keys": {"intervention": "key_bias", "tune": {"intervention.weight": [2.0, 3.0]}},
    "plain": {"intervention": "key_bias", "intervention.weight": 4.0},
}
RIVALS = {"temperature": ["warm", "cold"]}


def small(output: Path, **search: Any) -> dict[str, Any]:
    given = {"axes": AXES, "methods": METHODS, "rivals": RIVALS, "also": {"dataset.gap": 3}, "budget": 3, **search}
    return configuration(output, "search=compare", **given)


def test_rows_are_compared_with_the_strongest_rival_and_reported_beside(tmp_path: Path, pretended: list[str]) -> None:
    found = Study(small(tmp_path), Tracker("none", tmp_path)).run()
    study = load_study("small", tmp_path)
    assert [row.condition["dataset.gap"] for row in found.rows] == [9] * 5 + [3] * 5 + [9] * 5 + [3] * 5
    for start in (0, 10):
        for here, there in zip(found.rows[start + 1 : start + 5], found.rows[start + 6 : start + 10], strict=True):
            assert (here.name, here.settings, here.budget) == (there.name, there.settings, there.budget)
    assert {trial.condition["dataset.gap"] for trial in found.trials} == {9}

    places = rivals.places(study.outcome, study.records, study.controls)
    assert [place.condition for place in places] == [
        "mini_llava, mini_pope, gap 9",
        "mini_llava, mini_scienceqa, gap 9",
    ]
    for place, condition in zip(places, AXES["data"], strict=True):
        scores = {
            name: max(t.score for t in found.trials if t.name == name and t.condition == condition)
            for name in RIVALS["temperature"]
        }
        strongest = place.rivals["temperature"]
        assert scores[strongest] == max(scores.values())
        held = {row.name: row for row in found.rows if row.condition == condition}
        inside = {row.name: row for row in found.rows if row.condition == {**condition, "dataset.gap": 3}}
        assert place.stock == held["stock"].score
        assert place.stock_beside == inside["stock"].score
        for row in place.rows:
            weights = [record.weight for record in study.records.read(held[row.name].cache_key).records]
            ours, theirs = (
                np.average([one.score for one in study.records.read(held[name].cache_key).records], weights=weights)
                for name in (row.name, strongest)
            )
            assert row.gain.difference.value == pytest.approx(held[row.name].score - held["stock"].score)
            assert row.cost is not None
            assert row.cost.difference.value == pytest.approx(inside[row.name].score - inside["stock"].score)
            if row.name == strongest:
                assert row.against == {}
            else:
                assert row.against["temperature"].difference.value == pytest.approx(ours - theirs)
        assert all((row.yes_rate is not None) == (condition["dataset"] == "mini_pope") for row in place.rows)

    text = rivals.markdown(places)
    assert "| plain |" in text
    assert "to temperature: " in text
    said = rivals.sentences(places)
    assert len(said) == 4 + 3  # one more where answers are yes or no
    assert said[0].startswith("mini_llava, mini_pope, gap 9: of 3 tuned methods, ")
    report, paths = report_study(study.outcome, study.records, study.folder)
    assert report.answers == said
    assert (study.folder / "rivals.png").read_bytes().startswith(b"\x89PNG")
    assert paths


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"also": {"dataset.gap": 9}}, "search.also = .*: gives a condition of the axes"),
        ({"also": {"intervention.tau": 1}}, "search.also.intervention.tau = 1: must be a setting of the data"),
        ({"also": {"dataset.name": "mini_gqa"}}, "dataset.name alone is no choice"),
        ({"rivals": {"bias": ["plain"]}}, "search.rivals.bias = 'plain': must be one of warm, cold, keys"),
        ({"rivals": {"bias": []}}, "search.rivals.bias = .*: must be a list of names of tuned methods"),
        (
            {"also": {"dataset.gap": 3}, "axes": {"dataset.gap": [9, 12]}},
            "search.also = .*: conditions of the axes are the same under it",
        ),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, search: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Study(small(tmp_path, **search), Tracker("none", tmp_path))


def test_a_study_without_rivals_has_no_such_table(tmp_path: Path, pretended: list[str]) -> None:
    found = Study(small(tmp_path, rivals={}, also={}), Tracker("none", tmp_path)).run()
    assert len(found.rows) == 10
    study = load_study("small", tmp_path)
    with pytest.raises(SettingError, match=r"study = 'small': names no explanation in search\.rivals"):
        rivals.places(study.outcome, study.records)
