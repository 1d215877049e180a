"""What every benchmark has: samples, records, and the steps from a row of data to a metric.

A benchmark loads samples (`load`), scores a prediction (`score`) and computes metrics from records (`metrics`). A new
one is a class with `real`, `rules` and `sample`, which turns a row into a sample; `Sourced` reads the rows of a data
set, `Embedded` generates them. The rule and the style of the prompt are settings.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, ClassVar, Self

from PIL import Image

from tdrs.benchmarks.filler import filler_of
from tdrs.benchmarks.pixels import decode
from tdrs.benchmarks.prompts import STYLES
from tdrs.settings import LARGEST_SEED, check_choice, check_number
from tdrs.statistics import Interval, Measure

SPLITS = ("tuning", "held_out")
PLACES = ("between", "before_image")
LONGEST_GAP = 2048
Size = tuple[int, int]  # a picture's width and height
# The sizes of a prompt's pictures → why a model cannot take them; "" if it can.
Accepts = Callable[[Sequence[Size]], str]


def anything(sizes: Sequence[Size]) -> str:
    """Accept any number of pictures of any size."""
    return ""


@dataclass(frozen=True)
class Picture:
    """An encoded picture that is read only when it is needed: a benchmark's pictures need not fit into memory."""

    read: Callable[[], bytes]

    @classmethod
    def of(cls, image: Image.Image) -> "Picture":
        """A picture from a decoded image."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return cls(buffer.getvalue)

    def open(self, transparency: str = "drop") -> Image.Image:
        """The decoded picture, upright, in RGB.

        Args:
            transparency: how transparent pixels are shown; see `pixels.TRANSPARENCY`.

        Raises:
            OSError: the bytes are corrupt or no picture, or the range of its pixels is not known.
        """
        return decode(self.read(), transparency)

    def blank(self) -> "Picture":
        """A grey picture of the same size."""
        return Picture(lambda: Picture.of(Image.new("RGB", self.open().size, (165, 165, 165))).read())

    @cached_property
    def digest(self) -> str:
        """A hash of the encoded bytes."""
        return hashlib.sha256(self.read()).hexdigest()[:24]

    @property
    def parts(self) -> tuple["Picture", ...]:
        """The pictures that a model gets, in their order: this one."""
        return (self,)


@dataclass(frozen=True)
class PictureSet(Picture):
    """The pictures of one prompt, in their order. How many there are is read only when it is needed.

    The digest of several is a hash of their digests. A set of one picture is like that picture.

    Attributes:
        found: gives the pictures.
    """

    found: Callable[[], tuple[Picture, ...]]

    @classmethod
    def of_parts(cls, find: Callable[[], Sequence[Picture]]) -> "PictureSet":
        """A set from a function that finds its pictures; it is called once."""
        found = cache(lambda: tuple(find()))
        return cls(lambda: _bytes_of(found()), found)

    @property
    def parts(self) -> tuple[Picture, ...]:
        return self.found()

    @cached_property
    def digest(self) -> str:
        return self.parts[0].digest if len(self.parts) == 1 else super().digest

    def open(self, transparency: str = "drop") -> Image.Image:
        """The decoded picture of a set of one. Raises OSError if there are several; see `parts`."""
        if len(self.parts) != 1:
            raise OSError(f"{len(self.parts)} pictures, not one")
        return self.parts[0].open(transparency)

    def blank(self) -> "PictureSet":
        """As many grey pictures of the same sizes."""
        return PictureSet.of_parts(lambda: [part.blank() for part in self.parts])


def _bytes_of(parts: Sequence[Picture]) -> bytes:
    """The bytes of a single picture; of several, their digests."""
    return parts[0].read() if len(parts) == 1 else " ".join(part.digest for part in parts).encode()


@dataclass(frozen=True)
class Passage(Picture):
    """A text in the place of a picture, for language models. `read` gives its bytes.

    Attributes:
        text: a language model reads it where another model sees the picture.
    """

    text: str

    @classmethod
    def of_text(cls, text: str) -> "Passage":
        """A passage from its text."""
        return cls(text.encode, text)

    def open(self, transparency: str = "drop") -> Image.Image:
        """Raises OSError: there is no picture."""
        raise OSError("a text, not a picture")

    def blank(self) -> "Passage":
        """A passage of the same number of words that says nothing."""
        return Passage.of_text(" ".join("_" for _ in self.text.split()))


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one picture, or about several.

    Attributes:
        id: unique in its split.
        image_id: equal for all questions about one picture; statistics use it as the cluster.
        picture: a picture, several in a set, or a passage.
        prompt: the text of the user's turn after the image, or after the last of several.
        gold: the right answer: an option's letter, a word, the most frequent of ten answers.
        before: text of the user's turn in front of the image.
        options: the possible answers, such as letters, or yes and no; empty if the question is open.
        choices: the texts of the options, where the options are letters.
        answers: the answers of all annotators, where there are several.
        categories: the parts of the benchmark to which it belongs, such as POPE's.
        strata: what else a limited split is balanced over, such as the grade; see `draw.py`.
        weight: its weight in means, on average 1. One sample of POPE may stand for a row of each category.
        row: a hash of the whole row, where the rule reads more of it than these texts.
        longest: the most tokens of an answer, where the benchmark itself says so; None is what the toolkit allows.
        rated: continuations of the prompt; the model rates how likely each is, instead of answering in its own words.
        opening: the beginning of the model's answer, which it continues. Only language models take one.
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
    row: str = ""
    longest: int | None = None
    rated: tuple[str, ...] = ()
    opening: str = ""

    @property
    def image(self) -> Image.Image:
        """The decoded picture. Raises OSError if there are several."""
        return self.picture.open()

    @property
    def images(self) -> list[Image.Image]:
        """The decoded pictures, in their order."""
        return [part.open() for part in self.picture.parts]


@dataclass(frozen=True, slots=True)
class Record:
    """The scored answer to one sample.

    Attributes:
        answer: the answer that the rule found in the prediction; "" if it found none.
        score: from 0 to 1.
        margin: log-odds of the gold answer against the best other one at the first answer token, in nats; of a rated
            answer see `rate`; nan if it was not measured.
        categories: those of the sample, joined by commas.
        found: what a task of lmms-eval computed from the answer, as JSON; "" for all other benchmarks.
        first_token: the distribution of the answer's first token, as `first_token.compact` gives it; "" if it was not
            kept, as in records that were made before it was.
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
    found: str = ""
    first_token: str = ""


def make_record(sample: Sample, prediction: str, answer: str, score: float) -> Record:
    """The record of a scored prediction; its margin is nan."""
    return Record(
        id=sample.id,
        image_id=sample.image_id,
        question=sample.question,
        prediction=prediction,
        answer=answer,
        gold=sample.gold,
        score=float(score),
        margin=float("nan"),
        categories=",".join(sample.categories),
        weight=sample.weight,
    )


def is_gold(answer: str, sample: Sample) -> float:
    """1 for the gold answer, else 0."""
    return float(answer == sample.gold)


@dataclass(frozen=True)
class Rule:
    """How answers are scored. Rules differ between toolkits, and so do the scores.

    Attributes:
        read: the answer in a prediction to a sample; "" if it has none.
        score: the score of such an answer, from 0 to 1.
    """

    read: Callable[[str, Sample], str]
    score: Callable[[str, Sample], float] = is_gold


def mean_score(records: Sequence[Record]) -> float:
    """The weighted mean of the scores; nan without records."""
    total = sum(record.weight for record in records)
    return sum(record.score * record.weight for record in records) / total if total else float("nan")


class Samples(list[Sample]):
    """The samples of a split, with notes on how they were read, such as the rows that were left out."""

    def __init__(self, samples: Sequence[Sample], notes: Sequence[str] = ()) -> None:
        super().__init__(samples)
        self.notes = list(notes)

    @cached_property
    def content(self) -> str:
        """A hash of all that decides the records: pictures, prompts, gold answers, weights, and the order."""
        digest = hashlib.sha256()
        for sample in self:
            row = as_row(sample) | {"question": sample.question, "weight": sample.weight}
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Settings that all benchmarks have.

    Args:
        rule: how answers are scored, by a name in `rules`; `prompt` is the rule of the toolkit whose prompt is used.
        prompt: the style of the prompt: `llava`, `lmms_eval`, `internvl`, `vlmevalkit`; `backbone` is the style of the
            model that is asked.
        gap: tokens of unrelated text, 0 to 2048; a word or a full stop is one token.
        filler: where this text stands: `between` image and question; or `before_image`: the same length, no distance.
        blank: every picture is plain grey; this control shows whether the image is used.
        seed: another seed draws another text, and for an embedded benchmark other samples.
    """

    real: ClassVar[str]  # the name of the real set; an embedded twin has its prompts and rules
    rules: ClassVar[Mapping[str, Rule]]
    pictures: ClassVar[bool] = True  # whether samples have pictures, or passages for language models
    shown: ClassVar[tuple[str, ...]] = ()  # metrics that a one-line summary shows beside accuracy
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
        follows_prompt = set(STYLES) <= set(self.rules)  # a rule for each style of prompt
        check_choice("rule", self.rule, ("prompt", *self.rules) if follows_prompt else list(self.rules))

    def asked_by(self, style: str) -> Self:
        """The benchmark for a model with this prompt style: its `prompt` is a style, its `rule` the name of a rule."""
        prompt = style if self.prompt == "backbone" else self.prompt
        return replace(self, prompt=prompt, rule=prompt if self.rule == "prompt" else self.rule)

    @property
    def scoring(self) -> list[str]:
        """What decides the score of an answer to a sample, for cache keys."""
        return [type(self).__name__, self.rule]

    def context(self, split: str, image: str) -> tuple[str, str]:
        """The text in front of an image, and the text between image and question; one of them is "".

        All questions about an image have the same text, so the common beginning of their prompts is read only once.
        """
        text = filler_of(image, self.gap, SPLITS.index(split) + 1, self.seed)
        return (f"Context: {text}\n", "") if text and self.filler == "before_image" else ("", text)

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        """Load a split with the prompts of a style.

        Args:
            split: `tuning` or `held_out`.
            limit: the most samples; they are a fair draw of whole images. None is all.
            accepts: says why the model cannot take a prompt's pictures of these sizes; "" if it can.

        Raises:
            SettingError: the source cannot be read, or a row is unusable.
        """
        raise NotImplementedError

    def sample(
        self, row: Any, number: int, picture: Picture, image: str, style: str, context: tuple[str, str]
    ) -> Sample:
        """A row of the data as a sample.

        Args:
            number: of the row.
            image: the name of the image, for `image_id`.
            style: the style of the prompt.
            context: the texts in front of the image and between image and question, from `context`.

        Raises:
            BadRow: the row cannot be used.
        """
        raise NotImplementedError

    def merged(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples without duplicates of a question, with their weights. By default nothing is merged."""
        return list(samples)

    @property
    def applied(self) -> Rule:
        """The rule that scores answers."""
        return self.rules[self.asked_by(STYLES[0]).rule]

    def score(self, prediction: str, sample: Sample) -> Record:
        """The record of a prediction, scored by the benchmark's rule."""
        rule = self.applied
        answer = rule.read(prediction, sample)
        return make_record(sample, prediction, answer, rule.score(answer, sample))

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """The metrics of records; nan without records. Settings are tuned on `accuracy`, the weighted mean score."""
        return {"accuracy": mean_score(records)}

    def intervals(self, records: Sequence[Record]) -> dict[str, Interval]:
        """Metrics that are not means of scores, such as F1, with 95 % intervals; images are the clusters."""
        return {}

    @classmethod
    def measures_of(cls, rule: str) -> dict[str, Measure]:
        """What reports show beside the accuracy of a rule, by name. The data need not be there."""
        return {}

    def notes(self, records: Sequence[Record]) -> list[str]:
        """What a reader of the metrics should know, one line each."""
        return []


def as_row(sample: Sample) -> dict[str, Any]:
    """A sample's texts, for readers and for content hashes; the picture as its digest."""
    texts = {
        name: getattr(sample, name) for name in ("id", "image_id", "before", "prompt", "gold", "options", "answers")
    }
    seldom = {name: getattr(sample, name) for name in ("row", "longest", "rated", "opening") if getattr(sample, name)}
    return texts | {"categories": sample.categories, "picture": sample.picture.digest} | seldom
