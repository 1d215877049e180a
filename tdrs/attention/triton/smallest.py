"""|A|_min: the smallest |A|, or the smallest weight, over all visible pairs. One product for each pair."""

import triton
import triton.language as tl

from tdrs.attention.triton.arithmetic import LOG2_E, dot
from tdrs.attention.triton.padding import real_keys


@triton.jit
def more_weights(top, mass, a):
    """The largest logit of each row, and the sum of the powers of 2 relative to it, after more logits, (M, N)."""
    new = tl.maximum(top, tl.max(a, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    return new, mass * tl.exp2(top - safe) + tl.sum(tl.exp2(a - safe[:, None]), 1)


@triton.jit
def least_weight(low, top, mass):
    """The smallest weight of each row, from its smallest logit and what `more_weights` gives; ∞ if it has none."""
    found = tl.exp2(tl.where(mass > 0, low - top, 0.0)) / tl.where(mass > 0, mass, 1.0)
    return tl.where(mass > 0, found, float("inf"))


@triton.jit
def smallest_logits(
    query,
    key,
    bounds,
    smallest,
    Q,
    K,
    scaling,
    q_b,
    q_h,
    q_r,
    k_b,
    k_h,
    k_r,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BY_ROW: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The smallest visible |A| of each row, (B, H, Q), or of each block of M rows, (B, H, blocks); ∞ in padding.

    WEIGHTS: the smallest visible softmax(A) instead.

    One program a block, query head and sample.
    """
    block, bh = tl.program_id(0), tl.program_id(1)
    b, h = (bh // HEADS).to(tl.int64), (bh % HEADS).to(tl.int64)
    past = K - Q
    r = block * M + tl.arange(0, M)
    i = past + r
    d = tl.arange(0, WIDE)
    first, stop = real_keys(bounds, b, K, PADDED)
    real = (r < Q) & (i >= first) & (i < stop)
    inside = (d < D)[None, :]
    x = tl.load(query + b * q_b + h * q_h + r[:, None] * q_r + d[None, :], mask=real[:, None] & inside, other=0)
    key += b * k_b + (h // GROUP) * k_h
    low = tl.full([M, N], float("inf"), tl.float32)
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    zero = tl.zeros([M, N], tl.float32)
    end = tl.minimum(past + (block + 1) * M, stop)
    free = tl.minimum(past + block * M + 1, stop)  # all rows see the keys before it, from `first` on
    for start in range(first // N * N, end, N):
        j = start + tl.arange(0, N)
        shown = (j >= first) & (j < stop)
        y = tl.load(key + j[None, :] * k_r + d[:, None], mask=shown[None, :] & (d < D)[:, None], other=0)
        a = dot(x, y, zero, PRECISION, INTERPRETED)
        if WEIGHTS:
            a = a * (scaling * LOG2_E)
            seen = (j[None, :] <= i[:, None]) & shown[None, :]
            top, mass = more_weights(top, mass, tl.where(seen, a, float("-inf")))
            a = tl.where(seen, a, float("inf"))
        else:
            a = tl.abs(a)
            if (start + N > free) | (start < first):
                a = tl.where((j[None, :] <= i[:, None]) & shown[None, :], a, float("inf"))
        low = tl.minimum(low, a)
    least = tl.min(low, 1)
    least = least_weight(least, top, mass) if WEIGHTS else least * scaling
    found = tl.where(real, least, float("inf"))
    if BY_ROW:
        tl.store(smallest + bh.to(tl.int64) * Q + r, found, mask=r < Q)
    else:
        tl.store(smallest + bh * tl.num_programs(0) + block, tl.min(found, 0))
