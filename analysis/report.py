"""A study as one page that a reviewer can read from top to bottom: `report.html`, self-contained, and `report.md`.

    python -m analysis.report study=readings            # in a checkout
    python -m tdrs.analysis.report study=readings       # where tdrs is installed

Question, splits, every setting, tables with paired tests, figures, samples on which the answers differ, cost,
environment, and how to do it again; its sentences are made from the numbers. It needs the stored records and the data
set's pictures, and no model.
"""

import base64
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
import yaml
from tdrs.analysis import comparison, distance, sensitivity, tables
from tdrs.analysis.evidence import LEVEL, Evidence, where
from tdrs.analysis.evidence import numbers as evidence
from tdrs.analysis.figure import redraw, span
from tdrs.sweeps.trials import FAILED, PRUNED, STOCK, Outcome, Trial, check_same_samples

from tdrs.benchmarks import Record, Sample
from tdrs.configuration import with_settings
from tdrs.evaluate import plan
from tdrs.published import published
from tdrs.records import Records

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
        off: where the stock model's score is far from the published one, lines right below.
        findings: a sentence a row, by place.
        tables: Markdown, by place.
        figures: what they show, and their files.
        cost: lines on time and trials.
    """

    name: str
    split: str
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
    command: str
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
    return f"{text} {chosen}n = {outcome.config['preset']['tuning']}, from {trials} trials each."


def off(outcome: Outcome) -> list[str]:
    """Where the stock model is more than 3 points off its published score, a line a place."""
    lines = []
    for row in outcome.rows:
        if row.name != STOCK or not row.metrics:
            continue
        config = with_settings(outcome.config, dict(row.place))
        known = published(config["backbone"], config["dataset"])
        warning = known.warning(row.metrics[known.metric.lower()]) if known else ""
        if warning:
            lines.append(f"{where(outcome, row.place)}, n = {row.n}: {warning}. See what `tdrs.doctor` says.")
    return lines


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
    ]
    settings = {part: config[part] for part in ("intervention", "backbone", "dataset", "search")}
    compared = sum(one.difference is not None for one in found)
    tests = (
        "Differences are paired: the same samples, questions on one image taken as one cluster; 95 % intervals by a "
        f"percentile bootstrap over images. A row is called better or worse where the sign-flip test over images gives "
        f"p < {LEVEL:g} after Holm's correction over all {compared} comparisons of this study. “Could have shown” is "
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
        off=off(outcome),
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
        failures=[f"{t.name} ({t.split}, {where(outcome, t.place)}): {t.reason}" for t in outcome.failures],
        environment=outcome.environment,
        command=outcome.command,
        notes=list(dict.fromkeys(note for row in outcome.rows for note in row.notes)),
    )


def _name(trial: Trial) -> str:
    """A row's name, marked where its settings were chosen."""
    return f"{trial.name} (tuned on {trial.budget} trials)" if trial.budget else trial.name


def _figures(outcome: Outcome, folder: Path) -> list[tuple[str, Path]]:
    """The figures that fit the study, drawn; SVG."""
    drawn: list[tuple[str, Path]] = []
    if outcome.curves:
        drawn.append(
            ("Each setting in turn, on the tuning split", _svg(sensitivity.draw(sensitivity.numbers(outcome), folder)))
        )
    if len({row.place.get("dataset.gap") for row in outcome.rows}) > 1:
        curves = distance.numbers(outcome)
        if curves:
            drawn.append(("Accuracy against distance", _svg(distance.draw(curves, folder, outcome.warning))))
    else:
        panels = [panel for panel in comparison.numbers(outcome) if panel.rows]
        if panels:
            drawn.append(
                ("Paired differences to the stock model", _svg(comparison.draw(panels, folder, outcome.warning)))
            )
    for name, title in (("decay", "Attention weight against distance"), ("attention", "What the answer position sees")):
        if (folder / f"{name}.svg").exists():  # where it was measured: python -m analysis.decay, analysis.attention
            drawn.append((title, folder / f"{name}.svg"))
    return drawn


def _svg(paths: list[Path]) -> Path:
    return next(path for path in paths if path.suffix == ".svg")


def _cost(outcome: Outcome) -> list[str]:
    """Time by method, beside the stock model's, and what was tried."""
    unique = {trial.identity: trial for trial in [*outcome.trials, *outcome.rows]}.values()
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
        key = str(row.place)
        if row.metrics and row.name == STOCK:
            base[key] = row.seconds / max(row.n, 1)
        elif row.metrics and base.get(key):
            rates.setdefault(row.name, []).append(row.seconds / max(row.n, 1) / base[key])
    for name, values in rates.items():
        middle = sorted(values)[len(values) // 2]
        lines.append(
            f"{name}: {middle:.1f} × the stock model's time a sample (median over places, other work beside it)."
        )
    return lines


def _cases(outcome: Outcome, found: list[Evidence], records: Records) -> dict[str, list[Cases]]:
    """Of every compared row the first discordant samples, gained and lost."""
    result: dict[str, list[Cases]] = {}
    stock: dict[str, list[Record]] = {}
    samples: dict[str, Sample] = {}
    at = None
    for one in found:
        if one.trial.name == STOCK:
            stock[one.where] = records.read(one.trial.identity).records
        if one.difference is None:  # the stock model, or one without a stock model that was measured whole
            continue
        if one.where != at:
            at, samples = one.where, _samples(outcome, one.trial)
        edited = records.read(one.trial.identity).records
        check_same_samples(stock[one.where], edited, one.trial.name)
        pairs = list(zip(stock[one.where], edited, strict=True))
        gained = [pair for pair in pairs if pair[1].score > pair[0].score]
        lost = [pair for pair in pairs if pair[1].score < pair[0].score]
        shown = [_case("gained", *pair, samples) for pair in gained[:SHOWN]]
        shown += [_case("lost", *pair, samples) for pair in lost[:SHOWN]]
        result.setdefault(one.where, []).append(Cases(_name(one.trial), len(gained), len(lost), shown))
    return result


def _samples(outcome: Outcome, trial: Trial) -> dict[str, Sample]:
    """The samples of a place by their ids; none where the data set is not to be had here."""
    config = with_settings(outcome.config, {**dict(trial.place), "intervention": "none"})
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
    page = files("tdrs.analysis").joinpath("report.html").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    by_place = tables.by_place(report.lines)
    places = {place: [tables.cells(line) for line in lines] for place, lines in by_place.items()}
    heads = {place: tables.heads(lines) for place, lines in by_place.items()}
    figures = [(title, "<svg" + path.read_text().partition("<svg")[2]) for title, path in report.figures]
    given = {"report": report, "places": places, "heads": heads, "figures": figures}
    paths[0].write_text(environment.from_string(page).render(**given))
    paths[1].write_text(markdown(report))
    return paths + tables.draw(report.lines, folder, report.warning)


def markdown(report: Report) -> str:
    """The page without its pictures of samples."""
    parts = [f"# {report.name}", report.split, *(f"**{line}**" for line in report.off), report.question, "## Findings"]
    for place, sentences in report.findings.items():
        parts.append(f"**{place}**\n\n" + "\n".join(f"- {name}: {text}" for name, text in sentences))
    parts += [report.tests, "## Tables", tables.markdown(report.lines, report.warning).strip(), "## Figures"]
    parts += [f"![{title}]({path.with_suffix('.png').name})" for title, path in report.figures]
    parts += ["## Setup", "\n".join(f"- {name}: {value}" for name, value in report.setup)]
    parts.append(f"```yaml\n{report.settings}```")
    for title, lines in (("Clamped", report.clamped), ("Failed", report.failures), ("Notes", report.notes)):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line.strip()}" for line in lines)]
    parts += ["## Cost", "\n".join(f"- {line}" for line in report.cost)]
    parts += ["## Environment", "\n".join(f"- {name}: {value}" for name, value in report.environment.items() if value)]
    parts += [
        "## Again",
        f"    {report.command}",
        "Stored evaluations are reused; `python -m tdrs.study show` lists the trials.",
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """The command."""

    def make(outcome: Outcome, folder: Path) -> list[Path]:
        return draw(numbers(outcome, Records(folder.parents[1] / "records"), folder), folder)

    return redraw(arguments, make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
