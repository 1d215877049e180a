"""Several methods in one run: the edits by hand, statistics of edited logits, layers and heads of each, settings."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tdrs
from tdrs.attention.block import Block
from tdrs.attention.core import blocked, reference
from tdrs.attention.in_order import InOrder, Together
from tdrs.attention.method import Method
from tdrs.backbones import Backbone
from tdrs.configuration import compose, plain, with_settings
from tdrs.evaluation import evaluate, plan
from tdrs.interventions import from_settings, label
from tdrs.kept import Kept
from tdrs.settings import SettingError
from tdrs.study import _command
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker
from tests.interventions.calls import each_padding, make
from tests.sweeps.pretend import configuration

BOTH = "intervention=[tdrs,temperature]"
WARM, BIAS = tdrs.Temperature(tau=0.5), tdrs.KeyBias(weight=5.0)


@dataclass(frozen=True, kw_only=True)
class Again(tdrs.Temperature):
    """A second method of the same edit."""


AGAIN = Again(tau=0.5)


def steps(*methods: Method) -> InOrder:
    return InOrder(steps=tuple((method, None) for method in methods))


@pytest.mark.parametrize("execute", [reference, blocked])
def test_the_second_method_edits_what_the_first_has_left(execute: Any) -> None:
    @dataclass(frozen=True, kw_only=True)
    class ByHand(Method):
        """(A + b) / τ, or A / τ + b."""

        first: str = "bias"

        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"roles"})

        def edit(self, block: Block, statistics: object) -> torch.Tensor:
            bias = torch.tensor(5.0).log() * block.keys_of(1)
            return (block.logits + bias) / 0.5 if self.first == "bias" else block.logits / 0.5 + bias

    for sample in [*each_padding(19), make(65), make(1, past=9)]:
        for methods, first in (((BIAS, WARM), "bias"), ((WARM, BIAS), "temperature")):
            found, expected = execute(sample.call, steps(*methods)), execute(sample.call, ByHand(first=first))
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        other = execute(sample.call, steps(WARM, BIAS)) - execute(sample.call, steps(BIAS, WARM))
        assert other.abs().max() > 1e-3


@pytest.mark.parametrize("scope", ["call", "row"])
@pytest.mark.parametrize("execute", [reference, blocked])
def test_statistics_are_those_of_the_edited_logits(execute: Any, scope: str) -> None:
    """T-DRS after a temperature is T-DRS on logits that are scaled: |A|_min, too."""
    method = tdrs.TDRS(dc=tdrs.DC(w_min=50, weight=0.7), re=tdrs.RE(w_min=20), stats_scope=scope)
    for sample in [*each_padding(33), make(66), make(1, past=20)]:
        found = execute(sample.call, steps(WARM, method))
        scaled = replace(sample.call, scaling=sample.call.scaling / WARM.tau)
        torch.testing.assert_close(found, execute(scaled, method), atol=2e-5, rtol=1e-4)
        assert (found - execute(sample.call, method)).abs().max() > 1e-3


@pytest.mark.parametrize("execute", [reference, blocked])
def test_weights_are_edited_after_all_logits(execute: Any) -> None:
    """A ranking of heads by logits sees the biased ones, wherever its method stands in the list."""
    spin = tdrs.SPIN(routed_heads=0.5)

    @dataclass(frozen=True, kw_only=True)
    class ByHand(tdrs.SPIN):
        last_row_only = False

        def edit(self, block: Block, statistics: object) -> torch.Tensor:
            return BIAS.edit(block, statistics)

    for methods in ((spin, BIAS), (BIAS, spin)):
        assert Together(methods=methods).parts == (BIAS, spin)
    for sample in each_padding(19):
        found, expected = execute(sample.call, steps(BIAS, spin)), execute(sample.call, ByHand(routed_heads=0.5))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert (found - execute(sample.call, spin)).abs().max() > 1e-3
        assert (found - execute(sample.call, BIAS)).abs().max() > 1e-3


def test_what_a_method_counts_is_counted_once() -> None:
    method = tdrs.TDRS(dc=tdrs.DC(w_min=1e9), re=None)
    alone, after = make(21).call, make(21).call
    blocked(alone, method)
    blocked(after, steps(method, tdrs.TDRS(sd=False, re=None)))
    assert alone.tally.read()["clamped"]["dc.w_min"][1] * 2 == after.tally.read()["clamped"]["dc.w_min"][1]


def test_each_method_has_its_own_layers_and_heads(mini_llava: Backbone) -> None:
    @dataclass(frozen=True, kw_only=True)
    class ByLayer(Method):
        """A temperature on two heads of layer 0, a bias in layers 0 and 2."""

        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"roles"})

        def edit(self, block: Block, statistics: object) -> torch.Tensor:
            logits, layer = block.logits, block.call.layer
            if layer == 0:
                chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
                chosen[:2] = True
                logits = torch.where(chosen.view(1, -1, 1, 1), logits / 0.5, logits)
            return BIAS.edit(block.with_logits(logits), None) if layer in (0, 2) else logits

    ours = Together(methods=(replace(WARM, layers=[0], heads=[0, 1]), replace(BIAS, layers=[0, 2])))
    planned = plan({**plain(compose("evaluate", [])), "limit": 4})
    samples = planned.load()
    margins = [
        [record.margin for record in evaluate(mini_llava, planned.dataset, samples, method).records]
        for method in (ours, ByLayer(), tdrs.Stock())
    ]
    assert margins[0] == pytest.approx(margins[1], abs=1e-4)
    assert margins[0] != pytest.approx(margins[2], abs=1e-2)


def test_heads_of_single_layers(mini_llava: Backbone) -> None:
    pairs = replace(WARM, heads=["L0H0", "L0H1", "L2H3"])
    apart = Together(methods=(replace(WARM, layers=[0], heads=[0, 1]), replace(AGAIN, layers=[2], heads=[3])))
    planned = plan({**plain(compose("evaluate", [])), "limit": 4})
    samples = planned.load()
    margins = [
        [record.margin for record in evaluate(mini_llava, planned.dataset, samples, method).records]
        for method in (pairs, apart, WARM)
    ]
    assert margins[0] == margins[1]
    assert margins[0] != pytest.approx(margins[2], abs=1e-2)


def test_heads_of_single_layers_on_the_command_line() -> None:
    def key(heads: str, *others: str) -> str:
        words = ["intervention=temperature", f"intervention.heads={heads}", *others]
        planned = plan({**plain(compose("evaluate", words)), "limit": 4})
        return planned.cache_key(planned.load())

    assert key("[L3H1,L0H0]") == key("[L0H0,L3H1,L0H0]", "intervention.layers=0%-100%") != key("[L3H1,L0H1]")
    assert key("[L3H1]") == key("[1]", "intervention.layers=[3]")
    with pytest.raises(SettingError, match=r"^intervention.heads = 'L9H1': must be from L0H0 to L3H3 in this model$"):
        key("[L9H1]")


def test_a_list_on_the_command_line() -> None:
    config = plain(
        compose(
            "evaluate",
            ["intervention.temperature.tau=0.7", "intervention=[tdrs,temperature]", "intervention.tdrs.layers=[1]"],
        )
    )
    method = from_settings(config["intervention"])
    assert method == Together(methods=(tdrs.TDRS(layers=[1]), tdrs.Temperature(tau=0.7)))
    assert (
        from_settings(plain(compose("evaluate", ["intervention=[temperature]"]))["intervention"]) == tdrs.Temperature()
    )
    row = with_settings(config, {"intervention": ["temperature", "vaf"], "intervention.vaf.image": 2.0})
    assert from_settings(row["intervention"]) == Together(methods=(tdrs.Temperature(), tdrs.VAF(image=2.0)))


def test_cache_keys_know_the_order_and_what_edits() -> None:
    def key(*overrides: str) -> str:
        planned = plan({**plain(compose("evaluate", list(overrides))), "limit": 4})
        return planned.cache_key(planned.load())

    both = key("intervention=[tdrs,temperature]")
    assert key("intervention=[tdrs,temperature]", "intervention.tdrs.layers=0%-100%") == both
    assert key("intervention=[temperature,tdrs]") != both
    assert key("intervention=[temperature,spin]") == key("intervention=[spin,temperature]")
    assert key("intervention=[tdrs,temperature]", "intervention.tdrs.layers=[0]") != both
    assert key("intervention=[tdrs,temperature]", "intervention.temperature.tau=1") == key("intervention=tdrs")
    off = "intervention.temperature.tau=1", "intervention.key_bias.weight=1"
    assert key("intervention=[temperature,key_bias]", *off) == key("intervention=none")


@pytest.mark.parametrize(("overrides", "message"), [
    (["intervention=[tdrs,tdrs]"], "intervention = ['tdrs', 'tdrs']: has tdrs twice"),
    (["intervention=[tdrs,none]"], "intervention = 'none': must be one of tdrs, temperature"),
    (["intervention=together"], "intervention = []: must be a list of methods: intervention=[tdrs,temperature]"),
    (["intervention=[vcd,pai]"], "intervention.methods = ['VCD', 'PAI']: combine two passes each"),
    ([BOTH, "intervention.tau=2"], "intervention.tau = '2': no such setting"),
    ([BOTH, "intervention.temperature.tau=0"], "intervention.temperature.tau = 0.0: must"),
    ([BOTH, "intervention.temperature.layers=[99]"], "intervention.temperature.layers = [99]"),
    ([BOTH, "+intervention.layers=[1]"], "intervention = ['tdrs', 'temperature', 'layers']"),
])  # fmt: skip
def test_bad_lists_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingError) as error:
        plan(plain(compose("evaluate", overrides)))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("methods", "message"), [
    ((WARM,), "methods = ['Temperature']: must be at least two methods, each once"),
    ((WARM, WARM), "methods = ['Temperature', 'Temperature']: must be at least two"),
    ((WARM, Together(methods=(WARM, BIAS))), "methods = 'Together': cannot be one of several methods"),
    ((WARM, tdrs.TDRS), "method = 'the class TDRS'"),
])  # fmt: skip
def test_bad_lists_in_python(methods: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        Together(methods=methods)
    assert str(error.value).startswith(message)


def test_the_command_of_a_trial_runs_when_pasted(tmp_path: Path, pretended: list[str]) -> None:
    methods = {"both": {"intervention": ["tdrs", "temperature"], "intervention.temperature.tau": 0.8}}
    config = configuration(tmp_path, "search=compare", methods=methods, axes={"dataset.gap": [4]})
    Study(config, Tracker("none", tmp_path)).run()
    kept = Kept(tmp_path, "small")
    trial = next(trial for trial in kept.trials if trial.name == "both")
    words = shlex.split(_command(kept, trial))[3:]
    planned = plan(plain(compose("evaluate", words)))
    assert planned.cache_key(planned.load()) == trial.cache_key


def test_prompts_share_a_beginning_only_if_every_method_allows_it() -> None:
    last_row, whole_map = tdrs.PAI(gamma=1), tdrs.TDRS()
    assert Together(methods=(WARM, BIAS)).row_local
    assert not Together(methods=(WARM, last_row)).row_local
    assert not Together(methods=(WARM, whole_map)).row_local


def test_several_methods_are_named() -> None:
    assert label({"name": "together", "methods": ["tdrs", "vaf"]}) == "tdrs+vaf"
    assert label({"name": "vaf"}) == "vaf"
