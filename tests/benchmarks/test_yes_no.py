"""Balanced accuracy and ROC area, beside those of scikit-learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from tdrs.benchmarks import pope
from tdrs.benchmarks.benchmark import Record
from tdrs.benchmarks.yes_no import balanced_accuracy, roc_area, yes_margins
from tdrs.statistics import cluster_draws


def made(margins: list[float], golds: str, per_image: int = 1, categories: str = "random") -> list[Record]:
    """Records from log-odds of yes and gold answers (y or n); the answer is yes above 0."""
    records = []
    for n, (margin, letter) in enumerate(zip(margins, golds, strict=True)):
        gold, said = "yes" if letter == "y" else "no", "yes" if margin > 0 else "no"
        own = margin if gold == "yes" else -margin
        image = str(n // per_image)
        records.append(Record(str(n), image, "q", said, said, gold, float(said == gold), own, categories, 1.0))
    return records


def drawn(n: int, seed: int = 3, per_image: int = 4) -> list[Record]:
    rng = np.random.default_rng(seed)
    golds = rng.random(n) < 0.3
    margins = np.round(rng.normal(size=n) + golds - 0.7, 1)  # rounded, so that there are ties
    return made(list(margins), "".join("ny"[int(gold)] for gold in golds), per_image)


def test_both_are_sklearns_with_ties_and_weights() -> None:
    records = drawn(121)
    gold, margins = [record.gold == "yes" for record in records], yes_margins(records)
    said = [record.answer == "yes" for record in records]
    assert len(set(margins)) < 60
    weights = np.random.default_rng(1).integers(0, 4, size=(401, 121))  # several portions, and an odd rest
    areas, balanced = roc_area(records, weights), balanced_accuracy(records, weights)
    assert areas.shape == balanced.shape == (401,)
    for n in (0, 199, 200, 400):
        assert areas[n] == pytest.approx(roc_auc_score(gold, margins, sample_weight=weights[n]))
        assert balanced[n] == pytest.approx(balanced_accuracy_score(gold, said, sample_weight=weights[n]))
    assert float(roc_area(records)) == pytest.approx(roc_auc_score(gold, margins))
    assert float(balanced_accuracy(records)) == pytest.approx(balanced_accuracy_score(gold, said))


@pytest.mark.parametrize("golds", ["yyy", "nnn", ""])
def test_one_gold_answer_alone_has_neither(golds: str) -> None:
    records = made([0.5, -0.5, 1.0][: len(golds)], golds)
    for name in ("roc_area", "balanced_accuracy"):
        assert math.isnan(pope.counts(records, "official")[name])
        assert all(math.isnan(number) for number in pope.intervals(records)[name])


def test_a_margin_that_was_not_measured_leaves_no_area() -> None:
    records = drawn(40)
    records[7] = replace(records[7], margin=math.nan)
    found = pope.intervals(records)
    assert all(math.isnan(number) for number in found["roc_area"])
    assert found["balanced_accuracy"] == pope.intervals(drawn(40))["balanced_accuracy"]


def test_an_answer_that_is_neither_is_wrong() -> None:
    records = made([1.0, 1.0, -1.0, -1.0], "yynn")
    records[0] = replace(records[0], answer="", score=0.0)
    for rule in pope.RULES:
        assert pope.counts(records, rule)["balanced_accuracy"] == 0.75


def test_only_the_area_is_free_of_a_bias() -> None:
    golds = "ny" * 40
    margins = np.round(16 * np.random.default_rng(5).normal(size=80)) / 16 + 0.75 * np.tile([0, 1], 40)  # exact sums
    before, after = (made(list(margins + bias), golds, 4) for bias in (0.0, -1.25))
    assert pope.difference(before, after, metric="roc_area") == pytest.approx((0, 0, 0), abs=1e-12)
    moved = pope.difference(before, after, metric="balanced_accuracy")
    assert abs(moved.value) > 0.02
    assert moved.low < moved.value < moved.high


def test_the_interval_is_that_of_resampled_images_and_the_difference_is_paired() -> None:
    before, after = drawn(60), drawn(60, seed=3)
    after = [replace(record, margin=record.margin + 0.4 * (n % 3 == 0)) for n, record in enumerate(after)]
    index, draws = cluster_draws([record.image_id for record in before])
    gold = np.array([record.gold == "yes" for record in before])

    def area(records: list[Record], weights: np.ndarray) -> float:
        return float(roc_auc_score(gold, yes_margins(records), sample_weight=weights))

    weights = draws[:300, index]
    expected = [area(before, row) for row in weights]
    assert roc_area(before, weights) == pytest.approx(expected)
    paired = roc_area(after, draws[:, index]) - roc_area(before, draws[:, index])
    found = pope.difference(before, after, metric="roc_area")
    assert found.value == pytest.approx(area(after, np.ones(60)) - area(before, np.ones(60)))
    assert found[1:] == pytest.approx(np.quantile(paired, [0.025, 0.975]))
    pooled = pope.pooled_difference(before, after, "vlmevalkit", "roc_area")
    assert pooled == pytest.approx(found)


def test_one_image_and_the_mean_of_categories() -> None:
    one = pope.intervals(made([1.0, -1.0, 0.5, -2.0], "ynny", 4))
    assert one["roc_area"] == (0.5, 0, 1)
    assert one["balanced_accuracy"] == (0.5, 0, 1)
    first, second = drawn(40, 1), drawn(40, 2)
    mixed = [*first, *(replace(record, id=f"x{record.id}", categories="popular") for record in second)]
    found = pope.metrics(mixed)
    assert found["roc_area"] == pytest.approx(float(roc_area(first) + roc_area(second)) / 2)
    assert found["pooled.roc_area"] == pytest.approx(float(roc_area(mixed)))
