"""The distance of position ids: the largest difference over their axes."""

import triton
import triton.language as tl

from tdrs.attention.triton.padding import real_keys


@triton.jit
def apart(positions, i, j, i_there, j_there, p_r, p_a, M: tl.constexpr, N: tl.constexpr, AXES: tl.constexpr):
    """The distance of tokens i and j, (M, N), float32.

    Args:
        positions: those of a sample; tokens are p_r and axes p_a apart.
        i_there, j_there: which of the tokens there are.
    """
    found = tl.zeros([M, N], tl.float32)
    for axis in tl.static_range(AXES):
        of_i = tl.load(positions + i * p_r + axis * p_a, mask=i_there, other=0).to(tl.float32)
        of_j = tl.load(positions + j * p_r + axis * p_a, mask=j_there, other=0).to(tl.float32)
        found = tl.maximum(found, tl.abs(of_i[:, None] - of_j[None, :]))
    return found


@triton.jit(do_not_specialize=["Q", "K"])
def row_spans(
    positions,
    bounds,
    spans,
    Q,
    K,
    p_b,
    p_r,
    p_a,
    AXES: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PADDED: tl.constexpr,
):
    """d_max of each row, (B, Q): the largest distance of a visible key, 0 in padding. One program a block, sample."""
    block, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    r = block * M + tl.arange(0, M)
    i = K - Q + r
    first, stop = real_keys(bounds, b, K, PADDED)
    real = (r < Q) & (i >= first) & (i < stop)
    positions += b * p_b
    span = tl.zeros([M], tl.float32)
    for at in range(first // N * N, tl.minimum(K - Q + block * M + M, stop), N):
        j = at + tl.arange(0, N)
        shown = (j >= first) & (j < stop)
        far = apart(positions, i, j, real, shown, p_r, p_a, M, N, AXES)
        seen = real[:, None] & shown[None, :] & (j[None, :] <= i[:, None])
        span = tl.maximum(span, tl.max(tl.where(seen, far, 0.0), 1))
    tl.store(spans + b * Q + r, span, mask=r < Q)
