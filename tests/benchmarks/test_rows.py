"""A row is a sample, or a bad row that is named and counted: fields of every wrong kind, in every real set."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Features, List, Value
from PIL import Image

from tdrs import benchmarks
from tdrs.benchmarks import gqa, pope, scienceqa, textvqa
from tdrs.benchmarks.benchmark import Samples
from tdrs.settings import SettingError


def png(color: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = {"bytes": png(), "path": None}
SCIENCEQA = {
    "image": PICTURE,
    "question": "Which?",
    "choices": ["one", "two", "three"],
    "answer": 1,
    "hint": "",
    **dict.fromkeys(("task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"), ""),
}
TEXTVQA = {
    "image_id": "i",
    "question_id": 1,
    "question": "what?",
    "image": PICTURE,
    "answers": ["a"] * 10,
    "ocr_tokens": ["x"],
}
POPE = {
    "question_id": "1",
    "question": "Is there a cat?",
    "answer": "yes",
    "image_source": "i",
    "image": PICTURE,
    "category": "random",
}


def load(name: str, rows: list[dict[str, Any]], folder: Path, features: Any = None, **values: Any) -> Samples:
    known = {"scienceqa": scienceqa, "textvqa": textvqa, "pope": pope}[name].FEATURES
    table = datasets.Dataset.from_list(rows, features=Features({**known, **(features or {})}))
    table.to_parquet(folder / "rows.parquet")
    settings = {"name": name, "source": str(folder / "rows.parquet"), **values}
    settings |= {"tuning_share": 0} if name == "pope" else {"config": None}
    return benchmarks.load(benchmarks.from_settings(settings), "held_out")


def check(name: str, good: dict[str, Any], change: dict[str, Any], said: str, folder: Path, features: Any) -> None:
    """The second of three rows is changed: refused with these words, or left out and counted."""
    own = {"textvqa": "question_id", "pope": "question"}.get(name)
    rows = [
        {**good, **({own: (number if own == "question_id" else f"What {number}?")} if own else {})}
        for number in range(3)
    ]
    rows[1] |= change
    with pytest.raises(SettingError) as error:
        load(name, rows, folder, features)
    assert f": 1 unusable of 3 rows: row 1 has {said}" in str(error.value)
    assert "\n" not in str(error.value)
    samples = load(name, rows, folder, features, bad_rows="skip")
    assert len(samples) == 2
    assert samples.notes[0].startswith("1 rows of ")
    assert f"row 1 has {said}" in samples.notes[0]


TEXT, FLOAT = {"answer": Value("string")}, {"answer": Value("float32")}
STRUCT = {"bytes": Value("binary"), "path": Value("string")}
PLAIN = {"image": STRUCT}  # a column that does not say it holds pictures


@pytest.mark.parametrize(
    ("change", "said", "features"),
    [
        ({"question": None}, "no question", None),
        ({"question": " \n"}, "an empty question", None),
        ({"question": "NaN"}, "question 'NaN', a missing value that was written as text", None),
        ({"hint": "nan"}, "hint 'nan', a missing value", None),
        ({"choices": None}, "no choices", None),
        ({"choices": []}, "0 options, not 2 to 26", None),
        ({"choices": ["one"], "answer": 0}, "1 options, not 2 to 26", None),
        ({"choices": [str(n) for n in range(27)]}, "27 options, not 2 to 26", None),
        ({"choices": ["one", None, "three"]}, "None as item 1 of choices, not text", None),
        ({"choices": ["one", " ", "three"]}, "an empty option 1", None),
        ({"choices": ["one", "nan", "three"]}, "option 1 'nan', a missing value", None),
        ({"answer": None}, "no answer", None),
        ({"answer": -1}, "answer -1 of 3 options", None),
        ({"answer": 3}, "answer 3 of 3 options", None),
        ({"answer": "D"}, "answer 'D', not a number or letter of an option", TEXT),
        ({"answer": "AB"}, "answer 'AB', not a number or letter", TEXT),
        ({"answer": "1"}, "answer '1', not a number or letter", TEXT),
        ({"answer": 0.5}, "answer 0.5, not a number or letter", FLOAT),
        ({"answer": float("nan")}, "answer nan, not a number or letter", FLOAT),
        ({"image": None}, "no image", None),
        ({"image": {"bytes": None, "path": "gone.png"}}, "no image: 'gone.png' is no file", PLAIN),
        ({"image": {"bytes": png()[:40], "path": None}}, "a corrupt image (", None),
        ({"image": {"bytes": b"GIF89a", "path": None}}, "a corrupt image (", None),
    ],
)
def test_scienceqa_rows(change: dict[str, Any], said: str, features: Any, tmp_path: Path) -> None:
    good = SCIENCEQA | ({"answer": "B"} if features is TEXT else {})
    check("scienceqa", good, change, said, tmp_path, features)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question_id": 0}, "the question_id of row 0"),
        ({"question_id": None}, "no question_id"),
        ({"image_id": None}, "no image_id"),
        ({"question": None}, "no question"),
        ({"answers": None}, "no answers"),
        ({"answers": ["a"] * 9 + [None]}, "None as item 9 of answers, not text"),
        ({"answers": ["a"] * 11}, "11 answers, not 10"),
        ({"ocr_tokens": None}, "no ocr_tokens"),
        ({"ocr_tokens": ["a", None]}, "None as item 1 of ocr_tokens, not text"),
        (
            {"image": {"bytes": png("blue"), "path": None}},
            "another picture than row 0, under the same name of an image",
        ),
    ],
)
def test_textvqa_rows(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    check("textvqa", TEXTVQA, change, said, tmp_path, None)


def test_ocr_tokens_that_are_not_asked_for_may_be_missing(tmp_path: Path) -> None:
    rows = [TEXTVQA, TEXTVQA | {"question_id": 2, "ocr_tokens": None}]
    assert len(load("textvqa", rows, tmp_path, ocr_tokens=False)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category": None}, "no category"),
        ({"category": "easy"}, "category 'easy', not adversarial"),
        ({"answer": None}, "no answer"),
        ({"answer": "Yes."}, "answer 'Yes.', not yes or no"),
        ({"image_source": None}, "no image_source"),
        ({"question": ""}, "an empty question"),
        ({"question": "What 0?"}, "the image, question and category of row 0"),
        (
            {"question": "What 0?", "category": "popular", "answer": "no"},
            "another answer than row 0 to the same question",
        ),
        (
            {"image": {"bytes": png("blue"), "path": None}},
            "another picture than row 0, under the same name of an image",
        ),
    ],
)
def test_pope_rows(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    check("pope", POPE, change, said, tmp_path, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "q0"}, "the id of row 0"),
        ({"id": None}, "no id"),
        ({"imageId": None}, "no imageId"),
        ({"imageId": "twice"}, "no image: twice is twice among the images"),
        ({"imageId": "gone"}, "no image: gone is not among the images"),
        ({"question": None}, "no question"),
        ({"answer": None}, "no answer"),
        ({"answer": ""}, "an empty answer"),
    ],
)
def test_gqa_rows(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    rows = [{"id": f"q{n}", "imageId": "i", "question": "Is it?", "answer": "yes"} for n in range(3)]
    rows[1] |= change
    datasets.Dataset.from_list(rows, features=gqa.QUESTIONS).to_parquet(tmp_path / "q.parquet")
    images = [{"id": name, "image": PICTURE} for name in ("i", "twice", "twice")]
    datasets.Dataset.from_list(images, features=gqa.IMAGES).to_parquet(tmp_path / "i.parquet")
    settings = {"name": "gqa", "source": str(tmp_path / "q.parquet"), "images": str(tmp_path / "i.parquet")}
    with pytest.raises(SettingError, match=f"1 unusable of 3 rows: row 1 has {said}"):
        benchmarks.load(benchmarks.from_settings(settings), "held_out")
    samples = benchmarks.load(benchmarks.from_settings({**settings, "bad_rows": "skip"}), "held_out")
    assert [sample.id for sample in samples] == ["q0", "q2"]


@pytest.mark.parametrize(
    ("value", "feature"),
    [
        (png(), Value("binary")),
        (base64.b64encode(png()).decode(), Value("string")),
        ("data:image/png;base64," + base64.encodebytes(png()).decode(), Value("string")),
        ([PICTURE], List(datasets.Image())),
        (PICTURE, STRUCT),
        ("pictures/1.png", Value("string")),
        ({"bytes": None, "path": "pictures/1.png"}, STRUCT),
    ],
)
def test_pictures_in_every_form(value: Any, feature: Any, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(png())
    (sample,) = load("scienceqa", [SCIENCEQA | {"image": value}], tmp_path, {"image": feature})
    assert sample.image.getpixel((3, 3)) == (255, 0, 0)
    assert sample.image_id == sample.picture.digest


@pytest.mark.parametrize(
    ("value", "feature", "said"),
    [
        ([PICTURE, PICTURE], List(datasets.Image()), "2 images, not one"),
        ([], List(datasets.Image()), "no image"),
        ("", Value("string"), "no image"),
        ("not base64!", Value("string"), "no image: 'not base64!' is no file in"),
        (7, Value("int32"), "an image of type int"),
    ],
)
def test_what_is_no_picture(value: Any, feature: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"1 unusable of 1 rows: row 0 has {said}"):
        load("scienceqa", [SCIENCEQA | {"image": value}], tmp_path, {"image": feature})


def test_letters_and_whole_numbers_are_answers(tmp_path: Path) -> None:
    assert load("scienceqa", [SCIENCEQA | {"answer": "C"}], tmp_path, TEXT)[0].gold == "C"
    assert load("scienceqa", [SCIENCEQA | {"answer": 2.0}], tmp_path, FLOAT)[0].gold == "C"


def test_up_to_26_options_are_asked(tmp_path: Path) -> None:
    (sample,) = load("scienceqa", [SCIENCEQA | {"choices": [f"is {n}" for n in range(26)], "answer": 25}], tmp_path)
    assert sample.gold == "Z"
    assert len(sample.options) == 26
    assert "\nZ. is 25\n" in sample.prompt


def test_a_size_that_the_model_cannot_take_is_a_bad_row(tmp_path: Path) -> None:
    long = {"bytes": png(size=(400, 1)), "path": None}
    rows = [SCIENCEQA, SCIENCEQA | {"image": long}]
    datasets.Dataset.from_list(rows, features=scienceqa.FEATURES).to_parquet(tmp_path / "rows.parquet")
    settings = {"name": "scienceqa", "source": str(tmp_path / "rows.parquet"), "config": None}

    def accepts(sizes: Sequence[tuple[int, int]]) -> str:
        return "too long" if any(max(size) > 200 * min(size) for size in sizes) else ""

    with pytest.raises(SettingError, match=r"row 1 has an image of 400 × 1 pixels \(too long\)"):
        benchmarks.load(benchmarks.from_settings(settings), "held_out", accepts=accepts)
    skipping = benchmarks.from_settings({**settings, "bad_rows": "skip"})
    assert len(benchmarks.load(skipping, "held_out", accepts=accepts)) == 1
    assert len(benchmarks.load(skipping, "held_out")) == 2
