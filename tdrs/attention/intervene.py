"""`intervene`: put a method's edit into a transformers model's text decoder for the length of a `with` block.

transformers' `AttentionInterface` is the connection: the decoder's configuration names our function. On the layers that
a method edits, it runs the core; on all others it runs the model's own implementation (sdpa or eager). Nothing is
patched. Hooks on the decoder record the rotations. At the end, the name is restored and the hooks are removed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask

from tdrs.attention.context import Context
from tdrs.attention.core import EXECUTIONS
from tdrs.attention.fused import check_fused
from tdrs.attention.method import Method, check_method
from tdrs.attention.rotaries import rotary_modules
from tdrs.attention.second_pass import second_pass_of
from tdrs.attention.session import Session, layers_of
from tdrs.settings import SettingError, check_choice

BASES = ("sdpa", "eager")
LAYER_TYPES = ("full_attention", "sliding_attention")
_SESSIONS: "WeakKeyDictionary[torch.nn.Module, Session]" = WeakKeyDictionary()


def _enter_layer(context: Context, layer: int, module: torch.nn.Module, *given: Any) -> None:
    """Forward pre-hook of each edited decoder layer."""
    context.enter_layer(layer, *given)


def _dispatch(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    return _SESSIONS[module].attend(module, *args, **kwargs)


for _base, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(f"tdrs_{_base}", _dispatch)
    AttentionMaskInterface.register(f"tdrs_{_base}", _mask)


def session_of(model: PreTrainedModel) -> Session | None:
    """The session of the intervene block that a model is in; None outside of one."""
    return next((_SESSIONS[module] for module in model.get_decoder().modules() if module in _SESSIONS), None)


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder whose attention is edited.

    Raises:
        SettingError: `intervene` cannot serve it. The message says why.
    """
    decoder = model.get_decoder()
    name = type(model).__name__
    layers = getattr(decoder, "layers", None)
    if not getattr(decoder, "_supports_attention_backend", False) or not layers:
        raise SettingError("model", name, "its attention does not go through transformers' AttentionInterface")
    if not all(hasattr(layer, "self_attn") for layer in layers):
        raise SettingError("model", name, "a decoder layer has no self_attn, so its attention cannot be edited")
    others = set(getattr(decoder.config, "layer_types", None) or ()).difference(LAYER_TYPES)
    if others:
        kinds = ", ".join(sorted(others))
        raise SettingError("model", name, f"layers of type {kinds} cannot be edited, only {' and '.join(LAYER_TYPES)}")
    if layers[0].self_attn in _SESSIONS:
        raise SettingError("model", name, "is inside another intervene block; leave that one first")
    base = decoder.config._attn_implementation
    if base not in BASES:
        raise SettingError("attention", base, f"cannot be edited in {name}; load it with sdpa or eager")
    if base == "sdpa" and getattr(decoder.config, "attn_logit_softcapping", None):
        raise SettingError("attention", base, f"does not cap logits as {name} does; load it with eager")
    return decoder


@contextmanager
def intervene(
    model: PreTrainedModel,
    method: Method,
    execution: str = "auto",
    marked: bool = False,
    two_passes: bool = False,
    tile_side: int | None = None,
) -> Iterator[Session]:
    """Edit the attention of a model's text decoder inside a `with` block. The vision tower is never edited.

    On layers that the method does not edit, and if its settings edit nothing, the model's own attention runs: the
    logits are then equal to the stock model's, bit for bit. The end of the block restores the model, also after an
    exception.

    Args:
        model: any RoPE model of transformers that dispatches through `AttentionInterface`, with sdpa or eager.
        method: the method, such as `tdrs.TDRS(...)`.
        execution: `blocked`: in blocks of query rows; `reference`: over the whole map at once; `triton`:
            in fused kernels on a GPU; `auto`: the fastest.
        marked: the caller says before each prompt which tokens take the part of image tokens, with `session.mark`.
        two_passes: the caller runs the second pass of a method that has one, in `session.two_passes`.
        tile_side: the rows of the square of image tokens of a picture, or of each tile that it is cut into; 0: they
            form no squares; None: not known.

    Returns:
        The session. `session.tally.read()` gives what the method counted, such as clamped end points.

    Raises:
        SettingError: the execution is unknown, the model does not have a layer or a head that is named, it cannot be
            edited, or it cannot provide what the method needs; or the method has a second pass.
    """
    check_choice("execution", execution, list(EXECUTIONS))
    check_method(method)
    if execution == "triton":
        check_fused(model.device.type)
    if second_pass_of(method) and not two_passes:
        advice = f", or {method.advice['second_pass']}" if "second_pass" in method.advice else ""
        reason = f"combines two forward passes, and intervene edits one: use tdrs.evaluate(…) or its command{advice}"
        raise SettingError("method", type(method).__name__, reason)
    decoder = text_decoder(model)
    session = Session(model, decoder, method, execution, marked, tile_side)
    context = session.context
    handles = []
    try:
        handles.append(model.register_forward_pre_hook(context.enter_model, with_kwargs=True))
        handles.append(decoder.register_forward_pre_hook(context.enter_decoder, with_kwargs=True))
        handles.append(decoder.register_forward_hook(context.leave_decoder, with_kwargs=True))
        for rotary in rotary_modules(decoder):
            handles.append(rotary.register_forward_hook(context.rotaries.leave, with_kwargs=True))
        for module, number in session.layers.items():
            if number in session.edited:
                handles.append(module.register_forward_pre_hook(context.enter_attention, with_kwargs=True))
                note = partial(_enter_layer, context, number)
                handles.append(layers_of(decoder)[number].register_forward_pre_hook(note, with_kwargs=True))
            _SESSIONS[module] = session
        norm = getattr(layers_of(decoder)[-1], "post_attention_layernorm", None)
        if norm is not None:
            handles.append(norm.register_forward_pre_hook(session.enter_last_norm))
        decoder.config._attn_implementation = f"tdrs_{session.base}"
        yield session
    finally:
        decoder.config._attn_implementation = session.base
        for handle in handles:
            handle.remove()
        for module in session.layers:
            _SESSIONS.pop(module, None)
