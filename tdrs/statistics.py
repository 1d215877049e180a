"""Intervals and tests for scores and paired differences. Questions share images, so the image is the cluster."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, t

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
    """The sum of the weighted values and the sum of the weights of each cluster."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=values * weights), np.bincount(index, weights=weights)


def paired_sums(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str], weights: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For paired samples: second − first and the weights; for each cluster their weighted sum and the sum of weights.

    Raises:
        ValueError: the sequences differ in length.
    """
    if not len(first) == len(second) == len(clusters):
        raise ValueError(f"paired samples must be equally many, got {len(first)}, {len(second)}, {len(clusters)}")
    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    weight = _weights(weights, len(difference))
    return difference, weight, *_per_cluster(difference, weight, clusters)


def _variance(sums: np.ndarray, counts: np.ndarray, mean: float, total: float) -> float:
    """The variance of a weighted mean over clusters; `total` is the sum of weights."""
    k = len(sums)
    return float(k / max(k - 1, 1) * np.sum((sums - mean * counts) ** 2) / total**2)


def accuracy_interval(
    scores: Sequence[float], clusters: Sequence[str], weights: Sequence[float] | None = None
) -> Interval:
    """Mean of scores from 0 to 1 with Wilson's interval at the effective sample size.

    The effective size is n, or with weights (Σw)² / Σw², divided by the design effect. The design effect is the
    variance of the mean over clusters relative to that of independent 0/1 samples; for 0/1 scores it is at least 1.
    Samples of a single cluster count as one. Without samples the result is nan. Source: E. B. Wilson, JASA 22 (1927).
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
        effect = _variance(sums, counts, share, weight.sum()) / (share * (1 - share) / (n - 1))
        if np.isin(values, (0, 1)).all():
            effect = max(1.0, effect)
        effect = max(effect, 1e-9)  # soft scores that are all alike
    n_effective = n / effect if k > 1 else 1.0
    center = (share + Z95**2 / (2 * n_effective)) / (1 + Z95**2 / n_effective)
    spread = share * (1 - share) / n_effective + Z95**2 / (4 * n_effective**2)
    half = Z95 / (1 + Z95**2 / n_effective) * np.sqrt(spread)
    return Interval(share, max(0.0, float(min(center - half, share))), min(1.0, float(max(center + half, share))))


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str],
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Interval:
    """Mean of second − first over the same samples, with a percentile bootstrap over clusters (10 000 resamples).

    A single cluster says nothing of others: the limits are then −1 and 1, the ends of what scores from 0 to 1 allow.

    Raises:
        ValueError: the sequences differ in length.
    """
    difference, weight, sums, counts = paired_sums(first, second, clusters, weights)
    if len(difference) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    value = float(np.average(difference, weights=weight))
    k = len(sums)
    if k == 1:
        return Interval(value, -1.0, 1.0)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(10):  # in portions, to bound memory
        drawn = rng.integers(k, size=(RESAMPLES // 10, k))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(value, float(low), float(high))


class McNemar(NamedTuple):
    """Discordant samples of two 0/1 evaluations, and the exact two-sided p-value."""

    gained: int
    lost: int
    p: float


def mcnemar(first: Sequence[float], second: Sequence[float]) -> McNemar:
    """McNemar's exact test: given the discordant samples, gains are as likely as losses.

    It assumes that samples are independent; `sign_flip` does not, and fits questions that share an image. Without
    discordant samples p is 1. Source: Q. McNemar, Psychometrika 12 (1947).

    Raises:
        ValueError: a score is neither 0 nor 1, or the sequences differ in length.
    """
    before, after = (np.asarray(scores, dtype=float) for scores in (first, second))
    if before.shape != after.shape or not np.isin(np.concatenate([before, after]), (0, 1)).all():
        raise ValueError("McNemar's test needs paired scores of 0 and 1")
    gained, lost = int(np.sum(after > before)), int(np.sum(after < before))
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return McNemar(gained, lost, float(p))


def sign_flip(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str],
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> float:
    """Two-sided p-value of no difference: each cluster's difference is as likely as its negative.

    It is exact if the clusters' differences are whole numbers, as for 0/1 scores of equal weight, or if at most 14
    clusters differ. (For 0/1 scores and one sample a cluster it is McNemar's exact test.) Otherwise it is estimated
    from 100 000 random flips and the observed result. If nothing differs, or without samples, p is 1.
    """
    _, _, sums, _ = paired_sums(first, second, clusters, weights)
    sums = sums[np.abs(sums) > 1e-12]
    if len(sums) == 0:
        return 1.0
    observed = abs(sums.sum()) - 1e-9
    if np.allclose(sums, np.round(sums), atol=1e-9):
        sizes = np.abs(np.round(sums)).astype(int)
        chance = np.ones(1)
        for size in sizes:  # of every total, from −Σ to +Σ
            longer = np.zeros(len(chance) + 2 * size)
            longer[: len(chance)] += chance / 2
            longer[2 * size :] += chance / 2
            chance = longer
        totals = np.arange(-sizes.sum(), sizes.sum() + 1)
        return float(min(1.0, chance[np.abs(totals) >= observed].sum()))
    if len(sums) <= 14:
        every = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float(np.mean(np.abs(every @ sums) >= observed))
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(50):  # in portions, to bound memory
        signs = rng.integers(0, 2, size=(2000, len(sums)), dtype=np.int8) * 2.0 - 1
        hits += int(np.sum(np.abs(signs @ sums) >= observed))
    return (1 + hits) / (1 + 100_000)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple tests, in the given order. S. Holm, Scand. J. Statist. 6 (1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[at]))
        adjusted[at] = highest
    return [float(p) for p in adjusted]


def smallest_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str],
    weights: Sequence[float] | None = None,
) -> float:
    """The difference that a comparison with this spread finds at the 5 % level with a power of 80 %.

    It is 2.80 (z.975 + z.80) standard errors of the paired mean, with images as clusters. It is at least 6 / n, because
    McNemar's test finds fewer than six discordant samples never significant. Without samples the result is nan.
    """
    difference, _, sums, counts = paired_sums(first, second, clusters, weights)
    if len(difference) == 0:
        return float("nan")
    total = counts.sum()
    error = np.sqrt(_variance(sums, counts, sums.sum() / total, total))
    return float(min(1.0, max(2.801585 * error, 6 / len(difference))))


def chance_not_below_zero(seen: Sequence[float] | np.ndarray, unseen: int) -> float:
    """The chance that the sum of a finite set of values is at least 0, predicted from the values that were seen.

    The model is: normal values in random order, with a flat prior on mean and log variance. After n values with mean m
    and standard deviation s, the mean of all N values has a t distribution with n − 1 degrees of freedom around m. Its
    scale is s √((N − n) / (n N)), the standard error of a finite population (W. G. Cochran, Sampling Techniques, 1977,
    §2.6).

    Args:
        seen: at least two values.
        unseen: N − n, at least 1.
    """
    values = np.asarray(seen, dtype=float)
    n, mean = len(values), values.mean()
    scale = values.std(ddof=1) * np.sqrt(unseen / (n * (n + unseen)))
    return float(t.cdf(mean / scale, n - 1)) if scale else float(mean >= 0)


def cluster_draws(clusters: Sequence[str], seed: int = 0, resamples: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """For a bootstrap over images: each sample's cluster by number, (n,); how often each is drawn, (resamples, k).

    A single image has no resamples, since it says nothing of others.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    k = int(index.max()) + 1 if len(index) else 0
    rng = np.random.default_rng(seed)
    return index, rng.multinomial(k, np.full(k, 1 / k), size=resamples) if k > 1 else np.zeros((0, k))


def percentiles(
    value: float, resampled: np.ndarray, widest: tuple[float, float] = (float("nan"), float("nan"))
) -> Interval:
    """A value with the middle 95 % of its resampled values; nan if no resampled value is defined.

    Args:
        widest: the limits if there is a value, but nothing was resampled, since all samples are of one image.
    """
    known = resampled[np.isfinite(resampled)]
    if len(known):
        low, high = np.quantile(known, [0.025, 0.975])
    else:
        low, high = widest if len(resampled) == 0 and np.isfinite(value) else (float("nan"), float("nan"))
    return Interval(value, float(low), float(high))


class Measure(NamedTuple):
    """What tables show beside accuracy, such as F1, with 95 % intervals by a bootstrap over images.

    Attributes:
        metric: its name among a benchmark's metrics.
        value: of the records of an evaluation.
        difference: of two evaluations of the same samples, second minus first.
    """

    metric: str
    value: Callable[[Sequence[Any]], Interval]
    difference: Callable[[Sequence[Any], Sequence[Any]], Interval]
