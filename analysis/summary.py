"""A study's result as text: the table that commands print, and the description of its run in the tracking store."""

from collections.abc import Sequence

from tdrs import escape
from tdrs.analysis import answer_bias
from tdrs.analysis.evidence import condition_name
from tdrs.configuration import with_settings
from tdrs.published import Comparison, checked, compare
from tdrs.records import Records
from tdrs.sweeps.trial import COMPLETE, FAILED, STOCK, Outcome, Trial, shown, spelled


def table(outcome: Outcome, controls: answer_bias.Controls | None = None) -> list[str]:
    """The held-out rows as lines of text, by condition; before them, every cell of a grid on the tuning split.

    Args:
        controls: for yes/no questions: the tuned bias stands below the stock model, and the stock model at a method's
            yes-rate below the method.
    """
    lines = [outcome.warning] if outcome.warning else []
    lines += _cells(outcome) if outcome.protocol == "grid" else []
    budget = max((row.budget for row in outcome.rows), default=0)
    chosen = f"tuned rows: settings chosen on the tuning split, n = {outcome.tuning_n}"
    lines.append(f"held-out split; {chosen if budget else 'settings given beforehand'}")
    names = [row.name for row in outcome.rows] + [answer_bias.NAME] * any(
        one.bias is not None for one in (controls or {}).values()
    )
    width = max(map(len, names), default=0) + 2
    head = f"{'':{width + 2}}{'accuracy [95 %]':24}{'difference to stock, paired [95 %]':36}"
    lines.append(head + ("chosen settings" if budget else ""))
    condition = None
    for row in outcome.rows:
        if row.condition != condition:
            condition = row.condition
            lines.append(", ".join(filter(None, [spelled(condition), f"n = {row.n}"])))
        values = shown(row.settings) if row.budget else ""
        numbers = _numbers(row) + ("  " if row.status == FAILED else "")
        lines.append(f"  {row.name:{width}}{numbers}{values}".rstrip())
        for one in answer_bias.readings(controls, condition_name(outcome, row.condition), row.name):
            name, meaning = (one.name, "") if row.name == STOCK else ("", one.name)
            lines.append(f"  {name:{width}}{_line(one.accuracy, one.difference)}{meaning}".rstrip())
    return [escape.printable(line) for line in lines]


def _cells(outcome: Outcome) -> list[str]:
    """Every cell of a grid, failed ones too."""
    lines = [f"tuning split, every cell, n = {outcome.tuning_n}"]
    own = {cell.key: STOCK if cell.name == STOCK else spelled(cell.settings) for cell in outcome.trials}
    texts = [" ".join(filter(None, [spelled(cell.condition), own[cell.key]])) for cell in outcome.trials]
    width = max(map(len, texts)) + 2
    lines += [f"  {text:{width}}{_numbers(cell)}".rstrip() for text, cell in zip(texts, outcome.trials, strict=True)]
    return [*lines, ""]


def _numbers(trial: Trial) -> str:
    if trial.status == FAILED:
        return f"failed: {trial.reason}"
    return _line(trial.accuracy, trial.difference)


def _line(accuracy: Sequence[float], difference: Sequence[float] | None) -> str:
    shown = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference) if difference else "-"
    return f"{'{:.3f} [{:.3f}, {:.3f}]'.format(*accuracy):24}{shown:36}"


def description(outcome: Outcome, records: Records, controls: answer_bias.Controls | None = None) -> str:
    """The result in Markdown: what was compared, the rows furthest above and below the stock model, what was checked,
    the command, and the table.

    Args:
        controls: for yes/no questions; None computes them.
    """
    controls = answer_bias.controls(outcome, records) if controls is None else controls
    rows = [row for row in outcome.rows if row.difference]
    tuned = sum(row.budget > 0 for row in rows)
    lines = [outcome.warning] if outcome.warning else []
    split = "on the held-out split"
    lines += [f"{len(rows)} rows beside the stock model {split}, {tuned} of them tuned on the tuning split"]
    for word, pick in (("highest", max), ("lowest", min)) if rows else ():
        row = pick(rows, key=lambda row: row.difference or (0, 0, 0))
        assert row.difference
        value, low, high = (100 * number for number in row.difference)
        name = " ".join([*(str(value) for value in row.condition.values()), row.name])
        lines.append(f"{word}: {name}, {value:+.1f} [{low:+.1f}, {high:+.1f}] points, n = {row.n}")
    compared = [
        compare(with_settings(outcome.config, row.condition), records.read(row.cache_key).records)
        for row in outcome.rows
        if row.name == STOCK and row.status == COMPLETE
    ]
    lines.append(checked(compared))
    lines += [one.sentence for one in compared if isinstance(one, Comparison) and one.off]
    code = [escape.fenced(outcome.command), "", escape.fenced("\n".join(table(outcome, controls)))]
    return "\n".join([*(f"{escape.markdown(line)}  " for line in lines), "", *code])  # two blanks break a line
