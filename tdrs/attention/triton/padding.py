"""Where a sample's padding is."""

import triton
import triton.language as tl


@triton.jit
def real_keys(bounds, b, K, PADDED: tl.constexpr):
    """The first key of a sample that is no padding, and the last one + 1."""
    first, stop = 0, K
    if PADDED:
        first, stop = tl.load(bounds + 2 * b), tl.load(bounds + 2 * b + 1)
    return first, stop
