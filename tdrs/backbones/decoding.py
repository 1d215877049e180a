"""Greedy decoding that is watched: the first step's logits are kept, and a NaN at any step is noticed."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor


class Watch(LogitsProcessor):
    """Sees the logits of every step and changes none.

    Keeping the logits of all steps would take gigabytes with a large vocabulary.

    Attributes:
        first: log-probabilities at the first step, (samples, vocabulary), float32 on the CPU.
    """

    def __init__(self) -> None:
        self.first: torch.Tensor | None = None
        self._bad: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = scores.float().log_softmax(dim=-1).cpu()
        # −∞ rules a token out; NaN and +∞ are what is left of a calculation that failed
        self._bad.append((scores.isnan() | (scores == torch.inf)).any(dim=-1))
        return scores

    def check(self, said: torch.Tensor, ends: Sequence[int], names: Sequence[str]) -> None:
        """Raises FloatingPointError if a logit was NaN or +∞ at a step that decided one of a sample's tokens.

        Args:
            said: the tokens of the answers, (samples, steps), padding behind an end.
            ends: the tokens that end an answer; they belong to it.
            names: of the samples.
        """
        bad = torch.stack(self._bad, dim=1).to(said.device)
        ended = torch.isin(said, torch.tensor(ends, device=said.device)).long().cumsum(dim=1)
        running = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) == 0
        wrong = (bad & running).nonzero().tolist()
        if wrong:
            row, step = min(wrong, key=lambda place: place[1])
            count = len({row for row, _ in wrong})
            which = f"sample {names[row]}" if count == 1 else f"{count} samples ({names[row]}, …)"
            raise FloatingPointError(f"NaN in the logits of {which} at answer token {step + 1}")


def greedy(config: GenerationConfig, ends: Sequence[int]) -> GenerationConfig:
    """A generation configuration that is greedy, whatever a model's folder says: only its special tokens are kept.

    A folder may ask for sampling, penalties or tokens to suppress; a benchmark's answers would depend on them.

    Args:
        ends: tokens that end an answer beside those of the folder.
    """
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    all_ends = list(dict.fromkeys(end for end in (*known, *ends) if end is not None))
    pad = all_ends[0] if config.pad_token_id is None else config.pad_token_id
    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=all_ends, pad_token_id=pad)
