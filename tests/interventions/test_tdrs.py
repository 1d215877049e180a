"""T-DRS against the float64 oracle: every reading, stage subset, padding, cache, grouped queries, odd sizes."""

import itertools
import math

import numpy as np
import pytest
import torch

from tdrs import DC, RE, TDRS
from tdrs.attention.core import Block, Call, blocked, reference
from tdrs.attention.rope import rotate_half
from tdrs.settings import SettingError
from tests.interventions.oracle import softmax, tdrs_head

HEADS, GROUPS, WIDTH = 4, 2, 16


def rotation(positions: torch.Tensor, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin as a Llama computes them, (B, L, width)."""
    frequencies = 1.0 / (10_000 ** (torch.arange(0, width, 2) / width))
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def make_call(
    length: int, past: int = 0, padding: str | None = None, batch: int = 2, block_elements: int = 97
) -> tuple[Call, torch.Tensor, torch.Tensor, np.ndarray]:
    """A random call, the vectors before rotation, and V as (B, Q, K); padding makes sample 0 shorter by a third."""
    generator = torch.Generator().manual_seed(length * 7 + past)
    keys = past + length
    q0 = torch.randn(batch, HEADS, length, WIDTH, generator=generator)
    k0 = torch.randn(batch, GROUPS, keys, WIDTH, generator=generator)
    value = torch.randn(batch, GROUPS, keys, WIDTH, generator=generator)
    real = torch.ones(batch, keys, dtype=torch.bool)
    missing = length // 3 if padding else 0
    if missing:
        real[0, slice(0, missing) if padding == "left" else slice(keys - missing, keys)] = False
    positions = (real.long().cumsum(-1) - 1).clamp_min(0)
    cos, sin = rotation(positions)
    q = q0 * cos[:, None, past:] + rotate_half(q0) * sin[:, None, past:]
    k = k0 * cos[:, None] + rotate_half(k0) * sin[:, None]
    causal = torch.ones(length, keys, dtype=torch.bool).tril(past)
    mask = (causal & real[:, None, :])[:, None] if padding else None
    call = Call(q, k, value, WIDTH**-0.5, mask, (cos, sin), block_elements=block_elements)
    visible = (causal & real[:, None, :] & real[:, past:, None]).numpy()
    return call, q0, k0, visible


def oracle_output(call: Call, q0: torch.Tensor, k0: torch.Tensor, visible: np.ndarray, method: TDRS) -> np.ndarray:
    result = np.zeros(call.query.shape)
    if method.stats_scope == "call":
        smallest = call.smallest_logit(True)
    else:
        smallest = Block(call, 0, call.query.shape[2], call.key.shape[2]).smallest_logit
    post = method.features == "post_rope"
    for b, h in itertools.product(range(call.query.shape[0]), range(HEADS)):
        g = h // (HEADS // GROUPS)
        q, k = call.query[b, h].double().numpy(), call.key[b, g].double().numpy()
        features = (q, k) if post else (q0[b, h].double().numpy(), k0[b, g].double().numpy())
        a_min = smallest[b, h].double().numpy()
        logits = tdrs_head(q, k, *features, visible[b], a_min, method)
        result[b, h] = softmax(logits) @ call.value[b, g].double().numpy()
    return result


def check(method: TDRS, length: int, past: int = 0, padding: str | None = None) -> None:
    call, q0, k0, visible = make_call(length, past, padding)
    expected = oracle_output(call, q0, k0, visible, method)
    for execute in (reference, blocked):
        call.__dict__.pop("_directions", None)
        output = execute(call, method).numpy()
        assert np.isfinite(output).all()
        np.testing.assert_allclose(output, expected, atol=2e-5, rtol=1e-4, err_msg=execute.__name__)


STAGES = [
    TDRS(sd=sd, dc=dc, re=re)
    for sd, dc, re in itertools.product((True, False), (DC(), None), (RE(), None))
    if sd or dc or re
]
# multiples large enough that the kernels' end points matter
STRONG = {"dc": DC(w_min=300.0, weight=0.7), "re": RE(w_min=500.0, weight=1.3)}


@pytest.mark.parametrize("method", STAGES, ids=lambda m: f"sd={m.sd},dc={m.dc is not None},re={m.re is not None}")
def test_every_stage_subset(method: TDRS) -> None:
    check(method, 23)


@pytest.mark.parametrize("gain", ["logits", "weights"])
@pytest.mark.parametrize("scale", ["mean", "max", "one_plus", "none"])
@pytest.mark.parametrize("stats_scope", ["call", "row"])
def test_every_reading(gain: str, scale: str, stats_scope: str) -> None:
    for features, sd_form in (("pre_rope", "bias"), ("post_rope", "full")):
        method = TDRS(gain=gain, scale=scale, stats_scope=stats_scope, features=features, sd_form=sd_form, **STRONG)
        check(method, 17, padding="left")


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
@pytest.mark.parametrize("gain", ["logits", "weights"])
def test_odd_sizes(length: int, gain: str) -> None:
    check(TDRS(gain=gain, **STRONG), length)


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("stats_scope", ["call", "row"])
def test_padding(padding: str | None, stats_scope: str) -> None:
    check(TDRS(stats_scope=stats_scope, **STRONG), 31, padding=padding)


@pytest.mark.parametrize(("length", "past"), [(1, 1), (1, 40), (5, 33)])
def test_cache(length: int, past: int) -> None:
    check(TDRS(**STRONG), length, past)


def test_smallest_logit_matches_float64() -> None:
    """|A|_min is an extreme value near rounding: compared absolutely, within the error of the products."""
    call, _, _, visible = make_call(65, padding="left")
    found = call.smallest_logit(False)
    assert torch.equal(found, call.smallest_logit(True))
    q, k = call.query.double(), call.key.double().repeat_interleave(HEADS // GROUPS, dim=1)
    a = (q @ k.transpose(-1, -2)).abs() / math.sqrt(WIDTH)
    a[~torch.from_numpy(visible)[:, None].expand_as(a)] = math.inf
    largest = (q.norm(dim=-1).amax(-1) * k.norm(dim=-1).amax(-1)) / math.sqrt(WIDTH)
    bound = 8 * torch.finfo(torch.float32).eps * WIDTH * largest
    assert ((found[..., 0, 0].double() - a.amin((-2, -1))).abs() <= bound).all()


def test_masked_pairs_enter_no_statistic() -> None:
    """A huge and a tiny key in the padding change nothing."""
    call, *_ = make_call(20, padding="left")
    before = blocked(call, TDRS(**STRONG))
    poisoned, *_ = make_call(20, padding="left")
    poisoned.key[0, :, :3] = 1e4
    poisoned.key[0, :, 3:6] = 0
    assert torch.equal(before[:, :, 6:], blocked(poisoned, TDRS(**STRONG))[:, :, 6:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_at_large_logits(dtype: torch.dtype) -> None:
    call, *_ = make_call(33, padding="right")
    largest = call.product(call.query, call.key).abs().amax() * call.scaling
    scale = (1e4 / largest).sqrt()
    large = Call(
        call.query.mul(scale).to(dtype),
        call.key.mul(scale).to(dtype),
        call.value.to(dtype),
        call.scaling,
        call.mask,
        call.rotation,
        block_elements=64,
    )
    for gain in ("logits", "weights"):
        output = blocked(large, TDRS(gain=gain))
        assert output.dtype == dtype
        assert torch.isfinite(output).all()


def test_uninitialised_memory_is_never_read() -> None:
    """PyTorch fills new memory with NaN here; any element read before it is written would show."""
    call, q0, k0, visible = make_call(21, padding="left")
    expected = oracle_output(call, q0, k0, visible, TDRS(**STRONG))
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        output = blocked(make_call(21, padding="left")[0], TDRS(**STRONG)).numpy()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before
    np.testing.assert_allclose(output, expected, atol=2e-5, rtol=1e-4)


def test_zero_vectors_have_cosine_zero() -> None:
    call, q0, k0, visible = make_call(9)
    call.key[:, :, 4] = 0
    k0[:, :, 4] = 0
    np.testing.assert_allclose(
        reference(call, TDRS(**STRONG)).numpy(),
        oracle_output(call, q0, k0, visible, TDRS(**STRONG)),
        atol=2e-5,
        rtol=1e-4,
    )


def test_weight_zero_is_off() -> None:
    call, *_ = make_call(19)
    off = blocked(call, TDRS(dc=None, re=None))
    assert torch.equal(off, blocked(call, TDRS(dc=DC(weight=0), re=RE(weight=0))))
    assert not TDRS(sd=False, dc=DC(weight=0), re=None).active(0)


def test_kernels_reach_w_min_at_the_end() -> None:
    """At scale = 1 both kernels equal w_min at d_max and 1 at d = 0 (paper, stages 2 and 3)."""
    call, *_ = make_call(50)
    for stage in ({"dc": DC(w_min=1e4, weight=1.0), "re": None}, {"dc": None, "re": RE(w_min=1e4, weight=1.0)}):
        method = TDRS(sd=False, scale="none", **stage)  # type: ignore[arg-type]
        block = Block(call, 0, 50, 50)
        kernel = method._gain(block, None, method.statistics(call, True))
        w = (1e4 * call.smallest_logit(True).clamp_min(1e-6)).clamp(1e-12, 1 - 1e-6)
        torch.testing.assert_close(kernel[:, :, 49, 0], w[..., 0, 0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(kernel[:, :, 49, 49], torch.ones(2, HEADS))


def test_clamped_end_points_are_counted() -> None:
    call, *_ = make_call(30)
    blocked(call, TDRS(dc=DC(w_min=1e9), re=None))
    counts = torch.stack(call.clamped["dc.w_min"]).sum(0)
    assert counts.tolist() == [2 * HEADS, 2 * HEADS]


@pytest.mark.parametrize("layers", ["1-3", [1, 2, 3], range(1, 4)])
def test_layers_by_list_and_by_range(layers: object) -> None:
    method = TDRS(layers=layers)
    assert [method.active(n) for n in range(5)] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DC(weight=-1), "weight = -1"),
        (lambda: DC(w_min=0), "w_min = 0"),
        (lambda: RE(w_min=math.nan), "w_min = nan"),
        (lambda: RE(weight=math.inf), "weight = inf"),
        (lambda: TDRS(gain="both"), "gain = 'both': must be one of logits, weights"),
        (lambda: TDRS(layers=[0, -1]), "layers = [0, -1]: must be 'all', a list"),
        (lambda: TDRS(layers="3-1"), "layers = '3-1'"),
        (lambda: TDRS(layers="first"), "layers = 'first'"),
        (lambda: TDRS(scale="median"), "scale"),
    ],
)
def test_bad_settings_are_named(make, named: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingError) as error:
        make()
    assert named in str(error.value)
    assert "\n" not in str(error.value)
