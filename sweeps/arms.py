"""What is known of the arms of a race (`sweeps/race.py`): points that were measured on the same images, some on more.

So that arms on more and fewer images can be compared, each sample's score is taken as the sum of an effect of the arm
and one of the sample, and the sample's is estimated from all arms that saw it; near copies count as one. What is left
varies much less than the scores do, and less than differences to the stock model.

Arms that answer nearly alike are *relatives*: they have the same luck on the images that both saw. So an arm's
difference is taken from the relative that has seen more images, plus the small paired difference between the two, where
this makes its error smaller. Draws of what arms are worth share the relatives' error. Without this, near copies of a
good point would be lucky together and each look like one more proof of it.

Two things are known of an arm: its own difference, with an error that falls with the number of images, and what a model
of all arms' settings expects of it. The model is a forest of extremely randomised trees (P. Geurts et al., Machine
Learning 63, 2006). An arm's expectation comes from the trees that did not see it, so that an arm does not confirm
itself. Both are weighed by their variances, as in empirical Bayes (B. Efron and C. Morris, JASA 70, 1975).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .trial import Settings

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

STARTUP = 32  # arms before settings are modelled
TREES = 50
FAMILY = 0.5  # arms are of one family if more than this share of an arm's variance is its relative's
ROUNDS = 8  # of the two effects' estimates in turn
NEAR = 0.1  # arms whose soft scores differ by less than this count as parts of one
SHOWN = 128  # samples on which they are compared, at most
WORST = -0.15  # a loss below this is taken as this: how bad bad points are says little of good ones
LEAST = 0.03  # what the model does not explain of a difference is at least of this size
SOFT = 0.3  # the width of a soft score, in root mean squares of the margin


class Values(NamedTuple):
    """What an evaluation gave: the score and the margin of each sample, in order; either is nan if it is not known."""

    scores: np.ndarray
    margins: np.ndarray

    @property
    def soft(self) -> np.ndarray:
        """Scores of 0 and 1 that change gradually with the margin, so that small samples say more.

        They are a logistic function of the margin. It is as wide as the margins of this evaluation are large, so a
        method gains nothing by larger margins. A score that the margin does not explain, such as that of an answer in
        another form, stays as it is.
        """
        width = SOFT * math.sqrt(float(np.mean(np.nan_to_num(self.margins) ** 2)) or 1.0)
        explained = np.isfinite(self.margins) & ((self.margins > 0) == (self.scores > 0))
        soft = 1 / (1 + np.exp(-np.clip(np.nan_to_num(self.margins) / width, -30, 30)))
        return np.where(explained & np.isin(self.scores, (0, 1)), soft, self.scores)


@dataclass
class Arm:
    """A point that has been measured."""

    settings: Settings
    position: np.ndarray
    values: Values  # of the samples it has seen

    @property
    def seen(self) -> int:
        """How many samples it has seen."""
        return len(self.values.scores)


def alike(first: Values, second: Values) -> bool:
    """Whether two evaluations are the same on the samples that both have."""
    n = min(len(first.scores), len(second.scores))
    return all(np.array_equal(a[:n], b[:n], equal_nan=True) for a, b in zip(first, second, strict=True))


def _copies(scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How many arms each one stands for, itself included, (arms,): one that is halfway to `NEAR` counts half.

    Args:
        scores: soft scores, (arms, samples); 0 where they are not seen.
        seen: which samples an arm has seen, in the same shape: the first ones.
    """
    far = np.abs(scores[:, None] - scores[None]) * (seen[:, None] & seen[None])
    common = np.minimum(seen.sum(axis=1)[:, None], seen.sum(axis=1)[None])
    return np.maximum(0, 1 - far.sum(axis=-1) / common / NEAR).sum(axis=1)


class Relatives(NamedTuple):
    """The arms' differences to the stock model, with the help of their relatives; (arms,) each.

    Attributes:
        means, variances: of the differences, with images as clusters.
        numbers: each arm's relative; −1 for the first arm of those that saw the most images.
        shares: how much of an arm's variance is common with its relative, from 0 to 1: their squared correlation.
    """

    means: np.ndarray
    variances: np.ndarray
    numbers: np.ndarray
    shares: np.ndarray


class Arms:
    """The arms of a race, in the order of asking, and what is known of them.

    Args:
        images: the image of each tuning sample; samples of one image are one cluster.
        weights: of the tuning samples, in means.
        stock: the stock model's values.
    """

    def __init__(self, images: Sequence[str], weights: Sequence[float], stock: Values) -> None:
        self.all: list[Arm] = []
        self._images = np.unique(np.asarray(images), return_inverse=True)[1]
        self._weights = np.asarray(weights, dtype=float)
        self._stock = stock.soft

    def changed(self) -> None:
        """To be called when arms have new values."""
        for name in ("known", "forest", "relatives", "_soft", "_order"):
            self.__dict__.pop(name, None)

    def mean(self, scores: np.ndarray) -> float:
        """The weighted mean of scores of all samples."""
        return float(np.average(scores, weights=self._weights))

    def mean_of(self, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """The means of differences on the first samples, (…, samples), their variances with images as clusters, and the
        number of images."""
        seen = differences.shape[-1]
        _, images = np.unique(self._images[:seen], return_inverse=True)
        members = np.zeros((seen, images.max() + 1))
        members[np.arange(seen), images] = self._weights[:seen]
        sums, counts = differences @ members, members.sum(axis=0)
        means, k = sums.sum(axis=-1) / counts.sum(), len(counts)
        spread = ((sums - means[..., None] * counts) ** 2).sum(axis=-1)
        return means, k / max(k - 1, 1) * spread / counts.sum() ** 2, k

    @cached_property
    def _soft(self) -> list[np.ndarray]:
        """The soft scores of each arm."""
        return [arm.values.soft for arm in self.all]

    @cached_property
    def _order(self) -> list[int]:
        """The numbers of the arms, those that saw the most images first."""
        return sorted(range(len(self.all)), key=lambda number: (-self.all[number].seen, number))

    @property
    def _baseline(self) -> np.ndarray:
        """Each sample's effect, (samples,), on a scale on which the stock model's own mean difference to it is 0."""
        rows = [self._stock, *self._soft]
        seen = np.arange(len(self._stock)) < np.array([len(row) for row in rows])[:, None]
        scores, weights = np.zeros(seen.shape), seen * self._weights
        for row, values in zip(scores, rows, strict=True):
            row[: len(values)] = values
        # copies would make the effects those of their own scores, and so their own errors small
        weights = weights / _copies(scores[:, :SHOWN], seen[:, :SHOWN])[:, None]
        effects = np.zeros(len(rows))
        for _ in range(ROUNDS):
            samples = (weights * (scores - effects[:, None])).sum(axis=0) / weights.sum(axis=0)
            effects = (weights * (scores - samples)).sum(axis=1) / weights.sum(axis=1)
        return samples + effects[0]

    @cached_property
    def relatives(self) -> Relatives:
        """The arms' differences. An arm's relative is the one nearest to it, among those that saw as many images or
        more; its difference is taken from there if that makes its variance smaller."""
        means, variances = self._alone()
        relatives, shares = np.full(len(means), -1), np.zeros(len(means))
        soft = self._soft
        for place, number in enumerate(self._order[1:], start=1):
            others = self._order[:place]
            theirs = np.array([soft[other][: len(soft[number])] for other in others])
            mean, found, k = self.mean_of(soft[number] - theirs)
            # the spread over few images is drawn towards that of the arm, as by four more images
            between = (found * k + variances[number] * 4) / (k + 4)
            error = variances[others] + between
            best = int(error.argmin())
            other = others[best]
            if error[best] < variances[number]:
                means[number], variances[number] = means[other] + mean[best], error[best]
            common = max(0.0, variances[other] + variances[number] - between[best]) / 2
            relatives[number], shares[number] = other, common**2 / (variances[other] * variances[number])
        return Relatives(means, variances, relatives, shares)

    def _alone(self) -> tuple[np.ndarray, np.ndarray]:
        """Each arm's difference to the stock model and its variance, from its own samples."""
        means, variances, clusters = [], [], []
        baseline = self._baseline
        for soft in self._soft:
            mean, variance, k = self.mean_of(soft - baseline[: len(soft)])
            means.append(mean)
            variances.append(variance)
            clusters.append(k)
        found, count = np.array(variances), np.array(clusters)
        # the spread over few images is itself uncertain: it is drawn towards the typical one, as by four more images
        typical = np.average(found * count, weights=count)
        error = (found * count**2 + typical * 4) / (count + 4) / count
        return np.maximum(means, WORST), np.maximum(error, 1e-6)

    @cached_property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of what is known of each arm's difference."""
        measured, error, *_ = self.relatives
        expected = np.full(len(measured), np.average(measured, weights=1 / (error + np.var(measured) + 1e-6)))
        if self.forest is not None:
            left_out = self.forest.oob_prediction_
            expected = np.where(np.isfinite(left_out), left_out, expected)
        between = max(float(np.mean((measured - expected) ** 2 - error)), LEAST**2)
        variance = 1 / (1 / error + 1 / between)
        return variance * (measured / error + expected / between), np.sqrt(variance)

    @cached_property
    def forest(self) -> "ExtraTreesRegressor | None":
        """The model of all arms; None if there are too few."""
        if len(self.all) < STARTUP:
            return None
        from sklearn.ensemble import ExtraTreesRegressor  # takes a second, which other commands need not wait for

        measured, error, *_ = self.relatives
        options: dict[str, Any] = {"min_samples_leaf": 2, "max_features": 0.5, "bootstrap": True, "oob_score": True}
        forest = ExtraTreesRegressor(TREES, random_state=0, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an arm that all trees saw has no prediction of its own
            forest.fit([arm.position for arm in self.all], measured, 1 / (error + np.var(measured) / 4 + 1e-6))
        return forest

    def noise(self, rng: np.random.Generator, draws: int) -> np.ndarray:
        """Standard normal draws, (draws, arms), with the correlation of each arm and its relative."""
        _, _, relatives, shares = self.relatives
        noise = rng.standard_normal((draws, len(relatives)))
        for number in self._order:
            if relatives[number] >= 0:
                share = shares[number]
                noise[:, number] = (
                    math.sqrt(share) * noise[:, relatives[number]] + math.sqrt(1 - share) * noise[:, number]
                )
        return noise

    def family(self, number: int) -> int:
        """The number of the arm that stands for an arm's family, whose members share most of their error."""
        _, _, relatives, shares = self.relatives
        while relatives[number] >= 0 and shares[number] > FAMILY:
            number = int(relatives[number])
        return number
