"""A backbone under a method as a model of lmms-eval, for its own command.

    lmms_eval --model tdrs --model_args backbone=llava_1_5_7b,intervention=tdrs,gain=weights --tasks pope

Only lmms-eval imports this module; see `tdrs.lmms_eval_plugin`.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from tdrs import backbones, commands
from tdrs.backbones.limits import notes_of
from tdrs.benchmarks import Sample
from tdrs.benchmarks.benchmark import Picture, PictureSet
from tdrs.benchmarks.lmms_request import Question, cut, encode, length_of, not_greedy, question_of
from tdrs.benchmarks.sources import BadRow
from tdrs.configuration import check, compose, plain
from tdrs.environment import shows_progress
from tdrs.evaluation import Plan, clamped_line, plan
from tdrs.settings import SettingError

STYLE = "lmms_eval"  # the toolkit whose prompts are asked


def planned(arguments: Mapping[str, Any], batch_size: object = 1, device: str | None = None) -> Plan:
    """The checked configuration that `--model_args` gives.

    Args:
        arguments: `backbone` and `intervention` are choices of these groups. A name with a full stop is a setting as on
            the command line of `tdrs.evaluate`, such as `backbone.source`; any other is one of the intervention.
        device: `--device`, which is `backbone.device`.

    Raises:
        SettingError: a setting is unknown or out of range.
    """
    chosen = {name: arguments[name] for name in ("backbone", "intervention") if name in arguments}
    others = {name: value for name, value in arguments.items() if name not in chosen}
    if device is not None:
        others.setdefault("backbone.device", device)
    given = {name if "." in name else f"intervention.{name}": value for name, value in others.items()}
    if not str(batch_size).isdigit():
        raise SettingError("batch_size", batch_size, "must be a whole number of at least 1")
    given |= {"batch_size": int(str(batch_size)), "output": tempfile.gettempdir()}  # nothing is written there
    config = plain(compose("evaluate", [f"{name}={_text(value)}" for name, value in {**chosen, **given}.items()]))
    check("evaluate", config)
    return plan(config)


def _text(value: Any) -> str:
    """A value in Hydra's grammar; lists, mappings and null are typed in it."""
    literal = isinstance(value, str) and (value[:1] in "[{" or value == "null")
    return value if literal else commands.value(value)


class SimpleModel(lmms):  # type: ignore[misc]
    """A model that gets requests as texts with pictures. Answers are greedy.

    Args:
        batch_size: how many requests are asked at a time.
        max_batch_size: not used; lmms-eval gives it to every model.
        device: `cpu` or `cuda`; None is the backbone's own setting.
        arguments: as in `planned`.

    Raises:
        SettingError: a setting is unknown or out of range, or the model is not available.
    """

    is_simple = True
    _ends = False  # whether an error ends the process with one line

    def __init__(
        self, batch_size: object = 1, max_batch_size: object = None, device: str | None = None, **arguments: Any
    ) -> None:
        super().__init__()
        del max_batch_size
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SettingError(
                "WORLD_SIZE", os.environ["WORLD_SIZE"], "must be 1; backbone.device=spread uses all GPUs"
            )
        self.plan = planned(arguments, batch_size, device)
        self.backbone = backbones.load(self.plan.backbone)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "SimpleModel":
        """The model that a command names. Errors that a user can correct end the process with one line, and code 2."""
        with _one_line():
            model: SimpleModel = super().create_from_arg_string(arg_string, additional_config)
        model._ends = True
        return model

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answers to requests; each ends before the first of its request's `until`."""
        answers: list[str] = []
        with self._asking(len(requests)) as bar:
            for generation, some in groupby(requests, lambda request: self._parts(request)[1]):
                if asked := not_greedy(generation):
                    raise SettingError(
                        "gen_kwargs", asked, "answers are greedy, such as with --gen_kwargs temperature=0"
                    )
                for batch in _batches(list(some), self.plan.batch_size):
                    samples = [self._sample(request, longest=length_of(generation)) for request in batch]
                    said = self.backbone.answer(samples, STYLE, STYLE)
                    answers += [cut(answer.text, generation) for answer in said]
                    bar.update(len(batch))
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Of each request the mean of −log p over the tokens of its continuation, in nats, and whether it is greedy."""
        ratings: list[Any] = []
        with self._asking(len(requests)) as bar:
            for batch in _batches(requests, self.plan.batch_size):
                samples = [self._sample(request, rated=(self._continuation(request),)) for request in batch]
                answers = self.backbone.answer(samples, STYLE, STYLE)
                ratings += [GenerationResult(answer.ratings[0]) for answer in answers]  # a bare pair becomes text there
                bar.update(len(batch))
        return ratings

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not possible. Raises SettingError."""
        with self._asking(len(requests)):
            raise SettingError(
                "tasks", requests[0].task_name, "asks several rounds; only single questions can be asked"
            )

    def _parts(self, request: Any) -> tuple[Any, Any, Any]:
        """The text of a request, its settings of generation or its continuation, and its function for pictures."""
        text, middle, visual, *_ = request.args
        return text, middle, visual

    def _question(self, request: Any, row: Any) -> Question:
        text, _, visual = self._parts(request)
        pictures = [{"type": "image", "url": one} for one in visual(row) or []]
        return question_of([{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}])

    def _continuation(self, request: Any) -> str:
        given = self._parts(request)[1]
        return str(given(self._row(request)) if callable(given) else given)

    def _row(self, request: Any) -> Any:
        *_, number, task, split = request.args
        return self.task_dict[task][split][number]

    def _sample(self, request: Any, **given: Any) -> Sample:
        try:
            question = self._question(request, self._row(request))
        except BadRow as error:
            raise SettingError("tasks", request.task_name, f"row {request.doc_id} has {error}") from None
        fault = self.plan.backbone.accepts([image.size for image in question.images])
        if fault:
            many = "an image" if len(question.images) == 1 else f"{len(question.images)} images"
            raise SettingError("tasks", request.task_name, f"row {request.doc_id} has {many} ({fault})")
        parts = [Picture(partial(encode, image)) for image in question.images]
        return Sample(
            id=f"{request.task_name} {request.doc_id}",
            image_id="",
            picture=PictureSet.of_parts(lambda: parts),
            question=question.prompt,
            prompt=question.prompt,
            gold="",
            before=question.before,
            **given,
        )

    @contextmanager
    def _asking(self, count: int) -> Iterator[Any]:
        """A bar for requests that are asked under the method. What was clamped is logged at its end."""
        with (
            _one_line(self._ends),
            self.backbone.intervene(self.plan.intervention, self.plan.execution) as session,
            tqdm(total=count, desc="tdrs", unit="request", disable=not shows_progress()) as bar,
        ):
            yield bar
            if line := clamped_line(session.tally.take().get("clamped", {})):
                logger.info(line)
            for note in notes_of(self.backbone.lengths.take()):
                logger.warning(note)


class ChatModel(SimpleModel):
    """A model that gets requests as messages."""

    is_simple = False

    def _parts(self, request: Any) -> tuple[Any, Any, Any]:
        text, messages, generation, *_ = request.args
        return text, generation, messages

    def _question(self, request: Any, row: Any) -> Question:
        return question_of(self._parts(request)[2](row))


def _batches(requests: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(requests), size):
        yield requests[first : first + size]


@contextmanager
def _one_line(ends: bool = True) -> Iterator[None]:
    """End the process with one line at an error that a user can correct; lmms-eval would show a traceback."""
    try:
        yield
    except (SettingError, FloatingPointError) as error:
        if not ends:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, SettingError) else 1) from None
