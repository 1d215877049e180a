"""The objective of a search's points sample by sample, from their records; also of points that saw some samples only.

Points of a race saw the first samples of the split, some of them more than others. A mean over the first few says as
much about these samples as about the point. So a score is taken as the sum of an effect of the point and one of the
sample; the sample's is estimated from all points that saw it, and taken out.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tdrs.benchmarks import Record
from tdrs.checked_file import Damaged
from tdrs.records import Records
from tdrs.results import alike, check_same_samples
from tdrs.settings import SettingError
from tdrs.sweeps.trial import Trial


class Scores:
    """The objective of points, sample by sample.

    Args:
        values: points × samples; nan where a point did not see a sample. At least one point saw all.
        weights: of the samples, in means.
        images: the number of each sample's image.
    """

    def __init__(self, values: np.ndarray, weights: np.ndarray, images: np.ndarray) -> None:
        self.values, self.weights = values, weights
        self.images = int(images.max()) + 1
        self._seen = np.isfinite(values)
        self._at = np.eye(self.images)[images]  # samples × images

    @cached_property
    def _comparable(self) -> np.ndarray:
        """The values; if points saw different samples, less the effects of the samples.

        Both effects are those of least squares. The normal equations are solved, for the points; estimates of the two
        in turn would take hundreds of rounds to settle where few points saw most of the samples.
        """
        if self._seen.all():
            return self.values
        weights = self._seen * self.weights
        share = self._seen / self._seen.sum(axis=0)  # of a point in the effect of a sample
        values = np.where(self._seen, self.values, 0)
        excess = values - (share * values).sum(axis=0)
        system = np.diag(weights.sum(axis=1)) - weights @ share.T
        points = np.linalg.lstsq(system, (weights * excess).sum(axis=1), rcond=None)[0]
        effects = np.nanmean(self.values - points[:, None], axis=0)
        return self.values - effects + np.average(effects, weights=self.weights)

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums of the weighted values and of the weights, points × images each."""
        weights = self._seen * self.weights
        return np.where(self._seen, self._comparable, 0) * weights @ self._at, weights @ self._at

    @cached_property
    def means(self) -> np.ndarray:
        """The objective of each point over all samples; estimated if it saw some only."""
        sums, counts = self._sums
        return np.asarray(sums.sum(axis=1) / counts.sum(axis=1))

    def drawn(self, times: np.ndarray) -> np.ndarray:
        """The objective of each point if each image is drawn so many times: (points,) for (images,).

        A point of which no image is drawn keeps its mean.
        """
        sums, counts = self._sums
        count = counts @ times
        return np.where(count > 0, sums @ times / np.where(count > 0, count, 1), self.means)

    def differences(self, best: int, times: np.ndarray) -> np.ndarray:
        """The paired difference of each point to one that saw all samples, on the samples that the point saw.

        Args:
            best: the number of the point that saw all.
            times: how many times each image is drawn, (images, draws).

        Returns:
            (points, draws); 0 where no image of a point is drawn.
        """
        weights = self._seen * self.weights
        sums = np.where(self._seen, self.values - self.values[best], 0) * weights @ self._at
        counts = weights @ self._at @ times
        return np.asarray(sums @ times / np.where(counts > 0, counts, 1))


def scores_of(trials: Sequence[Trial], objective: str, records: Records) -> Scores | str:
    """The objective of trials on the samples that they saw, from their records; or why there is none, in words.

    Args:
        trials: of one condition and split; all saw the first samples of the split, or all of them.
    """
    rows: list[list[Record]] = []
    for trial in trials:
        try:
            rows.append(_seen(trial, records))
        except FileNotFoundError:
            return "records of a point are missing"
        except Damaged as error:
            return f"records of a point cannot be used: {error}"
    longest = max(rows, key=len)
    values = np.full((len(rows), len(longest)), np.nan)
    weights = np.array([record.weight for record in longest])
    for number, (trial, found) in enumerate(zip(trials, rows, strict=True)):
        try:
            check_same_samples(longest[: len(found)], found, trial.name)
        except SettingError as error:
            return f"records of a point cannot be used: {error}"
        own = np.array([record.margin if objective == "margin" else record.score for record in found])
        if not np.isfinite(own).all() or not alike(
            float(np.average(own, weights=weights[: len(own)])), trial.metrics[objective]
        ):
            return f"the mean {objective} of a point's records is not the {objective} of its trial"
        values[number, : len(own)] = own
    _, images = np.unique([record.image_id for record in longest], return_inverse=True)
    if images.max() == 0:
        return "all samples are of one image"
    return Scores(values, weights, images)


def _seen(trial: Trial, records: Records) -> list[Record]:
    """The records of the samples that a trial saw."""
    try:
        found = records.read(trial.cache_key).records
    except FileNotFoundError:  # its evaluation was not finished
        found = [record for batch in records.batches(trial.cache_key) for record in batch.records]
    if len(found) < trial.n:
        raise FileNotFoundError(trial.cache_key)
    return found[: trial.n]
