"""Every style's prompt, to the letter."""

import pytest

from tdrs.benchmarks import prompts
from tdrs.benchmarks.prompts import STYLES, answer_length

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
    ("style", "benchmark", "length"),
    [
        ("llava", "scienceqa", (0, 1024)),
        ("llava", "pope", (0, 128)),
        ("internvl", "gqa", (1, 10)),
        ("internvl", "textvqa", (1, 10)),
        ("internvl", "scienceqa", (1, 100)),
        ("lmms_eval", "gqa", (0, 16)),
        ("lmms_eval", "scienceqa", (0, 16)),
        ("lmms_eval", "textvqa", (0, 1024)),
        ("lmms_eval", "pope", (0, 128)),
        ("vlmevalkit", "pope", (0, 2048)),
    ],
)
def test_answer_lengths(style: str, benchmark: str, length: tuple[int, int]) -> None:
    assert answer_length(style, benchmark) == length
    assert answer_length(style, benchmark, 5) == (length[0], 5)


def test_every_style_has_a_longest_answer() -> None:
    assert all(answer_length(style, "gqa").most > 0 for style in STYLES)


def test_ocr_tokens_of_internvl_are_joined_by_a_blank() -> None:
    assert prompts.textvqa("internvl", "what?", ["a"]) == f"what?\nReference OCR token: a {WORD}"
