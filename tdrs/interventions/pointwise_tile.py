"""Edits of single logits on a tile of the map: functions of Triton. Each method's file has its formula.

Logits are times log₂ e here; `tdrs.attention.triton.attend` names the arguments.
"""

import triton
import triton.language as tl

from tdrs.attention import block
from tdrs.attention.fused import Functions

SYSTEM = tl.constexpr(block.SYSTEM)
IMAGE = tl.constexpr(block.IMAGE)
TEXT = tl.constexpr(block.TEXT)


@triton.jit
def temperature(
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
    """p0 = 1 / τ."""
    return a * p0, 1.0


@triton.jit
def key_bias(
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
    """p0 = log₂ w, added to keys of the role FLAGS."""
    return a + tl.where(j_role == FLAGS, p0, 0.0), 1.0


@triton.jit
def vaf(
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
    """p0 = β_image, p1 = β_system."""
    factor = tl.where(j_role == IMAGE, p0, tl.where(j_role == SYSTEM, p1, 1.0))
    return a * tl.where(i_role == TEXT, factor, 1.0), 1.0


TEMPERATURE, KEY_BIAS, VAF = Functions(temperature), Functions(key_bias), Functions(vaf)
