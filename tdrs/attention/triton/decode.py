"""Attention with an edit for one query row, as it is when a token is decoded.

    scan      the logits and the cosines of the row, and their statistics over each part of the keys
    weigh     the method's edit, the softmax and the sum of values of each part
    combine   the output from those of the parts

A part is SPLIT keys, so that many programs share the keys of one row. A program computes all query heads that share a
key head, and loads each key once. `attend` says what a method's functions take and return.
"""

import triton
import triton.language as tl

from tdrs.attention.triton.arithmetic import LOG2_E, dot
from tdrs.attention.triton.distance import apart
from tdrs.attention.triton.norm import NORM_FLOOR
from tdrs.attention.triton.scan import shown_keys
from tdrs.attention.triton.smallest import least_weight


@triton.jit
def _least(smallest, tops, masses, h, own, PARTS, M: tl.constexpr, WEIGHTS: tl.constexpr):
    """|A|_min of heads, (M,), from those of the parts."""
    n = tl.arange(0, 64)
    low = tl.full([M, 64], float("inf"), tl.float32)
    top = tl.full([M, 64], float("-inf"), tl.float32)
    mass = tl.zeros([M, 64], tl.float32)
    for some in range(0, PARTS, 64):
        mask = own[:, None] & (some + n < PARTS)[None, :]
        at = h[:, None] * PARTS + (some + n)[None, :]
        low = tl.minimum(low, tl.load(smallest + at, mask=mask, other=float("inf")))
        if WEIGHTS:
            more = tl.load(tops + at, mask=mask, other=float("-inf"))
            new = tl.maximum(top, more)
            safe = tl.where(new == float("-inf"), 0.0, new)
            mass = mass * tl.exp2(top - safe) + tl.load(masses + at, mask=mask, other=0.0) * tl.exp2(more - safe)
            top = new
    least = tl.min(low, 1)
    if WEIGHTS:
        largest = tl.max(top, 1)
        safe = tl.where(largest == float("-inf"), 0.0, largest)
        least = least_weight(least, largest, tl.sum(mass * tl.exp2(top - safe[:, None]), 1))
    return least


@triton.jit(do_not_specialize=["K", "PARTS"])
def weigh(
    query,
    key,
    value,
    bounds,
    logits,
    cosines,
    smallest,
    low_tops,
    low_masses,
    norms,
    spans,
    roles,
    positions,
    heads,
    counts,
    tops,
    masses,
    sums,
    K,
    PARTS,
    scaling,
    p0,
    p1,
    p2,
    p3,
    p4,
    q_b,
    q_h,
    k_b,
    k_h,
    k_r,
    v_b,
    v_h,
    v_r,
    p_b,
    p_r,
    p_a,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SPLIT: tl.constexpr,
    SCANNED: tl.constexpr,
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
    """Of each part: the largest edited logit and the sum of the weights, (B, H, parts), and of the values,
    (B, H, parts, WIDE). One program a part, key head and sample.

    SCANNED says that `scan` ran; if not, the logits are computed here.
    """
    part, bg = tl.program_id(0), tl.program_id(1)
    b, group = (bg // (HEADS // GROUP)).to(tl.int64), (bg % (HEADS // GROUP)).to(tl.int64)
    first, stop = shown_keys(bounds, b, K, PADDED)
    g, d = tl.arange(0, M), tl.arange(0, WIDE)
    own, inside = g < GROUP, (d < D)[None, :]
    h = b * HEADS + group * GROUP + g
    n = tl.arange(0, 64)
    least = float("inf")
    if SMALLEST == "head":
        of_each = _least(smallest, low_tops, low_masses, h, own, PARTS, M, WEIGHTS)
        least = of_each[:, None]
        if part == 0:
            COUNT(counts, of_each, p0, p1, p2, p3, p4, FLAGS)
    if SMALLEST == "layer":
        low = tl.full([M], float("inf"), tl.float32)
        for some in range(0, HEADS, M):
            there = b * HEADS + some + g
            low = tl.minimum(low, _least(smallest, low_tops, low_masses, there, some + g < HEADS, PARTS, M, WEIGHTS))
        least = tl.min(low, 0)
        if (part == 0) & (group == 0):
            COUNT(counts, tl.full([1], 0.0, tl.float32) + least, p0, p1, p2, p3, p4, FLAGS)
    norm = tl.full([M, 1], 1.0, tl.float32)
    if NORM != "":
        found = tl.full([M, 64], 0.0 if NORM == "mean" else -1.0, tl.float32)
        for some in range(0, PARTS, 64):
            mask = own[:, None] & (some + n < PARTS)[None, :]
            there = norms + h[:, None] * PARTS + (some + n)[None, :]
            if NORM == "mean":
                found += tl.load(there, mask=mask, other=0.0)
            else:
                found = tl.maximum(found, tl.load(there, mask=mask, other=-1.0))
        count = tl.maximum(stop - first, 1).to(tl.float32)
        cosine = tl.sum(found, 1) / count if NORM == "mean" else tl.max(found, 1)
        norm = tl.maximum(cosine * 0.5 + 0.5, NORM_FLOOR)[:, None]
    span = tl.maximum(stop - 1 - first, 1).to(tl.float32)
    if AXES > 0:
        span = tl.load(spans + b)
        span = tl.where(span > 0, span, 1.0)
        positions += b * p_b
    r0, r1, r2, r3 = ROWS(norm, span, least, p0, p1, p2, p3, p4, FLAGS)
    i_role = 0
    if ROLES:
        roles += b * K
        i_role = tl.load(roles + K - 1)
    edited = True
    if SOME_HEADS:
        edited = (tl.load(heads + group * GROUP + g, mask=own, other=0) != 0)[:, None]
    x = tl.zeros([M, WIDE], value.dtype.element_ty)
    if not SCANNED:
        x = tl.load(
            query + b * q_b + (group * GROUP + g)[:, None] * q_h + d[None, :], mask=own[:, None] & inside, other=0
        )
    key += b * k_b + group * k_h
    value += b * v_b + group * v_h
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, WIDE], tl.float32)
    for at in range(part * SPLIT, tl.minimum(part * SPLIT + SPLIT, stop), N):
        j = at + tl.arange(0, N)
        shown = (j >= first) & (j < stop)
        mask = shown[:, None] & inside
        v = tl.load(value + j[:, None] * v_r + d[None, :], mask=mask, other=0)
        there = h[:, None] * K + j[None, :]
        known = own[:, None] & shown[None, :]
        if SCANNED:
            a = tl.load(logits + there, mask=known, other=0.0) * LOG2_E
        else:
            y = tl.load(key + j[:, None] * k_r + d[None, :], mask=mask, other=0)
            a = dot(x, tl.trans(y), tl.zeros([M, N], tl.float32), PRECISION, INTERPRETED) * (scaling * LOG2_E)
        e = 0.0
        if COSINE:
            e = tl.load(cosines + there, mask=known, other=0.0)
        j_role = 0
        if ROLES:
            j_role = tl.load(roles + j, mask=shown, other=0)[None, :]
        if AXES > 0:
            distance = apart(positions, g * 0 + (K - 1), j, own, shown, p_r, p_a, M, N, AXES)
        else:
            distance = (K - 1 - j).to(tl.float32)[None, :]
        z, factor = EDIT(a, e, distance, r0, r1, r2, r3, i_role, j_role, p0, p1, p2, p3, p4, FLAGS, INTERPRETED)
        if SOME_HEADS:
            z = tl.where(edited, z, a)
        z = tl.where(shown[None, :], z, float("-inf"))
        new = tl.maximum(top, tl.max(z, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp2(z - safe[:, None])
        if FACTOR:
            p = p * (tl.where(edited, factor, 1.0) if SOME_HEADS else factor)
        keep = tl.exp2(top - safe)
        mass = mass * keep + tl.sum(p, 1)
        acc = dot(p.to(v.dtype), v, acc * keep[:, None], PRECISION, INTERPRETED)
        top = new
    at = h * PARTS + part
    tl.store(tops + at, top, mask=own)
    tl.store(masses + at, mass, mask=own)
    tl.store(sums + at[:, None] * WIDE + d[None, :], acc, mask=own[:, None] & inside)


@triton.jit(do_not_specialize=["PARTS"])
def combine(tops, masses, sums, out, PARTS, D: tl.constexpr, WIDE: tl.constexpr):
    """The output, (B, H, D) dense; 0 in a row of padding. One program a query head and sample."""
    bh = tl.program_id(0).to(tl.int64)
    n, d = tl.arange(0, 16), tl.arange(0, WIDE)
    inside = d < D
    top = tl.full([16], float("-inf"), tl.float32)
    for some in range(0, PARTS, 16):
        top = tl.maximum(top, tl.load(tops + bh * PARTS + some + n, mask=some + n < PARTS, other=float("-inf")))
    largest = tl.max(top, 0)
    safe = tl.where(largest == float("-inf"), 0.0, largest)
    mass = tl.zeros([16], tl.float32)
    acc = tl.zeros([WIDE], tl.float32)
    for some in range(0, PARTS, 16):
        at = bh * PARTS + some + n
        mask = some + n < PARTS
        share = tl.exp2(tl.load(tops + at, mask=mask, other=float("-inf")) - safe)
        mass += share * tl.load(masses + at, mask=mask, other=0.0)
        part = tl.load(sums + at[:, None] * WIDE + d[None, :], mask=mask[:, None] & inside[None, :], other=0.0)
        acc += tl.sum(part * share[:, None], 0)
    total = tl.sum(mass, 0)
    tl.store(out + bh * D + d, (acc / tl.where(total == 0, 1.0, total)).to(out.dtype.element_ty), mask=inside)
