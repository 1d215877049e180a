"""A study from the command line, to its report.

    python -m tdrs.sweep +experiment=sqa_ablation

checks every setting, runs (or resumes) the study, writes its report with figures and tables, and prints the rows.
"""

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig

from tdrs.analysis import summary
from tdrs.commands import command, study_command
from tdrs.configuration import plain, run, typed
from tdrs.entry_point import run_command
from tdrs.environment import keep_memory
from tdrs.stopping import stoppable
from tdrs.study_run import run_and_report
from tdrs.sweeps.study import Study
from tdrs.tracking import open_tracker


def main_sweep(config: DictConfig) -> int:
    start = time.perf_counter()
    values = plain(config)
    output = Path(values["output"])
    with ExitStack() as stack:
        stop = stack.enter_context(stoppable())
        study = Study(values, stop=stop, command=command("tdrs.sweep", *typed))
        if values["dry_run"]:
            print("\n".join(study.dry_run()))
            return 0
        tracker = stack.enter_context(open_tracker(values["tracking"], output))
        study.track(tracker)
        if study.planned:
            print(study.cost(), file=sys.stderr)
        outcome, page, written = run_and_report(study)
        print()
        print("".join(f"{line}\n" for line in page.off), end="")
        print(f"{page.verified[0]} (see the report)")
        print("\n".join(summary.table(outcome, page.controls)))
        print("".join(f"{line}\n" for line in page.clamped), end="")
        print("".join(f"{note}\n" for note in study.jobs.notes), end="")
        seconds = time.perf_counter() - start
        print(f"{study.progress.evaluated} evaluations run, {study.progress.reused} found done, in {seconds:.0f} s")
        for failed in outcome.failures:
            print(f"failed:  {failed.name} ({failed.split}): {failed.reason}")
        if outcome.failures:
            print("         the same command tries them again")
        for _, figure in page.figures:
            print(f"figure:  {figure.with_suffix('.png')}")
        print(f"report:  {written[0]}")
        output = Path(values["output"]).absolute()
        print(f"again:   {command('tdrs.analysis.report', f'study={study.name}', f'output={output}')}")
        print(f"trials:  {study_command('show', study.name, output)}")
        print("\n".join(tracker.next_steps(study.name)))
        return 1 if outcome.failures else 0


def worker() -> int:
    """Help with the study whose configuration is on standard input; the process that started this one leads it."""
    with stoppable() as stop:
        Study(json.load(sys.stdin), stop=stop).help()
    return 0


USAGE = """
python -m tdrs.sweep +experiment=NAME [GROUP=CHOICE ...] [SETTING=VALUE ...]   (--cfg prints the configuration)

Run it again to go on after a stop; nothing is evaluated twice. Groups and their choices:
"""

if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        keep_memory()
        sys.exit(run_command(worker))
    sys.exit(run("sweep", main_sweep, USAGE))
