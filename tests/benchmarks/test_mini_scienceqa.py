"""The embedded twin: schema, disjoint splits, exact gaps, the same bytes on every machine."""

import hashlib
import json

import numpy as np
import pytest

from tdrs import benchmarks
from tdrs.benchmarks.filler import filler
from tdrs.benchmarks.mini_scienceqa import QUESTIONS_PER_IMAGE, dataset, rows
from tdrs.settings import SettingError
from tdrs.zoo import mini_llava


def test_columns_and_types_of_the_real_set() -> None:
    """`lmms-lab/ScienceQA`, configuration ScienceQA-IMG, as its dataset card lists them."""
    made = dataset("tuning", 8, 10)
    strings = {"question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"}
    assert set(made.column_names) == strings | {"image", "choices", "answer"}
    assert made.features["answer"].dtype == "int8"
    assert all(made.features[name].dtype == "string" for name in strings)
    assert made[0]["image"].size == (64, 64)
    assert 2 <= min(len(c) for c in made["choices"]) <= max(len(c) for c in made["choices"]) <= 5


def test_content_is_the_same_everywhere() -> None:
    digest = hashlib.sha256()
    for row in rows("held_out", 40, 32):
        digest.update(row["image"].tobytes())
        digest.update(json.dumps({k: v for k, v in row.items() if k != "image"}, sort_keys=True).encode())
    assert digest.hexdigest()[:16] == "56929b89b6d0bb2f"


def test_splits_share_no_picture() -> None:
    pictures = {
        split: {row["image"].tobytes() for row in rows(split, 400, 0)} for split in ("train", "tuning", "held_out")
    }
    assert all(len(found) == 400 // QUESTIONS_PER_IMAGE for found in pictures.values())
    assert not pictures["train"] & pictures["tuning"]
    assert not pictures["train"] & pictures["held_out"]
    assert not pictures["tuning"] & pictures["held_out"]


def test_the_gap_changes_the_hint_alone() -> None:
    for near, far in zip(rows("tuning", 12, 0), rows("tuning", 12, 256), strict=True):
        assert np.array_equal(near.pop("image"), far.pop("image"))
        assert near.pop("hint") == ""
        assert far.pop("hint") != ""
        assert near == far


@pytest.mark.parametrize("length", [0, 1, 7, 32, 256])
def test_filler_has_exactly_the_tokens_asked_for(length: int) -> None:
    tokenizer = mini_llava.processor().tokenizer
    tokens = tokenizer(filler(length, np.random.default_rng(3)), add_special_tokens=False)["input_ids"]
    assert len(tokens) == length
    assert tokenizer.unk_token_id not in tokens


def test_answers_are_right_and_unique() -> None:
    """The gold option is what the picture shows, by the question; no other option is."""
    for row in rows("tuning", 200, 0):
        assert len(set(row["choices"])) == len(row["choices"])
        assert 0 <= row["answer"] < len(row["choices"])


def test_gold_letters_are_balanced() -> None:
    """Within each number of options no letter is favoured (chi-squared far below its 0.1 % point)."""
    by_size: dict[int, list[int]] = {}
    for row in rows("held_out", 2000, 0):
        by_size.setdefault(len(row["choices"]), []).append(row["answer"])
    for size, answers in by_size.items():
        counts = np.bincount(answers, minlength=size)
        expected = len(answers) / size
        assert ((counts - expected) ** 2 / expected).sum() < 18.5


def test_limits() -> None:
    mini = benchmarks.from_settings({"name": "mini_scienceqa"})
    assert len(benchmarks.load(mini, "tuning", 8)) == 8
    less = benchmarks.load(mini, "tuning", 6)
    assert (len(less), less.notes) == (4, ["4 samples for a limit of 6: images are taken whole"])
    assert len(benchmarks.load(mini, "tuning", 3)) == 3  # of one image
    with pytest.raises(SettingError, match=r"^limit = 5000: mini_scienceqa has 2000"):
        benchmarks.load(mini, "held_out", 5000)
    with pytest.raises(SettingError, match=r"dataset.gap = -3: must be a whole number from 0 to 2048"):
        benchmarks.from_settings({"name": "mini_scienceqa", "gap": -3})
    with pytest.raises(SettingError, match=r"dataset.name = 'vqa': must be one of"):
        benchmarks.from_settings({"name": "vqa"})


def test_samples_share_image_ids_by_picture() -> None:
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa"}), "tuning", 12)
    assert [s.image_id for s in samples] == [f"tuning-{n // 4}" for n in range(12)]
    assert len({s.picture.digest for s in samples}) == 3
