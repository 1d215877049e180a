"""What every figure of a study needs: colours and markers, its files, what was measured for it, and its command."""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tdrs.sweeps.log import read_outcome, studies_folder, study_folder
from tdrs.sweeps.trial import Outcome

from tdrs import __version__, checked_file
from tdrs.checked_file import Damaged
from tdrs.commands import parse
from tdrs.settings import SettingError, check_choice, folder_named

# Okabe & Ito's palette: told apart by the colour-blind, and by their markers in black and white.
STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"),
    ("#E69F00", "v"), ("#56B4E9", "P"), ("0.2", "X"),
)  # fmt: skip


def save(canvas: Figure, folder: Path, name: str, stamp: Mapping[str, str] | None = None, dpi: int = 130) -> list[Path]:
    """Write NAME.png and NAME.svg and close the figure; returns their paths.

    Args:
        stamp: whose figure it is (`Outcome.stamp`), for the files' metadata.
    """
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        canvas.savefig(path, dpi=dpi, metadata=dict(stamp or {}))
    plt.close(canvas)
    return paths


def keep(path: Path, outcome: Outcome, values: Mapping[str, Any]) -> None:
    """Keep numbers that were measured with the study's model, under the study's key and its first evaluation."""
    with suppress(FileNotFoundError):
        try:
            checked_file.read_json(path, outcome.key)
        except Damaged as error:
            print(f"{path.parent}: {error}; it is now {checked_file.set_aside(path).name}", file=sys.stderr)
    checked_file.write_json(path, {"evaluation": outcome.rows[0].cache_key, **values}, outcome.key)


def kept(path: Path, outcome: Outcome) -> dict[str, Any] | None:
    """What `keep` wrote; None if there is nothing, or it is of another study, model, version or data, which is said."""
    try:
        values = checked_file.read_json(path, outcome.key)
    except FileNotFoundError:
        return None
    except Damaged as error:
        print(f"{path.parent}: {error}; it is not shown", file=sys.stderr)
        return None
    return values if values.pop("evaluation", "") == outcome.rows[0].cache_key else None


def span(numbers: Iterable[int]) -> str:
    """The smallest and the largest of numbers, for people: `8 to 25`, or `8` where they are all alike."""
    ordered = sorted(numbers)
    return " to ".join(str(number) for number in dict.fromkeys((ordered[0], ordered[-1])))


def redraw(
    arguments: list[str], draw_from: Callable[[Outcome, Path], list[Path]], options: tuple[str, ...] = ()
) -> int:
    """Redraw a figure from stored records: `study=NAME [output=FOLDER]`; returns the exit code.

    Args:
        options: what else may be given.
        draw_from: from what a study found and its folder to the files written.
    """
    words, options_ = parse(arguments)
    given = dict.fromkeys(words, "") | options_
    try:
        for key in given:
            check_choice("option", key, ("study", "output", *options))
        output = folder_named("output", given.get("output", "outputs"))
        folder = study_folder(output, given["study"]) if "study" in given else None
        if folder is None or not (folder / "study.json").exists():
            have = sorted(p.parent.name for p in studies_folder(output).glob("*/study.json"))
            raise SettingError(
                "study", given.get("study"), f"must be a finished study: {', '.join(have) or 'none yet'}"
            )
        outcome = read_outcome(folder)
        version = outcome.environment.get("tdrs", "of an unknown version")
        if version != __version__:
            print(f"this study was measured by tdrs {version}; this is tdrs {__version__}", file=sys.stderr)
        written = draw_from(outcome, folder)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Damaged, FileNotFoundError) as error:
        print(f"error: {error}; the study's own command measures it again", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0
