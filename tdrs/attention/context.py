"""What a model's forward pass shows of all tokens so far: their rotation, their positions, and their roles.

An attention function sees the keys of the cache, but not the rotation, position ids and token ids they came with. Hooks
record these, one forward pass after the other. Layers may differ in their rotation (Gemma 3's sliding and global ones).
"""

import inspect
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tdrs.attention.block import IMAGE, SYSTEM, TEXT
from tdrs.attention.method import Method
from tdrs.attention.rope import Frequencies, find_layout
from tdrs.attention.rotaries import Rotaries
from tdrs.settings import SettingError

# The layout of each attention module's rotation, found by trial once.
_LAYOUTS: "weakref.WeakKeyDictionary[torch.nn.Module, str]" = weakref.WeakKeyDictionary()


class Rotation(NamedTuple):
    """The rotation of all tokens so far in one layer: cos and sin, (B or 1, K, D'), and their layout; see `rope`."""

    cos: torch.Tensor
    sin: torch.Tensor
    layout: str


class Context:
    """A record of all tokens that passed through the model, for what methods need.

    Args:
        methods: their `needs` decide what is recorded.
        image_token: the id of the model's image token; None if it has none.

    Attributes:
        past: how many tokens the cache held when the current forward pass began.
        roles: SYSTEM, IMAGE or TEXT for each token, (B, K); None if the method does not need them.
        trial: while a layer's layout is found by trial, the queries and keys of that layer; else None.
        marks: which tokens of the prompts take the part of image tokens, (B, L) boolean; None reads input_ids.
        memory: what is kept from one layer to the next ones of the current forward pass.
        kept: what methods keep as long as the cache is filled.
        directions: directions of cached keys, for each part of the batch and layer.
        rotaries: the calls of the rotary modules in the current forward pass.
    """

    def __init__(self, methods: Sequence[Method], image_token: int | None) -> None:
        self.past = 0
        self.memory: dict[Any, Any] = {}
        self.kept: dict[Any, Any] = {}
        self.directions: dict[tuple[int, int], dict[str, Any]] = {}
        self.rotaries = Rotaries()
        self.roles: torch.Tensor | None = None
        self.marks: torch.Tensor | None = None
        self._methods = methods
        self._needs = frozenset().union(*(method.needs for method in methods))
        self._image_token = image_token
        self.trial: list[torch.Tensor] | None = None
        # cos0, sin0, cos1, …, positions, image (is it an image token?) of all tokens so far, each (B or 1, K, …)
        self._tokens: dict[str, torch.Tensor] = {}
        self._known = 0
        self._image: torch.Tensor | None = None  # which tokens of this forward pass are image tokens
        self._cache: weakref.ref[torch.Tensor] | None = None  # the cache's first keys, which identify it
        self._shown: list[torch.Tensor] = []  # the different cosines that this forward pass has shown so far
        self._rotation_of: dict[torch.nn.Module, int] = {}  # which of them each layer receives
        self._frequencies: list[Frequencies] = []  # of each of them

    def advice(self, of: str) -> str:
        """The methods' advice, as the end of a message; "" if they have none."""
        text = next((method.advice[of] for method in self._methods if of in method.advice), "")
        return f"; {text}" if text else ""

    def rotation(self, module: torch.nn.Module) -> Rotation | None:
        """The rotation of all tokens in an attention layer; None if the method does not need it."""
        if "rotation" not in self._needs:
            return None
        number = self._rotation_of[module]
        return Rotation(self._tokens[f"cos{number}"], self._tokens[f"sin{number}"], _LAYOUTS[module])

    def frequencies(self, module: torch.nn.Module) -> Frequencies | None:
        """How an attention layer's rotation depends on positions; None if no method needs it."""
        return self._frequencies[self._rotation_of[module]] if "frequencies" in self._needs else None

    @property
    def positions(self) -> torch.Tensor | None:
        """Position ids of all tokens, (B or 1, K, axes); None if the method does not need them."""
        return self._tokens.get("positions")

    def states(self, layer: int) -> torch.Tensor | None:
        """The hidden states of all tokens that enter a layer, (B, K, width); None if the method does not need them."""
        return self._tokens.get(f"states{layer}")

    def enter_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the hidden states that enter a decoder layer. They take the memory of a layer's keys and values."""
        if "states" in self._needs:
            self._add(f"states{layer}", args[0] if args else kwargs["hidden_states"])

    def enter_model(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the whole model: notes which new tokens are image tokens."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._image = None if ids is None else ids == self._image_token

    def enter_decoder(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the decoder: notes what the cache holds and where the new tokens are.

        Raises:
            ValueError: the cache has a fixed size, or holds tokens that were not recorded.
        """
        cache = kwargs.get("past_key_values")
        if cache is not None and getattr(cache, "is_compileable", False):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}: tdrs needs a cache that grows (DynamicCache)"
            )
        self.past = cache.get_seq_length() if cache is not None else 0
        if self.past == 0:
            self._tokens, self._known, self.kept, self.directions = {}, 0, {}, {}
        needs = self._needs
        self.memory = {}
        self.rotaries.clear()
        if needs:
            self._check_cache(cache)
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        new: torch.Tensor = next(x for x in given if x is not None)
        self._known = self.past + new.shape[1]
        self._shown, self._frequencies = [], []
        if "positions" in needs:
            self._add("positions", _positions(kwargs.get("position_ids"), self.past, new))
        if "roles" in needs:
            if self.marks is not None:
                self._image = self._marked(new)
            if self._image is None:
                raise ValueError("token roles are read from input_ids: call the model with them, not inputs_embeds")
            self._add("image", self._image)
            self._image = None
            self.roles = _roles(self._tokens["image"])

    def _marked(self, new: torch.Tensor) -> torch.Tensor:
        """The marks of the new tokens, (B, L'). Tokens after the marked ones are not marked."""
        assert self.marks is not None
        if self.marks.shape[0] != new.shape[0]:
            raise ValueError(f"{new.shape[0]} prompts are read, and the tokens of {self.marks.shape[0]} are marked")
        part = self.marks[:, self.past : self._known].to(new.device)
        return torch.nn.functional.pad(part, (0, new.shape[1] - part.shape[1]))

    def _check_cache(self, cache: Any) -> None:
        if self._known != self.past:
            raise ValueError(
                f"the cache holds {self.past} tokens, but only {self._known} passed through this intervene block: "
                "fill the cache inside the block, and do not crop it"
            )
        same = self._cache is None or self._cache() is _first_keys(cache)
        alike = not any(self.kept.values()) and all(torch.equal(x, x[:1].expand_as(x)) for x in self._tokens.values())
        if self.past and not same and not alike:
            raise ValueError(
                "the cache was reordered or copied, and its samples differ in padding, in where the image is, or in "
                "what a method keeps of their prompts: give such samples one at a time"
            )

    def leave_decoder(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the decoder: remembers the cache by its first keys."""
        self._remember(kwargs.get("past_key_values") or getattr(output, "past_key_values", None))

    def _remember(self, cache: Any) -> None:
        keys = _first_keys(cache)
        self._cache = None if keys is None else weakref.ref(keys)

    def rearrange(self, samples: torch.Tensor, tokens: torch.Tensor, cache: Any) -> None:
        """Follow a rearrangement of the cache. The code that rearranges a cache calls this.

        Args:
            samples: the old sample that each new sample copies, (N,).
            tokens: the token of that old sample that each new token copies, (N, K); −1 is new padding.
            cache: the rearranged cache.
        """
        for name, past in self._tokens.items():
            past = past[samples] if past.shape[0] > 1 else past
            index = tokens.to(past.device).view(*tokens.shape, *[1] * (past.dim() - 2))
            self._tokens[name] = past.take_along_dim(index.clamp_min(0), dim=1)
            if name == "image":
                self._tokens[name] &= index >= 0
        self.directions = {}
        self._remember(cache)

    def enter_attention(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of each edited attention layer: notes its rotation.

        Raises:
            SettingError: the layer receives no rotation, or one that cannot be undone.
        """
        if "rotation" not in self._needs:
            return
        name = type(module).__name__
        given = kwargs.get("position_embeddings")
        if given is None:
            raise SettingError("model", name, f"is not given position_embeddings{self.advice('rotation')}")
        if module not in _LAYOUTS:
            try:
                _LAYOUTS[module] = self._find_layout(module, args, kwargs)
            except ValueError as error:
                reason = f"the vectors before rotation cannot be computed: {error}"
                raise SettingError("model", name, f"{reason}{self.advice('rotation')}") from None
        cos, sin = given
        number = next((n for n, known in enumerate(self._shown) if _equal(known, cos)), len(self._shown))
        self._rotation_of[module] = number
        if number == len(self._shown):
            self._shown.append(cos)
            if "frequencies" in self._needs:
                try:
                    new = self._tokens["positions"][:, self.past :]
                    self._frequencies.append(self.rotaries.frequencies(cos, new))
                except ValueError as error:
                    raise SettingError("model", name, f"cannot be rotated at other positions: {error}") from None
            self._add(f"cos{number}", cos)
            self._add(f"sin{number}", sin)

    def _find_layout(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The layout of a layer's rotation, from calls of the layer with random inputs and known angles.

        The layer's own code rotates, so that a wrong assumption about a family cannot give wrong vectors.

        Raises:
            ValueError: the rotation has another form, or cannot be undone.
        """
        given = kwargs["position_embeddings"]
        if not (isinstance(given, tuple) and len(given) == 2 and all(x.dim() == 3 for x in given)):
            raise ValueError("position_embeddings are not (cos, sin)")
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        hidden = next(iter(bound.arguments.values()))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(1, 2, hidden.shape[-1], generator=generator).to(hidden.device, hidden.dtype)
        kept = {name: value for name, value in kwargs.items() if name not in ("hidden_states", "position_embeddings")}
        kept = {name: None if _of_tokens(value) else value for name, value in kept.items()}

        @torch.no_grad()
        def rotate(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.trial = []
            try:
                module.forward(tokens, position_embeddings=(cos, sin), **kept)
                query, key = self.trial
            finally:
                self.trial = None
            return query, key

        return find_layout(rotate, given[0])

    def _add(self, name: str, new: torch.Tensor) -> None:
        """Append along the tokens. The batch may be 1 if all samples are alike."""
        past = self._tokens.get(name)
        if past is not None:
            batch = [max(past.shape[0], new.shape[0])] + [-1] * (new.dim() - 1)
            new = torch.cat((past.expand(batch), new.expand(batch)), dim=1)
        self._tokens[name] = new


def _equal(known: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether two layers receive one rotation. Layers on another device receive a copy."""
    return known is new or (known.shape == new.shape and torch.equal(known, new.to(known.device)))


def _of_tokens(value: object) -> bool:
    """Whether an argument of an attention layer belongs to the tokens of a call: a tensor or a cache."""
    return isinstance(value, torch.Tensor) or hasattr(value, "get_seq_length")


def _roles(image: torch.Tensor) -> torch.Tensor:
    """The role of each token, (B, K), from which tokens are image tokens. Without an image no token is SYSTEM."""
    before = (image.cumsum(dim=1) == 0) & image.any(dim=1, keepdim=True)
    return torch.where(image, IMAGE, torch.where(before, SYSTEM, TEXT))


def _positions(ids: torch.Tensor | None, past: int, new: torch.Tensor) -> torch.Tensor:
    """The decoder's position ids, (B or 1, L, axes): with M-RoPE three axes, before which text positions may come."""
    if ids is None:
        return torch.arange(past, past + new.shape[1], device=new.device)[None, :, None]
    return ids.unsqueeze(-1) if ids.dim() == 2 else ids[-3:].permute(1, 2, 0)


def _first_keys(cache: Any) -> torch.Tensor | None:
    layers = getattr(cache, "layers", None)
    return getattr(layers[0], "keys", None) if layers else None
