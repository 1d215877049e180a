"""Intervals: closed forms and known answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score
from statsmodels.stats import contingency_tables, multitest

from tdrs.benchmarks import Record, pope
from tdrs.statistics import (
    accuracy_interval,
    chance_not_below_zero,
    cluster_draws,
    holm,
    mcnemar,
    paired_difference,
    sign_flip,
    smallest_difference,
)


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


def test_one_image_says_nothing_of_others() -> None:
    first, second = [0, 0, 1, 1], [1, 1, 1, 1]
    assert paired_difference(first, second, ["a"] * 4) == (0.5, -1, 1)
    assert accuracy_interval(second, ["a"] * 4) == accuracy_interval([1], ["a"])
    index, draws = cluster_draws(["a"] * 4)
    assert draws.shape == (0, 1)
    assert index.tolist() == [0, 0, 0, 0]


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


def names(n: int, per: int = 1) -> list[str]:
    return [str(i // per) for i in range(n)]


def test_mcnemar_is_statsmodels(rng: np.random.Generator) -> None:
    for n in (1, 5, 40, 300):
        first, second = rng.random((2, n)) < 0.5
        found = mcnemar(first.tolist(), second.tolist())
        table = [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
        assert found.p == pytest.approx(contingency_tables.mcnemar(table, exact=True).pvalue)
        assert (found.gained, found.lost) == (table[1][0], table[0][1])


def test_mcnemar_at_the_edges() -> None:
    assert mcnemar([0, 1, 1], [0, 1, 1]) == (0, 0, 1.0)  # all tied
    assert mcnemar([0] * 6, [1] * 6).p == pytest.approx(2 / 64)  # all discordant, one way
    assert mcnemar([1, 0], [0, 1]) == (1, 1, 1.0)
    assert mcnemar([0], [1]) == (1, 0, 1.0)  # n = 1
    assert mcnemar([], []) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar([0.3], [1])


def test_a_sign_flip_over_single_samples_is_mcnemar(rng: np.random.Generator) -> None:
    for n, p in ((12, 0.5), (60, 0.1), (400, 0.2)):
        first = (rng.random(n) < 0.5).astype(float)
        second = np.where(rng.random(n) < p, 1, first)
        exact = mcnemar(first.tolist(), second.tolist()).p
        assert sign_flip(first, second, names(n)) == pytest.approx(exact)
        weights = np.full(n, 1.1)  # no whole numbers: by random flips, but of few clusters
        assert sign_flip(first, second, names(n), weights) == pytest.approx(exact, abs=0.006)


def test_a_sign_flip_takes_a_cluster_as_one(rng: np.random.Generator) -> None:
    first = np.zeros(8)
    assert sign_flip(first, np.ones(8), names(8)) == pytest.approx(2 / 2**8)
    assert sign_flip(first, np.ones(8), names(8, per=4)) == pytest.approx(2 / 2**2)
    assert sign_flip(first, np.ones(8), ["x"] * 8) == 1.0  # one cluster says nothing
    assert sign_flip(first, first, names(8)) == 1.0
    assert sign_flip([], [], []) == 1.0
    soft = [0.3, 0.6, 0.9]
    assert sign_flip([0, 0, 0], soft, names(3)) == pytest.approx(0.25)
    assert sign_flip([0, 0, 0], soft, names(3), [1, 0, 0]) == 1.0


def test_sign_flips_have_their_level(rng: np.random.Generator) -> None:
    """Of tables without an effect, questions of an image moving together, at most some 5 % are called significant."""
    hits = 0
    for _ in range(200):
        moved = np.repeat(rng.choice([-1, 0, 1], 40, p=[0.2, 0.6, 0.2]), 5)
        hits += sign_flip(np.zeros(200), moved, names(200, per=5)) < 0.05
    assert hits <= 20


def test_holm_is_statsmodels(rng: np.random.Generator) -> None:
    for n in (1, 2, 7, 30):
        p = rng.random(n) ** 3
        assert holm(p.tolist()) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_the_smallest_difference_is_shown_four_times_in_five(rng: np.random.Generator) -> None:
    n, effect, found, shown = 400, 0.07, [], 0
    for _ in range(150):
        first = (rng.random(n) < 0.5).astype(float)
        moved = rng.choice([-1, 0, 1], n, p=[0.115, 0.70, 0.185])
        second = first + moved  # scores need not be 0 or 1
        found.append(smallest_difference(first, second, names(n)))
        shown += sign_flip(first, second, names(n)) < 0.05
    assert np.mean(found) == pytest.approx(effect, abs=0.01)
    assert 0.66 < shown / 150 < 0.94


def test_the_smallest_difference_at_the_edges() -> None:
    assert smallest_difference([1] * 60, [1] * 60, names(60)) == pytest.approx(6 / 60)  # all tied: McNemar needs six
    assert smallest_difference([0], [1], ["a"]) == 1.0
    assert math.isnan(smallest_difference([], [], []))
    rng = np.random.default_rng(0)
    moved = rng.choice([-1, 0, 1], 200).astype(float)
    alone = smallest_difference(np.zeros(200), moved, names(200))
    together = smallest_difference(np.zeros(800), np.repeat(moved, 4), names(800, per=4))
    assert together == pytest.approx(alone, rel=1e-6)  # copies add no evidence


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def pope_records(answers: str, golds: str, per_image: int = 1) -> list[Record]:
    words = {"y": "yes", "n": "no"}
    return [
        Record(str(i), str(i // per_image), "q", "", words[a], words[g], float(a == g), 0.0, "random", 1.0)
        for i, (a, g) in enumerate(zip(answers, golds, strict=True))
    ]


def test_f1_is_sklearns_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(3)
    golds = "".join(rng.choice(["y", "n"], 120))
    answers = "".join(g if keep else "yn"[g == "y"] for g, keep in zip(golds, rng.random(120) < 0.8, strict=True))
    records = pope_records(answers, golds, 6)
    found = pope.intervals(records)
    true, said = ([letter == "y" for letter in text] for text in (golds, answers))
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name].value == pytest.approx(score(true, said))
        assert found[name].low < found[name].value < found[name].high


def test_f1_over_copies_and_over_one_image() -> None:
    records = pope_records("yyynnnyn" * 10, "yynnnyyn" * 10)
    copies = [replace(record, id=f"{record.id}-{n}") for record in records for n in range(3)]
    alone, copied = pope.intervals(records)["f1"], pope.intervals(copies)["f1"]
    assert copied == pytest.approx(alone)
    one = pope.intervals(pope_records("ynyn", "yynn", 4))["f1"]
    assert one == (0.5, 0, 1)
    assert pope.difference(pope_records("yyyy", "yynn", 4), pope_records("yynn", "yynn", 4)).low == -1


def test_f1_without_a_yes_and_without_a_record() -> None:
    never = pope.intervals(pope_records("nnn", "nnn"))
    assert math.isnan(never["f1"].value)
    assert math.isnan(never["f1"].low)
    assert pope.intervals(pope_records("nnn", "yyn"))["f1"].value == 0
    assert math.isnan(pope.intervals([])["f1"].value)


def test_a_difference_of_f1_is_paired() -> None:
    golds = "yn" * 60
    before, after = pope_records("yy" * 60, golds), pope_records("yy" * 55 + "yn" * 5, golds)
    found = pope.difference(before, after)
    assert found.value > 0
    assert 0 < found.low < found.value < found.high
    assert pope.difference(before, before) == (0, 0, 0)


@pytest.mark.parametrize("seen", [20, 80, 140])
def test_the_chance_not_to_end_below_zero_is_what_it_says(seen: int) -> None:
    """Of sets of all means alike, among those with a chance near p a share p does not end below 0."""
    rng = np.random.default_rng(seen)
    sets = rng.normal(0, 1, (20_000, 160)) + rng.uniform(-1, 1, (20_000, 1))
    chances = np.array([chance_not_below_zero(one[:seen], 160 - seen) for one in sets])
    above = sets.sum(axis=1) > 0
    for low, high in ((0.05, 0.15), (0.4, 0.6), (0.85, 0.95)):
        some = (chances > low) & (chances < high)
        assert above[some].mean() == pytest.approx(chances[some].mean(), abs=4 * np.sqrt(0.25 / some.sum()))


def test_alike_values_leave_no_doubt() -> None:
    assert [chance_not_below_zero([value, value], 9) for value in (-1.0, 0.0, 1.0)] == [0.0, 1.0, 1.0]
