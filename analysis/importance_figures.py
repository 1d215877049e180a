"""Figures of what matters in a search; each function draws what `analysis/search_importance.py` computed."""

import math
from collections.abc import Sequence

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from tdrs import escape
from tdrs.analysis.figure import STYLES, GivenAxes, axes_for, set_title
from tdrs.analysis.plateau import SettingPlateau, shown_value
from tdrs.analysis.search_importance import Importance
from tdrs.analysis.search_points import SearchPoints
from tdrs.analysis.surrogate import OFF, Part
from tdrs.settings import SettingError
from tdrs.statistics import Interval
from tdrs.sweeps.space import Range
from tdrs.sweeps.trial import COMPLETE, PRUNED

SLICES, CONTOURS, AXES = 6, 2, 10  # panels of slices and of pairs; axes of the parallel coordinates
OBJECTIVE = {"margin": "mean margin (nats)", "accuracy": "accuracy"}
BEST = STYLES[1][0]


def short(key: str) -> str:
    """The name of a setting on an axis."""
    return escape.label(key.removeprefix("intervention."), 28)


def draw_importance(found: Sequence[Importance], axes: GivenAxes = None, study: str = "") -> matplotlib.figure.Figure:
    """Draw fANOVA, PED-ANOVA and, where there are any, Sobol indices: a row of panels for each condition.

    Conditions of which nothing can be said have no panels.

    Raises:
        SettingError: nothing can be said of any condition, or the number of Axes is wrong.
    """
    drawn = [one for one in found if not one.stopped]
    if not drawn:
        raise SettingError("study", study, found[0].stopped if found else "has no points")
    cells = [(row, column) for row, one in enumerate(drawn) for column in range(3 if one.sobol else 2)]
    columns = 1 + max(column for _, column in cells)
    height = sum(1.6 + 0.24 * len(one.parameters) for one in drawn)
    figure, panels = axes_for(axes, cells, (1.6 + 3.4 * columns, height))
    for axis, (row, column) in zip(panels, cells, strict=True):
        one = drawn[row]
        if column == 2:
            _draw_sobol(axis, one)
            continue
        values = [(p.fanova, p.ped)[column] for p in one.parameters]
        _draw_bars(axis, values, (one.fanova_floor, one.ped_floor)[column], STYLES[column][0])
        axis.set_yticks(
            range(len(values)), [short(p.name) for p in one.parameters] if column == 0 else [""] * len(values)
        )
        axis.set_xlabel(
            ("share of the variance that it explains alone", "share of PED-ANOVA's divergence")[column], fontsize=9
        )
        r2 = f", surrogate R² = {one.r2.value:.2f}" if one.r2 else ""
        name = escape.label(one.points.condition)
        axis.set_title(f"{name}: fANOVA{r2}" if column == 0 else "PED-ANOVA: reaching the best tenth", fontsize=9)
    set_title(panels, axes, "Importance of each setting, with 95 % bands; dashed: the highest among shuffled values")
    return figure


def _draw_bars(axis: Axes, values: Sequence[Interval], floor: float, color: str) -> None:
    """Bars with bands from top to bottom, and a line that a bar must pass to be shown."""
    for number, one in enumerate(values):
        axis.barh(number, one.value, height=0.65, color=color, alpha=0.85 if one.value > floor else 0.3)
        axis.plot([one.low, one.high], [number, number], color="0.2", linewidth=1)
    axis.axvline(floor, color="0.35", linestyle="--", linewidth=1)
    axis.set_xlim(left=0)
    axis.invert_yaxis()
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_sobol(axis: Axes, one: Importance) -> None:
    ordered = sorted(one.sobol, key=lambda index: -index.total.value)
    for number, index in enumerate(ordered):
        for shift, value, (color, marker) in ((-0.15, index.first, STYLES[0]), (0.15, index.total, STYLES[1])):
            label = ("alone", "with its interactions")[shift > 0] if number == 0 else None
            axis.plot([value.low, value.high], [number + shift] * 2, color=color, linewidth=1)
            axis.plot([value.value], [number + shift], marker, color=color, markersize=4, label=label)
    axis.set_yticks(range(len(ordered)), [short(index.key) for index in ordered])
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("share of the variance", fontsize=9)
    axis.set_title("Sobol indices of the surrogate", fontsize=9)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def place_of(part: Part | SettingPlateau, value: object) -> float:
    """Where a value is drawn: a number as it is, "off" left of the range, a value of a list at its number."""
    given = part.given
    if not isinstance(given, Range):
        return float(part.states.index(value))
    assert isinstance(value, int | float)
    return _off_place(given) if value == given.off_at else float(value)


def _off_place(given: Range) -> float:
    if given.log:
        return given.low / (given.high / given.low) ** 0.12
    return given.low - 0.12 * (given.high - given.low)


def _set_axis(axis: Axes, part: Part | SettingPlateau) -> None:
    """The horizontal axis of a setting."""
    given = part.given
    if not isinstance(given, Range):
        names = [escape.label(shown_value(state), 12) for state in part.states]
        axis.set_xticks(range(len(names)), names, rotation=20 if len(names) > 3 else 0)
        axis.set_xlim(-0.5, len(names) - 0.5)
    elif given.log:
        axis.set_xscale("log")
    axis.set_xlabel(short(part.key), fontsize=9)
    axis.tick_params(labelsize=8)


def draw_slices(one: Importance) -> matplotlib.figure.Figure:
    """Draw the points against the most important settings, the surrogate's mean, and the plateau around the best."""
    keys = list(dict.fromkeys(p.name.removesuffix(".on") for p in one.parameters))[:SLICES]
    numbers = [next(n for n, part in enumerate(one.parts) if part.key == key) for key in keys]
    columns = min(3, len(numbers))
    cells = [divmod(n, columns) for n in range(len(numbers))]
    rows = 1 + cells[-1][0]
    figure, panels = axes_for(None, cells, (3.5 * columns, 2.8 * rows + 0.6), sharey=True)
    rng = np.random.default_rng(0)
    assert one.effects is not None
    for axis, number in zip(panels, numbers, strict=True):
        part, plateau = one.parts[number], one.plateaus[number]
        ranged = isinstance(part.given, Range)
        places = np.array([place_of(part, trial.settings[part.key]) for trial in one.points.drawn])
        jitter = np.zeros(len(places)) if ranged else rng.uniform(-0.18, 0.18, len(places))
        axis.plot(places + jitter, one.points.values, ".", color="0.7", markersize=4, label="points", zorder=1)
        _draw_mean(axis, part, one.effects.main[number], one.bands[number] + part.chances @ one.effects.main[number])
        best = place_of(part, plateau.best)
        axis.axvline(best, color=BEST, linestyle=":", linewidth=1.2, label="best point")
        at = [place_of(plateau, state) for state in plateau.kept]
        level = [float(one.points.values.min())] * len(at)
        axis.plot(at, level, "|", color=BEST, markersize=9, label="no loss shown there")
        _set_axis(axis, part)
    for axis, (_, column) in zip(panels, cells, strict=True):
        if column == 0:
            axis.set_ylabel(OBJECTIVE[one.points.objective], fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    set_title(panels, None, f"{escape.label(one.points.condition)}: the objective against the most important settings")
    return figure


def _draw_mean(axis: Axes, part: Part, mean: np.ndarray, band: np.ndarray) -> None:
    """The surrogate's mean with its band: a line over numbers, points with bars at "off" and at a list's values."""
    color = STYLES[0][0]
    codes = part.codes[:, 0] if isinstance(part.given, Range) else np.full(len(part.states), OFF)
    line = codes != OFF
    places = np.array([place_of(part, state) for state in part.states])
    if line.any():
        axis.plot(places[line], mean[line], color=color, linewidth=1.6, label="surrogate's mean, 95 %")
        axis.fill_between(places[line], band[0][line], band[1][line], color=color, alpha=0.2, linewidth=0)
    for number in np.flatnonzero(~line):
        axis.plot([places[number]] * 2, band[:, number], color=color, linewidth=1.2)
        label = None if line.any() or number else "surrogate's mean, 95 %"
        axis.plot([places[number]], [mean[number]], "o", color=color, markersize=5, label=label)
        if isinstance(part.given, Range):
            axis.annotate(
                "off", (places[number], 0.98), xycoords=("data", "axes fraction"), fontsize=8, ha="center", va="top"
            )


def draw_pairs(one: Importance) -> matplotlib.figure.Figure:
    """Draw the interactions of all settings as a matrix, and the surrogate's mean over the strongest pairs.

    Raises:
        SettingError: the space has one setting.
    """
    if not one.pairs:
        raise SettingError("search.space", one.parts[0].key, "has one setting with several values: there are no pairs")
    strongest = one.pairs[:CONTOURS]
    cells = [(0, number) for number in range(1 + len(strongest))]
    figure, panels = axes_for(None, cells, (4.6 * len(cells), 4.4))
    size = len(one.parts)
    shares = np.full((size, size), np.nan)
    for pair in one.pairs:
        shares[pair.second, pair.first] = pair.share.value
    top = max(pair.share.value for pair in one.pairs)
    image = panels[0].imshow(shares, cmap="Blues", vmin=0, vmax=top or 1)
    for pair in strongest:
        color = "white" if pair.share.value > 0.6 * top else "black"
        panels[0].text(
            pair.first, pair.second, f"{pair.share.value:.2f}", ha="center", va="center", fontsize=6, color=color
        )
    names = [short(part.key) for part in one.parts]
    panels[0].set_xticks(range(size), names, rotation=90, fontsize=8)
    panels[0].set_yticks(range(size), names, fontsize=8)
    panels[0].spines[:].set_visible(False)
    panels[0].set_title(f"interactions; shuffled values have up to {one.pair_floor:.2f}", fontsize=9)
    figure.colorbar(image, ax=panels[0], label="share of the variance", shrink=0.7)
    assert one.effects is not None
    for axis, pair in zip(panels[1:], strongest, strict=True):
        table = one.effects.pairs[pair.first, pair.second]
        across, up = one.parts[pair.first], one.parts[pair.second]
        image = axis.imshow(table.T, origin="lower", aspect="auto", cmap="viridis")
        axis.set_xticks(range(len(across.states)), _state_names(across), fontsize=8, rotation=30)
        axis.set_yticks(range(len(up.states)), _state_names(up), fontsize=8)
        axis.set_xlabel(short(across.key), fontsize=9)
        axis.set_ylabel(short(up.key), fontsize=9)
        band = f"{pair.share.value:.2f} [{pair.share.low:.2f}, {pair.share.high:.2f}]"
        axis.set_title(f"interaction {band} of the variance", fontsize=9)
        figure.colorbar(image, ax=axis, label=f"surrogate's {OBJECTIVE[one.points.objective]}", shrink=0.7)
    set_title(panels, None, f"{escape.label(one.points.condition)}: which settings depend on each other")
    return figure


def _state_names(part: Part) -> list[str]:
    off = part.given.off_at if isinstance(part.given, Range) else None
    return ["off" if off is not None and s == off else escape.label(shown_value(s), 12) for s in part.states]


def draw_history(points: SearchPoints) -> matplotlib.figure.Figure:
    """Draw the objective of each trial in the order of asking, the best so far, and the empirical distribution.

    Raises:
        SettingError: no trial has a value.
    """
    if not any(math.isfinite(value) for _, value in points.history):
        raise SettingError("study", points.condition, "has no trial with a value of the objective")
    figure, (history, distribution) = axes_for(None, [(0, 0), (0, 1)], (9.5, 3.6))
    known = [(n, s, v) for n, (s, v) in enumerate(points.history, start=1) if math.isfinite(v)]
    for status, marker, color, label in (
        (COMPLETE, "o", STYLES[0][0], "complete"), (PRUNED, "x", "0.5", "ended early, estimated"),
    ):  # fmt: skip
        at = [(n, value) for n, s, value in known if s == status]
        if at:
            history.plot(*zip(*at, strict=True), marker, color=color, markersize=4, label=label)
    complete = [(n, value) for n, status, value in known if status == COMPLETE]
    if complete:
        best = np.maximum.accumulate([value for _, value in complete])
        history.step([n for n, _ in complete], best, where="post", color=BEST, linewidth=1.4, label="best so far")
    missing = len(points.history) - len(known)
    history.set_xlabel(f"trial{f' ({missing} without a value are not shown)' if missing else ''}")
    history.set_ylabel(OBJECTIVE[points.objective], fontsize=9)
    history.set_title("in the order of asking", fontsize=9)
    values = np.sort(points.values)
    if len(values):
        distribution.step(
            [*values, values[-1]], [*np.arange(len(values)) / len(values), 1], where="post", color=STYLES[0][0]
        )
    distribution.set_xlabel(OBJECTIVE[points.objective], fontsize=9)
    distribution.set_ylabel("share of points at most so good", fontsize=9)
    distribution.set_title(f"empirical distribution of {len(values)} counted points", fontsize=9)
    for axis, line in ((history, history.axhline), (distribution, distribution.axvline)):
        if points.stock is not None:
            line(points.stock, color="0.35", linestyle="--", linewidth=1, label="stock")
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    set_title([history], None, f"{escape.label(points.condition)}: what the search found")
    return figure


def draw_parallel(one: Importance) -> matplotlib.figure.Figure:
    """Draw each point as a line over the most important settings, coloured by its objective."""
    keys = list(dict.fromkeys(p.name.removesuffix(".on") for p in one.parameters))[:AXES]
    parts = [next(part for part in one.parts if part.key == key) for key in keys]
    values = one.points.values
    figure, (axis,) = axes_for(None, [(0, 0)], (1.6 + 1.25 * (len(parts) + 1), 4))
    norm = Normalize(values.min(), values.max())
    colors = matplotlib.colormaps["viridis"]
    for number in np.argsort(values):
        settings = one.points.drawn[number].settings
        heights = [_height(part, settings[part.key]) for part in parts]
        line = [*heights, norm(values[number])]
        axis.plot(
            range(len(line)),
            line,
            color=colors(norm(values[number])),
            alpha=0.25 + 0.6 * norm(values[number]),
            linewidth=0.8,
        )
    for number, part in enumerate(parts):
        axis.axvline(number, color="0.3", linewidth=0.8)
        if isinstance(part.given, Range):
            names = [(0.0, f"{part.given.low:g}"), (1.0, f"{part.given.high:g}")]
            names += [(-0.2, "off")] if part.given.off_at is not None else []
        else:
            names = [(_height(part, state), escape.label(shown_value(state), 14)) for state in part.states]
        for height, name in names:
            axis.text(
                number + 0.03, height, name, fontsize=7, va="center", bbox={"color": "white", "alpha": 0.7, "pad": 0.5}
            )
    axis.axvline(len(parts), color="0.3", linewidth=0.8)
    axis.set_xticks(
        range(len(parts) + 1), [*(short(key) for key in keys), one.points.objective], rotation=15, fontsize=8
    )
    axis.set_xlim(-0.1, len(parts) + 0.1)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    scale = matplotlib.cm.ScalarMappable(norm, colors)
    figure.colorbar(scale, ax=axis, label=OBJECTIVE[one.points.objective], shrink=0.8)
    set_title([axis], None, f"{escape.label(one.points.condition)}: each counted point, the best drawn last")
    return figure


def _height(part: Part, value: object) -> float:
    """Where a value is on its axis of the parallel coordinates: from 0 to 1, and "off" below."""
    if not isinstance(part.given, Range):
        return part.states.index(value) / max(1, len(part.states) - 1)
    return max(-0.2, float(part.code(value)[0]))
