"""Measures of yes/no answers beside F1: balanced accuracy, and the area under the ROC curve of the log-odds of yes.

The ROC area depends on the order of the log-odds only. A constant that is added to all of them does not change it.
"""

from collections.abc import Sequence

import numpy as np

from tdrs.benchmarks.benchmark import Record

_PORTION = 200  # resamples at once, to bound memory


def gold_yes(records: Sequence[Record]) -> np.ndarray:
    """Which records have the gold answer yes, (n,)."""
    return np.array([record.gold == "yes" for record in records], dtype=bool)


def yes_margins(records: Sequence[Record]) -> np.ndarray:
    """The log-odds of yes against no at the first answer token, in nats, (n,); nan where it was not measured."""
    margins = np.array([record.margin for record in records], dtype=float)
    return np.where(gold_yes(records), margins, -margins)


def balanced_accuracy(records: Sequence[Record], weights: np.ndarray | None = None) -> np.ndarray:
    """The mean of the accuracy on gold yes and the accuracy on gold no; nan if one of them has no weight.

    Args:
        weights: of the records, (..., n); None is 1 each.

    Returns:
        (...), a number without axes for weights of shape (n,).
    """
    given = np.ones(len(records)) if weights is None else weights
    gold = gold_yes(records)
    right = np.array([record.score for record in records], dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = [(given @ (right * part)) / (given @ part.astype(float)) for part in (gold, ~gold)]
    return np.asarray((parts[0] + parts[1]) / 2)


def roc_area(records: Sequence[Record], weights: np.ndarray | None = None) -> np.ndarray:
    """The chance that a gold yes has higher log-odds of yes than a gold no; equal ones count one half.

    It is nan if a margin was not measured, or if gold yes or gold no has no weight. Source: J. A. Hanley and B. J.
    McNeil, Radiology 143 (1982).

    Args:
        weights: as in `balanced_accuracy`.

    Returns:
        (...), a number without axes for weights of shape (n,).
    """
    given = np.ones(len(records)) if weights is None else weights
    margins = yes_margins(records)
    if not len(records) or np.isnan(margins).any():
        return np.full(given.shape[:-1], np.nan)
    order = np.argsort(margins, kind="stable")
    gold, ordered = gold_yes(records)[order], margins[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of equal log-odds
    rows = given.reshape(-1, len(records))
    areas = []
    for first in range(0, len(rows), _PORTION):
        part = rows[first : first + _PORTION][:, order].astype(float)
        yes, no = (np.add.reduceat(part * which, starts, axis=1) for which in (gold, ~gold))
        wins = (yes * (no.cumsum(axis=1) - no / 2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            areas.append(wins / (yes.sum(axis=1) * no.sum(axis=1)))
    return np.concatenate([*areas, np.empty(0)]).reshape(given.shape[:-1])
