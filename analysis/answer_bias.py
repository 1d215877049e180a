"""A control for yes/no questions that needs no model: a constant, the bias, is added to the stock model's log-odds of
yes. It shows how much of a gain a shifted yes-rate alone would give.

The bias moves stored answers of the stock model. An answer changes only if the log-odds cross 0: a no whose log-odds
are not above 0 becomes a yes if they are above 0 with the bias, and the reverse. So a bias of 0 changes nothing. Three
kinds of answers never change: neither yes nor no, a text that disagrees with the sign of its log-odds, and log-odds
that were not measured. Source: arXiv 2504.10020, which finds that shifted yes-rates explain gains on POPE.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tdrs.analysis.evidence import Paired, compare_records, condition_name
from tdrs.benchmarks import DATASETS, Record
from tdrs.benchmarks.yes_no import gold_yes, yes_margins
from tdrs.configuration import with_settings
from tdrs.records import Records
from tdrs.statistics import Interval, Measure, accuracy_interval
from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome, Trial, check_pair, spelled

NAME = "answer bias, tuned"
MATCHED = "stock accuracy at this yes-rate; method minus that"


def _movable(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The log-odds of yes; which answers become yes above a bias, and which become no below one; (n,) each."""
    margins = yes_margins(records)
    said = np.array([record.answer for record in records], dtype=object)
    known = np.isfinite(margins)
    return margins, known & (said == "no") & (margins <= 0), known & (said == "yes") & (margins >= 0)


def fixed_answers(records: Sequence[Record]) -> int:
    """How many answers no bias can change."""
    _, up, down = _movable(records)
    return int((~(up | down)).sum())


def biased(records: Sequence[Record], bias: float) -> list[Record]:
    """The records with a bias on the log-odds of yes, in nats; their margins have the bias too."""
    margins, up, down = _movable(records)
    to_yes, to_no = up & (margins + bias > 0), down & (margins + bias < 0)
    moved = []
    for record, yes, no in zip(records, to_yes, to_no, strict=True):
        margin = record.margin + (bias if record.gold == "yes" else -bias)
        one = replace(record, margin=margin)
        if yes or no:
            answer = "yes" if yes else "no"
            one = replace(one, answer=answer, prediction=answer, score=float(answer == record.gold))
        moved.append(one)
    return moved


def _totals(records: Sequence[Record], up_gain: np.ndarray, down_gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The biases that differ in their answers, and what each adds to a total.

    The biases are 0, the middle between two log-odds at which an answer changes, and 1 nat beyond the first and last.
    """
    margins, up, down = _movable(records)
    crossings = np.unique(-margins[up | down])
    between = (crossings[1:] + crossings[:-1]) / 2
    biases = np.unique(np.concatenate([[0.0], between, *([crossings[:1] - 1, crossings[-1:] + 1])]))
    total = np.zeros(len(biases))
    for chosen, gain, sign in ((up, up_gain, 1), (down, down_gain, -1)):
        order = np.argsort(-sign * margins[chosen], kind="stable")
        sums = np.concatenate([[0.0], np.cumsum(gain[chosen][order])])
        total += sums[np.searchsorted(-sign * margins[chosen][order], sign * biases, side="left")]
    return biases, total


def _smallest(biases: np.ndarray, loss: np.ndarray) -> float:
    """The bias of the smallest loss; among equals the one nearest to 0, and the negative one of two."""
    equal = biases[loss <= loss.min() + 1e-9]
    return float(equal[np.argmin(np.abs(equal))])


def tuned_bias(records: Sequence[Record]) -> float:
    """The bias of the highest accuracy, in nats; among equals the one nearest to 0."""
    weights = np.array([record.weight for record in records], dtype=float)
    gain = np.where(gold_yes(records), weights, -weights)
    biases, total = _totals(records, gain, -gain)
    return _smallest(biases, -total)


def yes_rate(records: Sequence[Record]) -> float:
    """The weighted share of the answer yes."""
    weights = np.array([record.weight for record in records], dtype=float)
    return float(np.average([record.answer == "yes" for record in records], weights=weights))


def matched_bias(records: Sequence[Record], rate: float) -> float:
    """The bias whose yes-rate is nearest to a given one, in nats; among equals the one nearest to 0."""
    weights = np.array([record.weight for record in records], dtype=float)
    biases, total = _totals(records, weights, -weights)
    return _smallest(biases, np.abs(yes_rate(records) + total / weights.sum() - rate))


class Match(NamedTuple):
    """The stock model at a method's yes-rate; gold answers do not choose this bias, the method's answers do.

    Attributes:
        bias: in nats.
        rate, reached: the yes-rate of the method, and that of the biased stock model.
        accuracy: of the biased stock model.
        difference: of the method to it, paired.
    """

    bias: float
    rate: float
    reached: float
    accuracy: Interval
    difference: Interval


class Control(NamedTuple):
    """The row `answer bias, tuned` of a condition.

    Attributes:
        missing: why there is no such row; "" if there is one. The next four are then None.
        bias: chosen on the tuning records, in nats.
        accuracy: on the held-out split.
        paired: the comparison with the stock model.
        measures: F1 and others, by name.
        matches: by the name of a method's row.
        notes: sentences for the reader.
    """

    missing: str
    bias: float | None
    accuracy: Interval | None
    paired: Paired | None
    measures: dict[str, Interval]
    matches: dict[str, Match]
    notes: list[str]


def _accuracy(records: Sequence[Record]) -> Interval:
    columns = ((one.score, one.image_id, one.weight) for one in records)
    scores, images, weights = zip(*columns, strict=True)
    return accuracy_interval(scores, images, weights)


class Reading(NamedTuple):
    """A line of the control below a row, for tables.

    Attributes:
        name: `NAME` below the stock model; `MATCHED` below a method.
        accuracy: of the biased stock model.
        difference: below the stock model, to it; below a method, the method minus the biased stock model; paired.
    """

    name: str
    accuracy: Interval
    difference: Interval


Controls = Mapping[str, Control]  # by the condition's words


def readings(controls: Controls | None, condition: str, row: str) -> list[Reading]:
    """What the control says below a row of a condition; empty where it says nothing."""
    control = (controls or {}).get(condition)
    if control is None:
        return []
    if row == STOCK:
        known = control.accuracy is not None and control.paired is not None
        return [Reading(NAME, control.accuracy, control.paired.difference)] if known else []  # type: ignore[arg-type,union-attr]
    match = control.matches.get(row)
    return [Reading(MATCHED, match.accuracy, match.difference)] if match else []


def bias_of(controls: Controls | None, condition: str, row: str) -> float | None:
    """The bias of a reading: the tuned one for the stock model, that of its yes-rate for a method; None without one."""
    control = (controls or {}).get(condition)
    if control is None or row == STOCK:
        return control and control.bias
    return control.matches[row].bias if row in control.matches else None


def controls(outcome: Outcome, records: Records) -> dict[str, Control]:
    """The control of each condition with yes/no questions and a complete stock model, by the condition's words.

    Raises:
        FileNotFoundError, Damaged: the records of a row are missing or damaged.
    """
    tuning = {
        spelled(trial.condition): trial
        for trial in outcome.trials
        if trial.name == STOCK and trial.split == "tuning" and trial.status == COMPLETE
    }
    found = {}
    complete = [row for row in outcome.rows if row.status == COMPLETE]
    for stock in complete:
        if stock.name == STOCK and _measures(outcome, stock):
            at = spelled(stock.condition)
            rows = [row for row in complete if spelled(row.condition) == at and row.name != STOCK]
            found[condition_name(outcome, stock.condition)] = _control(outcome, records, stock, tuning.get(at), rows)
    return found


def _measures(outcome: Outcome, trial: Trial) -> Mapping[str, Measure]:
    """The measures of yes/no questions; none of other ones."""
    dataset = with_settings(outcome.config, dict(trial.condition))["dataset"]
    return DATASETS[outcome.named(trial.condition, "dataset")].measures_of(str(dataset["rule"]))


def _control(
    outcome: Outcome, records: Records, stock: Trial, chosen_on: Trial | None, rows: Sequence[Trial]
) -> Control:
    condition = condition_name(outcome, stock.condition)
    held_out = records.read(stock.cache_key).records
    if not np.isfinite(yes_margins(held_out)).any():
        missing = f"{condition}: no row “{NAME}”: the stock model's margins were not measured"
        return Control(missing, None, None, None, {}, {}, [missing])
    matches, notes = {}, []
    for row in rows:
        after = records.read(row.cache_key).records
        check_pair(stock, row, held_out, after)
        rate = yes_rate(after)
        bias = matched_bias(held_out, rate)
        before = biased(held_out, bias)
        difference = compare_records(before, after).difference
        match = Match(bias, rate, yes_rate(before), _accuracy(before), difference)
        matches[row.name] = match
        if abs(match.reached - rate) > 1 / len(held_out):
            notes.append(
                f"{condition}: {row.name} says yes in {rate:.1%}; no bias of the stock model gives that, and the "
                f"nearest yes-rate is {match.reached:.1%}"
            )
    fixed = fixed_answers(held_out)
    if fixed:
        notes.append(
            f"{condition}: answer bias cannot change {fixed} of {len(held_out)} answers of the stock model: neither "
            "yes nor no, text and margin disagree, or margin not measured"
        )
    tuning = records.read(chosen_on.cache_key).records if chosen_on else []
    if not any(math.isfinite(record.margin) for record in tuning):
        why = "has no margins there" if tuning else "was not measured on the tuning split, where the bias is chosen"
        missing = f"{condition}: no row “{NAME}”: the stock model {why}"
        return Control(missing, None, None, None, {}, matches, [missing, *notes])
    bias = tuned_bias(tuning)
    after = biased(held_out, bias)
    measures = _measures(outcome, stock)
    paired = compare_records(held_out, after, measures)
    said = f"{condition}: {NAME}: {bias:+.3f} nats on the log-odds of yes, chosen on n = {len(tuning)} tuning records"
    values = {name: measure.value(after) for name, measure in measures.items()}
    return Control("", bias, _accuracy(after), paired, values, matches, [said, *notes])
