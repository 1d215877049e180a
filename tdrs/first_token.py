"""The distribution of an answer's first token, in the short form that records keep, and the divergence of two of them.

A record keeps the `MOST` most likely tokens of its own model, and the probability of all others together: some 430
bytes a sample, whatever the vocabulary is.
"""

import json
import math
from functools import lru_cache

import numpy as np

MOST = 32


def compact(logs: np.ndarray) -> str:
    """A distribution in short form: JSON of the tokens, of their log-probabilities, and of the log-probability of all
    other tokens together (null if there is no other).

    Args:
        logs: log-probabilities, (vocabulary,), in nats; −∞ for a token that is excluded.
    """
    values = np.asarray(logs, dtype=np.float64)
    most = min(MOST, len(values))
    top = np.argpartition(-values, most - 1)[:most]
    top = top[np.lexsort((top, -values[top]))]
    top = top[np.isfinite(values[top])]
    others = np.delete(values, top)
    rest = float(np.logaddexp.reduce(others)) if len(others) else -math.inf
    shown = [float(f"{value:.7g}") for value in values[top]]
    kept = [[int(token) for token in top], shown, float(f"{rest:.7g}") if math.isfinite(rest) else None]
    return json.dumps(kept, separators=(",", ":"))


@lru_cache(maxsize=50_000)
def _read(text: str) -> tuple[dict[int, float], float]:
    """The log-probabilities by token, and that of the rest."""
    tokens, logs, rest = json.loads(text)
    return dict(zip(tokens, logs, strict=True)), -math.inf if rest is None else rest


def probabilities(text: str) -> dict[int, float]:
    """The probabilities of the kept tokens, of a distribution in short form; empty if it was not kept ("")."""
    return {token: math.exp(log) for token, log in _read(text)[0].items()} if text else {}


def divergence(stock: str, edited: str) -> float:
    """KL(stock ‖ edited) in nats, of two distributions in short form; nan if one was not kept ("").

    Tokens that both keep are compared one by one, all others as one. By the data-processing inequality this is at most
    the divergence of the whole distributions; it is that divergence if both keep the same tokens and nothing else is
    left (T. M. Cover and J. A. Thomas, Elements of Information Theory, 2006, §2.5 and §2.8).
    """
    if not stock or not edited:
        return math.nan
    (before, rest), (after, others) = _read(stock), _read(edited)
    both = before.keys() & after.keys()
    pairs = [(before[token], after[token]) for token in both]
    lumped = [
        float(np.logaddexp.reduce([left, *(log for token, log in kept.items() if token not in both)]))
        for kept, left in ((before, rest), (after, others))
    ]
    terms = [math.exp(p) * (p - q) for p, q in [*pairs, (lumped[0], lumped[1])] if p > -math.inf]
    return max(0.0, math.fsum(terms))  # never below zero but for rounding
