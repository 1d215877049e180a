"""VAR in a model: its sinks come from the hidden states that enter the layers."""

from typing import Any

import pytest
import torch

from tdrs import VAR, intervene
from tdrs.attention.call import Call
from tdrs.attention.core import blocked
from tdrs.backbones import Backbone
from tdrs.benchmarks import from_settings, load
from tdrs.evaluation import evaluate
from tdrs.settings import SettingError
from tests.interventions.calls import make


def test_the_states_are_those_that_enter_each_layer(mini_llava: Backbone) -> None:
    """As transformers returns them, for a prompt and a token after it, on the layers that are edited."""
    seen: dict[int, torch.Tensor] = {}

    class Watched(VAR):
        def statistics(self, call: Call) -> torch.Tensor:
            assert call.states is not None
            seen[call.layer] = call.states
            return super().statistics(call)

    model: Any = mini_llava.model
    ids = torch.arange(5, 12)[None]
    with intervene(model, Watched(tau=3.0, layers=[1, 3])), torch.no_grad():
        first = model(ids[:, :6], use_cache=True, output_hidden_states=True)
        second = model(ids[:, 6:], past_key_values=first.past_key_values, output_hidden_states=True)
    assert set(seen) == {1, 3}
    for layer, states in seen.items():
        both = [out.hidden_states[layer] for out in (first, second)]
        assert torch.equal(states, torch.cat(both, dim=1))


def test_it_says_how_often_it_acts(mini_llava: Backbone) -> None:
    """With the default τ, a state of 128 numbers has no sink."""
    benchmark = from_settings({"name": "mini_scienceqa", "gap": 0})
    samples = load(benchmark, "tuning", 4)
    shares, margins = [], []
    for tau in (20.0, 3.0):
        found = evaluate(mini_llava, benchmark, samples, VAR(tau=tau, summ=0.0, rho=1.0, p=0.0))
        shares.append(found.metrics["var_edited"])
        margins.append([record.margin for record in found.records])
    assert shares[0] == 0
    assert 0.1 < shares[1] < 1
    assert margins[0] != pytest.approx(margins[1], abs=1e-3)


def test_dimensions_that_the_model_does_not_have() -> None:
    with pytest.raises(SettingError, match=r"dimensions = \[3, 512\]: must be from 0 to 511 in this model"):
        blocked(make(5).call, VAR(dimensions=(512, 3)))
