"""Beginnings that the prompts of a batch have in common: questions about one picture, after one text, read them once.

The prompts are left-padded, so all end in the last column; the shared beginnings are cut at one column, the same for
all. Each different beginning is read once, and its keys and values are copied to all prompts that begin so, shifted to
where these begin. That changes rounding and nothing else, if what a row attends to depends on its past alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

WORTH = 1 / 8  # of a batch's tokens at least so many must be saved: a second forward pass costs something, too
LEFT = 2  # tokens at least that are read afterwards: a single one would look like decoding


@dataclass(frozen=True)
class Prefixes:
    """The first C columns of N left-padded prompts, U of which differ.

    Attributes:
        first: the prompts whose beginnings are read, (U,).
        like: for each prompt, which of `first` it begins like, (N,).
        index: for each prompt's columns, the columns of that one which have the same tokens, (N, C); −1 in padding
            that the other lacks.
    """

    first: torch.Tensor
    like: torch.Tensor
    index: torch.Tensor

    @property
    def columns(self) -> int:
        """C."""
        return self.index.shape[1]

    def spread(self, cache: Any) -> None:
        """Copy the keys and values of `first`, (U, H, C, D) in each layer of a cache, to all prompts, in place.

        They are copied as rows of D numbers, which is far faster than number by number.
        """
        heads = cache.layers[0].keys.shape[1]
        head = self.like[:, None] * heads + torch.arange(heads, device=self.like.device)
        row = head[..., None] * self.columns + self.index.clamp_min(0)[:, None]
        for layer in cache.layers:
            here = row.to(layer.keys.device)
            layer.keys, layer.values = (x.reshape(-1, x.shape[-1])[here] for x in (layer.keys, layer.values))


def common(ids: torch.Tensor, mask: torch.Tensor, pictures: Sequence[str]) -> Prefixes | None:
    """What prompts of one picture begin with alike, or None where that saves too little.

    Args:
        ids, mask: tokens and which are no padding, left-padded, (N, L).
        pictures: what tells a prompt's picture from another, N of them.
    """
    count, length = ids.shape
    padding = (length - mask.sum(dim=1)).tolist()
    groups: dict[str, list[int]] = {}
    for number, picture in enumerate(pictures):
        groups.setdefault(picture, []).append(number)
    columns = length - LEFT
    first = [min(members, key=lambda i: padding[i]) for members in groups.values()]
    like = torch.empty(count, dtype=torch.long)
    shift = torch.empty(count, 1, dtype=torch.long)
    for number, (longest, members) in enumerate(zip(first, groups.values(), strict=True)):
        for i in members:
            like[i], shift[i] = number, padding[i] - padding[longest]
            other = ids[longest, padding[longest] : padding[longest] + length - padding[i]]
            alike = int((ids[i, padding[i] :] == other).long().cumprod(dim=0).sum())
            columns = min(columns, padding[longest] + alike)
    if (count - len(first)) * columns < WORTH * count * length:
        return None
    index = (torch.arange(columns) - shift).clamp_min(-1)
    return Prefixes(torch.tensor(first, device=ids.device), like.to(ids.device), index.to(ids.device))
