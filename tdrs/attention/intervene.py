"""`intervene`: put an edit into a transformers model's text decoder for the length of a `with` block.

The seam is transformers' `AttentionInterface`: the decoder's configuration names our function, which runs the core on
layers the method is active on and the model's own implementation (sdpa or eager) on all others. Nothing is patched;
hooks on the decoder see the rotations that pass by. On leaving, the name is put back and the hooks are removed.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from tdrs.attention.core import EXECUTIONS, Call, Intervention
from tdrs.attention.rope import check_rotation
from tdrs.settings import check_choice

BASES = ("sdpa", "eager")
_SESSIONS: "WeakKeyDictionary[torch.nn.Module, Session]" = WeakKeyDictionary()


class Session:
    """One intervention at work on one model.

    Attributes:
        clamped: for each w_min, how many kernels' end points were clamped into (0, 1), and of how many.
    """

    def __init__(self, decoder: PreTrainedModel, intervention: Intervention, execution: str, base: str) -> None:
        self.intervention = intervention
        self.execution = execution
        self.base = base
        self.layers = {layer.self_attn: number for number, layer in enumerate(_layers(decoder))}
        self._clamped: dict[str, torch.Tensor] = {}
        self._rotation: tuple[torch.Tensor, torch.Tensor] | None = None  # cos and sin of all tokens so far
        self._rotation_due = False  # this forward pass has not shown its own yet
        self._past = 0

    @property
    def clamped(self) -> dict[str, tuple[int, int]]:
        return {name: (int(c[0]), int(c[1])) for name, c in self._clamped.items()}

    def enter_decoder(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the decoder: how many tokens does the cache already hold?"""
        cache = kwargs.get("past_key_values")
        if cache is not None and getattr(cache, "is_compileable", False):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}: tdrs needs a cache that grows (DynamicCache)"
            )
        self._past = cache.get_seq_length() if cache is not None else 0
        if self._past == 0:
            self._rotation = None
        known = self._rotation[0].shape[1] if self._rotation else 0
        if self.intervention.needs_rotation and known != self._past:
            raise ValueError(
                f"the cache holds {self._past} tokens, {known} of which passed through this intervene block: "
                "fill the cache inside the block, and do not crop it"
            )
        self._rotation_due = self.intervention.needs_rotation

    def enter_attention(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of each attention layer: the first one of a forward pass shows this pass's rotation."""
        if not self._rotation_due:
            return
        if kwargs.get("position_embeddings") is None:
            raise ValueError(f"{type(module).__name__} is not given position_embeddings: use features=post_rope")
        cos, sin = kwargs["position_embeddings"]
        if self._rotation is None:
            check_rotation(cos, module.head_dim)  # type: ignore[arg-type]
            self._rotation = cos, sin
        else:
            self._rotation = _join(self._rotation[0], cos), _join(self._rotation[1], sin)
        self._rotation_due = False

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """What transformers calls in place of its own attention function; returns (B, Q, H, D)."""
        layer = self.layers[module]
        if not self.intervention.active(layer):
            return _base_attention(self.base, module)(module, query, key, value, mask, scaling=scaling, **kwargs)
        if self._past and query.shape[2] > 1 and getattr(self.intervention, "stats_scope", "row") == "call":
            warnings.warn(
                "a prompt fed in pieces: under stats_scope=call the result depends on the pieces, under row not",
                stacklevel=2,
            )
        call = Call(query, key, value, scaling, mask, self._rotation)
        output = EXECUTIONS[self.execution](call, self.intervention)
        for name, counts in call.clamped.items():
            self._clamped[name] = self._clamped.get(name, 0) + torch.stack(counts).sum(dim=0)
        return output.transpose(1, 2).contiguous(), None


def _join(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Along the tokens; where all samples share positions, the batch is 1."""
    batch = max(past.shape[0], new.shape[0])
    return torch.cat((past.expand(batch, -1, -1), new.expand(batch, -1, -1)), dim=1)


def _layers(decoder: PreTrainedModel) -> Any:
    return decoder.layers


def _base_attention(base: str, module: torch.nn.Module) -> Any:
    return sdpa_attention_forward if base == "sdpa" else sys.modules[type(module).__module__].eager_attention_forward


def _dispatch(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    return _SESSIONS[module].attend(module, *args, **kwargs)


for _base, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(f"tdrs_{_base}", _dispatch)
    AttentionMaskInterface.register(f"tdrs_{_base}", _mask)


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder whose attention is edited, checked to be one that `intervene` can serve.

    Raises:
        ValueError: its attention does not go through transformers' AttentionInterface, its implementation is neither
            sdpa nor eager, or a layer attends through a sliding window.
    """
    decoder = model.get_decoder()
    name = type(model).__name__
    layers = getattr(decoder, "layers", None)
    if not getattr(decoder, "_supports_attention_backend", False) or not layers:
        raise ValueError(f"{name}: its attention does not go through transformers' AttentionInterface")
    if not all(hasattr(layer, "self_attn") for layer in layers):
        raise ValueError(f"{name}: a decoder layer has no self_attn")
    default = "sliding_attention" if getattr(decoder.config, "sliding_window", None) else "full_attention"
    windows = set(getattr(decoder.config, "layer_types", None) or [default]) - {"full_attention"}
    if windows:
        raise ValueError(f"{name}: layers of type {', '.join(sorted(windows))} are not supported, only full attention")
    if layers[0].self_attn in _SESSIONS:
        raise ValueError(f"{name} is inside another intervene block; leave that one first")
    base = decoder.config._attn_implementation
    if base not in BASES:
        raise ValueError(f"{name}: attention implementation {base!r} cannot be edited; load it with sdpa or eager")
    return decoder


@contextmanager
def intervene(model: PreTrainedModel, intervention: Intervention, execution: str = "blocked") -> Iterator[Session]:
    """Edit the attention of a model's text decoder inside a `with` block; the vision tower is never touched.

    Args:
        model: any RoPE model of transformers that dispatches through `AttentionInterface`, with sdpa or eager.
        intervention: the method, such as `tdrs.TDRS(...)`.
        execution: `blocked`, in blocks of query rows; `reference`, over the whole map at once.

    Returns:
        The session, whose `clamped` counts end points that were clamped.

    Raises:
        SettingError: unknown execution.
        ValueError: the model cannot be edited; it is left as it was.

    Leaving the block, also by an exception, restores the model. On layers the method is not active on, and with all
    stages off, the model's own attention runs: logits are then equal to the stock model's bit for bit.
    """
    check_choice("execution", execution, list(EXECUTIONS))
    decoder = text_decoder(model)
    base = decoder.config._attn_implementation
    session = Session(decoder, intervention, execution, base)
    layers = getattr(intervention, "layers", "all")
    unknown = [n for n in layers if int(n) >= len(session.layers)] if layers != "all" else []
    if unknown:
        raise ValueError(f"layers = {list(layers)}: the model has layers 0 to {len(session.layers) - 1}")
    handles = []
    try:
        handles.append(decoder.register_forward_pre_hook(session.enter_decoder, with_kwargs=True))
        for module in session.layers:
            handles.append(module.register_forward_pre_hook(session.enter_attention, with_kwargs=True))
            _SESSIONS[module] = session
        decoder.config._attn_implementation = f"tdrs_{base}"
        yield session
    finally:
        decoder.config._attn_implementation = base
        for handle in handles:
            handle.remove()
        for module in session.layers:
            _SESSIONS.pop(module, None)
