"""The rules for a user's own questions: how the answer is found in a prediction, and how it is scored."""

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tdrs.benchmarks.benchmark import Record, Rule, Sample
from tdrs.benchmarks.pope import answer_vlmevalkit
from tdrs.benchmarks.prompts import LETTERS
from tdrs.benchmarks.scienceqa import letter_vlmevalkit
from tdrs.benchmarks.sources import BadRow
from tdrs.benchmarks.textvqa import ANNOTATORS
from tdrs.benchmarks.textvqa import RULES as TEXTVQA
from tdrs.statistics import Interval, cluster_draws, percentiles

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
_ARTICLES = {"a", "an", "the"}
ANSWER_AS = ("auto", "letter", "text", "index", "number")


def normalised(text: str) -> str:
    """A text in lower case, without punctuation, articles and double spaces."""
    words = text.lower().translate(str.maketrans(string.punctuation, " " * len(string.punctuation))).split()
    return " ".join(word for word in words if word not in _ARTICLES)


def first_number(text: str) -> str:
    """The first number in a text, without commas between thousands; "" if there is none."""
    found = next((match[0] for match in _NUMBER.finditer(text) if re.search(r"\d", match[0])), "")
    return found.replace(",", "")


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
    "multiple_choice": Rule(lambda prediction, one: letter_vlmevalkit(prediction.strip(), one.choices)),
    "yes_no": Rule(lambda prediction, _: answer_vlmevalkit(prediction)),
    "evalai": TEXTVQA["evalai"],
    "number": number_rule(0.0),
    "perplexity": Rule(_generated),
}


def check_answers(rule: str, answers: Sequence[str], column: str) -> None:
    """Raises BadRow unless a rule can score by these answers."""
    if rule == "evalai" and len(answers) != ANNOTATORS:
        raise BadRow(f"{len(answers)} {column}, and the rule evalai needs {ANNOTATORS}")
    if rule in ("exact", "normalised", "number", "yes_no", "perplexity") and len(answers) != 1:
        raise BadRow(f"{len(answers)} {column}, and the rule {rule} needs one; any_of and contains take several")
    if rule == "number" and first_number(answers[0]) != answers[0].strip().replace(",", ""):
        raise BadRow(f"{column} {answers[0]!r}, not a number, and the rule number needs one")
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
