"""What survives against the rival explanations of a gain: a table and a figure of a study that names them.

    python -m analysis.rivals study=rivals            # in a checkout
    python -m tdrs.analysis.rivals study=rivals       # where tdrs is installed

draws them from stored records of a study of the protocol `compare` whose `search.rivals` names explanations, such as a
temperature or positions, each with its rows. At each condition the row with the highest accuracy on the tuning split
stands for its explanation, and every other row is compared with it on the held-out split, sample by sample. A shifted
yes-rate is an explanation, too, where answers are yes or no (`answer_bias`). What the rows cost is their difference to
the stock model under the settings of `search.also`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
from matplotlib.axes import Axes

from tdrs import escape
from tdrs.analysis.answer_bias import Controls, readings
from tdrs.analysis.evidence import (
    Evidence,
    compare_records,
    compare_rows,
    condition_name,
    show_p,
    show_points,
    verdict,
)
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, redraw, save, set_title
from tdrs.analysis.study_results import StudyResults
from tdrs.entry_point import run_command
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.statistics import Interval, holm
from tdrs.sweeps import protocol
from tdrs.sweeps.compare import Compare
from tdrs.sweeps.protocol import best, conditions
from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome, Settings, Trial, check_pair, spelled


class Against(NamedTuple):
    """A row compared with the row that stands for an explanation.

    Attributes:
        difference: the row's accuracy minus that of the other row, paired, with 95 % limits.
        p: of the sign-flip test, after Holm's correction over all comparisons with this explanation.
    """

    difference: Interval
    p: float

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no difference shown`."""
        return verdict(self.difference, self.p)


class Row(NamedTuple):
    """A method at a condition.

    Attributes:
        tuned: whether its settings were chosen on the tuning split.
        gain: to the stock model.
        against: to each explanation, by name; the row that stands for one is not compared with it.
        yes_rate: its accuracy minus the stock model's at the same yes-rate; None where answers are not yes or no.
        cost: to the stock model under the settings of `also`; None if they are not measured.
        kl: of the first token's distribution from the stock model's there, in nats.
    """

    name: str
    tuned: bool
    accuracy: float
    gain: Against
    against: dict[str, Against]
    yes_rate: Interval | None
    cost: Against | None
    kl: float | None


class Place(NamedTuple):
    """A condition with its rows.

    Attributes:
        condition, beside: in words: where rows were tuned and compared, and where their cost was measured.
        n: samples.
        stock, stock_beside: the stock model's accuracies at both.
        rivals: the row that stands for each explanation.
    """

    condition: str
    beside: str
    n: int
    stock: float
    stock_beside: float | None
    rivals: dict[str, str]
    rows: list[Row]


def places(outcome: Outcome, records: Records, controls: Controls | None = None) -> list[Place]:
    """The conditions of a finished study with their rows, from stored records. Rows that failed are left out.

    Args:
        controls: of `answer_bias.controls`, for yes/no questions.

    Raises:
        SettingError: the study names no rival explanation.
        FileNotFoundError, Damaged: records are missing or damaged.
    """
    search = protocol.from_settings(outcome.config["search"])
    if not isinstance(search, Compare) or not search.rivals:
        raise SettingError("study", outcome.name, "names no explanation in search.rivals; see +experiment=rivals")
    rows = {(one.trial.name, spelled(one.trial.condition)): one for one in compare_rows(outcome, records)}
    found = [
        _place(outcome, search, condition, rows, controls)
        for condition in conditions(search.axes)
        if (STOCK, spelled(condition)) in rows
    ]
    for name in search.rivals:
        raw = []
        for number, place in enumerate(found):
            rival = rows.get((place.rivals.get(name, ""), spelled(conditions(search.axes)[number])))
            for at, row in enumerate(place.rows):
                if rival is None or row.name == place.rivals[name]:
                    continue
                one = rows[row.name, spelled(rival.trial.condition)]
                before, after = (records.read(each.trial.cache_key).records for each in (rival, one))
                check_pair(rival.trial, one.trial, before, after)
                raw.append((number, at, compare_records(before, after)))
        for (number, at, paired), p in zip(raw, holm([paired.p for *_, paired in raw]), strict=True):
            found[number].rows[at].against[name] = Against(paired.difference, p)
    return found


def _place(
    outcome: Outcome,
    search: Compare,
    condition: Settings,
    rows: Mapping[tuple[str, str], Evidence],
    controls: Controls | None,
) -> Place:
    here, there = spelled(condition), spelled(search.beside(condition))
    stock, beside = rows[STOCK, here], rows.get((STOCK, there)) if search.also else None
    found = []
    for row in search.reported():
        one, cost = rows.get((row.name, here)), rows.get((row.name, there)) if search.also else None
        if one is None or one.difference is None:
            continue
        read = readings(controls, one.condition, row.name)
        found.append(
            Row(
                name=row.name,
                tuned=one.trial.budget > 0,
                accuracy=one.accuracy.value,
                gain=Against(one.difference, one.p_holm),
                against={},
                yes_rate=read[0].difference if read else None,
                cost=Against(cost.difference, cost.p_holm) if cost and cost.difference else None,
                kl=cost.trial.kl if cost else None,
            )
        )
    complete = {row.name for row in found}
    chosen = {name: _strongest(outcome.trials, members, condition) for name, members in search.rivals.items()}
    return Place(
        condition=condition_name(outcome, condition),
        beside=", ".join(f"{key.partition('.')[2]} {value}" for key, value in search.also.items()),
        n=stock.trial.n,
        stock=stock.accuracy.value,
        stock_beside=beside.accuracy.value if beside else None,
        rivals={name: row for name, row in chosen.items() if row in complete},
        rows=found,
    )


def _strongest(trials: Sequence[Trial], members: Sequence[str], condition: Settings) -> str:
    """Of an explanation's rows, the one whose best trial on the tuning split is the best; "" if none was tuned."""
    some = [t for t in trials if t.name in members and t.condition == condition and t.status == COMPLETE]
    return best(some, "accuracy").name if some else ""


def draw_rivals(
    found: list[Place], axes: GivenAxes = None, warning: str = "", study: str = ""
) -> matplotlib.figure.Figure:
    """Draw a panel for each condition: every tuned row's gain, and its cost; return the figure.

    Args:
        axes: one Axes for each condition; None makes a figure.
        warning: what must be said before the result; it takes the title's place.
        study: the study's name, for the error message.

    Raises:
        SettingError: no row was tuned, or the number of Axes is wrong.
    """
    tuned = [[row for row in place.rows if row.tuned] for place in found]
    if not any(tuned):
        raise SettingError("study", study, "has no tuned row that was measured whole")
    columns = min(4, len(found))
    cells = [divmod(number, columns) for number in range(len(found))]
    height = 0.27 * max(map(len, tuned)) + 1.1
    size = (2.2 + 3.0 * columns, height * (1 + cells[-1][0]) + 0.8)
    alike = len({tuple(row.name for row in rows) for rows in tuned}) == 1
    figure, panels = axes_for(axes, cells, size, sharex=True, sharey=alike)
    for axis, place, rows in zip(panels, found, tuned, strict=True):
        _draw_place(axis, place, rows)
    beside = found[0].beside
    meaning = "points to the stock model (paired, 95 % intervals)\n● where it was tuned" + (
        f"   ▽ the same settings at {beside}" if beside else ""
    )
    lines = [f"{'dashed dotted'.split()[n % 2]}: {name}" for n, name in enumerate(found[0].rivals)]
    meaning = "   ".join([meaning, *lines])
    if axes is None:
        figure.supxlabel(meaning, fontsize=9)
    set_title(panels, axes, "Tuned methods on the held-out split", escape.label(warning, 120))
    return figure


def _draw_place(axis: Axes, place: Place, rows: list[Row]) -> None:
    axis.axvline(0, color="0.35", linewidth=1)
    by_name = {row.name: row for row in place.rows}
    for number, rival in enumerate(place.rivals.values()):
        gain = 100 * by_name[rival].gain.difference.value
        axis.axvline(gain, color="0.55", linewidth=1, linestyle=("--", ":")[number % 2])
    for number, row in enumerate(rows):
        for shown, color, marker, fill, shift in (
            (row.gain, STYLES[0][0], "o", STYLES[0][0], -0.14),
            (row.cost, STYLES[1][0], "v", "white", 0.18),
        ):
            if shown is not None:
                value, low, high = (100 * part for part in shown.difference)
                error = [[max(0.0, value - low)], [max(0.0, high - value)]]
                axis.errorbar(
                    [value], [number + shift], xerr=error, color=color, marker=marker, markerfacecolor=fill,
                    markersize=4.5, capsize=1.5, elinewidth=0.9,
                )  # fmt: skip
    names = [escape.label(row.name.removesuffix(", tuned"), 30) for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    beside = f", {place.stock_beside:.3f} at {place.beside}" if place.stock_beside is not None else ""
    axis.set_title(f"{escape.label(place.condition)}\nstock {place.stock:.3f}{beside}, n = {place.n}", fontsize=7.5)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.92", linewidth=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)


def markdown(found: list[Place]) -> str:
    """A table for each condition, a line for each row; differences in points, * where p < .05 after correction."""
    parts = []
    for place in found:
        explanations = [f"to {name}: {escape.markdown(row)}" for name, row in place.rivals.items()]
        answers = ["to stock at this yes-rate"] if any(row.yes_rate for row in place.rows) else []
        cost = [f"to stock at {place.beside}", "KL there"] if place.beside else []
        lines = [["method", "accuracy", "to stock", *explanations, *answers, *cost]]
        lines.append(["---"] * len(lines[0]))
        lines.append(["stock", f"{100 * place.stock:.1f}", *[""] * (len(lines[0]) - 2)])
        for row in place.rows:
            cells = [escape.markdown(row.name), f"{100 * row.accuracy:.1f}", _cell(row.gain)]
            cells += [_cell(row.against[name]) if name in row.against else "" for name in place.rivals]
            cells += [show_points(row.yes_rate) if row.yes_rate else ""] if answers else []
            cells += [_cell(row.cost) if row.cost else "", "" if row.kl is None else f"{row.kl:.2g}"] if cost else []
            lines.append(cells)
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        beside = f"; {100 * place.stock_beside:.1f} at {place.beside}" if place.stock_beside is not None else ""
        head = f"**{escape.markdown(place.condition)}**, n = {place.n}, stock {100 * place.stock:.1f}{beside}"
        parts.append(f"{head}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _cell(one: Against) -> str:
    return show_points(one.difference) + ("*" if one.p < 0.05 else "")


def sentences(found: list[Place]) -> list[str]:
    """What survives, in sentences: for each condition the tuned rows that are better than the stock model, those that
    are better than what stands for each explanation, and those that lose accuracy under the settings of `also`."""
    lines = []
    for place in found:
        tuned = [row for row in place.rows if row.tuned]
        better = [row for row in tuned if row.gain.verdict == "better"]
        said = f"{place.condition}: of {len(tuned)} tuned methods, {len(better)} are better than the stock model"
        lines.append(f"{said}{_named([(row.name, row.gain) for row in better])}.")
        for name, rival in place.rivals.items():
            pairs = [(row.name, row.against[name]) for row in tuned if name in row.against]
            words = f"{place.condition}: against {name} ({rival})"
            above = [pair for pair in pairs if pair[1].verdict == "better"]
            below = [pair for pair in pairs if pair[1].verdict == "worse"]
            lines.append(
                f"{words}, of {len(pairs)} others {len(above)} are better{_named(above)}; {len(below)} are worse."
            )
        rated = [(row.name, row.yes_rate) for row in tuned if row.yes_rate]
        if rated:
            above_rate = [name for name, difference in rated if difference.low > 0]
            which = f": {'; '.join(above_rate)}" if above_rate else ""
            lines.append(
                f"{place.condition}: {len(above_rate)} of {len(rated)} are above the stock model at their own "
                f"yes-rate, by intervals without correction{which}."
            )
        costs = [(row.name, row.cost) for row in tuned if row.cost]
        if costs:
            losing = [pair for pair in costs if pair[1].verdict == "worse"]
            lines.append(
                f"{place.condition}: at {place.beside}, {len(losing)} of {len(costs)} lose accuracy{_named(losing)}."
            )
    return lines


def _named(pairs: Sequence[tuple[str, Against]]) -> str:
    listed = [f"{name} {show_points(one.difference)}, p {show_p(one.p)}" for name, one in pairs]
    return f": {'; '.join(listed)}" if listed else ""


def write_rivals(
    found: list[Place], folder: Path, warning: str = "", stamp: Mapping[str, str] | None = None
) -> list[Path]:
    """Write `rivals.png`, `rivals.svg` and `rivals.md`; return their paths.

    Args:
        stamp: which study the figure belongs to, for the files' metadata.
    """
    figure = draw_rivals(found, warning=warning, study=(stamp or {}).get("Title", ""))
    table = folder / "rivals.md"
    head = f"**{escape.markdown(warning)}**\n\n" if warning else ""
    said = "\n".join(f"- {escape.markdown(line)}" for line in sentences(found))
    table.write_text(f"{head}{said}\n\n{markdown(found)}", encoding="utf-8")
    return [*save(figure, folder, "rivals", stamp), table]


def main(arguments: list[str]) -> int:
    """The command."""

    def write(study: StudyResults) -> list[Path]:
        found = places(study.outcome, study.records, study.controls)
        return write_rivals(found, study.folder, study.warning, study.outcome.stamp)

    return redraw(arguments, write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
