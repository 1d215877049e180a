"""The four embedded twins: schema, splits, content that is the same everywhere, and answers that are true."""

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tdrs import benchmarks
from tdrs.benchmarks import mini_gqa, mini_pope, mini_textvqa
from tdrs.benchmarks.benchmark import as_row
from tdrs.benchmarks.evalai import process
from tdrs.benchmarks.scenes import COLORS, GRID
from tdrs.benchmarks.signs import GLYPHS, draw_signs
from tdrs.settings import SettingError

TWINS = ("mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope")


def load(name: str, split: str, limit: int | None = None, **values: Any) -> list[Any]:
    return benchmarks.load(benchmarks.from_settings({"name": name, **values}), split, limit)


@pytest.mark.parametrize("name", TWINS)
def test_splits_are_large_enough_and_share_no_picture(name: str) -> None:
    tuning, held_out = load(name, "tuning"), load(name, "held_out")
    assert len(tuning) >= 1000
    assert len(held_out) >= 2000
    assert len({sample.id for sample in held_out}) == len(held_out)
    digests = [{sample.picture.digest for sample in part[::4]} for part in (tuning, held_out)]
    assert not digests[0] & digests[1]
    shared = Counter(sample.image_id for sample in held_out)
    assert min(list(shared.values())[:-1]) >= 2


CONTENT = {
    "mini_scienceqa": "3f4ad74dc24d7c26",
    "mini_gqa": "54f1702a9316c870",
    "mini_textvqa": "a81bc0fb7b26427c",
    "mini_pope": "596b8c870d2e3745",
}


@pytest.mark.parametrize("name", TWINS)
def test_content_is_the_same_everywhere(name: str) -> None:
    digest = hashlib.sha256()
    for place in ("between", "before_image"):
        for sample in load(name, "held_out", 40, gap=24, filler=place):
            row = as_row(sample)
            row["picture"] = hashlib.sha1(sample.image.tobytes()).hexdigest()  # of pixels: encoders may differ
            digest.update(json.dumps(row, sort_keys=True).encode())
    assert digest.hexdigest()[:16] == CONTENT[name]


@pytest.mark.parametrize("name", TWINS)
def test_another_seed_is_another_draw_and_another_gap_is_not(name: str) -> None:
    base, other, far = load(name, "tuning", 30), load(name, "tuning", 30, seed=1), load(name, "tuning", 30, gap=100)
    assert [s.picture.digest for s in base] != [s.picture.digest for s in other]
    assert [(s.question, s.gold, s.picture.digest) for s in base] == [
        (s.question, s.gold, s.picture.digest) for s in far
    ]


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("gap", [1, 32, 2048])
def test_the_gap_has_exactly_its_tokens_in_either_place(name: str, gap: int) -> None:
    for place in ("between", "before_image"):
        (near,) = load(name, "tuning", 1)
        (far,) = load(name, "tuning", 1, gap=gap, filler=place)
        added = far.before if place == "before_image" else far.prompt.removesuffix(near.prompt)
        words = added.removeprefix("Context: ").rstrip("\n").replace(".", " .").split()
        assert len(words) == gap
        assert (far.before == "") == (place == "between")
        assert far.prompt.endswith(near.prompt)


@pytest.mark.parametrize(("name", "value"), [("gap", 2049), ("gap", -1), ("filler", "behind"), ("prompt", "mine")])
def test_bad_settings_are_named(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=rf"dataset.{name} = {value!r}: must be"):
        benchmarks.from_settings({"name": "mini_pope", name: value})


@pytest.mark.parametrize("name", TWINS)
def test_limits_and_rules_are_checked(name: str) -> None:
    with pytest.raises(SettingError, match=rf"^limit = 9999: {name} has \d+ samples in tuning"):
        load(name, "tuning", 9999)
    with pytest.raises(SettingError, match=r"dataset.rule = 'mine': must be one of"):
        benchmarks.from_settings({"name": name, "rule": "mine"})


def answer_gqa(question: str, objects: list[Any]) -> set[str]:
    """All answers the scene gives, from the question's words alone."""
    words = question.rstrip("?").split()

    def named(phrase: list[str]) -> list[Any]:
        return [o for o in objects if all(word in (o.color, o.shape, "object") for word in phrase)]

    def beside(relation: str) -> Any:
        axis, sign = {"left": (1, -1), "right": (1, 1), "above": (0, -1), "below": (0, 1)}[relation]
        return lambda one, other: sign * (divmod(one.cell, GRID)[axis] - divmod(other.cell, GRID)[axis]) > 0

    if words[0] == "How":
        return {mini_gqa.NUMBERS[len([o for o in objects if o.color == words[2]])]}
    if words[0] == "Is" and words[3] in COLORS:
        return {"yes" if o.color == words[3] else "no" for o in named(words[2:3])}
    if words[0] == "Is":
        axis, sides = (1, ("left", "right")) if "left" in words else (0, ("top", "bottom"))
        at = words.index("on" if "left" in words else "at")
        return {sides[divmod(o.cell, GRID)[axis] >= GRID // 2] for o in named(words[2:at])}
    relation = next((word for word in words if word in ("left", "right", "above", "below")), None)
    if relation is None:
        return {getattr(o, words[1]) for o in named(words[4:])}
    at = words.index(relation)
    (other,) = named([word for word in words[at + 1 :] if word not in ("of", "the")])
    return {getattr(o, words[1]) for o in objects if o != other and beside(relation)(o, other)}


def test_gqa_answers_are_true_and_the_only_ones() -> None:
    kinds: Counter[str] = Counter()
    for number, row in enumerate(mini_gqa.rows("tuning", 600)):
        objects = mini_gqa.scene("tuning", number // mini_gqa.QUESTIONS_PER_IMAGE, 0)[0]
        assert answer_gqa(row["question"], objects) == {row["answer"]}, row["question"]
        kinds[row["question"].split()[0]] += 1
    assert min(kinds[word] for word in ("What", "Is", "How")) > 60
    asked = [row["question"] for row in mini_gqa.rows("tuning", 600)]
    for words in ("side of", "at the top", "object above", "object left of", "What shape is", "What color is"):
        assert sum(words in question for question in asked) > 10
    answers = Counter(row["answer"] for row in mini_gqa.rows("tuning", 1000))
    assert abs(answers["yes"] - answers["no"]) < 60
    assert answers.most_common(1)[0][1] < 200
    assert all(len(answer.split()) == 1 for answer in answers)


def test_textvqa_signs_say_what_is_asked_and_annotators_mostly_agree() -> None:
    agreeing = []
    for number, row in enumerate(mini_textvqa.rows("tuning", 400)):
        signs = mini_textvqa.scene("tuning", number // mini_textvqa.QUESTIONS_PER_IMAGE, 0)[0]
        (sign,) = [one for one in signs if f" {one.color} sign" in row["question"]]
        assert row["ocr_tokens"] == [one.text for one in signs]
        assert len(row["answers"]) == 10
        agreeing.append(sum(process(answer) == process(sign.text) for answer in row["answers"]))
        if "letter" in row["question"]:
            assert sign.text.isalpha()
        if "number" in row["question"]:
            assert sign.text.isdigit()
    share = np.mean(agreeing) / 10
    assert 0.85 < share < 0.95  # honest noise
    assert min(agreeing) < 9


def test_no_sign_says_what_the_processor_deletes() -> None:
    assert len(GLYPHS) == 33
    assert all(process(name) == name.lower() for name in GLYPHS)
    assert len({glyph.tobytes() for glyph in GLYPHS.values()}) == 33
    signs = mini_textvqa.scene("tuning", 3, 0)[0]
    picture = draw_signs(signs, np.random.default_rng(0))
    assert picture.shape == (64, 64, 3)
    assert sum(len(sign.cells) for sign in signs) == len({cell for sign in signs for cell in sign.cells})


def test_pope_rows_are_balanced_and_true() -> None:
    rows = mini_pope.rows("tuning", 60)
    for image in range(60):
        present = {mini_pope.question(kind) for kind in mini_pope.scene("tuning", image, 0)[0]}
        for category in ("adversarial", "popular", "random"):
            here = [r for r in rows if r["image_source"] == f"tuning-{image}" and r["category"] == category]
            assert [r["answer"] for r in here].count("yes") == [r["answer"] for r in here].count("no") == 3
            assert len({r["question"] for r in here}) == 6
            assert all((r["question"] in present) == (r["answer"] == "yes") for r in here)


def test_pope_negatives_follow_their_definitions() -> None:
    """Popular: the commonest absent kinds. Adversarial: seen most often with what is there. Both are skewed."""
    frequency, together = mini_pope.statistics(0)
    assert frequency.max() > 8 * np.median(frequency)
    company: dict[str, list[int]] = {"adversarial": [], "popular": [], "random": []}
    commonness: dict[str, list[int]] = {"adversarial": [], "popular": [], "random": []}
    for image in range(80):
        present = mini_pope.scene("tuning", image, 0)[0]
        for category in company:
            rng = np.random.default_rng(image)
            absent = mini_pope.negatives(category, present, present[:3], 0, rng)
            assert len(set(absent)) == 3
            assert not set(absent) & set(present)
            company[category].append(together[present[:3], absent].sum())
            commonness[category].append(frequency[absent].sum())
        popular = mini_pope.negatives("popular", present, present[:3], 0, np.random.default_rng(0))
        rest = [kind for kind in range(64) if kind not in present and kind not in popular]
        assert frequency[popular].min() >= frequency[rest].max()
        first = mini_pope.negatives("adversarial", present, present[:3], 0, np.random.default_rng(0))[0]
        assert together[present[0]][first] == max(together[present[0]][k] for k in range(64) if k not in present)
    means = {name: np.mean(values) for name, values in company.items()}
    assert means["adversarial"] > means["popular"] > 2 * means["random"]
    common = {name: np.mean(values) for name, values in commonness.items()}
    assert common["popular"] > common["adversarial"] > common["random"]


def test_pope_pairs_weigh_as_the_mean_of_the_categories() -> None:
    benchmark = benchmarks.from_settings({"name": "mini_pope"})
    samples = load("mini_pope", "tuning", 300)
    assert 288 < len(samples) <= 300  # whole images
    assert sum(sample.weight for sample in samples) == pytest.approx(len(samples))
    records = [benchmark.score("yes" if number % 3 else "no", sample) for number, sample in enumerate(samples)]
    weighted = sum(r.score * r.weight for r in records) / sum(r.weight for r in records)
    assert benchmark.metrics(records)["accuracy"] == pytest.approx(weighted)


@pytest.mark.parametrize("name", TWINS)
def test_blank_pictures_are_grey_and_nothing_else_changes(name: str) -> None:
    seen, blank = load(name, "tuning", 12), load(name, "tuning", 12, blank=True)
    assert seen == blank  # pictures are not compared
    for sample, other in zip(blank, seen, strict=True):
        assert sample.image.size == other.image.size
        assert sample.image.getextrema() == ((165, 165),) * 3
