"""Layers and heads by name, list, range and share of the depth."""

from typing import Any

import pytest

from tdrs.attention.selection import check_heads, check_selection, heads_by_layer, normal_form, resolve
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


@pytest.mark.parametrize(
    ("layers", "heads", "expected", "normal"),
    [
        ("all", "all", {0: {0, 1, 2}, 1: {0, 1, 2}}, {"layers": "all", "heads": "all"}),
        ([1], "0-1", {1: {0, 1}}, {"layers": [1], "heads": [0, 1]}),
        ("all", ["L1H2", "L0H1", "L1H2"], {0: {1}, 1: {2}}, {"layers": [0, 1], "heads": ["L0H1", "L1H2"]}),
        ("50%-100%", ["L1H0"], {1: {0}}, {"layers": [1], "heads": [0]}),
        ("all", ["L1H0", "L0H0"], {0: {0}, 1: {0}}, {"layers": "all", "heads": [0]}),
    ],
)
def test_heads_by_layer(layers: Any, heads: Any, expected: dict[int, set[int]], normal: dict[str, Any]) -> None:
    found = heads_by_layer(check_selection("layers", layers), check_heads("heads", heads), (2, 3))
    assert found == expected
    assert normal_form(found, (2, 3)) == normal


@pytest.mark.parametrize(
    ("layers", "heads", "message"),
    [
        ("all", ["L0H1", 2], "heads = ['L0H1', 2]: 2 is not a head of a layer, such as L3H1"),
        ("all", ["L0H1", "1.2"], "heads = ['L0H1', '1.2']: '1.2' is not a head of a layer"),
        ("all", [3.1], "heads = [3.1]: must be 'all', a list of numbers from 0"),
        ("all", ["3.1"], "heads = ['3.1']: must be 'all', a list of numbers from 0"),
        ("all", [], "heads = []: must be 'all', a list of numbers from 0"),
        ("all", ["L0H3"], "heads = 'L0H3': must be from L0H0 to L1H2 in this model"),
        ("all", ["L2H0"], "heads = 'L2H0': must be from L0H0 to L1H2 in this model"),
        ([0], ["L0H0", "L1H2"], "heads = 'L1H2': layer 1 is not one of the layers that are edited"),
    ],
)
def test_bad_heads_of_layers(layers: Any, heads: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        heads_by_layer(check_selection("layers", layers), check_heads("heads", heads), (2, 3))
    assert str(error.value).startswith(message)


def test_layers_have_no_heads() -> None:
    pairs: Any = ["L0H1"]
    with pytest.raises(SettingError, match="layers = "):
        check_selection("layers", pairs)
