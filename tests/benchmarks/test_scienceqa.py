"""The real set's loading, prompt and rule, on rows in its schema that we made."""

from pathlib import Path

import datasets
import pytest

from tdrs import benchmarks
from tdrs.benchmarks.mini_scienceqa import dataset
from tdrs.benchmarks.prompts import scienceqa_llava
from tdrs.benchmarks.scienceqa import parse_letter, score, to_samples
from tdrs.settings import SettingError


def test_prompt_is_llavas_to_the_letter() -> None:
    prompt = scienceqa_llava("What is it?", ["a cat", "a dog"], "Look closely.")
    assert prompt == (
        "Context: Look closely.\nWhat is it?\nA. a cat\nB. a dog\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert scienceqa_llava("Q?", ["x", "y"], "").startswith("Q?\nA. x\n")


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("B. a dog", "B"),
        ("The answer is C.", "C"),
        ("I think. The answer is A. Sure.", "A"),
        ("The answer is A. The answer is B.", None),
        ("b", None),
        ("B.", None),
        ("B) dog", None),
        ("", None),
        ("a dog", None),
    ],
)
def test_the_letter_rule(said: str, letter: str | None) -> None:
    assert parse_letter(said) == letter


def test_a_letter_beyond_the_choices_is_wrong() -> None:
    sample = to_samples(dataset("tuning", 1, 0), "here")[0]
    assert score(f" {sample.gold}\n", sample)
    assert not score("J", sample)


@pytest.mark.parametrize("form", ["parquet", "folder", "saved", "saved_dict"])
def test_local_sources(form: str, tmp_path: Path) -> None:
    made = dataset("tuning", 6, 5)
    settings: dict[str, object] = {"name": "scienceqa", "config": None, "tuning": "validation"}
    if form == "parquet":
        made.to_parquet(tmp_path / "rows.parquet")
        settings["source"] = str(tmp_path / "rows.parquet")
    elif form == "folder":
        (tmp_path / "data").mkdir()
        made.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
        settings["source"] = str(tmp_path)
    elif form == "saved":
        made.save_to_disk(str(tmp_path / "set"))
        settings["source"] = str(tmp_path / "set")
    else:
        datasets.DatasetDict({"validation": made}).save_to_disk(str(tmp_path / "sets"))
        settings["source"] = str(tmp_path / "sets")
    samples = benchmarks.load(benchmarks.from_settings(settings), "tuning", 4)
    assert [s.prompt for s in samples] == [s.prompt for s in to_samples(made, "here")[:4]]
    assert samples[0].image.size == (64, 64)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    dataset("tuning", 2, 0).remove_columns("hint").to_parquet(tmp_path / "rows.parquet")
    settings = {"name": "scienceqa", "source": str(tmp_path / "rows.parquet"), "config": None}
    with pytest.raises(SettingError, match=r"dataset.source = .*rows.parquet': lacks the column hint; needed are"):
        benchmarks.load(benchmarks.from_settings(settings), "tuning", None)


def test_a_missing_folder_and_a_row_without_image_are_named(tmp_path: Path) -> None:
    settings = {"name": "scienceqa", "source": str(tmp_path / "nothing"), "config": None}
    with pytest.raises(SettingError, match="no such file or folder"):
        benchmarks.load(benchmarks.from_settings(settings), "tuning", None)
    rows = dataset("tuning", 2, 0)
    rows = rows.map(lambda row, n: {"image": None if n == 1 else row["image"]}, with_indices=True)
    rows.to_parquet(tmp_path / "rows.parquet")
    settings["source"] = str(tmp_path / "rows.parquet")
    with pytest.raises(SettingError, match="row 1 has no image"):
        benchmarks.load(benchmarks.from_settings(settings), "tuning", None)
