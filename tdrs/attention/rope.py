"""Undo the rotary position embedding, and apply it at other positions.

transformers gives an attention function rotated queries and keys. Rotation turns pairs of coordinates: x₁' = x₁ cos −
x₂ sin and x₂' = x₂ cos + x₁ sin. So x₁ = (x₁' cos + x₂' sin) / (cos² + sin²), and x₂ = (x₂' cos − x₁' sin) / (…). The
divisor is 1, unless a scheme (YaRN) multiplies cos and sin by one factor.

Families differ in which coordinates form a pair, the layout. If cos and sin cover only a part of a head, the first
coordinates are rotated and the others are left as they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

# halves: coordinate n of the first half and of the second half (Llama). pairs: neighbours (GLM); `pairs_of_halves` is
# the same with cos and sin stored in two equal halves. none: this layer does not rotate (Cohere 2's global layers).
LAYOUTS = ("none", "halves", "pairs", "pairs_of_halves")


class Frequencies(NamedTuple):
    """How a rotation depends on positions: the angle of a pair is the sum over the axes of position × turn.

    Attributes:
        turns: radians a position, (axes, D'/2).
        scaling: the factor of cos and sin, usually 1 (YaRN: above 1).
    """

    turns: torch.Tensor
    scaling: float

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """The angles at positions, (…, axes) → (…, D'/2). One axis stands for all of them, as in text."""
        turns = self.turns.sum(dim=0, keepdim=True) if positions.shape[-1] == 1 else self.turns
        return (positions.float().unsqueeze(-1) * turns.to(positions.device)).sum(dim=-2)


def _pairs(layout: str, width: int) -> tuple[slice, slice]:
    """Which of the first `width` coordinates are the first and the second of a pair."""
    if layout == "halves":
        return slice(width // 2), slice(width // 2, width)
    return slice(0, width, 2), slice(1, width, 2)


def rotate(x: torch.Tensor, angles: torch.Tensor, scaling: float = 1.0, layout: str = "halves") -> torch.Tensor:
    """Rotate vectors, float32.

    Args:
        x: vectors before rotation, (B, H, L, D).
        angles: the angle of each pair, (B or 1, H or 1, L, D'/2), D' at most D.
        scaling: the factor of cos and sin.
        layout: one of `LAYOUTS`.
    """
    x = x.float()
    if layout == "none":
        return x
    first, second = _pairs(layout, 2 * angles.shape[-1])
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    result = x.clone()
    result[..., first].mul_(cos).addcmul_(x[..., second], sin, value=-1)
    result[..., second].mul_(cos).addcmul_(x[..., first], sin)
    return result


def find_frequencies(
    embed: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], positions: torch.Tensor
) -> Frequencies:
    """The frequencies of a rotation, found by trial at position 1 of each axis.

    Args:
        embed: gives cos and sin, (B, L, D'), at positions, (B, L, axes).
        positions: positions as the model passes them on, (B or 1, L, axes).
    """
    origin = torch.zeros_like(positions[:1, :1], dtype=torch.float32)
    scaling = float(embed(origin)[0].double().mean())
    found = []
    for axis in range(positions.shape[-1]):
        step = origin.clone()
        step[..., axis] = 1
        cos, sin = (x[0, 0].double() for x in embed(step))
        found.append(torch.atan2(sin, cos))
    return Frequencies(_of_pairs(torch.stack(found)).float(), scaling)


def follows(frequencies: Frequencies, positions: torch.Tensor, cos: torch.Tensor) -> bool:
    """Whether cos, (B or 1, L, D'), is what the frequencies give at positions, (B or 1, L, axes)."""
    expected = frequencies.angles(positions.to(cos.device)).cos() * frequencies.scaling
    # bfloat16 rounds cos by 0.4 %; another frequency is wrong by as much as the values themselves
    return bool((expected - _of_pairs(cos).float()).abs().max() <= 0.03 * frequencies.scaling)


def _of_pairs(x: torch.Tensor) -> torch.Tensor:
    """One value for each pair, (…, D'/2), of values that are stored once for each coordinate, (…, D')."""
    half = x.shape[-1] // 2
    return x[..., :half] if torch.equal(x[..., :half], x[..., half:]) else x[..., 0::2]


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
    first, second = _pairs(layout, width)
    angles = slice(0, width, 2) if layout == "pairs" else slice(width // 2)
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
