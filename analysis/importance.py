"""What matters in a search, as a page: figures, a table of the settings, and lines to read.

    python -m analysis.importance study=NAME            # in a checkout
    python -m tdrs.analysis.importance study=NAME       # where tdrs is installed

writes the figures and `importance.md` of a study of the protocol `raced`, `sampled` or `points`, from its stored trials
and records, without a model. `objective=accuracy` or `objective=margin` asks of another metric than the study's own; it
is then in the names of the files, such as `importance_margin.md`. The report of the study has the same sections. From
Python: `tdrs.plot.importance(study)`.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure

from tdrs import escape
from tdrs.analysis.figure import redraw, save
from tdrs.analysis.importance_figures import draw_history, draw_importance, draw_pairs, draw_parallel, draw_slices
from tdrs.analysis.plateau import shown_value
from tdrs.analysis.search_importance import BELIEVABLE, Importance, importance
from tdrs.analysis.search_points import has_points, own_objective
from tdrs.analysis.study_results import StudyResults
from tdrs.commands import parse
from tdrs.entry_point import run_command
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.statistics import Interval
from tdrs.sweeps.space import Range
from tdrs.sweeps.trial import Outcome

HOW_TO_READ = (
    "fANOVA is the share of the variance over the whole space that a setting explains alone, and PED-ANOVA says which "
    "settings the best points agree on. Only a setting above the dashed line, marked “shown”, is shown to matter; "
    "“no loss shown” is not “no loss”."
)
FIRST_HEADS, SOBOL_HEADS = ("setting", "fANOVA", "PED-ANOVA"), ("Sobol alone", "Sobol total")
LAST_HEADS = ("best point", "no loss shown (surrogate)", "points not shown worse")


class ImportanceSection(NamedTuple):
    """What matters at one condition, as it is shown.

    Attributes:
        warnings, notes: lines.
        rows: of the table, the first one its heads; empty if nothing can be said.
        figures: what each shows, and its SVG file.
    """

    condition: str
    warnings: list[str]
    notes: list[str]
    rows: list[list[str]]
    figures: list[tuple[str, Path]]


def importance_sections(
    found: Sequence[Importance], folder: Path, stamp: Mapping[str, str] | None = None, name: str = "importance"
) -> list[ImportanceSection]:
    """Write the figures of each condition; return what is shown of it. The names of their files begin with `name`."""
    ends = [f"_{number}" for number in range(1, len(found) + 1)] if len(found) > 1 else [""]
    return [_section(one, folder, (name, end), stamp) for one, end in zip(found, ends, strict=False)]


def sections_of(outcome: Outcome, records: Records, folder: Path) -> list[ImportanceSection]:
    """What matters in a study, for its report: figures are written, sections returned; none without a search space."""
    if not has_points(outcome):
        return []
    return importance_sections(importance(outcome, records), folder, outcome.stamp)


def _section(
    one: Importance, folder: Path, names: tuple[str, str], stamp: Mapping[str, str] | None
) -> ImportanceSection:
    drawings: list[tuple[str, str, matplotlib.figure.Figure]] = []
    if not one.stopped:
        drawings.append(("importance", "Importance of each setting", draw_importance([one])))
        drawings.append(("slices", "The most important settings, one by one", draw_slices(one)))
        if one.pairs:
            drawings.append(("interactions", "Which settings depend on each other", draw_pairs(one)))
        drawings.append(("parallel", "Every counted point", draw_parallel(one)))
    with contextlib.suppress(SettingError):  # no trial has a value, which the lines say
        drawings.append(("history", "What the search found", draw_history(one.points)))
    figures = []
    for name, title, figure in drawings:
        stem = "" if name == "importance" else f"_{name}"
        figures.append((title, save(figure, folder, stem.join(names), stamp)[1]))
    warnings = [one.stopped] if one.stopped else list(one.warnings)
    notes = [] if one.stopped else [_model_line(one), *one.notes, *_pair_lines(one)]
    return ImportanceSection(one.points.condition, warnings, notes, _rows(one), figures)


def _model_line(one: Importance) -> str:
    assert one.r2 is not None
    r2 = one.r2
    return (
        f"The surrogate is a random forest of 64 trees; its R² for points it has not seen, by 5-fold cross-validation, "
        f"is {r2.value:.2f} (5 repeats: {r2.low:.2f} to {r2.high:.2f}). Above {BELIEVABLE:g} it explains more than it "
        "leaves."
    )


def _pair_lines(one: Importance) -> list[str]:
    names = [part.key.removeprefix("intervention.") for part in one.parts]
    shown = [pair for pair in one.pairs if pair.share.value > one.pair_floor]
    lines = [
        f"{names[pair.first]} and {names[pair.second]} interact: {_share(pair.share)} of the surrogate's variance."
        for pair in shown[:3]
    ]
    if one.pairs and not shown:
        lines.append("No interaction of two settings is shown: none is above the highest among shuffled values.")
    if len(shown) > 3:
        lines.append(f"{len(shown) - 3} more interactions are above the highest among shuffled values.")
    if not one.sobol:
        why = f"R² is below {BELIEVABLE:g}" if one.points.unbiased else "points were chosen by looking at results"
        lines.append(f"Sobol indices are not computed: {why}.")
    lines.append(
        "“No loss shown”: with the best point's setting moved there and the others kept, the change of the surrogate's "
        "objective has a band that reaches 0, or a resample without a loss. “Points not shown worse”: the values of "
        "measured points whose paired difference to the best point, image by image, has 0 in its 95 % interval; their "
        "other settings differ, too."
    )
    return lines


def _share(share: Interval) -> str:
    return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"


def _rows(one: Importance) -> list[list[str]]:
    sobol = {index.key: index for index in one.sobol}
    plateaus = {plateau.key: plateau for plateau in one.plateaus}
    if not one.parameters:
        return []
    rows = [[*FIRST_HEADS, *(SOBOL_HEADS if sobol else ()), *LAST_HEADS]]
    for parameter in one.parameters:
        key = parameter.name
        marks = [
            f"{_share(value)}{' shown' if value.value > floor else ''}"
            for value, floor in ((parameter.fanova, one.fanova_floor), (parameter.ped, one.ped_floor))
        ]
        index, plateau = sobol.get(key), plateaus.get(key)
        cells = [_share(index.first), _share(index.total)] if index else [""] * (2 if sobol else 0)
        if plateau:
            off = isinstance(plateau.given, Range) and plateau.best == plateau.given.off_at
            cells += ["off" if off else shown_value(plateau.best), plateau.plateau, plateau.seen_values]
        else:
            cells += ["", "", ""]
        rows.append([key.removeprefix("intervention."), *marks, *cells])
    return rows


def importance_markdown(sections: Sequence[ImportanceSection]) -> str:
    """The sections in Markdown."""
    shown = escape.markdown
    parts = ["## What matters", shown(HOW_TO_READ)]
    for section in sections:
        parts.append(f"### {shown(section.condition)}")
        parts += [f"**{shown(line)}**" for line in section.warnings]
        parts += ["\n".join(f"- {shown(line)}" for line in section.notes)] if section.notes else []
        if section.rows:
            head, *lines = [f"| {' | '.join(map(shown, line))} |" for line in section.rows]
            parts.append("\n".join([head, f"|{'---|' * len(section.rows[0])}", *lines]))
        parts += [f"![{title}]({path.with_suffix('.png').name})" for title, path in section.figures]
    return "\n\n".join(parts) + "\n"


def write_importance(
    found: Sequence[Importance], folder: Path, stamp: Mapping[str, str] | None = None, name: str = "importance"
) -> list[Path]:
    """Write the figures of each condition and `importance.md`, or another `name`; return their paths."""
    sections = importance_sections(found, folder, stamp, name)
    path = folder / f"{name}.md"
    path.write_text(importance_markdown(sections), encoding="utf-8")
    return [path, *(figure for section in sections for _, figure in section.figures)]


def main(arguments: list[str]) -> int:
    """The command."""
    objective = parse(arguments)[1].get("objective")

    def write(study: StudyResults) -> list[Path]:
        found = importance(study.outcome, study.records, objective)
        # the report links to the files of the study's own objective
        name = "importance" if objective in (None, own_objective(study.outcome)) else f"importance_{objective}"
        return write_importance(found, study.folder, study.outcome.stamp, name)

    return redraw(arguments, write, ("objective",))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
