"""The other methods against the float64 oracle, and each one's neutral setting."""

import math
from typing import Any

import pytest
import torch

from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.core import blocked
from tdrs.attention.selection import resolve
from tdrs.interventions import METHODS, from_settings
from tdrs.interventions.key_bias import KeyBias
from tdrs.settings import SettingError
from tests.interventions.calls import deviation, each_padding, make

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("temperature", {}),
    ("temperature", {"tau": 3.0}),
    ("pai", {}),
    ("pai", {"alpha": 2.0}),
    ("vaf", {}),
    ("vaf", {"image": 0.5, "system": 3.0}),
    ("middle_layers", {}),
    ("scaling_vis", {}),
    ("scaling_vis", {"weight": 0.0}),
    ("ad_hh", {}),
    ("ad_hh", {"threshold": 0.4}),
    ("heads_off", {}),
    ("var", {}),
    ("var", {"p": 0.0, "summ": 0.0, "rho": 0.9, "dimensions": (7, 3), "layers": "all"}),
    ("spin", {}),
    ("spin", {"routed_heads": 0.3, "small_num_mask": 0.1}),
    ("spin", {"routed_heads": 0.5, "rows": "text"}),
    ("key_bias", {}),
    ("key_bias", {"keys": "system", "weight": 0.1}),
    ("key_bias", {"keys": "text", "weight": 7.0}),
    ("self_extend", {"group": 3, "window": 4}),
    ("self_extend", {"group": 3, "window": 4, "shift": "exact"}),
    ("position_interpolation", {}),
    ("ntk", {}),
    ("ms_poe", {"r_max": 4.0, "threshold": 1.5}),
    ("ms_poe", {"r_max": 4.0, "threshold": 1.5, "ranking": "code"}),
    ("ms_poe", {"r_max": 4.0, "ranking": "none"}),
    ("cca", {}),
    ("cca", {"form": "folded"}),
]


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_every_method(name: str, values: dict[str, Any]) -> None:
    method = METHODS[name](**values)
    for sample in each_padding(19):
        assert deviation(name, method, sample) < 2e-5
        assert not torch.allclose(blocked(sample.call, method), blocked(sample.call, METHODS["none"]()), atol=1e-4)


@pytest.mark.parametrize("name", [name for name, _ in VARIANTS])
def test_chosen_heads(name: str) -> None:
    assert deviation(name, METHODS[name](), make(11, padding="left"), frozenset({0, 3})) < 2e-5


@pytest.mark.parametrize("length", [1, 63, 64, 65])
def test_odd_sizes(length: int) -> None:
    for name, values in VARIANTS:
        assert deviation(name, METHODS[name](**values), make(length)) < 2e-5


@pytest.mark.parametrize(
    "values",
    [
        {"name": "temperature", "tau": 1},
        {"name": "pai", "alpha": 0, "gamma": 1},
        {"name": "middle_layers", "alpha": 0},
        {"name": "vaf", "image": 1, "system": 1},
        {"name": "key_bias", "weight": 1},
        {"name": "scaling_vis", "weight": 1},
        {"name": "adapt_vis", "weight1": 1, "weight2": 1},
        {"name": "self_extend", "group": 1},
        {"name": "position_interpolation", "factor": 1},
        {"name": "ntk", "alpha": 1},
        {"name": "ms_poe", "r_min": 1, "r_max": 1},
        {"name": "ad_hh", "threshold": 1.1},
        {"name": "var", "p": 1},
        {"name": "spin", "routed_heads": 1},
        {"name": "spin", "small_num_mask": 1},
        {"name": "none"},
    ],
    ids=lambda values: values["name"],
)
def test_neutral_settings_edit_nothing(values: dict[str, Any]) -> None:
    assert not from_settings(values).active


def test_half_of_the_temperature_is_twice_the_logits() -> None:
    sample = make(9)
    doubled = Call(sample.call.query * 2, *(getattr(sample.call, x) for x in ("key", "value", "scaling", "mask")))
    torch.testing.assert_close(blocked(sample.call, METHODS["temperature"]()), blocked(doubled, METHODS["none"]()))


def test_a_bias_on_some_keys_is_the_opposite_bias_on_the_others() -> None:
    """PASTA dims the keys that are not selected: the same weights as highlighting the selected ones."""
    call = make(14).call
    selected = KeyBias(keys="image", weight=100.0)
    block = Block(call, 0, 14, 14)
    dimmed = block.logits + math.log(0.01) * (~block.keys_of(1))
    hidden = block.hidden
    weights = [x.masked_fill(hidden, -math.inf).softmax(-1) for x in (selected.edit(block, None), dimmed)]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("pai", range(2, 32)), ("vaf", range(9, 15)), ("middle_layers", range(5, 19)), ("var", range(2, 31))],
)
def test_default_layers_are_the_papers_on_32(name: str, layers: range) -> None:
    assert resolve("layers", METHODS[name]().layers, 32) == frozenset(layers)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "temperature", "tau": 0}, "intervention.tau = 0.0"),
        ({"name": "pai", "alpha": -1}, "intervention.alpha = -1.0"),
        ({"name": "pai", "gamma": -1}, "intervention.gamma = -1.0"),
        ({"name": "pai", "beta": 2}, "intervention.beta = 2.0"),
        ({"name": "middle_layers", "alpha": -1}, "intervention.alpha = -1.0"),
        ({"name": "vaf", "image": -1}, "intervention.image = -1.0"),
        ({"name": "vaf", "system": -1}, "intervention.system = -1.0"),
        ({"name": "key_bias", "keys": "sky"}, "intervention.keys = 'sky': must be one of system, image, text"),
        ({"name": "scaling_vis", "weight": -1}, "intervention.weight = -1.0"),
        ({"name": "adapt_vis", "weight2": -1}, "intervention.weight2 = -1.0"),
        ({"name": "adapt_vis", "threshold": 30}, "intervention.threshold = 30.0: must be a finite number from 0 to 1"),
        ({"name": "ad_hh", "threshold": 0}, "intervention.threshold = 0.0"),
        ({"name": "var", "p": 2}, "intervention.p = 2.0"),
        ({"name": "var", "dimensions": "most"}, "intervention.dimensions = 'most': must be 'all' or a list"),
        ({"name": "var", "dimensions": [-1]}, "intervention.dimensions = (-1,): must be 'all' or a list"),
        ({"name": "spin", "routed_heads": 1.1}, "intervention.routed_heads = 1.1"),
        ({"name": "spin", "rows": "all"}, "intervention.rows = 'all': must be one of last, text"),
        ({"name": "spin", "small_num_mask": -1}, "intervention.small_num_mask = -1.0"),
        ({"name": "key_bias", "weight": 0}, "intervention.weight = 0.0"),
        ({"name": "self_extend", "group": 0}, "intervention.group = 0: must be a whole number, at least 1"),
        ({"name": "self_extend", "shift": "round"}, "intervention.shift = 'round': must be one of floor, exact"),
        ({"name": "position_interpolation", "factor": 0.5}, "intervention.factor = 0.5"),
        ({"name": "ntk", "alpha": 0.5}, "intervention.alpha = 0.5"),
        ({"name": "ms_poe", "r_max": 1.1}, "intervention.r_max = 1.1: must be at least r_min, 1.2"),
        ({"name": "ms_poe", "ranking": "best"}, "intervention.ranking = 'best': must be one of rank, code, none"),
        ({"name": "cca", "form": "spiral"}, "intervention.form = 'spiral': must be one of rings, folded"),
        ({"name": "ad_hh", "heads": 5}, "intervention.heads = 5: must be text or a list"),
        ({"name": "cca", "side": 0}, "intervention.side = 0: must be a whole number"),
        ({"name": "pasta"}, "intervention.name = 'pasta': must be one of none, tdrs, temperature"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError) as error:
        from_settings(values)
    assert named in str(error.value)
