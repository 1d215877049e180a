"""Undo the rotary position embedding: compute the vectors before rotation from the vectors after it.

transformers gives an attention function rotated queries and keys. Rotation turns pairs of coordinates: x₁' = x₁ cos −
x₂ sin and x₂' = x₂ cos + x₁ sin. So x₁ = (x₁' cos + x₂' sin) / (cos² + sin²), and x₂ = (x₂' cos − x₁' sin) / (…). The
divisor is 1, unless a scheme (YaRN) multiplies cos and sin by one factor.

Families differ in which coordinates form a pair, the layout. If cos and sin cover only a part of a head, the first
coordinates are rotated and the others are left as they are.
"""

from collections.abc import Callable

import torch

# halves: coordinate n of the first half and of the second half (Llama). pairs: neighbours (GLM); `pairs_of_halves` is
# the same with cos and sin stored in two equal halves. none: this layer does not rotate (Cohere 2's global layers).
LAYOUTS = ("none", "halves", "pairs", "pairs_of_halves")


def unrotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: str = "halves") -> torch.Tensor:
    """The vectors before rotation, float32.

    Args:
        x: rotated vectors, (B, H, L, D).
        cos, sin: the rotation of each position, (B or 1, L, D'), D' at most D.
        layout: one of `LAYOUTS`.
    """
    x = x.float()
    if layout == "none":
        return x
    width = cos.shape[-1]
    half = width // 2
    first, second = (
        (slice(half), slice(half, width)) if layout == "halves" else (slice(0, width, 2), slice(1, width, 2))
    )
    angles = slice(0, width, 2) if layout == "pairs" else slice(half)
    cos, sin = (part.float().unsqueeze(1)[..., angles] for part in (cos, sin))
    result = x.clone()  # in place from here on: at thousands of tokens each copy takes tens of MiB
    result[..., first].mul_(cos).addcmul_(x[..., second], sin)
    result[..., second].mul_(cos).addcmul_(x[..., first], sin, value=-1)
    result[..., :width].div_(cos[..., :1].square() + sin[..., :1].square())
    return result


def find_layout(
    rotate: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], like: torch.Tensor
) -> str:
    """The layout of a layer, found by trial: rotate by known angles, undo it, compare.

    Args:
        rotate: gives the queries and the keys of a layer for cos and sin, (1, 2, D').
        like: cos as the model computes it, (B or 1, L, D'), on its device.

    Raises:
        ValueError: no layout undoes the rotation.
    """
    half = like.shape[-1] // 2
    generator = torch.Generator().manual_seed(0)
    angles = 0.5 + 2 * torch.rand(1, 2, half, generator=generator)
    if torch.equal(like[..., :half], like[..., half:]):
        angles, layouts = torch.cat((angles, angles), dim=-1), ["none", "halves", "pairs_of_halves"]
    elif torch.equal(like[..., 0::2], like[..., 1::2]):
        angles, layouts = angles.repeat_interleave(2, dim=-1), ["none", "pairs"]
    else:
        raise ValueError("its angles are stored in an unknown form")
    cos, sin = (part.to(like.device, like.dtype) for part in (angles.cos(), angles.sin()))
    before = rotate(torch.ones_like(cos), torch.zeros_like(sin))
    after = rotate(cos, sin)
    for layout in layouts:
        undone = [unrotate(x, cos, sin, layout) if x.shape[-1] >= 2 * half else x for x in after]
        # A wrong layout is wrong by as much as the values themselves; rounding in bfloat16 by 1 %.
        if all((x - y.float()).abs().max() <= 0.03 * y.abs().max() for x, y in zip(undone, before, strict=True)):
            return layout
    raise ValueError("undoing the rotation does not give the vectors before it")
