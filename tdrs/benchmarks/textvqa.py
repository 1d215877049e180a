"""TextVQA: rows in the schema of `lmms-lab/textvqa`, the score over ten annotators, settings.

Data: A. Singh et al., "Towards VQA Models That Can Read", CVPR 2019; CC BY 4.0.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets

from tdrs.benchmarks import prompts
from tdrs.benchmarks.benchmark import (
    Accepts,
    Benchmark,
    Picture,
    Record,
    Sample,
    Samples,
    anything,
    make_record,
    mean_score,
)
from tdrs.benchmarks.evalai import process
from tdrs.benchmarks.sources import (
    BadRow,
    Context,
    Pictures,
    Sourced,
    Unique,
    check_columns,
    name_of,
    open_rows,
    text,
    texts,
)

FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("string"),
        "question_id": datasets.Value("int32"),
        "question": datasets.Value("string"),
        "image": datasets.Image(),
        "answers": datasets.Sequence(datasets.Value("string")),
        "ocr_tokens": datasets.Sequence(datasets.Value("string")),
    }
)
ANNOTATORS = 10


def score_answer(prediction: str, answers: Sequence[str]) -> float:
    """EvalAI's soft score (mmf's `TextVQAAccuracyEvaluator`).

    The mean over the annotators of min(1, matches among the other nine / 3): 0, .3, .6, .9, 1 for 0, 1, 2, 3, ≥ 4 of
    the ten answers matching.

    Raises:
        ValueError: other than ten answers.
    """
    if len(answers) != ANNOTATORS:
        raise ValueError(f"TextVQA's score needs {ANNOTATORS} answers, got {len(answers)}")
    said = process(prediction)
    matches = [process(answer) == said for answer in answers]
    return sum(min(1.0, (sum(matches) - own) / 3) for own in matches) / ANNOTATORS


def score(prediction: str, sample: Sample) -> Record:
    """The record of an answer, with its soft score."""
    return make_record(sample, prediction, process(prediction), score_answer(prediction, sample.answers))


def metrics(records: Sequence[Record]) -> dict[str, float]:
    """`accuracy`: the mean soft score."""
    return {"accuracy": mean_score(records)}


def sample(
    row: Any, found: Picture, style: str, ocr_tokens: bool | None = None, context: tuple[str, str] = ("", "")
) -> Sample:
    """A row as a sample; `ocr_tokens` puts them into the prompt, None as the style does it (only LLaVA's has them).

    Raises:
        BadRow: other than ten answers; or a field is missing, empty or of another type.
    """
    question, answers = text(row, "question"), texts(row, "answers")
    if len(answers) != ANNOTATORS:
        raise BadRow(f"{len(answers)} answers, not {ANNOTATORS}")
    listed = style == "llava" if ocr_tokens is None else ocr_tokens
    tokens = texts(row, "ocr_tokens") if listed else None
    return Sample(
        id=name_of(row, "question_id"),
        image_id=name_of(row, "image_id"),
        picture=found,
        question=question,
        prompt=prompts.textvqa(style, question, tokens, context[1]),
        before=context[0],
        gold=Counter(answers).most_common(1)[0][0],
        answers=answers,
    )


@dataclass(frozen=True, kw_only=True)
class TextVQARules(Benchmark):
    """What the real set and its twin share.

    Args:
        rule: `evalai`, the benchmark's own.
        ocr_tokens: list what an OCR engine read in the prompt; None as the prompt's style does it.
    """

    real: ClassVar[str] = "textvqa"
    rules: ClassVar[tuple[str, ...]] = ("evalai",)
    rule: str = "evalai"
    ocr_tokens: bool | None = None

    def score(self, prediction: str, sample: Sample) -> Record:
        return score(prediction, sample)

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        return metrics(records)


@dataclass(frozen=True, kw_only=True)
class TextVQA(TextVQARules, Sourced):
    """The real set.

    Args:
        config: the hub configuration, None for its only one.
        tuning, held_out: the source's names of the splits that settings are chosen on, and that is reported.
    """

    source: str = "lmms-lab/textvqa"
    config: str | None = None
    tuning: str = "train"
    held_out: str = "validation"

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        rows = open_rows(self.source, self.config, getattr(self, split), self.revision)
        check_columns(rows, tuple(FEATURES), self.source)
        self.check_count(len(rows), split)
        pictures = Pictures(rows, self.source)
        ids = Unique()

        def make(number: int, row: Any, context: Context) -> Sample:
            one = sample(row, pictures[number], style, self.ocr_tokens, context(name_of(row, "image_id")))
            ids.check("question_id", one.id, number)
            return one

        return self.gather(rows, make, split, limit, accepts)
