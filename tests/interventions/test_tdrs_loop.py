"""The compiled loop of T-DRS. `test_tdrs.py` compares it with the float64 oracle, as every execution."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tdrs import DC, RE, TDRS
from tdrs.attention import loops
from tdrs.attention.core import blocked, fastest, reference
from tdrs.interventions import tdrs, tdrs_loop
from tests.interventions.calls import Sample, make
from tests.interventions.deviations import READINGS, strong

pytestmark = pytest.mark.skipif(not tdrs_loop.compiled(), reason="no compiler for the loop")
SAMPLES = [make(63), make(65, padding="left"), make(257, padding="right"), make(7, past=58), make(1, past=64)]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", [name for name, method in READINGS.items() if method._stages])
def test_the_loop_runs_and_equals_the_reference(monkeypatch: pytest.MonkeyPatch, name: str, sample: Sample) -> None:
    """With NaN in padding, and grouped queries."""
    query, key, value = (x.clone() for x in (sample.call.query, sample.call.key, sample.call.value))
    call, method = replace(sample.call, query=query, key=key, value=value), READINGS[name]
    expected = reference(call, method)
    if call.real is not None:
        padding = ~call.real[:, 0, :, 0]
        for x in (query, key, value):
            x.transpose(1, 2)[padding] = torch.nan
    monkeypatch.setattr(TDRS, "_gain", lambda *given: pytest.fail("the operators of PyTorch ran"))
    torch.testing.assert_close(fastest(call, method), expected, atol=2e-5, rtol=1e-5)


def test_kernels_far_below_rounding() -> None:
    """At sigma_re = 1000, b t is below the rounding of 1 + b t; at w = 1e-12 most kernels are 0; d_max may be 0."""
    extreme = DC(1e-12, 1.0, "absolute"), RE(1e-12, 1.0, "absolute")
    for length in (1, 65):
        for method in (strong(sigma_re=1e3), TDRS(dc=extreme[0], re=extreme[1]), TDRS(dc=DC(1e9), re=RE(1e9))):
            call = make(length).call
            torch.testing.assert_close(fastest(call, method), reference(call, method), atol=2e-5, rtol=1e-5)


def test_what_runs_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, the other executions, edits without the cosine, and everything where nothing can be compiled."""
    monkeypatch.setattr(tdrs, "edited", lambda *given: pytest.fail("the loop ran"))
    call = make(20).call
    blocked(call, TDRS())
    reference(call, TDRS())
    fastest(call, TDRS(sd=False, scale="none"))
    fastest(replace(call, query=call.query.clone().requires_grad_()), TDRS())
    monkeypatch.setattr(tdrs_loop, "_edit", lambda: None)
    assert torch.equal(fastest(call, TDRS()), blocked(call, TDRS()))


def test_what_cannot_be_compiled_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load: Any = loops.load.__wrapped__
    broken = tmp_path / "broken.c"
    broken.write_text("int f(")
    assert load(broken) is None
    for compiler in ("/no/such/compiler", "false", "'"):
        monkeypatch.setenv("CC", compiler)
        assert load(tdrs_loop.SOURCE) is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert load(tdrs_loop.SOURCE) is None


def test_loading_leaves_subnormal_numbers() -> None:
    """Some options of compilers round them to 0 in the whole process."""
    tdrs_loop.compiled()
    assert torch.full((4,), 1e-40).mul(0.5).gt(0).all()
