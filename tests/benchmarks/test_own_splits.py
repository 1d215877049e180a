"""The splits of a user's own questions: no row and no image is in both, and nothing is asked twice without a word."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tdrs import benchmarks
from tdrs.benchmarks.benchmark import Samples
from tdrs.settings import SettingError

COLORS = ("red", "green", "blue", "white", "black", "gray")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures, and a copy of the first."""
    for color in COLORS:
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{color}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "red.png").read_bytes())
    return tmp_path


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": "What?", "answer": "red", **row}) + "\n" for row in rows))
    return path


def load(source: Path, split: str = "held_out", name: str = "own", **values: Any) -> Samples:
    settings = {"name": name, "source": str(source), **values}
    return benchmarks.load(benchmarks.from_settings(settings), split)


@pytest.mark.parametrize(
    ("value", "told"), [(None, "no split"), (True, "split True, not text"), (" ", "an empty split")]
)
def test_a_row_without_a_split_is_a_bad_row_of_both(folder: Path, value: Any, told: str) -> None:
    rows = [{"image": f"{color}.png", "split": "tuning" if n < 3 else "held_out"} for n, color in enumerate(COLORS)]
    source = write(folder, [*rows, {"image": "copy.png", "split": value}])
    for split in benchmarks.SPLITS:
        with pytest.raises(SettingError, match=rf"1 unusable of 4 rows: row 6 \(line 7\) has {told}; bad_rows=skip"):
            load(source, split)
        assert len(load(source, split, bad_rows="skip")) == 3


def test_the_column_of_splits_may_have_numbers(folder: Path) -> None:
    source = write(folder, [{"image": f"{color}.png", "split": n % 3} for n, color in enumerate(COLORS)])
    samples = load(source, tuning="0", held_out="1")
    assert [sample.id for sample in samples] == ["1", "4"]
    assert samples.notes == ["rows of other splits are not used: 2 of '2'"]


@pytest.mark.parametrize("names", [{}, {"image_id": "a"}, {"image_id": 1}])
def test_an_image_in_both_splits_is_refused(folder: Path, names: dict[str, Any]) -> None:
    rows = [
        {"image": "red.png", "split": "tuning", **names},
        {"image": "blue.png", "split": "held_out", "image_id": "b"},
    ]
    rows.append({"image": "red.png", "question": "Why?", "split": "held_out", **{k: str(v) for k, v in names.items()}})
    source = write(folder, rows if names else [{k: v for k, v in row.items() if k != "image_id"} for row in rows])
    for split in benchmarks.SPLITS:
        with pytest.raises(SettingError) as error:
            load(source, split)
        assert str(error.value) == (
            f"dataset.column.split = 'split': {source} has one image in both splits: "
            "row 0 (line 1) in the split tuning, row 2 (line 3) in held_out; column.split=null splits by image"
        )
    assert len(load(source, column={"split": None}, tuning_share=0)) == 3


def test_one_picture_under_two_names_is_refused_in_both_splits_too(folder: Path) -> None:
    rows = [{"image": "red.png", "image_id": "a", "split": "tuning"}]
    source = write(folder, [*rows, {"image": "copy.png", "image_id": "b", "split": "held_out"}])
    with pytest.raises(SettingError, match="has one image in both splits: row 0"):
        load(source)


def test_names_of_the_same_picture_are_one_image(folder: Path) -> None:
    rows = [{"image": ("red.png", "copy.png")[n % 2], "image_id": f"name {n}", "question": f"{n}?"} for n in range(20)]
    others = [{"image": f"{color}.png", "image_id": f" {color}", "question": "What?"} for color in COLORS[1:]]
    source = write(folder, [*rows, *others, {**others[0], "image_id": "green", "question": "Why?"}])
    parts = {split: load(source, split, tuning_share=0.5) for split in benchmarks.SPLITS}
    assert sum(map(len, parts.values())) == 26
    digests = [{sample.picture.digest for sample in part} for part in parts.values()]
    assert not digests[0] & digests[1]
    assert {sample.image_id for part in parts.values() for sample in part} == {"name 0", *COLORS[1:]}
    assert parts["tuning"].notes == ["19 names are of an image that also has another name; they count as one image"]


def test_a_picture_in_lists_of_both_splits_is_noted(folder: Path) -> None:
    lists = [["red.png", f"{color}.png"] for color in COLORS[1:]]
    rows = [{"image": some, "split": ("tuning", "held_out")[n % 2]} for n, some in enumerate(lists)]
    notes = load(write(folder, rows)).notes
    assert "1 pictures are in both splits, in other lists of pictures; a column image_id joins such questions" in notes
    assert not [note for note in load(write(folder, rows[:2]), tuning="x").notes if "in both splits, in" in note]


def test_a_column_of_names_joins_lists_with_common_pictures(folder: Path) -> None:
    """The same question may have another answer about other pictures; without a common picture, a name is wrong."""
    lists = [["red.png"], ["red.png", "blue.png"], ["green.png", "blue.png"], ["green.png"]]
    rows = [{"image": some, "image_id": "scene", "answer": f"{n}"} for n, some in enumerate(lists)]
    samples = load(write(folder, rows), tuning_share=0)
    assert [sample.image_id for sample in samples] == ["scene"] * 4
    assert samples.notes == []
    again = write(folder, [*rows, {**rows[1], "answer": "7"}])
    with pytest.raises(SettingError, match=r"row 4 \(line 5\) has another answer than row 1"):
        load(again, tuning_share=0)
    with pytest.raises(SettingError, match=r"row 4 \(line 5\) has another picture than row 0, under the same name of"):
        load(write(folder, [*rows, {"image": ["gray.png", "white.png"], "image_id": "scene"}]), tuning_share=0)
    split = [{**row, "image_id": f"scene {n}", "split": ("tuning", "held_out")[n // 2]} for n, row in enumerate(rows)]
    assert "1 pictures are in both splits" in " ".join(load(write(folder, split)).notes)
    last = {"image": ["red.png", "gray.png"], "image_id": "other", "split": "held_out"}
    others = [{**row, "split": "tuning"} for row in rows]
    assert "1 pictures are in both splits" in " ".join(load(write(folder, [*others[::-1], last])).notes)


def test_passages_are_split_like_pictures(folder: Path) -> None:
    rows = [{"passage": "Red is a colour.", "passage_id": f"p{n}", "question": f"{n}?"} for n in range(20)]
    source = write(folder, [*rows, *({"passage": f"{color}.", "passage_id": color} for color in COLORS)])
    parts = [load(source, split, "text", tuning_share=0.5) for split in benchmarks.SPLITS]
    assert sum(map(len, parts)) == 26
    assert not {sample.picture.digest for sample in parts[0]} & {sample.picture.digest for sample in parts[1]}


def test_a_question_may_be_asked_again_but_not_with_another_answer(folder: Path) -> None:
    row = {"image": "red.png", "answer": ["red", "Crimson"]}
    source = write(folder, [row, {**row, "answer": ["crimson", "red"]}, {**row, "question": "Why?"}])
    samples = load(source, tuning_share=0)
    assert len(samples) == 3
    assert samples.notes == ["1 rows ask a question about an image again; each counts"]
    source = write(folder, [row, {**row, "image": "copy.png", "answer": "blue"}])
    with pytest.raises(
        SettingError, match=r"row 1 \(line 2\) has another answer than row 0 to the same question about the"
    ):
        load(source, tuning_share=0)


def test_each_picture_of_a_text_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(folder, [{"image": f"{color}.png", "question": f"{n}?"} for color in COLORS for n in range(5)])
    read: Counter[str] = Counter()
    whole = Path.read_bytes

    def counted(path: Path) -> bytes:
        read[path.name] += 1
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    assert len(load(source, tuning_share=0)) == 30
    assert max(read[f"{color}.png"] for color in COLORS) <= 2  # for its hash, and to be decoded
