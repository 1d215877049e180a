"""The fused kernels in Triton's interpreter: python -m tests.attention.interpreted, with TRITON_INTERPRET=1.

Prints, for each case, the largest |output − reference| and what is counted, as JSON. The interpreter has to be on
before Triton is imported, so this is a process of its own. Outputs are means of standard normal values.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from tdrs import DC, RE, TDRS
from tdrs.attention.block import IMAGE, SYSTEM, TEXT
from tdrs.attention.call import Call
from tdrs.attention.core import blocked, fused, reference
from tdrs.attention.fused import FusedEdit, unfit
from tdrs.attention.method import Method
from tdrs.attention.rope import rotate
from tdrs.attention.tally import Tally
from tdrs.interventions.key_bias import KeyBias
from tdrs.interventions.temperature import Temperature
from tdrs.interventions.vaf import VAF
from tests.interventions.calls import rotation
from tests.interventions.deviations import READINGS, strong


def make(
    rows: int,
    past: int = 0,
    width: int = 16,
    padding: tuple[tuple[int, int], ...] = ((0, 0),),
    heads: int = 2,
    groups: int = 1,
    layout: str = "halves",
    turned: int | None = None,
    factor: float = 1.0,
) -> Call:
    """A random call.

    Args:
        padding: for each sample, how many keys are padding on the left and on the right.
        layout, turned, factor: of the rotation: its layout, how many coordinates it turns, the factor of cos and sin.
    """
    generator = torch.Generator().manual_seed(rows * 1000 + past * 10 + width)
    keys, batch = past + rows, len(padding)
    turned = width if turned is None else turned
    query = torch.randn(batch, heads, rows, width, generator=generator)
    key, value = (torch.randn(batch, groups, keys, width, generator=generator) for _ in range(2))
    real = torch.ones(batch, keys, dtype=torch.bool)
    for sample, (left, right) in enumerate(padding):
        real[sample, :left] = False
        real[sample, keys - right :] = False
    positions = (real.long().cumsum(-1) - 1).clamp_min(0)
    cos, sin = (x * factor for x in rotation(positions, turned))
    angles = torch.atan2(sin, cos)[:, None, :, : turned // 2]
    if layout == "pairs":
        cos, sin = (x[..., : turned // 2].repeat_interleave(2, dim=-1) for x in (cos, sin))
    query = rotate(query, angles[:, :, past:], factor, layout)
    key = rotate(key, angles, factor, layout)
    mask = None
    if any(any(sides) for sides in padding):
        mask = (torch.ones(rows, keys, dtype=torch.bool).tril(past) & real[:, None])[:, None]
    roles = torch.full((batch, keys), TEXT)
    roles[:, : keys // 2] = IMAGE
    roles[:, : keys // 5] = SYSTEM
    axes = torch.stack((positions, positions * 3 // 2, positions.flip(-1) % 11), dim=-1)
    return Call(query, key, value, width**-0.5, mask, (cos, sin), axes, roles, layout=layout)


def edit_of(method: Method) -> FusedEdit:
    edit = method.fused
    assert edit is not None
    return edit


def smallest_of(call: Call, method: Method) -> torch.Tensor:
    """The reference's |A|_min, (B, H or 1, 1), or of each row, (B, H or 1, Q)."""
    assert isinstance(method, TDRS)
    (block,) = replace(call, block_elements=None).blocks()
    of_rows = method._smallest(block)
    return (of_rows if method.stats_scope == "row" else of_rows.amin(dim=2, keepdim=True)).squeeze(-1)


def launched(call: Call, edit: FusedEdit, smallest: torch.Tensor | None) -> torch.Tensor:
    """The output of the kernels with a given |A|_min, (B, H or 1, 1 or Q), as if each part of the map had it."""
    from tdrs.attention.triton.run import Launches, RowLaunches

    if call.query.shape[2] == 1:
        row = RowLaunches(call, edit)
        scanned = row.scan()
        if scanned is not None and smallest is not None:
            scanned.smallest[:] = smallest
        return row.weigh(scanned)
    launches = Launches(call, edit)
    if smallest is not None:
        count = launches.rows if edit.by_row else launches.blocks
        smallest = smallest.expand(-1, call.query.shape[1], count).contiguous()
    return launches.attend(smallest)


def deviation(call: Call, method: Method, own: bool = False, dtype: torch.dtype = torch.float32) -> float:
    """The largest |output − reference|, which is float32. Both must count alike.

    Args:
        own: the kernels find |A|_min themselves, through the execution; else they are given that of the reference.
        dtype: of the inputs of both.
    """
    low = replace(call, **{name: getattr(call, name).to(dtype) for name in ("query", "key", "value")}, tally=Tally())
    exact = replace(low, **{name: getattr(low, name).float() for name in ("query", "key", "value")}, tally=Tally())
    expected = reference(exact, method)
    if call.wanted:
        expected[:, :, : call.wanted] = 0
        exact = replace(exact, tally=Tally())
        blocked(exact, method)  # the reference computes, and counts, all rows
    edit = edit_of(method)
    assert unfit(low, edit) is None
    if own:
        found = fused(low, method)
    else:
        given = None
        if edit.smallest:
            given = smallest_of(replace(exact, tally=Tally()), method)
        found = launched(low, edit, given)
    assert found.dtype == dtype
    assert exact.tally.read() == low.tally.read(), (exact.tally.read(), low.tally.read())
    return float((found.float() - expected).abs().max().nan_to_num(math.inf))


def poisoned(call: Call) -> float:
    """How much NaN in padding, and huge numbers beside it, change the output."""
    other = replace(call, query=call.query.clone(), key=call.key.clone(), value=call.value.clone(), tally=Tally())
    assert call.mask is not None
    keys = call.key.shape[2]
    padded = ~call.mask.any(dim=2)[:, 0]
    padded |= ~torch.nn.functional.pad(call.mask.diagonal(call.past, -2, -1)[:, 0], (call.past, 0), value=True)
    assert padded.any()
    for vectors in (other.key, other.value):
        vectors.masked_fill_(padded[:, None, :, None], math.nan)
    other.query.masked_fill_(padded[:, None, keys - call.query.shape[2] :, None], math.nan)
    clean, dirty = (fused(one, TDRS()) for one in (call, other))
    return float((clean - dirty).abs().max().nan_to_num(math.inf))


def smallest_error(call: Call) -> float:
    """The error of |A|_min against float64, as a share of what the core allows: 8 ε d max‖q‖‖k‖ / √d."""
    from tdrs.attention.triton.run import Launches

    found = Launches(call, edit_of(TDRS())).smallest().amin(dim=-1)
    q, k = call.query.double(), call.key.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=1)
    exact = (q @ k.transpose(-1, -2) * call.scaling).abs()
    visible = call.seen(0, q.shape[2], k.shape[2]) & call.real if call.mask is not None else None
    visible = torch.ones_like(exact, dtype=torch.bool).tril(call.past) if visible is None else visible
    exact = exact.masked_fill(~visible, math.inf).amin(dim=(-1, -2))
    width = q.shape[-1]
    allowed = 8 * torch.finfo(torch.float32).eps * width**0.5 * q.norm(dim=-1).amax() * k.norm(dim=-1).amax()
    return float((found - exact).abs().max() / allowed)


LEFT = ((5, 0), (0, 0))
BOTH = ((7, 0), (0, 4), (0, 0))
EXTREME = ((36, 0), (37, 0), (0, 36))  # one real token; none; one
WEIGHTS = strong(gain="weights")
# w_min is absolute: a multiple of |A|_min may be clamped, and kernels that are flat show no error of d_max
STEEP: dict[str, Any] = {"dc": DC(0.3, 0.7, "absolute"), "re": RE(0.4, 1.3, "absolute")}


def transposed(call: Call) -> Call:
    """The same call with heads behind rows, keys not dense, and angles of one sample for all."""
    query = call.query.transpose(1, 2).contiguous().transpose(1, 2)
    key = call.key.transpose(-1, -2).contiguous().transpose(-1, -2)
    value = call.value.repeat(1, 1, 1, 2)[..., : call.value.shape[-1]]
    assert call.rotation is not None
    cos, sin = (x.repeat(1, 1, 2)[..., : x.shape[-1]] for x in call.rotation)
    return replace(call, query=query, key=key, value=value, rotation=(cos, sin))


SHAPES: dict[str, Callable[[], float]] = {
    "63 rows": lambda: deviation(make(63), strong()),
    "257 rows": lambda: deviation(make(257, heads=1), strong()),
    "257 rows, weights": lambda: deviation(make(257, heads=1), WEIGHTS),
    "a cache of 65": lambda: deviation(make(33, past=65, padding=LEFT), strong()),
    "own |A|_min": lambda: deviation(make(65, padding=LEFT), strong(), own=True),
    "padding at both ends": lambda: deviation(make(37, padding=BOTH), TDRS(**STEEP)),
    "scale=max, padding at both ends": lambda: deviation(make(37, padding=BOTH), TDRS(**STEEP, scale="max")),
    "rows with one visible key, and none": lambda: deviation(make(37, padding=EXTREME), TDRS(**STEEP)),
    "grouped queries": lambda: deviation(make(33, heads=6, groups=2), TDRS(**STEEP)),
    "head size 80": lambda: deviation(make(33, width=80), strong()),
    "head size 256": lambda: deviation(make(33, width=256), strong()),
    "layout pairs": lambda: deviation(make(33, layout="pairs"), strong()),
    "layout pairs of halves": lambda: deviation(make(33, layout="pairs_of_halves"), strong()),
    "layout none": lambda: deviation(make(33, layout="none"), strong()),
    "half of the coordinates": lambda: deviation(make(33, width=32, turned=16), TDRS(**STEEP)),
    "stats_scope=row, layer, span": lambda: deviation(
        make(37, padding=BOTH), strong(re=STEEP["re"], stats_scope="row", a_min_per="layer")
    ),
    "stats_scope=row, rows that are not wanted": lambda: deviation(
        replace(make(40, padding=LEFT), wanted=35), strong(stats_scope="row")
    ),
    "distance=position, padding at both ends": lambda: deviation(
        make(37, padding=BOTH), TDRS(**STEEP, distance="position")
    ),
    "distance=position, stats_scope=row, padding at both ends": lambda: deviation(
        make(37, padding=BOTH), TDRS(**STEEP, distance="position", stats_scope="row")
    ),
    "YaRN": lambda: deviation(make(33, width=32, turned=16, factor=1.3), TDRS(**STEEP)),
    "other strides": lambda: deviation(transposed(make(33, groups=2)), TDRS(**STEEP)),
    "rows that are not wanted": lambda: deviation(replace(make(70, padding=LEFT), wanted=66), TDRS(**STEEP)),
}
POINTWISE: dict[str, Method] = {
    "temperature": Temperature(),
    "vaf": VAF(image=1.5, system=0.4),
    "key_bias": KeyBias(weight=7.0),
    "key_bias, system": KeyBias(weight=0.2, keys="system"),
}
OTHERS: dict[str, Callable[[], float]] = {
    "float16": lambda: deviation(make(65, width=64), strong(), dtype=torch.float16),
    "bfloat16": lambda: deviation(make(65, width=64), strong(), dtype=torch.bfloat16),
    "|A|_min": lambda: smallest_error(make(65, padding=BOTH, width=64)),
    "|A|_min, cache": lambda: smallest_error(make(33, past=32, width=64)),
    "vaf, 257 rows": lambda: deviation(make(257, heads=1), POINTWISE["vaf"], own=True),
    "NaN in padding": lambda: poisoned(make(37, padding=BOTH)),
    "NaN in padding, cache": lambda: poisoned(make(5, past=35, padding=((33, 0), (0, 3)))),
}


def _edits(call: Call, suffix: str = "") -> Iterator[tuple[str, Callable[[], float]]]:
    """Every method and reading that has a kernel, on a call with two heads."""
    some = replace(call, heads=torch.tensor([False, True])[None, :, None, None])
    for name, method in READINGS.items():
        one = some if name.startswith("heads") else call
        own = method.a_min_of == "weights"  # which is not near rounding
        yield name + suffix, lambda method=method, one=one, own=own: deviation(one, method, own)  # type: ignore
    for name, other in POINTWISE.items():
        yield name + suffix, lambda method=other: deviation(some, method, own=True)  # type: ignore


def cases() -> Iterator[tuple[str, Callable[[], float]]]:
    """All cases, by name."""
    from tests.attention.interpreted_decode import DECODED

    yield from _edits(make(33, past=32, padding=((5, 0),)))
    yield from _edits(make(1, past=64, padding=((5, 0), (0, 0))), ", decoded")
    yield from [*SHAPES.items(), *OTHERS.items(), *DECODED.items()]


if __name__ == "__main__":
    import sys
    import time

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for name, case in cases():
        start = time.perf_counter()
        found[name] = case()
        print(f"{name:45} {found[name]:.1e} {time.perf_counter() - start:.2f} s", file=sys.stderr)
    print(json.dumps(found))
