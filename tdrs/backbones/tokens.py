"""Text and the model's tokens: special tokens that a text contains, and the first token of an answer."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from tdrs.settings import SettingError

ANSWER = "A"  # stands for any answer
OPENS = "\"'“‘([{"  # no space follows these


@lru_cache
def _marks(tokenizer: Any) -> re.Pattern[str]:
    """Matches every token that the tokenizer cuts out of a text as a whole, such as `<image>` and `</s>`."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    marks = sorted((text for text in added if len(text) > 1 and not text.isalnum() and text.strip()), key=len)
    return re.compile("|".join(map(re.escape, reversed(marks))) or r"(?!)")


def special_token_in(tokenizer: Any, text: str) -> str:
    """The first of the model's own tokens that a text contains; "" if there is none."""
    found = _marks(tokenizer).search(text)
    return found[0] if found else ""


def as_text(tokenizer: Any, text: str) -> str:
    """Change a text so that the model reads all of it as text.

    In each of the model's own tokens, a space after the first character breaks the token. A text without such tokens
    is returned unchanged.

    Raises:
        SettingError: the tokenizer still finds a special token, for example one that is a plain word.
    """
    broken = text
    while special_token_in(tokenizer, broken):
        broken = _marks(tokenizer).sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", broken)
    left = _special(tokenizer) & set(tokenizer.encode(broken, add_special_tokens=False))
    if left:
        found = ", ".join(sorted(tokenizer.convert_ids_to_tokens(sorted(left))))
        raise SettingError("prompt", text, f"contains the model's own special token {found}, which cannot be asked")
    return broken


@lru_cache
def _special(tokenizer: Any) -> frozenset[int]:
    """The ids of all special tokens except the one for unknown words."""
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(marked | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _asked(processor: Any, answer: str | None = None) -> str:
    """A conversation in the chat template, up to where the model answers, or with an answer."""
    turns = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    if answer is None:
        return str(processor.apply_chat_template(turns, add_generation_prompt=True))
    answered = [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    text = processor.apply_chat_template(answered)
    return str(text)


def _told(processor: Any, answer: str) -> str:
    """`_asked` with an answer; "" if the chat template does not accept one."""
    try:
        return _asked(processor, answer)
    except (TemplateError, TypeError, KeyError, ValueError):
        return ""


def _with_answer(processor: Any, answer: str, opening: str = "") -> tuple[str, str]:
    """The prompt with the opening of an answer, and the same with the answer.

    After `ASSISTANT:` there is a space between the two, after a line break there is none. The template's own form of an
    answered turn decides this. If that form does not begin like the prompt, a space separates them, unless the prompt
    ends in white space.
    """
    asked = f"{_asked(processor)}{opening}"
    if opening:
        return asked, f"{asked}{'' if opening[-1].isspace() or opening[-1] in OPENS else ' '}{answer}"
    told = _told(processor, answer)
    rest = told.removeprefix(asked)
    if told.startswith(asked) and rest.lstrip().startswith(answer):
        return asked, asked + rest[: rest.index(answer)] + answer
    return asked, f"{asked}{'' if asked[-1:].isspace() else ' '}{answer}"


def first_tokens(processor: Any, answer: str, blanks: bool = True, opening: str = "") -> list[int]:
    """The tokens that a model's answer may begin with: the answer as written, and with a capital letter.

    Prompt and answer are tokenized together, because the first token of an answer alone may be another one.

    Args:
        blanks: whether the token may be a space alone, as Llama's tokenizer has it before a number. If not, the next
            token counts.
        opening: the beginning of the answer that the model continues. A space follows it, unless it ends in a space,
            a quotation mark or a bracket.
    """
    tokenizer = processor.tokenizer
    text = as_text(tokenizer, answer.strip())
    found: list[int] = []
    for spelling in dict.fromkeys((text, text[:1].upper() + text[1:])):
        ids = _added_tokens(tokenizer, *_with_answer(processor, spelling, opening))
        found += [i for i in ids if i != tokenizer.unk_token_id and (blanks or tokenizer.decode([i]).strip())][:1]
    return list(dict.fromkeys(found)) or [tokenizer.eos_token_id]


def answer_tokens(processor: Any, answer: str, opening: str = "") -> list[int]:
    """All tokens of an answer, as they follow a prompt; for `opening` see `first_tokens`."""
    tokenizer = processor.tokenizer
    return list(_added_tokens(tokenizer, *_with_answer(processor, as_text(tokenizer, answer.strip()), opening)))


class FirstTokens:
    """`first_tokens` of one processor, each computed once, after the opening of an answer if there is one."""

    def __init__(self, processor: Any, opening: str = "") -> None:
        self._processor = processor
        self._opening = opening
        self._known: dict[tuple[str, bool], list[int]] = {}

    def __call__(self, answer: str, blanks: bool = True) -> list[int]:
        """The tokens that an answer may begin with; see `first_tokens`."""
        if (answer, blanks) not in self._known:
            self._known[answer, blanks] = first_tokens(self._processor, answer, blanks, self._opening)
        return self._known[answer, blanks]


def ends(processor: Any) -> list[int]:
    """The token that ends an answer: the one that the chat template writes after it, else the tokenizer's own.

    A folder without generation_config.json may name another token, at which the model never stops.
    """
    tokenizer = processor.tokenizer
    asked, told = _asked(processor), _told(processor, ANSWER)
    if told.startswith(asked):
        rest = told.removeprefix(asked).lstrip().removeprefix(ANSWER).lstrip()
        found = tokenizer.encode(rest, add_special_tokens=False)[:1]
        if set(found) & _special(tokenizer):
            return list(found)
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _added_tokens(tokenizer: Any, asked: str, told: str) -> Sequence[int]:
    """The tokens of an answered prompt after those of the prompt.

    If the two do not begin alike, one token reaches over the border. The model has already read the prompt's own
    tokens, so it cannot say that token; it says the tokens of the rest. A line break before the rest keeps the
    tokenizer from adding a space, as it does at the beginning of a text.
    """

    def added(begin: str, whole: str) -> list[int] | None:
        before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (begin, whole))
        return list(after[len(before) :]) if after[: len(before)] == before else None

    rest = told[len(asked) :]
    for found in (added(asked, told), added("\n", f"\n{rest}")):
        if found is not None:
            return found
    return list(tokenizer.encode(rest, add_special_tokens=False))
