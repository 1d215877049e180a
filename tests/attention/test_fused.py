"""Which calls the fused kernels serve, and what happens to the others. Nothing here needs Triton."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import tdrs
from tdrs import TDRS, Temperature
from tdrs.attention import core, fused
from tdrs.attention.call import Call
from tdrs.attention.tally import Tally
from tdrs.configuration import compose, plain
from tdrs.evaluation import plan
from tdrs.interventions import METHODS
from tdrs.settings import SettingError
from tests.conftest import tiny_llama
from tests.interventions.calls import Sample, make


def without_some_keys() -> Call:
    """A call whose mask hides distant keys, as a sliding window does."""
    call = make(12).call
    return replace(call, mask=torch.ones(12, 12, dtype=torch.bool).tril().triu(-4)[None, None])


def with_a_hole() -> Call:
    """A call with padding between tokens of a sample."""
    call = make(12, padding="left").call
    assert call.mask is not None
    call.mask[0, :, :, 8] = call.mask[0, :, 8] = False
    return call


UNFIT: dict[str, tuple[Call, Any]] = {
    "the method has no fused kernel for these settings": (make(12).call, METHODS["pai"]()),
    "the mask hides more than the future and padding": (without_some_keys(), TDRS()),
    "logits are capped": (replace(make(12).call, softcap=20.0), TDRS()),
    "values have another head size than keys": (replace(make(12).call, value=torch.zeros(2, 2, 12, 8)), TDRS()),
    "must all be float32": (replace(make(12).call, value=torch.zeros(2, 2, 12, 16).half()), TDRS()),
    "the head size is 8, not 16 to 256": (
        replace(make(12).call, **{name: torch.zeros(2, 2, 12, 8) for name in ("query", "key", "value")}),
        TDRS(),
    ),
    "gradients are recorded": (replace(make(12).call, query=make(12).call.query.requires_grad_()), TDRS()),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(fused, "serves", lambda device: True)
    call, method = UNFIT[reason]
    found = fused.unfit(call, method.fused)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize("sample", [make(12), make(12, padding="left"), make(12, padding="right"), make(3, past=12)])
def test_what_fits(monkeypatch: pytest.MonkeyPatch, sample: Any) -> None:
    monkeypatch.setattr(fused, "serves", lambda device: True)
    assert fused.unfit(sample.call, TDRS().fused) is None


def test_padding_between_tokens_does_not_fit() -> None:
    assert not with_a_hole().regular
    assert with_a_hole().mask is not None


def test_bounds_of_padding() -> None:
    left, right = make(12, padding="left").call, make(12, padding="right").call
    assert left.bounds is not None
    assert right.bounds is not None
    assert left.bounds.tolist() == [[4, 12], [0, 12]]
    assert right.bounds.tolist() == [[0, 8], [0, 12]]
    assert make(12).call.bounds is None


@pytest.fixture
def _unsaid() -> Iterator[None]:
    """No warning was given before."""
    core._warn_once.cache_clear()
    yield
    core._warn_once.cache_clear()


@pytest.mark.usefixtures("_unsaid")
@pytest.mark.parametrize("rows", [12, 1])
def test_a_call_that_does_not_fit_runs_in_blocks_and_says_so_once(rows: int) -> None:
    call = make(rows, past=3).call
    with warnings.catch_warnings(record=True) as said:
        for _ in range(3):
            warnings.simplefilter("always")  # as libraries do, which makes Python forget what it has said
            found = core.fused(replace(call, tally=Tally()), TDRS())
    assert [str(one.message) for one in said] == [
        "execution=triton runs TDRS as blocked: Triton does not run on this device"
    ]
    assert torch.equal(found, core.blocked(call, TDRS()))


@pytest.mark.usefixtures("_unsaid")
def test_auto_says_on_a_gpu_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "serves", lambda device: True)
    monkeypatch.setattr(core, "_on_gpu", lambda call: True)
    said = "execution=auto runs PAI as blocked: the method has no fused kernel for these settings"
    call, method = make(12).call, METHODS["pai"]()
    with pytest.warns(UserWarning, match=said):
        found = core.fastest(call, method)
    assert torch.equal(found, core.blocked(call, method))


@pytest.mark.usefixtures("_unsaid")
def test_auto_runs_in_blocks_on_a_cpu_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (make(12).call, make(1, past=12).call):
            torch.testing.assert_close(core.fastest(call, TDRS()), core.blocked(call, TDRS()))


def with_nan_in_padding(sample: Sample) -> tuple[Call, Call]:
    """A call, and the same one with NaN in its padding."""
    call, other = sample.call, replace(sample.call, key=sample.call.key.clone(), value=sample.call.value.clone())
    assert call.mask is not None
    hidden = ~call.mask.any(dim=2).transpose(-1, -2)
    for vectors in (other.key, other.value):
        vectors.masked_fill_(hidden[:, None, :, 0, None], torch.nan)
    return call, other


RESCALED: dict[str, tuple[Call, Call]] = {
    "plain": (make(12).call,) * 2,
    "padding on the left": with_nan_in_padding(make(12, padding="left")),
    "padding on the right": with_nan_in_padding(make(12, padding="right")),
    "a cache": (make(3, past=12).call,) * 2,
    "one row": (make(1, past=12).call,) * 2,
    "one row, padding": with_nan_in_padding(make(1, past=12, padding="left")),
    "a sliding window": (without_some_keys(),) * 2,
    "a hole": (with_a_hole(),) * 2,
    "rows that are not wanted": (replace(make(12, padding="left").call, wanted=7),) * 2,
}


@pytest.mark.parametrize("name", RESCALED)
def test_a_factor_of_all_logits_is_another_scale(name: str) -> None:
    """Also where Triton does not run, and under a mask that the kernels do not serve."""
    clean, call = RESCALED[name]
    expected = core.reference(clean, Temperature(tau=0.3))
    expected[:, :, : clean.wanted] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = core.fused(call, Temperature(tau=0.3))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("_unsaid")
def test_a_factor_of_some_heads_or_of_capped_logits_is_not() -> None:
    method = Temperature(tau=0.3)
    heads = torch.tensor([True, False, False, True])[None, :, None, None]
    for call in (replace(make(12).call, heads=heads), replace(make(12).call, softcap=2.0)):
        with pytest.warns(UserWarning, match="runs Temperature as blocked"):
            found = core.fused(call, method)
        torch.testing.assert_close(found, core.reference(call, method), atol=2e-6, rtol=1e-5)
        core._warn_once.cache_clear()


def test_without_triton_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "installed", lambda: False)
    with (
        pytest.raises(SettingError, match=r"^execution = 'triton': needs the package triton, which is for Linux: pip"),
        tdrs.intervene(tiny_llama(), TDRS(), "triton"),
    ):
        pass


def test_on_a_cpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "installed", lambda: True)
    reason = "execution = 'triton': needs a CUDA device, and this is a CPU: use auto"
    with pytest.raises(SettingError, match=f"^{reason}"), tdrs.intervene(tiny_llama(), TDRS(), "triton"):
        pass
    config = plain(compose("evaluate", ["attention.execution=triton", "backbone.device=cpu"]))
    with pytest.raises(SettingError, match=f"^attention.{reason}"):
        plan(config)


def test_counts_of_a_kernel_are_added_to_the_others() -> None:
    tally = Tally()
    tally.add("clamped", "dc.w_min", torch.tensor([True, False]))
    tally.counters("clamped", ("dc.w_min", "re.w_min"), torch.device("cpu"))[:] = torch.tensor([[3, 4], [0, 5]])
    assert tally.read() == {"clamped": {"dc.w_min": (4, 6), "re.w_min": (0, 5)}}
    assert tally.take() == {"clamped": {"dc.w_min": (4, 6), "re.w_min": (0, 5)}}
    assert tally.read() == {}


def test_nothing_of_ours_imports_triton_without_a_gpu() -> None:
    """transformers may import it; the kernels' modules would."""
    code = (
        "import sys, torch, tdrs; from tdrs.attention.core import EXECUTIONS\n"
        "from tests.interventions.calls import Sample, make\n"
        "[execute(make(9).call, tdrs.TDRS()) for execute in EXECUTIONS.values()]\n"
        "print([name for name in sys.modules if name.startswith('tdrs.attention.triton')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
