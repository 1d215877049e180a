"""The page of all samples: its files have what the records have, and a user sees it, finds it, and opens it by keys."""

import json
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tdrs.analysis import report, samples
from tdrs.analysis.study_results import StudyResults, load_study
from tdrs.benchmarks import Record
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import STOCK
from tdrs.tracking import Tracker
from tests.benchmarks.test_text import language_model
from tests.browser import Browser, needs_chromium
from tests.sweeps.pretend import configuration, pretend

ROOT = Path(__file__).parents[2]
NAMES = ["<script>alert(1)</script>", "x \" ' & #y", "שלום 🙂"]
QUESTIONS = [
    "</script><script>hacked = 1</script>", "<img src=x onerror='hacked = 1'>", "a\nb\u2028c", "האם יש חתול? 🐈",
    "plain {{ 7 * 7 }}", "long " * 100 + "needle",
]  # fmt: skip


def questions(folder: Path, count: int = 30) -> Path:
    """A table of questions of any text about pictures; every third one has two pictures."""
    folder.mkdir()
    for number in range(8):
        size = (500, 300) if number == 0 else (40, 30)
        Image.new("RGB", size, (30 * number, 90, 200 - 20 * number)).save(folder / f"{number}.png")
    lines = []
    for number in range(count):
        image = [f"{number % 7}.png", "7.png"] if number % 3 == 2 else f"{number % 7}.png"
        row = {"image": image, "question": QUESTIONS[number % len(QUESTIONS)], "answer": f"<b>{number % 4}</b>"}
        lines.append(json.dumps({**row, "id": f"q{number}", "category": f"kind {number % 2} & <more>"}) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))
    return folder / "questions.jsonl"


def run(output: Path, *given: str, **search: Any) -> StudyResults:
    """A finished study that nobody was asked for, and its report."""
    config = configuration(output, "search=compare", *given, **search)
    config["study"]["name"] = "a <b> & 'c'"
    config["preset"] = {"tuning": 8, "held_out": 40}
    study = Study(config, Tracker("none", output))
    report.report_study(study.run(), study.records, study.folder)
    return load_study("a <b> & 'c'", output)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyResults]:
    output = tmp_path_factory.mktemp("samples")
    source = questions(output / "data")
    methods = {name: {"intervention": "temperature", "intervention.tau": 0.3 + 0.1 * n} for n, name in enumerate(NAMES)}
    given = ["dataset=own", f"dataset.source={source}", "dataset.rule=exact", "dataset.tuning_share=0.2"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretend(monkeypatch)
        yield run(output, *given, axes={"batch_size": [4, 5]}, methods=methods)


class Told(NamedTuple):
    """What the page's files say: what is in the page itself, and the tables and details of its conditions."""

    about: dict[str, Any]
    tables: list[dict[str, Any]]
    details: list[list[dict[str, Any]]]


def told(folder: Path) -> Told:
    text = (folder / "samples.html").read_text()
    (found,) = re.findall(r'<script type="application/json" id="study">(.*?)</script>', text, re.S)
    about = json.loads(found)

    def values(name: str) -> Any:
        content = (folder / "samples" / f"{name}.js").read_bytes().decode("ascii")
        head = f'tdrsData("{name}",'
        assert content.startswith(head)
        return json.loads(content.removeprefix(head).removesuffix(");\n"))

    tables = [values(one["table"]) for one in about["conditions"]]
    details = [[detail for name in one["details"] for detail in values(name)] for one in about["conditions"]]
    return Told(about, tables, details)


def test_the_files_say_what_the_records_say(study: StudyResults) -> None:
    page = told(study.folder)
    rows = study.outcome.rows
    assert [row["key"] for one in page.about["conditions"] for row in one["rows"]] == [row.key for row in rows]
    for about, table, details in zip(page.about["conditions"], page.tables, page.details, strict=True):
        for number, row in enumerate(about["rows"]):
            (trial,) = [one for one in rows if one.key == row["key"]]
            records = study.records.read(trial.cache_key).records
            said = table["rows"][number]
            assert [table["texts"][n] for n in said["answers"]] == [one.prediction for one in records]
            assert said["scores"] == [one.score for one in records]
            assert np.allclose(said["margins"], [one.margin for one in records], rtol=1e-3, atol=0)
            assert [one["answers"][number] for one in details] == [[one.prediction, one.answer] for one in records]
            assert table["ids"] == [one.id for one in records]
            assert table["questions"] == [one.question[: samples.LETTERS] for one in records]
            assert [one["question"] for one in details] == [one.question for one in records]
            assert [table["names"][n] for n in table["categories"]] == [one.categories for one in records]


def test_pictures_are_written_once_and_made_smaller(study: StudyResults) -> None:
    page = told(study.folder)
    files = {name for details in page.details for one in details for name in one["pictures"]}
    there = {path.name for path in (study.folder / "samples").iterdir() if path.suffix in (".png", ".jpg")}
    assert files == there
    assert len(files) == 8  # of both conditions and all rows
    sizes = {Image.open(study.folder / "samples" / name).size for name in files}
    assert sizes == {(40, 30), (384, 230)}
    several = [one for one in page.details[1] if len(one["pictures"]) == 2]
    assert several
    assert all(one["prompt"].startswith("[image] [image] ") for one in several)
    before = {path.name: path.stat().st_mtime_ns for path in (study.folder / "samples").iterdir()}
    (study.folder / "samples" / "table-old.js").write_text("")
    samples.write_samples(study.outcome, study.records, study.folder)
    assert {path.name: path.stat().st_mtime_ns for path in (study.folder / "samples").iterdir()} == before


def test_long_and_missing_numbers() -> None:
    assert samples._short(float("nan")) is None
    assert samples._short(-1.23456) == -1.235


def test_passages_have_no_pictures(tmp_path: Path, pretended: list[str]) -> None:
    model = language_model(tmp_path / "model")
    given = ["backbone=language_model", f"backbone.source={model}", "dataset=text"]
    methods = {"sharper": {"intervention": "temperature", "intervention.tau": 0.5}}
    found = run(tmp_path, *given, axes={"dataset.gap": [4]}, methods=methods)
    (details,) = told(found.folder).details
    assert all("pass key of" in one["passage"] for one in details)
    assert all("pictures" not in one for one in details)
    assert details[0]["prompt"].startswith("[passage]\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [("remove", "is not available here"), ("replace", "has changed since it was asked")],
)
def test_a_data_set_that_is_gone_or_changed(
    change: str, said: str, tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = questions(tmp_path / "data", 12)
    given = ["dataset=own", f"dataset.source={source}", "dataset.rule=exact"]
    methods = {"sharper": {"intervention": "temperature", "intervention.tau": 0.5}}
    found = run(tmp_path, *given, axes={"dataset.gap": [0]}, methods=methods)
    assert not capsys.readouterr().err
    if change == "remove":
        source.unlink()
    else:
        source.write_text(source.read_text().replace("plain", "other"))
    assert report.main([f"study={found.name}", f"output={tmp_path}"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert captured.out.splitlines()[-1] == str(found.folder / "samples.html")
    page = told(found.folder)
    assert all("prompt" not in one and one["question"] for one in page.details[0])
    assert said in (found.folder / "samples.html").read_text()


def test_all_files_are_in_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["tdrs.analysis"]
    files = [path.relative_to(ROOT / "analysis") for path in (ROOT / "analysis").rglob("*") if path.is_file()]
    others = [str(path) for path in files if path.suffix not in (".py", ".pyc")]
    assert samples.VENDOR in others
    assert str(Path(samples.VENDOR).with_name("LICENSE.txt")) in others
    assert [name for name in others if not any(fnmatch(name, pattern) for pattern in patterns)] == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


FIRST = "!!document.querySelector('.ag-row[row-index=\"0\"] .ag-cell')"
PLACE = "({ condition, sample, row }) => [conditions.indexOf(condition), row, sample]"
FOUND = f"found.map((number) => ({PLACE})(at(number)))"


def show(browser: Browser, study: StudyResults, address: str = "") -> None:
    """Open the page and wait until the table is there."""
    browser.open(f"{(study.folder / 'samples.html').as_uri()}{address}")
    browser.wait(f"{FIRST} || document.getElementById('fault').textContent")


def pairs(study: StudyResults) -> dict[tuple[int, int, int], tuple[Record, Record]]:
    """By condition, row and sample: the stock model's record and the row's."""
    found = {}
    conditions = list(dict.fromkeys(str(row.condition) for row in study.outcome.rows))
    for place, condition in enumerate(conditions):
        rows = [row for row in study.outcome.rows if str(row.condition) == condition]
        stock = study.records.read(rows[0].cache_key).records
        assert rows[0].name == STOCK
        for number, row in enumerate(rows):
            for sample, record in enumerate(study.records.read(row.cache_key).records):
                found[place, number, sample] = stock[sample], record
    return found


@needs_chromium
def test_the_page_loads_nothing_from_a_network(browser: Browser, study: StudyResults) -> None:
    show(browser, study)
    browser.ask("open(0)")
    browser.wait("[...document.querySelectorAll('#content img')].every((one) => one.naturalWidth > 0)")
    loaded = [one for one in browser.requests if not one.startswith("data:")]
    assert len(loaded) > 5
    assert [one for one in loaded if not one.startswith(f"{study.folder.as_uri()}/samples")] == []
    assert browser.faults == []


@needs_chromium
@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, lambda at, stock, record: True),
        ({"change": "gained"}, lambda at, stock, record: record.score > stock.score),
        ({"change": "lost"}, lambda at, stock, record: record.score < stock.score),
        ({"change": "changed"}, lambda at, stock, record: record.score != stock.score),
        ({"change": "same"}, lambda at, stock, record: at[1] > 0 and record.score == stock.score),
        ({"category": "kind 1 & <more>"}, lambda at, stock, record: record.categories == "kind 1 & <more>"),
        ({"low": "-1", "high": "0.5"}, lambda at, stock, record: -1 <= record.margin <= 0.5),
        ({"condition": "1", "method": NAMES[2]}, lambda at, stock, record: at[:2] == (1, 3)),
        ({"search": " HACKED "}, lambda at, stock, record: "hacked" in record.question),
        ({"search": "<b>2</b>", "condition": "0"}, lambda at, stock, record: at[0] == 0 and "2" in record.gold),
        ({"search": "nothing has this"}, lambda at, stock, record: False),
    ],
)
def test_filters(browser: Browser, study: StudyResults, filters: dict[str, str], passes: Any) -> None:
    if not browser.ask("typeof found !== 'undefined'"):
        show(browser, study)
    browser.ask("document.getElementById('filters').reset()")
    for name, value in filters.items():
        browser.ask(f"document.getElementById({json.dumps(name)}).value = {json.dumps(value)}")
    browser.ask("document.getElementById('search').dispatchEvent(new Event('input', { bubbles: true }))")
    expected = sorted(at for at, (stock, record) in pairs(study).items() if passes(at, stock, record))
    browser.wait(f"document.getElementById('status').textContent.startsWith('{len(expected)} of ')")
    assert sorted(map(tuple, browser.ask(FOUND))) == expected


@needs_chromium
def test_texts_are_shown_as_texts(browser: Browser, study: StudyResults) -> None:
    show(browser, study)
    assert browser.ask("document.querySelector('h1').textContent") == "Samples of a <b> & 'c'"
    names = browser.ask("[...document.getElementById('method').options].slice(2).map((one) => one.text)")
    assert names == NAMES
    details = told(study.folder).details[0]
    for number, one in enumerate(details[: len(QUESTIONS)]):
        browser.ask(f"open(conditions[0].rows.length * {number})")
        shown = browser.ask("[...document.querySelectorAll('#content .text')].map((one) => one.textContent)")
        assert shown == [one["prompt"]]
        assert browser.ask("document.querySelector('#content dl dd').textContent") == one["question"]
    assert browser.ask("typeof hacked") == "undefined"
    assert browser.ask("document.querySelectorAll('#grid script, #content script, #content b, #grid img').length") == 0
    assert browser.faults == []


@needs_chromium
def test_all_is_done_by_keys(browser: Browser, study: StudyResults) -> None:
    show(browser, study)
    focus = "document.activeElement"
    outlined = f"{focus}.matches(':focus-visible') && getComputedStyle({focus}).outlineStyle !== 'none'"
    seen = []
    for _ in range(20):
        browser.press("Tab")
        seen.append(browser.ask(f"{focus}.id || {focus}.getAttribute('role') || {focus}.tagName"))
        assert browser.ask(f"{outlined} || !!{focus}.closest('.ag-root-wrapper')")
        if seen[-1] == "columnheader":
            break
    assert seen[1:8] == ["search", "condition", "method", "category", "change", "low", "high"]

    for _ in range(20):  # to the column of margins, and sort by it
        if browser.ask(f"{focus}.getAttribute('col-id')") == "margin":
            break
        browser.press("ArrowRight")
    browser.press("Enter")
    browser.wait("orderOf.includes('margin')")
    margins = browser.ask("order.map((number) => COLUMNS.margin.of(at(number)))")
    assert margins == sorted(margins)
    assert len(margins) == len(pairs(study))
    assert browser.ask(f"{focus}.getAttribute('aria-sort')") == "ascending"

    browser.press("Tab")
    browser.wait(f"{focus}.getAttribute('role') === 'gridcell'")
    row = f"Number({focus}.closest('[row-index]').getAttribute('row-index'))"
    assert browser.ask(row) == 0
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    assert browser.ask(row) == 2
    browser.press("Enter")
    browser.wait("document.getElementById('sample').open && !!document.querySelector('#content tr[aria-current]')")
    assert browser.ask("shown === order[2]")
    assert browser.ask(f"document.getElementById('sample').contains({focus})")
    browser.press("ArrowRight")
    browser.wait("shown === order[3] && !!document.querySelector('#content table')")
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    browser.wait("shown === order[1]")
    browser.press("Escape")
    browser.wait("!document.getElementById('sample').open")
    browser.wait(f"{focus}.getAttribute('role') === 'gridcell'")
    assert browser.ask(row) == 1
    browser.press("Tab")
    assert not browser.ask(f"{focus}.getAttribute('role') === 'gridcell'")


@needs_chromium
def test_roles_and_names_for_a_screen_reader(browser: Browser, study: StudyResults) -> None:
    show(browser, study)
    assert browser.ask("document.querySelector('[role=grid],[role=treegrid]').getAttribute('aria-label')") == "samples"
    assert browser.ask("document.querySelectorAll('[role=columnheader]').length") == len(
        browser.ask("Object.keys(COLUMNS)")
    )
    assert browser.ask(
        "[...document.querySelectorAll('form input, form select')].every((one) => one.labels.length === 1)"
    )
    number = next(n for n, one in enumerate(told(study.folder).details[0]) if len(one["pictures"]) == 2)
    browser.ask(f"open(conditions[0].rows.length * {number})")
    (first, second) = browser.ask("[...document.querySelectorAll('#content img')].map((one) => one.alt)")
    assert first.startswith("picture 1 of 2 of sample q")
    assert second.startswith("picture 2 of 2 of sample q")
    assert browser.ask("document.querySelectorAll('#content th[scope]').length") == 7 + 4


@needs_chromium
@pytest.mark.parametrize("selector", ["table a", "svg a:has(use)"])
def test_links_of_the_report_lead_to_a_rows_samples(browser: Browser, study: StudyResults, selector: str) -> None:
    """In its tables, of all rows; in its forest plot, of all but the stock model's."""
    browser.open((study.folder / "report.html").as_uri())
    links = f"[...document.querySelectorAll({json.dumps(selector)})]"
    addresses = browser.ask(f"{links}.map((one) => one.href.baseVal ?? one.getAttribute('href'))")
    rows = [row for row in study.outcome.rows if selector == "table a" or row.name != STOCK]
    assert list(dict.fromkeys(addresses)) == [samples.row_link(row) for row in rows]
    browser.click(f"{links}.at(-1)")
    browser.wait(f"location.pathname.endsWith('samples.html') && {FIRST}")
    last = max(pairs(study))[:2]
    assert browser.ask(FOUND) == [list(at) for at in sorted(pairs(study)) if at[:2] == last]


@needs_chromium
def test_a_link_to_a_row_that_is_not_there(browser: Browser, study: StudyResults) -> None:
    show(browser, study, "#row=0123456789abcdef")
    assert "has no row 0123456789abcdef" in browser.ask("document.getElementById('fault').textContent")


def light(colour: str) -> float:
    """How light a colour of a computed style is, from 0 to 1."""
    values = [float(value) for value in re.findall(r"[\d.]+", colour)[:3]]
    return sum(values) / 3 / (255 if colour.startswith("rgb") else 1)


@needs_chromium
def test_narrow_and_dark_windows(browser: Browser, study: StudyResults) -> None:
    show(browser, study)
    try:
        browser.look(360, 640, dark=True)
        browser.wait("document.body.dataset.agThemeMode === 'dark'")
        browser.ask("open(0)")
        assert browser.ask("document.documentElement.scrollWidth") <= 360
        assert browser.ask(
            "document.getElementById('sample').scrollWidth <= document.getElementById('sample').clientWidth"
        )
        for one in ("document.body", "document.getElementById('sample')", "document.querySelector('.ag-root-wrapper')"):
            text, back = (browser.ask(f"getComputedStyle({one}).{name}") for name in ("color", "backgroundColor"))
            assert light(text) > 0.6, one
            assert light(back) < 0.3, one
    finally:
        browser.look(1280, 900)


@needs_chromium
def test_a_missing_file_is_said(browser: Browser, study: StudyResults, tmp_path: Path) -> None:
    (tmp_path / "samples.html").write_bytes((study.folder / "samples.html").read_bytes())
    (tmp_path / "samples").mkdir()
    for path in (study.folder / "samples").iterdir():
        if not path.name.startswith("table"):
            (tmp_path / "samples" / path.name).symlink_to(path)
    browser.open((tmp_path / "samples.html").as_uri())
    said = browser.wait("document.getElementById('fault').textContent")
    assert re.fullmatch(r"samples/table-\w+\.js is missing; the command at the end of this page writes it again", said)
