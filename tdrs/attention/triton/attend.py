"""Attention with an edit: logits, the method's edit, the softmax and the sum of values in one pass over the keys.

The softmax is computed online: the sums so far are scaled down whenever a row's largest logit grows. Keys that all rows
of a block see need no mask; the tiles at the diagonal and at the end of the padding have one.

A method's edit is up to three functions of Triton:

    rows(norm, span, smallest, p0, p1, p2, p3, p4, FLAGS) -> r0, r1, r2, r3
    edit(a, e, distance, r0, r1, r2, r3, i_role, j_role, p0, p1, p2, p3, p4, FLAGS, INTERPRETED) -> a', factor
    count(counts, smallest, p0, p1, p2, p3, p4, FLAGS)

`rows` computes what is constant along a row, (M, 1) or scalars. `edit` works on a tile, (M, N): a are the logits times
log₂ e, and so are the edited ones; e is the cosine; `factor` multiplies the weight exp(A'). `count` adds to the tally
what it finds in each |A|_min, (N,); ∞ stands for none. See `fused.FusedEdit`.
"""

import triton
import triton.language as tl

from tdrs.attention.triton.arithmetic import LOG2_E, dot
from tdrs.attention.triton.directions import direction
from tdrs.attention.triton.distance import apart
from tdrs.attention.triton.norm import row_norm
from tdrs.attention.triton.padding import real_keys


@triton.jit
def _tile(
    acc,
    top,
    mass,
    start,
    x,
    unit,
    key,
    directions,
    value,
    roles,
    positions,
    i,
    i_float,
    real,
    i_role,
    edited,
    first,
    stop,
    k_r,
    v_r,
    p_r,
    p_a,
    scaling,
    r0,
    r1,
    r2,
    r3,
    p0,
    p1,
    p2,
    p3,
    p4,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    EDIT: tl.constexpr,
    FLAGS: tl.constexpr,
    COSINE: tl.constexpr,
    FACTOR: tl.constexpr,
    ROLES: tl.constexpr,
    AXES: tl.constexpr,
    SOME_HEADS: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The sums of a block of rows after one more tile of keys."""
    j = start + tl.arange(0, N)
    d = tl.arange(0, WIDE)
    shown = (j >= first) & (j < stop)
    if MASK:
        across, down = shown[None, :] & (d < D)[:, None], shown[:, None] & (d < D)[None, :]
        y = tl.load(key + j[None, :] * k_r + d[:, None], mask=across, other=0)
        v = tl.load(value + j[:, None] * v_r + d[None, :], mask=down, other=0)
    elif D < WIDE:
        y = tl.load(key + j[None, :] * k_r + d[:, None], mask=(d < D)[:, None], other=0)
        v = tl.load(value + j[:, None] * v_r + d[None, :], mask=(d < D)[None, :], other=0)
    else:
        y = tl.load(key + j[None, :] * k_r + d[:, None])
        v = tl.load(value + j[:, None] * v_r + d[None, :])
    zero = tl.zeros([M, N], tl.float32)
    a = dot(x, y, zero, PRECISION, INTERPRETED) * scaling
    e = 0.0
    if COSINE:
        if MASK:
            u = tl.load(directions + j[None, :] * D + d[:, None], mask=shown[None, :] & (d < D)[:, None], other=0)
        elif D < WIDE:
            u = tl.load(directions + j[None, :] * D + d[:, None], mask=(d < D)[:, None], other=0)
        else:
            u = tl.load(directions + j[None, :] * D + d[:, None])
        e = dot(unit, u, zero, PRECISION, INTERPRETED)
    j_role = 0
    if ROLES:
        j_role = tl.load(roles + j, mask=shown, other=0)[None, :]
    if AXES > 0:
        distance = apart(positions, i, j, real, shown, p_r, p_a, M, N, AXES)
    else:
        distance = i_float[:, None] - j.to(tl.float32)[None, :]  # converting each pair takes as long as an exp2
    z, factor = EDIT(a, e, distance, r0, r1, r2, r3, i_role, j_role, p0, p1, p2, p3, p4, FLAGS, INTERPRETED)
    if SOME_HEADS:
        z = tl.where(edited, z, a)
    if MASK:
        z = tl.where((j[None, :] <= i[:, None]) & shown[None, :], z, float("-inf"))
    new = tl.maximum(top, tl.max(z, 1))
    safe = tl.where(new == float("-inf"), 0.0, new) if MASK else new
    p = tl.exp2(z - safe[:, None])
    if FACTOR:
        p = p * (tl.where(edited, factor, 1.0) if SOME_HEADS else factor)
    keep = tl.exp2(top - safe)
    mass = mass * keep + tl.sum(p, 1)
    acc = dot(p.to(v.dtype), v, acc * keep[:, None], PRECISION, INTERPRETED)
    return acc, new, mass


@triton.jit
def attend(
    query,
    key,
    value,
    cos,
    sin,
    directions,
    sums,
    smallest,
    spans,
    bounds,
    roles,
    positions,
    heads,
    counts,
    out,
    Q,
    K,
    CHUNKS,
    BLOCKS,
    wanted,
    scaling,
    p0,
    p1,
    p2,
    p3,
    p4,
    q_b,
    q_h,
    q_r,
    k_b,
    k_h,
    k_r,
    v_b,
    v_h,
    v_r,
    o_b,
    o_h,
    o_r,
    p_b,
    p_r,
    p_a,
    stride_angle_b,
    stride_angle,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    TURNED: tl.constexpr,
    LAYOUT: tl.constexpr,
    ROWS: tl.constexpr,
    EDIT: tl.constexpr,
    COUNT: tl.constexpr,
    FLAGS: tl.constexpr,
    COSINE: tl.constexpr,
    NORM: tl.constexpr,
    SMALLEST: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BY_ROW: tl.constexpr,
    FACTOR: tl.constexpr,
    ROLES: tl.constexpr,
    AXES: tl.constexpr,
    SOME_HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The output of M query rows, 0 in rows of padding and before `wanted`. One program a block, head and sample."""
    block, bh = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)  # the longest blocks first
    b, h = (bh // HEADS).to(tl.int64), (bh % HEADS).to(tl.int64)
    group = h // GROUP
    past = K - Q
    r = block * M + tl.arange(0, M)
    i = past + r
    i_float = i.to(tl.float32)
    d = tl.arange(0, WIDE)
    first, stop = real_keys(bounds, b, K, PADDED)
    real = (r < Q) & (i >= first) & (i < stop) & (r >= wanted)
    inside = (d < D)[None, :]
    query += b * q_b + h * q_h
    x = tl.load(query + r[:, None] * q_r + d[None, :], mask=real[:, None] & inside, other=0)
    end = tl.minimum(past + (block + 1) * M, stop)
    if block * M + M <= wanted:
        end = 0
    unit = x
    norm = tl.full([M, 1], 1.0, tl.float32)
    if COSINE:
        at = (b * (HEADS // GROUP) + group) * K * D
        turn = b * stride_angle_b
        exact = direction(query, cos + turn, sin + turn, r, i, real, q_r, stride_angle, D, WIDE, TURNED, LAYOUT)
        directions += at
        unit = exact.to(directions.dtype.element_ty)
        if NORM != "":
            sums += (b * (HEADS // GROUP) + group) * CHUNKS * WIDE
            start = tl.minimum(past + block * M, stop)
            norm = row_norm(
                exact, unit, directions, sums, i, first, start, end,
                D, WIDE, M, N, CHUNK, NORM, PRECISION, INTERPRETED,
            )[:, None]  # fmt: skip
    span = tl.maximum(stop - 1 - first, 1).to(tl.float32)
    if AXES > 0 and BY_ROW:
        span = tl.load(spans + b * Q + r, mask=r < Q, other=0)[:, None]
    elif AXES > 0:
        spans += b * Q
        far = tl.zeros([128], tl.float32)
        for some in range(0, Q, 128):
            far = tl.maximum(far, tl.load(spans + some + tl.arange(0, 128), mask=some + tl.arange(0, 128) < Q, other=0))
        span = tl.max(far, 0)
    elif BY_ROW:
        span = tl.maximum(i - first, 1).to(tl.float32)[:, None]
    if AXES > 0:
        span = tl.where(span > 0, span, 1.0)
        positions += b * p_b
    least = float("inf")
    if SMALLEST != "" and BY_ROW:
        low = tl.full([M], float("inf"), tl.float32)
        for one in range(h if SMALLEST == "head" else 0, h + 1 if SMALLEST == "head" else HEADS):
            there = smallest + (b * HEADS + one) * Q + r
            low = tl.minimum(low, tl.load(there, mask=real, other=float("inf")))
        if (h == 0) | (SMALLEST == "head"):
            COUNT(counts, low, p0, p1, p2, p3, p4, FLAGS)
        least = low[:, None]
    elif SMALLEST != "":
        count = BLOCKS if SMALLEST == "head" else BLOCKS * HEADS
        smallest += bh * BLOCKS if SMALLEST == "head" else b * HEADS * BLOCKS
        low = tl.full([128], float("inf"), tl.float32)
        n = tl.arange(0, 128)
        for some in range(0, count, 128):
            low = tl.minimum(low, tl.load(smallest + some + n, mask=some + n < count, other=float("inf")))
        least = tl.min(low, 0)
        if (block == 0) & ((h == 0) | (SMALLEST == "head")):
            COUNT(counts, tl.full([1], 0.0, tl.float32) + least, p0, p1, p2, p3, p4, FLAGS)
    r0, r1, r2, r3 = ROWS(norm, span, least, p0, p1, p2, p3, p4, FLAGS)
    i_role = 0
    if ROLES:
        roles += b * K
        i_role = tl.load(roles + i, mask=r < Q, other=0)[:, None]
    edited = True
    if SOME_HEADS:
        edited = tl.load(heads + h) != 0
    key += b * k_b + group * k_h
    value += b * v_b + group * v_h
    scaling = scaling * LOG2_E
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, WIDE], tl.float32)
    lower = first // N * N
    full = tl.maximum(tl.minimum(past + block * M + 1, end) // N * N, lower)  # all rows see the keys before it
    if PADDED:  # the tile in which padding ends
        for at in range(lower, tl.minimum(lower + N, full), N):
            acc, top, mass = _tile(
                acc, top, mass, at, x, unit, key, directions, value, roles, positions, i, i_float, real, i_role, edited,
                first, stop, k_r, v_r, p_r, p_a, scaling, r0, r1, r2, r3, p0, p1, p2, p3, p4, D, WIDE, M, N, EDIT,
                FLAGS, COSINE, FACTOR, ROLES, AXES, SOME_HEADS, True, PRECISION, INTERPRETED,
            )  # fmt: skip
        lower = tl.minimum(lower + N, full)
    for at in range(lower, full, N):
        acc, top, mass = _tile(
            acc, top, mass, at, x, unit, key, directions, value, roles, positions, i, i_float, real, i_role, edited,
            first, stop, k_r, v_r, p_r, p_a, scaling, r0, r1, r2, r3, p0, p1, p2, p3, p4, D, WIDE, M, N, EDIT, FLAGS,
            COSINE, FACTOR, ROLES, AXES, SOME_HEADS, False, PRECISION, INTERPRETED,
        )  # fmt: skip
    for at in range(full, end, N):
        acc, top, mass = _tile(
            acc, top, mass, at, x, unit, key, directions, value, roles, positions, i, i_float, real, i_role, edited,
            first, stop, k_r, v_r, p_r, p_a, scaling, r0, r1, r2, r3, p0, p1, p2, p3, p4, D, WIDE, M, N, EDIT, FLAGS,
            COSINE, FACTOR, ROLES, AXES, SOME_HEADS, True, PRECISION, INTERPRETED,
        )  # fmt: skip
    acc = tl.where(real[:, None], acc / tl.where(mass == 0, 1.0, mass)[:, None], 0.0)
    at = out + b * o_b + h * o_h + r[:, None] * o_r + d[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=(r < Q)[:, None] & inside)


@triton.jit
def no_rows(norm, span, smallest, p0, p1, p2, p3, p4, FLAGS: tl.constexpr):
    """Nothing is constant along a row."""
    return 0.0, 0.0, 0.0, 0.0


@triton.jit
def no_count(counts, smallest, p0, p1, p2, p3, p4, FLAGS: tl.constexpr):
    """Nothing is counted."""
