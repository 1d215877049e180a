"""Methods with a second pass: their combination of logits by hand, and what their settings decide."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tdrs.attention.block import IMAGE
from tdrs.attention.core import blocked, reference
from tdrs.attention.selection import resolve
from tdrs.interventions import from_settings
from tdrs.interventions.none import Stock
from tdrs.interventions.sid import SID, LeastAttended
from tdrs.interventions.vcd import VCD, signal
from tdrs.settings import SettingError
from tests.interventions.calls import GROUPS, HEADS, make, oracle_output

# Two tokens: the logits of the first and of the second pass, and what a method makes of them.
ONE, TWO = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]])
COMBINED: list[tuple[dict[str, Any], int, list[float]]] = [
    ({"name": "pai"}, 0, [2.1, 0.8]),  # 1.1 · (2 − 1) + 1, 1.1 · (1 − 3) + 3
    ({"name": "pai", "gamma": 2.0}, 0, [3.0, -1.0]),
    ({"name": "vcd"}, 0, [3.0, -1.0]),  # 2 · 2 − 1, 2 · 1 − 3
    ({"name": "vcd"}, 1, [3.0, -1.0]),
    ({"name": "vcd", "steps": "first"}, 0, [3.0, -1.0]),
    ({"name": "vcd", "steps": "first"}, 1, [2.0, 1.0]),
    ({"name": "icd", "alpha": 0.5}, 0, [2.5, 0.0]),
    ({"name": "sid"}, 0, [3.0, -1.0]),
    ({"name": "m3id"}, 0, [2.0, 1.0]),
    ({"name": "m3id", "rate": math.log(2)}, 2, [5.0, -5.0]),  # 2² − 1 = 3 times 1 and −2
]


@pytest.mark.parametrize(("values", "step", "expected"), COMBINED, ids=[values["name"] for values, *_ in COMBINED])
def test_combined_logits_by_hand(values: dict[str, Any], step: int, expected: list[float]) -> None:
    second = from_settings(values).second_pass
    assert second is not None
    assert second.combined(ONE, TWO, step=step)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_adapt_vis_keeps_its_choice_for_the_whole_answer() -> None:
    """Confidences of 1 / (1 + e^−1) = .73 and .5 at the first token; later ones do not count."""
    second = from_settings({"name": "adapt_vis", "threshold": 0.6}).second_pass
    assert second is not None
    low, high = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[3.0, 3.0], [4.0, 4.0]])
    for step, stock in enumerate([[[2.0, 1.0], [2.0, 2.0]], [[0.0, 0.0], [9.0, 0.0]]]):
        found = second.combined(torch.tensor(stock), low, high, step=step)
        assert found.tolist() == [[3.0, 3.0], [2.0, 2.0]]
    again = second.combined(torch.tensor([[0.0, 0.0]]), low[:1], high[:1], step=0)
    assert again.tolist() == [[1.0, 1.0]]
    assert second.others[0].weight == 0.5  # type: ignore[union-attr]
    assert second.others[1].weight == 1.2  # type: ignore[union-attr]
    with pytest.raises(SettingError, match="answers by its second or third pass, which no other method edits"):
        from_settings({"name": "together", "methods": ["adapt_vis", "temperature"], "adapt_vis": {}, "temperature": {}})


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


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("pai", {"gamma": 1.2, "beta": 0.2, "alpha": 0.3, "layers": "all"}),
        ("vcd", {"alpha": 2.0, "beta": 0.2, "noise_step": 900, "steps": "first", "seed": 1}),
        ("icd", {"alpha": 2.0, "beta": 0.2, "instruction": "Be quick.", "place": "question"}),
        ("m3id", {"rate": 0.1, "beta": 0.2}),
        ("sid", {"alpha": 2.0, "beta": 0.2, "keep": 0.5, "layers": "all"}),
        ("adapt_vis", {"weight1": 0.6, "weight2": 1.5, "threshold": 0.4, "layers": [0], "heads": [1], "phase": "both"}),
    ],
)
def test_every_setting_is_part_of_the_cache_key(name: str, changed: dict[str, Any]) -> None:
    keys = [json.dumps(from_settings({"name": name, one: value}).effective) for one, value in changed.items()]
    assert len({json.dumps(from_settings({"name": name}).effective), *keys}) == 1 + len(changed)


def test_the_noise_of_vcd_is_the_schedule_of_its_code() -> None:
    """A thousand rates from σ(−6) to σ(6), scaled; after step t, the product of 1 − rate is what is left."""
    left = 1.0
    for number in range(501):
        rate = 1 / (1 + math.exp(-(-6 + 12 * number / 999))) * (0.5e-2 - 1e-5) + 1e-5
        left *= 1 - rate
    assert signal(500) == pytest.approx(left, rel=1e-4)
    change = VCD().second_pass.change
    assert change is not None
    values = torch.full((200, 300), 3.0)
    noised = change.apply(values, torch.Generator().manual_seed(1))
    assert float(noised.mean()) == pytest.approx(3 * left**0.5, abs=0.02)
    assert float(noised.std()) == pytest.approx((1 - left) ** 0.5, abs=0.01)
    names = {VCD(**given).second_pass.change.name for given in ({}, {"seed": 1}, {"noise_step": 499})}  # type: ignore[union-attr]
    assert len(names) == 3  # embeddings are kept by them


def hidden_by_hand(sample: Any, keep: float) -> np.ndarray:
    """Of each sample, the image tokens with the most attention from the last row, (B, K), by plain loops."""
    call = sample.call
    query, key, roles = call.query.double().numpy(), call.key.double().numpy(), call.roles.numpy()
    found = np.zeros(roles.shape, dtype=bool)
    for b in range(len(query)):
        seen = sample.visible[b, -1]
        weights = np.zeros(len(seen))
        for h in range(HEADS):
            logits = key[b, h // (HEADS // GROUPS)] @ query[b, h, -1] * call.scaling
            shares = np.where(seen, np.exp(logits), 0)
            weights += shares / shares.sum() / HEADS
        image = [int(j) for j in np.flatnonzero(roles[b] == IMAGE)]
        image.sort(key=lambda j: weights[j])
        found[b, image[max(1, round(keep * len(image))) :]] = True
    return found


@pytest.mark.parametrize("execute", [reference, blocked])
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.8])
def test_sid_hides_the_image_tokens_with_the_most_attention(execute: Any, keep: float) -> None:
    """In the layers after the one that ranks; by float64, with padding and with a filled cache."""
    method = LeastAttended(keep=keep)
    for sample in (make(19), make(19, padding="left"), make(1, past=19)):
        memory: dict[str, Any] = {}
        first, later = (replace(sample.call, memory=memory, block_elements=97) for _ in range(2))
        torch.testing.assert_close(execute(first, method), execute(replace(first, memory={}), Stock()))
        hidden = hidden_by_hand(sample, keep)
        own = np.eye(19 + 1)[-sample.call.query.shape[2] :, -sample.call.key.shape[2] :][None] > 0
        seen = replace(sample, visible=sample.visible & (~hidden[:, None] | own))
        expected = oracle_output(seen, sample.call, "none", Stock(), frozenset(range(HEADS)))
        np.testing.assert_allclose(execute(later, method).double().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "vcd", "alpha": -1}, "intervention.alpha = -1.0"),
        ({"name": "vcd", "beta": 1.5}, "intervention.beta = 1.5"),
        ({"name": "vcd", "noise_step": 1000}, "intervention.noise_step = 1000"),
        ({"name": "vcd", "steps": "some"}, "intervention.steps = 'some': must be one of all, first"),
        ({"name": "vcd", "layers": [1]}, "intervention.layers = (1,): has no effect on VCD: it must be all"),
        ({"name": "icd", "instruction": " "}, "intervention.instruction = ' ': must be text"),
        ({"name": "icd", "place": "end"}, "intervention.place = 'end': must be one of system, question"),
        ({"name": "m3id", "rate": -1}, "intervention.rate = -1.0"),
        ({"name": "sid", "keep": 0}, "intervention.keep = 0.0"),
        ({"name": "sid", "phase": "decode"}, "intervention.phase = 'decode': has no effect on SID: it must be both"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError) as error:
        from_settings(values)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "vcd", "alpha": 0},
        {"name": "icd", "alpha": 0},
        {"name": "m3id", "rate": 0},
        {"name": "sid", "alpha": 0},
        {"name": "sid", "keep": 1},
    ],
)
def test_neutral_settings_are_the_stock_model(values: dict[str, Any]) -> None:
    method = from_settings(values)
    assert not method.active
    assert method.effective == {}


def test_default_layers_of_sid_are_those_of_its_code() -> None:
    """On 32 layers, layer 1 ranks; 100 of 576 image tokens stay."""
    assert resolve("layers", SID().layers, 32) == frozenset(range(1, 32))
    assert round(576 * SID().keep) == 100
