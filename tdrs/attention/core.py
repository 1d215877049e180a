"""The attention core: the two ways to execute an edit of one attention call.

An intervention edits logits, a block of query rows at a time. `reference` gives it the whole map as one block: it is
the specification. `blocked` walks over blocks of rows and gives each its keys up to the last visible one, so that extra
memory is that of one block. Logits, edits and softmax are float32 whatever the model's dtype.
"""

import math
from dataclasses import replace
from typing import Protocol

import torch

from tdrs.attention.call import Block, Call
from tdrs.attention.selection import Selection

# Elements of one (batch, head, row, key) block, at least and at most; between them it has 64 rows: few for the cache,
# enough for the product of matrices.
BLOCK_ELEMENTS = {"cpu": (1 << 18, 1 << 20), "cuda": (1 << 25, 1 << 25)}
BLOCK_ROWS = 64


class Intervention(Protocol):
    """A method that edits pre-softmax logits; `tdrs.interventions.method.Method` is the base that has the defaults."""

    @property
    def layers(self) -> Selection: ...

    @property
    def heads(self) -> Selection: ...

    @property
    def phase(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]:
        """What the edit asks a call for beyond queries and keys: of `rotation`, `positions`, `roles`."""
        ...

    @property
    def active(self) -> bool:
        """Whether anything is edited at all; where not, the model's own attention runs."""
        ...

    @property
    def last_row_only(self) -> bool:
        """Whether rows before each sample's last one are left as they are."""
        ...

    def statistics(self, call: Call) -> object:
        """What the edit needs to know of the whole map, before the first block."""
        ...

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        """The block's new logits, (B, H, R, K); hidden pairs are masked afterwards, other heads keep theirs."""
        ...


def _weigh(call: Call, block: Block, intervention: Intervention, statistics: object) -> torch.Tensor:
    """The attention weights of a block, (B, H, R, K); of no meaning in rows of padding."""
    edited = intervention.edit(block, statistics)
    if call.heads is not None:
        edited = torch.where(call.heads, edited, block.logits)
    return block.hide(edited, -math.inf).softmax(dim=-1)


def weights(call: Call, intervention: Intervention) -> torch.Tensor:
    """The weights of the whole map under an edit, (B, H, Q, K), float32; 0 in rows of padding. For figures."""
    call = replace(call, block_elements=None)
    (block,) = call.blocks()
    return call.without_padded_rows(_weigh(call, block, intervention, intervention.statistics(call)))


def _attend(call: Call, intervention: Intervention) -> torch.Tensor:
    first = call.wanted
    if call.block_elements is not None and intervention.last_row_only and call.query.shape[2] > 1:
        first = max(first, int(call.last_rows.min()))
    if first:
        call = replace(call, first_row=first)
    statistics = intervention.statistics(call)
    value = call.without_padding(call.value.float()).transpose(-1, -2)
    output = torch.empty(call.query.shape[:3] + call.value.shape[3:], dtype=call.query.dtype, device=call.query.device)
    for block in call.blocks(first):
        shares = _weigh(call, block, intervention, statistics)
        output[:, :, block.start : block.stop] = call.product(shares, value[..., : block.keys])
    if first > call.wanted:  # rows that are not edited: PyTorch's own attention is faster
        output[:, :, :first] = _unedited(call)
    output[:, :, : call.wanted] = 0
    return call.without_padded_rows(output)


def _unedited(call: Call) -> torch.Tensor:
    """The attention output of the rows before `first_row` as the stock model has it, (B, H, rows, D)."""
    rows = call.first_row
    keys = call.past + rows
    mask = None if call.mask is None else call.mask[:, :, :rows, :keys]
    if mask is None and call.past:
        mask = (call.index[call.past : keys, None] >= call.index[:keys])[None, None]
    key, value = (call.without_padding(x)[:, :, :keys] for x in (call.key, call.value))
    return torch.nn.functional.scaled_dot_product_attention(
        call.query[:, :, :rows],
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=call.scaling,
        enable_gqa=key.shape[1] != call.query.shape[1],
    )


def reference(call: Call, intervention: Intervention) -> torch.Tensor:
    """The specification: the edit over the whole map at once. Returns the output of all rows, (B, H, Q, D)."""
    return _attend(replace(call, block_elements=None, wanted=0), intervention)


def blocked(call: Call, intervention: Intervention) -> torch.Tensor:
    """The same in blocks of query rows; equal to `reference` up to the rounding of sums.

    |A|_min is such a sum near 0: in the two executions its relative error may differ by tens of per cent.
    """
    least, most = BLOCK_ELEMENTS.get(call.query.device.type, BLOCK_ELEMENTS["cpu"])
    batch, heads, _, _ = call.query.shape
    size = min(most, max(least, batch * heads * call.key.shape[2] * BLOCK_ROWS))
    return _attend(call if call.block_elements else replace(call, block_elements=size), intervention)


# `auto` is the fastest that is exact on every device
EXECUTIONS = {"auto": blocked, "blocked": blocked, "reference": reference}
