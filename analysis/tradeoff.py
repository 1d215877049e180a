"""What a gain costs: each method's Pareto front on the held-out split, the temperature's beneath.

    python -m analysis.tradeoff study=tradeoff            # in a checkout
    python -m tdrs.analysis.tradeoff study=tradeoff       # where tdrs is installed

draws the fronts of a study with the protocol `tradeoff` from its stored records, without a model. Points were chosen on
the tuning split. All that is shown was measured on the held-out split, as differences to the stock model on the same
samples. The mean divergence of the first token's distribution is a lower bound; see `tdrs/first_token.py`.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from tdrs import escape
from tdrs.analysis import answer_bias
from tdrs.analysis.answer_bias import Controls
from tdrs.analysis.evidence import LEVEL, condition_name, show_p, verdict
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, redraw, save, set_title, span
from tdrs.analysis.study_results import StudyResults
from tdrs.benchmarks import Record
from tdrs.entry_point import run_command
from tdrs.records import Records
from tdrs.results import check_same_samples, divergences
from tdrs.settings import SettingError
from tdrs.statistics import Interval, cluster_draws, holm, paired_difference, percentiles, sign_flip
from tdrs.sweeps import protocol
from tdrs.sweeps.joint import Point
from tdrs.sweeps.tradeoff import Objective, Tradeoff, front_name
from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome, Trial, shown, spelled

NAMES = {
    "accuracy": "accuracy, points to stock",
    "margin": "margin, nats to stock",
    "kl": "KL to stock, nats",
    "time": "time, × stock",
}


ROUNDING = 1e-6  # nats; smaller divergences are no more than the rounding of log-probabilities in float32


class FrontPoint(NamedTuple):
    """A point of a method's front, on the held-out split.

    Attributes:
        name: of its row.
        settings: in words.
        values: of each measure, with its 95 % limits; see `Fronts.measures`.
        at_yes_rate: of each measure, that of this row minus the stock model's at this row's yes-rate, paired; None
            unless it is an accuracy of yes/no questions; see `answer_bias`.
        beside: the row that it is compared with: see `_beside`; "" for the temperature itself.
        gain: the first measure, minus that of `beside`, paired.
        p_holm: of the sign-flip test of this difference, corrected for all points that are compared.
    """

    method: str
    name: str
    settings: str
    values: list[Interval]
    beside: str
    gain: Interval
    p_holm: float
    at_yes_rate: list[Interval | None]

    @property
    def verdict(self) -> str:
        """The comparison in words; "" for the temperature itself."""
        return verdict(self.gain, self.p_holm) if self.beside else ""


class Fronts(NamedTuple):
    """The fronts of a study.

    Attributes:
        measures: the first one is gained, the others are costs: the objectives, and the accuracy wherever KL is one.
        methods: the points of each method, the least costly first; the temperature's methods first.
        sharpening: the methods that are a temperature.
        n: the number of samples of each condition.
        bias: of each measure, that of the tuned answer bias; None as for `at_yes_rate`, or if no bias was tuned.
    """

    measures: list[Objective]
    methods: dict[str, list[FrontPoint]]
    sharpening: list[str]
    n: list[int]
    bias: list[Interval | None]


def fronts(outcome: Outcome, records: Records, controls: Controls | None = None) -> Fronts:
    """The fronts of a finished study, from its stored records.

    Args:
        controls: for yes/no questions; None computes them.

    Raises:
        SettingError: the study's protocol is not `tradeoff`, no row was measured whole, or rows have other samples.
        FileNotFoundError, Damaged: records are missing or damaged.
    """
    if outcome.protocol != "tradeoff":
        raise SettingError("study", outcome.name, f"has the protocol {outcome.protocol}, and no front; see tradeoff")
    search = protocol.from_settings(outcome.config["search"])
    assert isinstance(search, Tradeoff)
    measures = _measures(search)
    rows = {(row.name, spelled(row.condition)): row for row in outcome.rows if row.status == COMPLETE}
    read: dict[str, list[Record]] = {}

    def samples(name: str, one: Objective) -> "_Samples | None":
        return _samples([rows.get((name, spelled(at))) for at in search.conditions if one.holds(at)], records, read)

    controls = answer_bias.controls(outcome, records) if controls is None else controls

    def biased(name: str, one: Objective) -> "_Samples | None":
        """The stock model with the control's bias: the tuned one, or that of a row's yes-rate."""
        conditions = [at for at in search.conditions if one.holds(at)]
        biases = [answer_bias.bias_of(controls, condition_name(outcome, at), name) for at in conditions]
        known = [bias for bias in biases if bias is not None]
        if one.metric != "accuracy" or len(known) < len(biases):
            return None
        return _samples([rows.get((STOCK, spelled(at))) for at in conditions], records, read, known)

    base = [samples(STOCK, one) for one in measures]
    found: dict[str, list[FrontPoint]] = {}
    sharpening = [row.name for row in search.reported() if row.settings.get("intervention") == "temperature"]
    tuned = _tuned(outcome, search)
    settings = {row.name: shown(row.settings, digits=3) for row in outcome.rows}
    pairs: list[tuple[FrontPoint, float]] = []
    methods = [row.name for row in search.reported()]
    for method in [*sharpening, *(name for name in methods if name not in sharpening)]:
        for number in range(1, search.front + 1):
            name = front_name(method, number)
            each = [samples(name, one) for one in measures]
            both = [(before, after) for before, after in zip(base, each, strict=True) if before and after]
            if len(both) < len(measures):
                continue
            for before, after in both:
                check_same_samples(before.records, after.records, name)
            values = [_measured(one.metric, *pair) for one, pair in zip(measures, both, strict=True)]
            beside = "" if method in sharpening else _beside(name, tuned, sharpening, search)
            rates = [
                _difference("accuracy", before, after) if before else None
                for before, (_, after) in zip((biased(name, one) for one in measures), both, strict=True)
            ]
            point = FrontPoint(method, name, settings[name], values, beside, Interval(*[math.nan] * 3), 1.0, rates)
            rival = samples(beside, measures[0]) if beside else None
            p = math.nan
            if rival and each[0]:
                point = point._replace(gain=_difference(measures[0].metric, rival, each[0]))
                p = sign_flip(*_paired(measures[0].metric, rival, each[0]))
            pairs.append((point, p))
    compared = [at for at, (_, p) in enumerate(pairs) if not math.isnan(p)]
    for at, p in zip(compared, holm([pairs[at][1] for at in compared]), strict=True):
        pairs[at] = pairs[at][0]._replace(p_holm=p), p
    for point, _ in pairs:
        found.setdefault(point.method, []).append(point)
    if not found:
        raise SettingError("study", outcome.name, "has no point that was measured whole")
    shifted = [(first, biased(STOCK, one)) for first, one in zip(base, measures, strict=True)]
    bias = [_difference("accuracy", first, after) if first and after else None for first, after in shifted]
    return Fronts(measures, found, sharpening, [row.n for row in rows.values()], bias)


class _Samples(NamedTuple):
    """The records of a row at the conditions of a measure; images are clusters, and each condition has equal weight."""

    records: list[Record]
    clusters: list[str]
    weights: list[float]
    seconds: float


def _samples(
    rows: Sequence[Trial | None],
    records: Records,
    read: dict[str, list[Record]],
    biases: Sequence[float] | None = None,
) -> _Samples | None:
    """The samples of rows, with a bias of each; None if one was not measured whole."""
    found, size = _Samples([], [], [], 0.0), 0.0
    for number, row in enumerate(rows):
        if row is None:
            return None
        if row.cache_key not in read:
            read[row.cache_key] = records.read(row.cache_key).records
        some = read[row.cache_key]
        some = some if biases is None else answer_bias.biased(some, biases[number])
        total = sum(record.weight for record in some)
        size = size or total  # weights of one condition stay as they are, so that the test of 0/1 scores is exact
        dataset = row.condition.get("dataset", "")  # one picture at several distances is one cluster
        found.records.extend(some)
        found.clusters.extend(f"{dataset} {record.image_id}" for record in some)
        found.weights.extend(record.weight * size / total for record in some)
        found = found._replace(seconds=found.seconds + row.seconds / row.n)
    return found


def _paired(metric: str, before: _Samples, after: _Samples) -> tuple[list[float], list[float], list[str], list[float]]:
    """The scores or margins of two rows on the same samples, their clusters and weights."""
    name = "margin" if metric == "margin" else "score"
    first, second = ([getattr(record, name) for record in part.records] for part in (before, after))
    return first, second, after.clusters, after.weights


def _difference(metric: str, before: _Samples, after: _Samples) -> Interval:
    return paired_difference(*_paired(metric, before, after))


def _measured(metric: str, before: _Samples, after: _Samples) -> Interval:
    """A measure of a row beside the stock model, with its 95 % limits by a bootstrap over images; time has none."""
    if metric == "time":
        ratio = after.seconds / before.seconds if before.seconds else math.nan
        return Interval(ratio, math.nan, math.nan)
    if metric != "kl":
        return _difference(metric, before, after)
    values, weights = np.array(divergences(before.records, after.records)), np.array(after.weights)
    index, draws = cluster_draws(after.clusters)
    sums, counts = np.bincount(index, weights=values * weights), np.bincount(index, weights=weights)
    mean = float(np.average(values, weights=weights))
    return percentiles(mean, (draws @ sums) / (draws @ counts), (0.0, math.inf))


def _measures(search: Tradeoff) -> list[Objective]:
    found = search.parsed
    found += [Objective("accuracy", one.at) for one in search.parsed if one.metric == "kl"]
    return list({str(one): one for one in found}.values())


def _tuned(outcome: Outcome, search: Tradeoff) -> dict[str, list[float]]:
    """The values of the objectives on the tuning split, of each reported row by its name."""
    tuning = {(trial.name, spelled(trial.condition), spelled(trial.settings)): trial for trial in outcome.trials}
    baselines = [trial for trial in outcome.trials if trial.name == STOCK][: len(search.conditions)]
    found: dict[str, list[float]] = {}
    for row in search.reported():
        for number in range(1, search.front + 1):
            name = front_name(row.name, number)
            own = [one for one in outcome.rows if one.name == name]
            trials = [tuning.get((row.name, spelled(one.condition), spelled(one.settings))) for one in own]
            known = [trial for trial in trials if trial is not None]
            if len(known) == len(search.conditions):
                values = search.values(Point({}, known), baselines)
                found |= {name: values} if values is not None else {}
    return found


def _beside(name: str, tuned: Mapping[str, list[float]], sharpening: Sequence[str], search: Tradeoff) -> str:
    """The temperature's row that a row is compared with, by values of the tuning split.

    It is the one that costs at least as much in every objective, and of several the one with the smallest gain, which
    is the next on the front. So no row is called better because the temperature's front has a gap where the row lies.
    If none costs as much, it is the one with the largest gain; without a temperature it is the stock model.
    """
    signs = [1 if direction == "maximize" else -1 for direction in search.directions]
    known: dict[str, list[float]] = {}
    for method in sharpening:
        for number in range(1, search.front + 1):
            other = front_name(method, number)
            if other in tuned:
                known[other] = [sign * value for sign, value in zip(signs, tuned[other], strict=True)]
    if name not in tuned:  # of a study of an earlier version, which reported points that failed on the tuning split
        return STOCK
    mine = [sign * value for sign, value in zip(signs, tuned[name], strict=True)]
    fitting = [
        other for other, theirs in known.items() if all(a <= b for a, b in zip(theirs[1:], mine[1:], strict=True))
    ]
    if fitting:
        return min(fitting, key=lambda other: known[other][0])
    return max(known, key=lambda other: known[other][0]) if known else STOCK


def draw_tradeoff(
    found: Fronts, axes: GivenAxes = None, warning: str = "", study: str = ""
) -> matplotlib.figure.Figure:
    """Draw what is gained against each cost, a panel for each; return the figure.

    Args:
        axes: one Axes for each panel; None makes a figure.
        warning: what must be said before the result; it takes the title's place.
        study: the study's name, for the title.
    """
    shown = range(1, len(found.measures))
    figure, panels = axes_for(axes, [(0, at) for at in range(len(shown))], (5.2 * len(shown), 4.6), sharey=True)
    for axis, at in zip(panels, shown, strict=True):
        _draw_panel(axis, found, at)
    panels[0].set_ylabel(escape.label(_label(found.measures[0]), 80), fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    if axes is None:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    else:
        panels[0].legend(frameon=False, fontsize=7)
    title = f"{study}: fronts chosen on the tuning split; held-out split, n = {span(found.n)}; 95 % intervals"
    set_title(panels, axes, escape.label(title, 120), escape.label(warning, 120))
    return figure


def _label(one: Objective) -> str:
    where = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in one.at.items())
    return f"{NAMES[one.metric]}{f' at {where}' if where else ''}"


def _scaled(one: Objective, value: Interval) -> Interval:
    """A value as it is shown: accuracies in points."""
    return Interval(*(100 * number for number in value)) if one.metric == "accuracy" else value


def _draw_panel(axis: Axes, found: Fronts, at: int) -> None:
    gained, cost = found.measures[0], found.measures[at]
    styles = cycle(STYLES)
    for method, points in found.methods.items():
        below = method in found.sharpening
        color, marker = ("0.6", "o") if below else next(styles)
        pairs = sorted((_scaled(cost, one.values[at]), _scaled(gained, one.values[0])) for one in points)
        xs, ys = ([pair[side] for pair in pairs] for side in (0, 1))
        errors = [
            [[max(0, v.value - v.low) for v in values], [max(0, v.high - v.value) for v in values]]
            for values in (xs, ys)
        ]
        axis.errorbar(
            [x.value for x in xs], [y.value for y in ys], xerr=errors[0], yerr=errors[1], color=color, marker=marker,
            linestyle="-" if below else "--", linewidth=4 if below else 1.1, markersize=9 if below else 6,
            elinewidth=0.8, capsize=2, alpha=0.75 if below else 1, zorder=2 if below else 3,
            label=escape.label(method, 40),
        )  # fmt: skip
    stock = 1.0 if cost.metric == "time" else 0.0
    axis.plot([stock], [0], color="black", marker="*", markersize=12, linestyle="", zorder=4, label=STOCK)
    axis.axhline(0, color="0.35", linestyle=":", linewidth=1)
    if cost.metric == "kl":
        axis.set_xscale("symlog", linthresh=ROUNDING)
        axis.set_xlim(left=-0.2 * ROUNDING)
    axis.set_xlabel(escape.label(_label(cost), 80), fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="0.92", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _cell(one: Objective, value: Interval) -> str:
    scaled = _scaled(one, value)
    if one.metric == "kl":
        shown = [f"{value:.2g}" if value >= ROUNDING else "< 1e-06" for value in scaled]
    else:
        form = {"accuracy": "{:+.1f}", "margin": "{:+.2f}", "time": "{:.2f}"}[one.metric]
        shown = [form.format(value).replace("-", "−") for value in scaled]
    return shown[0] if math.isnan(scaled.low) else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def markdown(found: Fronts) -> str:
    """All numbers as a table, a line for each point; where answers are yes or no, with columns and a line of the
    answer bias."""
    shown = [escape.markdown(_label(one)) for one in found.measures]
    rated = [
        at for at in range(len(shown)) if any(one.at_yes_rate[at] for some in found.methods.values() for one in some)
    ]
    more = [f"{shown[at].replace('to stock', 'to stock at this yes-rate')}" for at in rated]
    heads = ["point", "settings", *shown, *more, "gain beside", "p, Holm"]
    lines = [heads, ["---"] * len(heads)]
    if any(found.bias):
        cells = [_cell(measure, one) if one else "" for measure, one in zip(found.measures, found.bias, strict=True)]
        lines.append([answer_bias.NAME, "", *cells, *[""] * (len(more) + 2)])
    for points in found.methods.values():
        for one in points:
            cells = [escape.markdown(one.name), escape.markdown(one.settings)]
            cells += [_cell(measure, value) for measure, value in zip(found.measures, one.values, strict=True)]
            beneath = [(found.measures[at], one.at_yes_rate[at]) for at in rated]
            cells += [_cell(measure, value) if value else "" for measure, value in beneath]
            cells += [f"{_cell(found.measures[0], one.gain)} {escape.markdown(one.beside)}" if one.beside else ""]
            cells += [show_p(one.p_holm) if one.beside else ""]
            lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def sentences(found: Fronts) -> list[str]:
    """What the fronts say: how many points are better than the temperature, each of them, and how it is compared."""
    lines = []
    gained = found.measures[0]
    for points in found.methods.values():
        for one in (one for one in points if one.beside):
            costs = [
                f"{_label(cost)} {_cell(cost, value)}"
                for cost, value in zip(found.measures[1:], one.values[1:], strict=True)
            ]
            text = f"{one.name}: {_label(gained)} {_cell(gained, one.values[0])}; {'; '.join(costs)}."
            p = f", p {'' if one.p_holm < 0.001 else '= '}{show_p(one.p_holm)}" if one.p_holm < LEVEL else ""
            lines.append(f"{text} Beside {one.beside}: {one.verdict}, {_cell(gained, one.gain)}{p}.")
    if lines:
        said = [one.verdict for points in found.methods.values() for one in points if one.beside]
        counts = f"{said.count('better')} are better than what they are compared with, {said.count('worse')} worse"
        lines.insert(0, f"Of {len(said)} points {counts}; of the others no difference is shown.")
        lines.append(
            "Each point is compared with the temperature's point that costs at least as much on the tuning split, or "
            "with its best one if none does; p after Holm's correction over these comparisons."
        )
    return lines


def write_tradeoff(
    found: Fronts, folder: Path, warning: str = "", stamp: Mapping[str, str] | None = None
) -> list[Path]:
    """Write `tradeoff.png`, `tradeoff.svg` and `tradeoff.md`; return their paths.

    Args:
        stamp: which study the figure belongs to, for the files' metadata.
    """
    figure = draw_tradeoff(found, warning=warning, study=(stamp or {}).get("Title", ""))
    table = folder / "tradeoff.md"
    head = f"**{escape.markdown(warning)}**\n\n" if warning else ""
    listed = "".join(f"- {escape.markdown(line)}\n" for line in sentences(found))
    table.write_text(f"{head}{markdown(found)}\n{listed}", encoding="utf-8")
    return [*save(figure, folder, "tradeoff", stamp), table]


def main(arguments: list[str]) -> int:
    """The command."""

    def write(study: StudyResults) -> list[Path]:
        found = fronts(study.outcome, study.records)
        return write_tradeoff(found, study.folder, study.warning, study.outcome.stamp)

    return redraw(arguments, write)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
