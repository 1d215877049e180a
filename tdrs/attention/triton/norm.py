"""The norm of a row, by which the edit may divide each cosine of the row."""

import triton
import triton.language as tl

from tdrs.attention.triton.arithmetic import dot

NORM_FLOOR = tl.constexpr(1e-6)


@triton.jit
def row_norm(
    unit,
    unit_low,
    directions,
    sums,
    i,
    first,
    start,
    end,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The mean or the largest sem_pos = (cosine + 1) / 2 over each row's visible keys, (M,), at least 1e-6.

    The mean over whole chunks is a product with the sum of their directions. The directions of padding are 0.
    """
    d = tl.arange(0, WIDE)
    found = tl.full([M], 0.0 if NORM == "mean" else -1.0, tl.float32)
    if NORM == "mean":
        whole = start // CHUNK
        total = tl.zeros([WIDE], tl.float32)
        c = tl.arange(0, 16)
        for some in range(0, whole, 16):
            part = tl.load(sums + (some + c)[:, None] * WIDE + d[None, :], mask=(some + c < whole)[:, None], other=0)
            total += tl.sum(part, 0)
        found = tl.sum(unit * total[None, :], 1)
        begin = whole * CHUNK
    else:
        begin = first // N * N
    zero = tl.zeros([M, N], tl.float32)
    for at in tl.range(begin, end, N, num_stages=1):
        j = at + tl.arange(0, N)
        mask = (j < end)[None, :] & (d < D)[:, None]
        e = dot(
            unit_low,
            tl.load(directions + j[None, :] * D + d[:, None], mask=mask, other=0),
            zero,
            PRECISION,
            INTERPRETED,
        )
        seen = (j[None, :] <= i[:, None]) & (j >= first)[None, :]
        if NORM == "mean":
            found += tl.sum(tl.where(seen, e, 0.0), 1)
        else:
            found = tl.maximum(found, tl.max(tl.where(seen, e, -1.0), 1))
    if NORM == "mean":
        found = found / tl.maximum(i - first + 1, 1).to(tl.float32)
    return tl.maximum(found * 0.5 + 0.5, NORM_FLOOR)
