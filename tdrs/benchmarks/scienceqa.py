"""ScienceQA-IMG: rows in the schema of `lmms-lab/ScienceQA`, rules, settings.

Data: P. Lu et al., "Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering", NeurIPS
2022; CC BY-NC-SA 4.0.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets

from tdrs.benchmarks import prompts
from tdrs.benchmarks.benchmark import Benchmark, Picture, Record, Rule, Sample
from tdrs.benchmarks.prompts import LETTERS
from tdrs.benchmarks.sources import BadRow, Sourced, text, texts

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


def letter_llava(prediction: str, choices: Sequence[str] = ()) -> str:
    """The option letter an answer gives, "" for none, by LLaVA's `eval_science_qa.py`.

    Exactly one letter; or a letter followed by ". "; or exactly one match of "The answer is X.", where any character
    may stand for the full stop.
    """
    if len(prediction) == 1 and prediction in LETTERS:
        return prediction
    if len(prediction) >= 3 and prediction[0] in LETTERS and prediction[1:3] == ". ":
        return prediction[0]
    found = re.findall(r"The answer is ([A-Z]).", prediction)
    return found[0] if len(found) == 1 else ""


def letter_lmms_eval(prediction: str, choices: Sequence[str] = ()) -> str:
    """The option letter by lmms-eval: one letter in either case, or an upper-case letter and a full stop in front."""
    if len(prediction) == 1 and prediction.upper() in LETTERS:
        return prediction.upper()
    return prediction[0] if len(prediction) >= 2 and prediction[0] in LETTERS and prediction[1] == "." else ""


def letter_internvl(prediction: str, choices: Sequence[str] = ()) -> str:
    """The option letter by InternVL's `evaluate_scienceqa.py`.

    The only character; or the first one, if it is an option's letter; or the first option whose text is in the answer.
    Where InternVL's code guesses, this finds none.
    """
    letters = LETTERS[: len(choices)]
    if len(prediction) == 1 or (prediction and prediction[0] in letters):
        return prediction[0]
    return next((letter for letter, choice in zip(letters, choices, strict=True) if choice in prediction), "")


def letter_vlmevalkit(prediction: str, choices: Sequence[str] = ()) -> str:
    """The option letter by VLMEvalKit's `can_infer`, without a judge.

    If exactly one option's letter is a word of the answer, that letter; otherwise, if the text of exactly one option is
    in the answer, in any case, the letter of that option.
    """
    letters = LETTERS[: len(choices)]
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", prediction).split()
    found = [letter for letter in letters if letter in words]
    if len(found) != 1:
        told = prediction.lower()
        found = [letter for letter, choice in zip(letters, choices, strict=True) if choice.lower() in told]
    return found[0] if len(found) == 1 else ""


def _letter(read: Callable[[str, Sequence[str]], str]) -> Rule:
    """An option's letter is right if it is the gold one; no letter, or one beyond the choices, is wrong."""
    return Rule(lambda prediction, sample: read(prediction.strip(), sample.choices))


# each is named after the toolkit whose prompts it belongs to
RULES = {
    "llava": _letter(letter_llava),
    "lmms_eval": _letter(letter_lmms_eval),
    "internvl": _letter(letter_internvl),
    "vlmevalkit": _letter(letter_vlmevalkit),
}


def _index(row: Mapping[str, Any], count: int) -> int:
    """The number of the right option: the field is that number, or the option's letter."""
    value = row["answer"]
    if isinstance(value, str) and len(value) == 1 and value in LETTERS[:count]:
        return LETTERS.index(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise BadRow("no answer" if value is None else f"answer {value!r}, not a number or letter of an option")
    if not 0 <= value < count:
        raise BadRow(f"answer {value} of {count} options")
    return int(value)


@dataclass(frozen=True, kw_only=True)
class ScienceQARules(Benchmark):
    """What the real set and its twin share.

    Args:
        rule: how an answer is read: `prompt`, as the toolkit of the prompt reads it; or as `llava`, `lmms_eval`,
            `internvl` or `vlmevalkit` reads it.
    """

    real: ClassVar[str] = "scienceqa"
    shown: ClassVar[tuple[str, ...]] = ("parsed",)
    rules: ClassVar[Mapping[str, Rule]] = RULES
    rule: str = "prompt"

    def sample(
        self, row: Any, number: int, picture: Picture, image: str, style: str, context: tuple[str, str]
    ) -> Sample:
        question, choices = text(row, "question"), texts(row, "choices")
        for n, choice in enumerate(choices):
            text({f"option {n}": choice}, f"option {n}")
        if not 2 <= len(choices) <= len(LETTERS):
            raise BadRow(f"{len(choices)} options, not 2 to {len(LETTERS)}")
        subject = text(row, "subject", optional=True)
        return Sample(
            id=str(number),
            image_id=image,
            picture=picture,
            question=question,
            prompt=prompts.scienceqa(style, question, choices, text(row, "hint", optional=True), context[1]),
            before=context[0],
            gold=LETTERS[_index(row, len(choices))],
            options=tuple(LETTERS[: len(choices)]),
            choices=choices,
            categories=(subject,) if subject else (),
            strata=tuple(str(row.get(name)) for name in ("grade", "topic")),
        )

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """`accuracy`, and `parsed`, the share of answers that give a letter."""
        parsed = sum(record.answer != "" for record in records) / len(records) if records else float("nan")
        return super().metrics(records) | {"parsed": parsed}


@dataclass(frozen=True, kw_only=True)
class ScienceQA(ScienceQARules, Sourced):
    """The real set, rows with an image.

    Args:
        config: the hub configuration.
        tuning, held_out: the source's names of the two splits.
    """

    columns: ClassVar[tuple[str, ...]] = NEEDED
    image_column: ClassVar[str] = ""
    source: str = "lmms-lab/ScienceQA"
    config: str | None = "ScienceQA-IMG"
    tuning: str = "validation"
    held_out: str = "test"
