"""What every figure of a study needs: colours and markers, its files, and the command that draws it again."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tdrs.sweeps.log import study_folder
from tdrs.sweeps.trials import Outcome

from tdrs.settings import SettingError

# Okabe & Ito's palette: told apart by the colour-blind, and by their markers in black and white.
STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"),
    ("#E69F00", "v"), ("#56B4E9", "P"), ("0.2", "X"),
)  # fmt: skip


def save(canvas: Figure, folder: Path, name: str, dpi: int = 130) -> list[Path]:
    """Write NAME.png and NAME.svg and close the figure; returns their paths."""
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        canvas.savefig(path, dpi=dpi)
    plt.close(canvas)
    return paths


def span(numbers: Iterable[int]) -> str:
    """The smallest and the largest of numbers, for people: `8 to 25`, or `8` where they are all alike."""
    ordered = sorted(numbers)
    return " to ".join(str(number) for number in dict.fromkeys((ordered[0], ordered[-1])))


def redraw(arguments: list[str], draw_from: Callable[[Outcome, Path], list[Path]]) -> int:
    """Redraw a figure from stored records: `study=NAME [output=FOLDER]`; returns the exit code.

    Args:
        draw_from: from what a study found and its folder to the files written.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    output = Path(given.get("output", "outputs"))
    folder = study_folder(output, given.get("study", ""))
    try:
        if "study" not in given or not (folder / "study.json").exists():
            have = sorted(p.parent.name for p in study_folder(output, "").glob("*/study.json"))
            raise SettingError(
                "study", given.get("study"), f"must be a finished study: {', '.join(have) or 'none yet'}"
            )
        written = draw_from(Outcome.read(folder / "study.json"), folder)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0
