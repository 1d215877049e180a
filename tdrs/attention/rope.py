"""Undo the rotary position embedding: compute the vectors before rotation from the vectors after it.

transformers gives an attention function rotated queries and keys. Rotation is x' = x cos + turn(x) sin, where turn(x)
is (−x₂, x₁) for the halves x₁, x₂ of a head. So x = (x' cos − turn(x') sin) / (cos² + sin²). The divisor is 1, unless
a scheme (YaRN) multiplies cos and sin by one factor.
"""

import torch


def check_rotation(cos: torch.Tensor, head_dim: int) -> None:
    """Check that `unrotate` can undo a rotation.

    Args:
        cos: the cosines of each position, (B, L, D').

    Raises:
        ValueError: it does not rotate whole heads, or the layout is interleaved instead of two halves.
    """
    if cos.shape[-1] != head_dim:
        raise ValueError(
            f"rotary embedding covers {cos.shape[-1]} of {head_dim} dimensions of a head, and the vectors before "
            "rotation can be computed only if it covers all of them"
        )
    half = head_dim // 2
    if not torch.equal(cos[..., :half], cos[..., half:]):
        raise ValueError("rotary embedding is interleaved, so the vectors before rotation cannot be computed")


def unrotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The vectors before rotation, float32.

    Args:
        x: rotated vectors, (B, H, L, D).
        cos, sin: the rotation of each position, (B or 1, L, D).
    """
    cos, sin = cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    x = x.float()
    result = x * cos  # in place from here on: at thousands of tokens each copy takes tens of MiB
    half = x.shape[-1] // 2
    result[..., :half].addcmul_(x[..., half:], sin[..., :half])
    result[..., half:].addcmul_(x[..., :half], sin[..., half:], value=-1)
    return result.div_(cos[..., :1].square() + sin[..., :1].square())
