"""Prompts of a batch that begin alike: the common beginning is read once.

Questions about one picture, after one text, begin alike. Prompts are left-padded, so all end in the last column, and
the beginnings are cut at one column for all prompts. Each distinct beginning is read once. Its keys and values are
copied to all prompts that begin so, shifted to where each prompt begins. This changes rounding and nothing else, if a
row's attention depends only on its past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from tdrs.attention.session import Session
from tdrs.backbones.image_embeddings import ImageEncoder
from tdrs.benchmarks.benchmark import Picture
from tdrs.spans import DECODER, span

WORTH = 1 / 8  # the least share of a batch's tokens to save, because a second forward pass has a cost, too
LEFT = 2  # the least number of tokens to read afterwards: a single one would look like decoding


@dataclass(frozen=True)
class Prefixes:
    """The first C columns of N left-padded prompts, which have U distinct beginnings.

    Attributes:
        first: the prompts whose beginnings are read, (U,).
        like: for each prompt, the number in `first` of the prompt that it begins like, (N,).
        index: for each column of each prompt, the column of that other prompt with the same token, (N, C); −1 in
            padding that the other prompt does not have.
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

        They are copied as rows of D numbers, which is much faster than one number at a time.
        """
        heads = cache.layers[0].keys.shape[1]
        head = self.like[:, None] * heads + torch.arange(heads, device=self.like.device)
        row = head[..., None] * self.columns + self.index.clamp_min(0)[:, None]
        for layer in cache.layers:
            here = row.to(layer.keys.device)
            layer.keys, layer.values = (x.reshape(-1, x.shape[-1])[here] for x in (layer.keys, layer.values))


def common(ids: torch.Tensor, mask: torch.Tensor, pictures: Sequence[str]) -> Prefixes | None:
    """The common beginnings of prompts about the same picture; None if they save too little.

    Args:
        ids, mask: the tokens, and which of them are not padding, left-padded, (N, L).
        pictures: the digest of each prompt's picture, N of them.
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


def read_common(
    model: PreTrainedModel,
    images: ImageEncoder,
    session: Session | None,
    tokens: dict[str, Any],
    pictures: Sequence[Picture],
) -> dict[str, Any] | None:
    """Read the common beginnings of a batch's prompts. Returns what `generate` takes to continue after them.

    None means that there is no common beginning worth reading.

    Args:
        session: the session of the intervene block that the model is in; its method must be row-local.
        tokens: the processor's tensors for the batch, left-padded.
        pictures: the picture of each prompt.
    """
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    prefixes = common(ids, mask, [picture.digest for picture in pictures])
    if prefixes is None:
        return None
    first, columns = prefixes.first, prefixes.columns
    image = ids == model.config.image_token_id
    read = image[:, :columns].sum(dim=1).tolist()  # image tokens before the cut, which may go through an image
    positions = model._prepare_position_ids_for_generation(ids, dict(tokens))  # type: ignore[operator]
    seen = images.model_inputs([pictures[i] for i in first], [slice(read[i]) for i in first])
    with span(DECODER):
        cache = model(
            input_ids=ids[first, :columns],
            attention_mask=mask[first, :columns],
            position_ids=positions[..., first, :columns],
            mm_encoder_outputs=seen,
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
    prefixes.spread(cache)
    if session:
        session.context.rearrange(prefixes.like, prefixes.index, cache)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    if image[:, columns:].any():
        given["mm_encoder_outputs"] = images.model_inputs(pictures, [slice(count, None) for count in read])
    return given
