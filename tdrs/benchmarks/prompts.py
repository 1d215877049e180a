"""Prompts: how a row becomes the text of the user's turn.

A style is named after the toolkit that uses it. The text is exactly the toolkit's, because wording changes scores:
`llava`, LLaVA's own evaluation; `lmms_eval`; `internvl`, InternVL's own evaluation (VLMEvalKit asks LLaVA and InternVL
the questions of ScienceQA with the same prompt); `vlmevalkit`, VLMEvalKit, with its ScienceQA prompt for Qwen.

`context` is text between the image and the question (a gap's filler); "" means that there is none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tdrs.settings import check_choice

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SINGLE_WORD = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
STYLES = ("llava", "lmms_eval", "internvl", "vlmevalkit")

# The longest answer that each toolkit allows, in tokens, by benchmark; None is any other benchmark.
_LONGEST: dict[str, dict[str | None, int]] = {
    "llava": {"scienceqa": 1024, None: 128},
    "internvl": {"gqa": 10, "textvqa": 10, None: 100},
    "lmms_eval": {"gqa": 16, "scienceqa": 16, "textvqa": 1024, None: 128},
    "vlmevalkit": {None: 2048},
}
_SHORTEST = {"internvl": 1}  # its evaluation asks for at least one token; the others accept an empty answer


class AnswerLength(NamedTuple):
    """The least and the most tokens of an answer, including the token that ends it."""

    least: int
    most: int


def answer_length(style: str, benchmark: str, most: int | None = None) -> AnswerLength:
    """The length of answers that a toolkit allows.

    Args:
        style: the toolkit, by its style of prompt.
        benchmark: the real set's name, such as `gqa`.
        most: replaces the toolkit's own maximum.
    """
    check_choice("prompt", style, STYLES)
    longest = most or _LONGEST[style].get(benchmark, _LONGEST[style][None])
    return AnswerLength(_SHORTEST.get(style, 0), longest)


def scienceqa(style: str, question: str, choices: Sequence[str], hint: str = "", context: str = "") -> str:
    """A multiple-choice question, with a line for the hint if there is one. A context becomes part of the hint."""
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
    """An open question whose answer is one word."""
    check_choice("prompt", style, STYLES)
    between = " " if style == "internvl" else "\n"
    return f"{_in_front(context)}{question}{between}{SINGLE_WORD}"


def textvqa(style: str, question: str, ocr_tokens: Sequence[str] | None = None, context: str = "") -> str:
    """A question about text in the picture; `ocr_tokens` adds a line with what an OCR engine read."""
    check_choice("prompt", style, STYLES)
    if style == "lmms_eval":
        question = question.capitalize()
    if ocr_tokens is not None:
        question = f"{question}\nReference OCR token: {', '.join(ocr_tokens)}"
    between = " " if style == "internvl" else "\n"
    return f"{_in_front(context)}{question}{between}{SINGLE_WORD}"


def pope(style: str, question: str, context: str = "") -> str:
    """A question whose answer is yes or no."""
    check_choice("prompt", style, STYLES)
    if style == "vlmevalkit":
        return f"{_in_front(context)}{question}"
    if style == "lmms_eval":
        question = question.strip()
    return f"{_in_front(context)}{question}\n{SINGLE_WORD}"
