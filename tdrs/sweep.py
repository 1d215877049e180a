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
from tdrs.settings import SettingError
from tdrs.stopping import stoppable
from tdrs.sweeps.study import Study
from tdrs.sweeps.trials import Outcome
from tdrs.tracking import open_tracker


def main_sweep(config: DictConfig) -> int:
    start = time.perf_counter()
    values = plain(config)
    if not isinstance(values["dry_run"], bool):
        raise SettingError("dry_run", values["dry_run"], "must be true or false")
    if values["dry_run"]:
        values["tracking"] = {"name": "none"}
    with stoppable() as stop, open_tracker(values["tracking"], Path(values["output"])) as tracker:
        study = Study(values, tracker, stop)
        if values["dry_run"]:
            print("\n".join(study.dry_run()))
            return 0
        outcome = study.run()
        module, figures = draw(outcome, study.folder)
        study.attach(figures)
        print()
        print("\n".join(outcome.table()))
        print("".join(f"{line}\n" for line in outcome.clamps()), end="")
        print("".join(f"{note}\n" for note in study.engine.notes), end="")
        seconds = time.perf_counter() - start
        print(f"{study.engine.evaluated} evaluations run, {study.engine.reused} found done, in {seconds:.0f} s")
        for failed in outcome.failures:
            print(f"failed:  {failed.name} ({failed.split}): {failed.reason}")
        if outcome.failures:
            print("         the same command tries them again")
        print(f"figure:  {figures[0]}")
        print(f"redraw:  python -m tdrs.analysis.{module} study={study.name} output={values['output']}")
        print(f"trials:  python -m tdrs.study show {study.name} output={values['output']}")
        print("\n".join(tracker.next_steps(study.name)))
        return 1 if outcome.failures else 0


def draw(outcome: Outcome, folder: Path) -> tuple[str, list[Path]]:
    """The figure that fits what was found: the module that redraws it, and its files."""
    if outcome.curves:
        return "sensitivity", sensitivity.draw(sensitivity.numbers(outcome), folder)
    if len({row.place.get("dataset.gap") for row in outcome.rows}) > 1:
        return "distance", distance.draw(distance.numbers(outcome), folder)
    return "comparison", comparison.draw(comparison.numbers(outcome), folder)


USAGE = """
python -m tdrs.sweep +experiment=NAME [GROUP=CHOICE ...] [SETTING=VALUE ...]   (--cfg prints the configuration)

Run it again to go on after a stop; nothing is evaluated twice. Groups and their choices:
"""

if __name__ == "__main__":
    sys.exit(run("sweep", main_sweep, USAGE))
