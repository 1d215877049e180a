"""A study as one page that a reviewer can read from top to bottom: `report.html`, self-contained, and `report.md`.

    python -m analysis.report study=readings            # in a checkout
    python -m tdrs.analysis.report study=readings       # where tdrs is installed

Question, splits, every setting, tables with paired tests, figures, samples on which the answers differ, cost,
environment, and how to do it again; its sentences are made from the numbers. It needs the stored records and the data
set's pictures, and no model.
"""

import base64
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
import yaml
from tdrs.analysis import attention, comparison, decay, distance, sensitivity, tables
from tdrs.analysis.evidence import LEVEL, Evidence, where
from tdrs.analysis.evidence import numbers as evidence
from tdrs.analysis.figure import kept, redraw, span
from tdrs.sweeps.trial import COMPLETE, FAILED, PRUNED, STOCK, Outcome, Trial, check_same_samples

from tdrs import escape
from tdrs.benchmarks import Record, Sample
from tdrs.commands import study_command
from tdrs.configuration import with_settings
from tdrs.entry_point import run_command
from tdrs.environment import environment
from tdrs.evaluation import plan
from tdrs.published import Comparison, checked, compare
from tdrs.records import Records

NUMBERS = ("tdrs", "torch", "transformers", "tokenizers", "pillow", "numpy", "device")  # what may decide numbers
SHOWN = 3  # discordant samples of a row, of each kind
THUMBNAIL = 160  # pixels


class Case(NamedTuple):
    """A sample that the stock model and a row answer differently; `picture` is a data address, or ""."""

    kind: str
    prompt: str
    gold: str
    stock: str
    edited: str
    picture: str


class Cases(NamedTuple):
    """Of one row the discordant samples that are shown, and how many there are in all."""

    name: str
    gained: int
    lost: int
    shown: list[Case]


@dataclass(frozen=True)
class Report:
    """All that the page says.

    Attributes:
        split: the first line: which split was reported, and what chose the settings.
        verified: at how many conditions a published score checked weights, prompts and rules; then a line each.
        off: those conditions where the stock model's score is far from the published one.
        findings: a sentence a row, by condition.
        tables: Markdown, by condition.
        figures: what they show, and their files.
        cost: lines on time and trials.
        environment: where the records were measured.
        elsewhere: how that differs from where the page was made, and between two rows that are compared.
        look: the commands that show the trials and export them.
        stamp: whose result it is.
    """

    name: str
    split: str
    verified: list[str]
    off: list[str]
    question: str
    findings: dict[str, list[tuple[str, str]]]
    setup: list[tuple[str, str]]
    settings: str
    lines: list[tables.Line]
    warning: str
    tests: str
    figures: list[tuple[str, Path]]
    cases: dict[str, list[Cases]]
    cost: list[str]
    clamped: list[str]
    failures: list[str]
    environment: dict[str, str]
    elsewhere: list[str]
    command: str
    look: list[str]
    stamp: dict[str, str]
    notes: list[str] = field(default_factory=list)


def split_line(outcome: Outcome) -> str:
    """Which split is reported, and what chose the settings."""
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


def comparisons(outcome: Outcome, records: Records) -> list[tuple[str, Comparison | str]]:
    """Each condition with its stock score beside the published one, or with why there is none."""
    return [
        (
            where(outcome, row.condition),
            compare(with_settings(outcome.config, row.condition), records.read(row.cache_key).records),
        )
        for row in outcome.rows
        if row.name == STOCK and row.status == COMPLETE
    ]


def verified(compared: Sequence[tuple[str, Comparison | str]]) -> list[str]:
    """At how many conditions weights, prompts and rules were checked by a published score; then a line a condition."""
    lines = [
        (condition, one.sentence if isinstance(one, Comparison) else f"not verified: {one}")
        for condition, one in compared
    ]
    return [checked([one for _, one in compared]), *(f"{condition}: {text}" for condition, text in lines)]


def off(compared: Sequence[tuple[str, Comparison | str]]) -> list[str]:
    """Where the stock model is off its published score, a line a condition."""
    return [
        f"{condition}: {one.sentence}. See what tdrs.doctor says."
        for condition, one in compared
        if isinstance(one, Comparison) and one.off
    ]


def question(outcome: Outcome) -> str:
    """What the study asks, in a sentence."""
    rows = list(dict.fromkeys(row.name for row in outcome.rows if row.name != STOCK))
    models, sets = (", ".join(outcome.all_named(group)) for group in ("backbone", "dataset"))
    what = "; ".join(rows) if len(rows) <= 6 else f"each of {len(rows)} settings"
    if not rows:
        return f"How well does the stock model do: {models} on {sets}?"
    return (
        f"Does an edit of the attention logits ({what}) change the accuracy of {models} on {sets}, beside the stock "
        "model on the same samples?"
    )


def numbers(outcome: Outcome, records: Records, folder: Path) -> Report:
    """All that the page says, from stored records; draws the figures into the folder on the way."""
    found = evidence(outcome, records)
    compared = comparisons(outcome, records)
    findings: dict[str, list[tuple[str, str]]] = {}
    for one in found:
        if one.difference is not None:
            findings.setdefault(one.where, []).append((_name(one.trial), one.sentence))
    config = outcome.config
    setup = [
        ("protocol", config["search"]["protocol"]),
        ("backbones", ", ".join(outcome.all_named("backbone"))),
        ("data sets", ", ".join(outcome.all_named("dataset"))),
        ("batch size", str(config["batch_size"])),
        ("decoding", "greedy, repetition penalty 1.0"),
        ("study key", outcome.key),
    ]
    settings = {part: config[part] for part in ("intervention", "backbone", "dataset", "search")}
    rows = sum(one.difference is not None for one in found)
    tests = (
        "Differences are paired: the same samples, questions on one image taken as one cluster; 95 % intervals by a "
        f"percentile bootstrap over images. A row is called better or worse where the sign-flip test over images gives "
        f"p < {LEVEL:g} after Holm's correction over all {rows} comparisons of this study. “Could have shown” is "
        "the difference that such a comparison shows four times in five. Intervals are not corrected."
    )
    if any(one.f1 for one in found):
        tests += (
            " On POPE “gained : lost” counts each pair of image and question once; means weigh it by the categories it "
            "is in, a yes more than a no."
        )
    return Report(
        name=outcome.name,
        split=split_line(outcome),
        verified=verified(compared),
        off=off(compared),
        question=question(outcome),
        findings=findings,
        setup=setup,
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110),
        lines=tables.numbers(outcome, found),
        warning=outcome.warning,
        tests=tests,
        figures=_figures(outcome, folder),
        cases=_cases(outcome, found, records),
        cost=_cost(outcome),
        clamped=outcome.clamps(),
        failures=[f"{t.name} ({t.split}, {where(outcome, t.condition)}): {t.reason}" for t in outcome.failures],
        environment=outcome.environment,
        elsewhere=_elsewhere(outcome, records),
        command=outcome.command,
        look=[study_command(verb, folder.name, folder.parents[1]) for verb in ("show", "export")],
        stamp=outcome.stamp,
        notes=list(dict.fromkeys(note for row in outcome.rows for note in row.notes)),
    )


def _name(trial: Trial) -> str:
    """A row's name, marked where its settings were chosen."""
    return f"{trial.name} (tuned on {trial.budget} trials)" if trial.budget else trial.name


def _figures(outcome: Outcome, folder: Path) -> list[tuple[str, Path]]:
    """The figures that fit the study, drawn; SVG."""
    drawn: list[tuple[str, Path]] = []
    curves_of_settings = sensitivity.numbers(outcome)
    if any(line.panels for line in curves_of_settings):
        drawn.append(
            (
                "Each setting in turn, on the tuning split",
                _svg(sensitivity.draw(curves_of_settings, folder, outcome.stamp)),
            )
        )
    if len({row.condition.get("dataset.gap") for row in outcome.rows}) > 1:
        curves = distance.numbers(outcome)
        if curves:
            paths = distance.draw(curves, folder, outcome.warning, outcome.stamp)
            drawn.append(("Accuracy against distance", _svg(paths)))
    else:
        panels = [panel for panel in comparison.numbers(outcome) if panel.rows]
        if panels:
            paths = comparison.draw(panels, folder, outcome.warning, outcome.stamp)
            drawn.append(("Paired differences to the stock model", _svg(paths)))
    # where they were measured: python -m analysis.decay, python -m analysis.attention
    if values := kept(folder / "decay.json", outcome):
        paths = decay.draw(decay.read(values), folder, outcome.stamp)
        drawn.append(("Attention weight against distance", _svg(paths)))
    if values := kept(folder / "attention.json", outcome):
        paths = attention.draw(attention.read(values), folder, outcome.stamp)
        drawn.append(("What the answer position sees", _svg(paths)))
    return drawn


def _svg(paths: list[Path]) -> Path:
    return next(path for path in paths if path.suffix == ".svg")


def _elsewhere(outcome: Outcome, records: Records) -> list[str]:
    """Where the measuring environment differs from today's, and where that of a row differs from its stock model's."""
    today = environment()
    differing = [
        f"{name} {outcome.environment[name]}, here {today.get(name, 'unknown')}"
        for name in NUMBERS
        if outcome.environment.get(name, today.get(name)) != today.get(name)
    ]
    lines = [f"The records were measured in another environment: {'; '.join(differing)}."] if differing else []
    stock: dict[str, str] = {}
    for row in outcome.rows:
        condition = where(outcome, row.condition)
        if row.name == STOCK:
            stock = records.environment(row.cache_key)
        own = records.environment(row.cache_key)
        both = [(name, own[name], stock[name]) for name in NUMBERS if name in own and name in stock]
        unlike = [f"{name} {mine} and {others}" for name, mine, others in both if mine != others]
        if unlike:
            lines.append(f"{condition}: {row.name} and its stock model were measured apart: {'; '.join(unlike)}.")
    return lines


def _cost(outcome: Outcome) -> list[str]:
    """Time by method, beside the stock model's, and what was tried."""
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
    return lines


def _cases(outcome: Outcome, found: list[Evidence], records: Records) -> dict[str, list[Cases]]:
    """Of every compared row the first discordant samples, gained and lost."""
    result: dict[str, list[Cases]] = {}
    stock: dict[str, list[Record]] = {}
    samples: dict[str, Sample] = {}
    at = None
    for one in found:
        if one.trial.name == STOCK:
            stock[one.where] = records.read(one.trial.cache_key).records
        if one.difference is None:  # the stock model, or one without a stock model that was measured whole
            continue
        if one.where != at:
            at, samples = one.where, _samples(outcome, one.trial)
        edited = records.read(one.trial.cache_key).records
        check_same_samples(stock[one.where], edited, one.trial.name)
        pairs = list(zip(stock[one.where], edited, strict=True))
        gained = [pair for pair in pairs if pair[1].score > pair[0].score]
        lost = [pair for pair in pairs if pair[1].score < pair[0].score]
        shown = [_case("gained", *pair, samples) for pair in gained[:SHOWN]]
        shown += [_case("lost", *pair, samples) for pair in lost[:SHOWN]]
        result.setdefault(one.where, []).append(Cases(_name(one.trial), len(gained), len(lost), shown))
    return result


def _samples(outcome: Outcome, trial: Trial) -> dict[str, Sample]:
    """The samples of a condition by their ids; none where the data set is not to be had here."""
    config = with_settings(outcome.config, {**dict(trial.condition), "intervention": "none"})
    config |= {"split": trial.split, "limit": outcome.config["preset"][trial.split]}
    try:
        return {sample.id: sample for sample in plan(config).load()}
    except (ValueError, OSError):  # a SettingError is a ValueError
        return {}


def _case(kind: str, before: Record, after: Record, samples: Mapping[str, Sample]) -> Case:
    sample = samples.get(before.id)
    prompt = f"{sample.before}[image] {sample.prompt}" if sample else before.question
    if len(prompt) > 600:
        prompt = f"{prompt[:250]} […] {prompt[-250:]}"
    return Case(kind, prompt, before.gold, before.prediction, after.prediction, _thumbnail(sample) if sample else "")


def _thumbnail(sample: Sample) -> str:
    image = sample.image
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if image.width < THUMBNAIL else "JPEG")
    kind = "png" if image.width < THUMBNAIL else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw(report: Report, folder: Path) -> list[Path]:
    """Write `report.html`, `report.md` and the tables into a folder; returns their paths."""
    paths = [folder / "report.html", folder / "report.md"]
    page = files("tdrs.analysis").joinpath("report.html").read_text(encoding="utf-8")
    templates = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    by_condition = tables.by_condition(report.lines)
    conditions = {condition: [tables.cells(line) for line in lines] for condition, lines in by_condition.items()}
    heads = {condition: tables.heads(lines) for condition, lines in by_condition.items()}
    figures = [
        (title, "<svg" + path.read_text(encoding="utf-8").partition("<svg")[2]) for title, path in report.figures
    ]
    given = {"report": report, "conditions": conditions, "heads": heads, "figures": figures}
    paths[0].write_text(templates.from_string(page).render(**given), encoding="utf-8")
    paths[1].write_text(markdown(report), encoding="utf-8")
    return paths + tables.draw(report.lines, folder, report.warning, report.stamp)


def markdown(report: Report) -> str:
    """The page without its pictures of samples."""
    head, *lines = report.verified
    shown = escape.markdown
    checked = "\n".join([f"{shown(head)}:", "", *(f"- {shown(line)}" for line in lines)])
    parts = [f"# {shown(report.name)}", shown(report.split), *(f"**{shown(line)}**" for line in report.off), checked]
    parts.append(shown(report.question))
    parts.append("## Findings")
    for condition, sentences in report.findings.items():
        found = "\n".join(f"- {shown(name)}: {shown(text)}" for name, text in sentences)
        parts.append(f"**{shown(condition)}**\n\n{found}")
    parts += [shown(report.tests), "## Tables", tables.markdown(report.lines, report.warning).strip(), "## Figures"]
    parts += [f"![{title}]({path.with_suffix('.png').name})" for title, path in report.figures]
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
        escape.fenced("\n".join(report.look), "sh"),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """The command."""

    def make(outcome: Outcome, folder: Path) -> list[Path]:
        return draw(numbers(outcome, Records(folder.parents[1] / "records"), folder), folder)

    return redraw(arguments, make)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
