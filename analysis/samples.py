"""Every sample of a study under every held-out row, as a page beside the report: `samples.html`.

    python -m analysis.samples study=mine            # in a checkout
    python -m tdrs.analysis.samples study=mine       # where tdrs is installed

The page works from the disk and loads nothing from a network. What it shows is in the folder `samples` beside it:

    LIBRARY, samples.js     the table library and the page's own script
    table-HASH.js           a condition: questions, answers, scores and margins, column by column
    details-HASH.js         of `CHUNK` samples: whole prompts and answers, loaded when one of them is opened
    DIGEST.jpg, DIGEST.png  pictures, made smaller, each once

A file is named after its content, and the page names its files: it never shows the data of another study or of another
time. Everything is made from the stored records and the data set, without a model.
"""

import hashlib
import io
import json
import math
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image
from tqdm import tqdm

from tdrs import checked_file
from tdrs.analysis.changed_answers import samples_of
from tdrs.analysis.evidence import condition_name
from tdrs.analysis.figure import redraw
from tdrs.benchmarks import Record, Sample
from tdrs.benchmarks.benchmark import Passage, Picture
from tdrs.commands import command
from tdrs.entry_point import run_command
from tdrs.records import Records
from tdrs.results import check_same_samples
from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome, Trial, spelled

PAGE, FOLDER = "samples.html", "samples"
LIBRARY = "ag-grid-community.min.noStyle.js"
VENDOR = f"vendor/ag-grid-community-36.2.0/{LIBRARY}"  # as in the npm package of this version; its licence is beside it
CHUNK = 100  # samples whose details are in one file
SIDE = 384  # pixels: the longest side of a picture
SMALL = 160  # pixels: pictures with smaller sides are stored without loss
LETTERS = 300  # of a question or an answer that can be searched and are shown in the table; details have all


class RowAnswers(NamedTuple):
    """What a row answered, sample by sample: the texts, what the rule read in them, scores, and margins in nats."""

    trial: Trial
    predictions: list[str]
    answers: list[str]
    scores: list[float]
    margins: list[float]


class ConditionSamples(NamedTuple):
    """The samples of a condition, and the answers of each of its complete rows, the stock model's first.

    Attributes:
        condition: in words.
        records: what the first row's records say of the samples.
        samples: by their ids; empty if the data set is not available here.
        lack: why it is not; "" if it is.
    """

    condition: str
    records: list[Record]
    rows: list[RowAnswers]
    samples: dict[str, Sample]
    lack: str


def row_link(trial: Trial) -> str:
    """The address of a row's samples, for a page in the same folder."""
    return f"{PAGE}#row={trial.key}"


def condition_samples(outcome: Outcome, records: Records) -> Iterator[ConditionSamples]:
    """The samples and answers of a finished study, one condition at a time.

    Raises:
        FileNotFoundError, Damaged: the records of a row are missing or damaged.
        SettingError: two rows of one condition have other samples.
    """
    conditions: dict[str, list[Trial]] = {}
    for row in outcome.rows:
        if row.status == COMPLETE:
            conditions.setdefault(spelled(row.condition), []).append(row)
    for trials in conditions.values():
        trials.sort(key=lambda trial: trial.name != STOCK)
        first = records.read(trials[0].cache_key).records
        rows = []
        for trial in trials:
            found = first if trial is trials[0] else records.read(trial.cache_key).records
            check_same_samples(first, found, trial.name)
            rows.append(
                RowAnswers(
                    trial,
                    [record.prediction for record in found],
                    [record.answer for record in found],
                    [record.score for record in found],
                    [record.margin for record in found],
                )
            )
        name = condition_name(outcome, trials[0].condition)
        yield ConditionSamples(name, first, rows, *samples_of(outcome, trials[0]))


def write_samples(outcome: Outcome, records: Records, folder: Path) -> Path:
    """Write the page and its files; return the page's path. Pictures that are there already are not made again.

    A data set that is not available is said in one line on standard error: the page then has no pictures and prompts.

    Raises:
        OSError: a file cannot be written.
        FileNotFoundError, Damaged, SettingError: as in `condition_samples`.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    files_ = _Files(place)
    conditions: list[dict[str, Any]] = []
    lacks: list[str] = []
    for one in condition_samples(outcome, records):
        if one.lack:
            lacks.append(f"{one.condition}: {one.lack}, so {PAGE} has no pictures and prompts of it")
            print(lacks[-1], file=sys.stderr)
        conditions.append(
            {
                "name": one.condition,
                "size": len(one.records),
                "rows": [{"name": row.trial.name, "key": row.trial.key, "tuned": row.trial.budget} for row in one.rows],
                "stock": one.rows[0].trial.name == STOCK,
                "table": files_.script("table", table(one)),
                "details": [files_.script("details", details) for details in _all_details(one, files_)],
            }
        )
    for name, path in (("samples.js", "samples.js"), (LIBRARY, VENDOR)):
        files_.write(name, files("tdrs.analysis").joinpath(path).read_bytes())
    study = {"name": outcome.name, "chunk": CHUNK, "letters": LETTERS, "conditions": conditions}
    template = files("tdrs.analysis").joinpath(PAGE).read_text(encoding="utf-8")
    templates = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    again = command("tdrs.analysis.samples", f"study={outcome.name}", f"output={folder.parents[1].absolute()}")
    given = {"study": study, "outcome": outcome, "lacks": lacks, "library": LIBRARY, "command": again}
    checked_file.write(folder / PAGE, templates.from_string(template).render(**given).encode())
    files_.remove_others()
    return folder / PAGE


def table(one: ConditionSamples) -> dict[str, Any]:
    """What the page's table shows of a condition, column by column; long texts are cut.

    Equal answers and categories are written once: the columns have their numbers.
    """
    texts, categories = _Numbers(), _Numbers()
    return {
        "ids": [record.id for record in one.records],
        "questions": [record.question[:LETTERS] for record in one.records],
        "golds": [record.gold[:LETTERS] for record in one.records],
        "categories": [categories.of(record.categories) for record in one.records],
        "rows": [
            {
                "answers": [texts.of(text[:LETTERS]) for text in row.predictions],
                "scores": [int(score) if score == int(score) else score for score in row.scores],
                "margins": [_short(margin) for margin in row.margins],
            }
            for row in one.rows
        ],
        "names": list(categories.known),
        "texts": list(texts.known),
    }


class _Numbers:
    """Gives each different text a number, in the order of their first use."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def of(self, text: str) -> int:
        return self.known.setdefault(text, len(self.known))


def _short(value: float) -> float | None:
    """A number with four digits; None for one that was not measured."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _all_details(one: ConditionSamples, files_: "_Files") -> Iterator[list[dict[str, Any]]]:
    """The details of all samples of a condition, `CHUNK` at a time."""
    size = len(one.records)
    bar = tqdm(total=size, desc="samples page", unit="sample", disable=None, leave=False)
    with bar:
        for start in range(0, size, CHUNK):
            numbers = range(start, min(start + CHUNK, size))
            yield [_details(one, number, files_) for number in numbers]
            bar.update(len(numbers))


def _details(one: ConditionSamples, number: int, files_: "_Files") -> dict[str, Any]:
    """What is shown of one sample when it is opened: `pictures` are file names, or null if one cannot be read."""
    record = one.records[number]
    found: dict[str, Any] = {
        "question": record.question,
        "gold": record.gold,
        "image": record.image_id,
        "weight": _short(record.weight),
        "answers": [[row.predictions[number], row.answers[number]] for row in one.rows],
    }
    sample = one.samples.get(record.id)
    if sample is None:
        return found
    if isinstance(sample.picture, Passage):
        return found | {"passage": sample.picture.text, "prompt": f"{sample.before}[passage]\n{sample.prompt}"}
    pictures = [files_.picture(part) for part in sample.picture.parts]
    return found | {"pictures": pictures, "prompt": f"{sample.before}{'[image] ' * len(pictures)}{sample.prompt}"}


class _Files:
    """The files beside a page.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._named: set[str] = set()

    def write(self, name: str, content: bytes) -> None:
        """Write a file, unless it has this content already."""
        self._named.add(name)
        path = self._folder / name
        if not path.is_file() or path.read_bytes() != content:
            checked_file.write(path, content)

    def script(self, kind: str, values: Any) -> str:
        """Write values as a script, which a page can load from the disk; return the name of the file without `.js`.

        Letters outside ASCII are escaped, so that the file has one meaning in every encoding.
        """
        text = json.dumps(values, separators=(",", ":"))
        name = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
        self.write(f"{name}.js", f'tdrsData("{name}",{text});\n'.encode())
        return name

    def picture(self, picture: Picture) -> str | None:
        """Write a picture, made smaller; return the file's name, or None if the picture cannot be read."""
        try:
            name = next((name for name in _names(picture.digest) if self._is_there(name)), "")
            content = b""
            if not name:
                name, content = _smaller(picture)
        except OSError:
            return None
        if content:
            # Not `checked_file.write`: thousands of pictures would each wait for the disk. An empty file, which a
            # power failure may leave, is written again.
            partial = self._folder / f"{name}.partial"
            partial.write_bytes(content)
            partial.replace(self._folder / name)
        self._named.add(name)
        return name

    def _is_there(self, name: str) -> bool:
        path = self._folder / name
        return path.is_file() and path.stat().st_size > 0

    def remove_others(self) -> None:
        """Remove all other files in the folder, which an earlier page has left."""
        for path in self._folder.iterdir():
            if path.name not in self._named and not path.is_dir():
                path.unlink()


def _names(digest: str) -> tuple[str, str]:
    return f"{digest}.png", f"{digest}.jpg"


def _smaller(picture: Picture) -> tuple[str, bytes]:
    """The name and the content of a picture's file. Raises OSError if the picture cannot be read."""
    image = picture.open()
    small = max(image.size) < SMALL
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=80)
    return _names(picture.digest)[0 if small else 1], buffer.getvalue()


def main(arguments: list[str]) -> int:
    """The command."""
    return redraw(arguments, lambda study: [write_samples(study.outcome, study.records, study.folder)])


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
