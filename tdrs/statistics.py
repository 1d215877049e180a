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


def _per_cluster(values: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values, and how many there are, in each cluster."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index).astype(float)


def accuracy_interval(correct: Sequence[bool], clusters: Sequence[str]) -> Interval:
    """Share of correct samples with Wilson's interval at the effective sample size.

    The effective size is n over the design effect, the variance of the share over clusters relative to that over
    independent samples (at least 1). Wilson: E. B. Wilson, JASA 22 (1927). No sample at all: nan.
    """
    values = np.asarray(correct, dtype=float)
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    share = values.mean()
    sums, counts = _per_cluster(values, clusters)
    k = len(sums)
    effect = 1.0
    if 0 < share < 1 and k > 1:
        clustered = k / (k - 1) * np.sum((sums - share * counts) ** 2) / n**2
        effect = max(1.0, clustered / (share * (1 - share) / (n - 1)))
    n_effective = n / effect
    center = (share + Z95**2 / (2 * n_effective)) / (1 + Z95**2 / n_effective)
    spread = share * (1 - share) / n_effective + Z95**2 / (4 * n_effective**2)
    half = Z95 / (1 + Z95**2 / n_effective) * np.sqrt(spread)
    return Interval(float(share), float(min(center - half, share)), float(max(center + half, share)))


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str], seed: int = 0
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
    sums, counts = _per_cluster(difference, clusters)
    rng = np.random.default_rng(seed)
    k = len(sums)
    means = []
    for _ in range(10):  # in portions, to bound memory
        drawn = rng.integers(k, size=(RESAMPLES // 10, k))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high))
