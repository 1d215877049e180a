"""Methods with a second pass: their combination of logits by hand, and what their settings decide."""

from typing import Any

import pytest
import torch

from tdrs.interventions import from_settings

# Two tokens: the logits of the first and of the second pass, and what a method makes of them.
ONE, TWO = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]])
COMBINED: list[tuple[dict[str, Any], int, list[float]]] = [
    ({"name": "pai"}, 0, [2.1, 0.8]),  # 1.1 · (2 − 1) + 1, 1.1 · (1 − 3) + 3
    ({"name": "pai", "gamma": 2.0}, 0, [3.0, -1.0]),
]


@pytest.mark.parametrize(("values", "step", "expected"), COMBINED)
def test_combined_logits_by_hand(values: dict[str, Any], step: int, expected: list[float]) -> None:
    second = from_settings(values).second_pass
    assert second is not None
    assert second.combined(ONE, TWO, step)[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"name": "pai", "gamma": 1, "beta": 0.1}, {"name": "pai", "gamma": 1, "beta": 0.5}),
        ({"name": "pai", "alpha": 0, "layers": "all"}, {"name": "pai", "alpha": 0, "layers": [0], "phase": "decode"}),
    ],
)
def test_settings_that_decide_nothing_are_not_part_of_the_cache_key(one: Any, other: Any) -> None:
    assert from_settings(one).effective == from_settings(other).effective


def test_the_edit_of_pai_alone_has_the_cache_key_that_it_had() -> None:
    expected = {"method": "PAI", "layers": "6%-100%", "heads": "all", "phase": "both", "alpha": 0.2}
    assert from_settings({"name": "pai", "gamma": 1}).effective == expected


@pytest.mark.parametrize("changed", [{"gamma": 1.2}, {"beta": 0.2}, {"alpha": 0.3}])
def test_every_setting_of_a_contrast_is_part_of_the_cache_key(changed: dict[str, Any]) -> None:
    assert from_settings({"name": "pai"}).effective != from_settings({"name": "pai", **changed}).effective
