"""Logits of a call at other positions: queries and keys are un-rotated, and rotated again."""

from dataclasses import dataclass

import torch

from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.rope import Frequencies, rotate


@dataclass(frozen=True)
class Turned:
    """Queries and keys of a call at other positions. `turn` makes one.

    Attributes:
        queries: the positions of all K tokens as queries, (B or 1, H or 1, K, axes).
        key: keys rotated at their new positions, float32, (B, Hₖ or H, K, D).
        frequencies: those that rotate the queries.
    """

    call: Call
    queries: torch.Tensor
    key: torch.Tensor
    frequencies: Frequencies

    def logits(self, block: Block) -> torch.Tensor:
        """A of a block of the call at the new positions, (B, H, R, K), float32, newly allocated."""
        call = self.call
        rows = slice(call.past + block.start, call.past + block.stop)
        angles = self.frequencies.angles(self.queries[:, :, rows])
        query = rotate(block.unrotated_query * call.scaling, angles, self.frequencies.scaling, call.layout)
        return call.capped(call.product(query, self.key[:, :, : block.keys]))


def turn(
    call: Call, queries: torch.Tensor, keys: torch.Tensor | None = None, turns: torch.Tensor | None = None
) -> Turned:
    """Rotate a call's queries and keys at other positions.

    Args:
        call: a call with rotation, positions and frequencies.
        queries: the positions of all K tokens as queries, (B or 1, H or 1, K, axes); fractions are allowed.
        keys: their positions as keys, in the same form; None means those of the queries.
        turns: other frequencies, in radians a position, (axes, D'/2); None means the model's.
    """
    assert call.frequencies is not None, "the method must list 'frequencies' in its needs"
    frequencies = call.frequencies if turns is None else call.frequencies._replace(turns=turns)
    angles = frequencies.angles(queries if keys is None else keys)
    key = call.unrotated_key
    if angles.shape[1] > 1:  # one position for each query head
        key = key.repeat_interleave(call.query.shape[1] // key.shape[1], dim=1)
    return Turned(call, queries, rotate(key, angles, frequencies.scaling, call.layout), frequencies)
