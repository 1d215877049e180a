"""A study as one page that can be read from top to bottom: `report.html`, self-contained, and `report.md`.

    python -m analysis.report study=readings            # in a checkout
    python -m tdrs.analysis.report study=readings       # where tdrs is installed

The page has the question, the splits, every setting, tables with paired tests, figures, samples on which the answers
differ, cost, environment, and the command that does it again. Its sentences are made from the numbers. It is made from
the stored records and the data set's pictures, without a model.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
import yaml

from tdrs import escape
from tdrs.analysis import (
    answer_bias,
    attention,
    comparison,
    decay,
    distance,
    report_lines,
    rivals,
    samples,
    sensitivity,
    tables,
    tradeoff,
    transfer,
)
from tdrs.analysis.changed_answers import ChangedAnswers, changed_answers, row_name
from tdrs.analysis.evidence import LEVEL, clamped_lines, compare_rows, condition_name
from tdrs.analysis.figure import redraw, stored_measurement
from tdrs.analysis.importance import HOW_TO_READ, ImportanceSection, importance_markdown, sections_of
from tdrs.benchmarks import DATASETS
from tdrs.commands import study_command
from tdrs.entry_point import run_command
from tdrs.records import Records
from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome


@dataclass(frozen=True)
class Report:
    """All that the page says.

    Attributes:
        split: the first line: which split was reported, and what chose the settings.
        verified: a line on how many conditions were checked against a published score, then a line for each condition.
        off: a line for each condition where the stock model's score is far from the published one.
        findings: a sentence for each row, by condition.
        rows: of the tables.
        answers: a sentence for each thing that a study of several conditions at once says of its question.
        figures: what each figure shows, and its SVG file.
        changed: samples on which the answers differ, by condition.
        links: by condition and row, the address of its samples.
        cost: lines on time and trials.
        environment: where the records were measured.
        elsewhere: how that differs from where the page was made, and between two rows that are compared.
        exports: the commands that show the trials and export them.
        stamp: which study the page belongs to.
        controls: for yes/no questions.
        importance: what matters, by condition, in a study that searched a space.
    """

    name: str
    split: str
    verified: list[str]
    off: list[str]
    question: str
    findings: dict[str, list[tuple[str, str]]]
    setup: list[tuple[str, str]]
    settings: str
    rows: list[tables.TableRow]
    warning: str
    tests: str
    figures: list[tuple[str, Path]]
    changed: dict[str, list[ChangedAnswers]]
    links: dict[tuple[str, str], str]
    cost: list[str]
    clamped: list[str]
    failures: list[str]
    environment: dict[str, str]
    elsewhere: list[str]
    command: str
    exports: list[str]
    stamp: dict[str, str]
    notes: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    controls: answer_bias.Controls = field(default_factory=dict)
    importance: list[ImportanceSection] = field(default_factory=list)


def study_report(
    outcome: Outcome,
    records: Records,
    folder: Path,
    figures: Sequence[tuple[str, Path]] = (),
    answers: Sequence[str] = (),
    matters: Sequence[ImportanceSection] = (),
    controls: answer_bias.Controls | None = None,
) -> Report:
    """All that the page says, from stored records.

    Args:
        folder: the study's.
        figures: what `write_figures` and `write_answers` wrote.
        answers: what `write_answers` says.
        matters: what `sections_of` wrote.
        controls: for yes/no questions; None computes them.
    """
    found = compare_rows(outcome, records)
    controls = answer_bias.controls(outcome, records) if controls is None else controls
    compared = report_lines.published_comparisons(outcome, records)
    findings: dict[str, list[tuple[str, str]]] = {}
    for one in found:
        if one.difference is not None:
            findings.setdefault(one.condition, []).append((row_name(one.trial), one.sentence))
    config = outcome.config
    setup = [
        ("protocol", config["search"]["protocol"]),
        ("backbones", ", ".join(outcome.all_named("backbone"))),
        ("data sets", ", ".join(outcome.all_named("dataset"))),
        ("batch size", str(config["batch_size"])),
        *([("tokens at a time", str(config["batch_tokens"]))] if config.get("batch_tokens") else []),
        ("decoding", "greedy, repetition penalty 1.0"),
        ("study key", outcome.key),
    ]
    settings = {part: config[part] for part in ("intervention", "backbone", "dataset", "search")}
    rows = sum(one.difference is not None for one in found)
    kinds = {DATASETS[outcome.named(one.trial.condition, "dataset")] for one in found}
    media = "image" if any(kind.pictures for kind in kinds) else "passage"
    tests = (
        f"Differences are paired: the same samples, questions on one {media} taken as one cluster; 95 % intervals by a "
        f"percentile bootstrap over {media}s. A row is called better or worse where the sign-flip test over {media}s "
        "gives "
        f"p < {LEVEL:g} after Holm's correction over all {rows} comparisons of this study. “Could have shown” is "
        "the difference that such a comparison shows four times in five. Intervals are not corrected."
    )
    if any(kind.real == "pope" for kind in kinds):
        tests += (
            " On POPE “gained : lost” counts each pair of image and question once; means weigh it by the categories it "
            "is in, a yes more than a no."
        )
    return Report(
        name=outcome.name,
        split=report_lines.split_line(outcome),
        verified=report_lines.verified(compared),
        off=report_lines.off(compared),
        question=report_lines.question(outcome),
        findings=findings,
        setup=setup,
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110),
        rows=tables.table_rows(outcome, found, controls),
        warning=outcome.warning,
        tests=tests,
        figures=list(figures),
        changed=changed_answers(outcome, found, records),
        links={(one.condition, one.trial.name): samples.row_link(one.trial) for one in found},
        cost=report_lines.cost(outcome),
        clamped=clamped_lines(outcome),
        failures=[
            f"{t.name} ({t.split}, {condition_name(outcome, t.condition)}): {t.reason}" for t in outcome.failures
        ],
        environment=outcome.environment,
        elsewhere=report_lines.elsewhere(outcome, records),
        command=outcome.command,
        exports=[study_command(verb, folder.name, folder.parents[1]) for verb in ("show", "export")],
        stamp=outcome.stamp,
        notes=[
            *dict.fromkeys(note for row in outcome.rows for note in row.notes),
            *(note for control in controls.values() for note in control.notes),
        ],
        answers=list(answers),
        controls=controls,
        importance=list(matters),
    )


def write_figures(
    outcome: Outcome, folder: Path, controls: answer_bias.Controls | None = None
) -> list[tuple[str, Path]]:
    """Write the figures that fit the study; return what each shows, and its SVG file.

    Args:
        controls: for yes/no questions; the tables beside the figures have them.
    """
    written: list[tuple[str, list[Path]]] = []
    settings = sensitivity.sensitivity_curves(outcome)
    if any(condition.settings for condition in settings):
        paths = sensitivity.write_sensitivity(settings, folder, outcome.stamp)
        written.append(("Each setting in turn, on the tuning split", paths))
    if outcome.protocol in ("tradeoff", "transfer"):
        pass  # `write_answers` draws their rows
    elif len({row.condition.get("dataset.gap") for row in outcome.rows}) > 1:
        curves = distance.distance_curves(outcome)
        if curves:
            paths = distance.write_distance(curves, folder, outcome.warning, outcome.stamp, controls)
            written.append(("Accuracy against distance", paths))
    else:
        differences = [condition for condition in comparison.paired_differences(outcome) if condition.rows]
        if differences:
            paths = comparison.write_comparison(differences, folder, outcome.warning, outcome.stamp, controls)
            written.append(("Paired differences to the stock model", paths))
    # these two only if they were measured: python -m analysis.decay, python -m analysis.attention
    if values := stored_measurement(folder / "decay.json", outcome):
        paths = decay.write_decay(decay.decay_from(values), folder, outcome.stamp)
        written.append(("Attention weight against distance", paths))
    if values := stored_measurement(folder / "attention.json", outcome):
        paths = attention.write_attention(attention.attention_from(values), folder, outcome.stamp)
        written.append(("What the answer position sees", paths))
    return [(title, next(path for path in paths if path.suffix == ".svg")) for title, paths in written]


def write_answers(
    outcome: Outcome, records: Records, folder: Path, controls: answer_bias.Controls | None = None
) -> tuple[list[tuple[str, Path]], list[str]]:
    """Write the figure of a study whose conditions were measured together; return what it shows with its SVG file, and
    what it says, in sentences. Both are empty for other studies, and if no row was measured whole.

    Args:
        controls: for yes/no questions; the tables beside the figures have them.
    """
    if all(row.status != COMPLETE for row in outcome.rows if row.name != STOCK):
        return [], []
    if outcome.protocol == "tradeoff":
        found = tradeoff.fronts(outcome, records, controls)
        paths = tradeoff.write_tradeoff(found, folder, outcome.warning, outcome.stamp)
        return [("What a gain costs: fronts, the temperature's beneath", paths[1])], tradeoff.sentences(found)
    if outcome.protocol == "transfer":
        cells = transfer.matrices(outcome, records)
        paths = transfer.write_transfer(cells, folder, outcome.warning, outcome.stamp, controls)
        return [("Tuned on × reported on", paths[1])], transfer.sentences(cells)
    if outcome.protocol == "compare" and outcome.config["search"].get("rivals"):
        places = rivals.places(outcome, records, controls)
        paths = rivals.write_rivals(places, folder, outcome.warning, outcome.stamp)
        return [("Gains beside their rivals, and what they cost", paths[1])], rivals.sentences(places)
    return [], []


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write `report.html`, `report.md` and the tables; return their paths."""
    paths = [folder / "report.html", folder / "report.md"]
    page = files("tdrs.analysis").joinpath("report.html").read_text(encoding="utf-8")
    templates = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    by_condition = tables.by_condition(report.rows)
    cells = {condition: [tables.cells(row) for row in rows] for condition, rows in by_condition.items()}
    heads = {condition: tables.heads(rows) for condition, rows in by_condition.items()}
    figures, *matters = [_inlined(some) for some in (report.figures, *(one.figures for one in report.importance))]
    given = {"report": report, "cells": cells, "heads": heads, "figures": figures, "matters": matters}
    given["how_to_read"] = HOW_TO_READ
    paths[0].write_text(templates.from_string(page).render(**given), encoding="utf-8")
    paths[1].write_text(markdown(report), encoding="utf-8")
    return paths + tables.write_tables(report.rows, folder, report.warning, report.stamp)


def _inlined(figures: Sequence[tuple[str, Path]]) -> list[tuple[str, str]]:
    """What figures show, and their SVG as part of a page."""
    svgs = [(title, path.read_text(encoding="utf-8").partition("<svg")[2]) for title, path in figures]
    return [(title, "<svg" + text.replace(' target="_blank"', "")) for title, text in svgs]  # links, as in tables


def report_study(outcome: Outcome, records: Records, folder: Path) -> tuple[Report, list[Path]]:
    """Write a study's figures, pages and tables; return what the page says, and the paths of pages and tables."""
    controls = answer_bias.controls(outcome, records)
    figures, answers = write_answers(outcome, records, folder, controls)
    figures = [*figures, *write_figures(outcome, folder, controls)]
    report = study_report(outcome, records, folder, figures, answers, sections_of(outcome, records, folder), controls)
    return report, [*write_report(report, folder), samples.write_samples(outcome, records, folder)]


def markdown(report: Report) -> str:
    """The page in Markdown, without the samples on which the answers differ."""
    head, *lines = report.verified
    shown = escape.markdown
    checked = "\n".join([f"{shown(head)}:", "", *(f"- {shown(line)}" for line in lines)])
    parts = [f"# {shown(report.name)}", shown(report.split), *(f"**{shown(line)}**" for line in report.off), checked]
    parts.append(shown(report.question))
    if report.answers:
        parts += ["## Answers", "\n".join(f"- {shown(line)}" for line in report.answers)]
    parts.append("## Findings")
    for condition, sentences in report.findings.items():
        found = "\n".join(f"- {shown(name)}: {shown(text)}" for name, text in sentences)
        parts.append(f"**{shown(condition)}**\n\n{found}")
    parts += [shown(report.tests), "## Tables", tables.markdown(report.rows, report.warning).strip(), "## Figures"]
    parts += [f"![{title}]({path.with_suffix('.png').name})" for title, path in report.figures]
    parts += [importance_markdown(report.importance).strip()] if report.importance else []
    parts += ["## Setup", "\n".join(f"- {shown(name)}: {shown(value)}" for name, value in report.setup)]
    parts.append(escape.fenced(report.settings, "yaml"))
    for title, lines in (("Clamped", report.clamped), ("Failed", report.failures), ("Notes", report.notes)):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {shown(line)}" for line in lines)]
    parts += ["## Cost", "\n".join(f"- {shown(line)}" for line in report.cost)]
    environment_ = [f"- {shown(name)}: {shown(value)}" for name, value in report.environment.items() if value]
    parts += ["## Environment", "\n".join(environment_)]
    parts += ["\n".join(f"- {shown(line)}" for line in report.elsewhere)] if report.elsewhere else []
    parts += [
        "## Again",
        escape.fenced(report.command, "sh"),
        "Stored evaluations are reused. The trials, and they and all records as files:",
        escape.fenced("\n".join(report.exports), "sh"),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """The command."""
    return redraw(arguments, lambda study: report_study(study.outcome, study.records, study.folder)[1])


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
