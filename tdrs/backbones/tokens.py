"""Text and the model's tokens: special tokens that a text spells out, and the first token of an answer."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from tdrs.settings import SettingError

ANSWER = "A"  # stands for any


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
        SettingError: the tokenizer finds a special token all the same, for example one that is a plain word.
    """
    broken = text
    while holds_marks(tokenizer, broken):
        broken = _marks(tokenizer).sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", broken)
    left = _special(tokenizer) & set(tokenizer.encode(broken, add_special_tokens=False))
    if left:
        found = ", ".join(sorted(tokenizer.convert_ids_to_tokens(sorted(left))))
        raise SettingError("prompt", text, f"contains the model's own special token {found}, which cannot be asked")
    return broken


@lru_cache
def _special(tokenizer: Any) -> frozenset[int]:
    """Special tokens, but the one for unknown words."""
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(marked | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _asked(processor: Any, answer: str | None = None) -> str:
    """A conversation up to where the model answers; or with an answer, as the chat template writes it."""
    turns = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    if answer is None:
        return str(processor.apply_chat_template(turns, add_generation_prompt=True))
    answered = [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    text = processor.apply_chat_template(answered)
    return str(text)


def _told(processor: Any, answer: str) -> str:
    """`_asked` with an answer; "" where the chat template takes none."""
    try:
        return _asked(processor, answer)
    except (TemplateError, TypeError, KeyError, ValueError):
        return ""


def _with_answer(processor: Any, answer: str) -> tuple[str, str]:
    """What the model is asked, and the same with an answer: behind `ASSISTANT:` a blank is between, behind a line none.

    The template's own form of an answered turn says which; where it has another beginning, a blank follows a word.
    """
    asked = _asked(processor)
    told = _told(processor, answer)
    behind = told.removeprefix(asked)
    if told.startswith(asked) and behind.lstrip().startswith(answer):
        return asked, asked + behind[: behind.index(answer)] + answer
    return asked, f"{asked}{'' if asked[-1:].isspace() else ' '}{answer}"


def first_tokens(processor: Any, answer: str, blanks: bool = True) -> list[int]:
    """The tokens that a model's answer may begin with: as written, and with a capital.

    Prompt and answer are tokenized together: where an answer stands alone, its first token may be another one.

    Args:
        blanks: whether the token may be a blank alone, as Llama's tokenizer has it before a number; else the first one
            behind it.
    """
    tokenizer = processor.tokenizer
    text = as_text(tokenizer, answer.strip())
    found: list[int] = []
    for spelling in dict.fromkeys((text, text[:1].upper() + text[1:])):
        asked, told = _with_answer(processor, spelling)
        ids = _behind(tokenizer, asked, told)
        found += [i for i in ids if i != tokenizer.unk_token_id and (blanks or tokenizer.decode([i]).strip())][:1]
    return list(dict.fromkeys(found)) or [tokenizer.eos_token_id]


def ends(processor: Any) -> list[int]:
    """The token that the chat template writes behind an answer, which ends it; the tokenizer's own where there is none.

    A folder without generation_config.json may name another one, at which the model never stops.
    """
    tokenizer = processor.tokenizer
    asked, told = _asked(processor), _told(processor, ANSWER)
    if told.startswith(asked):
        behind = told.removeprefix(asked).lstrip().removeprefix(ANSWER).lstrip()
        found = tokenizer.encode(behind, add_special_tokens=False)[:1]
        if set(found) & _special(tokenizer):
            return list(found)
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _behind(tokenizer: Any, asked: str, told: str) -> Sequence[int]:
    """The tokens of an answered prompt behind those of the prompt.

    Where the two do not begin alike, a token reaches over the border. The model has read the prompt's own tokens, so it
    cannot say that one; it says those of the rest. A line break in front of the rest keeps the tokenizer from adding a
    blank, as it does at the beginning of a text.
    """

    def behind(begin: str, whole: str) -> list[int] | None:
        before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (begin, whole))
        return list(after[len(before) :]) if after[: len(before)] == before else None

    rest = told[len(asked) :]
    for found in (behind(asked, told), behind("\n", f"\n{rest}")):
        if found is not None:
            return found
    return list(tokenizer.encode(rest, add_special_tokens=False))
