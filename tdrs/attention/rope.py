"""Rotary position embedding, undone: the vectors before rotation out of those after it.

transformers hands an attention function rotated queries and keys. With x' = x cos + turn(x) sin, where turn(x) is
(−x₂, x₁) for the halves x₁, x₂ of a head, x = (x' cos − turn(x') sin) / (cos² + sin²). The divisor is 1, but where a
scheme (YaRN) scales cos and sin, all by one factor.
"""

import torch


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
    half = x.shape[-1] // 2
    result[..., :half].addcmul_(x[..., half:], sin[..., :half])
    result[..., half:].addcmul_(x[..., :half], sin[..., half:], value=-1)
    return result.div_(cos[..., :1].square() + sin[..., :1].square())
