"""The edit of T-DRS as one compiled loop over the pairs, `tdrs_loop.c`, in the place of a dozen operators."""

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tdrs.attention.block import Block
from tdrs.attention.loops import load

if TYPE_CHECKING:
    from tdrs.interventions.tdrs import TDRS, Rows

SOURCE = Path(__file__).with_suffix(".c")
SHIFTS = {"mean": 0.0, "max": 0.0, "one_plus": 1.0, "none": -math.inf}  # sem_pos + this is the scale, if not less


@cache
def _edit() -> Any:
    functions = load(SOURCE)
    if functions is None:
        return None
    arrays, numbers, sizes = [ctypes.c_void_p] * 7, [ctypes.c_float] * 5, [ctypes.c_int64] * 4
    functions.edit.argtypes = [*arrays, *numbers, ctypes.c_int, *sizes]
    functions.edit.restype = None
    return functions.edit


def compiled() -> bool:
    """Whether the loop can be compiled here."""
    return _edit() is not None


def served(block: Block, sem_pos: torch.Tensor) -> bool:
    """Whether the loop runs here, on this block."""
    allowed = block.call.loops and sem_pos.device.type == "cpu"
    return allowed and not (sem_pos.requires_grad or block.logits.requires_grad) and compiled()


def edited(method: "TDRS", block: Block, sem_pos: torch.Tensor, rows: "Rows") -> torch.Tensor:
    """The new logits, (B, H, R, K), written into the memory of sem_pos; before `pairs`. For blocks that are served."""
    batch, heads, count, keys = sem_pos.shape
    logits, distance = block.logits.contiguous(), block.distance(method.distance).contiguous()
    least = torch.tensor(float(method.scale == "none")) if rows.least is None else rows.least
    given = [torch.zeros(()) if x is None else x for x in (least, rows.dc, rows.re, rows.power)]
    constant = [x.expand(batch, heads, count, 1).contiguous() for x in given]
    weights = [0.0 if stage is None else stage.weight for stage in (method.dc, method.re)]
    copies = 2 if method.sd and method.sd_form == "full" else 1
    each = heads if distance.shape[0] > 1 else batch * heads
    arrays = [x.data_ptr() for x in (logits, sem_pos, distance, *constant)]
    numbers = SHIFTS[method.scale], *weights, copies, method.sd, method.gain == "weights"
    _edit()(*arrays, *numbers, batch * heads * count, count, each, keys)
    return sem_pos
