"""The directions of keys: vectors scaled to length 1, before or after rotation. See `rope` for the layouts."""

import triton
import triton.language as tl


@triton.jit
def direction(
    x,
    cos,
    sin,
    rows,
    turns,
    visible,
    stride,
    stride_angle,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    TURNED: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Vectors of length 1 (0 stays 0), (rows, WIDE) float32; 0 where not `visible`, and from coordinate D on.

    Args:
        x: vectors that are `stride` apart.
        rows: which of them.
        turns: for each of them, the row of cos and sin.
        TURNED: how many coordinates are rotated; 0 leaves the vectors as they are.
    """
    d = tl.arange(0, WIDE)
    shown = visible[:, None] & (d < D)[None, :]
    at = x + rows[:, None] * stride
    own = tl.load(at + d[None, :], mask=shown, other=0).to(tl.float32)
    if TURNED > 0:
        half: tl.constexpr = TURNED // 2
        if LAYOUT == "halves":
            second = d >= half
            other = tl.where(second, d - half, d + half)
            angle = tl.where(second, d - half, d)
        else:
            second = d % 2 == 1
            other = tl.where(second, d - 1, d + 1)
            angle = d // 2 if LAYOUT == "pairs_of_halves" else d - d % 2
        turned = shown & (d < TURNED)[None, :]
        partner = tl.load(at + other[None, :], mask=turned, other=0).to(tl.float32)
        turn = turns[:, None] * stride_angle
        c = tl.load(cos + turn + angle[None, :], mask=turned, other=1.0).to(tl.float32)
        s = tl.load(sin + turn + angle[None, :], mask=turned, other=0).to(tl.float32)
        # cos² + sin² is one factor of all coordinates: 1, or above it in a scheme such as YaRN
        c0 = tl.load(cos + turns * stride_angle, mask=visible, other=1.0).to(tl.float32)
        s0 = tl.load(sin + turns * stride_angle, mask=visible, other=0).to(tl.float32)
        factor = 1.0 / (c0 * c0 + s0 * s0)
        undone = (own * c + partner * tl.where(second, -s, s)) * factor[:, None]
        own = tl.where(turned, undone, own)
    length = tl.sqrt(tl.sum(own * own, 1))
    return own * (1.0 / tl.maximum(length, 1e-20))[:, None]


@triton.jit
def key_directions(
    key,
    cos,
    sin,
    bounds,
    directions,
    sums,
    K,
    stride_b,
    stride_h,
    stride_k,
    stride_angle_b,
    stride_angle,
    GROUPS: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    TURNED: tl.constexpr,
    LAYOUT: tl.constexpr,
    PADDED: tl.constexpr,
    SUMS: tl.constexpr,
):
    """The direction of each key, (B, Hₖ, K, D), 0 where it is padding, and the sum over each chunk of keys.

    One program a chunk, key head and sample.
    """
    chunk, bh = tl.program_id(0), tl.program_id(1)
    b, h = (bh // GROUPS).to(tl.int64), (bh % GROUPS).to(tl.int64)
    j = chunk * CHUNK + tl.arange(0, CHUNK)
    d = tl.arange(0, WIDE)
    visible = j < K
    if PADDED:
        visible = visible & (j >= tl.load(bounds + 2 * b)) & (j < tl.load(bounds + 2 * b + 1))
    turn = b * stride_angle_b
    unit = direction(
        key + b * stride_b + h * stride_h,
        cos + turn,
        sin + turn,
        j,
        j,
        visible,
        stride_k,
        stride_angle,
        D,
        WIDE,
        TURNED,
        LAYOUT,
    )
    at = directions + (bh.to(tl.int64) * K + j)[:, None] * D + d[None, :]
    tl.store(at, unit.to(directions.dtype.element_ty), mask=(j < K)[:, None] & (d < D)[None, :])
    if SUMS:
        row = sums + (bh * tl.num_programs(0) + chunk).to(tl.int64) * WIDE
        tl.store(row + d, tl.sum(unit, 0))
