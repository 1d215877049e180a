"""The protocol points: evenly spread points, each on both splits, none chosen."""

from pathlib import Path
from typing import Any

import pytest

from tdrs.settings import SettingError
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker

from .pretend import configuration

SPACE = {
    "intervention.gain": ["logits", "weights"],
    "intervention.dc.weight": {"low": 0.01, "high": 5, "log": True, "off_at": 0},
}
SPLITS = ("tuning", "held_out")
START = {"intervention.gain": "weights", "intervention.dc.weight": 1}


def run(output: Path, **search: Any) -> Any:
    given = {"space": SPACE, "trials": 9, "start": [START]} | search
    return Study(configuration(output, "search=points", **given), Tracker("none", output)).run()


def test_each_point_is_measured_on_both_splits(tmp_path: Path, pretended: list[str]) -> None:
    found = run(tmp_path, controls={"half": {"intervention": "temperature", "intervention.tau": 0.5}})
    points = [[t.settings for t in found.trials if (t.name, t.split) == ("point", split)] for split in SPLITS]
    assert points[0] == points[1]
    assert len(points[0]) == 10
    assert points[0][0] == START
    assert {point["intervention.dc.weight"] == 0 for point in points[0]} == {True, False}
    assert [row.name for row in found.rows] == ["stock", "half"]
    assert found.tuning_n == "8"
    assert all(t.difference for t in found.trials if t.split == "tuning" and t.name == "point")


def test_points_depend_on_the_seed_alone(tmp_path: Path, pretended: list[str]) -> None:
    settings = [
        [t.settings for t in run(tmp_path / str(seed), sampler=sampler, seed=seed).trials]
        for sampler, seed in (("qmc", 0), ("qmc", 1), ("random", 0))
    ]
    again = [t.settings for t in run(tmp_path / "again").trials]
    assert settings[0] == again
    assert settings[0] != settings[1]
    assert settings[0] != settings[2]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"sampler": "tpe"}, "search.sampler = 'tpe': must be one of qmc, random"),
        ({"trials": 0}, "search.trials = 0"),
        ({"start": [{"intervention.sd": True}]}, "search.start.0. .*: must have keys of intervention.gain, "),
        ({"start": ["gain"]}, "search.start.0. = 'gain'"),
    ],
)
def test_bad_settings_are_named(search: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message):
        run(tmp_path, **search)
    assert list(tmp_path.iterdir()) == []
