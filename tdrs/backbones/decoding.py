"""Greedy decoding: answers, their margins, and a check for NaN at every step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessor

from tdrs.backbones.tokens import FirstTokens
from tdrs.benchmarks.benchmark import Sample


@dataclass(frozen=True)
class Answer:
    """A model's answer to one sample.

    Attributes:
        text: the decoded answer, stripped.
        margin: log-odds of the gold answer's first token against the best other option's first token, at the first
            answer position. In an open question, all other tokens count as options. nan without a gold answer.
        ratings: of rated continuations, each one's mean of −log p, in nats, and whether it is greedy; see `rate`.
        first_token: the distribution of the first token, as `first_token.compact` gives it.
    """

    text: str
    margin: float
    ratings: tuple[tuple[float, bool], ...] = ()
    first_token: str = ""


def margin(sample: Sample, logs: torch.Tensor, first_tokens: FirstTokens) -> float:
    """The margin of a sample's gold answer; see `Answer`.

    Args:
        logs: log-probabilities of the first answer token, (vocabulary,).
    """
    if not sample.gold:
        return math.nan
    gold = first_tokens(sample.gold)
    best = float(logs[gold].max())
    if sample.options:
        others = [option for option in sample.options if option != sample.gold]
        rest = [i for option in others for i in first_tokens(option)]
        if set(gold) & set(rest):  # a space that all options begin with does not tell them apart
            best = float(logs[first_tokens(sample.gold, blanks=False)].max())
            rest = [i for option in others for i in first_tokens(option, blanks=False)]
        return best - float(logs[rest].max()) if rest else best
    logs = logs.clone()
    logs[gold] = -torch.inf
    return best - float(logs.max())


class StepRecorder(LogitsProcessor):
    """Reads the logits of every step and changes none.

    It keeps those of the first step only: with a large vocabulary, those of all steps would take gigabytes.

    Attributes:
        first: log-probabilities at the first step, (samples, vocabulary), float32 on the CPU.
    """

    def __init__(self) -> None:
        self.first: torch.Tensor | None = None
        self._bad: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = scores.float().log_softmax(dim=-1).cpu()
        # −∞ excludes a token; NaN and +∞ come from a calculation that failed
        self._bad.append((scores.isnan() | (scores == torch.inf)).any(dim=-1))
        return scores

    def check(self, said: torch.Tensor, ends: Sequence[int], names: Sequence[str]) -> None:
        """Raises FloatingPointError if a logit was NaN or +∞ at a step that decided one of a sample's tokens.

        Args:
            said: the tokens of the answers, (samples, steps), with padding after an end.
            ends: the tokens that end an answer; they belong to it.
            names: the samples' names, for the message.
        """
        bad = torch.stack(self._bad, dim=1).to(said.device)
        ended = torch.isin(said, torch.tensor(ends, device=said.device)).long().cumsum(dim=1)
        running = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) == 0
        wrong = (bad & running).nonzero().tolist()
        if wrong:
            row, step = min(wrong, key=lambda found: found[1])
            count = len({row for row, _ in wrong})
            which = f"sample {names[row]}" if count == 1 else f"{count} samples ({names[row]}, …)"
            raise FloatingPointError(f"NaN in the logits of {which} at answer token {step + 1}")


def greedy(config: GenerationConfig, ends: Sequence[int]) -> GenerationConfig:
    """A greedy generation configuration, which keeps only the special tokens of a model's folder.

    A folder may ask for sampling, penalties or suppressed tokens. A benchmark's answers must not depend on them.

    Args:
        ends: tokens that end an answer, in addition to those of the folder.
    """
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    all_ends = list(dict.fromkeys(end for end in (*known, *ends) if end is not None))
    pad = all_ends[0] if config.pad_token_id is None else config.pad_token_id
    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=all_ends, pad_token_id=pad)
