"""ScienceQA-IMG: rows in the schema of `lmms-lab/ScienceQA`, rules, settings.

Data: P. Lu et al., "Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering", NeurIPS
2022; CC BY-NC-SA 4.0.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets

from tdrs.benchmarks import prompts
from tdrs.benchmarks.benchmark import Benchmark, Picture, Record, Sample, Samples, make_record, mean_score
from tdrs.benchmarks.prompts import LETTERS
from tdrs.benchmarks.sources import BadRow, Checked, Sourced, check_columns, open_rows, picture

_TEXT = ("question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "choices": datasets.Sequence(datasets.Value("string")),
        "answer": datasets.Value("int8"),
        **{name: datasets.Value("string") for name in _TEXT[1:]},
    }
)
NEEDED = ("image", "question", "choices", "answer", "hint")


def letter_llava(prediction: str) -> str:
    """The option letter an answer gives, "" for none, by LLaVA's `eval_science_qa.py`.

    Exactly one letter; or a letter followed by ". "; or exactly one match of "The answer is X.".
    """
    if len(prediction) == 1 and prediction in LETTERS:
        return prediction
    if len(prediction) >= 3 and prediction[0] in LETTERS and prediction[1:3] == ". ":
        return prediction[0]
    found = re.findall(r"The answer is ([A-Z])\.", prediction)
    return found[0] if len(found) == 1 else ""


def letter_lmms_eval(prediction: str) -> str:
    """The option letter by lmms-eval: one letter in either case, or an upper-case letter and a full stop in front."""
    if len(prediction) == 1 and prediction.upper() in LETTERS:
        return prediction.upper()
    return prediction[0] if len(prediction) >= 2 and prediction[0] in LETTERS and prediction[1] == "." else ""


RULES: dict[str, Callable[[str], str]] = {"llava": letter_llava, "lmms_eval": letter_lmms_eval}


def score(prediction: str, sample: Sample, rule: str = "llava") -> Record:
    """The record of an answer; no letter, or one beyond the choices, is wrong."""
    letter = RULES[rule](prediction.strip())
    return make_record(sample, prediction, letter, letter == sample.gold)


def metrics(records: Sequence[Record]) -> dict[str, float]:
    """`accuracy`, and the share of answers that give a letter, `parsed`."""
    parsed = sum(record.answer != "" for record in records) / len(records) if records else float("nan")
    return {"accuracy": mean_score(records), "parsed": parsed}


def sample(
    row: Any, number: int, found: Picture, image_id: str, style: str, context: tuple[str, str] = ("", "")
) -> Sample:
    """A row as a sample; `context` is the text in front of the image, and between image and question.

    Raises:
        BadRow: the answer is not one of the choices.
    """
    choices = tuple(row["choices"])
    if not 0 <= row["answer"] < len(choices) <= len(LETTERS):
        raise BadRow(f"answer {row['answer']} of {len(choices)} choices")
    return Sample(
        id=str(number),
        image_id=image_id,
        picture=found,
        question=row["question"],
        prompt=prompts.scienceqa(style, row["question"], choices, row["hint"] or "", context[1]),
        before=context[0],
        gold=LETTERS[row["answer"]],
        options=tuple(LETTERS[: len(choices)]),
        categories=(row["subject"],) if row.get("subject") else (),
    )


@dataclass(frozen=True, kw_only=True)
class ScienceQARules(Benchmark):
    """What the real set and its twin share.

    Args:
        rule: how an answer is read: `llava`, or `lmms_eval`.
    """

    real: ClassVar[str] = "scienceqa"
    shown: ClassVar[tuple[str, ...]] = ("parsed",)
    rules: ClassVar[tuple[str, ...]] = tuple(RULES)
    rule: str = "llava"

    def score(self, prediction: str, sample: Sample) -> Record:
        return score(prediction, sample, self.rule)

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        return metrics(records)


@dataclass(frozen=True, kw_only=True)
class ScienceQA(ScienceQARules, Sourced):
    """The real set, rows with an image.

    Args:
        config: the hub configuration.
        tuning, held_out: the source's names of the splits that settings are chosen on, and that is reported.
    """

    source: str = "lmms-lab/ScienceQA"
    config: str | None = "ScienceQA-IMG"
    tuning: str = "validation"
    held_out: str = "test"

    def load(self, split: str, limit: int | None, style: str) -> Samples:
        rows = open_rows(self.source, self.config, getattr(self, split), self.revision)
        check_columns(rows, NEEDED, self.source)
        self.check_count(len(rows), split)
        checked = Checked()

        def make(number: int, row: Any) -> Sample:
            found = picture(rows, number)
            checked.check(str(number), found)
            return sample(row, number, found, found.digest, style, self.context(split, found.digest))

        return self.gather(rows, make, limit)
