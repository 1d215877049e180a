"""TextVQA: rows in the schema of `lmms-lab/textvqa`, the score over ten annotators, settings.

Data: A. Singh et al., "Towards VQA Models That Can Read", CVPR 2019; CC BY 4.0.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets

from tdrs.benchmarks import prompts
from tdrs.benchmarks.benchmark import Benchmark, Picture, Rule, Sample
from tdrs.benchmarks.evalai import process
from tdrs.benchmarks.sources import BadRow, Sourced, name_of, text, texts

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
        ValueError: there are not ten answers.
    """
    return _soft(process(prediction), answers)


def _soft(said: str, answers: Sequence[str]) -> float:
    """The score of an answer that is in EvalAI's form."""
    if len(answers) != ANNOTATORS:
        raise ValueError(f"TextVQA's score needs {ANNOTATORS} answers, got {len(answers)}")
    matches = [process(answer) == said for answer in answers]
    return sum(min(1.0, (sum(matches) - own) / 3) for own in matches) / ANNOTATORS


RULES = {"evalai": Rule(lambda prediction, sample: process(prediction), lambda said, one: _soft(said, one.answers))}


@dataclass(frozen=True, kw_only=True)
class TextVQARules(Benchmark):
    """What the real set and its twin share.

    Args:
        rule: `evalai`, the benchmark's own.
        ocr_tokens: whether the prompt lists what an OCR engine read; None: as in the prompt's style.
    """

    real: ClassVar[str] = "textvqa"
    rules: ClassVar[Mapping[str, Rule]] = RULES
    rule: str = "evalai"
    ocr_tokens: bool | None = None

    def sample(
        self, row: Any, number: int, picture: Picture, image: str, style: str, context: tuple[str, str]
    ) -> Sample:
        question, answers = text(row, "question"), texts(row, "answers")
        if len(answers) != ANNOTATORS:
            raise BadRow(f"{len(answers)} answers, not {ANNOTATORS}")
        listed = style == "llava" if self.ocr_tokens is None else self.ocr_tokens
        tokens = texts(row, "ocr_tokens") if listed else None
        return Sample(
            id=name_of(row, "question_id"),
            image_id=image,
            picture=picture,
            question=question,
            prompt=prompts.textvqa(style, question, tokens, context[1]),
            before=context[0],
            gold=Counter(answers).most_common(1)[0][0],
            answers=answers,
        )


@dataclass(frozen=True, kw_only=True)
class TextVQA(TextVQARules, Sourced):
    """The real set.

    Args:
        config: the hub configuration, None for its only one.
        tuning, held_out: the source's names of the two splits.
    """

    columns: ClassVar[tuple[str, ...]] = tuple(FEATURES)
    image_column: ClassVar[str] = "image_id"
    id_column: ClassVar[str] = "question_id"
    source: str = "lmms-lab/textvqa"
    config: str | None = None
    tuning: str = "train"
    held_out: str = "validation"
