"""Two forward passes as one batch, or three: the rows of the second pass follow those of the first.

The two prompts of a sample may differ in length, in their picture, or in having one. Both are left-padded, share one
cache, and take the same tokens, which are chosen by the combined logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor

from tdrs.attention.second_pass import PictureChange, SecondPass
from tdrs.benchmarks.benchmark import Picture


@dataclass(frozen=True)
class ChangedPicture(Picture):
    """A picture, or several, that the vision tower receives changed.

    Attributes:
        picture: as it was.
        change: applied to what the model's processor makes of it.
    """

    picture: Picture
    change: PictureChange

    @classmethod
    def by(cls, picture: Picture, change: PictureChange) -> "ChangedPicture":
        """A picture with a change. Its digest is a hash of both."""
        return cls(lambda: f"{picture.digest} {change.name}".encode(), picture, change)

    @property
    def parts(self) -> tuple[Picture, ...]:
        return self.picture.parts

    def changed(self, values: torch.Tensor) -> torch.Tensor:
        """Changed values, of the same type. Randomness is decided by the picture and the change alone."""
        generator = torch.Generator().manual_seed(int(self.digest[:15], 16))
        return self.change.apply(values.float(), generator).to(values.dtype)


def join(first: Mapping[str, Any], second: Mapping[str, Any], pad: int) -> dict[str, Any]:
    """The tensors of two passes as one batch, left-padded to the longer one.

    A tensor of the shape of `input_ids` has a row for each prompt; any other one has an entry for each picture.

    Args:
        first, second: the tensors of each pass; see `PromptEncoder.inputs`.
        pad: the token of padding.
    """
    shapes = first["input_ids"].shape, second["input_ids"].shape
    length = max(shape[1] for shape in shapes)
    joined = {}
    for name, value in first.items():
        if value.shape == shapes[0]:
            other = second.get(name)
            other = value.new_zeros(shapes[1]) if other is None else other
            fill = pad if name == "input_ids" else 0
            parts = [torch.nn.functional.pad(x, (length - x.shape[1], 0), value=fill) for x in (value, other)]
            joined[name] = torch.cat(parts)
        else:
            joined[name] = torch.cat((value, second[name])) if name in second else value
    return joined


class Combined(LogitsProcessor):
    """Gives the rows of all passes the combined logits.

    Args:
        second: how they are combined.
        reader: sees the rows of the first pass with the combined logits, and may change them. Implausible tokens are
            excluded after it, so that margins and distributions stay finite.
    """

    def __init__(self, second: SecondPass, reader: LogitsProcessor) -> None:
        self._second = second
        self._reader = reader
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        count = 1 + len(self._second.others)
        first, *others = scores.float().chunk(count)
        combined = self._second.combined(first, *others, step=self._step)
        self._step += 1
        chosen = self._reader(input_ids[: len(first)], combined)
        chosen = chosen.masked_fill(self._second.implausible(first), -torch.inf)
        return torch.cat([chosen] * count)
