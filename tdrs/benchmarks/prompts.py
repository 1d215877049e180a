"""Prompts: how a sample becomes the text of the user's turn.

Styles are named after the toolkit that uses them; the text is theirs to the letter, since wording changes scores.
"""

from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
SINGLE_WORD = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


def scienceqa_llava(question: str, choices: Sequence[str], hint: str) -> str:
    """ScienceQA as LLaVA's own evaluation (and lmms-eval) asks it; the context line only where there is a hint."""
    context = f"Context: {hint}\n" if hint else ""
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{context}{question}\n{options}{OPTION_LETTER}"
