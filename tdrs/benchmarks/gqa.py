"""GQA: its rows in the schema of `lmms-lab/GQA` (a table of questions and one of images), its rules and its settings.

Data: D. A. Hudson, C. D. Manning, "GQA: A New Dataset for Real-World Visual Reasoning and Compositional Question
Answering", CVPR 2019; CC BY 4.0.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets

from tdrs.benchmarks import prompts
from tdrs.benchmarks.benchmark import Accepts, Benchmark, Picture, Record, Rule, Sample, Samples, anything
from tdrs.benchmarks.pictures import Pictures
from tdrs.benchmarks.rows import open_rows
from tdrs.benchmarks.sources import BadRow, Context, Sourced, Unique, check_columns, name_of, text
from tdrs.settings import SettingError

QUESTIONS = datasets.Features({name: datasets.Value("string") for name in ("id", "imageId", "question", "answer")})
IMAGES = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})


def answer_official(prediction: str) -> str:
    """The prediction itself: GQA's `eval.py` compares strings; it expects lower case and no full stop."""
    return prediction


def answer_llava(prediction: str) -> str:
    """LLaVA's `convert_gqa_for_eval.py`: strip, delete one run of full stops at the end, lower case."""
    return re.sub(r"\.+$", "", prediction.strip()).lower()


def answer_lmms_eval(prediction: str) -> str:
    """lmms-eval's exact match: strip, lower case, all punctuation deleted."""
    return prediction.strip().lower().translate(str.maketrans("", "", string.punctuation))


def _equality(form: Callable[[str], str]) -> Rule:
    """The rule that an answer is right if `form` makes it equal to the gold answer."""
    return Rule(lambda prediction, _: form(prediction), lambda answer, sample: float(answer == form(sample.gold)))


RULES = {
    "official": _equality(answer_official),
    "llava": _equality(answer_llava),
    "lmms_eval": _equality(answer_lmms_eval),
}


@dataclass(frozen=True, kw_only=True)
class GQARules(Benchmark):
    """What the real set and its twin share.

    Args:
        rule: `llava`: case and full stops at the end do not matter, as in the published scores; `official`: plain
            equality; `lmms_eval`: case and punctuation do not matter.
    """

    real: ClassVar[str] = "gqa"
    rules: ClassVar[Mapping[str, Rule]] = RULES
    rule: str = "llava"

    def sample(
        self, row: Any, number: int, picture: Picture, image: str, style: str, context: tuple[str, str]
    ) -> Sample:
        question = text(row, "question")
        return Sample(
            id=name_of(row, "id"),
            image_id=image,
            picture=picture,
            question=question,
            prompt=prompts.gqa(style, question, context[1]),
            before=context[0],
            gold=text(row, "answer"),
        )

    def notes(self, records: Sequence[Record]) -> list[str]:
        lost = sum(answer_llava(record.prediction) == record.gold for record in records if record.score == 0)
        if not lost:
            return []
        differ = "counted wrong though they differ from the gold ones only in case or a full stop"
        return [f"{lost} answers {differ}: dataset.rule=llava counts them right"]


@dataclass(frozen=True, kw_only=True)
class GQA(GQARules, Sourced):
    """The real set.

    Args:
        source: its configuration `<config>_instructions` has the questions. Its configuration `<config>_images` has the
            images, unless `images` is given.
        images: the source of the images, if they are in another folder or Parquet file.
        tuning, held_out: configuration and split of the source for each of the two splits, such as val_balanced/val.
    """

    source: str = "lmms-lab/GQA"
    images: str | None = None
    tuning: str = "val_balanced/val"
    held_out: str = "testdev_balanced/testdev"

    def origin(self, split: str) -> tuple[str | None, str]:
        config, _, name = getattr(self, split).partition("/")
        if not name:
            raise SettingError(
                split, getattr(self, split), "must be configuration/split, like testdev_balanced/testdev"
            )
        return config, name

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        config, name = self.origin(split)
        questions = open_rows(self.source, f"{config}_instructions", name, self.revision)
        check_columns(questions, tuple(QUESTIONS), self.source)
        self.check_count(len(questions), split)
        try:
            images = open_rows(self.images or self.source, f"{config}_images", name, self.revision)
            check_columns(images, tuple(IMAGES), self.images or self.source)
        except SettingError as error:
            raise SettingError("images" if self.images else "source", error.value, error.allowed) from error
        numbers: dict[str, list[int]] = {}
        for number, name in enumerate(images["id"]):
            numbers.setdefault(str(name), []).append(number)
        pictures = Pictures(images, self.images or self.source)
        ids = Unique()

        def make(number: int, row: Any, context: Context) -> Sample:
            key = name_of(row, "imageId")
            if len(numbers.get(key, [])) != 1:
                times = "twice" if key in numbers else "not"
                raise BadRow(f"no image: {key} is {times} among the images")
            one = self.sample(row, number, pictures[numbers[key][0]], key, style, context(key))
            ids.check("id", one.id, number)
            return one

        return self.gather(questions, make, split, limit, accepts)
