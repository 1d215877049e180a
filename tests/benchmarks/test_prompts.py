"""Every style's prompt, to the letter."""

import pytest

from tdrs.benchmarks import prompts
from tdrs.benchmarks.prompts import STYLES, longest_answer

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("llava", f"Context: Look.\nWhat is it?\nA. a cat\nB. a dog\n{LETTER}"),
        ("lmms_eval", f"Context: Look.\nWhat is it?\nA. a cat\nB. a dog\n{LETTER}"),
        ("internvl", f"Look.\nWhat is it?\nA. a cat\nB. a dog\n{LETTER}"),
        (
            "vlmevalkit",
            "Hint: Look.\nQuestion: What is it?\nOptions:\nA. a cat\nB. a dog\n"
            "Please select the correct answer from the options above. \n",
        ),
    ],
)
def test_scienceqa(style: str, expected: str) -> None:
    assert prompts.scienceqa(style, "What is it?", ["a cat", "a dog"], "Look.") == expected
    first = expected.index("\n") + 1
    assert prompts.scienceqa(style, "What is it?", ["a cat", "a dog"]) == expected[first:]
    longer = expected.replace("Look.", "It rains. Look.")
    assert prompts.scienceqa(style, "What is it?", ["a cat", "a dog"], "Look.", "It rains.") == longer


@pytest.mark.parametrize(
    ("style", "gqa", "textvqa", "pope"),
    [
        ("llava", f"is it? Q\n{WORD}", f"is it? Q\n{WORD}", f" Is there a cat? \n{WORD}"),
        ("lmms_eval", f"is it? Q\n{WORD}", f"Is it? q\n{WORD}", f"Is there a cat?\n{WORD}"),
        ("internvl", f"is it? Q {WORD}", f"is it? Q {WORD}", f" Is there a cat? \n{WORD}"),
        ("vlmevalkit", f"is it? Q\n{WORD}", f"is it? Q\n{WORD}", " Is there a cat? "),
    ],
)
def test_open_questions(style: str, gqa: str, textvqa: str, pope: str) -> None:
    assert prompts.gqa(style, "is it? Q") == gqa
    assert prompts.textvqa(style, "is it? Q") == textvqa
    assert prompts.pope(style, " Is there a cat? ") == pope
    for made, bare in (
        (prompts.gqa(style, "is it? Q", "It rains."), gqa),
        (prompts.textvqa(style, "is it? Q", None, "It rains."), textvqa),
        (prompts.pope(style, " Is there a cat? ", "It rains."), pope),
    ):
        assert made == f"Context: It rains.\n{bare}"


def test_ocr_tokens() -> None:
    listed = prompts.textvqa("llava", "what?", ["stop", "42"])
    assert listed == f"what?\nReference OCR token: stop, 42\n{WORD}"
    assert prompts.textvqa("llava", "what?", []) == f"what?\nReference OCR token: \n{WORD}"


@pytest.mark.parametrize(
    ("style", "benchmark", "tokens"),
    [
        ("llava", "scienceqa", 1024),
        ("llava", "pope", 128),
        ("internvl", "gqa", 10),
        ("internvl", "textvqa", 10),
        ("internvl", "scienceqa", 100),
    ],
)
def test_longest_answers(style: str, benchmark: str, tokens: int) -> None:
    assert longest_answer(style, benchmark) == tokens


def test_every_style_has_a_longest_answer() -> None:
    assert all(longest_answer(style, "gqa") > 0 for style in STYLES)
