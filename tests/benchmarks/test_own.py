"""A user's own questions: every format, every rule, splits by image, and one line for each thing that is wrong."""

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tdrs import benchmarks
from tdrs.benchmarks.benchmark import Picture
from tdrs.benchmarks.own_rules import normalised
from tdrs.configuration import compose, plain
from tdrs.evaluation import plan
from tdrs.settings import SettingError
from tests.benchmarks.own_rows import load, own, pictures, rows, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("own"))


def test_all_formats_give_the_same_samples(folder: Path, tmp_path: Path) -> None:
    lines = write(folder, rows())
    cells = folder / "questions.csv"
    quoted = "".join(f'{r["id"]},{r["image"]},"{r["question"]}",{r["answer"]}\r\n' for r in rows())
    cells.write_text(f"id,image,question,answer\r\n{quoted}")
    marked = folder / "questions.tsv"
    marked.write_text("\ufeffid\timage\tquestion\tanswer\n" + "".join("\t".join(r.values()) + "\n" for r in rows()))
    parquet = folder / "questions.parquet"
    table = [{**row, "picture": (folder / row["image"]).read_bytes()} for row in rows()]
    datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "image"} for row in table]).to_parquet(parquet)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "pictures").symlink_to(folder / "pictures")
    write(alone, rows(), "metadata.jsonl")
    sources = {"lines": lines, "csv": cells, "tsv": marked, "parquet": parquet, "folder": alone}
    contents = {name: load(source).content for name, source in sources.items()}
    assert len(set(contents.values())) == 1, contents
    samples = load(lines)
    assert [sample.id for sample in samples[:2]] == ["red0", "red1"]
    assert len({sample.image_id for sample in samples}) == 6  # the picture's content, where no column names it
    assert samples[0].image.getpixel((0, 0)) == (255, 0, 0)


def test_several_pictures_in_every_format(folder: Path) -> None:
    names = [["red"], ["red", "green"], ["green", "red"], ["blue", "blue", "white"]]
    paths = [[f"pictures/{name}.png" for name in some] for some in names]
    table = [{"id": str(n), "image": some, "question": f"What, {n}?", "answer": "x"} for n, some in enumerate(paths)]
    lines = write(folder, table, "several.jsonl")
    texts = write(folder, [{**row, "image": json.dumps(row["image"])} for row in table], "several_texts.jsonl")
    cells = folder / "several.csv"
    quoted = "".join(f'{r["id"]},{" ; ".join(r["image"])},"{r["question"]}",x\n' for r in table)
    cells.write_text(f"id,image,question,answer\n{quoted}")
    as_bytes = [{**row, "image": [(folder / path).read_bytes() for path in row["image"]]} for row in table]
    sources = {"lines": lines, "texts": texts, "csv": cells}
    for name, made in (("paths", table), ("bytes", as_bytes)):
        sources[name] = folder / f"several_{name}.parquet"
        datasets.Dataset.from_list(made).to_parquet(sources[name])
    structs = [{**row, "image": [{"bytes": one, "path": None} for one in row["image"]]} for row in as_bytes]
    features = datasets.Features({name: datasets.Value("string") for name in ("id", "question", "answer")})
    features["image"] = datasets.List(datasets.Image())
    sources["images"] = folder / "several_images.parquet"
    datasets.Dataset.from_list(structs, features=features).to_parquet(sources["images"])
    contents = {name: load(source, separator=";").content for name, source in sources.items()}
    assert len(set(contents.values())) == 1, contents
    samples = load(lines)
    corners = [[image.getpixel((0, 0)) for image in sample.images] for sample in samples]
    assert corners[1] == [(255, 0, 0), (0, 128, 0)]
    assert corners[2] == corners[1][::-1]
    assert [len(sample.picture.parts) for sample in samples] == [1, 2, 2, 3]
    assert len({sample.image_id for sample in samples}) == 4  # another order is another set
    assert samples[0].picture.digest == Picture((folder / paths[0][0]).read_bytes).digest
    assert samples.notes == [
        "2 pictures are in questions of different image_id: intervals take these as independent, "
        "both splits may have them; a column image_id can join these questions"
    ]
    grey = load(lines, blank=True)[1].images
    assert [(image.size, image.getpixel((0, 0))) for image in grey] == [((40, 40), (165, 165, 165))] * 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "no image"),
        (["pictures/red.png", None], r"no image \(image 2 of 2\)"),
        (["pictures/red.png", "gone.png"], r"no image: 'gone.png' is no file in \S+, and not base64 \(image 2 of 2\)"),
        (["questions.jsonl", "pictures/red.png"], r"a corrupt image \(.*\) \(image 1 of 2\)"),
        (["pictures/red.png", 3], r"an image of type int \(image 2 of 2\)"),
        (["pictures/red.png", ""], r"no image \(image 2 of 2\)"),
        ([["pictures/red.png", "pictures/blue.png"], "pictures/red.png"], r"2 images, not one \(image 1 of 2\)"),
        ('["pictures/red.png"', "no image: "),
        ("pictures/red.png|pictures/green.png", "no image: "),  # a separator is for CSV alone
    ],
)
def test_a_bad_picture_of_several_is_named(value: Any, said: str, folder: Path) -> None:
    write(folder, rows())
    row = {"image": value, "question": "What?", "answer": "red"}
    with pytest.raises(SettingError, match=rf"1 unusable of 1 rows: row 0 \(line 1\) has {said}"):
        load(write(folder, [row], "bad.jsonl"))


@pytest.mark.parametrize("mark", ["<image>", "<image 2>", "<image_1>", "<image1>"])
def test_a_question_that_gives_pictures_a_place(mark: str, folder: Path) -> None:
    """All pictures stand in front of the question, so a text that puts several of them elsewhere is not asked."""
    row = {**rows()[0], "question": f"What is in {mark}?"}
    both = {**row, "image": ["pictures/red.png", "pictures/green.png"]}
    said = rf"row 0 \(line 1\) has '{mark}' in its text, which gives each of its 2 pictures a place"
    with pytest.raises(SettingError, match=said):
        load(write(folder, [both], "placed.jsonl"))
    chosen = {**both, "question": "Which one?", "choices": ["red", f"{mark}"]}
    with pytest.raises(SettingError, match=said):
        load(write(folder, [chosen], "placed.jsonl"), rule="multiple_choice")
    notes = load(write(folder, [row, rows()[1]], "placed.jsonl")).notes
    assert notes == ["1 questions say where the picture stands, read as text: it is in front of them"]


def test_columns_with_more_pictures(folder: Path) -> None:
    several = {"images": ["pictures/red.png", "pictures/green.png"], "question": "What?", "answer": "red"}
    (sample,) = load(write(folder, [several], "more.jsonl"))
    assert len(sample.picture.parts) == 2
    more = {**rows()[0], "image_2": "pictures/green.png", "Image3": None, "image_path": "pictures/red.png"}
    samples = load(write(folder, [more], "more.jsonl"))
    assert [len(sample.picture.parts) for sample in samples] == [1]
    assert samples.notes == ["not used: image_2, Image3; several pictures of a row are a list in one column"]


def test_a_file_whose_name_has_the_separator_is_one_picture(folder: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(folder / "a|b.png")
    Image.new("RGB", (40, 40), "red").save(folder / "[1].png")
    path = folder / "marks.csv"
    path.write_text("image,question,answer\na|b.png,What?,red\n[1].png,Who?,red\n")
    assert [len(sample.picture.parts) for sample in load(path)] == [1, 1]


def test_a_model_of_one_picture_leaves_out_rows_of_several(folder: Path) -> None:
    source = write(folder, [{**rows()[0], "image": ["pictures/red.png", "pictures/green.png"]}, rows()[1]], "two.jsonl")

    def accepts(sizes: Sequence[tuple[int, int]]) -> str:
        return "it takes one" if len(sizes) > 1 else ""

    with pytest.raises(
        SettingError, match=r"row 0 \(line 1\) has 2 images of 40 × 40 and 40 × 40 pixels \(it takes one\)"
    ):
        benchmarks.load(own(source), "held_out", accepts=accepts)
    assert len(benchmarks.load(own(source, bad_rows="skip"), "held_out", accepts=accepts)) == 1


def test_another_row_or_picture_is_another_cache_key(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for path in (folder / "pictures").iterdir():
        (tmp_path / "pictures" / path.name).write_bytes(path.read_bytes())
    source = write(tmp_path, rows())

    def key(**values: Any) -> str:
        config = plain(compose("evaluate", ["dataset=own", f"dataset.source={source}", "dataset.tuning_share=0"]))
        config["dataset"] |= values
        planned = plan(config)
        return planned.cache_key(planned.load())

    before = key()
    write(tmp_path, [*rows()[:-1], {**rows()[-1], "answer": "grey"}])
    changed = key()
    write(tmp_path, rows())
    assert key() == before
    Image.new("RGB", (40, 40), "pink").save(tmp_path / "pictures" / "red.png")
    assert len({before, changed, key()}) == 3
    write(tmp_path, rows(answer="7"))
    assert key(rule="number", tolerance=0.1) != key(rule="number", tolerance=0.2)


def test_columns_are_mapped(folder: Path) -> None:
    source = write(
        folder, [{"q": "What?", "file": "pictures/red.png", "truth": ["red", "crimson"], "kind": "a"}], "mapped.jsonl"
    )
    with pytest.raises(
        SettingError, match=r"dataset.column.question = None: .* has the columns q, file, truth, kind; which"
    ):
        load(source)
    sample = load(source, column={"question": "q", "image": "file", "answers": "truth", "category": "kind"})[0]
    assert (sample.question, sample.gold, sample.answers, sample.categories) == (
        "What?",
        "red",
        ("red", "crimson"),
        ("a",),
    )
    with pytest.raises(SettingError, match=r"dataset.column.question = 'query': .* has no such column, but q, file"):
        load(source, column={"question": "query"})
    with pytest.raises(SettingError, match=r"dataset.column.qestion = 'q': unknown; known are question, image"):
        own(source, column={"qestion": "q"})


def test_the_split_is_by_image_or_by_a_column(folder: Path) -> None:
    source = write(folder, rows())
    parts = {split: load(source, split, tuning_share=0.5) for split in benchmarks.SPLITS}
    images = {split: {sample.image_id for sample in part} for split, part in parts.items()}
    assert images["tuning"]
    assert not images["tuning"] & images["held_out"]
    assert sum(map(len, parts.values())) == 12
    assert [s.id for s in load(source, "tuning", tuning_share=0.5)] == [s.id for s in parts["tuning"]]
    with pytest.raises(SettingError, match=r"dataset.tuning_share = 0: leaves no row for the tuning split"):
        load(source, "tuning")
    named = write(
        folder,
        [{**row, "split": ("train", "test", "extra")[n // 2 % 3]} for n, row in enumerate(rows())],
        "split.jsonl",
    )
    samples = load(named, "tuning", tuning="train", held_out="test")
    assert [sample.id for sample in samples] == ["red0", "red1", "white0", "white1"]
    assert samples.notes == ["rows of other splits are not used: 4 of 'extra'"]
    with pytest.raises(SettingError, match=r"dataset.tuning = 'tuning': no row has it in the column split, which has"):
        load(named, "tuning")


def test_a_limit_is_a_fair_draw_of_whole_images(folder: Path) -> None:
    source = write(folder, rows())
    samples = load(source, limit=5)
    assert len(samples) == 4
    assert len({sample.image_id for sample in samples}) == 2
    assert [s.id for s in load(source, limit=8)][:4] == [s.id for s in samples]


BAD: dict[str, tuple[Any, str]] = {
    "no picture": ({"image": "pictures/none.png"}, r"row 1 \(line 2\) has no image: 'pictures/none.png' is no file in"),
    "no picture's name": ({"image": None}, r"row 1 \(line 2\) has no image"),
    "a torn picture": ({"image": "torn.png"}, r"row 1 \(line 2\) has a corrupt image"),
    "no question": ({"question": " "}, r"row 1 \(line 2\) has an empty question"),
    "no answers": ({"answer": []}, r"row 1 \(line 2\) has no answer"),
    "an empty answer": ({"answer": ["red", ""]}, r"row 1 \(line 2\) has an empty answer"),
    "an answer of another type": (
        {"answer": {"a": 1}},
        r"row 1 \(line 2\) has answer \{'a': 1\}, not a text or a list",
    ),
    "nan": ({"answer": "nan"}, r"row 1 \(line 2\) has answer 'nan', a missing value"),
    "an answer of marks": ({"answer": "?!"}, r"row 1 \(line 2\) has answer '\?!', of which punctuation"),
    "an id twice": ({"id": "red0"}, r"row 1 \(line 2\) has the id of row 0"),
    "torn JSON": ('{"id": "x", "question": "W\n', r"row 1 \(line 2\) has no JSON \(Unterminated string"),
    "a list": ("[1, 2]\n", r"row 1 \(line 2\) has a list, not a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_and_never_dropped_without_a_word(folder: Path, name: str) -> None:
    (folder / "torn.png").write_bytes((folder / "pictures" / "red.png").read_bytes()[:50])
    change, message = BAD[name]
    found: list[Any] = rows()
    found[1] = change if isinstance(change, str) else {**found[1], **change}
    source = write(folder, found, "bad.jsonl")
    with pytest.raises(SettingError, match=rf"^dataset.source = '{source}': 1 unusable of 12 rows: {message}"):
        load(source)
    samples = load(source, bad_rows="skip")
    assert len(samples) == 11
    assert samples.notes[0].startswith(f"1 rows of {source} left out: row 1")


def test_yes_and_no_have_f1_with_an_interval(folder: Path) -> None:
    found = [{**row, "answer": ("yes", "no")[n % 2], "category": ("a", "b")[n // 6]} for n, row in enumerate(rows())]
    benchmark = own(write(folder, found, "yes.jsonl"), rule="yes_no")
    samples = benchmarks.load(benchmark, "held_out")
    said = ["yes"] * 6 + ["no"] * 6
    records = [benchmark.score(one, sample) for one, sample in zip(said, samples, strict=True)]
    metrics = benchmark.metrics(records)
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.5, 0.5, 0.5)
    assert (metrics["a.accuracy"], metrics["b.accuracy"], metrics["yes_ratio"]) == (0.5, 0.5, 0.5)
    interval = benchmark.intervals(records)["f1"]
    assert interval.low < interval.value == 0.5 < interval.high


FILES: list[tuple[str, bytes, str]] = [
    ("a.xlsx", b"", r"must end in .jsonl, .ndjson, .csv, .tsv, .parquet"),
    ("b.csv", b"id,question\r\n\xff\xfe", "line 2 is not UTF-8"),
    ("c.csv", b"id,id\n1,2\n", "has the column 'id' twice"),
    ("d.csv", b'image,question,answer\na,"b,c\n', r"line \d is no CSV"),
    (
        "e.csv",
        b"image,question,answer\npictures/red.png,What?\n",
        r"row 0 \(line 2\) has 2 cells, not 3",
    ),
    ("f.parquet", b"PAR1 torn", "cannot be read"),
    ("g.jsonl", b"", "has no row of questions: it is empty"),
    ("h.csv", b"\xef\xbb\xbf\r\n", "has no row of questions: it is empty"),
    ("i.csv", b"image,question,answer\r\n,,\r\n", "has no row of questions: it is empty"),
    ("j.jsonl", b"5\n", "has no row of questions: line 1 has a int, not a JSON object"),
    ("k.csv", b"image,question,answer\na,W?,x,y,\n", r"row 0 \(line 2\) has 4 cells, not 3"),
    ("l.csv", b'image,question,answer\n\n"a","W\n?",\n', r"row 0 \(line 3\) has no image"),
    ("m::n.parquet", b"", "must have no :: in its path"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES)
def test_a_bad_file_is_one_line(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(SettingError, match=message):
        load(folder / name)


def test_a_folder_has_one_table(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, rows(), "a.jsonl")
    write(tmp_path, rows(), "b.jsonl")
    with pytest.raises(SettingError, match=r"must have one table, or Parquet files alone; it has a.jsonl, b.jsonl"):
        load(tmp_path)
    with pytest.raises(SettingError, match=r"no such file or folder"):
        load(tmp_path / "none")


def test_a_folder_with_a_csv_is_read_like_the_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(folder / "pictures")
    path = tmp_path / "a.csv"
    path.write_text("image,question,answer\npictures/red.png,What?,red|crimson\n")
    assert load(tmp_path)[0].answers == load(path)[0].answers == ("red", "crimson")


def test_cells_of_a_csv_hold_several_texts(folder: Path) -> None:
    path = folder / "several.csv"
    path.write_text("image,question,answer\npictures/red.png,What?,red|dark red\n")
    assert load(path)[0].answers == ("red", "dark red")
    assert load(path, separator=";")[0].answers == ("red|dark red",)
    assert math.isclose(own(path).score("Dark-red", load(path)[0]).score, 1)
    assert normalised("The  Dark-red, car!") == "dark red car"


EXCEL = {
    "semicolons": b"\xef\xbb\xbfid;image;question;answer\r\n1;pictures/red.png;What, now?;red\r\n",
    "tabs": b"id\timage\tquestion\tanswer\n1\tpictures/red.png\tWhat, now?\tred\n",
    "empty lines": b'\r\nid,image,question,answer\r\n,,,\r\n1,pictures/red.png,"What, now?",red\r\n\r\n, ,,\r\n',
    "empty columns": b'id,image,question,answer,,\r\n1,pictures/red.png,"What, now?",red,,\r\n',
    "empty cells": b'id,image,question,answer\r\n1,pictures/red.png,"What, now?",red,,\r\n',
    "a column without a name": b'id,,image,question,answer\r\n1,x,pictures/red.png,"What, now?",red\r\n',
}


@pytest.mark.parametrize("name", EXCEL)
def test_a_csv_from_a_spreadsheet_is_read(folder: Path, name: str) -> None:
    path = folder / "excel.csv"
    path.write_bytes(EXCEL[name])
    (sample,) = load(path)
    assert (sample.id, sample.question, sample.gold) == ("1", "What, now?", "red")


def test_a_picture_in_a_cell_may_be_long_or_short(folder: Path) -> None:
    for size in (2, 12, 300):
        buffer = io.BytesIO()
        Image.effect_noise((size, size), 90).save(buffer, "PNG")
        cell = base64.b64encode(buffer.getvalue()).decode()
        path = folder / "cells.csv"
        path.write_text(f"image,question,answer\n{cell},What?,red\n")
        assert load(path)[0].image.size == (size, size)
    path.write_text("image,question,answer\npictures,What?,red\n")  # base64 of six bytes
    with pytest.raises(SettingError, match=r"has no image: 'pictures' is no file in .*, and not base64"):
        load(path)


def table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["f*", "f [1]", "f?", "a b%20#ü", "{a,b}"])
def test_only_the_files_of_a_folder_are_read(folder: Path, tmp_path: Path, name: str) -> None:
    image = [(folder / "pictures" / "red.png").read_bytes()]
    for number, one in enumerate((name, "f1", "fx", "f [2]")):
        table(tmp_path / one / "a.parquet", image=image, question=["What?"], answer=[f"{number}"])
    assert [sample.gold for sample in load(tmp_path / name)] == ["0"]
    assert [sample.gold for sample in load(tmp_path / name / "a.parquet")] == ["0"]


def test_numbers_of_parquet_are_those_that_were_written(folder: Path, tmp_path: Path) -> None:
    image = [(folder / "pictures" / "red.png").read_bytes()]
    numbers = {"int64": pa.array([2**53 + 1]), "float32": pa.array([0.1], pa.float32()), "float64": pa.array([0.1])}
    lists = {"list": pa.array([[0.3]], pa.list_(pa.float32())), "float16": pa.array([2.5], pa.float16())}
    found = {}
    for name, answer in (numbers | lists).items():
        path = table(tmp_path / f"{name}.parquet", image=image, question=["What?"], answer=answer)
        found[name] = load(path)[0].gold
    assert found == {"int64": "9007199254740993", "float32": "0.1", "float64": "0.1", "list": "0.3", "float16": "2.5"}


def test_tables_of_parquet_must_fit_together(folder: Path, tmp_path: Path) -> None:
    image = [(folder / "pictures" / "red.png").read_bytes()]
    table(tmp_path / "a.parquet", image=image, question=["What?"], answer=["red"])
    table(tmp_path / "b.parquet", image=image, question=["What?"], answer=["red"], more=["x"])
    with pytest.raises(SettingError, match=r"cannot be read as one table \(Couldn't cast .* column names don't match"):
        load(tmp_path)


def test_the_column_of_pictures_has_one_meaning(folder: Path) -> None:
    source = write(folder, rows(), "meaning.jsonl")
    with pytest.raises(SettingError, match=r"column.image_id = 'image': is the column of the image; it cannot be the"):
        load(source, column={"image_id": "image"})


def test_a_category_may_be_a_number(folder: Path) -> None:
    assert load(write(folder, rows(category=3), "category.jsonl"))[0].categories == ("3",)
