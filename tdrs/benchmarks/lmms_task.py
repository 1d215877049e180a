"""Tasks of lmms-eval with their data: what each row asks, and the values of an answer's metrics. No model is needed.

The data is read from a local source in the schema of the task's data set, or from the hub's cache.

Source: lmms-eval 0.7.3, https://github.com/EvolvingLMMs-Lab/lmms-eval, `api/task.py` and `evaluator.py`; MIT.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets

from tdrs.benchmarks.benchmark import Picture, PictureSet
from tdrs.benchmarks.lmms_definition import Definition, definition, quiet
from tdrs.benchmarks.lmms_request import Question, encode, question_of
from tdrs.benchmarks.rows import open_rows
from tdrs.benchmarks.sources import BadRow
from tdrs.settings import SettingError, first_line

COMMAND_TAGS = [["<think>", "</think>"], ["<analysis>", "</analysis>"]]  # its command's default `--reasoning_tags`


@dataclass(frozen=True, eq=False)
class Task:
    """A task with its data. What its functions raise on a row makes the row a BadRow.

    Attributes:
        task: lmms-eval's object.
        docs: the rows, with pictures.
        texts: the rows that scores are computed from, without pictures unless the task needs them.
        encoded: the rows with pictures that are not decoded.
    """

    definition: Definition
    task: Any
    docs: datasets.Dataset
    texts: datasets.Dataset
    encoded: datasets.Dataset

    def image_name(self, number: int) -> str:
        """A name for the image of a row: a hash of its pictures as they are stored, or of those that are asked."""
        stored = [self.encoded[number][name] for name in _media(self.encoded)]
        if not stored:
            asked = [encode(image) for image in self.ask(number).images]
            return hash_of(asked if len(asked) > 1 else asked[0])
        cells = [cell for value in stored for cell in (value if isinstance(value, list) else [value])]
        return hash_of([_stored(cell) for cell in cells])

    def ask(self, number: int) -> Question:
        """What a row asks, with its pictures decoded. Raises BadRow if it is not one question about pictures."""
        return _asked(self, number)

    def picture(self, number: int) -> Picture:
        """The picture of a row, or several; they are decoded when they are needed."""

        def find() -> list[Picture]:
            return [Picture(partial(part, place)) for place in range(len(self.ask(number).images))]

        def part(place: int) -> bytes:
            return encode(self.ask(number).images[place])

        return PictureSet.of_parts(find)

    def prompt(self, number: int) -> tuple[str, str]:
        """The text in front of the pictures and the text behind them. They are read only if the task needs it."""
        if self.task.config.doc_to_messages is None:
            return "", self._text(number)
        return self.ask(number)[:2]

    def question(self, number: int) -> str:
        """The question alone; "" if the task makes it only together with the picture."""
        return "" if self.task.config.doc_to_text is None else self._text(number)

    def _text(self, number: int) -> str:
        doc = self.texts[number]
        if self.definition.rates:
            return str(_theirs(self.task.fewshot_context, doc, self.task.config.num_fewshot))
        return str(_theirs(self.task.doc_to_text, doc))

    def gold(self, number: int) -> str:
        """The right answer, the first of several; "" if the task does not say it."""
        said = self.task.config.doc_to_target
        if said is None or (isinstance(said, str) and said not in self.texts.column_names and "{" not in said):
            return ""  # a name of no column, which lmms-eval takes as the answer itself
        doc = self.texts[number]
        gold = _theirs(self.task.doc_to_target, doc)
        if isinstance(gold, int) and self.task.config.doc_to_choice is not None:
            gold = _theirs(self.task.doc_to_choice, doc)[gold]
        if isinstance(gold, list | tuple):
            gold = gold[0] if gold else ""
        return str(gold)

    def rated(self, number: int) -> tuple[str, ...]:
        """The answers that the model rates; empty if it answers in its own words."""
        return tuple(map(str, _theirs(self.task.doc_to_choice, self.texts[number]))) if self.definition.rates else ()

    def results(self, number: int, said: Any) -> tuple[str, dict[str, dict[str, Any]]]:
        """The answer that the task's first filter finds, and the values of all metrics by filter.

        Args:
            said: the text of the answer; for rated answers a pair of loss and greedy for each.
        """
        found: dict[str, dict[str, Any]] = {}
        answers: list[str] = []
        tags = parse_tags(self.task.config.reasoning_tags)
        for ensemble in self.task._filters:
            doc = self.texts[number]  # anew for each filter: some tasks change it
            given: Any = [[one] for one in said] if self.definition.rates else [[said]]
            for one in ensemble.filters:
                given = list(_theirs(one.apply, given, [doc] * len(given)))
            given = [tags(one) for one in given]
            answers.append("" if self.definition.rates else str(given[0]))
            process = type(self.task).process_results.__wrapped__  # without waiting and trying again
            found[ensemble.name] = dict(_theirs(process, self.task, doc, given))
        return answers[0], found


@lru_cache(maxsize=4)
def _asked(task: Task, number: int) -> Question:
    """`Task.ask`, kept for the next question about the same picture."""
    doc = _theirs(task.docs.__getitem__, number)
    if not task.definition.rates:
        return question_of(_theirs(task.task.doc_to_messages, doc))
    text = task.prompt(number)[1]
    return question_of(_theirs(task.task._build_user_turn, _theirs(task.task.doc_to_visual, doc), text))


def _theirs(function: Callable[..., Any], *values: Any) -> Any:
    """The result of a function of lmms-eval on a row. Raises BadRow if the function fails."""
    try:
        return function(*values)
    except OSError:  # the picture is missing or corrupt
        raise
    except Exception as error:  # code of hundreds of tasks
        raise BadRow(f"values on which {getattr(function, '__name__', 'the task')} fails ({_named(error)})") from error


def parse_tags(own: Any) -> Callable[[Any], Any]:
    """What removes the marked reasoning from an answer: the task's own marks, or those of lmms-eval's command."""
    from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

    tags = parse_reasoning_tags_config(cli_value=json.dumps(COMMAND_TAGS), task_value=own)

    def strip(answer: Any) -> Any:
        if isinstance(answer, list):
            return [strip(one) for one in answer]
        return strip_reasoning_tags(answer, tags) if tags and isinstance(answer, str) else answer

    return strip


@lru_cache(maxsize=8)
def open_task(name: str, source: str, revision: str | None, model: str) -> Task:
    """A task with its data.

    Args:
        source: where the data is; "" is the id on the hub that the task names.
        model: whose prompts are asked, one of `Definition.models`; "" is the default.

    Raises:
        SettingError: the data is not available, or the package's code cannot use it.
    """
    known = definition(name)
    place = source or str(known.config.get("dataset_path"))

    def local(path: str, name: str | None = None, split: str | None = None, **_: Any) -> datasets.Dataset:
        if path == known.config.get("dataset_path") and split is not None:
            return _cast(open_rows(place, name, split, revision), decode=True)
        raise SettingError("source", place, f"the task also needs the data set {path}, which cannot be read here")

    def download(self: Any, dataset_kwargs: Any = None) -> None:
        del dataset_kwargs
        config = self.config
        splits = [known.split, *([config.fewshot_split or config.training_split] if config.num_fewshot else [])]
        self.dataset, self.dataset_no_image = datasets.DatasetDict(), datasets.DatasetDict()
        for split in filter(None, splits):
            rows = _cast(open_rows(place, config.dataset_name, split, revision), decode=True)
            if config.process_docs is not None:
                with patch.dict(config.process_docs.__globals__, {"load_dataset": local}):
                    rows = config.process_docs(rows)
            self.dataset[split] = rows
            media = [] if config.process_results_use_image else _media(rows)
            self.dataset_no_image[split] = rows.remove_columns(media)

    try:
        with quiet():
            from lmms_eval.api.task import ConfigurableMessagesTask

            kind = type("LocalTask", (ConfigurableMessagesTask,), {"download": download})
            task = kind(config=dict(known.config), model_name=model or None)
            task.set_config("num_fewshot", task.config.num_fewshot or 0)
            task.set_fewshot_seed(1234)  # as in its evaluator
    except SettingError:
        raise
    except Exception as error:  # code of the package on rows of any schema
        raise SettingError("source", place, f"cannot be used by the task {name} ({_named(error)})") from error
    rows = task.eval_docs
    return Task(known, task, rows, task.eval_docs_no_media, _cast(rows, decode=False))


def _named(error: Exception) -> str:
    """The first line of an error with its kind: a KeyError says no more than a name."""
    return f"{type(error).__name__}: {first_line(error)}"


def _cast(rows: datasets.Dataset, decode: bool) -> datasets.Dataset:
    """Rows whose pictures are decoded when they are read, as lmms-eval's functions take them, or stay encoded."""
    for name in _media(rows):
        image, feature = datasets.Image(decode=decode), rows.features[name]
        rows = rows.cast_column(name, image if isinstance(feature, datasets.Image) else type(feature)(image))
    return rows


def _media(rows: datasets.Dataset) -> list[str]:
    """The columns of pictures."""
    return [
        name
        for name, feature in rows.features.items()
        if isinstance(feature, datasets.Image) or isinstance(getattr(feature, "feature", None), datasets.Image)
    ]


def _stored(cell: Any) -> bytes:
    """The encoded picture in a cell that is not decoded; empty if there is none."""
    if isinstance(cell, Mapping):
        return cell.get("bytes") or (Path(cell["path"]).read_bytes() if cell.get("path") else b"")
    return b""


def plain(value: Any) -> Any:
    """A value of a metric as JSON has it. Raises TypeError if it has no such form."""
    return json.loads(json.dumps(value, default=_listed))


def _listed(value: Any) -> Any:
    """A value of numpy, or a set, in the types of JSON."""
    return value.tolist() if hasattr(value, "tolist") else sorted(value)


def hash_of(values: Any) -> str:
    """A hash of plain values, bytes among them."""
    text = json.dumps(values, sort_keys=True, default=_as_text)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _as_text(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)
