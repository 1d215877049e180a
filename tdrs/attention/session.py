"""A session: one method at work on one model, between `intervene` and the attention core.

It is called instead of the model's attention functions. It runs the core on the calls that a method edits, and the
model's own attention on all others.
"""

import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tdrs.attention.call import Call
from tdrs.attention.context import Context
from tdrs.attention.core import EXECUTIONS
from tdrs.attention.in_order import InOrder
from tdrs.attention.method import Method
from tdrs.attention.second_pass import second_pass_of
from tdrs.attention.selection import heads_by_layer
from tdrs.attention.tally import Tally
from tdrs.settings import SettingError


class Vectors(NamedTuple):
    """What an attention call computes with, for the whole batch or for the rows of one pass."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None


class Edit(NamedTuple):
    """A method's edit on the layers and heads of one model.

    Attributes:
        heads: for each layer that it edits, which query heads it edits, (1, H, 1, 1) boolean; None means all.
    """

    method: Method
    heads: dict[int, torch.Tensor | None]

    @classmethod
    def of(cls, method: Method, layers: int, heads: int) -> "Edit":
        """The edit in a model of this number of layers and query heads. Raises SettingError if it has too few."""
        masks: dict[int, torch.Tensor | None] = {}
        for layer, chosen in heads_by_layer(method.layers, method.heads, (layers, heads)).items():
            mask = torch.tensor([head in chosen for head in range(heads)]).view(1, -1, 1, 1)
            masks[layer] = mask if len(chosen) < heads else None
        return cls(method, masks if method.edits_attention else {})

    @property
    def layers(self) -> frozenset[int]:
        """The numbers of the layers that it edits."""
        return frozenset(self.heads)

    def heads_in(self, layer: int, device: torch.device) -> torch.Tensor | None:
        """Which query heads of a layer it edits, on a device."""
        mask = self.heads[layer]
        return None if mask is None else mask.to(device)

    def acts(self, layer: int, phase: str) -> bool:
        """Whether it edits the calls of a layer in a phase."""
        return layer in self.heads and self.method.phase in ("both", phase)


def in_order(edits: Sequence[Edit], layer: int, device: torch.device) -> tuple[Method, torch.Tensor | None]:
    """Edits of one layer as one: a method, and the query heads that it edits."""
    steps = tuple((edit.method, edit.heads_in(layer, device)) for edit in edits)
    return steps[0] if len(steps) == 1 else (InOrder(steps=steps), None)


class Session:
    """One method at work on one model.

    Attributes:
        second_pass: the method's second pass; None if it has none.
        tally: what the method counts, summed over all calls so far.
        tile_side: as in a call.
        context: the record of all tokens that passed through the model.
        execute: the execution that calls of edited layers go to.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        decoder: PreTrainedModel,
        method: Method,
        execution: str,
        marked: bool = False,
        tile_side: int | None = None,
    ) -> None:
        self.method = method
        self.execute = EXECUTIONS[execution]
        self.base: str = decoder.config._attn_implementation
        layers = layers_of(decoder)
        self.layers = {layer.self_attn: number for number, layer in enumerate(layers)}
        self.second_pass = second_pass_of(method)
        self.tile_side = tile_side
        others = self.second_pass.others if self.second_pass else []
        passes = [method.parts, *(() if one is None else one.parts for one in others)]
        heads = decoder.config.num_attention_heads
        # the edits of each pass
        self._edits = [[Edit.of(one, len(layers), heads) for one in methods] for methods in passes]
        self.image_token: int | None = getattr(model.config, "image_token_id", None)
        self.tally = Tally()
        acting = [edit.method for edits in self._edits for edit in edits if edit.layers]
        self.context = Context(acting, self.image_token)
        self._check_needs(type(model).__name__, marked, acting)
        self._next_token_only = False
        self._first_rows: int | None = None  # of a batch of two passes, the rows of the first

    @property
    def edited(self) -> frozenset[int]:
        """The numbers of the layers that are edited in some pass."""
        return frozenset().union(*(edit.layers for edits in self._edits for edit in edits))

    def mark(self, tokens: torch.Tensor) -> None:
        """Say which tokens of the next prompts take the part of image tokens, (B, L) boolean, left-padded like them.

        A text model has no image token of its own. All tokens after the prompt are text.
        """
        self.context.marks = tokens

    def _check_needs(self, name: str, marked: bool, acting: list[Method]) -> None:
        needs = frozenset().union(*(method.needs for method in acting))
        attention = type(next(iter(self.layers)))
        receives_rotation = "position_embeddings" in inspect.signature(attention.forward).parameters
        if "rotation" in needs and not receives_rotation:
            reason = f"its layers are not given position_embeddings{self.context.advice('rotation')}"
            raise SettingError("model", name, reason)
        if "roles" in needs and self.image_token is None and not marked:
            reason = (
                "it has no image_token_id, and this method needs to know which tokens are the image: "
                "intervene(…, marked=True) lets session.mark say which tokens take their part"
            )
            raise SettingError("model", name, reason)

    @property
    def row_local(self) -> bool:
        """Whether each row's edit depends only on that row's past, so that a prompt may be read in pieces."""
        return all(not edit.layers or edit.method.row_local for edits in self._edits for edit in edits)

    @contextmanager
    def next_token_only(self) -> Iterator[None]:
        """A `with` block in which only the next token's logits are used.

        In the last layer, attention and MLP then compute the last row only. Batches must be left-padded.
        """
        self._next_token_only = True
        try:
            yield
        finally:
            self._next_token_only = False

    @contextmanager
    def two_passes(self, rows: int) -> Iterator[None]:
        """A `with` block in which batches hold all passes: after the rows of the first, as many of the second, ….

        Args:
            rows: the rows of the first pass.
        """
        self._first_rows = rows
        try:
            yield
        finally:
            self._first_rows = None

    def enter_last_norm(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook of the norm after the last layer's attention: passes on only the last row.

        The MLP's output for that row is then added to all rows; only the last one is read.
        """
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
        """What transformers calls instead of its own attention function. Returns the output, (B, Q, H, D)."""
        if self.context.trial is not None:
            self.context.trial += (query, key)
            return value.new_zeros(*query.shape[:3], value.shape[3]).transpose(1, 2), None
        layer = self.layers[module]
        past, rows = self.context.past, query.shape[2]
        phase = "decode" if past and rows == 1 else "prefill"
        wanted = rows - 1 if self._next_token_only and layer == len(self.layers) - 1 else 0
        parts_of_batch = [slice(None)]
        if (count := self._first_rows) is not None:
            parts_of_batch = [slice(number * count, (number + 1) * count) for number in range(len(self._edits))]
        edits = [[edit for edit in some if edit.acts(layer, phase)] for some in self._edits[: len(parts_of_batch)]]
        acting = [edit for some in edits for edit in some]
        given = {"scaling": scaling, **kwargs}
        if not acting:
            return self._unedited(module, Vectors(query, key, value, mask), wanted, given), None
        for name in ("s_aux", "position_bias"):
            if kwargs.get(name) is not None:
                reason = f"its attention adds {name} to the softmax, which no edit considers"
                raise SettingError("model", type(module).__name__, reason)
        if mask is None and rows > 1 and not getattr(module, "is_causal", True):  # as sdpa_attention_forward
            mask = torch.ones(1, 1, rows, key.shape[2], dtype=torch.bool, device=query.device)
        for one in acting:
            if past and phase == "prefill" and one.method.reads_whole_map:
                warnings.warn(
                    f"a prompt is read in pieces, and {type(one.method).__name__} computes statistics over each "
                    f"piece: the result depends on how the prompt is cut{self.context.advice('pieces')}",
                    stacklevel=2,
                )
        outputs = []
        for number, (half, some) in enumerate(zip(parts_of_batch, edits, strict=True)):
            vectors = Vectors(query[half], key[half], value[half], self._part(mask, half))
            if not some:
                outputs.append(self._unedited(module, vectors, wanted, given))
                continue
            method, heads = in_order(some, layer, query.device)
            call = self._call(module, heads, half, vectors, layer=layer, wanted=wanted, **given)
            call.memory = self.context.memory.setdefault(number, {})
            call.kept = self.context.kept.setdefault((number, layer), {})
            call.directions = self.context.directions.setdefault((number, layer), {})
            outputs.append(self.execute(call, method).transpose(1, 2))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).contiguous(), None

    def _unedited(self, module: torch.nn.Module, vectors: Vectors, wanted: int, given: dict[str, Any]) -> torch.Tensor:
        """The model's own attention output, (B, Q, H, D)."""
        query, key, value, mask = vectors
        attention = _base_attention(self.base, module)
        mask = mask if mask is None or not wanted else mask[:, :, wanted:]
        output: torch.Tensor = attention(module, query[:, :, wanted:], key, value, mask, **given)[0]
        return torch.nn.functional.pad(output, (0, 0, 0, 0, wanted, 0)) if wanted else output

    def _part(self, mask: torch.Tensor | None, half: slice) -> torch.Tensor | None:
        """The rows of a half of the batch. Layers share a mask, and its structure is found once, so they share this."""
        if mask is None or half == slice(None) or mask.shape[0] == 1:
            return mask
        _, part = self.context.memory.setdefault((id(mask), half.start), (mask, mask[half]))
        return part

    def _call(
        self,
        module: torch.nn.Module,
        heads: torch.Tensor | None,
        half: slice,
        vectors: Vectors,
        *,
        layer: int,
        wanted: int,
        scaling: float,
        **kwargs: Any,
    ) -> Call:
        """What a method sees of an attention call, of all of its rows or of one half."""
        query, key, value, mask = vectors

        def of_keys(tensor: torch.Tensor | None) -> torch.Tensor | None:
            """The part of all tokens whose keys this layer still has; a sliding window's cache drops old ones."""
            if tensor is None:
                return None
            tensor = tensor if tensor.shape[0] == 1 else tensor[half]
            return tensor[:, -key.shape[2] :].to(query.device)  # layers' devices may differ

        rotation = self.context.rotation(module)
        frequencies = self.context.frequencies(module)
        if frequencies is not None:
            frequencies = frequencies._replace(turns=frequencies.turns.to(query.device))
        return Call(
            query,
            key,
            value,
            scaling,
            mask,
            rotation=None if rotation is None else (of_keys(rotation.cos), of_keys(rotation.sin)),  # type: ignore[arg-type]
            layout="halves" if rotation is None else rotation.layout,
            positions=of_keys(self.context.positions),
            roles=of_keys(self.context.roles),
            states=of_keys(self.context.states(layer)),
            frequencies=frequencies,
            tile_side=self.tile_side,
            layer=layer,
            heads=heads,
            wanted=wanted,
            softcap=kwargs.get("softcap"),
            tally=self.tally,
        )


def layers_of(decoder: PreTrainedModel) -> Any:
    """The layers of a decoder, in order."""
    return decoder.layers


def _base_attention(base: str, module: torch.nn.Module) -> Any:
    return sdpa_attention_forward if base == "sdpa" else sys.modules[type(module).__module__].eager_attention_forward
