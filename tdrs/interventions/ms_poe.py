"""Ms-PoE: Z. Zhang et al., "Found in the Middle: How Language Models Use Long Contexts Better via Plug-and-Play
Positional Encoding", NeurIPS 2024, arXiv 2403.04797.

    position' = position / r_h              for queries and keys of head h; r_h from r_min to r_max

In each layer heads are ranked by the share of keys whose weight is above 4 times the mean weight, in the last row of
the prompt: the head with the largest share has the smallest ratio. The authors' code (VITA-Group/Ms-PoE,
utils/modify_arch/llama.py) computes these weights before the rotation, ranks in the first call, and keeps the ranks
while an answer is decoded. All of this is the same here, per sample; the code serves one sample at a time.

Readings (`ranking`): heads by rank from r_min to r_max; or as the code has it: head h takes the ratio number
argsort(−share)[h], which is the inverse of its rank, and ratio n is r_min + (r_max − r_min) n / H, so that r_max is
not reached. The code's keys in a group of query heads take the ratio of the group's first head, queries their own;
here both take the query head's.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.selection import Selection
from tdrs.attention.turned import Turned, turn
from tdrs.interventions.positions import Positions, own
from tdrs.settings import SettingError, check_choice, check_number

RANKINGS = ("rank", "code", "none")


@dataclass(frozen=True, kw_only=True)
class MsPoE(Positions):
    """Positions divided by a number of each head.

    Args:
        r_min: the smallest ratio, at least 1. The code: 1.2.
        r_max: the largest ratio, at least r_min; if both are 1, this is the stock model. The code: 1.8.
        threshold: how many times the mean a weight must exceed to count, above 0. The code: 4.
        ranking: `rank`: ratios by rank, both ends included; `code`: as the authors' code assigns them; `none`: by the
            heads' own numbers, without statistics (a control).
        layers: the default leaves out the first two of 32 layers, as the authors' script does.
    """

    r_min: float = 1.2
    r_max: float = 1.8
    threshold: float = 4.0
    ranking: str = "rank"
    layers: Selection = "5%-100%"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("r_min", self.r_min, 1)
        check_number("r_max", self.r_max, 1)
        if self.r_max < self.r_min:
            raise SettingError("r_max", self.r_max, f"must be at least r_min, {self.r_min:g}")
        check_number("threshold", self.threshold, 0, above=True)
        check_choice("ranking", self.ranking, RANKINGS)

    @property
    def active(self) -> bool:
        return self.r_max > 1

    @property
    def reads_whole_map(self) -> bool:
        return self.ranking != "none" and self.r_min < self.r_max

    def statistics(self, call: Call) -> Turned:
        heads = call.query.shape[1]
        if not self.reads_whole_map:
            numbers = torch.arange(heads, device=call.query.device)[None]
        else:
            if self not in call.kept:
                call.kept[self] = self._numbers(call)
            numbers = call.kept[self].to(call.query.device)
        steps = heads if self.ranking == "code" else max(heads - 1, 1)
        ratios = self.r_min + (self.r_max - self.r_min) * numbers / steps
        return turn(call, own(call) / ratios[:, :, None, None])

    def _numbers(self, call: Call) -> torch.Tensor:
        """The number of each head's ratio, (B, H)."""
        order = (-self.shares(call)).argsort(dim=1, stable=True)
        return order if self.ranking == "code" else order.argsort(dim=1)

    def shares(self, call: Call) -> torch.Tensor:
        """The share of keys with a large weight before rotation, in the last row of each sample, (B, H)."""
        rows = call.last_rows.expand(call.query.shape[0], -1, -1, -1)
        start, stop = int(rows.min()), int(rows.max()) + 1
        block = Block(call, start, stop, call.key.shape[2])
        logits = turn(call, torch.zeros_like(own(call))).logits(block)
        weights = block.hide(logits, -torch.inf).softmax(dim=-1)
        large = weights * block.counts > self.threshold  # the mean weight of a row is 1 / its number of visible keys
        shares = large.sum(dim=-1, keepdim=True) / block.counts
        return shares.take_along_dim((rows - start), dim=2)[:, :, 0, 0]
