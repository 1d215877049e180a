"""Scores of every head of every layer on the tuning split, by which heads of single layers are chosen.

    influence       mean over wrong answers of p − p′, minus the same mean over right answers; p is the probability of
                    the answer's first token, p′ that of the same token with the head's output at 0
    text_weight     the mean weight on text keys, Σ_j W_hij, in the prompt's last row i
    image_logits    −1 times the mean of Σ_j A_hij over image keys j, in the prompt's last row i

The heads with the highest scores are chosen.

`influence` is AD-HH's: T. Yang et al., ICLR 2025. Read in a copy of their code (identify_attention_head.py and
head_attribution.py): tokens of hallucinated and of real objects in captions take the place of wrong and right answers,
all rows of a head are 0 in the pass that gives the token, and the 20 highest of the 1024 heads of LLaVA-1.5-7B are
chosen. It needs one evaluation for each head. `text_weight` is what AD-HH's own threshold acts on, and `image_logits`
is that by which SPIN ranks the heads at each token; both need one pass. Their papers do not choose heads by
these means.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tdrs.attention.block import IMAGE, TEXT, Block
from tdrs.attention.method import Method
from tdrs.backbones import Backbone
from tdrs.benchmarks import Benchmark, Record, Sample
from tdrs.first_token import probabilities
from tdrs.settings import SettingError

SCORES = ("influence", "text_weight", "image_logits")
Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class _Reader(Method):
    """Edits nothing; sums a score over the last rows of the prompts.

    Args:
        score: `text_weight` or `image_logits`.
        sums: by layer, the sum over the prompts so far, (H,), float64.
    """

    phase: str = "prefill"
    score: str = "text_weight"
    sums: dict[int, torch.Tensor] = field(default_factory=dict, compare=False)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    @property
    def last_row_only(self) -> bool:
        return True

    def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
        if self.score == "text_weight":
            values = weights.masked_fill(~block.keys_of(TEXT), 0)
        else:
            values = -block.logits.masked_fill(~block.visible(block.keys_of(IMAGE)), 0)
        rows = values.sum(dim=-1, keepdim=True).masked_fill(~block.last, 0)
        layer, found = block.call.layer, rows.double().sum(dim=(0, 2, 3)).cpu()
        self.sums[layer] = self.sums[layer] + found if layer in self.sums else found
        return weights


def attention_scores(
    backbone: Backbone, benchmark: Benchmark, samples: Sequence[Sample], score: str, batch_size: int, shape: Shape
) -> np.ndarray:
    """`text_weight` or `image_logits` of the stock model, the mean over samples, (layers, heads)."""
    reader, benchmark = _Reader(score=score), benchmark.asked_by(backbone.settings.prompt_style)
    with backbone.intervene(reader):
        for first in range(0, len(samples), batch_size):
            batch = samples[first : first + batch_size]
            backbone.answer(batch, benchmark.real, benchmark.prompt)
    return np.stack([(reader.sums[layer] / len(samples)).numpy() for layer in range(shape[0])])


def answers_of(stock: Sequence[Record]) -> np.ndarray:
    """Which answers of the stock model are wrong, (n,) boolean.

    Raises:
        SettingError: none is wrong or none is right, or a record lacks the first token's distribution.
    """
    wrong = np.array([record.score < 0.5 for record in stock])
    for kind, count in (("wrong", wrong.sum()), ("right", (~wrong).sum())):
        if not count:
            raise SettingError("score", "influence", f"compares wrong with right answers, and no answer is {kind} here")
    if not all(record.first_token for record in stock):
        raise SettingError("score", "influence", "a record does not have the distribution of the first token")
    return wrong


def influence(stock: Sequence[Record], ablated: Mapping[tuple[int, int], Sequence[Record]], shape: Shape) -> np.ndarray:
    """`influence` of each head, (layers, heads).

    A probability that a record does not keep is that of none of the 32 most likely tokens; it counts as 0.

    Args:
        stock, ablated: records of the same samples by the stock model, and without each head (layer, number).

    Raises:
        SettingError: as `answers_of`.
    """
    wrong = answers_of(stock)
    before = [probabilities(record.first_token) for record in stock]
    tokens = [max(one, key=lambda token: one[token]) for one in before]
    first = np.array([one[token] for one, token in zip(before, tokens, strict=True)])
    found = np.zeros(shape)
    for head, records in ablated.items():
        after = [probabilities(one.first_token).get(token, 0.0) for one, token in zip(records, tokens, strict=True)]
        changes = first - np.array(after)
        found[head] = changes[wrong].mean() - changes[~wrong].mean()
    return found


def ranked(scores: np.ndarray) -> dict[str, float]:
    """The scores by the heads' names, such as L3H1, six digits each; the highest first, then by layer and number."""
    named = {f"L{layer}H{head}": float(f"{scores[layer, head]:.6g}") + 0.0 for layer, head in np.ndindex(scores.shape)}
    return dict(sorted(named.items(), key=lambda item: -item[1]))


def ablations(shape: Shape, records_of: Callable[[dict[str, Any]], Sequence[Record]]) -> dict[tuple[int, int], Any]:
    """The records without each head.

    Args:
        records_of: gives the records of a method's settings.
    """
    return {
        (layer, head): records_of({"name": "heads_off", "heads": [f"L{layer}H{head}"]})
        for layer, head in np.ndindex(shape)
    }
