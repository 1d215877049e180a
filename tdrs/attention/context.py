"""What a model's forward pass shows of all tokens so far: their rotation, their positions, and their roles.

An attention function sees the keys of the cache, but not the rotation, position ids and token ids they came with. Hooks
record these, one forward pass after the other.
"""

import weakref
from typing import Any

import torch

from tdrs.attention.block import IMAGE, SYSTEM, TEXT
from tdrs.attention.method import Method
from tdrs.attention.rope import check_rotation


class Context:
    """A record of all tokens that passed through the model, for what a method needs.

    Args:
        method: its `needs` decide what is recorded.
        image_token: the id of the model's image token; None if it has none.

    Attributes:
        past: how many tokens the cache held when the current forward pass began.
        roles: SYSTEM, IMAGE or TEXT for each token, (B, K); None if the method does not need them.
    """

    def __init__(self, method: Method, image_token: int | None) -> None:
        self.past = 0
        self.roles: torch.Tensor | None = None
        self._method = method
        self._image_token = image_token
        # cos, sin, positions, image (is it an image token?) of all tokens so far, each (B or 1, K, …)
        self._tokens: dict[str, torch.Tensor] = {}
        self._known = 0
        self._image: torch.Tensor | None = None  # which tokens of this forward pass are image tokens
        self._cache: weakref.ref[torch.Tensor] | None = None  # the cache's first keys, which identify it
        self._rotation_due = False  # this forward pass has not shown its rotation yet

    def advice(self, of: str) -> str:
        """The method's advice, as the end of a message; "" if it has none."""
        text = self._method.advice.get(of)
        return f"; {text}" if text else ""

    @property
    def rotation(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(cos, sin) of all tokens; None if the method does not need them."""
        return (self._tokens["cos"], self._tokens["sin"]) if "rotation" in self._method.needs else None

    @property
    def positions(self) -> torch.Tensor | None:
        """Position ids of all tokens, (B or 1, K, axes); None if the method does not need them."""
        return self._tokens.get("positions")

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
            self._tokens, self._known = {}, 0
        needs = self._method.needs
        if needs:
            self._check_cache(cache)
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        new: torch.Tensor = next(x for x in given if x is not None)
        self._known = self.past + new.shape[1]
        self._rotation_due = "rotation" in needs
        if "positions" in needs:
            self._add("positions", _positions(kwargs.get("position_ids"), self.past, new))
        if "roles" in needs:
            if self._image is None:
                raise ValueError("token roles are read from input_ids: call the model with them, not inputs_embeds")
            self._add("image", self._image)
            self._image = None
            self.roles = _roles(self._tokens["image"])

    def _check_cache(self, cache: Any) -> None:
        if self._known != self.past:
            raise ValueError(
                f"the cache holds {self.past} tokens, but only {self._known} passed through this intervene block: "
                "fill the cache inside the block, and do not crop it"
            )
        same = self._cache is None or self._cache() is _first_keys(cache)
        if self.past and not same and not all(torch.equal(x, x[:1].expand_as(x)) for x in self._tokens.values()):
            raise ValueError(
                "the cache was reordered or copied, and its samples differ in padding or in where the image is: "
                "give such samples one at a time"
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
        self._remember(cache)

    def enter_attention(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of each attention layer: the first one in a forward pass shows the rotation of the pass.

        Raises:
            ValueError: the layer receives no rotation, or one that cannot be undone.
        """
        if not self._rotation_due:
            return
        if kwargs.get("position_embeddings") is None:
            raise ValueError(f"{type(module).__name__} is not given position_embeddings{self.advice('rotation')}")
        cos, sin = kwargs["position_embeddings"]
        if "cos" not in self._tokens:
            try:
                check_rotation(cos, module.head_dim)  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"{error}{self.advice('rotation')}") from None
        self._add("cos", cos)
        self._add("sin", sin)
        self._rotation_due = False

    def _add(self, name: str, new: torch.Tensor) -> None:
        """Append along the tokens. The batch may be 1 if all samples are alike."""
        past = self._tokens.get(name)
        if past is not None:
            batch = [max(past.shape[0], new.shape[0])] + [-1] * (new.dim() - 1)
            new = torch.cat((past.expand(batch), new.expand(batch)), dim=1)
        self._tokens[name] = new


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
