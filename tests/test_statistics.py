"""Intervals: closed forms and known answers."""

import math

import numpy as np
import pytest

from tdrs.statistics import accuracy_interval, paired_difference


def test_wilson_where_every_sample_is_its_own_cluster() -> None:
    """Textbook value: 8 of 10 → [0.490, 0.943] (Wilson, 95 %)."""
    found = accuracy_interval([True] * 8 + [False] * 2, [str(n) for n in range(10)])
    assert found == pytest.approx((0.8, 0.4902, 0.9433), abs=2e-3)


def test_copies_of_a_sample_add_no_evidence() -> None:
    """Each image's questions all answered alike: four questions an image count as one."""
    rng = np.random.default_rng(0)
    once = rng.random(200) < 0.6
    alone = accuracy_interval(once.tolist(), [str(n) for n in range(200)])
    copied = accuracy_interval(np.repeat(once, 4).tolist(), [str(n // 4) for n in range(800)])
    assert copied.value == alone.value
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.02)


@pytest.mark.parametrize("correct", [[True] * 30, [False] * 30])
def test_all_alike_still_has_a_width(correct: list[bool]) -> None:
    found = accuracy_interval(correct, [str(n) for n in range(30)])
    assert 0.05 < found.high - found.low < 0.15
    assert 0 <= found.low <= found.high <= 1


def test_empty() -> None:
    assert all(math.isnan(v) for v in accuracy_interval([], []))
    assert all(math.isnan(v) for v in paired_difference([], [], []))


def test_paired_difference_of_equal_scores_is_exactly_zero() -> None:
    scores = [0, 1, 1, 0, 1]
    assert paired_difference(scores, scores, list("abcde")) == (0, 0, 0)


def test_paired_difference_matches_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    first = rng.random(600) < 0.5
    second = first ^ (rng.random(600) < 0.2)
    difference = second.astype(float) - first
    found = paired_difference(first.tolist(), second.tolist(), [str(n) for n in range(600)])
    half = 1.96 * difference.std(ddof=1) / math.sqrt(600)
    assert found.value == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.005)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.005)


def test_paired_difference_resamples_images() -> None:
    """Four equal questions an image: the interval is that of the images alone, about twice as wide."""
    rng = np.random.default_rng(2)
    difference = rng.choice([-1, 0, 1], 150)
    first, second = np.zeros(150), difference
    alone = paired_difference(first, second, [str(n) for n in range(150)])
    copied = paired_difference(np.repeat(first, 4), np.repeat(second, 4), [str(n // 4) for n in range(600)])
    naive = paired_difference(np.repeat(first, 4), np.repeat(second, 4), [str(n) for n in range(600)])
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert naive.high - naive.low < 0.6 * (copied.high - copied.low)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many, got 1, 2, 1"):
        paired_difference([1], [1, 0], ["a"])
