"""What methods have in common that take the logits from other positions. The values are not rotated, so they stay."""

from dataclasses import dataclass

import torch

from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.method import Method
from tdrs.attention.turned import Turned


@dataclass(frozen=True, kw_only=True)
class Positions(Method):
    """A method that says with `statistics` where queries and keys are. The cache keeps the model's own rotation: stored
    keys are un-rotated and turned in each call."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rotation", "positions", "frequencies"})

    @property
    def starts_over(self) -> bool:
        return True

    @property
    def reads_whole_map(self) -> bool:
        return False

    def statistics(self, call: Call) -> Turned:
        """Queries and keys of the call at their new positions."""
        raise NotImplementedError

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        assert isinstance(statistics, Turned)
        return statistics.logits(block)


def own(call: Call) -> torch.Tensor:
    """The model's positions of all tokens of a call, (B or 1, 1, K, axes), float32."""
    assert call.positions is not None, "the method must list 'positions' in its needs"
    return call.positions.float().unsqueeze(1)
