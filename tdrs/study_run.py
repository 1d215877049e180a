"""Run a study to its report: what the command `python -m tdrs.sweep` and `tdrs.run_study` have in common."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from tdrs.analysis import report, summary
from tdrs.analysis.report import Report
from tdrs.analysis.study_results import StudyResults
from tdrs.commands import command, value
from tdrs.configuration import check, choices, compose, plain
from tdrs.settings import SettingError, check_choice, folder_named
from tdrs.stopping import stoppable
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import Outcome
from tdrs.tracking import open_tracker


def run_and_report(study: Study) -> tuple[Outcome, Report, list[Path]]:
    """Run a study, write its report and figures, and attach them to its run in the tracking store.

    Returns:
        What the study found, what the report says, and the paths of page and tables.

    Raises:
        KeyboardInterrupt: somebody asked to stop; what was measured is kept.
    """
    outcome = study.run()
    page, written = report.report_study(outcome, study.records, study.folder)
    study.attach(summary.description(outcome, study.records, page.controls))
    return outcome, page, written


def run_study(experiment: str, overrides: Sequence[str] = (), output: str | Path = "outputs") -> StudyResults:
    """Run a study, or continue it if it was stopped, as `python -m tdrs.sweep +experiment=NAME` does.

    Trials that are stored are not measured again. The report and its figures are written into the study's folder,
    `OUTPUT/studies/NAME`, and runs are logged to MLflow unless an override is `tracking=none`. A terminal or a notebook
    shows progress. Ctrl-C, or a notebook's stop button, stops after the current batch; the same call then continues.

        study = tdrs.run_study("sqa_ablation", ["preset=smoke"])
        study.compare("logits, tuned")

    Args:
        experiment: the name of a file in `conf/experiment`.
        overrides: settings in Hydra's grammar, such as `dataset.gap=64`.
        output: the folder that holds studies and records.

    Returns:
        The study's results, as `load_study` reads them. Python warnings say which trials failed, and where the stock
        model's score is far from the published one.

    Raises:
        SettingError: the experiment or a setting is unknown, or a value is not allowed.
        KeyboardInterrupt: somebody asked to stop; what was measured is kept.
    """
    check_choice("experiment", experiment, choices("experiment"))
    if not isinstance(overrides, list | tuple) or not all(isinstance(word, str) for word in overrides):
        raise SettingError("overrides", overrides, "must be a list of texts")
    folder_named("output", output)
    words = [f"+experiment={experiment}", *overrides, f"output={value(str(output))}"]
    config = plain(compose("sweep", words))
    check("sweep", config)
    if config["dry_run"]:
        raise SettingError("dry_run", True, "is for the command python -m tdrs.sweep")
    try:
        with stoppable() as stop:
            study = Study(config, stop=stop, command=command("tdrs.sweep", *words))
            with open_tracker(config["tracking"], Path(config["output"])) as tracker:
                study.track(tracker)
                outcome, page, _ = run_and_report(study)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; what was finished is kept, and the same call continues from there") from None
    for failed in outcome.failures:
        warnings.warn(f"failed: {failed.name} ({failed.split}): {failed.reason}", stacklevel=2)
    for line in page.off:
        warnings.warn(line, stacklevel=2)
    return StudyResults(outcome, study.records, study.folder)
