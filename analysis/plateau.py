"""How far each setting may move from the best point of a search before a loss is shown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tdrs.analysis.search_points import SearchPoints
from tdrs.analysis.search_scores import Scores
from tdrs.analysis.surrogate import Part
from tdrs.statistics import Z95, Interval
from tdrs.sweeps.space import Range

DRAWS = 2000  # of images


def spread(value: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """The 95 % limits of values, lower and upper: 1.96 standard deviations of resampled ones (resamples, …) off."""
    half = Z95 * resampled.std(axis=0, ddof=1)
    return np.array([value - half, value + half])


class SettingPlateau(NamedTuple):
    """How far one setting may move.

    Attributes:
        given: its values in the search space.
        best: its value at the best point.
        states: values to move to.
        changes: how the surrogate's objective changes there, with bands that hold 95 % and every resample of points and
            images. A loss is shown where the whole band is below 0.
        kept: the states at which no loss is shown; of numbers, those between the best value and the nearest loss.
        seen: the values of measured points that are not shown to be worse than the best; None if that is not known.
    """

    key: str
    given: list[Any] | Range
    best: Any
    states: list[Any]
    changes: list[Interval]
    kept: list[Any]
    seen: list[Any] | None

    @property
    def plateau(self) -> str:
        """Where no loss is shown, in words."""
        return "everywhere" if len(self.kept) == len(self.states) else shown_values(self.given, [*self.kept, self.best])

    @property
    def seen_values(self) -> str:
        """The values of measured points that are not shown to be worse than the best, in words."""
        return "not known" if self.seen is None else shown_values(self.given, self.seen)


def shown_value(value: Any) -> str:
    """A value of a setting, to show."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shown_values(given: list[Any] | Range, values: Sequence[Any]) -> str:
    """Values of a setting, to show: numbers as a range, and beside them the one that switches off."""
    if not isinstance(given, Range):
        return ", ".join(dict.fromkeys(shown_value(value) for value in values))
    numbers = [value for value in values if value != given.off_at]
    parts = [" to ".join(dict.fromkeys((shown_value(min(numbers)), shown_value(max(numbers)))))] if numbers else []
    parts += ["off"] if len(numbers) < len(values) else []
    return ", ".join(parts)


def plateaus(
    parts: Sequence[Part],
    best: Mapping[str, Any],
    changes: Sequence[np.ndarray],
    resampled: Sequence[Sequence[np.ndarray]],
    good: Sequence[Mapping[str, Any]] | None,
) -> tuple[SettingPlateau, ...]:
    """The plateau of each setting around the best point.

    Args:
        changes: of the surrogate from the best point to each state, by setting.
        resampled: the same for each resample.
        good: settings of points that are not shown to be worse than the best; None if that is not known.
    """
    found = []
    for number, part in enumerate(parts):
        draws = np.array([one[number] for one in resampled])
        lows, highs = spread(changes[number], draws)
        # a forest that has not seen the best point may see no change there: then none is shown
        lows, highs = np.minimum(lows, draws.min(axis=0)), np.maximum(highs, draws.max(axis=0))
        bands = [Interval(*map(float, band)) for band in zip(changes[number], lows, highs, strict=True)]
        lost = [band.high < 0 for band in bands]
        value = best[part.key]
        seen = [one[part.key] for one in good] if good is not None else None
        if seen is not None and not isinstance(part.given, Range):
            seen = [state for state in part.states if state in seen]
        kept = _kept(part, value, lost)
        found.append(SettingPlateau(part.key, part.given, value, part.states, bands, kept, seen))
    return tuple(found)


def _kept(part: Part, best: Any, lost: Sequence[bool]) -> list[Any]:
    """The states without a loss; of numbers, those between the best value, or the lowest, and the nearest loss."""
    without = [state for state, loss in zip(part.states, lost, strict=True) if not loss]
    if not isinstance(part.given, Range):
        return without
    off = part.given.off_at
    start = part.given.low if best == off else best
    losses = [state for state, loss in zip(part.states, lost, strict=True) if loss and state != off]
    low = max((state for state in losses if state <= start), default=-np.inf)
    high = min((state for state in losses if state >= start), default=np.inf)
    return [state for state in without if state == off or low < state < high]


def as_good(points: SearchPoints, scores: Scores | str) -> list[Mapping[str, Any]] | None:
    """The settings of measured points that are not shown to be worse than the best, the best itself among them.

    Each is paired with the best, image by image, on the samples that it saw: its bootstrap interval of the difference
    has 0 in it. The intervals are not corrected; and the best is the luckiest of many, which makes the others look
    worse than they are.

    Args:
        scores: of the measured points; None is returned if these are words.
    """
    if isinstance(scores, str):
        return None
    times = np.random.default_rng(0).multinomial(scores.images, np.full(scores.images, 1 / scores.images), size=DRAWS).T
    highest = np.quantile(scores.differences(points.measured.index(points.best), times), 0.975, axis=1)
    return [one.settings for one, high in zip(points.measured, highest, strict=True) if high >= 0]
