"""A study from the command line, to its figures.

    python -m tdrs.sweep +experiment=sqa_ablation

checks every setting, runs (or resumes) the study, draws its figure and prints the held-out table.
"""

import sys
import time
from pathlib import Path

from omegaconf import DictConfig

from tdrs.analysis import comparison, distance, sensitivity
from tdrs.configuration import plain, run
from tdrs.evaluate import clamped_line
from tdrs.sweeps.study import Outcome, Study, Table
from tdrs.tracking import open_tracker


def main_sweep(config: DictConfig) -> None:
    start = time.perf_counter()
    values = plain(config)
    with open_tracker(values["tracking"], Path(values["output"])) as tracker:
        study = Study(values, tracker)
        outcome = study.run()
        module, figures = _draw(outcome, study.folder)
        study.attach(*figures, study.folder / "study.json")
        print()
        print("\n".join(outcome.table()))
        for row in outcome.rows if isinstance(outcome, Outcome) else []:
            if clamped_line(row.clamped):
                print(f"{row.name}: {clamped_line(row.clamped)}")
        print("".join(f"{note}\n" for note in study.notes), end="")
        seconds = time.perf_counter() - start
        print(f"{study.evaluated} evaluations run, {study.reused} found done, in {seconds:.0f} s")
        print(f"figure:  {figures[0]}")
        print(f"redraw:  python -m tdrs.analysis.{module} study={study.name} output={values['output']}")
        print("\n".join(tracker.next_steps(study.name)))


def _draw(outcome: Outcome | Table, folder: Path) -> tuple[str, list[Path]]:
    """The figure that fits what was found: the module that redraws it, and its files."""
    if isinstance(outcome, Outcome):
        return "sensitivity", sensitivity.draw(sensitivity.numbers(outcome), folder)
    if len({cell.place.get("dataset.gap") for cell in outcome.cells}) > 1:
        return "distance", distance.draw(distance.numbers(outcome), folder)
    return "comparison", comparison.draw(comparison.numbers(outcome), folder)


USAGE = """
python -m tdrs.sweep +experiment=NAME [GROUP=CHOICE ...] [SETTING=VALUE ...]   (--cfg prints the configuration)

Run it again to go on after a stop; nothing is evaluated twice. Groups and their choices:
"""

if __name__ == "__main__":
    sys.exit(run("sweep", main_sweep, USAGE))
