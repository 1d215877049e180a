"""Weights in 8 or 4 bits, by transformers' own quantisation with bitsandbytes.

Queries, keys and values are activations, which are not quantised, so an edit works as it does on a plain model.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from tdrs.backbones.checkpoint import Incomplete, named
from tdrs.settings import SettingError, first_line

BITS = (8, 4)
METHOD = "bitsandbytes"  # also the name of its package
PACKAGES = (METHOD, "accelerate")


def check_bits(bits: int) -> None:
    """Raises SettingError unless weights can have so many bits, and what that needs is installed."""
    if bits not in BITS:
        raise SettingError("bits", bits, "must be 8, 4 or null")
    if missing := _missing():
        raise SettingError("bits", bits, f"needs {missing}: pip install {missing}")


def _missing() -> str:
    return " ".join(name for name in PACKAGES if find_spec(name) is None)


def bits_of(config: Any) -> int | None:
    """The bits of the weights in a model's folder, from its configuration; None if they are not quantised.

    Raises:
        Incomplete: they are quantised by something else than bitsandbytes, or it is not installed.
    """
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    values: Mapping[str, Any] = given if isinstance(given, Mapping) else given.to_dict()
    method = str(values.get("quant_method"))
    if method != METHOD:
        raise Incomplete(f"its weights are quantised by {method}; those of {METHOD} can be loaded")
    if missing := _missing():
        raise Incomplete(f"its weights are quantised, which needs {missing}: pip install {missing}")
    return 8 if values.get("load_in_8bit") else 4


def quantiser(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What `from_pretrained` takes for weights in 8 bits (LLM.int8) or 4 bits (NF4, computed in `dtype`).

    Raises:
        SettingError: bitsandbytes cannot run on this machine.
    """
    # it says for each matrix that it casts inputs to float16, and that it finds no kernels of a hub
    for part in ("autograd._functions", "backends.cpu.ops"):
        logging.getLogger(f"bitsandbytes.{part}").setLevel(logging.ERROR)
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if bits == 8
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    )
    try:
        AutoHfQuantizer.from_config(config, pre_quantized=False).validate_environment()
    except (ImportError, RuntimeError, ValueError) as error:
        raise SettingError("bits", bits, f"cannot be computed here ({first_line(error)})") from error
    return config


def compute_alike(model: torch.nn.Module) -> None:
    """Make every processor compute in the type that was asked for.

    On a processor with AVX512-BF16, bitsandbytes would round inputs and scales to bfloat16, whatever that type is.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - a type checker takes it for a module


def check_file_values(files: Sequence[Path], model: PreTrainedModel) -> None:
    """Check the values before quantisation, which hides NaN.

    Args:
        files: the model's files of weights.

    Raises:
        Incomplete: a weight contains NaN or an infinite number, or a matrix contains only zeros.
    """
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    ends = {_end(f"{name}.weight") for name in linear}
    broken, empty = [], []
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it has no other iterator
                weight = file.get_tensor(name)
                if not weight.is_floating_point():
                    continue
                if not weight.isfinite().all():
                    broken.append(name)
                elif weight.numel() and _end(name) in ends and not weight.any():
                    empty.append(name)
    if broken:
        raise Incomplete(f"the weights hold NaN or infinite numbers: {named(broken)}")
    if empty:
        raise Incomplete(f"the weights are all zero in {named(empty)}: the file was not written to its end")


def _end(name: str) -> tuple[str, ...]:
    """The end of a tensor's name, which a checkpoint and the model have in common."""
    return tuple(name.split(".")[-3:])
