"""A limited split is a fair draw: whole images, balanced, nested, whatever the order of the file."""

import io
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tdrs import benchmarks
from tdrs.benchmarks import mini_scienceqa
from tdrs.benchmarks.benchmark import Picture, Sample, Samples
from tdrs.benchmarks.draw import by_image, fair_order
from tdrs.statistics import accuracy_interval


@cache
def picture(number: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def pope_rows(apart: bool) -> list[dict[str, Any]]:
    """500 images of six questions a category; or 900 images, each with questions of one category and one answer."""
    rows: list[dict[str, Any]] = []
    for image in range(900 if apart else 500):
        shown = picture(image)
        for category in ("adversarial", "popular", "random"):
            for turn in range(6):
                yes = turn % 2 == 0
                if apart and (image % 3, image // 3 % 2 == 0) != (
                    ("adversarial", "popular", "random").index(category),
                    yes,
                ):
                    continue
                what = f"thing {turn}" if yes else f"{category} {turn}"
                rows.append(
                    {
                        "question_id": str(len(rows)),
                        "question": f"Is there a {what} in the image?",
                        "answer": "yes" if yes else "no",
                        "image_source": f"COCO_{image:06}",
                        "image": shown,
                        "category": category,
                    }
                )
    return rows


ORDERS = {
    "category": lambda row: (row["category"], row["answer"], row["image_source"]),
    "answer": lambda row: (row["answer"], row["category"], row["image_source"]),
    "image": lambda row: (row["image_source"], row["category"]),
}


def load(rows: list[dict[str, Any]], path: Path, limit: int | None, **values: Any) -> Samples:
    datasets.Dataset.from_list(rows).to_parquet(path)
    settings = {"name": "pope", "source": str(path), "tuning_share": 0, **values}
    return benchmarks.load(benchmarks.from_settings(settings), "held_out", limit)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_pope_in_unkind_orders(order: str, apart: bool, tmp_path: Path) -> None:
    rows = sorted(pope_rows(apart), key=ORDERS[order])
    whole = load(rows, tmp_path / "rows.parquet", None)
    sizes = Counter(sample.image_id for sample in whole)
    drawn = {limit: load(rows, tmp_path / "rows.parquet", limit) for limit in (160, 200, 400)}
    for limit, samples in drawn.items():
        assert limit - max(sizes.values()) < len(samples) <= limit
        assert all(count == sizes[name] for name, count in Counter(s.image_id for s in samples).items())
        parts = Counter((name, s.gold) for s in samples for name in s.categories)
        assert len(parts) == 6
        assert max(parts.values()) - min(parts.values()) <= max(sizes.values())
        assert sum(sample.weight for sample in samples) == pytest.approx(len(samples))
    shuffled = random.Random(1).sample(rows, len(rows))
    again = load(shuffled, tmp_path / "shuffled.parquet", 200, gap=16, prompt="vlmevalkit")
    names = {limit: [sample.id for sample in samples] for limit, samples in drawn.items()}
    assert names[400][: len(names[200])] == names[200]
    assert names[200][: len(names[160])] == names[160]
    assert {sample.id for sample in again} == set(names[200])


def test_scienceqa_sorted_by_subject_grade_and_answer(tmp_path: Path) -> None:
    """A model that knows one subject: the score of 200 rows is that of all, within its interval."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(1200):
        subject = rng.choice(["natural science", "social science", "language science"])
        rows.append(
            {
                "image": picture(number),
                "question": rng.choice(["Which is it?", "What is it?", "Is it so?"]),
                "choices": ["a", "b", "c", "d"][: rng.randint(2, 4)],
                "answer": rng.randint(0, 1),
                "hint": "",
                "subject": subject,
                "grade": f"grade{rng.randint(1, 12)}",
                "topic": subject,
            }
        )
    rows.sort(key=lambda row: (row["subject"], row["grade"], row["answer"]))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    benchmark = benchmarks.from_settings(
        {"name": "scienceqa", "source": str(tmp_path / "rows.parquet"), "config": None}
    )
    whole, drawn = (benchmarks.load(benchmark, "held_out", limit) for limit in (None, 200))

    def score(samples: Samples) -> list[float]:
        return [benchmark.score(s.gold if "natural" in s.categories[0] else "Z", s).score for s in samples]

    interval = accuracy_interval(score(drawn), [sample.image_id for sample in drawn])
    truth = sum(score(whole)) / len(whole)
    assert interval.low <= truth <= interval.high
    first = score(whole[:200])
    assert abs(sum(first) / 200 - truth) > 0.2  # the first rows would have been far off
    for values in (lambda s: s.categories[0], lambda s: s.gold, lambda s: s.question, lambda s: s.strata[0]):
        expected, found = (Counter(map(values, samples)) for samples in (whole, drawn))
        for name, count in expected.items():
            assert abs(found[name] / 200 - count / 1200) < 0.03, name


def test_gqa_and_textvqa_with_images_of_many_questions() -> None:
    """Any set: a split sorted by kind of question, whose images have 1 to 9 of them."""
    rng = random.Random(2)
    samples = []
    for image in range(300):
        kind = ("Is", "What", "Who", "Where")[image // 75]
        for turn in range(rng.randint(1, 9)):
            answer = rng.choice(["yes", "no"]) if kind == "Is" else f"word {rng.randint(0, 400)}"
            samples.append(Sample(f"{image}-{turn}", f"i{image}", Picture(lambda: b""), f"{kind} {turn}?", "", answer))
    order = fair_order(samples)
    assert sorted(order) == sorted(by_image(samples))
    first = [sample for name in order[:60] for sample in by_image(samples)[name]]
    whole = Counter(sample.question.split()[0] for sample in samples)
    for kind, count in Counter(sample.question.split()[0] for sample in first).items():
        assert abs(count / len(first) - whole[kind] / len(samples)) < 0.03
    assert fair_order(samples[::-1]) == order


def test_what_is_rare_comes_in_its_turn() -> None:
    """Three of a hundred images have an answer of their own: one is drawn in the first half, none is put off."""
    samples = [
        Sample(str(n), f"i{n}", Picture(lambda: b""), "What?", "", "rare" if n < 3 else "common") for n in range(100)
    ]
    rare = [place for place, name in enumerate(fair_order(samples)) if int(name[1:]) < 3]
    assert rare[0] < 34
    assert 34 <= rare[1] < 67
    assert rare[2] >= 67


def test_a_small_file_says_that_there_is_no_more(tmp_path: Path) -> None:
    mini_scienceqa.dataset("held_out", 8).to_parquet(tmp_path / "rows.parquet")
    benchmark = benchmarks.from_settings(
        {"name": "scienceqa", "source": str(tmp_path / "rows.parquet"), "config": None}
    )
    assert benchmarks.load(benchmark, "held_out", 100).notes == ["8 samples for a limit of 100: there are no more"]
    assert benchmarks.load(benchmark, "held_out", 7).notes == ["4 samples for a limit of 7: images are taken whole"]
    assert benchmarks.load(benchmark, "held_out", 8).notes == []


@pytest.mark.parametrize("name", ["mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"])
def test_twins_are_drawn_by_whole_images(name: str) -> None:
    benchmark = benchmarks.from_settings({"name": name})
    sizes = Counter(sample.image_id for sample in benchmarks.load(benchmark, "tuning"))
    small, large = (benchmarks.load(benchmark, "tuning", limit) for limit in (50, 101))
    assert [s.id for s in large][: len(small)] == [s.id for s in small]
    for limit, samples in ((50, small), (101, large)):
        assert limit - 12 < len(samples) <= limit
        assert all(count == sizes[name] for name, count in Counter(s.image_id for s in samples).items())
