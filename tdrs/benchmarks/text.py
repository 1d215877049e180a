"""Recall from a text, for language models: a passage of facts, unrelated text, then a question about one fact.

A language model has no picture, and the mechanism under test is of rotary positions, not of pictures. So a passage
takes the place of the picture. Its tokens have the role `image` for every method and setting that knows roles (`pairs`,
PAI, VAF, key_bias and others). The tokens before it, such as the system prompt, have the role `system`, and all others
the role `text`. `gap` puts unrelated text between passage and question; `filler=before_image` puts it in front of the
passage.

Passages are generated from a seed, or read from a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from tdrs.benchmarks import prompts
from tdrs.benchmarks.benchmark import Accepts, Passage, Samples, anything
from tdrs.benchmarks.own import Tabled
from tdrs.benchmarks.own_cells import Fields
from tdrs.benchmarks.sources import text
from tdrs.settings import SettingError, check_number

GENERATED = "generated"
# The unrelated text contains none of them. Keys of a passage differ in their first digit, which the margin compares.
NAMES = "Anna Ben Carl David Emma Frank George Helen Ivan James Kate Laura".split()
SIZES = {"tuning": 1000, "held_out": 2000}
SEEDS = {"tuning": 1, "held_out": 2}


def facts_of(split: str, number: int, count: int, seed: int) -> tuple[list[tuple[str, str]], int]:
    """The facts of a passage, pairs of a name and a key of four digits, and the number of the one that is asked."""
    rng = np.random.default_rng([SEEDS[split], seed, number])
    names = rng.permutation(NAMES)[:count].tolist()
    keys = [f"{first}{rng.integers(1000):03d}" for first in rng.permutation(np.arange(1, 10))[:count]]
    return list(zip(names, keys, strict=True)), int(rng.integers(count))


@lru_cache(maxsize=32)
def _generated(settings: "Text", split: str, count: int) -> Sequence[Any]:
    made = []
    for number in range(count):
        facts, asked = facts_of(split, number, settings.facts, settings.seed)
        cells = {
            "question": f"What is the pass key of {facts[asked][0]}?",
            "answers": facts[asked][1],
            "opening": f'The pass key of {facts[asked][0]} is "',
        }
        passage = Passage.of_text(" ".join(f'The pass key of {name} is "{key}".' for name, key in facts))
        name = f"{split}-{number}"
        row = Fields({kind: kind for kind in cells}, cells)
        sample = settings.sample(row, number, passage, name, "", settings.context(split, name))
        made.append(replace(sample, options=tuple(sorted(key for _, key in facts))))
    return made


@dataclass(frozen=True, kw_only=True)
class Text(Tabled):
    """Questions about passages of text, for language models.

    Args:
        source: `generated`: passages of facts; or a file as for `dataset=own`, with a column `passage` in place of the
            pictures. A column `opening` has the beginning of the answer, which the model continues.
        facts: how many facts a generated passage has, 1 to 9; one of them is asked. Each is a name with a key of four
            digits.
    """

    real: ClassVar[str] = "text"
    pictures: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = (
        "question", "passage", "answers", "choices", "passage_id", "id", "category", "opening", "split",
    )  # fmt: skip
    media: ClassVar[str] = "passage"
    shown: ClassVar[tuple[str, ...]] = ("perplexity",)
    source: str = GENERATED
    rule: str = "contains"
    facts: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("facts", self.facts, 1, 9, whole=True)
        if self.source != GENERATED:
            return
        if self.rule in ("yes_no", "evalai", "multiple_choice"):
            raise SettingError("rule", self.rule, "does not fit generated passages, whose answers are keys")
        for name in ("column", "rows", "bad_rows", "answer_as", "separator", "tuning", "held_out", "tuning_share"):
            given, usual = getattr(self, name), {} if name == "column" else getattr(type(self), name)
            if given != usual:
                raise SettingError(name, given, "is of tables; generated passages do not have it")

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        if self.source != GENERATED:
            return super().load(split, limit, style, accepts)
        if limit is not None and limit > SIZES[split]:
            raise SettingError("limit", limit, f"text has {SIZES[split]} generated samples in {split}")
        return Samples(_generated(self, split, limit or SIZES[split]))

    def media_of(self, rows: Any, at: Mapping[str, str]) -> tuple[Any, Any]:
        """The rows, and what gives the passage of a row."""
        return rows, lambda number, row: Passage.of_text(text(row, at["passage"]))

    def asked(self, style: str, question: str, choices: Sequence[str], context: str) -> str:
        """The text of the user's turn after the passage. There is no toolkit to follow: it is the question alone."""
        if self.rule == "multiple_choice":
            return prompts.scienceqa(style, question, choices, context=context)
        return f"{context}\n{question}" if context else question
