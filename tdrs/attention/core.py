"""The attention core: three ways to execute a method's edit of one attention call.

A method edits logits, or the weights after the softmax, one block of query rows at a time. `reference` gives it the
whole map as one block: it is the specification. `blocked` gives it small blocks of rows, each with the keys up to its
last visible one, so that the extra memory is that of one block. `fused` runs kernels for a GPU, for the methods that
have them. Logits, edits and softmax are float32, whatever the model's dtype.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.fused import unfit
from tdrs.attention.method import Method

# The smallest and the largest block, in logits. Between these limits a block has 64 rows: few enough for the
# processor's cache, and enough for a fast matrix product.
BLOCK_ELEMENTS = {"cpu": (1 << 18, 1 << 20), "cuda": (1 << 25, 1 << 25)}
BLOCK_ELEMENTS["meta"] = BLOCK_ELEMENTS["cuda"]  # what runs there is counted, as on a GPU
BLOCK_ROWS = 64


def _weigh(call: Call, block: Block, method: Method, statistics: object) -> torch.Tensor:
    """The attention weights of a block, (B, H, R, K). Rows of padding hold arbitrary values."""
    edited = method.edited(block, statistics, call.heads)
    if not method.edits_weights:
        return block.hide(edited, -math.inf).softmax(dim=-1)
    weights = block.hide(edited.clone(), -math.inf).softmax(dim=-1)
    return method.reweighed(block.with_logits(edited), weights, statistics, call.heads)


def weights(call: Call, method: Method) -> torch.Tensor:
    """The weights of the whole map under an edit, (B, H, Q, K), float32; 0 in rows of padding. Figures use them."""
    call = replace(call, block_elements=None)
    (block,) = call.blocks()
    return call.without_padded_rows(_weigh(call, block, method, method.statistics(call)))


def _attend(call: Call, method: Method) -> torch.Tensor:
    first = call.wanted
    # PyTorch's own attention does not cap logits.
    shorten = call.block_elements is not None and method.last_row_only and call.softcap is None
    if shorten and call.query.shape[2] > 1:
        first = max(first, int(call.last_rows.min()))
    if first:
        call = replace(call, first_row=first)
    statistics = method.statistics(call)
    value = call.without_padding(call.value.float()).transpose(-1, -2)
    output = torch.empty(call.query.shape[:3] + call.value.shape[3:], dtype=call.query.dtype, device=call.query.device)
    for block in call.blocks(first):
        shares = _weigh(call, block, method, statistics)
        output[:, :, block.start : block.stop] = call.product(shares, value[..., : block.keys])
    if first > call.wanted:  # rows that are not edited: PyTorch's own attention is faster
        output[:, :, :first] = _stock(call, first)
    if call.wanted:
        output[:, :, : call.wanted] = 0
    return call.without_padded_rows(output)


def _stock(call: Call, rows: int, factor: float = 1.0) -> torch.Tensor:
    """The stock attention output of the first rows, (B, H, rows, D), with logits multiplied by a factor.

    Rows of padding hold arbitrary values.
    """
    keys = call.key.shape[2] if call.forward else call.past + rows
    mask = None if call.mask is None else call.mask[:, :, :rows, :keys]
    causal = mask is None and not call.past
    if mask is None and call.past and rows > 1:
        mask = (call.index[call.past : keys, None] >= call.index[:keys])[None, None]
    key, value = (call.without_padding(x)[:, :, :keys] for x in (call.key, call.value))
    return torch.nn.functional.scaled_dot_product_attention(
        call.query[:, :, :rows],
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=call.scaling * factor,
        enable_gqa=key.shape[1] != call.query.shape[1],
    )


def _rescaled(call: Call, factor: float) -> torch.Tensor:
    """The output of an edit that multiplies all logits by a factor: PyTorch's own attention does that."""
    call = _in_blocks(call)
    output = _stock(call, call.query.shape[2], factor)
    output[:, :, : call.wanted] = 0
    return call.without_padded_rows(output)


def reference(call: Call, method: Method) -> torch.Tensor:
    """The specification: the edit over the whole map at once. Returns the output of all rows, (B, H, Q, D)."""
    return _attend(replace(call, block_elements=None, wanted=0), method)


def blocked(call: Call, method: Method) -> torch.Tensor:
    """The same in blocks of query rows; equal to `reference` up to rounding.

    |A|_min is the smallest of many sums near 0, so its relative error between the two can be tens of per cent.
    """
    return _attend(_in_blocks(call), method)


def _in_blocks(call: Call) -> Call:
    """The same call in blocks of a size that suits its device."""
    least, most = BLOCK_ELEMENTS.get(call.query.device.type, BLOCK_ELEMENTS["cpu"])
    batch, heads, _, _ = call.query.shape
    size = min(most, max(least, batch * heads * call.key.shape[2] * BLOCK_ROWS))
    return call if call.block_elements else replace(call, block_elements=size)


def _run_fused(call: Call, method: Method, execution: str) -> torch.Tensor:
    """The output of the fused kernels; that of `blocked`, and a warning once, if they do not serve the call."""
    if method.factor is not None and call.heads is None and call.softcap is None:
        return _rescaled(call, method.factor)
    edit = method.fused
    reason = unfit(call, edit)
    if edit is None or reason is not None:
        _warn_once(f"execution={execution} runs {type(method).__name__} as blocked: {reason}")
        return blocked(call, method)
    from tdrs.attention.triton.run import run  # imports triton, which is optional

    return run(call, edit)


@cache
def _warn_once(message: str) -> None:
    """Warn, once in a process: Python's own filter repeats a warning whenever a library changes the filters."""
    warnings.warn(message, stacklevel=4)


def fused(call: Call, method: Method) -> torch.Tensor:
    """In fused kernels; in blocks where these do not serve, and a warning says so."""
    return _run_fused(call, method, "triton")


def _on_gpu(call: Call) -> bool:
    return call.query.is_cuda


def fastest(call: Call, method: Method) -> torch.Tensor:
    """On a GPU as `fused`; elsewhere in blocks, with compiled loops where a method has one."""
    return _run_fused(call, method, "auto") if _on_gpu(call) else blocked(replace(call, loops=True), method)


EXECUTIONS: dict[str, Callable[[Call, Method], torch.Tensor]] = {
    "auto": fastest,
    "blocked": blocked,
    "reference": reference,
    "triton": fused,
}
