"""What the attention core asks of a method. A new method overrides `edit` or `reweigh`, and what else differs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.fused import FusedEdit
from tdrs.attention.second_pass import SecondPass
from tdrs.attention.selection import HeadSelection, Selection, check_heads, check_selection
from tdrs.settings import SettingError, check_choice

PHASES = ("both", "prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class Method:
    """An edit of the logits before the softmax, or of the weights after it.

    Args:
        layers: the decoder layers that are edited: `all`, a list of numbers from 0, a range such as "4-17" (both ends
            included), or a share of the depth such as "28%-46%" (the layers whose middle lies in it, at least one).
        heads: the query heads that are edited, in the same forms, or a list of heads of single layers: [L3H1, L5H0].
            The other heads are left as they are. In a configuration also the file that `tdrs.calibrate` wrote.
        phase: `prefill`: only while the prompt is read; `decode`: only in calls that add one token to a filled cache;
            `both`.

    Raises:
        SettingError: a value is not allowed.
    """

    layers: Selection = "all"
    heads: HeadSelection = "all"
    phase: str = "both"

    # What a user can do if the model cannot provide a need, if a prompt in `pieces` changes the result, or where no
    # `second_pass` can be run. The text becomes the end of the message.
    advice: ClassVar[Mapping[str, str]] = {}
    # The score by which heads of single layers are chosen for this method; see `tdrs/head_scores.py`. "" for none.
    head_score: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_choice("phase", self.phase, PHASES)
        object.__setattr__(self, "layers", check_selection("layers", self.layers))
        object.__setattr__(self, "heads", check_heads("heads", self.heads))

    @property
    def needs(self) -> frozenset[str]:
        """What `edit` reads from a call besides queries and keys: any of `rotation`, `positions`, `roles`,
        `frequencies` (with the first two), `states`."""
        return frozenset()

    @property
    def active(self) -> bool:
        """Whether these settings edit anything. If not, the stock model runs, bit for bit."""
        return True

    @property
    def edits_attention(self) -> bool:
        """Whether these settings edit attention. A method with a second pass may do nothing but combine the two."""
        edits = type(self).edit is not Method.edit or self.edits_weights
        return self.active and (self.second_pass is None or edits)

    @property
    def edits_weights(self) -> bool:
        """Whether the weights after the softmax are edited, with `reweigh`."""
        return type(self).reweigh is not Method.reweigh

    @property
    def parts(self) -> tuple["Method", ...]:
        """The methods that this one applies, in order: itself, unless it stands for several."""
        return (self,)

    @property
    def starts_over(self) -> bool:
        """Whether `edit` computes logits from queries and keys, not from `block.logits`. It must then be the first of
        several methods."""
        return False

    @property
    def second_pass(self) -> SecondPass | None:
        """The second forward pass, whose next-token logits are combined with those of the first; None if there is none.

        The edit of attention acts in the first pass.
        """
        return None

    @property
    def last_row_only(self) -> bool:
        """Whether only the last row of each sample is edited. PyTorch's own attention then computes the others."""
        return False

    @property
    def reads_whole_map(self) -> bool:
        """Whether a row's edit depends on other rows of the same call. The result then depends on how a prompt is cut
        into calls."""
        return type(self).statistics is not Method.statistics

    @property
    def row_local(self) -> bool:
        """Whether a row's edit depends only on that row's past. Prompts can then share the work for their beginning."""
        return not self.reads_whole_map and not self.last_row_only

    @property
    def factor(self) -> float | None:
        """The factor by which the edit multiplies all logits, if it does nothing else. A GPU then runs PyTorch's own
        attention with another scale."""
        return None

    @property
    def fused(self) -> FusedEdit | None:
        """These settings for the fused kernels of a GPU; None if these do not serve them. It describes the same edit as
        `edit`."""
        return None

    @property
    def effective(self) -> dict[str, Any]:
        """The settings that decide the edit, by name. They are equal for settings that edit alike."""
        return {"method": type(self).__name__, **asdict(self)} if self.active else {}

    def statistics(self, call: Call) -> object:
        """What `edit` must know about the whole map. It is computed once before the first block."""
        return None

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        """The new logits of a block, (B, H, R, K), float32. `block.logits` must stay as they are.

        The core masks hidden pairs afterwards and restores the logits of heads that are not edited. A method that only
        edits weights need not have this.
        """
        if not self.edits_weights:
            raise NotImplementedError
        return block.logits

    def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
        """The new weights of a block, (B, H, R, K), float32. They need not sum to 1: a head's output is their sum of
        values, so a factor on all weights of a row is a factor on the head's output.

        The core sets hidden pairs to 0 afterwards and restores the weights of heads that are not edited.

        Args:
            block: `block.logits` are the logits that the softmax has seen.
            weights: (B, H, R, K), 0 at hidden pairs; arbitrary in rows of padding. They must stay as they are.
        """
        return weights

    def edited(self, block: Block, statistics: object, heads: torch.Tensor | None) -> torch.Tensor:
        """`edit` on some heads, (B, H, R, K).

        Args:
            heads: which query heads are edited, (1, H, 1, 1) boolean; None means all.

        Raises:
            ValueError: `edit` returned something else than logits of the block.
        """
        return self._on_heads("edit", self.edit(block, statistics), block.logits, heads)

    def reweighed(
        self, block: Block, weights: torch.Tensor, statistics: object, heads: torch.Tensor | None
    ) -> torch.Tensor:
        """`reweigh` on some heads, (B, H, R, K), 0 at hidden pairs; `heads` and errors as in `edited`."""
        new = self._on_heads("reweigh", self.reweigh(block, weights, statistics), weights, heads)
        return block.hide(new, 0)

    def _on_heads(self, what: str, new: object, old: torch.Tensor, heads: torch.Tensor | None) -> torch.Tensor:
        # Another shape could be broadcast, and give wrong weights without a word.
        if not isinstance(new, torch.Tensor) or (new.shape, new.dtype) != (old.shape, old.dtype):
            raise ValueError(f"{type(self).__name__}.{what} returned {_shown(new)}, not {_shown(old)}")
        return new if heads is None else torch.where(heads, new, old)


def _shown(value: object) -> str:
    """The dtype and shape of a tensor; the type of anything else."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def check_method(method: object) -> None:
    """Raises SettingError unless this is a method, with its settings."""
    if not isinstance(method, Method):
        shown = f"the class {method.__name__}" if isinstance(method, type) else method
        raise SettingError("method", shown, "must be a method with its settings, such as tdrs.TDRS()")
