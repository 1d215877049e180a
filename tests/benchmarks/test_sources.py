"""Every real set's loader on rows in its schema that we made: Parquet, folder, saved directory; bad rows by name."""

import io
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
from PIL import Image

from tdrs import benchmarks
from tdrs.benchmarks import mini_gqa, mini_pope, mini_scienceqa, mini_textvqa
from tdrs.benchmarks.benchmark import Picture, Rule, Sample, Samples
from tdrs.benchmarks.rows import open_rows
from tdrs.benchmarks.sources import Sourced
from tdrs.settings import SettingError

FORMS = ("parquet", "folder", "carded", "saved", "saved_dict")
# benchmark → the split that is reported, its configuration, fixture rows, the twin whose samples they are
REAL: dict[str, tuple[str, str, Callable[[], datasets.Dataset]]] = {
    "scienceqa": ("test", "ScienceQA-IMG", lambda: mini_scienceqa.dataset("held_out", 8, 5)),
    "textvqa": ("validation", "default", lambda: mini_textvqa.dataset("held_out", 8)),
    "pope": ("test", "default", lambda: mini_pope.dataset("held_out", 4)),
}


def write(rows: datasets.Dataset, form: str, folder: Path, config: str, split: str) -> Path:
    """The rows as a user may have them; returns `dataset.source`."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        rows.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    if form == "saved":
        rows.save_to_disk(str(folder / config))
    elif form == "saved_dict":
        datasets.DatasetDict({split: rows}).save_to_disk(str(folder / config))
    else:
        (folder / config).mkdir()
        rows.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
    if form == "carded":
        with (folder / "README.md").open("a") as card:
            if card.tell() == 0:
                card.write("---\nconfigs:\n---\n")
        lines = (folder / "README.md").read_text().splitlines()
        entry = [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {config}/{split}-*"]
        (folder / "README.md").write_text("\n".join([*lines[:-1], *entry, "---", ""]))
    return folder


def load(values: dict[str, Any], split: str = "held_out", limit: int | None = None, style: str = "llava") -> Samples:
    return benchmarks.load(benchmarks.from_settings(values), split, limit, style)


def settings(name: str, source: Path, **values: Any) -> dict[str, Any]:
    given = {"name": name, "source": str(source), **values}
    if name in ("scienceqa", "textvqa"):
        given.setdefault("config", REAL[name][1])
    if name == "pope":
        given |= {"config": "default", "tuning_share": values.get("tuning_share", 0)}
    return given


def twin(name: str, limit: int | None = 8, gap: int = 0) -> list[str]:
    values: dict[str, Any] = {"name": f"mini_{name}", "gap": gap}
    return [sample.prompt for sample in load(values, limit=limit)]


def test_folders_of_one_name_and_files_that_change_are_told_apart(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / f"version {min(number, 1)}" / "ScienceQA"
        shutil.rmtree(folder, ignore_errors=True)
        rows = datasets.Dataset.from_dict({"number": [number]})
        write(rows, "carded", folder, "ScienceQA-IMG", "test")
        assert open_rows(str(folder), "ScienceQA-IMG", "test")["number"][:] == [number]
    with pytest.raises(SettingError, match="has no split 'validation', but test"):
        open_rows(str(folder), "ScienceQA-IMG", "validation")


def test_a_file_that_is_replaced_at_its_size_and_time_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for number in (1, 2, 3):
        datasets.Dataset.from_dict({"number": [number] * 50}).to_parquet(path)
        os.utime(path, (1e9, 1e9))
        assert open_rows(str(path), None, "test")["number"][:1] == [number]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REAL)
def test_local_sources(name: str, form: str, tmp_path: Path) -> None:
    split, config, make = REAL[name]
    source = write(make(), form, tmp_path, config, split)
    values = settings(name, source, **({"ocr_tokens": False} if name == "textvqa" else {}))
    samples = load(values)
    expected = twin(name, {"scienceqa": 8, "textvqa": 8, "pope": 2400}[name], 5 if name == "scienceqa" else 0)
    assert [sample.prompt for sample in samples] == expected[: len(samples)]
    assert len(samples) == (8 if name != "pope" else len({row["image_source"] + row["question"] for row in make()}))
    assert samples[0].image.size == (64, 64)
    assert len(load(values, limit=3)) == (2 if name == "textvqa" else 3)  # whole images, but one at least


@pytest.mark.parametrize("form", FORMS)
def test_gqa_joins_two_tables(form: str, tmp_path: Path) -> None:
    questions, images = mini_gqa.tables("held_out", 8)
    source = write(questions, form, tmp_path / "q", "testdev_balanced_instructions", "testdev")
    values: dict[str, Any] = {"name": "gqa"}
    if form == "parquet":
        values["images"] = str(write(images, form, tmp_path / "i", "testdev_balanced_images", "testdev"))
    else:
        write(images, form, tmp_path / "q", "testdev_balanced_images", "testdev")
    samples = load({**values, "source": str(source)})
    assert [sample.prompt for sample in samples] == twin("gqa")
    assert [sample.image_id for sample in samples] == ["held_out-0"] * 4 + ["held_out-1"] * 4
    assert samples[7].image.tobytes() == Image.fromarray(mini_gqa.scene("held_out", 1, 0)[1]).tobytes()


def test_gqa_names_an_image_that_is_not_there(tmp_path: Path) -> None:
    questions, images = mini_gqa.tables("held_out", 8)
    source = write(questions, "folder", tmp_path, "testdev_balanced_instructions", "testdev")
    write(images.select([0]), "folder", tmp_path, "testdev_balanced_images", "testdev")
    values: dict[str, Any] = {"name": "gqa", "source": str(source)}
    with pytest.raises(SettingError, match="4 unusable of 8 rows: row 4 has no image: held_out-1 is not among"):
        load(values)
    samples = load({**values, "bad_rows": "skip"})
    assert len(samples) == 4
    assert samples.notes[0].startswith(f"4 rows of {source} left out: row 4 has no image")
    with pytest.raises(SettingError, match=r"dataset.images = .*nothing': no such file or folder"):
        load({**values, "images": str(tmp_path / "nothing")})
    with pytest.raises(SettingError, match="must be configuration/split"):
        load({**values, "held_out": "testdev"})


def damaged(name: str) -> datasets.Dataset:
    """Fixture rows whose row 1 has no image and whose row 2 has half of one."""
    rows = REAL[name][2]().cast_column("image", datasets.Image(decode=False))

    def damage(row: dict[str, Any], number: int) -> dict[str, Any]:
        whole = row["image"]["bytes"]
        return {"image": {1: None, 2: {"bytes": whole[: len(whole) // 2], "path": None}}.get(number, row["image"])}

    features = rows.features.copy()
    features["image"] = datasets.Image(decode=False)
    made = rows.map(damage, with_indices=True, features=features)
    if name in ("pope", "textvqa"):  # each row its own picture, as far as its name goes
        key = {"pope": "image_source", "textvqa": "image_id"}[name]
        made = made.map(lambda row, number: {key: f"picture {number}"}, with_indices=True)
    return made


@pytest.mark.parametrize("name", REAL)
def test_missing_and_corrupt_images_are_refused_or_counted(name: str, tmp_path: Path) -> None:
    split, config, make = REAL[name]
    source = write(damaged(name), "parquet", tmp_path, config, split)
    count = len(make())
    said = rf"2 unusable of {count} rows: row 1 has no image; row 2 has a corrupt image \(.+\); bad_rows=skip"
    with pytest.raises(SettingError, match=said):
        load(settings(name, source))
    samples = load(settings(name, source, bad_rows="skip"))
    assert len(samples) == count - 2
    assert "2 rows of" in samples.notes[0]
    assert "row 2 has a corrupt image" in samples.notes[0]


def test_bytes_that_are_no_image_are_corrupt(tmp_path: Path) -> None:
    """A whole file of another kind, and a decompression bomb's header."""
    rows = mini_textvqa.dataset("held_out", 4).cast_column("image", datasets.Image(decode=False))
    rows = rows.map(lambda row: {"image": {"bytes": b"<html>not found</html>", "path": None}})
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(SettingError, match="4 unusable of 4 rows: row 0 has a corrupt image"):
        load({"name": "textvqa", "source": str(tmp_path / "rows.parquet")})
    with pytest.raises(SettingError, match="has no usable row"):
        load({"name": "textvqa", "source": str(tmp_path / "rows.parquet"), "bad_rows": "skip"})


def test_textvqa_rows_with_other_than_ten_answers(tmp_path: Path) -> None:
    rows = mini_textvqa.dataset("held_out", 4)
    rows = rows.map(lambda row, n: {"answers": row["answers"][: 10 - n]}, with_indices=True)
    rows.to_parquet(tmp_path / "rows.parquet")
    values = {"name": "textvqa", "source": str(tmp_path / "rows.parquet")}
    with pytest.raises(SettingError, match="3 unusable of 4 rows: row 1 has 9 answers, not 10; row 2 has 8"):
        load(values)
    assert len(load({**values, "bad_rows": "skip"})) == 1


def test_textvqa_with_and_without_ocr_tokens(tmp_path: Path) -> None:
    rows = mini_textvqa.dataset("held_out", 2)
    rows.to_parquet(tmp_path / "rows.parquet")
    values = {"name": "textvqa", "source": str(tmp_path / "rows.parquet")}
    line = f"\nReference OCR token: {', '.join(rows[0]['ocr_tokens'])}\n"
    for ocr, style, listed in (
        (None, "llava", True),
        (None, "internvl", False),
        (True, "vlmevalkit", True),
        (False, "llava", False),
    ):
        assert (line in load({**values, "ocr_tokens": ocr}, style=style)[0].prompt) == listed


def test_scienceqa_rows_with_an_answer_beyond_the_choices(tmp_path: Path) -> None:
    rows = mini_scienceqa.dataset("held_out", 3).map(lambda row, n: {"answer": 9 if n == 1 else 0}, with_indices=True)
    rows.to_parquet(tmp_path / "rows.parquet")
    values = {"name": "scienceqa", "source": str(tmp_path / "rows.parquet"), "config": None}
    with pytest.raises(SettingError, match="1 unusable of 3 rows: row 1 has answer 9 of"):
        load(values)


def test_pope_asks_each_pair_once_and_tells_its_forms_apart(tmp_path: Path) -> None:
    """A set of 500 images in the schema of the real one, once fixed and once with the old random part."""
    tiny = Image.new("RGB", (2, 2))
    buffer = io.BytesIO()
    tiny.save(buffer, "PNG")
    picture = {"bytes": buffer.getvalue(), "path": None}
    rows: list[dict[str, Any]] = []
    for category in ("adversarial", "popular", "random"):
        for image in range(500):
            for turn in range(6):
                yes = turn % 2 == 0
                what = f"thing {turn}" if yes else f"{category} {turn}"
                if category == "random" and image < 90 and turn == 5:
                    what = ""  # left out in the old form
                rows.append(
                    {
                        "question_id": str(len(rows)),
                        "question": f"Is there a {what} in the image?",
                        "answer": "yes" if yes else "no",
                        "image_source": f"COCO_val2014_{image:012}",
                        "image": picture,
                        "category": category,
                    }
                )
    fixed = datasets.Dataset.from_list(rows)
    fixed.to_parquet(tmp_path / "fixed.parquet")
    old = fixed.filter(lambda row: row["question"] != "Is there a  in the image?")
    old.to_parquet(tmp_path / "old.parquet")
    values: dict[str, Any] = {"name": "pope", "tuning_share": 0}
    whole = load({**values, "source": str(tmp_path / "fixed.parquet"), "rows": 9000})
    assert len(whole) == 1500 + 3 * 1500
    assert "9000 rows (3000 adversarial, 3000 popular, 3000 random)" in whole.notes[0]
    assert "(the random part is POPE's fixed)" in whole.notes[0]
    before = load({**values, "source": str(tmp_path / "old.parquet")})
    assert "2910 random) (the random part is POPE's before its fix)" in before.notes[0]
    with pytest.raises(SettingError, match=r"dataset.rows = 9000: .* has 8910 rows in the held-out split; null"):
        load({**values, "source": str(tmp_path / "old.parquet"), "rows": 9000})
    parts = {
        split: load({**values, "source": str(tmp_path / "fixed.parquet"), "tuning_share": 0.2}, split)
        for split in ("tuning", "held_out")
    }
    images = {split: {sample.image_id for sample in samples} for split, samples in parts.items()}
    assert not images["tuning"] & images["held_out"]
    assert len(images["tuning"] | images["held_out"]) == 500
    assert 70 < len(images["tuning"]) < 130
    with pytest.raises(SettingError, match="tuning_share = 0: leaves no image for the tuning split"):
        load({**values, "source": str(tmp_path / "fixed.parquet")}, "tuning")


@pytest.mark.parametrize("name", REAL)
def test_a_missing_column_is_named(name: str, tmp_path: Path) -> None:
    REAL[name][2]().remove_columns("question").to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(SettingError, match=r"dataset.source = .*rows.parquet': lacks the column question; needed are"):
        load(settings(name, tmp_path / "rows.parquet"))


@pytest.mark.parametrize("name", ["scienceqa", "gqa", "textvqa", "pope"])
def test_what_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"dataset.source = .*nothing': no such file or folder, and not a hub id"):
        load({"name": name, "source": str(tmp_path / "nothing")})
    with pytest.raises(SettingError, match=r"dataset.source = 'lmms-lab/nothing': cannot be read as split") as error:
        load({"name": name, "source": "lmms-lab/nothing"})
    assert "\n" not in str(error.value)


def test_the_count_of_rows_is_checked(tmp_path: Path) -> None:
    mini_scienceqa.dataset("held_out", 4).to_parquet(tmp_path / "rows.parquet")
    values = {"name": "scienceqa", "source": str(tmp_path / "rows.parquet"), "rows": 2017}
    with pytest.raises(SettingError, match=r"dataset.rows = 2017: .* has 4 rows in the held-out split; null takes any"):
        load(values, limit=2)
    assert len(load({**values, "rows": 4})) == 4


@pytest.mark.parametrize("name", ["scienceqa", "textvqa", "pope"])
def test_distance_works_on_real_sets_too(name: str, tmp_path: Path) -> None:
    split, config, make = REAL[name]
    source = write(make(), "parquet", tmp_path, config, split)
    plain = load(settings(name, source))
    between = load(settings(name, source, gap=12))
    before = load(settings(name, source, gap=12, filler="before_image"))
    for one, two, three in zip(plain, between, before, strict=True):
        assert three.prompt == one.prompt
        text = three.before.removeprefix("Context: ").rstrip()
        assert len(text.replace(".", " .").split()) == 12
        assert text in two.prompt
        assert two.before == ""


@dataclass(frozen=True, kw_only=True)
class Captions(Sourced):
    """A benchmark of one's own: the columns, a sample for a row, and a rule."""

    real: ClassVar[str] = "captions"
    columns: ClassVar[tuple[str, ...]] = ("name", "image", "caption")
    image_column: ClassVar[str] = "name"
    id_column: ClassVar[str] = "name"
    rules: ClassVar[Mapping[str, Rule]] = {"lower": Rule(lambda prediction, sample: prediction.lower())}
    rule: str = "lower"
    held_out: str = "test"

    def sample(
        self, row: Any, number: int, picture: Picture, image: str, style: str, context: tuple[str, str]
    ) -> Sample:
        prompt = f"{context[1]}What is it?"
        return Sample(row["name"], image, picture, "What is it?", prompt, row["caption"], context[0])


def test_a_benchmark_of_ones_own_takes_a_class(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    table = [{"name": f"i{n}", "image": image, "caption": "a square"} for n, image in enumerate(images)]
    columns = {"name": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
    datasets.Dataset.from_list(table, features=datasets.Features(columns)).to_parquet(tmp_path / "rows.parquet")
    mine = Captions(source=f"{tmp_path}/rows.parquet", gap=5)
    samples = benchmarks.load(mine, "held_out")
    assert [sample.id for sample in samples] == ["i0", "i1", "i2"]
    assert samples[0].prompt.endswith(".What is it?")
    assert len(benchmarks.load(mine, "held_out", 2)) == 2
    records = [mine.score("A square", samples[0]), mine.score("a circle", samples[1])]
    assert mine.metrics(records) == {"accuracy": 0.5}
