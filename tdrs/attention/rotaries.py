"""How a model's rotations depend on positions, found by trial of its own rotary embedding modules."""

import copy
import weakref
from typing import Any

import torch

from tdrs.attention.rope import Frequencies, find_frequencies, follows

VARYING = ("dynamic", "longrope")  # these kinds choose their frequencies by the length of the prompt
# The frequencies of each rotary module, by its arguments besides the hidden states and the positions.
_FREQUENCIES: "weakref.WeakKeyDictionary[torch.nn.Module, dict[str, Frequencies]]" = weakref.WeakKeyDictionary()


class Rotaries:
    """The calls of a decoder's rotary modules in one forward pass."""

    def __init__(self) -> None:
        self._calls: list[tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any], torch.Tensor]] = []

    def clear(self) -> None:
        """Forget the calls of the last forward pass."""
        self._calls = []

    def leave(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of a rotary module: notes its arguments and its cosines."""
        self._calls.append((module, args, kwargs, output[0]))

    def frequencies(self, cos: torch.Tensor, positions: torch.Tensor) -> Frequencies:
        """The frequencies of a rotation.

        Args:
            cos: the cosines that a layer receives, (B or 1, L, D').
            positions: the model's position ids of these tokens, (B or 1, L, axes).

        Raises:
            ValueError: the frequencies are unknown, or change with the length of the prompt.
        """
        call = next((call for call in self._calls if call[3] is cos), None)
        if call is None:
            raise ValueError("its angles do not come from a rotary embedding module of the decoder")
        module, args, kwargs, _ = call
        names = ("x", "position_ids", "layer_type")
        given = dict(zip(names, args, strict=False)) | kwargs
        unknown = set(given).difference(names)
        if unknown or "position_ids" not in given:
            raise ValueError(f"its rotary embedding has other arguments ({', '.join(sorted(given))})")
        kind = getattr(module, "rope_type", "default")
        kind = kind[given["layer_type"]] if isinstance(kind, dict) else kind
        if kind in VARYING:
            raise ValueError(f"its frequencies ({kind}) change with the length of the prompt")
        known = _FREQUENCIES.setdefault(module, {})
        key = str(given.get("layer_type"))
        if key not in known:
            known[key] = _try(module, given)
        if not follows(known[key], positions, cos):
            raise ValueError("its angles are not proportional to its position ids")
        return known[key]


@torch.no_grad()
def _try(module: torch.nn.Module, given: dict[str, Any]) -> Frequencies:
    trial = copy.deepcopy(module)  # some modules change with the positions they are given
    ids = given["position_ids"]
    others = {name: value for name, value in given.items() if name == "layer_type"}
    like = torch.zeros(1, device=given["x"].device)

    def embed(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked = positions[..., 0] if ids.dim() == 2 else positions.permute(2, 0, 1)
        cos, sin = trial(like, asked, **others)
        return cos, sin

    return find_frequencies(embed, ids.unsqueeze(-1) if ids.dim() == 2 else ids.permute(1, 2, 0))


def rotary_modules(decoder: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules of a decoder that compute cos and sin of positions."""
    return [module for module in decoder.modules() if type(module).__name__.endswith("RotaryEmbedding")]
