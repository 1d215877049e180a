"""Search spaces: what YAML may say, what it means, and what is refused."""

from typing import Any

import optuna
import pytest

from tdrs.settings import SettingError
from tdrs.sweeps.space import Range, Space

VALUES = {
    "a": [1, "x", [0, 2]],
    "b": {"low": 0.01, "high": 5, "log": True, "off_at": 0},
    "c": {"low": 1, "high": 4, "whole": True},
}


def test_every_value_and_every_end_is_shown_once() -> None:
    ends = list(Space.of(VALUES, "space").ends())
    assert [end["a"] for end in ends[:3]] == [1, "x", [0, 2]]
    assert [end["b"] for end in ends[3:6]] == [0.01, 5, 0]
    assert [end["c"] for end in ends[6:]] == [1, 4]
    assert isinstance(ends[6]["c"], int)


def test_a_grid_has_every_combination() -> None:
    cells = Space.of({"a": [1, 2], "b": ["x", "y", "z"]}, "space").cells()
    assert cells == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]


def test_settings_and_parameters_are_each_others_inverse() -> None:
    space = Space.of(VALUES, "space")
    for settings in ({"a": [0, 2], "b": 0, "c": 3}, {"a": "x", "b": 0.5, "c": 1}):
        params = space.params(settings)
        assert params is not None
        assert set(params) == set(space.distributions()) == {"a", "b.on", "b", "c"}
        assert space.settings(params) == settings
    assert space.params({"a": 9, "b": 0, "c": 1}) is None
    assert space.params({"a": 1, "b": 6, "c": 1}) is None
    assert space.params({"a": 1}) is None


def test_every_trial_has_the_same_parameters_on_or_off() -> None:
    """What multivariate samplers need."""
    space = Space.of(VALUES, "space")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask(space.distributions()) for _ in range(40)]
    asked = [(trial, space.settings(trial.params)) for trial in trials]
    assert {tuple(sorted(trial.params)) for trial, _ in asked} == {("a", "b", "b.on", "c")}
    assert {settings["b"] == 0 for _, settings in asked} == {True, False}
    assert all(0.01 <= settings["b"] <= 5 for _, settings in asked if settings["b"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, r"s = \{\}: must name at least one setting and its values"),
        ({"a": 3}, "s.a = 3: must be a list of at least one value, or low and high"),
        ({"a": []}, r"s.a = \[\]: must be a list"),
        ({"a": [1, 2, 1.0]}, r"s.a = \[1, 2, 1.0\]: has 1.0 twice"),
        ({"a": ["x", "x"]}, r"s.a = \['x', 'x'\]: has 'x' twice"),
        ({"a": {"low": 2, "high": 1}}, "s.a.low = 2.0: must be below high = 1"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "s.a.low = 0.0: must be above 0 with log=true"),
        ({"a": {"low": 0.5, "high": 2, "whole": True}}, "s.a.low = 0.5: both ends must be whole"),
        ({"a": {"low": 0, "high": 1, "off_at": 0.5}}, "s.a.off_at = 0.5: must be outside 0 to 1"),
        ({"a": {"low": 0, "high": 1, "off_at": 0}}, "s.a.off_at = 0.0: must be outside 0 to 1"),
        ({"a": {"low": 0, "high": 1, "step": 1}}, "s.a.step = 1: unknown setting"),
    ],
)
def test_bad_spaces_are_named(values: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Space.of(values, "s")


def test_a_range_has_ends() -> None:
    assert Range(1, 3, whole=True, off_at=0).ends() == [1, 3, 0]


def test_true_and_1_are_two_values() -> None:
    assert len(Space.of({"a": [True, 1, False, 0]}, "s").cells()) == 4
