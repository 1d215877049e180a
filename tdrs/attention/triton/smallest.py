"""|A|_min: the smallest |A| over all visible pairs. One product for each pair."""

import triton
import triton.language as tl

from tdrs.attention.triton.arithmetic import dot


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
    BY_ROW: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The smallest visible |A| of each row, (B, H, Q), or of each block of M rows, (B, H, blocks); ∞ in padding.

    One program a block, query head and sample.
    """
    block, bh = tl.program_id(0), tl.program_id(1)
    b, h = (bh // HEADS).to(tl.int64), (bh % HEADS).to(tl.int64)
    past = K - Q
    r = block * M + tl.arange(0, M)
    i = past + r
    d = tl.arange(0, WIDE)
    first, stop = 0, K
    if PADDED:
        first, stop = tl.load(bounds + 2 * b), tl.load(bounds + 2 * b + 1)
    real = (r < Q) & (i >= first) & (i < stop)
    inside = (d < D)[None, :]
    x = tl.load(query + b * q_b + h * q_h + r[:, None] * q_r + d[None, :], mask=real[:, None] & inside, other=0)
    key += b * k_b + (h // GROUP) * k_h
    low = tl.full([M, N], float("inf"), tl.float32)
    zero = tl.zeros([M, N], tl.float32)
    end = tl.minimum(past + (block + 1) * M, stop)
    free = tl.minimum(past + block * M + 1, stop)  # all rows see the keys before it, from `first` on
    for start in range(first // N * N, end, N):
        j = start + tl.arange(0, N)
        shown = (j >= first) & (j < stop)
        y = tl.load(key + j[None, :] * k_r + d[:, None], mask=shown[None, :] & (d < D)[:, None], other=0)
        a = tl.abs(dot(x, y, zero, PRECISION, INTERPRETED))
        if (start + N > free) | (start < first):
            a = tl.where((j[None, :] <= i[:, None]) & shown[None, :], a, float("inf"))
        low = tl.minimum(low, a)
    found = tl.where(real, tl.min(low, 1), float("inf")) * scaling
    if BY_ROW:
        tl.store(smallest + bh.to(tl.int64) * Q + r, found, mask=r < Q)
    else:
        tl.store(smallest + bh * tl.num_programs(0) + block, tl.min(found, 0))
