"""The race: which points of a space to measure next, and on how many images, to find the best one with few samples.

Each point that has been measured is an *arm*. All arms are measured on the same images, in the same order. The first
images are a first *bundle*; whatever may be the best goes on to twice as many. So that arms on more and fewer images
can be compared, each sample's score is taken as the sum of an effect of the arm and one of the sample, and the sample's
is estimated from all arms that saw it. What is left varies much less than the scores do, and less than differences to
the stock model.

Two things are known of an arm: its own difference, with an error that falls with the number of images, and what a model
of all arms' settings expects of it. The model is a forest of extremely randomised trees (P. Geurts et al., Machine
Learning 63, 2006). An arm's expectation comes from the trees that did not see it, so that an arm does not confirm
itself. Both are weighed by their variances, as in empirical Bayes (B. Efron and C. Morris, JASA 70, 1975). New points
are those that a few trees, drawn at random, expect most of, and some drawn evenly; arms go on if they are the best in
draws from what is known (Thompson sampling; D. Russo et al., Found. Trends Mach. Learn. 11, 2018).

The last quarter of the images is held back, and only the finalists are measured on it. Of those that all samples do not
tell from the best one, the simplest is chosen: the one with the fewest settings that differ from the first point.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution
from sklearn.ensemble import ExtraTreesRegressor

from .space import Space
from .trial import Settings

BUNDLE = 16  # samples of an arm's first measurement, if batches are not larger
HELD_BACK = 0.25  # the share of the images that only finalists see
FINALISTS = 3
EXPLORING = 0.7  # the share of the budget in which new points are asked for
STARTUP = 32  # arms before settings are modelled
RANDOM = 4  # one in so many new points is drawn evenly, whatever the model expects
TREES, DRAWN = 50, 5
CANDIDATES = 1000  # points of the space that the model looks at for new ones
DRAWS = 400
ROUNDS = 8  # of the two effects' estimates in turn
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


class Ask(NamedTuple):
    """A measurement to make: settings, on the first samples of the split."""

    settings: Settings
    upto: int


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


class Race:
    """Asks for measurements until its budget is spent, then chooses a point.

    Args:
        space: the points.
        images: the image of each tuning sample; samples of one image are one cluster.
        weights: of the tuning samples, in means.
        stock: the stock model's values.
        start: points to begin with.
        samples: how many samples may be measured.
        at_once: how many new points, and how many arms that go on, are asked for at once.
        seed: of the points and draws.
        bundle: samples of an arm's first measurement.
        known: points that were measured on all samples before; they cost nothing.
        propose: gives candidates for new points; by default they are drawn from the space.

    Attributes:
        arms: the points, in the order of asking.
        spent: samples measured so far.
        finalists: the numbers of the arms that were measured on all samples at the end.
    """

    def __init__(
        self,
        space: Space,
        images: Sequence[str],
        weights: Sequence[float],
        stock: Values,
        start: Sequence[Settings],
        samples: int,
        at_once: int = 8,
        seed: int = 0,
        bundle: int = BUNDLE,
        known: Sequence[tuple[Settings, Values]] = (),
        propose: Callable[[np.random.Generator], list[Settings]] | None = None,
    ) -> None:
        self.arms: list[Arm] = []
        self.spent = 0
        self.finalists: list[int] = []
        self._failed: list[Settings] = []
        self._left_out: list[Settings] = []  # they edit as an arm does
        self._space = space
        self._encoder = Encoder(space)
        self._images = np.unique(np.asarray(images), return_inverse=True)[1]
        self._weights = np.asarray(weights, dtype=float)
        self._stock = stock.soft
        self._queue = [one for one in start if all(one != settings for settings, _ in known)]
        self._samples = samples
        self._at_once = at_once
        self._bundle = bundle
        self._rng = np.random.default_rng(seed)
        self._propose = propose or self._drawn
        total = len(images)
        self._last = max(min(bundle, total), round(total * (1 - HELD_BACK) / bundle) * bundle)
        self._reserve = FINALISTS * (total - self._last)
        self._first = start[0] if start else None
        for settings, values in known:
            if not any(_alike(values, arm.values) for arm in self.arms):
                self.arms.append(Arm(settings, self._encoder(settings), values))

    def ask(self) -> list[Ask]:
        """The measurements to make next; none when the race is over."""
        if self.finalists:
            return []
        left = self._samples - self._reserve - self.spent
        asked: list[Ask] = []
        if left >= self._bundle or not (self.arms or self._failed):
            explored = self.spent + self._bundle * len(
                self._left_out
            )  # so that a space without different points ends, too
            if not self.arms or explored < EXPLORING * (self._samples - self._reserve):
                count = max(1, min(self._at_once, left // self._bundle))
                asked = [Ask(one, min(self._bundle, self._last)) for one in self._new(count)]
                left -= self._bundle * len(asked)
            if self.arms:
                asked += self._going_on(left)
        return asked or self._final()

    def tell(self, asked: Sequence[Ask], found: Sequence[Values | None]) -> None:
        """Take the results of `ask`, in the same order; None for one that failed, which is not asked for again."""
        for one, values in zip(asked, found, strict=True):
            arm = next((arm for arm in self.arms if arm.settings == one.settings), None)
            self.spent += one.upto - (arm.seen if arm else 0)
            if values is None:
                self._failed.append(one.settings)
            elif arm is None and any(_alike(values, other.values) for other in self.arms):
                self.spent -= one.upto  # it edits as another arm does, so its evaluation is the other's
                self._left_out.append(one.settings)
            elif arm is None:
                self.arms.append(Arm(one.settings, self._encoder(one.settings), values))
            else:
                arm.values = values
        for name in ("_known", "_forest", "_measured"):
            self.__dict__.pop(name, None)

    def chosen(self) -> int:
        """The number of the arm to use; before the end, the one of which most is expected."""
        whole = [number for number in self.finalists if self.arms[number].seen == len(self._images)]
        if not whole:
            return int(self._known[0].argmax())
        best = max(whole, key=lambda number: float(self._weights @ self.arms[number].values.scores))
        scores = self.arms[best].values.scores

        def alike(number: int) -> bool:
            mean, variance, _ = self._paired(self.arms[number].values.scores, scores)
            return mean + math.sqrt(variance) >= 0

        return min((number for number in whole if number == best or alike(number)), key=self._changes)

    def _changes(self, number: int) -> int:
        """How many settings of an arm differ from those of the first point."""
        first = self._first or self.arms[0].settings
        return sum(value != first[key] for key, value in self.arms[number].settings.items())

    def _paired(self, values: np.ndarray, others: np.ndarray) -> tuple[float, float, int]:
        """The mean difference of values to others, its variance with images as clusters, and the number of images."""
        images, weights = self._images[: len(values)], self._weights[: len(values)]
        sums, counts = np.bincount(images, weights * (values - others)), np.bincount(images, weights)
        sums, counts = sums[counts > 0], counts[counts > 0]
        mean, k = float(sums.sum() / counts.sum()), len(sums)
        return mean, float(k / max(k - 1, 1) * np.sum((sums - mean * counts) ** 2) / counts.sum() ** 2), k

    @property
    def _baseline(self) -> np.ndarray:
        """Each sample's effect, (samples,), on a scale on which the stock model's own mean difference to it is 0."""
        rows = [self._stock, *(arm.values.soft for arm in self.arms)]
        seen = np.arange(len(self._stock)) < np.array([len(row) for row in rows])[:, None]
        scores, weights = np.zeros(seen.shape), seen * self._weights
        for row, values in zip(scores, rows, strict=True):
            row[: len(values)] = values
        effects = np.zeros(len(rows))
        for _ in range(ROUNDS):
            samples = (weights * (scores - effects[:, None])).sum(axis=0) / weights.sum(axis=0)
            effects = (weights * (scores - samples)).sum(axis=1) / weights.sum(axis=1)
        return samples + effects[0]

    @cached_property
    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Each arm's difference to the stock model, and its variance, with images as clusters."""
        means, variances, clusters = [], [], []
        baseline = self._baseline
        for arm in self.arms:
            mean, variance, k = self._paired(arm.values.soft, baseline[: arm.seen])
            means.append(mean)
            variances.append(variance)
            clusters.append(k)
        found, count = np.array(variances), np.array(clusters)
        # the spread over few images is itself uncertain: it is drawn towards the typical one, as by four more images
        typical = np.average(found * count, weights=count)
        error = (found * count**2 + typical * 4) / (count + 4) / count
        return np.maximum(means, WORST), np.maximum(error, 1e-6)

    @cached_property
    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of what is known of each arm's difference."""
        measured, error = self._measured
        expected = np.full(len(measured), np.average(measured, weights=1 / (error + np.var(measured) + 1e-6)))
        if self._forest is not None:
            left_out = self._forest.oob_prediction_
            expected = np.where(np.isfinite(left_out), left_out, expected)
        between = max(float(np.mean((measured - expected) ** 2 - error)), LEAST**2)
        variance = 1 / (1 / error + 1 / between)
        return variance * (measured / error + expected / between), np.sqrt(variance)

    @cached_property
    def _forest(self) -> ExtraTreesRegressor | None:
        """The model of all arms; None if there are too few."""
        if len(self.arms) < STARTUP:
            return None
        measured, error = self._measured
        options: dict[str, Any] = {"min_samples_leaf": 2, "max_features": 0.5, "bootstrap": True, "oob_score": True}
        forest = ExtraTreesRegressor(TREES, random_state=0, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an arm that all trees saw has no prediction of its own
            forest.fit([arm.position for arm in self.arms], measured, 1 / (error + np.var(measured) / 4 + 1e-6))
        return forest

    def _new(self, count: int) -> list[Settings]:
        """New points: those of the queue, then those of which the model expects most."""
        found, self._queue = self._queue[:count], self._queue[count:]
        if len(found) == count:
            return found
        known = [*(arm.settings for arm in self.arms), *self._failed, *self._left_out, *found]
        candidates = [one for one in self._propose(self._rng) if one not in known]
        if self._forest is None or not candidates:
            return [*found, *candidates[: count - len(found)]]
        positions = np.array([self._encoder(one) for one in candidates], dtype=np.float32)
        each = np.array([tree.tree_.predict(positions)[:, 0] for tree in self._forest.estimators_])
        for number in range(min(count - len(found), len(candidates))):
            if number % RANDOM == RANDOM - 1:
                chosen = int(np.isfinite(each[0]).argmax())  # the first candidates are drawn evenly
            else:
                chosen = int(each[self._rng.choice(TREES, DRAWN)].mean(axis=0).argmax())
            found.append(candidates[chosen])
            each[:, chosen] = -np.inf
        return found

    def _going_on(self, left: int) -> list[Ask]:
        """The arms that go on to twice as many samples."""
        mean, deviation = self._known
        draws = mean + deviation * self._rng.standard_normal((DRAWS, len(mean)))
        chance = np.bincount(draws.argmax(axis=1), minlength=len(mean)) / DRAWS
        found: list[Ask] = []
        for number in np.lexsort((-mean, -chance)):
            arm = self.arms[number]
            more = min(arm.seen, self._last - arm.seen, left // self._bundle * self._bundle)
            open_ = arm.settings not in self._failed and len(found) < self._at_once
            if open_ and chance[number] > 0 and more > 0:
                found.append(Ask(arm.settings, arm.seen + more))
                left -= more
        return found

    def _final(self) -> list[Ask]:
        """The finalists, on all samples: those of which most is expected, as far as the budget reaches."""
        if not self.arms:
            return []
        total, left = len(self._images), self._samples - self.spent
        short = np.array([arm.seen < self._last for arm in self.arms])  # what few images say of an arm may be luck
        order = [n for n in np.lexsort((-self._known[0], short)) if self.arms[n].settings not in self._failed]
        for number in order[: 2 * FINALISTS]:
            cost = total - self.arms[number].seen
            if not self.finalists or (cost <= left and len(self.finalists) < FINALISTS):
                self.finalists.append(int(number))
                left -= cost
        return [Ask(self.arms[n].settings, total) for n in self.finalists if self.arms[n].seen < total]

    def _drawn(self, rng: np.random.Generator) -> list[Settings]:
        """Random points of the space, and neighbours of the best arms."""
        found = [self._encoder.random(rng) for _ in range(CANDIDATES // 2)]
        if len(self.arms) >= STARTUP:
            best = np.argsort(-self._known[0], kind="stable")[:5]
            near = (self.arms[int(rng.choice(best))].settings for _ in range(CANDIDATES // 2))
            found += [self._encoder.near(one, rng) for one in near]
        return found


def _alike(first: Values, second: Values) -> bool:
    """Whether two evaluations are the same on the samples that both have."""
    n = min(len(first.scores), len(second.scores))
    return all(np.array_equal(a[:n], b[:n], equal_nan=True) for a, b in zip(first, second, strict=True))


class Encoder:
    """Points of a space as positions: each number from 0 to 1, each choice as a column of its own."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._distributions: dict[str, Any] = space.distributions()

    def __call__(self, settings: Settings) -> np.ndarray:
        params = self._space.params(settings)
        assert params is not None
        parts: list[float] = []
        for key, distribution in self._distributions.items():
            value = params[key]
            if isinstance(distribution, CategoricalDistribution):
                parts += [float(value == choice) for choice in distribution.choices]
            elif not params.get(f"{key}.on", True):
                parts.append(0.5)  # the number has no effect
            else:
                scale = math.log if distribution.log else float
                low, high = scale(distribution.low), scale(distribution.high)
                parts.append((scale(value) - low) / (high - low))
        return np.array(parts)

    def random(self, rng: np.random.Generator) -> Settings:
        """A point of the space, drawn evenly."""
        return self._space.settings({key: _draw(one, rng) for key, one in self._distributions.items()})

    def near(self, settings: Settings, rng: np.random.Generator) -> Settings:
        """A point that differs in one to three parameters."""
        params: dict[str, Any] = dict(self._space.params(settings) or {})
        keys = list(self._distributions)
        for key in rng.choice(keys, size=min(len(keys), int(rng.integers(1, 4))), replace=False):
            params[str(key)] = _draw(self._distributions[str(key)], rng)
        return self._space.settings(params)


def _draw(distribution: Any, rng: np.random.Generator) -> Any:
    """A value of a distribution, drawn evenly."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    low, high = distribution.low, distribution.high
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if distribution.log else rng.uniform(low, high)
    return round(value) if isinstance(low, int) else float(min(max(value, low), high))
