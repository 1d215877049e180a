"""A study's held-out rows as tables: Markdown, LaTeX and CSV, beside what the paper reports of the model's namesake.

    python -m analysis.tables study=stage_ablation            # in a checkout
    python -m tdrs.analysis.tables study=stage_ablation       # where tdrs is installed

writes `table.md`, `table.tex` and `table.csv` from stored records, without a model. The paper's numbers are *reported*
ones, of models of 7 and 8 billion parameters: they stand beside ours for orientation, not as a truth to fit.
"""

import csv
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tdrs.analysis.evidence import Evidence, show_p
from tdrs.analysis.evidence import numbers as evidence
from tdrs.analysis.figure import redraw
from tdrs.sweeps.trial import Outcome, Request, Trial

from tdrs import escape
from tdrs.configuration import with_settings
from tdrs.entry_point import run_command
from tdrs.published import reported
from tdrs.records import Records
from tdrs.statistics import Interval, McNemar


class Line(NamedTuple):
    """A row of the table, numbers in per cent; `reported` is what the paper says of it, `of` of which model."""

    where: str
    row: str
    n: int
    measure: str
    value: tuple[float, float, float]
    difference: tuple[float, float, float] | None
    discordant: McNemar | None
    p: float
    verdict: str
    tuned: int
    reported: float | None
    of: str


def _reported(outcome: Outcome, row: Trial) -> tuple[float | None, str]:
    """The paper's number of a row, and whose it is; of none whose settings were tuned."""
    settings = Request(row.name, row.split, row.settings, row.condition).merged
    found = None if row.budget else reported(with_settings(outcome.config, settings))
    return found or (None, "")


def _percent(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.value, 100 * interval.low, 100 * interval.high


def numbers(outcome: Outcome, found: Sequence[Evidence]) -> list[Line]:
    """A line a row of evidence; POPE's F1, which the paper reports, has a line of its own."""
    lines = []
    for one in found:
        paper, of = _reported(outcome, one.trial)
        line = Line(
            where=one.where,
            row=one.trial.name,
            n=one.trial.n,
            measure="accuracy",
            value=_percent(one.accuracy),
            difference=_percent(one.difference) if one.difference else None,
            discordant=one.discordant,
            p=one.p_holm,
            verdict=one.verdict,
            tuned=one.trial.budget,
            reported=None if one.f1 else paper,
            of=of,
        )
        lines.append(line)
        if one.f1 is not None:
            change = _percent(one.f1_difference) if one.f1_difference else None
            tests: dict[str, Any] = {"discordant": None, "p": float("nan"), "verdict": ""}
            lines.append(
                line._replace(measure="F1", value=_percent(one.f1), difference=change, reported=paper, **tests)
            )
    return lines


def draw(lines: list[Line], folder: Path, warning: str = "", stamp: Mapping[str, str] | None = None) -> list[Path]:
    """Write the three files into a folder, a warning first; returns their paths.

    Args:
        stamp: whose result it is (`Outcome.stamp`): a comment in Markdown and LaTeX, the column `study_key` of the CSV.
    """
    whose = escape.one_line(", ".join((stamp or {}).values()))
    key = (stamp or {}).get("Identifier", "")
    paths = [folder / f"table.{kind}" for kind in ("md", "tex", "csv")]
    paths[0].write_text(
        markdown(lines, warning) + (f"\n<!-- {re.sub('-(?=[->])', '- ', whose)} -->\n" if whose else ""),
        encoding="utf-8",
    )
    paths[1].write_text((f"% {whose}\n" if whose else "") + latex(lines, warning), encoding="utf-8")
    head = (
        "condition row n measure value low high difference difference_low difference_high gained lost mcnemar_p p_holm"
    )
    with paths[2].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if warning:
            writer.writerow([f"# {warning}"])
        writer.writerow([*head.split(), "verdict", "tuning_trials", "reported", "reported_model", "study_key"])
        for line in lines:
            change, discordant = line.difference or ("", "", ""), line.discordant or ("", "", "")
            paper = ("", "") if line.reported is None else (line.reported, line.of)
            numbers_ = [*line.value, *change, *discordant, line.p]
            row = [line.where, line.row, line.n, line.measure, *numbers_, line.verdict, line.tuned, *paper, key]
            writer.writerow(row)
    return paths


def cells(line: Line, minus: str = "−") -> list[str]:
    """A line's numbers as texts."""
    value = "{:.1f} [{:.1f}, {:.1f}]".format(*line.value)
    change = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*line.difference).replace("-", minus) if line.difference else ""
    p = show_p(line.p) if line.difference and line.measure == "accuracy" else ""
    pairs = f"{line.discordant.gained} : {line.discordant.lost}" if line.discordant else ""
    paper = "" if line.reported is None else f"{line.reported:.1f}"
    return [line.row, line.measure, value, change, pairs, p, str(line.tuned or ""), paper]


def by_condition(lines: list[Line]) -> dict[str, list[Line]]:
    """Lines by their condition, in order."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.where, []).append(line)
    return found


def heads(lines: list[Line]) -> list[str]:
    """The columns' heads at a condition."""
    of = next((line.of for line in lines if line.of), "")
    return [
        "",
        "",
        "% [95 %]",
        "to stock, paired [95 %]",
        "gained : lost",
        "p, Holm",
        "tuned on",
        f"reported, {of}" if of else "reported",
    ]


def markdown(lines: list[Line], warning: str = "") -> str:
    """A table a condition."""
    parts = [f"**{escape.markdown(warning)}**"] if warning else []
    for condition, some in by_condition(lines).items():
        rows = [[*map(escape.markdown, row)] for row in (heads(some), *map(cells, some))]
        rows.insert(1, ["---"] * 8)
        parts.append(
            f"**{escape.markdown(condition)}**, n = {some[0].n}\n\n"
            + "\n".join(f"| {' | '.join(row)} |" for row in rows)
        )
    return "\n\n".join(parts) + "\n"


def latex(lines: list[Line], warning: str = "") -> str:
    """The same for `booktabs`."""
    out = [r"\begin{tabular}{llrrrrrr}", r"\toprule"]
    for number, (condition, some) in enumerate(by_condition(lines).items()):
        if number:
            out.append(r"\midrule")
        out.append(rf"\multicolumn{{8}}{{l}}{{{escape.latex(condition)}, $n = {some[0].n}$}} \\")
        out += [" & ".join(map(escape.latex, row)) + r" \\" for row in [heads(some), *map(cells, some)]]
    text = "\n".join([*out, r"\bottomrule", r"\end{tabular}"]) + "\n"
    lacks = escape.pdflatex_lacks(text)
    remark = f"pdfLaTeX does not know {lacks}: compile with LuaLaTeX and a font that has them" if lacks else ""
    return "".join(f"% {escape.one_line(line)}\n" for line in (warning, remark) if line) + text


def main(arguments: list[str]) -> int:
    """The command."""

    def make(outcome: Outcome, folder: Path) -> list[Path]:
        found = evidence(outcome, Records(folder.parents[1] / "records"))
        return draw(numbers(outcome, found), folder, outcome.warning, outcome.stamp)

    return redraw(arguments, make)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
