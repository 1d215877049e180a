"""Weights in 8 or 4 bits, by transformers' own quantisation with bitsandbytes.

Queries, keys and values are activations, which are not quantised, so an edit works as it does on a plain model.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from tdrs.backbones.checkpoint import Incomplete, check_weights
from tdrs.settings import SettingError, first_line

BITS = (8, 4)
METHOD = "bitsandbytes"  # also the name of its package
VALUES = 2  # another number is other results with the same version of bitsandbytes; it is part of cache keys
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


def compute_alike(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make a quantised model compute in the type that was asked for, with the values of its weights, on every machine.

    Weights that are not quantised get the type, also those of a folder that was quantised in another one. The rest is
    for a CPU, and for faults of bitsandbytes 0.50 there. It would round inputs and scales to bfloat16 where the
    processor has AVX512-BF16. It takes the scales of other blocks where the rows of a matrix in 4 bits are no whole
    blocks, such as the 4304 numbers of a row in SigLIP: such a layer gets the right values, in `dtype`. In 8 bits it
    takes inputs of at most three dimensions.
    """
    import bitsandbytes.nn

    kinds: Any = bitsandbytes.nn
    full = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    packed = (kinds.Params4bit, kinds.Int8Params)  # the bytes of packed weights may have any type
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not isinstance(weight, packed) and not any(part in name for part in full):
            weight.data = weight.data.to(dtype)
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        if isinstance(module, kinds.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.support_avx512bf16_for_cpu = False
            if module.weight.device.type == "cpu" and module.in_features % module.weight.quant_state.blocksize:
                model.set_submodule(name, _unpacked(module, dtype))
        elif isinstance(module, kinds.Linear8bitLt) and module.weight.device.type == "cpu":
            shapes = Shapes()
            module.register_forward_pre_hook(shapes.flatten)
            module.register_forward_hook(shapes.restore)


def _unpacked(packed: Any, dtype: torch.dtype) -> torch.nn.Linear:
    """A plain layer with the values of a layer in 4 bits."""
    from bitsandbytes.functional import dequantize_4bit

    state = copy(packed.weight.quant_state)
    shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))  # as one long row
    layer = torch.nn.Linear(packed.in_features, packed.out_features, packed.bias is not None, device="meta")
    layer.weight = torch.nn.Parameter(dequantize_4bit(packed.weight.data, state).view(shape).to(dtype), False)
    layer.bias = packed.bias
    return layer


class Shapes:
    """Hooks of a layer that gets its inputs as a matrix, and gives its outputs in the inputs' form."""

    def __init__(self) -> None:
        self._shape = torch.Size()

    def flatten(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A pre-hook: inputs of more than three dimensions, (…, D), as a matrix (N, D)."""
        self._shape = args[0].shape[:-1]
        return (args[0].flatten(0, -2), *args[1:]) if args[0].dim() > 3 else args

    def restore(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """A hook: the outputs, (N, E), as (…, E)."""
        return output.view(*self._shape, -1)


def check_file_values(files: Sequence[Path], model: PreTrainedModel) -> None:
    """Check the values before quantisation, which hides NaN.

    Args:
        files: the model's files of weights.

    Raises:
        Incomplete: a weight contains NaN or an infinite number, or a matrix contains only zeros.
    """
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    ends = {_end(f"{name}.weight") for name in linear}
    check_weights(_weights(files), lambda name: _end(name) in ends)


def _weights(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """The floating-point tensors in files, by name, without packed weights, whose bytes may have any type."""
    for path in files:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            packed = {name.partition(".quant_state.")[0] for name in names if ".quant_state." in name}
            for name in set(names) - packed:
                weight = file.get_tensor(name)
                if weight.is_floating_point():
                    yield name, weight


def _end(name: str) -> tuple[str, ...]:
    """The end of a tensor's name, which a checkpoint and the model have in common."""
    return tuple(name.split(".")[-3:])
