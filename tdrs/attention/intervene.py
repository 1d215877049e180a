"""`intervene`: put an edit into a transformers model's text decoder for the length of a `with` block.

The seam is transformers' `AttentionInterface`: the decoder's configuration names our function, which runs the core on
layers the method is active on and the model's own implementation (sdpa or eager) on all others. Nothing is patched;
hooks on the decoder see the rotations that pass by. On leaving, the name is put back and the hooks are removed.
"""

import inspect
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from tdrs.attention.call import IMAGE, SYSTEM, TEXT, Call
from tdrs.attention.core import EXECUTIONS, Intervention
from tdrs.attention.rope import check_rotation
from tdrs.attention.selection import resolve
from tdrs.settings import check_choice

BASES = ("sdpa", "eager")
_SESSIONS: "WeakKeyDictionary[torch.nn.Module, Session]" = WeakKeyDictionary()


class Session:
    """One intervention at work on one model.

    Attributes:
        clamped: for each w_min, how many kernels' end points were clamped into (0, 1), and of how many.
    """

    def __init__(
        self, model: PreTrainedModel, decoder: PreTrainedModel, intervention: Intervention, execution: str
    ) -> None:
        self.intervention = intervention
        self.execute = EXECUTIONS[execution]
        self.base: str = decoder.config._attn_implementation
        layers = _layers(decoder)
        self.layers = {layer.self_attn: number for number, layer in enumerate(layers)}
        self.edited = resolve("layers", intervention.layers, len(layers)) if intervention.active else frozenset()
        count = decoder.config.num_attention_heads
        heads = resolve("heads", intervention.heads, count)
        self.heads: torch.Tensor | None = None
        if len(heads) < count:
            self.heads = torch.tensor([head in heads for head in range(count)]).view(1, -1, 1, 1)
        self.image_token: int | None = getattr(model.config, "image_token_id", None)
        self._check_needs(type(model).__name__)
        self._clamped: dict[str, torch.Tensor] = {}
        # What passed by, for all tokens so far, (B or 1, K, …): cos, sin, positions, image (is it an image token)
        self._tokens: dict[str, torch.Tensor] = {}
        self._known = 0
        self._past = 0
        self._image: torch.Tensor | None = None
        self._roles: torch.Tensor | None = None  # of all tokens so far, (B, K)
        self._cached: weakref.ref[torch.Tensor] | None = None
        self._rotation_due = False  # this forward pass has not shown its own yet
        self._next_token_only = False

    def _check_needs(self, name: str) -> None:
        module = next(iter(self.layers))
        seen = inspect.signature(type(module).forward).parameters
        if self.needs("rotation") and "position_embeddings" not in seen:
            raise ValueError(f"{name}: its layers are not given position_embeddings; use features=post_rope")
        if self.needs("roles") and self.image_token is None:
            raise ValueError(f"{name} has no image_token_id, and this method asks which tokens are of the image")

    def needs(self, what: str) -> bool:
        return what in self.intervention.needs

    @property
    def row_local(self) -> bool:
        """Whether each row's edit depends on that row's past alone, so that a prompt may be fed in pieces."""
        return not self.edited or bool(getattr(self.intervention, "row_local", False))

    @property
    def clamped(self) -> dict[str, tuple[int, int]]:
        return {name: (int(c[0]), int(c[1])) for name, c in self._clamped.items()}

    def take_clamped(self) -> dict[str, tuple[int, int]]:
        """What was counted since the last time, and start again from 0."""
        counted = self.clamped
        self._clamped = {}
        return counted

    def enter_model(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the whole model: which of the new tokens are of the image?"""
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._image = None if ids is None else ids == self.image_token

    def enter_decoder(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the decoder: what does the cache hold, and where do the new tokens stand?"""
        cache = kwargs.get("past_key_values")
        if cache is not None and getattr(cache, "is_compileable", False):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}: tdrs needs a cache that grows (DynamicCache)"
            )
        self._past = cache.get_seq_length() if cache is not None else 0
        if self._past == 0:
            self._tokens, self._known = {}, 0
        if self.intervention.needs:
            self._check_cache(cache)
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        new: torch.Tensor = next(x for x in given if x is not None)
        self._known = self._past + new.shape[1]
        self._rotation_due = self.needs("rotation")
        if self.needs("positions"):
            self._add("positions", _positions(kwargs.get("position_ids"), self._past, new))
        if self.needs("roles"):
            if self._image is None:
                raise ValueError("key roles are read off input_ids: call the model with them, not with inputs_embeds")
            self._add("image", self._image)
            self._image = None
            self._roles = _roles(self._tokens["image"])

    def _check_cache(self, cache: Any) -> None:
        if self._known != self._past:
            raise ValueError(
                f"the cache holds {self._past} tokens, {self._known} of which passed through this intervene block: "
                "fill the cache inside the block, and do not crop it"
            )
        same = self._cached is None or self._cached() is _first_keys(cache)
        if self._past and not same and not all(torch.equal(x, x[:1].expand_as(x)) for x in self._tokens.values()):
            raise ValueError(
                "the cache was reordered or copied, and its samples differ in padding or in where the image is: "
                "give such samples one at a time"
            )

    def leave_decoder(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the decoder: remember the cache by its first keys."""
        keys = _first_keys(kwargs.get("past_key_values") or getattr(output, "past_key_values", None))
        self._cached = None if keys is None else weakref.ref(keys)

    def rearrange(self, samples: torch.Tensor, tokens: torch.Tensor, cache: Any) -> None:
        """The cache was rearranged by whoever made it.

        Args:
            samples: of which sample before each one now is a copy, (N,).
            tokens: which of that one's tokens its tokens are copies of, (N, K); −1 is new padding.
        """
        for name, past in self._tokens.items():
            past = past[samples] if past.shape[0] > 1 else past
            index = tokens.to(past.device).view(*tokens.shape, *[1] * (past.dim() - 2))
            self._tokens[name] = past.take_along_dim(index.clamp_min(0), dim=1)
            if name == "image":
                self._tokens[name] &= index >= 0
        keys = _first_keys(cache)
        self._cached = None if keys is None else weakref.ref(keys)

    def enter_attention(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of each attention layer: the first one of a forward pass shows this pass's rotation."""
        if not self._rotation_due:
            return
        if kwargs.get("position_embeddings") is None:
            raise ValueError(f"{type(module).__name__} is not given position_embeddings: use features=post_rope")
        cos, sin = kwargs["position_embeddings"]
        if "cos" not in self._tokens:
            check_rotation(cos, module.head_dim)  # type: ignore[arg-type]
        self._add("cos", cos)
        self._add("sin", sin)
        self._rotation_due = False

    def _add(self, name: str, new: torch.Tensor) -> None:
        """Append along the tokens; where all samples are alike, the batch may be 1."""
        past = self._tokens.get(name)
        if past is not None:
            batch = [max(past.shape[0], new.shape[0])] + [-1] * (new.dim() - 1)
            new = torch.cat((past.expand(batch), new.expand(batch)), dim=1)
        self._tokens[name] = new

    @contextmanager
    def next_token_only(self) -> Iterator[None]:
        """A `with` block in which only the next token's logits are asked for: of the last layer, only the last row of
        the attention output and of the MLP is computed. Batches must be left-padded."""
        self._next_token_only = True
        try:
            yield
        finally:
            self._next_token_only = False

    def enter_last_norm(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook of the norm behind the last layer's attention: what its MLP makes of the last row is added
        to all rows, of which no other is looked at."""
        return (args[0][:, -1:], *args[1:]) if self._next_token_only and args else None

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
        phase = "decode" if self._past and query.shape[2] == 1 else "prefill"
        rows = query.shape[2]
        wanted = rows - 1 if self._next_token_only and layer == len(self.layers) - 1 else 0
        if layer not in self.edited or self.intervention.phase not in ("both", phase):
            attention = _base_attention(self.base, module)
            if not wanted:
                return attention(module, query, key, value, mask, scaling=scaling, **kwargs)
            mask = None if mask is None else mask[:, :, wanted:]
            last, _ = attention(module, query[:, :, wanted:], key, value, mask, scaling=scaling, **kwargs)
            return torch.nn.functional.pad(last, (0, 0, 0, 0, wanted, 0)), None
        whole_map = getattr(self.intervention, "stats_scope", "row") == "call" and not self.row_local
        if self._past and phase == "prefill" and whole_map:
            warnings.warn(
                "a prompt fed in pieces: under stats_scope=call the result depends on the pieces, under row not",
                stacklevel=2,
            )

        def here(tensor: Any) -> Any:  # layers may be on several devices
            return None if tensor is None else tensor.to(query.device)

        call = Call(
            query,
            key,
            value,
            scaling,
            mask,
            rotation=(here(self._tokens["cos"]), here(self._tokens["sin"])) if self.needs("rotation") else None,
            positions=here(self._tokens.get("positions")),
            roles=here(self._roles),
            layer=layer,
            heads=here(self.heads),
            wanted=wanted,
        )
        output = self.execute(call, self.intervention)
        for name, counts in call.clamped.items():
            before = self._clamped.get(name)
            now = torch.stack(counts).sum(dim=0)
            self._clamped[name] = now if before is None else before + now.to(before.device)
        return output.transpose(1, 2).contiguous(), None


def _roles(image: torch.Tensor) -> torch.Tensor:
    """The role of each token, (B, K), from which are of the image; a sample without an image has no system tokens."""
    before = (image.cumsum(dim=1) == 0) & image.any(dim=1, keepdim=True)
    return torch.where(image, IMAGE, torch.where(before, SYSTEM, TEXT))


def _positions(ids: torch.Tensor | None, past: int, new: torch.Tensor) -> torch.Tensor:
    """The decoder's position ids, (B or 1, L, axes); M-RoPE's three axes may follow one of text positions."""
    if ids is None:
        return torch.arange(past, past + new.shape[1], device=new.device)[None, :, None]
    return ids.unsqueeze(-1) if ids.dim() == 2 else ids[-3:].permute(1, 2, 0)


def _first_keys(cache: Any) -> torch.Tensor | None:
    layers = getattr(cache, "layers", None)
    return getattr(layers[0], "keys", None) if layers else None


def _layers(decoder: PreTrainedModel) -> Any:
    return decoder.layers


def _base_attention(base: str, module: torch.nn.Module) -> Any:
    return sdpa_attention_forward if base == "sdpa" else sys.modules[type(module).__module__].eager_attention_forward


def _dispatch(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    return _SESSIONS[module].attend(module, *args, **kwargs)


for _base, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(f"tdrs_{_base}", _dispatch)
    AttentionMaskInterface.register(f"tdrs_{_base}", _mask)


def session_of(model: PreTrainedModel) -> Session | None:
    """The session of the intervene block that a model is in, if it is in one."""
    return next((_SESSIONS[module] for module in model.get_decoder().modules() if module in _SESSIONS), None)


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
def intervene(model: PreTrainedModel, intervention: Intervention, execution: str = "auto") -> Iterator[Session]:
    """Edit the attention of a model's text decoder inside a `with` block; the vision tower is never touched.

    Args:
        model: any RoPE model of transformers that dispatches through `AttentionInterface`, with sdpa or eager.
        intervention: the method, such as `tdrs.TDRS(...)`.
        execution: `blocked`, in blocks of query rows; `reference`, over the whole map at once; `auto`, the fastest.

    Returns:
        The session, whose `clamped` counts end points that were clamped.

    Raises:
        SettingError: unknown execution; a layer or a head that the model does not have.
        ValueError: the model cannot be edited, or cannot tell the method what it needs.

    Whatever is raised, the model is left as it was.

    Leaving the block, also by an exception, restores the model. On layers the method is not active on, and with all
    stages off, the model's own attention runs: logits are then equal to the stock model's bit for bit.
    """
    check_choice("execution", execution, list(EXECUTIONS))
    decoder = text_decoder(model)
    session = Session(model, decoder, intervention, execution)
    handles = []
    try:
        handles.append(model.register_forward_pre_hook(session.enter_model, with_kwargs=True))
        handles.append(decoder.register_forward_pre_hook(session.enter_decoder, with_kwargs=True))
        handles.append(decoder.register_forward_hook(session.leave_decoder, with_kwargs=True))
        for module in session.layers:
            handles.append(module.register_forward_pre_hook(session.enter_attention, with_kwargs=True))
            _SESSIONS[module] = session
        norm = getattr(_layers(decoder)[-1], "post_attention_layernorm", None)
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
