"""What every benchmark has: samples, records, and the three steps between a row and a number.

A benchmark turns rows into samples (`load`), a prediction on a sample into a record (`score`), records into metrics
(`metrics`). A rule is a pure function; which one a benchmark uses, and which toolkit's prompt, are its settings.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from PIL import Image

from tdrs.benchmarks.filler import filler_of
from tdrs.benchmarks.pixels import decode
from tdrs.benchmarks.prompts import STYLES
from tdrs.settings import LARGEST_SEED, check_choice, check_number
from tdrs.statistics import Interval

SPLITS = ("tuning", "held_out")
PLACES = ("between", "before_image")
LONGEST_GAP = 2048
Accepts = Callable[[tuple[int, int]], str]  # a picture's width and height → why a model cannot take it, or ""


def anything(size: tuple[int, int]) -> str:
    """Accepts pictures of any size."""
    return ""


@dataclass(frozen=True)
class Picture:
    """An encoded picture that is read when it is looked at: a benchmark's pictures need not fit into memory."""

    read: Callable[[], bytes]

    @classmethod
    def of(cls, image: Image.Image) -> "Picture":
        """An image that is already decoded."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return cls(buffer.getvalue)

    def open(self, transparency: str = "drop") -> Image.Image:
        """The decoded picture, upright, in RGB.

        Args:
            transparency: what becomes of it; see `pixels.TRANSPARENCY`.

        Raises:
            OSError: the bytes are corrupt or no picture, or its pixels have no range that is known.
        """
        return decode(self.read(), transparency)

    def blank(self) -> "Picture":
        """A grey picture of the same size."""
        return Picture(lambda: Picture.of(Image.new("RGB", self.open().size, (165, 165, 165))).read())

    @cached_property
    def digest(self) -> str:
        """A hash of the encoded bytes."""
        return hashlib.sha256(self.read()).hexdigest()[:24]


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    Attributes:
        id: unique in its split.
        image_id: questions about one picture share it; statistics take it as the cluster.
        prompt: the text of the user's turn after the image.
        gold: the answer that a right prediction gives: an option's letter, a word, the commonest of ten answers.
        before: text of the user's turn in front of the image.
        options: the answers it can be told apart from: letters, yes and no; empty if the question is open.
        choices: the texts of the options, where these are letters.
        answers: the answers of all annotators, where there are several.
        categories: the parts of the benchmark it belongs to, e.g. POPE's.
        strata: what else a limited split is balanced over, e.g. the grade; see `draw.py`.
        weight: how much it counts in means, on average 1: a pair of POPE may stand for a row in each category.
    """

    id: str
    image_id: str
    picture: Picture = field(repr=False, compare=False)
    question: str
    prompt: str
    gold: str
    before: str = ""
    options: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def image(self) -> Image.Image:
        return self.picture.open()


@dataclass(frozen=True)
class Record:
    """One sample's outcome.

    Attributes:
        answer: what the rule read out of the prediction; "" if it could not.
        score: from 0 to 1.
        margin: log-odds of the gold answer against the best other one, at the first answer token, in nats; nan if it
            was not measured.
        categories: as the sample's, joined by a comma.
    """

    id: str
    image_id: str
    question: str
    prediction: str
    answer: str
    gold: str
    score: float
    margin: float
    categories: str
    weight: float


def make_record(sample: Sample, prediction: str, answer: str, score: float) -> Record:
    """A record of a scored prediction, its margin not measured."""
    categories = ",".join(sample.categories)
    margin = float("nan")
    return Record(
        id=sample.id,
        image_id=sample.image_id,
        question=sample.question,
        prediction=prediction,
        answer=answer,
        gold=sample.gold,
        score=float(score),
        margin=margin,
        categories=categories,
        weight=sample.weight,
    )


def mean_score(records: Sequence[Record]) -> float:
    """The mean score, each record by its weight; nan without any record."""
    total = sum(record.weight for record in records)
    return sum(record.score * record.weight for record in records) / total if total else float("nan")


class Samples(list[Sample]):
    """Samples of a split, with what there is to say about how they were read (rows left out, the form of the set)."""

    def __init__(self, samples: Sequence[Sample], notes: Sequence[str] = ()) -> None:
        super().__init__(samples)
        self.notes = list(notes)

    @cached_property
    def content(self) -> str:
        """A hash of all that is asked and how much it counts: pictures, prompts, gold answers, weights, their order."""
        digest = hashlib.sha256()
        for sample in self:
            row = as_row(sample) | {"question": sample.question, "weight": sample.weight}
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Settings that all benchmarks have.

    Args:
        prompt: whose prompt: `llava`, `lmms_eval`, `internvl`, `vlmevalkit`; `backbone` is the style of the model that
            is asked.
        gap: tokens of unrelated text, 0 to 2048; a word or a full stop is a token.
        filler: where they stand: `between` image and question; or `before_image`, the same length, no distance.
        blank: every picture is plain grey: a control that says whether the image is used.
        seed: another seed is another draw of that text (and, of an embedded benchmark, of its samples).
        rule: how answers are scored; each benchmark has its own.
    """

    real: ClassVar[str]  # the real set's name: an embedded twin is prompted and scored like it
    rules: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]] = ()  # metrics that a one-line summary has beside accuracy
    rule: str
    prompt: str = "backbone"
    gap: int = 0
    filler: str = "between"
    blank: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("prompt", self.prompt, ("backbone", *STYLES))
        check_choice("filler", self.filler, PLACES)
        check_number("gap", self.gap, 0, LONGEST_GAP, whole=True)
        check_number("seed", self.seed, 0, LARGEST_SEED, whole=True)
        check_choice("rule", self.rule, self.rules)

    def asked_by(self, style: str) -> Self:
        """The benchmark as a model with this prompt style is asked: its prompt, and a rule that follows it, settled."""
        return replace(self, prompt=style) if self.prompt == "backbone" else self

    def context(self, split: str, image: str) -> tuple[str, str]:
        """The text in front of an image, and the one between it and a question; one of them is "".

        All questions about an image have the same text: what their prompts begin with alike is read once.
        """
        text = filler_of(image, self.gap, SPLITS.index(split) + 1, self.seed)
        return (f"Context: {text}\n", "") if text and self.filler == "before_image" else ("", text)

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        """A split, asked in a prompt style; with a limit, a fair draw of whole images with at most so many samples.

        Args:
            split: `tuning` or `held_out`.
            accepts: says why the model cannot take a picture of a size; "" where it can.

        Raises:
            SettingError: the source cannot be read, or a row is unusable.
        """
        raise NotImplementedError

    def merged(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples of which none asks what another one asks, each with its weight among these."""
        return list(samples)

    def score(self, prediction: str, sample: Sample) -> Record:
        """The record of a prediction, by the benchmark's rule."""
        raise NotImplementedError

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """Metrics of records; `accuracy` is the one that settings are tuned on. nan where there is nothing to count."""
        raise NotImplementedError

    def intervals(self, records: Sequence[Record]) -> dict[str, Interval]:
        """Of metrics that are no means of scores, such as F1, their values with 95 % intervals, images as clusters."""
        return {}

    def notes(self, records: Sequence[Record]) -> list[str]:
        """What a reader of the metrics should know, one line each."""
        return []


def as_row(sample: Sample) -> dict[str, Any]:
    """A sample's texts, for people and for content hashes; the picture by its digest."""
    texts = {
        name: getattr(sample, name) for name in ("id", "image_id", "before", "prompt", "gold", "options", "answers")
    }
    return texts | {"categories": sample.categories, "picture": sample.picture.digest}
