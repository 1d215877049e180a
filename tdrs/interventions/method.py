"""What every method has: where it acts, and defaults for what it may leave out. A new method overrides `edit`."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from tdrs.attention.call import Block, Call
from tdrs.attention.selection import Selection, check_selection
from tdrs.settings import check_choice

PHASES = ("both", "prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class Method:
    """An edit of pre-softmax logits.

    Args:
        layers: the decoder layers that are edited: `all`, a list of numbers from 0, a range, "4-17" (both included), or
            a share of the depth, "28%-46%" (the layers whose middle lies in it, at least one).
        heads: the query heads that are edited, in the same forms; the others keep their logits.
        phase: `prefill`, while the prompt is read; `decode`, when a call brings one token to a filled cache; `both`.

    Raises:
        SettingError: a value is not allowed.
    """

    layers: Selection = "all"
    heads: Selection = "all"
    phase: str = "both"

    def __post_init__(self) -> None:
        check_choice("phase", self.phase, PHASES)
        for name in ("layers", "heads"):
            object.__setattr__(self, name, check_selection(name, getattr(self, name)))

    @property
    def needs(self) -> frozenset[str]:
        """What the edit asks a call for: of `rotation`, `positions`, `roles`. Nothing, unless a method says so."""
        return frozenset()

    @property
    def active(self) -> bool:
        """Whether these settings edit anything; where not, the stock model runs, bit for bit."""
        return True

    @property
    def last_row_only(self) -> bool:
        """Whether only each sample's last row is edited; the others are then left to PyTorch's own attention."""
        return False

    @property
    def row_local(self) -> bool:
        """Whether a row's edit depends on that row's past alone: what prompts begin with alike is then read once."""
        return type(self).statistics is Method.statistics and not self.last_row_only

    @property
    def effective(self) -> dict[str, Any]:
        """The settings that decide the edit, by name: equal for settings that edit alike, so that they run once."""
        return {"method": type(self).__name__, **asdict(self)} if self.active else {}

    def statistics(self, call: Call) -> object:
        """What the edit needs to know of the whole map, given to `edit`; by default nothing."""
        return None

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        """The block's new logits, (B, H, R, K), float32, `block.logits` left as they are."""
        raise NotImplementedError
