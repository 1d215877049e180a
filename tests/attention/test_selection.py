"""Layers and heads by name, list, range and share of the depth."""

import pytest

from tdrs.attention.selection import check_selection, resolve
from tdrs.settings import SettingError


@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [
        ("all", 3, {0, 1, 2}),
        ([2, 0], 3, {0, 2}),
        (range(1, 3), 3, {1, 2}),
        ("1-2", 3, {1, 2}),
        ("0%-50%", 4, {0, 1}),
        ("28%-46%", 4, {1}),
        ("28%-46%", 2, {0}),  # no layer has its middle there, so the nearest one
        ("0%-100%", 5, {0, 1, 2, 3, 4}),
    ],
)
def test_resolve(value: object, count: int, expected: set[int]) -> None:
    assert resolve("layers", check_selection("layers", value), count) == expected


@pytest.mark.parametrize("value", ["first", "3-1", "-1", "5", "10%-5", "10%-5%", "50%-101%", [], [-1], [True], [1.0]])
def test_bad_selections(value: object) -> None:
    with pytest.raises(SettingError, match=r"heads = .*must be 'all', a list"):
        check_selection("heads", value)


@pytest.mark.parametrize("value", [[0, 4], "2-4"])
def test_numbers_the_model_does_not_have(value: object) -> None:
    with pytest.raises(SettingError, match="must be from 0 to 3 in this model"):
        resolve("layers", check_selection("layers", value), 4)
