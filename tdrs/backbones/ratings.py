"""Ratings of given answers: how likely a model is to continue a prompt with each of them.

The tokens of an answer are forced one by one, as if the model generated them. So an edit of the attention acts as it
does on an answer in the model's own words.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import LogitsProcessor

from tdrs.backbones.decoding import Answer
from tdrs.backbones.tokens import answer_tokens
from tdrs.benchmarks.benchmark import Sample
from tdrs.benchmarks.prompts import AnswerLength
from tdrs.first_token import compact

Generate = Callable[[Sequence[Sample], AnswerLength, LogitsProcessor], torch.Tensor]


class ForcedTokens(LogitsProcessor):
    """Lets a model generate given tokens, and keeps how likely they were.

    Args:
        tokens: those of each answer.

    Attributes:
        losses: of each answer, −log p of each of its tokens, in nats.
        greedy: of each answer, whether the model would have generated it.
        first: of each answer, the distribution of its first token, in short form.
    """

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        self.tokens = tokens
        self.losses: list[list[float]] = [[] for _ in tokens]
        self.greedy = [True] * len(tokens)
        self.first: list[str] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = max(map(len, self.losses))
        logs = scores.float().log_softmax(dim=-1)
        self.first = self.first or [compact(row.numpy()) for row in logs.cpu()]
        best = logs.argmax(dim=-1).tolist()
        forced = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(self.tokens):
            if step < len(tokens):
                self.losses[row].append(-float(logs[row, tokens[step]]))
                self.greedy[row] &= best[row] == tokens[step]
            forced[row, tokens[min(step, len(tokens) - 1)]] = 0  # a shorter answer repeats its last token, unread
        return forced


def rate(samples: Sequence[Sample], processor: Any, generate: Generate) -> list[Answer]:
    """Rate the continuations of each sample.

    The text of an answer is a JSON list with, for each continuation, the mean of −log p over its tokens, in nats, and
    whether the model would have generated it. The margin is the mean log p of the gold continuation minus that of the
    best other one; nan if the gold answer is none of the options. With one continuation, it is that one's mean log p.
    The distribution of the first token is the one after the prompt, the same for all continuations but for rounding.

    Raises:
        FloatingPointError: a logit that decided a rating is NaN.
    """
    pairs = [(sample, one) for sample in samples for one in sample.rated]
    tokens = [answer_tokens(processor, one, sample.opening) for sample, one in pairs]
    ratings: list[tuple[float, bool]] = []
    begun: list[str] = []
    for first in range(0, len(pairs), len(samples)):
        some = tokens[first : first + len(samples)]
        forced = ForcedTokens(some)
        asked = [replace(sample, rated=()) for sample, _ in pairs[first : first + len(samples)]]
        generate(asked, AnswerLength(0, max(map(len, some))), forced)
        begun += forced.first
        ratings += [
            (sum(losses) / len(losses), greedy) for losses, greedy in zip(forced.losses, forced.greedy, strict=True)
        ]
    answers = []
    for sample in samples:
        own, ratings = ratings[: len(sample.rated)], ratings[len(sample.rated) :]
        token, begun = begun[0], begun[len(sample.rated) :]
        if not all(math.isfinite(loss) for loss, _ in own):
            raise FloatingPointError(f"NaN in the logits of sample {sample.id}")
        answers.append(Answer(json.dumps(own), _margin(sample, [loss for loss, _ in own]), tuple(own), token))
    return answers


def _margin(sample: Sample, losses: Sequence[float]) -> float:
    if len(losses) == 1:
        return -losses[0]
    pairs = list(zip(sample.options, losses, strict=False))
    gold = [loss for option, loss in pairs if option == sample.gold]
    others = [loss for option, loss in pairs if option != sample.gold]
    return min(others) - min(gold) if gold and others else math.nan
