"""The rules for a user's own questions: how the answer is found in a prediction, and how it is scored."""

import json
import math
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tdrs.benchmarks.benchmark import Record, Rule, Sample
from tdrs.benchmarks.prompts import LETTERS
from tdrs.benchmarks.sources import BadRow
from tdrs.benchmarks.textvqa import ANNOTATORS
from tdrs.benchmarks.textvqa import RULES as TEXTVQA
from tdrs.statistics import Interval, cluster_draws, percentiles

# A sign stands in front of a number, not after a letter or a digit ("COVID-19", "3-5"); thousands have commas.
_NUMBER = re.compile(r"(?:(?<![^\W_])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_MINUS = str.maketrans("\u2212\u2012\u2013\ufe63\uff0d", "-----")  # other signs that are printed for a minus
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?!,?\d)")
_ARTICLES = {"a", "an", "the"}
# Words of a sentence, not letters of choices: "A dog", but not "A is right".
_WORDS = re.compile(r"\b[AI] (?!(?:and|as|because|is|or|since)\b)(?=[a-z])")
ANSWER_AS = ("auto", "letter", "text", "index", "number")


def normalised(text: str) -> str:
    """A text without case, punctuation, articles, double spaces and commas between thousands.

    The marks that belong to a number stay: a point between digits, and a minus in front of the first one.
    """
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).translate(_MINUS)
    plain = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), plain)
    marked = "".join(one if _stays(plain, place) else " " for place, one in enumerate(plain))
    return " ".join(word for word in marked.split() if word not in _ARTICLES)


def _stays(text: str, place: int) -> bool:
    """Whether a letter of a text is no punctuation, or belongs to a number."""
    one, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    if one not in string.punctuation and not unicodedata.category(one).startswith("P"):
        return True
    if one == ".":
        return before.isdigit() and after.isdigit()
    return one == "-" and after.isdigit() and not before.isalnum()


def first_number(text: str) -> str:
    """The first number in a text, without commas between thousands; "" if there is none."""
    found = _NUMBER.search(text.translate(_MINUS))
    return found[0].replace(",", "") if found else ""


def close(answer: str, sample: Sample, tolerance: float) -> float:
    """1 if a number differs from the gold one by at most `tolerance` times the gold one, else 0."""
    if not answer:
        return 0.0
    gold = float(first_number(sample.gold))
    return float(math.isclose(float(answer), gold, rel_tol=0, abs_tol=tolerance * abs(gold) + 1e-12 * abs(gold)))


def number_rule(tolerance: float) -> Rule:
    """The rule `number` with a tolerance, a share of the gold number."""
    return Rule(lambda prediction, _: first_number(prediction), lambda answer, one: close(answer, one, tolerance))


def _holds(prediction: str, sample: Sample) -> str:
    """The first of the accepted answers whose words stand in the prediction in a row; "" if none does."""
    said = f" {normalised(prediction)} "
    return next((answer for answer in sample.answers if f" {normalised(answer)} " in said), "")


def _generated(prediction: str, sample: Sample) -> str:
    """The right answer, if the model would have generated it; the prediction is a rating of it, see `Sample.rated`."""
    ((_, greedy),) = json.loads(prediction)
    return sample.gold if greedy else ""


def perplexity(records: Sequence[Record]) -> Interval:
    """exp of the mean of −log p of the right answers' tokens, a mean over each answer first; images are the clusters.

    Args:
        records: their margins are the means of log p.
    """
    index, draws = cluster_draws([record.image_id for record in records])
    weights = np.array([record.weight for record in records])
    logs = weights * [record.margin for record in records]
    sums, counts = (np.bincount(index, values, draws.shape[1]) for values in (logs, weights))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.exp(-np.divide(logs.sum(), weights.sum())))
        return percentiles(value, np.exp(-(draws @ sums) / (draws @ counts)))


def _is_one_of(answer: str, sample: Sample) -> float:
    return float(answer in {normalised(one) for one in sample.answers})


RULES: dict[str, Rule] = {
    "any_of": Rule(lambda prediction, _: normalised(prediction), _is_one_of),
    "exact": Rule(lambda prediction, _: prediction.strip()),
    "normalised": Rule(
        lambda prediction, _: normalised(prediction), lambda answer, one: float(answer == normalised(one.gold))
    ),
    "contains": Rule(_holds, lambda answer, _: float(answer != "")),
    "multiple_choice": Rule(lambda prediction, one: letter_of(prediction, one.choices)),
    "yes_no": Rule(lambda prediction, _: yes_or_no(prediction)),
    "evalai": TEXTVQA["evalai"],
    "number": number_rule(0.0),
    "perplexity": Rule(_generated),
}


def yes_or_no(prediction: str) -> str:
    """Yes or no if exactly one of the two is a word of the prediction; else ""."""
    found = {"yes", "no"} & set(normalised(prediction).split())
    return found.pop() if len(found) == 1 else ""


def letter_of(prediction: str, choices: Sequence[str]) -> str:
    """The letter of the choice that a prediction names; "" if it names none or several.

    It is named by a letter at the beginning, by its text as the whole prediction, by a letter within, or by its text
    alone of all choices, as words in a row. A text within another one that is named does not count ("red" in "dark
    red").
    """
    letters = LETTERS[: len(choices)]
    first = re.match(r"[\W_]*([A-Za-z])(?:\s*[.):,]|[\W_]*$)", prediction)
    if first and first[1].upper() in letters:
        return first[1].upper()
    texts = {letter: normalised(choice) for letter, choice in zip(letters, choices, strict=True)}
    said = normalised(prediction)
    found = [letter for letter, text in texts.items() if text and text == said]
    if len(found) != 1:
        marked = {match[0] for match in re.finditer(r"(?<![^\W_])[A-Z](?![^\W_])(?!['’])", _WORDS.sub(" ", prediction))}
        found = [letter for letter in letters if letter in marked]
    if len(found) != 1:
        held = {letter: text for letter, text in texts.items() if text and f" {text} " in f" {said} "}
        found = [
            letter
            for letter, text in held.items()
            if not any(f" {text} " in f" {other} " for at, other in held.items() if at != letter and other != text)
        ]
    return found[0] if len(found) == 1 else ""


# In cache keys: another number where a rule changes, so that its evaluations are made again.
VERSIONS = dict.fromkeys(RULES.keys() - {"perplexity"}, "2")


def check_answers(rule: str, answers: Sequence[str], column: str) -> None:
    """Raises BadRow unless a rule can score by these answers."""
    if rule == "evalai" and len(answers) != ANNOTATORS:
        raise BadRow(f"{len(answers)} {column}, and the rule evalai needs {ANNOTATORS}")
    if rule in ("exact", "normalised", "number", "yes_no", "perplexity") and len(answers) != 1:
        raise BadRow(f"{len(answers)} {column}, and the rule {rule} needs one; any_of and contains take several")
    if rule == "number":
        found = first_number(answers[0])
        if not found or found != answers[0].strip().translate(_MINUS).replace(",", ""):
            raise BadRow(f"{column} {answers[0]!r}, not a number, and the rule number needs one")
        if not math.isfinite(float(found)):
            raise BadRow(f"{column} {answers[0]!r}, too large a number")
    if rule == "yes_no" and answers[0].strip().lower() not in ("yes", "no"):
        raise BadRow(f"{column} {answers[0]!r}, not yes or no")
    if rule in ("any_of", "normalised", "contains"):
        empty = [one for one in answers if not normalised(one)]
        if empty:
            raise BadRow(f"{column} {empty[0]!r}, of which punctuation and articles are not compared")


def chosen(value: Any, choices: Sequence[str], answer_as: str, column: str) -> str:
    """The letter of the right choice.

    Args:
        answer_as: what the column has: a `letter`, the choice's `text`, its `index` from 0, or its `number` from 1;
            `auto` is a letter or the text.

    Raises:
        BadRow: no choice is named so, or `auto` could mean two.
    """
    letters = LETTERS[: len(choices)]
    text = value if isinstance(value, str) else str(value) if isinstance(value, int) else ""
    said, found = text.strip(), set()
    if answer_as in ("auto", "letter") and len(said) == 1 and said.upper() in letters:
        found.add(said.upper())
    if answer_as in ("auto", "text"):
        found |= {letter for letter, choice in zip(letters, choices, strict=True) if choice.strip() == said}
    if answer_as in ("index", "number") and re.fullmatch(r"\d+", said):
        place = int(said) - (answer_as == "number")
        found |= {letters[place]} if 0 <= place < len(letters) else set()
    if answer_as == "auto" and re.fullmatch(r"\d+", said) and 0 <= int(said) <= len(choices) and found:
        what = "is the text of a choice, and could be its place; set answer_as to text, index or number"
        raise BadRow(f"{column} {value!r}, which {what}")
    if len(found) == 1:
        return found.pop()
    last = len(choices) - 1
    allowed: Mapping[str, str] = {
        "auto": f"a letter from A to {letters[-1]} or the text of one choice (for numbers set answer_as)",
        "letter": f"a letter from A to {letters[-1]}",
        "text": "the text of one choice",
        "index": f"a whole number from 0 to {last}",
        "number": f"a whole number from 1 to {last + 1}",
    }
    what = "names two choices" if found else "names no choice"
    raise BadRow(f"{column} {value!r}, which {what}; it must be {allowed[answer_as]}")
