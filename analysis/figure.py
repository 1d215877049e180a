"""What all figures of a study share: colours and markers, Axes, files, stored measurements, and the redraw command.

The modules that draw never use pyplot: importing them sets no backend, and their figures are closed when they are no
longer referenced.
"""

import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from tdrs import checked_file
from tdrs.analysis.study_results import StudyResults, load_study
from tdrs.checked_file import Damaged
from tdrs.commands import parse
from tdrs.settings import SettingError, check_choice
from tdrs.sweeps.trial import Outcome

# Okabe & Ito's palette: colour-blind readers can tell the colours apart, and in black and white the markers.
STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"),
    ("#E69F00", "v"), ("#56B4E9", "P"), ("0.2", "X"),
)  # fmt: skip

GivenAxes = Axes | Sequence[Axes] | np.ndarray | None


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook shows although it was made without pyplot."""

    def _repr_png_(self) -> bytes:
        """The figure as PNG; IPython calls this."""
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def axes_for(
    given: GivenAxes, cells: Sequence[tuple[int, int]], size: tuple[float, float], **options: Any
) -> tuple[matplotlib.figure.Figure, list[Axes]]:
    """The Axes to draw panels into, and their figure.

    Args:
        given: the caller's Axes, one for each panel; None makes a new figure.
        cells: row and column of each panel in a new figure.
        size: width and height of a new figure, in inches.
        options: for `subplots` of a new figure.

    Raises:
        SettingError: the number of given Axes is not the number of panels.
    """
    if given is None:
        figure = Figure(figsize=size, layout="constrained")
        rows, columns = (1 + max(cell[axis] for cell in cells) for axis in (0, 1))
        grid = figure.subplots(rows, columns, squeeze=False, **options)
        for row, column in np.ndindex(rows, columns):
            if (row, column) not in cells:
                grid[row, column].set_axis_off()
        return figure, [grid[cell] for cell in cells]
    axes = list(np.atleast_1d(np.asarray(given, dtype=object)).flat)
    if len(axes) != len(cells):
        raise SettingError("axes", len(axes), f"must be as many Axes as the figure has panels, {len(cells)}")
    if not all(isinstance(one, Axes) for one in axes):
        raise SettingError("axes", given, "must be Axes of matplotlib")
    if len(set(axes)) < len(axes) or len({one.get_figure(root=True) for one in axes}) > 1:
        raise SettingError("axes", len(axes), "must be different Axes of one figure")
    return axes[0].get_figure(root=True), axes


def set_title(axes: Sequence[Axes], given: GivenAxes, title: str, warning: str = "") -> None:
    """Set the title of a new figure, or its warning instead.

    Of a caller's figure only the first panel's title is changed, and only to show a warning.
    """
    if given is None:
        axes[0].figure.suptitle(warning or title, fontsize=11)
    elif warning:
        axes[0].set_title(f"{warning}\n{axes[0].get_title()}", fontsize=9)


def save(
    figure: matplotlib.figure.Figure, folder: Path, name: str, stamp: Mapping[str, str] | None = None, dpi: int = 130
) -> list[Path]:
    """Write NAME.png and NAME.svg; return their paths.

    Args:
        stamp: which study the figure belongs to (`Outcome.stamp`), for the files' metadata.
    """
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=dpi, metadata=dict(stamp or {}))
    return paths


def stored_measurement(
    path: Path, outcome: Outcome, measure: Callable[[], Mapping[str, Any]] | None = None, again: bool = False
) -> dict[str, Any] | None:
    """Values that were measured with a study's model and stored in its folder.

    They are used only if they have the study's key and its first evaluation's cache key: values of another study,
    model, version or data are not shown.

    Args:
        measure: measures the values if there are none, which are then stored; None stores nothing.
        again: measure even if there are values.

    Returns:
        The values; None if there are none and `measure` is None.
    """
    damage: Damaged | None = None
    stored: dict[str, Any] = {}
    try:
        stored = checked_file.read_json(path, outcome.key)
    except FileNotFoundError:
        pass
    except Damaged as error:
        damage = error
        print(f"{path.parent}: {error}; it is not shown", file=sys.stderr)
    if not again and stored.pop("evaluation", "") == outcome.rows[0].cache_key:
        return stored
    if measure is None:
        return None
    values = dict(measure())
    if damage:
        print(f"{path.parent}: {damage}; it is now {checked_file.set_aside(path).name}", file=sys.stderr)
    checked_file.write_json(path, {"evaluation": outcome.rows[0].cache_key, **values}, outcome.key)
    return values


def measure_again(given: Mapping[str, str]) -> bool:
    """Whether a command's options have `measure=true`; raises SettingError if `measure` is neither true nor false."""
    check_choice("measure", given.get("measure", "false"), ("true", "false"))
    return given.get("measure") == "true"


def span(numbers: Iterable[int]) -> str:
    """The smallest and the largest of some numbers, such as `8 to 25`, or `8` if all are equal."""
    ordered = sorted(numbers)
    return " to ".join(str(number) for number in dict.fromkeys((ordered[0], ordered[-1])))


def redraw(arguments: list[str], write: Callable[[StudyResults], list[Path]], options: tuple[str, ...] = ()) -> int:
    """Run a command that draws a figure from stored records: `study=NAME [output=FOLDER]`; return the exit code.

    Args:
        write: writes the figure's files and returns their paths.
        options: other arguments that may be given.
    """
    words, options_ = parse(arguments)
    given = dict.fromkeys(words, "") | options_
    try:
        for key in given:
            check_choice("option", key, ("study", "output", *options))
        written = write(load_study(given.get("study"), given.get("output", "outputs")))
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Damaged, FileNotFoundError) as error:
        print(f"error: {error}; the study's own command measures it again", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0
