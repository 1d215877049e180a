"""Rotary position embedding, undone: the vectors before rotation out of those after it.

transformers hands an attention function rotated queries and keys. With x' = x cos + rotate_half(x) sin, pair by pair,
x = (x' cos − rotate_half(x') sin) / (cos² + sin²); the divisor is 1 except where a scheme (YaRN) scales cos and sin.
"""

import torch


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(−x₂, x₁) for the two halves of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def check_rotation(cos: torch.Tensor, head_dim: int) -> None:
    """Raises ValueError unless cos, (B, L, D'), rotates whole heads in the half-split layout that `unrotate` undoes."""
    if cos.shape[-1] != head_dim:
        raise ValueError(
            f"rotary embedding covers {cos.shape[-1]} of {head_dim} dimensions of a head; "
            "features=pre_rope needs all of them: use features=post_rope"
        )
    half = head_dim // 2
    if not torch.equal(cos[..., :half], cos[..., half:]):
        raise ValueError("rotary embedding is interleaved, which features=pre_rope cannot undo: use features=post_rope")


def unrotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The vectors before rotation, float32.

    Args:
        x: rotated vectors, (B, H, L, D).
        cos, sin: the rotation of each position, (B or 1, L, D).
    """
    cos, sin = cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    x = x.float()
    result = x * cos  # in place from here on: at thousands of tokens each copy is tens of MiB
    return result.sub_(rotate_half(x).mul_(sin)).div_(cos.square() + sin.square())
