"""The first kernel of a decoded token: the logits and the cosines of one query row.

Directions of keys are kept from one token to the next, each with a mark: a hash of the bits of the key. `scan` reads
every key for its logit and makes anew the directions of those that have another mark than before. So the directions
follow a cache that grew, was cropped, reordered or changed in place, and the host need not wait for a comparison.
"""

import triton
import triton.language as tl

from tdrs.attention.triton.arithmetic import LOG2_E, dot
from tdrs.attention.triton.directions import direction
from tdrs.attention.triton.padding import real_keys
from tdrs.attention.triton.smallest import more_weights


@triton.jit
def _marks(keys, d, INTERPRETED: tl.constexpr):
    """A hash of the bits of each key, (N, WIDE) → (N,) int32, the same in any tile; never 0, which marks no key.

    Two keys that differ have the same mark with a probability of about 2⁻³¹.
    """
    bits = keys.to(tl.int32 if keys.dtype == tl.float32 else tl.int16, bitcast=True).to(tl.int32)
    factor = (d + 1) * -1640531535
    factor = ((factor ^ (factor >> 15)) * -2048144777) | 1
    mixed = bits * factor[None, :]
    mixed = (mixed ^ (mixed >> 15)) * -1028477387  # else the sign of an element would reach the highest bit alone
    mixed = mixed ^ (mixed >> 13)
    if INTERPRETED:  # it would not wrap the sum
        return tl.sum(mixed.to(tl.int64), 1).to(tl.int32) | 1
    return tl.sum(mixed, 1) | 1


@triton.jit
def shown_keys(bounds, b, K, PADDED: tl.constexpr):
    """The first key that the row sees, and the last one + 1; they are equal if the row is padding."""
    first, stop = real_keys(bounds, b, K, PADDED)
    if PADDED:
        stop = tl.where(stop == K, stop, first)  # the row's own key is the last one
    return first, stop


@triton.jit(do_not_specialize=["K", "PARTS"])
def scan(
    query,
    key,
    cos,
    sin,
    bounds,
    directions,
    marks,
    logits,
    cosines,
    smallest,
    tops,
    masses,
    norms,
    K,
    PARTS,
    scaling,
    q_b,
    q_h,
    k_b,
    k_h,
    k_r,
    m_b,
    m_h,
    stride_angle_b,
    stride_angle,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SPLIT: tl.constexpr,
    TURNED: tl.constexpr,
    LAYOUT: tl.constexpr,
    COSINE: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Logits and cosines, (B, H, K); the smallest |A| and the sum or the maximum of the cosine, (B, H, parts).

    WEIGHTS: instead of |A|, the smallest A times log₂ e, and what the weights of the part need.

    One program a part, key head and sample. Directions are (B, Hₖ, K or more, D), and marks (B, Hₖ, K or more).
    """
    part, bg = tl.program_id(0), tl.program_id(1)
    b, group = (bg // (HEADS // GROUP)).to(tl.int64), (bg % (HEADS // GROUP)).to(tl.int64)
    first, stop = shown_keys(bounds, b, K, PADDED)
    g, d = tl.arange(0, M), tl.arange(0, WIDE)
    own, inside = g < GROUP, (d < D)[None, :]
    query += b * q_b + group * GROUP * q_h
    x = tl.load(query + g[:, None] * q_h + d[None, :], mask=own[:, None] & inside, other=0)
    key += b * k_b + group * k_h
    unit = x
    if COSINE:
        cos += b * stride_angle_b
        sin += b * stride_angle_b
        unit = direction(query, cos, sin, g, g * 0 + (K - 1), own, q_h, stride_angle, D, WIDE, TURNED, LAYOUT)
        unit = unit.to(directions.dtype.element_ty)
        marks += b * m_b + group * m_h
        directions += (b * m_b + group * m_h) * D
    h = b * HEADS + group * GROUP + g
    low = tl.full([M], float("inf"), tl.float32)
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    norm = tl.full([M], 0.0 if NORM == "mean" else -1.0, tl.float32)
    zero = tl.zeros([M, N], tl.float32)
    for at in range(part * SPLIT, tl.minimum(part * SPLIT + SPLIT, stop), N):
        j = at + tl.arange(0, N)
        shown = (j >= first) & (j < stop)
        mask = shown[:, None] & inside
        y = tl.load(key + j[:, None] * k_r + d[None, :], mask=mask, other=0)
        there = h[:, None] * K + j[None, :]
        stored = own[:, None] & shown[None, :]
        a = dot(x, tl.trans(y), zero, PRECISION, INTERPRETED) * scaling
        tl.store(logits + there, a, mask=stored)
        size = a * LOG2_E if WEIGHTS else tl.abs(a)
        low = tl.minimum(low, tl.min(tl.where(shown[None, :], size, float("inf")), 1))
        if WEIGHTS:
            top, mass = more_weights(top, mass, tl.where(shown[None, :], size, float("-inf")))
        if COSINE:
            vectors = directions + j[:, None] * D + d[None, :]
            u = tl.load(vectors, mask=mask, other=0)
            mark = _marks(y, d, INTERPRETED)
            new = shown & (mark != tl.load(marks + j, mask=shown, other=0))
            if tl.max(new.to(tl.int32), 0) > 0:
                made = direction(key, cos, sin, j, j, new, k_r, stride_angle, D, WIDE, TURNED, LAYOUT).to(u.dtype)
                tl.store(vectors, made, mask=new[:, None] & inside)
                tl.store(marks + j, mark, mask=new)
                u = tl.where(new[:, None], made, u)
            e = dot(unit, tl.trans(u), zero, PRECISION, INTERPRETED)
            tl.store(cosines + there, e, mask=stored)
            if NORM == "mean":
                norm += tl.sum(tl.where(shown[None, :], e, 0.0), 1)
            else:
                norm = tl.maximum(norm, tl.max(tl.where(shown[None, :], e, -1.0), 1))
    tl.store(smallest + h * PARTS + part, low, mask=own)
    if WEIGHTS:
        tl.store(tops + h * PARTS + part, top, mask=own)
        tl.store(masses + h * PARTS + part, mass, mask=own)
    if NORM != "":
        tl.store(norms + h * PARTS + part, norm, mask=own)
