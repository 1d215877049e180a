"""Properties of an edited model that hold for any settings (hypothesis): off is stock, row statistics, padding."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tdrs
from tdrs import DC, RE, TDRS
from tests.conftest import tiny_llama

MODEL = tiny_llama(initializer_range=0.1)
GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(3, 50, (2, 29), generator=GENERATOR)

READINGS: dict[str, st.SearchStrategy[Any]] = {
    "gain": st.sampled_from(["logits", "weights"]),
    "sd_form": st.sampled_from(["bias", "full"]),
    "features": st.sampled_from(["pre_rope", "post_rope"]),
    "scale": st.sampled_from(["mean", "max", "one_plus", "none"]),
    "sigma_re": st.just("tied") | st.floats(0.05, 20),
    "distance": st.sampled_from(["index", "position"]),
    "layers": st.sampled_from(["all", [0], "1-1", "50%-100%"]),
    "heads": st.sampled_from(["all", [1], "2-3"]),
}
SCOPE = st.sampled_from(["call", "row"])
# w_min is absolute: |A|_min is near rounding, and other shapes of a matrix product round differently
STRONG = {"dc": st.none() | st.just(DC(0.3, 0.7, "absolute")), "re": st.just(RE(0.4, 0.9, "absolute"))}
W_MIN = st.sampled_from([0.5, 3.0, 1e5])


@torch.no_grad()
def logits(ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    return MODEL(ids, **inputs).logits


STOCK = logits(IDS)


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries(READINGS), SCOPE, W_MIN)
def test_all_off_is_stock_bit_for_bit(readings: dict[str, Any], scope: str, w_min: float) -> None:
    for dc, re in ((None, None), (DC(w_min, 0), RE(w_min, 0)), (None, RE(w_min, 0))):
        with tdrs.intervene(MODEL, TDRS(sd=False, dc=dc, re=re, stats_scope=scope, **readings)):
            assert torch.equal(logits(IDS), STOCK)


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries(READINGS), SCOPE, W_MIN, st.booleans())
def test_weight_zero_is_the_stage_off(readings: dict[str, Any], scope: str, w_min: float, sd: bool) -> None:
    outputs = []
    for dc in (None, DC(w_min, 0)):
        with tdrs.intervene(MODEL, TDRS(sd=sd, dc=dc, re=RE(2.0, 0.5), stats_scope=scope, **readings)):
            outputs.append(logits(IDS))
    assert torch.equal(*outputs)


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries(READINGS), st.fixed_dictionaries(STRONG), st.integers(1, 28), st.booleans())
def test_row_statistics_make_cached_decoding_equal_to_the_full_pass(
    readings: dict[str, Any], stages: dict[str, Any], first: int, sd: bool
) -> None:
    """For any cut of the tokens into calls."""
    method = TDRS(sd=sd, stats_scope="row", **stages, **readings)
    with tdrs.intervene(MODEL, method), torch.no_grad():
        whole = logits(IDS)
        out = MODEL(IDS[:, :first], use_cache=True)
        parts = [out.logits]
        middle = (first + 29) // 2
        for piece in (IDS[:, first:middle], IDS[:, middle:]):
            if piece.shape[1]:
                out = MODEL(piece, past_key_values=out.past_key_values)
                parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-3, rtol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(READINGS),
    st.fixed_dictionaries(STRONG),
    SCOPE,
    st.sampled_from(["left", "right"]),
    st.integers(1, 12),
)
def test_padding_changes_nothing(
    readings: dict[str, Any], stages: dict[str, Any], scope: str, side: str, count: int
) -> None:
    method = TDRS(stats_scope=scope, **stages, **readings)
    pad = torch.zeros(2, count, dtype=torch.long)
    ones = torch.ones_like(IDS)
    ids, mask = (torch.cat((pad, x) if side == "left" else (x, pad), dim=1) for x in (IDS, ones))
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with tdrs.intervene(MODEL, method):
        expected = logits(IDS)
        padded = logits(ids, attention_mask=mask, position_ids=positions)
    where = slice(count, None) if side == "left" else slice(0, 29)
    torch.testing.assert_close(padded[:, where], expected, atol=1e-3, rtol=1e-3)
