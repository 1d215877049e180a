"""Prompts: how a row becomes the text of the user's turn.

Styles are named after the toolkit that uses them, the text is theirs to the letter, since wording changes scores:
`llava`, LLaVA's own evaluation; `lmms_eval`; `internvl`, InternVL's own evaluation (VLMEvalKit asks ScienceQA of LLaVA
and InternVL so too); `vlmevalkit`, VLMEvalKit, with its ScienceQA prompt for Qwen.

`context` is text that stands between the image and the question (a gap's filler); "" is none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tdrs.settings import check_choice

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SINGLE_WORD = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
STYLES = ("llava", "lmms_eval", "internvl", "vlmevalkit")

# The longest answer each toolkit lets a model give, in tokens, by benchmark; None is any other.
_LONGEST: dict[str, dict[str | None, int]] = {
    "llava": {"scienceqa": 1024, None: 128},
    "internvl": {"gqa": 10, "textvqa": 10, None: 100},
    "lmms_eval": {"gqa": 16, "scienceqa": 16, "textvqa": 1024, None: 128},
    "vlmevalkit": {None: 2048},
}
_SHORTEST = {"internvl": 1}  # its evaluation asks for a token at least; the others take an empty answer


class AnswerLength(NamedTuple):
    """How many tokens an answer has at least and at most, the one that ends it among them."""

    least: int
    most: int


def answer_length(style: str, benchmark: str, most: int | None = None) -> AnswerLength:
    """How many tokens a toolkit lets an answer have.

    Args:
        style: whose prompt is asked.
        benchmark: the real set's name, e.g. `gqa`.
        most: goes before the toolkit's own.
    """
    check_choice("prompt", style, STYLES)
    longest = most or _LONGEST[style].get(benchmark, _LONGEST[style][None])
    return AnswerLength(_SHORTEST.get(style, 0), longest)


def scienceqa(style: str, question: str, choices: Sequence[str], hint: str = "", context: str = "") -> str:
    """A multiple-choice question; the hint's line only where there is a hint. A context is read as part of the hint."""
    check_choice("prompt", style, STYLES)
    hint = " ".join(part for part in (context, hint) if part)
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    if style == "vlmevalkit":
        before = f"Hint: {hint}\n" if hint else ""
        after = "Please select the correct answer from the options above. \n"
        return f"{before}Question: {question}\nOptions:\n{options}{after}"
    before = (f"{hint}\n" if style == "internvl" else f"Context: {hint}\n") if hint else ""
    return f"{before}{question}\n{options}{OPTION_LETTER}"


def _in_front(context: str) -> str:
    return f"Context: {context}\n" if context else ""


def gqa(style: str, question: str, context: str = "") -> str:
    """An open question to be answered in a word."""
    check_choice("prompt", style, STYLES)
    between = " " if style == "internvl" else "\n"
    return f"{_in_front(context)}{question}{between}{SINGLE_WORD}"


def textvqa(style: str, question: str, ocr_tokens: Sequence[str] | None = None, context: str = "") -> str:
    """A question about text in the picture; with `ocr_tokens` a line that lists what an OCR engine read."""
    check_choice("prompt", style, STYLES)
    if style == "lmms_eval":
        question = question.capitalize()
    if ocr_tokens is not None:
        question = f"{question}\nReference OCR token: {', '.join(ocr_tokens)}"
    between = " " if style == "internvl" else "\n"
    return f"{_in_front(context)}{question}{between}{SINGLE_WORD}"


def pope(style: str, question: str, context: str = "") -> str:
    """A question to be answered by yes or no."""
    check_choice("prompt", style, STYLES)
    if style == "vlmevalkit":
        return f"{_in_front(context)}{question}"
    if style == "lmms_eval":
        question = question.strip()
    return f"{_in_front(context)}{question}\n{SINGLE_WORD}"
