"""Whether one setting serves all conditions: tuned on × reported on, a matrix for each method.

    python -m analysis.transfer study=transfer            # in a checkout
    python -m tdrs.analysis.transfer study=transfer       # where tdrs is installed

draws the matrix of a study with the protocol `transfer` from its stored records, without a model. Settings were chosen
on the tuning split of one condition or of all; all that is shown was measured on the held-out split. A cell is compared
with the stock model, as in the report, and with the cell that was tuned where it is reported.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from tdrs import escape
from tdrs.analysis.answer_bias import Controls, readings
from tdrs.analysis.evidence import compare_records, compare_rows, show_p, show_points, verdict
from tdrs.analysis.figure import GivenAxes, axes_for, redraw, save, set_title, span
from tdrs.analysis.study_results import StudyResults
from tdrs.entry_point import run_command
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.statistics import Interval, holm
from tdrs.sweeps import protocol
from tdrs.sweeps.transfer import ALL, Transfer, source_name
from tdrs.sweeps.trial import STOCK, Outcome, check_pair, shown, spelled


class Cell(NamedTuple):
    """A setting that was tuned on a source, reported on a condition.

    Attributes:
        to_stock: the paired difference of accuracy to the stock model, with 95 % limits.
        p_stock: of the sign-flip test, after Holm's correction over all rows of the study, as in the report.
        to_own: the paired difference to the cell that was tuned on this condition; None for that cell itself.
        p_own: after Holm's correction over all such comparisons of the study; 1 for that cell itself.
        condition: the target, in the words of reports.
        same: whether both have the same settings, so that their difference is 0 by itself.
    """

    source: str
    target: str
    accuracy: float
    n: int
    to_stock: Interval
    p_stock: float
    to_own: Interval | None
    p_own: float
    same: bool
    condition: str = ""


class Matrix(NamedTuple):
    """The cells of one method.

    Attributes:
        sources: what was tuned on, the last one `ALL`.
        targets: the conditions that are reported.
        cells: by source and target; a cell is missing if a row of it failed.
        settings: in words, by source.
    """

    method: str
    sources: list[str]
    targets: list[str]
    cells: dict[tuple[str, str], Cell]
    settings: dict[str, str]


def matrices(outcome: Outcome, records: Records) -> list[Matrix]:
    """The matrices of a finished study, one for each method, from its stored records.

    Raises:
        SettingError: the study's protocol is not `transfer`.
        FileNotFoundError, Damaged: records are missing or damaged.
    """
    if outcome.protocol != "transfer":
        raise SettingError("study", outcome.name, f"has the protocol {outcome.protocol}, and no matrix; see transfer")
    search = protocol.from_settings(outcome.config["search"])
    assert isinstance(search, Transfer)
    rows = {(one.trial.name, spelled(one.trial.condition)): one for one in compare_rows(outcome, records)}
    targets = {search.named(condition): spelled(condition) for condition in search.conditions}
    found: list[Matrix] = []
    raw: list[tuple[int, tuple[str, str], float]] = []
    for number, method in enumerate(row.name for row in search.reported()):
        matrix = Matrix(method, search.sources, list(targets), {}, {})
        for source in search.sources:
            for target, condition in targets.items():
                one = rows.get((source_name(method, source), condition))
                own = rows.get((source_name(method, target), condition))
                if one is None or one.difference is None:
                    continue
                matrix.settings.setdefault(source, shown(one.trial.settings, digits=3))
                cell = Cell(
                    source, target, one.accuracy.value, one.trial.n, one.difference, one.p_holm, None, 1.0, False,
                    one.condition,
                )  # fmt: skip
                if source != target and own is not None:
                    before, after = (records.read(each.trial.cache_key).records for each in (own, one))
                    check_pair(own.trial, one.trial, before, after)
                    paired = compare_records(before, after)
                    same = own.trial.cache_key == one.trial.cache_key
                    cell = cell._replace(to_own=paired.difference, same=same)
                    raw.append((number, (source, target), paired.p))
                matrix.cells[source, target] = cell
        found.append(matrix)
    for (number, key, _), p in zip(raw, holm([p for *_, p in raw]), strict=True):
        found[number].cells[key] = found[number].cells[key]._replace(p_own=p)
    return found


def draw_transfer(
    found: list[Matrix], axes: GivenAxes = None, warning: str = "", study: str = ""
) -> matplotlib.figure.Figure:
    """Draw a matrix for each method: what was tuned on (rows) × what is reported (columns); return the figure.

    Args:
        axes: one Axes for each method; None makes a figure.
        warning: what must be said before the result; it takes the title's place.
        study: the study's name, for the title and the error message.

    Raises:
        SettingError: there is no cell, or the number of Axes is wrong.
    """
    values = [abs(100 * cell.to_stock.value) for matrix in found for cell in matrix.cells.values()]
    if not values:
        raise SettingError("study", study, "has no row that was measured whole")
    count = max(len(matrix.targets) for matrix in found)
    cells = [(number, 0) for number in range(len(found))]
    size = (2.3 + 2.1 * count, (0.75 + 0.62 * (count + 1)) * len(found) + 1.1)
    figure, panels = axes_for(axes, cells, size)
    for axis, matrix in zip(panels, found, strict=True):
        _draw_matrix(axis, matrix, max(*values, 1.0))
    meaning = (
        "accuracy, points to the stock model (paired, 95 % intervals); * p < .05 after Holm's correction\n"
        "second line: to the cell tuned where it is reported; framed: that cell; =: the same settings"
    )
    if axes is None:
        figure.supxlabel(meaning, fontsize=8)
    n = span(cell.n for matrix in found for cell in matrix.cells.values())
    title = f"{study}: tuned on (rows) × reported on (columns); held-out split, n = {n}"
    set_title(panels, axes, escape.label(title, 120), escape.label(warning, 120))
    return figure


def _draw_matrix(axis: Axes, matrix: Matrix, most: float) -> None:
    shown = [
        [
            100 * matrix.cells[source, target].to_stock.value if (source, target) in matrix.cells else float("nan")
            for target in matrix.targets
        ]
        for source in matrix.sources
    ]
    axis.imshow(shown, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto", alpha=0.75)
    for row, source in enumerate(matrix.sources):
        for column, target in enumerate(matrix.targets):
            cell = matrix.cells.get((source, target))
            if cell is None:
                continue
            axis.text(column, row, "\n".join(_lines(cell)), ha="center", va="center", fontsize=8)
            if source == target:
                corner = column - 0.49, row - 0.48
                axis.add_patch(Rectangle(corner, 0.98, 0.96, fill=False, edgecolor="black", linewidth=1.8, zorder=3))
    axis.set_xticks(range(len(matrix.targets)), [escape.label(name, 30) for name in matrix.targets], fontsize=9)
    axis.set_yticks(range(len(matrix.sources)), [escape.label(name, 30) for name in matrix.sources], fontsize=9)
    axis.tick_params(length=0)
    axis.axhline(len(matrix.sources) - 1.5, color="white", linewidth=4)
    axis.set_title(escape.label(matrix.method, 60), fontsize=10)
    axis.spines[:].set_visible(False)


def _lines(cell: Cell) -> list[str]:
    """What a cell shows: the difference to the stock model, and to the cell that was tuned where it is reported."""
    lines = [f"{show_points(cell.to_stock)}{'*' if cell.p_stock < 0.05 else ''}"]
    if cell.same:
        lines.append("=")
    elif cell.to_own is not None:
        lines.append(f"({show_points(cell.to_own)}{'*' if cell.p_own < 0.05 else ''})")
    return lines


def markdown(found: list[Matrix], controls: Controls | None = None) -> str:
    """All numbers as a table, a line for each cell.

    Where answers are yes or no, the last column compares a cell with the stock model at the cell's yes-rate, and a line
    for each such condition has the tuned bias; see `answer_bias`.
    """
    heads = "method | tuned on | settings | reported on | accuracy | to stock | p, Holm | to its own | p, Holm".split(
        " | "
    )
    conditions = {cell.target: cell.condition for matrix in found for cell in matrix.cells.values()}
    more = ["to stock at this yes-rate"] if any(one in (controls or {}) for one in conditions.values()) else []
    lines = [[*heads, *more], ["---"] * (len(heads) + len(more))]
    for matrix in found:
        for cell in matrix.cells.values():
            own = "the same settings" if cell.same else show_points(cell.to_own) if cell.to_own else "—"
            names = (matrix.method, cell.source, matrix.settings[cell.source], cell.target)
            p = show_p(cell.p_own) if cell.to_own and not cell.same else ""
            numbers = [f"{100 * cell.accuracy:.1f}", show_points(cell.to_stock), show_p(cell.p_stock), own, p]
            read = readings(controls, cell.condition, source_name(matrix.method, cell.source))
            numbers += [show_points(read[0].difference) if read else ""] if more else []
            lines.append([*map(escape.markdown, names), *numbers])
    for target, condition in conditions.items():
        for one in readings(controls, condition, STOCK):
            numbers = [f"{100 * one.accuracy.value:.1f}", show_points(one.difference), *[""] * (3 + len(more))]
            lines.append([one.name, "", "", escape.markdown(target), *numbers])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def sentences(found: list[Matrix]) -> list[str]:
    """What the matrices say of the setting for all, and of the settings that were tuned elsewhere."""
    lines = []
    for matrix in found:
        for target in matrix.targets:
            cell = matrix.cells.get((ALL, target))
            if cell is not None and cell.to_own is not None:
                own = f"{verdict(cell.to_own, cell.p_own)}, {show_points(cell.to_own)}"
                said = "the same settings" if cell.same else own
                stock = f"{verdict(cell.to_stock, cell.p_stock)}, {show_points(cell.to_stock)}"
                lines.append(
                    f"{matrix.method}, one setting for all, on {target}: to its own {said}; to the stock model {stock}."
                )
        others = [cell for cell in matrix.cells.values() if cell.to_own is not None and cell.source != ALL]
        worse = [cell for cell in others if verdict(cell.to_own or cell.to_stock, cell.p_own) == "worse"]
        names = "; ".join(
            f"{cell.source} on {cell.target} {show_points(cell.to_own or cell.to_stock)}" for cell in worse
        )
        lines.append(
            f"{matrix.method}: of {len(others)} settings tuned on another condition, {len(worse)} are worse than the "
            f"condition's own{f': {names}' if names else ''}."
        )
    return lines


def write_transfer(
    found: list[Matrix],
    folder: Path,
    warning: str = "",
    stamp: Mapping[str, str] | None = None,
    controls: Controls | None = None,
) -> list[Path]:
    """Write `transfer.png`, `transfer.svg` and `transfer.md`; return their paths.

    Args:
        stamp: which study the figure belongs to, for the files' metadata.
        controls: for yes/no questions; the table has them, the figure has not.
    """
    figure = draw_transfer(found, warning=warning, study=(stamp or {}).get("Title", ""))
    table = folder / "transfer.md"
    head = f"**{escape.markdown(warning)}**\n\n" if warning else ""
    listed = "".join(f"- {escape.markdown(line)}\n" for line in sentences(found))
    table.write_text(f"{head}{markdown(found, controls)}\n{listed}", encoding="utf-8")
    return [*save(figure, folder, "transfer", stamp), table]


def main(arguments: list[str]) -> int:
    """The command."""

    def write(study: StudyResults) -> list[Path]:
        found = matrices(study.outcome, study.records)
        return write_transfer(found, study.folder, study.warning, study.outcome.stamp, study.controls)

    return redraw(arguments, write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
