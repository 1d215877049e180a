"""T-DRS against the float64 oracle: every reading, stage subset, padding, cache, grouped queries, odd sizes."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdrs import DC, RE, TDRS
from tdrs.attention.block import Block
from tdrs.attention.core import blocked, reference
from tdrs.settings import SettingError
from tests.interventions.calls import HEADS, deviation, found_a_min, make, oracle_output
from tests.interventions.deviations import READINGS, reading_deviation, strong

CLOSE = 2e-5


@pytest.mark.parametrize("name", READINGS)
def test_every_reading_and_stage_subset(name: str) -> None:
    assert reading_deviation(name) < CLOSE


stage = {"w_min": st.sampled_from([0.5, 300.0, 1e5, 1e9]), "weight": st.sampled_from([0.0, 0.7, 5.0])}
absolute = {"w_min": st.floats(0.01, 0.99), "weight": st.sampled_from([0.7, 5.0]), "w_min_as": st.just("absolute")}


def some(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.builds(kind, **stage) | st.builds(kind, **absolute)


@settings(max_examples=80, deadline=None)
@given(
    method=st.builds(
        TDRS,
        sd=st.booleans(),
        dc=some(DC),
        re=some(RE),
        gain=st.sampled_from(["logits", "weights"]),
        sd_form=st.sampled_from(["bias", "full"]),
        features=st.sampled_from(["pre_rope", "post_rope"]),
        scale=st.sampled_from(["mean", "max", "one_plus", "none"]),
        a_min_of=st.sampled_from(["logits", "weights"]),
        a_min_per=st.sampled_from(["head", "layer"]),
        stats_scope=st.sampled_from(["call", "row"]),
        sigma_re=st.just("tied") | st.floats(0.05, 20),
        distance=st.sampled_from(["index", "position"]),
        pairs=st.sampled_from(["all", "text_to_image", "cross_modal"]),
    ),
    length=st.integers(1, 14),
    past=st.sampled_from([0, 0, 1, 9]),
    padding=st.sampled_from([None, "left", "right"]),
    seed=st.integers(0, 3),
)
def test_any_mixture_of_readings(method: TDRS, length: int, past: int, padding: str | None, seed: int) -> None:
    assert deviation("tdrs", method, make(length, past, padding, seed=seed)) < 10 * CLOSE


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257])
@pytest.mark.parametrize("gain", ["logits", "weights"])
def test_odd_sizes(length: int, gain: str) -> None:
    assert deviation("tdrs", strong(gain=gain), make(length, batch=1 if length > 65 else 2)) < CLOSE


@pytest.mark.parametrize("past", [1, 40])
@pytest.mark.parametrize("stats_scope", ["call", "row"])
def test_one_query_token_on_a_cache(past: int, stats_scope: str) -> None:
    """One row: both scopes are the same."""
    sample = make(1, past)
    assert deviation("tdrs", strong(stats_scope=stats_scope), sample) < CLOSE
    row, call = strong(stats_scope="row"), strong(stats_scope="call")
    assert torch.equal(reference(sample.call, row), reference(sample.call, call))


def test_smallest_logit_matches_float64() -> None:
    """|A|_min is an extreme value near rounding, so the comparison is absolute, within the error of the products."""
    for padding in (None, "left", "right"):
        sample = make(65, padding=padding)
        call = sample.call
        q, k = call.query.double(), call.key.double().repeat_interleave(HEADS // 2, dim=1)
        a = (q @ k.transpose(-1, -2)).abs() * call.scaling
        a[~torch.from_numpy(sample.visible)[:, None].expand_as(a)] = math.inf
        width = q.shape[-1]
        largest = (q.norm(dim=-1).amax(-1) * k.norm(dim=-1).amax(-1)) / math.sqrt(width)
        bound = 8 * torch.finfo(torch.float32).eps * width * largest
        for size in (None, 97):
            found = replace(call, block_elements=size).smallest(lambda block: block.smallest_logit)
            assert ((found[..., 0, 0].double() - a.amin((-2, -1))).abs() <= bound).all()


@pytest.mark.parametrize("scope", ["call", "row"])
def test_smallest_weight_matches_float64(scope: str) -> None:
    sample = make(33, padding="left")
    q, k = sample.call.query.double(), sample.call.key.double().repeat_interleave(HEADS // 2, dim=1)
    a = (q @ k.transpose(-1, -2)) * sample.call.scaling
    hidden = ~torch.from_numpy(sample.visible)[:, None].expand_as(a)
    weights = a.masked_fill(hidden, -math.inf).softmax(-1).masked_fill(hidden, math.inf)
    dims = (-2, -1) if scope == "call" else (-1,)
    expected = weights.amin(dims).reshape(2, HEADS, -1).numpy()
    for size in (None, 97):
        method = strong(a_min_of="weights", stats_scope=scope)
        np.testing.assert_allclose(
            found_a_min(replace(sample.call, block_elements=size), method), expected, rtol=1e-4, atol=0
        )


def test_smallest_of_the_layer_is_the_smallest_of_its_heads() -> None:
    call = make(21).call
    layer, heads = (found_a_min(call, strong(a_min_per=per)) for per in ("layer", "head"))
    assert (layer == heads.min(axis=1, keepdims=True)).all()
    assert (heads.min(axis=1) < heads.max(axis=1)).all()


@pytest.mark.parametrize("a_min_of", ["logits", "weights"])
@pytest.mark.parametrize("scale", ["mean", "max"])
def test_masked_pairs_enter_no_statistic(a_min_of: str, scale: str) -> None:
    """Huge and zero keys in the padding change nothing."""
    method = strong(a_min_of=a_min_of, scale=scale)
    before = blocked(make(20, padding="left").call, method)
    poisoned = make(20, padding="left").call
    poisoned.key[0, :, :3] = 1e4
    poisoned.key[0, :, 3:6] = 0
    assert torch.equal(before[:, :, 6:], blocked(poisoned, method)[:, :, 6:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gain", ["logits", "weights"])
@pytest.mark.parametrize("a_min_of", ["logits", "weights"])
def test_finite_at_large_logits(dtype: torch.dtype, gain: str, a_min_of: str) -> None:
    call = make(33, padding="right").call
    largest = call.product(call.query, call.key).abs().amax() * call.scaling
    scale = (1e4 / largest).sqrt()
    large = replace(
        call,
        query=call.query.mul(scale).to(dtype),
        key=call.key.mul(scale).to(dtype),
        value=call.value.to(dtype),
        block_elements=64,
    )
    for scope in ("call", "row"):
        output = blocked(large, TDRS(gain=gain, a_min_of=a_min_of, stats_scope=scope))
        assert output.dtype == dtype
        assert torch.isfinite(output).all()


def test_uninitialised_memory_is_never_read() -> None:
    """PyTorch fills new memory with NaN here, so an element that is read before it is written would show."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        for method in (strong(), strong(gain="weights", stats_scope="row", distance="position")):
            assert deviation("tdrs", method, make(21, padding="left")) < CLOSE
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def test_weights_sum_to_one() -> None:
    """With all values 1 the output is the sum of a row's weights."""
    for method in (strong(), strong(gain="weights", scale="max")):
        call = make(40, padding="right").call
        ones = blocked(replace(call, value=torch.ones_like(call.value), block_elements=97), method)
        assert call.real is not None
        real = call.real.expand(-1, HEADS, -1, call.value.shape[-1])
        torch.testing.assert_close(ones[real], torch.ones_like(ones[real]), atol=1e-6, rtol=0)


def test_zero_vectors_have_cosine_zero() -> None:
    sample = make(9)
    sample.call.key[:, :, 4] = 0
    sample.k0[:, :, 4] = 0
    assert deviation("tdrs", strong(), sample) < CLOSE


def test_a_row_with_one_visible_key_passes_its_value_on() -> None:
    sample = make(5)
    output = reference(sample.call, strong())
    value = sample.call.value.repeat_interleave(HEADS // 2, dim=1)
    torch.testing.assert_close(output[:, :, 0], value[:, :, 0])


def test_weight_zero_is_off() -> None:
    call = make(19).call
    off = blocked(call, TDRS(dc=None, re=None))
    assert torch.equal(off, blocked(call, TDRS(dc=DC(weight=0), re=RE(weight=0))))
    assert not TDRS(sd=False, dc=DC(weight=0), re=None).active


@pytest.mark.parametrize("sigma_re", ["tied", 0.2, 5.0])
def test_kernels_reach_w_min_at_the_end(sigma_re: float | str) -> None:
    """At scale = 1 both kernels equal w_min at d_max and 1 at d = 0 (paper, stages 2 and 3)."""
    call = make(50).call
    for stages in ({"dc": DC(w_min=1e4, weight=1.0), "re": None}, {"dc": None, "re": RE(w_min=1e4, weight=1.0)}):
        method = TDRS(sd=False, scale="none", sigma_re=sigma_re, **stages)  # type: ignore[arg-type]
        block = Block(call, 0, 50, 50)
        kernel = method._gain(block, None, method._rows(block, None, method.statistics(call)))
        w = (1e4 * call.smallest(lambda block: block.smallest_logit).clamp_min(1e-6)).clamp(1e-12, 1 - 1e-6)
        torch.testing.assert_close(kernel[:, :, 49, 0], w[..., 0, 0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(kernel[:, :, 49, 49], torch.ones(2, HEADS))


def test_absolute_w_min_needs_no_pass_over_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "smallest_logit", property(lambda self: pytest.fail("asked for |A|_min")))
    call = make(12).call
    method = TDRS(dc=DC(0.3, 1.0, "absolute"), re=RE(0.2, 1.0, "absolute"))
    assert blocked(call, method).isfinite().all()
    assert call.tally.read() == {}


def test_clamped_end_points_are_counted() -> None:
    for size in (None, 97):
        call = replace(make(30).call, block_elements=size)
        blocked(call, TDRS(dc=DC(w_min=1e9), re=None))
        assert call.tally.read() == {"clamped": {"dc.w_min": (2 * HEADS, 2 * HEADS)}}


def test_what_the_core_must_provide() -> None:
    assert TDRS().needs == {"rotation"}
    assert TDRS(features="post_rope", distance="position", pairs="cross_modal").needs == {"positions", "roles"}
    assert TDRS(sd=False, scale="none").needs == frozenset()


def test_the_oracle_tells_readings_apart() -> None:
    """A test that compares with the oracle can fail: two readings differ by far more than the tolerance."""
    sample = make(23)
    everything = frozenset(range(HEADS))
    outputs = {
        name: oracle_output(sample, sample.call, "tdrs", method, frozenset({1, 2}) if "heads" in name else everything)
        for name, method in READINGS.items()
    }
    names = list(outputs)
    for n, one in enumerate(names):
        for other in names[n + 1 :]:
            assert np.abs(outputs[one] - outputs[other]).max() > 20 * CLOSE, (one, other)


@pytest.mark.parametrize(
    ("make_method", "named"),
    [
        (lambda: DC(weight=-1), "weight = -1"),
        (lambda: DC(w_min=0), "w_min = 0"),
        (lambda: DC(w_min=1.0, w_min_as="absolute"), "w_min = 1.0: must be above 0 and below 1"),
        (lambda: DC(w_min_as="relative"), "w_min_as = 'relative': must be one of multiple, absolute"),
        (lambda: RE(w_min=math.nan), "w_min = nan"),
        (lambda: RE(weight=math.inf), "weight = inf"),
        (lambda: TDRS(gain="both"), "gain = 'both': must be one of logits, weights"),
        (lambda: TDRS(layers=[0, -1]), "layers = [0, -1]: must be 'all', a list"),
        (lambda: TDRS(scale="median"), "scale"),
        (lambda: TDRS(a_min_of="values"), "a_min_of"),
        (lambda: TDRS(a_min_per="token"), "a_min_per"),
        (lambda: TDRS(sigma_re="free"), "sigma_re = 'free': must be 'tied' or a share of d_max"),
        (lambda: TDRS(sigma_re=0), "sigma_re = 0"),
        (lambda: TDRS(sigma_re=math.nan), "sigma_re = nan"),
        (lambda: TDRS(sigma_re=[1]), "sigma_re = [1]: must be 'tied' or a share of d_max"),  # type: ignore[arg-type]
        (lambda: TDRS(sigma_re=True), "sigma_re = True"),
        (lambda: TDRS(sd="no"), "sd = 'no': must be true or false"),  # type: ignore[arg-type]
        (lambda: TDRS(dc=3.0), "dc = 3.0: must be tdrs.DC(…), or None"),  # type: ignore[arg-type]
        (lambda: TDRS(dc=RE()), "dc = RE("),  # type: ignore[arg-type]
        (lambda: TDRS(re={"w_min": 2}), "re = {'w_min': 2}: must be tdrs.RE(…), or None"),  # type: ignore[arg-type]
        (lambda: TDRS(distance="pixels"), "distance"),
        (lambda: TDRS(pairs="image_to_image"), "pairs"),
        (lambda: TDRS(heads="first"), "heads = 'first'"),
        (lambda: TDRS(phase="training"), "phase"),
    ],
)
def test_bad_settings_are_named(make_method: Any, named: str) -> None:
    with pytest.raises(SettingError) as error:
        make_method()
    assert named in str(error.value)
    assert "\n" not in str(error.value)
