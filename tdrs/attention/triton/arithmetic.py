"""Products, reciprocals and logarithms of the kernels. On a GPU they are single instructions.

INTERPRETED says that Triton's interpreter runs the kernel on the CPU. It has no inline assembly, and it multiplies the
bits of bfloat16 numbers.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """acc + a b, accumulated in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def reciprocal(x, INTERPRETED: tl.constexpr):
    """1 / x, with an error of one unit in the last place."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def log2(x, INTERPRETED: tl.constexpr):
    """log₂ x, with an absolute error of 2⁻²² near 1. Triton's own log2 is a polynomial in software."""
    if INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def log1p2(x, INTERPRETED: tl.constexpr):
    """log₂(1 + x) for x ≥ 0, with a relative error of about 1e-6: a series below 1/8, where 1 + x would lose digits."""
    s = x * -0.125 + 0.14285715
    s = s * x - 0.16666667
    s = s * x + 0.2
    s = s * x - 0.25
    s = s * x + 0.33333334
    s = s * x - 0.5
    s = s * x + 1.0
    return tl.where(x < 0.125, s * x * LOG2_E, log2(1.0 + x, INTERPRETED))
