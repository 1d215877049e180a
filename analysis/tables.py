"""A study's held-out rows as tables in Markdown, LaTeX and CSV, next to the numbers that the paper reports.

    python -m analysis.tables study=stage_ablation            # in a checkout
    python -m tdrs.analysis.tables study=stage_ablation       # where tdrs is installed

writes `table.md`, `table.tex` and `table.csv` from stored records, without a model. The paper's numbers are *reported*
for models of 7 and 8 billion parameters: they are shown for comparison, and nothing is fitted to them. From Python:
`study.compare()` has the same statistics.
"""

import csv
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tdrs import escape
from tdrs.analysis.answer_bias import MATCHED, NAME, Control, Controls, controls, readings
from tdrs.analysis.evidence import Evidence, compare_rows, show_p
from tdrs.analysis.figure import redraw
from tdrs.analysis.study_results import StudyResults
from tdrs.configuration import with_settings
from tdrs.entry_point import run_command
from tdrs.published import reported
from tdrs.statistics import Interval, McNemar
from tdrs.sweeps.trial import STOCK, Outcome, Request, Trial


class TableRow(NamedTuple):
    """A row of the table, numbers in per cent.

    Attributes:
        condition: in words.
        value: with its 95 % limits, as is `difference`, to the stock model.
        p: after Holm's correction.
        tuned: the number of trials that the settings were chosen from; 0 if they were given.
        reported: the paper's number, in per cent; `model` is the model it belongs to.
    """

    condition: str
    name: str
    n: int
    measure: str
    value: tuple[float, float, float]
    difference: tuple[float, float, float] | None
    discordant: McNemar | None
    p: float
    verdict: str
    tuned: int
    reported: float | None
    model: str


_NO_TEST: dict[str, Any] = {"discordant": None, "p": float("nan"), "verdict": ""}


def _reported(outcome: Outcome, row: Trial) -> tuple[float | None, str]:
    """The paper's number for a row, and its model; none if the row's settings were tuned."""
    settings = Request(row.name, row.split, row.settings, row.condition).merged
    found = None if row.budget else reported(with_settings(outcome.config, settings))
    return found or (None, "")


def _percent(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.value, 100 * interval.low, 100 * interval.high


def table_rows(outcome: Outcome, evidence: Sequence[Evidence], controls: Controls | None = None) -> list[TableRow]:
    """A table row for each item of evidence, and one for each other measure. The paper reports F1 of POPE.

    Args:
        controls: of `answer_bias.controls`. The tuned bias stands below the stock model, and the stock model at a
            method's yes-rate below the method.
    """
    rows = []
    for one in evidence:
        paper, model = _reported(outcome, one.trial)
        row = TableRow(
            condition=one.condition,
            name=one.trial.name,
            n=one.trial.n,
            measure="accuracy",
            value=_percent(one.accuracy),
            difference=_percent(one.difference) if one.difference else None,
            discordant=one.discordant,
            p=one.p_holm,
            verdict=one.verdict,
            tuned=one.trial.budget,
            reported=None if "F1" in one.measures else paper,
            model=model,
        )
        rows.append(row)
        for measure, value in one.measures.items():
            change = _percent(one.differences[measure]) if measure in one.differences else None
            given = paper if measure == "F1" else None
            rows.append(
                row._replace(measure=measure, value=_percent(value), difference=change, reported=given, **_NO_TEST)
            )
        control = (controls or {}).get(one.condition)
        if control and one.trial.name == STOCK:
            rows += _bias_rows(row, control)
            continue
        for read in readings(controls, one.condition, one.trial.name):
            matched: dict[str, Any] = {"value": _percent(read.accuracy), "difference": _percent(read.difference)}
            rows.append(row._replace(measure=MATCHED, reported=None, **matched, **_NO_TEST))
    return rows


def _bias_rows(stock: TableRow, control: Control) -> list[TableRow]:
    """The rows of the tuned bias; none if it is missing. They have intervals and no test."""
    if control.accuracy is None or control.paired is None:
        return []
    row = stock._replace(name=NAME, reported=None, **_NO_TEST)
    value, change = _percent(control.accuracy), _percent(control.paired.difference)
    rows = [row._replace(value=value, difference=change, discordant=control.paired.discordant)]
    for measure, one in control.measures.items():
        change = _percent(control.paired.differences[measure])
        rows.append(row._replace(measure=measure, value=_percent(one), difference=change))
    return rows


def write_tables(
    rows: list[TableRow], folder: Path, warning: str = "", stamp: Mapping[str, str] | None = None
) -> list[Path]:
    """Write `table.md`, `table.tex` and `table.csv`, a warning first; return their paths.

    Args:
        stamp: which study the tables belong to (`Outcome.stamp`): a comment in Markdown and LaTeX, the column
            `study_key` of the CSV.
    """
    source = escape.one_line(", ".join((stamp or {}).values()))
    key = (stamp or {}).get("Identifier", "")
    paths = [folder / f"table.{kind}" for kind in ("md", "tex", "csv")]
    paths[0].write_text(
        markdown(rows, warning) + (f"\n<!-- {re.sub('-(?=[->])', '- ', source)} -->\n" if source else ""),
        encoding="utf-8",
    )
    paths[1].write_text((f"% {source}\n" if source else "") + latex(rows, warning), encoding="utf-8")
    head = (
        "condition row n measure value low high difference difference_low difference_high gained lost mcnemar_p p_holm"
    )
    with paths[2].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if warning:
            writer.writerow([f"# {warning}"])
        writer.writerow([*head.split(), "verdict", "tuning_trials", "reported", "reported_model", "study_key"])
        for row in rows:
            change, discordant = row.difference or ("", "", ""), row.discordant or ("", "", "")
            paper = ("", "") if row.reported is None else (row.reported, row.model)
            numbers = [*row.value, *change, *discordant, row.p]
            writer.writerow(
                [row.condition, row.name, row.n, row.measure, *numbers, row.verdict, row.tuned, *paper, key]
            )
    return paths


def cells(row: TableRow) -> list[str]:
    """A row's numbers as texts."""
    value = "{:.1f} [{:.1f}, {:.1f}]".format(*row.value)
    change = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row.difference).replace("-", "−") if row.difference else ""
    p = show_p(row.p) if row.difference and not math.isnan(row.p) else ""
    pairs = f"{row.discordant.gained} : {row.discordant.lost}" if row.discordant else ""
    paper = "" if row.reported is None else f"{row.reported:.1f}"
    return [row.name, row.measure, value, change, pairs, p, str(row.tuned or ""), paper]


def by_condition(rows: list[TableRow]) -> dict[str, list[TableRow]]:
    """Rows by their condition, in order."""
    found: dict[str, list[TableRow]] = {}
    for row in rows:
        found.setdefault(row.condition, []).append(row)
    return found


def heads(rows: list[TableRow]) -> list[str]:
    """The heads of the columns under one condition."""
    model = next((row.model for row in rows if row.model), "")
    return [
        "",
        "",
        "% [95 %]",
        "to stock, paired [95 %]",
        "gained : lost",
        "p, Holm",
        "tuned on",
        f"reported, {model}" if model else "reported",
    ]


def markdown(rows: list[TableRow], warning: str = "") -> str:
    """A table for each condition."""
    parts = [f"**{escape.markdown(warning)}**"] if warning else []
    for condition, some in by_condition(rows).items():
        lines = [[*map(escape.markdown, line)] for line in (heads(some), *map(cells, some))]
        lines.insert(1, ["---"] * 8)
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"**{escape.markdown(condition)}**, n = {some[0].n}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def latex(rows: list[TableRow], warning: str = "") -> str:
    """The same tables as one, for `booktabs`."""
    out = [r"\begin{tabular}{llrrrrrr}", r"\toprule"]
    for number, (condition, some) in enumerate(by_condition(rows).items()):
        if number:
            out.append(r"\midrule")
        out.append(rf"\multicolumn{{8}}{{l}}{{{escape.latex(condition)}, $n = {some[0].n}$}} \\")
        out += [" & ".join(map(escape.latex, line)) + r" \\" for line in [heads(some), *map(cells, some)]]
    text = "\n".join([*out, r"\bottomrule", r"\end{tabular}"]) + "\n"
    lacks = escape.pdflatex_lacks(text)
    remark = f"pdfLaTeX does not know {lacks}: compile with LuaLaTeX and a font that has them" if lacks else ""
    return "".join(f"% {escape.one_line(line)}\n" for line in (warning, remark) if line) + text


def main(arguments: list[str]) -> int:
    """The command."""

    def write(study: StudyResults) -> list[Path]:
        found = compare_rows(study.outcome, study.records)
        rows = table_rows(study.outcome, found, controls(study.outcome, study.records))
        return write_tables(rows, study.folder, study.warning, study.outcome.stamp)

    return redraw(arguments, write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
