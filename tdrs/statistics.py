"""Intervals for accuracies and for paired differences; the image is the cluster, since questions share images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def _weights(weights: Sequence[float] | None, n: int) -> np.ndarray:
    return np.ones(n) if weights is None else np.asarray(weights, dtype=float)


def _per_cluster(values: np.ndarray, weights: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the weighted values, and of the weights, in each cluster."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=values * weights), np.bincount(index, weights=weights)


def accuracy_interval(
    scores: Sequence[float], clusters: Sequence[str], weights: Sequence[float] | None = None
) -> Interval:
    """Mean of scores from 0 to 1 with Wilson's interval at the effective sample size.

    The effective size is n (with weights (Σw)² / Σw²) over the design effect: the variance of the mean over clusters
    relative to that of independent 0/1 samples, for 0/1 scores at least 1. Wilson: E. B. Wilson, JASA 22 (1927). No
    sample at all: nan.
    """
    values = np.asarray(scores, dtype=float)
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    weight = _weights(weights, len(values))
    n = weight.sum() ** 2 / (weight**2).sum()
    share = float(np.average(values, weights=weight))
    sums, counts = _per_cluster(values, weight, clusters)
    k = len(sums)
    effect = 1.0
    if 0 < share < 1 and k > 1:
        clustered = k / (k - 1) * np.sum((sums - share * counts) ** 2) / weight.sum() ** 2
        effect = clustered / (share * (1 - share) / (n - 1))
        if np.isin(values, (0, 1)).all():
            effect = max(1.0, effect)
        effect = max(effect, 1e-9)  # soft scores that are all alike
    n_effective = n / effect
    center = (share + Z95**2 / (2 * n_effective)) / (1 + Z95**2 / n_effective)
    spread = share * (1 - share) / n_effective + Z95**2 / (4 * n_effective**2)
    half = Z95 / (1 + Z95**2 / n_effective) * np.sqrt(spread)
    return Interval(float(share), float(min(center - half, share)), float(max(center + half, share)))


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str],
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Interval:
    """Mean of second − first over the same samples, with a percentile bootstrap over clusters (10 000 resamples).

    Raises:
        ValueError: the sequences differ in length.
    """
    if not len(first) == len(second) == len(clusters):
        raise ValueError(f"paired samples must be equally many, got {len(first)}, {len(second)}, {len(clusters)}")
    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if len(difference) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    weight = _weights(weights, len(difference))
    sums, counts = _per_cluster(difference, weight, clusters)
    rng = np.random.default_rng(seed)
    k = len(sums)
    means = []
    for _ in range(10):  # in portions, to bound memory
        drawn = rng.integers(k, size=(RESAMPLES // 10, k))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(np.average(difference, weights=weight)), float(low), float(high))
