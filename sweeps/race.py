"""The race: which points of a space to measure next, and on how many images, to find the best one with few samples.

Each point that has been measured is an *arm*. All arms are measured on the same images, in the same order. The first
images are a first *bundle*; whatever may be the best goes on to twice as many. What is known of the arms is estimated
in `sweeps/arms.py`. New points are those that a few trees of its forest, drawn at random, expect most of, and some
drawn evenly; arms go on if they are the best in draws from what is known (Thompson sampling; D. Russo et al., Found.
Trends Mach. Learn. 11, 2018). Of a family of arms that answer nearly alike, one at a time goes on.

The last quarter of the images is held back, and only the finalists, of different families, are measured on it. Of those
that are behind the best one by at most half a standard error, the simplest is chosen: the one with the fewest settings
that differ from the first point.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution

from .arms import TREES, Arm, Arms, Values, alike
from .protocol import spread
from .space import Space
from .trial import Settings

BUNDLE = 16  # samples of an arm's first measurement, if batches are not larger
HELD_BACK = 0.25  # the share of the images that only finalists see
FINALISTS = 3
ALIKE = 0.5  # a simpler finalist is chosen if it is behind by at most so many standard errors
EXPLORING = 0.6  # the share of the budget in which new points are asked for; then the best arms go on
RANDOM = 2  # one in so many new points is the next one in order, whatever the model expects
DRAWN = 5  # trees whose expectation chooses a new point
POINTS = 512  # of the space, spread evenly: new points are taken from these
DRAWS = 400


class Ask(NamedTuple):
    """A measurement to make: settings, on the first samples of the split."""

    settings: Settings
    upto: int


def sequence(space: Space, seed: int) -> list[Settings]:
    """The points that new arms are taken from: different ones, spread evenly over the space (QMC), in order."""
    return list({repr(one): one for one in spread(space, "qmc", seed, POINTS)}.values())


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
        points: different points that new arms are taken from; None is `sequence`.

    Attributes:
        known: what is known of the arms.
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
        points: Sequence[Settings] | None = None,
    ) -> None:
        self.known = Arms(images, weights, stock)
        self.arms = self.known.all
        self.spent = 0
        self.finalists: list[int] = []
        self._failed: list[Settings] = []
        self._left_out: list[Settings] = []  # they edit as an arm does
        self._space = space
        self._encoder = Encoder(space)
        self._queue = [one for one in start if all(one != settings for settings, _ in known)]
        self._samples = samples
        self._at_once = at_once
        self._bundle = bundle
        self._rng = np.random.default_rng(seed)
        self._points = sequence(space, seed) if points is None else list(points)
        total = self._total = len(images)
        self._last = max(min(bundle, total), round(total * (1 - HELD_BACK) / bundle) * bundle)
        self._reserve = FINALISTS * (total - self._last)
        self._first = start[0] if start else None
        for settings, values in known:
            if not any(alike(values, arm.values) for arm in self.arms):
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
            exploring = explored < EXPLORING * (self._samples - self._reserve)
            if not self.arms or exploring:
                count = max(1, min(self._at_once, left // self._bundle))
                asked = [Ask(one, min(self._bundle, self._last)) for one in self._new(count)]
                left -= self._bundle * len(asked)
            if self.arms:
                asked += self._going_on(left, exploring)
        return asked or self._final()

    def tell(self, asked: Sequence[Ask], found: Sequence[Values | None]) -> None:
        """Take the results of `ask`, in the same order; None for one that failed, which is not asked for again."""
        for one, values in zip(asked, found, strict=True):
            arm = next((arm for arm in self.arms if arm.settings == one.settings), None)
            self.spent += one.upto - (arm.seen if arm else 0)
            if values is None:
                self._failed.append(one.settings)
            elif arm is None and any(alike(values, other.values) for other in self.arms):
                self.spent -= one.upto  # it edits as another arm does, so its evaluation is the other's
                self._left_out.append(one.settings)
            elif arm is None:
                self.arms.append(Arm(one.settings, self._encoder(one.settings), values))
            else:
                arm.values = values
        self.known.changed()

    def chosen(self) -> int:
        """The number of the arm to use; before the end, the one of which most is expected."""
        whole = [number for number in self.finalists if self.arms[number].seen == self._total]
        if not whole:
            return int(self.known.known[0].argmax())
        best = max(whole, key=lambda number: self.known.mean(self.arms[number].values.scores))
        scores = self.arms[best].values.scores

        def close(number: int) -> bool:
            mean, variance, _ = self.known.mean_of(self.arms[number].values.scores - scores)
            return bool(mean + ALIKE * np.sqrt(variance) >= 0)

        return min((number for number in whole if number == best or close(number)), key=self._changes)

    def _changes(self, number: int) -> int:
        """How many settings of an arm differ from those of the first point."""
        first = self._first or self.arms[0].settings
        return sum(value != first[key] for key, value in self.arms[number].settings.items())

    def _new(self, count: int) -> list[Settings]:
        """New points: those of the queue, then those of which the model expects most."""
        found, self._queue = self._queue[:count], self._queue[count:]
        if len(found) == count:
            return found
        known = [*(arm.settings for arm in self.arms), *self._failed, *self._left_out, *found]
        candidates = [one for one in self._points if one not in known]
        if self.known.forest is None or not candidates:
            return [*found, *candidates[: count - len(found)]]
        positions = np.array([self._encoder(one) for one in candidates], dtype=np.float32)
        each = np.array([tree.tree_.predict(positions)[:, 0] for tree in self.known.forest.estimators_])
        for number in range(min(count - len(found), len(candidates))):
            if number % RANDOM == RANDOM - 1:
                chosen = int(np.isfinite(each[0]).argmax())  # the next one in order
            else:
                chosen = int(each[self._rng.choice(TREES, DRAWN)].mean(axis=0).argmax())
            found.append(candidates[chosen])
            each[:, chosen] = -np.inf
        return found

    def _going_on(self, left: int, exploring: bool) -> list[Ask]:
        """The arms that go on to twice as many samples: those that may be the best, or after exploring, those of which
        most is expected, as many as there are finalists."""
        mean, deviation = self.known.known
        draws = mean + deviation * self.known.noise(self._rng, DRAWS)
        chance = np.bincount(draws.argmax(axis=1), minlength=len(mean)) / DRAWS
        if not exploring:
            chance[:] = 1
        count = self._at_once if exploring else FINALISTS
        found: list[Ask] = []
        gone: set[int] = set()
        for number in map(int, np.lexsort((-mean, -chance))):
            arm = self.arms[number]
            more = min(arm.seen, self._last - arm.seen, left // self._bundle * self._bundle)
            open_ = arm.settings not in self._failed and len(found) < count
            if open_ and chance[number] > 0 and more > 0 and self.known.family(number) not in gone:
                found.append(Ask(arm.settings, arm.seen + more))
                gone.add(self.known.family(number))
                left -= more
        return found

    def _final(self) -> list[Ask]:
        """The finalists, on all samples: those of which most is sure, a standard deviation below what is expected, as
        far as the budget reaches."""
        if not self.arms:
            return []
        total, left = self._total, self._samples - self.spent
        mean, deviation = self.known.known  # what few images say of an arm may be luck
        order = [
            int(n) for n in np.argsort(deviation - mean, kind="stable") if self.arms[n].settings not in self._failed
        ]
        families: set[int] = set()
        for number in order:
            cost = total - self.arms[number].seen
            new = self.known.family(number) not in families
            if not self.finalists or (cost <= left and len(self.finalists) < FINALISTS and new):
                self.finalists.append(number)
                families.add(self.known.family(number))
                left -= cost
        return [Ask(self.arms[n].settings, total) for n in self.finalists if self.arms[n].seen < total]


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
