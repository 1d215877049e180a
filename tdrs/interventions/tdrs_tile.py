"""T-DRS on a tile of the map: functions of Triton. `tdrs.py` has the formulas and the names.

Logits are times log₂ e here, and both kernels are powers of 2: with t = (d / sem_pos)²,

    λ_dc r_dc = 2^(t r0 + log₂ λ_dc)        λ_re r_re = 2^(r2 log₂(1 + t r1) + log₂ λ_re)

The row's norm of sem_pos and d_max are a part of r0 and r1; r2 = −α; r3 is the smallest sem_pos. The numbers are
p0 = w_dc, p1 = log₂ λ_dc, p2 = w_re, p3 = log₂ λ_re, p4 = b for a σ_re that is a number.
"""

import math

import triton
import triton.language as tl

from tdrs.attention.block import IMAGE as IMAGE_ROLE
from tdrs.attention.fused import Functions
from tdrs.attention.triton.arithmetic import LOG2_E, log1p2, log2, reciprocal
from tdrs.interventions import tdrs
from tdrs.interventions.tdrs_fused import Flag

SD = tl.constexpr(int(Flag.SD))
FULL = tl.constexpr(int(Flag.FULL))
DC = tl.constexpr(int(Flag.DC))
DC_ABSOLUTE = tl.constexpr(int(Flag.DC_ABSOLUTE))
RE = tl.constexpr(int(Flag.RE))
RE_ABSOLUTE = tl.constexpr(int(Flag.RE_ABSOLUTE))
SIGMA = tl.constexpr(int(Flag.SIGMA))
WEIGHTS = tl.constexpr(int(Flag.WEIGHTS))
NORMED = tl.constexpr(int(Flag.NORMED))
ONE_PLUS = tl.constexpr(int(Flag.ONE_PLUS))
TEXT_TO_IMAGE = tl.constexpr(int(Flag.TEXT_TO_IMAGE))
CROSS_MODAL = tl.constexpr(int(Flag.CROSS_MODAL))
OF_WEIGHTS = tl.constexpr(int(Flag.OF_WEIGHTS))
IMAGE = tl.constexpr(IMAGE_ROLE)
LN_2 = tl.constexpr(math.log(2))
W_LEAST, W_MOST = tl.constexpr(tdrs.W_RANGE[0]), tl.constexpr(tdrs.W_RANGE[1])
LOGIT_FLOOR = tl.constexpr(tdrs.LOGIT_FLOOR)
SCALE_FLOOR = tl.constexpr(tdrs.SCALE_FLOOR)


@triton.jit
def _inside(w):
    """w, clamped into (0, 1)."""
    return tl.minimum(tl.maximum(w, W_LEAST), W_MOST)


@triton.jit
def _multiple(w, smallest, FLAGS: tl.constexpr):
    """w, a multiple of |A|_min."""
    if OF_WEIGHTS & FLAGS:
        return w * smallest
    return w * tl.maximum(smallest, LOGIT_FLOOR)


@triton.jit
def _decay(w, smallest, ABSOLUTE: tl.constexpr, FLAGS: tl.constexpr):
    """c = −ln w."""
    if ABSOLUTE:
        return -tl.log(_inside(w))
    return -tl.log(_inside(_multiple(w, smallest, FLAGS)))


@triton.jit
def rows(norm, span, smallest, p0, p1, p2, p3, p4, FLAGS: tl.constexpr):
    """r0, r1, r2 and r3."""
    unit = norm / span
    unit = unit * unit
    r0 = 0.0
    r1 = 0.0
    r2 = 0.0
    if DC & FLAGS:
        r0 = unit * (-LOG2_E * _decay(p0, smallest, DC_ABSOLUTE & FLAGS, FLAGS))
    if RE & FLAGS:
        c = _decay(p2, smallest, RE_ABSOLUTE & FLAGS, FLAGS)
        b = p4 if SIGMA & FLAGS else c
        r1 = unit * b
        r2 = -c / (log1p2(b, True) * LN_2)  # one value: precise
    return r0, r1, r2, norm * SCALE_FLOOR


@triton.jit
def edit(
    a,
    e,
    distance,
    r0,
    r1,
    r2,
    r3,
    i_role,
    j_role,
    p0,
    p1,
    p2,
    p3,
    p4,
    FLAGS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The edited logits, and the factor of their weights: 1, or 1 + λ_dc r_dc + λ_re r_re."""
    sem_pos = e * 0.5 + 0.5
    z = a
    factor = 1.0
    if (DC | RE) & FLAGS:
        t = distance
        if NORMED & FLAGS:
            t = t * reciprocal(tl.maximum(sem_pos, r3), INTERPRETED)
        if ONE_PLUS & FLAGS:
            t = t * reciprocal(sem_pos + 1.0, INTERPRETED)
        t = t * t
        gain = 1.0
        if DC & FLAGS:
            gain = gain + tl.exp2(t * r0 + p1)
        if RE & FLAGS:
            power = log1p2(t * r1, INTERPRETED) if SIGMA & FLAGS else log2(t * r1 + 1.0, INTERPRETED)
            gain = gain + tl.exp2(power * r2 + p3)
        if WEIGHTS & FLAGS:
            factor = gain
        else:
            z = a * gain
    if SD & FLAGS:
        z = z + sem_pos * LOG2_E
        if FULL & FLAGS:
            z = z + a
    if (TEXT_TO_IMAGE | CROSS_MODAL) & FLAGS:
        here, there = i_role == IMAGE, j_role == IMAGE
        chosen = (here != there) if CROSS_MODAL & FLAGS else (there & (i_role != IMAGE))
        z = tl.where(chosen, z, a)
        if WEIGHTS & FLAGS:
            factor = tl.where(chosen, factor, 1.0)
    return z, factor


@triton.jit
def _count(counts, w, smallest, FLAGS: tl.constexpr):
    w = _multiple(w, smallest, FLAGS)
    real = smallest < float("inf")
    tl.atomic_add(counts, tl.sum((real & (w != _inside(w))).to(tl.int64), 0))
    tl.atomic_add(counts + 1, tl.sum(real.to(tl.int64), 0))


@triton.jit
def count(counts, smallest, p0, p1, p2, p3, p4, FLAGS: tl.constexpr):
    """Count the end points that are clamped, for each stage whose w_min is a multiple of |A|_min."""
    if (DC & FLAGS) and not (DC_ABSOLUTE & FLAGS):
        _count(counts, p0, smallest, FLAGS)
        counts += 2
    if (RE & FLAGS) and not (RE_ABSOLUTE & FLAGS):
        _count(counts, p2, smallest, FLAGS)


FUNCTIONS = Functions(edit, rows, count)
