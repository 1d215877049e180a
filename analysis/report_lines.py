"""The lines of a report: what was reported, checked and asked, where it was measured, and what it cost."""

import statistics

from tdrs.analysis.evidence import condition_name
from tdrs.analysis.figure import span
from tdrs.configuration import with_settings
from tdrs.environment import environment
from tdrs.published import Comparison, checked, compare
from tdrs.records import Records
from tdrs.sweeps.trial import COMPLETE, FAILED, PRUNED, STOCK, Outcome

NUMBERS = ("tdrs", "torch", "transformers", "tokenizers", "pillow", "numpy", "device")  # what may change the numbers


def split_line(outcome: Outcome) -> str:
    """Which split is reported, and what the settings were chosen on."""
    n = span(row.n for row in outcome.rows)
    tuned = [row for row in outcome.rows if row.budget]
    text = f"Reported on the held-out split, n = {n} a row."
    if outcome.warning:
        text = f"{outcome.warning}. {text}"
    if not tuned:
        return f"{text} No setting was chosen on any split: all were given beforehand."
    trials = span(row.budget for row in tuned)
    rows = f"{len(tuned)} rows" if len(tuned) > 1 else "1 row"
    chosen = f"Settings of {rows}, marked as tuned, were chosen on the tuning split, "
    return f"{text} {chosen}n = {outcome.tuning_n}, from {trials} trials each."


def published_comparisons(outcome: Outcome, records: Records) -> dict[str, Comparison | str]:
    """For each condition the stock score beside the published one, or why there is none."""
    return {
        condition_name(outcome, row.condition): compare(
            with_settings(outcome.config, row.condition), records.read(row.cache_key).records
        )
        for row in outcome.rows
        if row.name == STOCK and row.status == COMPLETE
    }


def verified(compared: dict[str, Comparison | str]) -> list[str]:
    """How many conditions had weights, prompts and rules checked by a published score; then a line for each."""
    lines = [
        f"{condition}: {one.sentence if isinstance(one, Comparison) else f'not verified: {one}'}"
        for condition, one in compared.items()
    ]
    return [checked([*compared.values()]), *lines]


def off(compared: dict[str, Comparison | str]) -> list[str]:
    """A line for each condition whose stock score is far from the published one."""
    return [
        f"{condition}: {one.sentence}. See what tdrs.doctor says."
        for condition, one in compared.items()
        if isinstance(one, Comparison) and one.off
    ]


def question(outcome: Outcome) -> str:
    """The study's question, in a sentence."""
    rows = list(dict.fromkeys(row.name for row in outcome.rows if row.name != STOCK))
    models, sets = (", ".join(outcome.all_named(group)) for group in ("backbone", "dataset"))
    what = "; ".join(rows) if len(rows) <= 6 else f"each of {len(rows)} settings"
    if not rows:
        return f"How well does the stock model do: {models} on {sets}?"
    return (
        f"Does an edit of the attention logits ({what}) change the accuracy of {models} on {sets}, beside the stock "
        "model on the same samples?"
    )


def elsewhere(outcome: Outcome, records: Records) -> list[str]:
    """How the measuring environment differs from today's, and a row's environment from its stock model's."""
    today = environment()
    differing = [
        f"{name} {outcome.environment[name]}, here {today.get(name, 'unknown')}"
        for name in NUMBERS
        if outcome.environment.get(name, today.get(name)) != today.get(name)
    ]
    lines = [f"The records were measured in another environment: {'; '.join(differing)}."] if differing else []
    stock: dict[str, str] = {}
    for row in outcome.rows:
        condition = condition_name(outcome, row.condition)
        if row.name == STOCK:
            stock = records.environment(row.cache_key)
        own = records.environment(row.cache_key)
        both = [(name, own[name], stock[name]) for name in NUMBERS if name in own and name in stock]
        unlike = [f"{name} {mine} and {others}" for name, mine, others in both if mine != others]
        if unlike:
            lines.append(f"{condition}: {row.name} and its stock model were measured apart: {'; '.join(unlike)}.")
    return lines


def cost(outcome: Outcome) -> list[str]:
    """How long the study took, how many trials it tried, and each method's time beside the stock model's."""
    unique = {trial.cache_key: trial for trial in [*outcome.trials, *outcome.rows]}.values()
    seconds = sum(trial.seconds for trial in unique)
    asked = len(outcome.trials) + len(outcome.rows)
    lines = [
        f"{len(unique)} different evaluations for {asked} trials and rows; {seconds / 60:.1f} minutes of measuring, "
        "whenever and by whatever study that was."
    ]
    pruned = sum(trial.status == PRUNED for trial in outcome.trials)
    failed = sum(trial.status == FAILED for trial in [*outcome.trials, *outcome.rows])
    lines.append(f"{pruned} trials ended early, {failed} failed.")
    rates: dict[str, list[float]] = {}
    base: dict[str, float] = {}
    for row in outcome.rows:
        key = str(row.condition)
        if row.metrics and row.name == STOCK:
            base[key] = row.seconds / max(row.n, 1)
        elif row.metrics and base.get(key):
            rates.setdefault(row.name, []).append(row.seconds / max(row.n, 1) / base[key])
    for name, values in rates.items():
        ratio = f"{name}: {statistics.median(values):.1f} × the stock model's time a sample"
        lines.append(f"{ratio} (median over conditions, other work beside it).")
    moved: dict[str, list[float]] = {}
    for row in outcome.rows:
        if row.kl is not None:
            moved.setdefault(row.name, []).append(row.kl)
    for name, values in moved.items():
        lines.append(
            f"{name}: first token's distribution {statistics.median(values):.2g} nats from the stock model's (mean KL, "
            "a lower bound; median over conditions)."
        )
    return lines
