"""Text and the model's tokens: special tokens that a text spells out, and the first token of an answer."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError


@lru_cache
def _marks(tokenizer: Any) -> re.Pattern[str]:
    """Matches every token that the tokenizer takes out of a text as a whole, such as `<image>` and `</s>`."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    marks = sorted((text for text in added if len(text) > 1 and not text.isalnum() and text.strip()), key=len)
    return re.compile("|".join(map(re.escape, reversed(marks))) or r"(?!)")


def holds_marks(tokenizer: Any, text: str) -> str:
    """The first of the model's own tokens that a text spells out; "" for none."""
    found = _marks(tokenizer).search(text)
    return found[0] if found else ""


def as_text(tokenizer: Any, text: str) -> str:
    """A text that the model reads as text: a blank behind the first character breaks each of its own tokens in it.

    A text without any is returned as it is.

    Raises:
        ValueError: the tokenizer finds a special token all the same.
    """
    broken = text
    while holds_marks(tokenizer, broken):
        broken = _marks(tokenizer).sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", broken)
    if broken != text:
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        left = special & set(tokenizer.encode(broken, add_special_tokens=False))
        if left:
            raise ValueError(f"{text!r} contains {tokenizer.decode(sorted(left))!r}, which cannot be asked as text")
    return broken


def _asked(processor: Any, answer: str | None = None) -> str:
    """A conversation up to where the model answers; or with an answer, as the chat template writes it."""
    turns = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    if answer is None:
        return str(processor.apply_chat_template(turns, add_generation_prompt=True))
    answered = [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    text = processor.apply_chat_template(answered)
    return str(text)


def _with_answer(processor: Any, answer: str) -> tuple[str, str]:
    """What the model is asked, and the same with an answer: behind `ASSISTANT:` a blank is between, behind a line none.

    The template's own form of an answered turn says which; where it has another beginning, a blank follows a word.
    """
    asked = _asked(processor)
    try:
        told = _asked(processor, answer)
    except (TemplateError, TypeError, KeyError, ValueError):
        told = ""
    behind = told.removeprefix(asked)
    if told.startswith(asked) and behind.lstrip().startswith(answer):
        return asked, asked + behind[: behind.index(answer)] + answer
    return asked, f"{asked}{'' if asked[-1:].isspace() else ' '}{answer}"


def first_tokens(processor: Any, answer: str) -> list[int]:
    """The tokens that a model's answer may begin with: as written, and with a capital.

    Prompt and answer are tokenized together: where an answer stands alone, its first token may be another one. Blanks
    that stand before the first word are passed over, since all answers begin with them.
    """
    tokenizer = processor.tokenizer
    text = as_text(tokenizer, answer.strip())
    found: list[int] = []
    for spelling in dict.fromkeys((text, text[:1].upper() + text[1:])):
        asked, told = _with_answer(processor, spelling)
        ids = _behind(tokenizer, asked, told)
        found += [i for i in ids if i != tokenizer.unk_token_id and tokenizer.decode([i]).strip()][:1]
    return list(dict.fromkeys(found)) or [tokenizer.eos_token_id]


def _behind(tokenizer: Any, asked: str, told: str) -> Sequence[int]:
    """The tokens of an answered prompt behind those of the prompt.

    Where the two do not begin alike, a token reaches over the border. The model has read the prompt's own tokens, so it
    cannot say that one; it says those of the rest alone.
    """
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (asked, told))
    if after[: len(before)] == before:
        return after[len(before) :]
    return tokenizer.encode(told[len(asked) :], add_special_tokens=False)
