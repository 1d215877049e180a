"""Prompts that are longer than a model was made for: its trained positions, and its sliding windows.

The model answers them all the same, so readers of a score must be told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from tdrs.benchmarks.benchmark import Sample


def trained_positions(config: Any) -> int | None:
    """The largest number of positions of a decoder, from its configuration; None if it has no such number.

    Configurations with a stretched rotation (YaRN, Llama 3) name the number before, a factor, or the number after.
    """
    most: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(one for one in rope.values() if isinstance(one, Mapping))):
        before, factor = part.get("original_max_position_embeddings"), part.get("factor")
        if most and before and factor:
            most = max(most, int(before * factor))
    return most


def window_of(config: Any) -> tuple[int, int]:
    """The sliding window of a decoder in tokens, and how many layers have it; 0 layers if there is none."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return (window, list(kinds).count("sliding_attention")) if window else (0, 0)


@dataclass
class Lengths:
    """Counts the prompts that are too long.

    Attributes:
        windows_hide: whether a window hides the beginning of a longer prompt from its end.
    """

    model: PreTrainedModel
    windows_hide: bool = True
    _over: dict[str, set[str]] = field(default_factory=dict, init=False, repr=False)

    def see(self, samples: Sequence[Sample], tokens: Mapping[str, Any]) -> None:
        """Count the prompts of a batch; `tokens` are the processor's tensors. The same prompt counts once."""
        for what, count in self.over(tokens).items():
            known = self._over.setdefault(what, set())
            known.update(sample.id for sample, longer in zip(samples, count, strict=True) if longer)

    def take(self) -> dict[str, int]:
        """How many prompts were longer than what, in words, since this was last asked."""
        found, self._over = self._over, {}
        return {what: len(samples) for what, samples in found.items() if samples}

    def over(self, tokens: Mapping[str, Any]) -> dict[str, list[bool]]:
        """For each limit, in words, which prompts of a batch are longer."""
        config = self.model.config.get_text_config()
        lengths: list[int] = tokens["attention_mask"].sum(dim=1).tolist()
        found = {}
        most = trained_positions(config)
        if most and max(lengths) > most:
            what = f"the {most} positions that the model was made for (max_position_embeddings)"
            found[what] = [count > most for count in self._positions(tokens, lengths)]
        window, layers = window_of(config)
        if layers and self.windows_hide:
            what = f"the window of {window} tokens of {layers} of {config.num_hidden_layers} layers"
            found[what] = [count > window for count in lengths]
        return found

    def _positions(self, tokens: Mapping[str, Any], lengths: list[int]) -> list[int]:
        """How many positions prompts take. With M-RoPE, an image takes as many as its longer side."""
        if "image_grid_thw" not in tokens:
            return lengths
        model: Any = self.model
        positions = model._prepare_position_ids_for_generation(tokens["input_ids"], dict(tokens))[-3:]
        hidden = tokens["attention_mask"] == 0
        found: torch.Tensor = positions.amax(dim=0).masked_fill(hidden, -1).amax(dim=1) + 1
        return [int(count) for count in found]


def notes_of(over: Mapping[str, int]) -> list[str]:
    """A note for each limit that prompts exceed."""
    return [f"{count} prompts are longer than {what}" for what, count in over.items()]
