"""What a method says about itself so that fused kernels can run its edit, and which calls they serve.

`blocked` runs any method, with an operator of PyTorch for each step. Fused kernels (`tdrs.attention.triton`) read each
query-key pair once or twice and write none. They serve edits of logits that need no more than a tile of the map: the
logits, the cosine, the distance in tokens, the roles, and statistics of rows or of the whole map that the kernels know.

Nothing here imports Triton, which is optional.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from tdrs.attention.call import Call
from tdrs.settings import SettingError

HEAD_SIZES = (16, 256)  # the smallest and the largest
CAPABILITY = (8, 0)  # of the GPU: the first with tensor cores for bfloat16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Functions(NamedTuple):
    """A method's functions of Triton; `tdrs.attention.triton.attend` says what they take and return.

    Attributes:
        edit: the edit of a tile.
        rows: what is constant along a row; None if nothing is.
        count: adds to the counts of the tally; None if the method counts nothing.
    """

    edit: Any
    rows: Any = None
    count: Any = None


def functions_in(module: str, name: str) -> Callable[[], Functions]:
    """Functions of a module that imports Triton. It is imported when they are asked for, because Triton is optional."""
    return lambda: getattr(import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class FusedEdit:
    """An edit of logits, for the fused kernels.

    Attributes:
        functions: imports and returns the functions. It is called only where Triton is installed.
        flags: choices that are made when the kernels are compiled.
        numbers: at most five numbers that the functions take.
        cosine: the vectors whose cosine the edit uses, `pre_rope` or `post_rope`; "" is none.
        norm: the `mean` or the `max` of the cosine over each row's visible keys; "" is neither.
        smallest: |A|_min of each query `head`, or of all heads of the `layer`; "" is none.
        weights: whether |A|_min is the smallest softmax(A) and not the smallest |A|.
        by_row: whether |A|_min and d_max are those of each row, and not of all rows.
        factor: whether the edit has a factor of the weights beside the logits.
        positions: whether distances are those of position ids, and not of tokens.
        roles: whether the edit uses the roles of queries and keys.
        heavy: whether it needs more registers than most, so that its tiles have to be smaller.
        counted: the kind, and the names, of what is counted; see `Tally`.
    """

    functions: Callable[[], Functions]
    flags: int = 0
    numbers: tuple[float, ...] = ()
    cosine: str = ""
    norm: str = ""
    smallest: str = ""
    weights: bool = False
    by_row: bool = False
    factor: bool = False
    positions: bool = False
    roles: bool = False
    heavy: bool = False
    counted: tuple[str, tuple[str, ...]] = ("", ())


@cache
def installed() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter is on: kernels then run on the CPU, slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _capable(device: torch.device) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= CAPABILITY


def serves(device: torch.device) -> bool:
    """Whether the fused kernels run on this device."""
    if not installed():
        return False
    return interpreted() if device.type == "cpu" else device.type == "cuda" and _capable(device)


def check_fused(device: str | None = None, name: str = "execution") -> None:
    """Check that the fused kernels can run.

    Args:
        device: the kind of device that computes, `cpu` or `cuda`; None if that is not known yet.
        name: the setting that asks for them.

    Raises:
        SettingError: they cannot.
    """
    if not installed():
        raise SettingError(name, "triton", "needs the package triton, which is for Linux: pip install triton")
    if device == "cpu" and not interpreted():
        reason = "needs a CUDA device, and this is a CPU: use auto (TRITON_INTERPRET=1 is for tests)"
        raise SettingError(name, "triton", reason)


def unfit(call: Call, edit: FusedEdit | None) -> str | None:
    """Why the fused kernels do not serve a call under an edit; None if they do."""
    query, key, value = call.query, call.key, call.value
    width, (least, most) = query.shape[-1], HEAD_SIZES
    reasons = {
        "Triton does not run on this device": not serves(query.device),
        "the method has no fused kernel for these settings": edit is None,
        "the mask hides more than the future and padding": not call.regular,
        "logits are capped": call.softcap is not None,
        "gradients are recorded": torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)),
        f"the head size is {width}, not {least} to {most}": not least <= width <= most,
        "values have another head size than keys": value.shape[-1] != width,
        "queries, keys and values must all be float32, bfloat16 or float16": query.dtype not in DTYPES
        or not query.dtype == key.dtype == value.dtype,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
