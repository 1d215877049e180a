"""Any task of lmms-eval about pictures, with its own prompts, filters, metrics and aggregates.

A row becomes a sample. The values that the task computes from an answer are kept in its record (`Record.found`), so the
metrics are computed from records alone, without the data.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from tdrs.benchmarks import lmms_request, lmms_task
from tdrs.benchmarks.benchmark import Accepts, Picture, Record, Rule, Sample, Samples, anything, make_record, mean_score
from tdrs.benchmarks.lmms_definition import Definition, definition, mean_function, quiet
from tdrs.benchmarks.lmms_task import Task
from tdrs.benchmarks.sources import BadRow, Context, Sourced, in_split
from tdrs.settings import SettingError, check_choice, check_number, first_line
from tdrs.statistics import Interval, accuracy_interval, cluster_draws, percentiles

RESAMPLES = 1000  # of the images, for an aggregate that is no mean; each calls the task's own function
RESERVED = ("accuracy", "margin")  # names of metrics that every benchmark has


@dataclass(frozen=True, kw_only=True)
class LmmsEval(Sourced):
    """A task of lmms-eval.

    Args:
        task: its name there, such as pope.
        source: a local folder in the hub's layout, a Parquet file, a saved `datasets` directory, or a hub id; "" is the
            hub id that the task names.
        model: whose prompts are asked, where the task has some for a model of lmms-eval, such as qwen_vl; "" is its
            default.
        metric: the metric of one sample that is tuned on and compared; "" is the first of the task that a sample has.
        tuning_share: this share of the images, chosen by a hash of their content, is the tuning split, the others are
            held out; 0 holds all out, as lmms-eval does.
    """

    real: ClassVar[str] = "lmms_eval"
    rules: ClassVar[Mapping[str, Rule]] = {"task": Rule(lambda prediction, sample: prediction)}
    rule: str = "task"
    prompt: str = "lmms_eval"
    source: str = ""
    task: str = ""
    model: str = ""
    metric: str = ""
    tuning_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("prompt", self.prompt, ("lmms_eval",))
        check_number("tuning_share", self.tuning_share, 0, 1)
        known = self._definition
        if self.model and not known.models:
            raise SettingError("model", self.model, "the task has the same prompt for all models")
        if self.model:
            check_choice("model", self.model, known.models)
        if self.metric:
            named = [name for name in known.aggregations if name not in known.skipped]
            check_choice("metric", self.metric, named)
        lower = self.metric if self.metric in known.lower else "" if self.metric else next(iter(known.aggregations))
        if lower in known.lower:
            raise SettingError("metric", self.metric, f"a lower {lower} is better; it cannot be tuned on")

    @property
    def _definition(self) -> Definition:
        return definition(self.task)

    @property
    def _task(self) -> Task:
        return lmms_task.open_task(self.task, self.source, self.revision, self.model)

    @property
    def shown(self) -> tuple[str, ...]:  # type: ignore[override]
        """The task's metrics."""
        return tuple(name for name, _ in self._aggregates())

    @property
    def scoring(self) -> list[str]:
        return [*super().scoring, self.task, self._definition.digest, self.metric]

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        if split == "tuning" and self.tuning_share == 0:
            raise SettingError("tuning_share", 0, "leaves no image for the tuning split")
        task = self._task
        self.check_count(len(task.texts), split)
        images = [task.image_name(number) for number in range(len(task.texts))]
        numbers = [number for number, name in enumerate(images) if in_split(name, split, self.tuning_share)]
        if not numbers:
            raise SettingError("tuning_share", self.tuning_share, f"leaves no image in the {split} split")
        try:
            length = lmms_request.length_of(self._generation)
        except SettingError as error:
            raise SettingError("task", self.task, f"has {error}") from error
        pictures: dict[int, Picture] = {}

        def make(number: int, row: Any, context: Context) -> Sample:
            picture = pictures.setdefault(number, task.picture(number))
            before, prompt = task.prompt(number)
            in_front, between = context(images[number])
            rated = task.rated(number)
            category = row.get("category")
            return Sample(
                id=str(number),
                image_id=images[number],
                picture=picture,
                question=task.question(number) or prompt,
                prompt=f"Context: {between}\n{prompt}" if between else prompt,
                before=in_front + before,
                gold=task.gold(number),
                options=rated,
                categories=(category,) if isinstance(category, str) and "," not in category else (),
                row=lmms_task.hash_of(row),
                longest=None if rated else length,
                rated=tuple(f"{task.task.config.target_delimiter}{one}" for one in rated),
            )

        place = replace(self, source=self.source or str(self._definition.config.get("dataset_path")))
        found = place.gather(task.texts, make, split, limit, accepts, numbers, same_picture=False)
        self._try(found[0])
        greedy = lmms_request.not_greedy(self._generation)
        notes = [f"lmms-eval {version('lmms_eval')}, task {self.task}: {len(numbers)} of {len(images)} rows"]
        notes += [f"the task asks for {greedy}; the answers here are greedy"] if greedy else []
        shots = 0 if self._definition.rates else task.task.config.num_fewshot
        notes += [f"the task's {shots} examples are left out, as in lmms-eval's chat format"] if shots else []
        return Samples(found, [*found.notes, *notes])

    @property
    def _generation(self) -> Mapping[str, Any]:
        return self._task.task.config.generation_kwargs or {}

    def _try(self, sample: Sample) -> None:
        """Score an answer to the first sample: what cannot be scored is an error before a model is loaded."""
        try:
            self.score(json.dumps([[1.0, False]] * len(sample.rated)) if sample.rated else sample.gold, sample)
        except SettingError as error:  # whoever loads the samples names the group
            raise SettingError(error.name.removeprefix("dataset."), error.value, error.allowed) from error

    def score(self, prediction: str, sample: Sample) -> Record:
        said: Any = json.loads(prediction) if sample.rated else lmms_request.cut(prediction, self._generation)
        try:
            answer, found = self._task.results(int(sample.id), said)
            kept = {name: lmms_task.plain(values) for name, values in found.items()}
        except (BadRow, OSError, TypeError) as error:
            raise SettingError("dataset.task", self.task, f"row {sample.id} has {first_line(error)}") from error
        if sample.rated:
            answer = sample.options[int(np.argmin([loss for loss, _ in said]))]
        score = self._score(next(iter(kept.values())), sample.id)
        return replace(make_record(sample, prediction, answer, score), found=json.dumps(kept))

    def _score(self, values: Mapping[str, Any], row: str) -> float:
        """The score of a sample: the value of its metric, from 0 to 1.

        A mapping has it under lmms-eval's own name for it (`score_key`). A value of another form is aggregated alone.
        """
        known = self._definition
        usable = [name for name in known.aggregations if name in values and name not in known.skipped]
        name = self.metric or next(iter(usable), "")
        if name not in usable:
            raise SettingError("dataset.metric", self.metric, f"row {row} has none of the metrics but {list(values)}")
        value = values[name]
        if isinstance(value, Mapping):
            value = value.get(known.config.get("score_key", "score"))
        if not isinstance(value, int | float):
            value = _aggregate(known.aggregations[name], [values[name]])[0]
        if not 0 <= value <= 1:
            allowed = f"its value for row {row}, {value:g}, is no score from 0 to 1"
            raise SettingError("dataset.metric", name, allowed)
        return float(value)

    def _aggregates(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """The task's metrics that give a number, by the names that their values have in `metrics`."""
        known = self._definition
        for name, function in known.aggregations.items():
            if name not in known.skipped:
                yield (f"task.{name}" if name in RESERVED else name), function

    def _values(self, records: Sequence[Record]) -> dict[str, tuple[Callable[..., Any], list[int], list[Any]]]:
        """By metric: its aggregate, the numbers of the records that have it, and their values.

        With several filters, a name ends in a comma and the filter, as in lmms-eval's table.
        """
        every = [json.loads(record.found) for record in records]
        filters = list(dict.fromkeys(name for one in every for name in one))
        found = {}
        for shown, function in self._aggregates():
            name = shown.removeprefix("task.")
            for part in filters:
                at = [number for number, one in enumerate(every) if name in one[part]]
                if at:
                    key = shown if len(filters) == 1 else f"{shown},{part}"
                    found[key] = function, at, [every[number][part][name] for number in at]
        return found

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """`accuracy`, the mean of the samples' scores, and the task's own metrics; nan where its function fails."""
        values = self._values(records)
        return {"accuracy": mean_score(records)} | {
            name: _aggregate(function, items)[0] for name, (function, _, items) in values.items()
        }

    def intervals(self, records: Sequence[Record]) -> dict[str, Interval]:
        """The task's metrics with 95 % intervals: of a mean as for accuracy, of others by a bootstrap over images."""
        found: dict[str, Interval] = {}
        for name, (function, at, items) in self._values(records).items():
            images = [records[number].image_id for number in at]
            if function is mean_function() and all(isinstance(x, int | float) and 0 <= x <= 1 for x in items):
                found[name] = accuracy_interval(items, images)
            else:
                found[name] = bootstrap(function, items, images)
        return found

    def notes(self, records: Sequence[Record]) -> list[str]:
        failed = {name: _aggregate(function, items)[1] for name, (function, _, items) in self._values(records).items()}
        lines = [f"{name} cannot be computed: {why}" for name, why in failed.items() if why]
        skipped = ", ".join(self._definition.skipped)
        return lines + ([f"left out, since it writes a file for a server: {skipped}"] if skipped else [])


def _aggregate(function: Callable[..., Any], items: Sequence[Any]) -> tuple[float, str]:
    """A task's aggregate of values, and why there is none; nan and the reason if it fails or is no number."""
    try:
        with quiet(function):
            value = function(list(items))
    except Exception as error:  # code of hundreds of tasks
        return math.nan, first_line(error)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return math.nan, f"it is of type {type(value).__name__}, no number"
    return float(value), ""


def bootstrap(function: Callable[..., Any], items: Sequence[Any], images: Sequence[str]) -> Interval:
    """A task's aggregate with its 95 % interval by a bootstrap over images.

    Functions that put values together by an id get another id for each further time that a value is drawn.
    """
    index, draws = cluster_draws(images, resamples=RESAMPLES)
    ids = _ids(items, images)
    again: dict[tuple[int, int], Any] = {}

    def drawn(number: int, time: int) -> Any:
        if time == 0:
            return items[number]
        if (number, time) not in again:
            again[number, time] = _renamed(items[number], ids, time)
        return again[number, time]

    resampled = []
    for draw in draws:
        times = draw[index]
        some = [drawn(number, time) for number in range(len(items)) for time in range(times[number])]
        resampled.append(_aggregate(function, some)[0])
    return percentiles(_aggregate(function, items)[0], np.array(resampled))


def _ids(items: Sequence[Any], images: Sequence[str]) -> set[str]:
    """The entries of values that are ids of questions or images.

    Their names end in id or index, and each of their values belongs to one image: a category has many images.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for item, image in zip(items, images, strict=True):
        for name, value in item.items() if isinstance(item, Mapping) else ():
            if str(name).lower().endswith(("id", "index", "idx")):
                spelled = "" if isinstance(value, bool) else json.dumps(value)
                found.setdefault(name, {}).setdefault(spelled, set()).add(image)
    return {name for name, of in found.items() if "" not in of and all(len(some) == 1 for some in of.values())}


def _renamed(item: Any, ids: Collection[str], time: int) -> Any:
    """A value with other ids."""
    if not isinstance(item, Mapping):
        return item
    return {name: _other(value, time) if name in ids else value for name, value in item.items()}


def _other(value: Any, time: int) -> Any:
    return value + time * 10**12 if isinstance(value, int) else f"{value} again {time}"
