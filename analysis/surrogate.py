"""A model of a search's objective as a function of the settings, and what follows from it over the whole space.

The model is a random forest of the kind that fANOVA reads (F. Hutter, H. Hoos, K. Leyton-Brown, ICML 2014). All that is
computed from it is an average over the space, in which each setting is drawn on its own: a number evenly on its own
scale (in decades if `log`), a list's values alike, and a key with `off_at` switched off with a chance of one half.
There a setting is one state, "off", in which its number does not exist.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import sobol_indices, uniform

from tdrs.statistics import Interval
from tdrs.sweeps.space import Range, Space

TREES, RESAMPLE_TREES = 64, 16  # of a forest; of one on resampled points, of which there are many
OFF = -0.5  # the code of "off", below those of numbers, which are from 0 to 1
BACKGROUND = 64  # points that partial dependences are averaged over
FOLDS, REPEATS = 5, 5
Model = Callable[[np.ndarray], np.ndarray]


class Part(NamedTuple):
    """A setting as the model sees it.

    Attributes:
        columns: where its code is in an encoded point.
        states: its values, of which numbers have a few that stand for the whole range.
        codes: of the states, states × columns.
        chances: of the states.
    """

    key: str
    given: list[Any] | Range
    columns: slice
    states: list[Any]
    codes: np.ndarray
    chances: np.ndarray

    def code(self, value: Any) -> np.ndarray:
        """The code of a value."""
        if isinstance(self.given, Range):
            return np.array([OFF if value == self.given.off_at else unit(self.given, value)])
        same = [value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.given]
        return np.array(same, dtype=float)


def unit(given: Range, value: float) -> float:
    """Where a number lies in its range, from 0 to 1; in decades if the range is `log`."""
    scale: Callable[[float], float] = math.log if given.log else float
    return (scale(value) - scale(given.low)) / (scale(given.high) - scale(given.low))


def number_at(given: Range, place: float) -> float:
    """The number at a place from 0 to 1 of a range: the inverse of `unit`."""
    if given.log:
        value = math.exp(math.log(given.low) + place * (math.log(given.high) - math.log(given.low)))
    else:
        value = given.low + place * (given.high - given.low)
    return round(value) if given.whole else value


def parts_of(space: Space, levels: int) -> list[Part]:
    """The settings of a space that have more than one value; a range is represented by so many of its numbers."""
    found: list[Part] = []
    column = 0
    for key, given in space.parts.items():
        if isinstance(given, list):
            if len(given) == 1:
                continue
            states: list[Any] = list(given)
            chances = np.full(len(states), 1 / len(states))
        else:
            states = list(dict.fromkeys(number_at(given, (number + 0.5) / levels) for number in range(levels)))
            chances = np.full(len(states), 1 / len(states))
            if given.off_at is not None:
                states, chances = [given.off_at, *states], np.array([0.5, *(chances / 2)])
        width = len(states) if isinstance(given, list) else 1
        part = Part(key, given, slice(column, column + width), states, np.zeros((0, 0)), chances)
        found.append(part._replace(codes=np.array([part.code(state) for state in states])))
        column += width
    return found


def encode(parts: Sequence[Part], points: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The codes of points, points × columns."""
    return np.array([np.concatenate([part.code(point[part.key]) for part in parts]) for point in points])


def random_points(parts: Sequence[Part], number: int, rng: np.random.Generator) -> np.ndarray:
    """Codes of points drawn from the whole space."""
    return states_at(parts, rng.random((len(parts), number)))


def states_at(parts: Sequence[Part], places: np.ndarray) -> np.ndarray:
    """Codes of the points whose settings have the states at places from 0 to 1: settings × points."""
    codes = []
    for part, place in zip(parts, places, strict=True):
        state = np.searchsorted(np.cumsum(part.chances), place, side="right")
        codes.append(part.codes[np.minimum(state, len(part.states) - 1)])
    return np.concatenate(codes, axis=1)


def fit(codes: np.ndarray, values: np.ndarray, trees: int, seed: int) -> Model:
    """A random forest of points and their values."""
    from sklearn.ensemble import RandomForestRegressor  # takes a second, which other reports need not wait for

    forest = RandomForestRegressor(n_estimators=trees, random_state=seed).fit(codes, values)
    grown = [tree.tree_ for tree in forest.estimators_]

    def predict(points: np.ndarray) -> np.ndarray:
        # as forest.predict, which needs three times as long for its checks and its threads
        asked = points.astype(np.float32)
        return np.mean([tree.predict(asked)[:, 0] for tree in grown], axis=0)

    return predict


def cross_validated(codes: np.ndarray, values: np.ndarray) -> Interval:
    """R² of predictions for points that the model has not seen: the mean of five repeats, the lowest and the highest.

    Each repeat predicts every point from the other four fifths. 1 is a perfect model; 0 is no better than the mean.
    """
    from sklearn.model_selection import RepeatedKFold  # as above

    predicted = np.empty((REPEATS, len(values)))
    for number, (known, unseen) in enumerate(
        RepeatedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=0).split(codes)
    ):
        predicted[number // FOLDS, unseen] = fit(codes[known], values[known], TREES, number)(codes[unseen])
    r2 = 1 - ((predicted - values) ** 2).mean(axis=1) / values.var()
    return Interval(float(r2.mean()), float(r2.min()), float(r2.max()))


class Effects(NamedTuple):
    """What settings do to a model's value over the whole space.

    Attributes:
        main: the mean value at each state, by setting.
        pairs: the mean value at each two states, by the numbers of two settings.
        shares: of the model's variance, of each pair's interaction: what both together explain beyond each alone.
    """

    main: list[np.ndarray]
    pairs: dict[tuple[int, int], np.ndarray]
    shares: dict[tuple[int, int], float]

    def centred(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """The mean value at each state less the mean over states, by setting."""
        return [values - part.chances @ values for part, values in zip(parts, self.main, strict=True)]


def effects(model: Model, parts: Sequence[Part], rng: np.random.Generator) -> Effects:
    """Partial dependences of one and two settings, and the variance of each pair's interaction.

    An interaction is the second-order term of the functional ANOVA (G. Hooker, J. Comput. Graph. Stat. 16, 2007),
    computed from partial dependences as J. Friedman and B. Popescu's H² is (Ann. Appl. Stat. 2, 2008), with the
    variance of the whole model below it rather than that of the pair, so that pairs can be compared.
    """
    background = random_points(parts, BACKGROUND, rng)
    variance = float(model(random_points(parts, 2048, rng)).var())

    def mean_at(chosen: Sequence[Part]) -> np.ndarray:
        shape = [len(part.states) for part in chosen]
        points = np.repeat(background[None], math.prod(shape), axis=0)
        for part, states in zip(chosen, np.indices(shape).reshape(len(shape), -1), strict=True):
            points[:, :, part.columns] = part.codes[states][:, None]
        return model(points.reshape(-1, background.shape[1])).reshape(*shape, BACKGROUND).mean(axis=-1)

    main = [mean_at([part]) for part in parts]
    pairs, shares = {}, {}
    for one in range(len(parts)):
        for other in range(one + 1, len(parts)):
            table = mean_at([parts[one], parts[other]])
            rows, columns = parts[one].chances, parts[other].chances
            pure = table - (table @ columns)[:, None] - (rows @ table)[None] + rows @ table @ columns
            pairs[one, other] = table
            shares[one, other] = float(rows @ pure**2 @ columns) / variance if variance > 0 else 0.0
    return Effects(main, pairs, shares)


def sobol(model: Model, parts: Sequence[Part], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """First-order and total Sobol indices of a model, by setting (scipy: A. Saltelli et al., 2010).

    The first-order index is the share of the variance that a setting explains alone; the total index has all its
    interactions, too. A model without variance has zeros.
    """
    if np.ptp(model(random_points(parts, 256, np.random.default_rng(seed)))) == 0:
        return np.zeros(len(parts)), np.zeros(len(parts))
    found = sobol_indices(
        func=lambda places: model(states_at(parts, places)),
        n=1024,
        dists=[uniform()] * len(parts),
        rng=np.random.default_rng(seed),
    )
    return np.clip(found.first_order, 0, 1), np.clip(found.total_order, 0, 1)


def slice_losses(model: Model, parts: Sequence[Part], best: Mapping[str, Any]) -> list[np.ndarray]:
    """The model's change from a point to each state of each setting, the others as they are at the point."""
    at = encode(parts, [best])
    found = []
    for part in parts:
        moved = np.repeat(at, len(part.states), axis=0)
        moved[:, part.columns] = part.codes
        found.append(model(moved) - model(at))
    return found
