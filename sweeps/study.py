"""A study: a protocol's trials, run by an executor, written to sinks (`sweeps/sinks.py`).

A study can be stopped at any time and run again; it then goes on from where it was. The process that holds the folder's
lock, and the storage's claim if machines share one, leads: it alone writes the study's files and the store of runs.
Another process that runs the same study joins it: it measures, and leads when the first one is gone or done.

    study = Study(plain_configuration)     # checks every setting; writes nothing
    print(study.cost())                    # how many trials it would run, and how long that may take
    outcome = study.run()                  # an Outcome, see `sweeps/trial.py`
"""

import json
import statistics
import sys
import time
from collections import Counter
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tdrs import checked_file
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.benchmarks import Record
from tdrs.checked_file import Damaged
from tdrs.configuration import check
from tdrs.environment import environment, shows_progress
from tdrs.evaluation import gib
from tdrs.interventions import label
from tdrs.records import Records, is_cache_key
from tdrs.stopping import Stop
from tdrs.tracking import Tracker
from tdrs.worker_pool import WorkerPool, gpus

from . import protocol
from .executor import WAIT, Executor, Inline, Progress, measure
from .folder import study_folder, study_key
from .job import Job, Jobs, Results
from .protocol import check_effect, check_tuned, conditions
from .ray_executor import RayExecutor
from .sinks import Log
from .storage import check_study, open_storage
from .store import Board, Claim, Store
from .trial import FAILED, PARTIAL, PLANNED, Outcome, Request, Trial


class Study:
    """One study. It prints nothing on standard output; warnings go to standard error.

    Args:
        config: the plain configuration of `conf/sweep.yaml`.
        tracker: where runs are logged; nowhere by default.
        stop: whether somebody asked to stop.
        command: what was typed.
        bar: whether to show a progress bar on standard error, if that is a terminal.

    Attributes:
        name, folder: the study's, and where its files are.
        records: the evaluations.
        jobs: its samples, and the jobs of requests.
        results: the results of jobs.
        asked: how many trials the protocol asks for, as far as is known before the run.
        planned: the jobs among them that would run, by cache key.
        progress: how many evaluations ran, and how many were found done.

    Raises:
        SettingError: a setting is not allowed, or a data set is not available. Nothing is loaded or written by then.
    """

    def __init__(
        self,
        config: dict[str, Any],
        tracker: Tracker | None = None,
        stop: Stop | None = None,
        command: str = "",
        bar: bool = True,
    ) -> None:
        check("sweep", config)
        self.config = config
        self.command = command
        self.name = str(config["study"]["name"])
        output = Path(config["output"])
        self.folder = study_folder(output, self.name)
        self.protocol = protocol.from_settings(config["search"])
        self.records = Records(output / "records")
        storage, board, key = open_storage(config["study"]["storage"]), None, study_key(config)
        if storage:
            check_study(storage, self.name, key)
            board = Board(storage, f"{self.name} evaluations {key}")
        self.store = Store(self.records, board)
        self.jobs = Jobs(config)
        self.results = Results(self.store, time.time())
        self.asked = 0
        self.planned: dict[str, Job] = {}
        dataset = config["dataset"]["name"]
        points = [list(self.protocol.possible(condition, dataset)) for condition in conditions(self.protocol.axes)]
        keys = [[self.jobs.of(one).cache_key for one in some] for some in points]
        check_effect(self.protocol.axes, keys)
        check_tuned([one for some in points for one in some], lambda one: self.jobs.of(one).cache_key)
        protocol.run(self.protocol.run(config, self._look), self._plan)
        self.log = Log(self.folder, config, tracker or Tracker("none", output), self.records, storage)
        self.progress = Progress()
        self._stop = stop or Stop()
        self._show = bar
        features = EmbeddingStore(output / "features", gib(config["features_gib"]))
        self._executor: Executor = Inline(self.results, self.progress, self._stop, features)
        if config["workers"]["name"] == "ray":
            self._executor = RayExecutor(config, self.results, self.progress)
        self._pool = self._workers()
        self._leads = False
        self._unlogged = False

    def _workers(self) -> WorkerPool:
        """The processes that help to run this study; with `workers=processes` there are others than this one."""
        workers = self.config["workers"]
        count = workers["count"] if workers["name"] == "processes" and not self.config["dry_run"] else 1
        command = [sys.executable, "-m", "tdrs.sweep", "--worker", str(self.folder)]
        config = {**self.config, "workers": {"name": "inline"}, "tracking": {"name": "none"}}
        devices = gpus(count) if count > 1 and self.config["backbone"]["device"] != "cpu" else []
        return WorkerPool(count, command, json.dumps(config).encode(), self.folder, devices)

    def _plan(self, requests: list[Request]) -> list[Trial]:
        """The trials of requests, with placeholders for those that are not over."""
        self.asked += len(requests)
        jobs = [self.jobs.of(request) for request in requests]
        found = [self.results.find(job) for job in jobs]
        for job, trial in zip(jobs, found, strict=True):
            if trial is None:
                self.planned.setdefault(job.cache_key, job)
        trials = [trial or job.trial(status=PLANNED) for job, trial in zip(jobs, found, strict=True)]
        return self.results.diverged(trials) if self.protocol.needs_kl else trials

    def track(self, tracker: Tracker) -> None:
        """Log to another store of runs from here on."""
        self.log.runs.tracker = tracker

    def dry_run(self) -> list[str]:
        """What would run, as lines of text."""
        lines = [self.cost()]
        for job in self.planned.values():
            lines.append(f"  {job.cache_key}  {job.request.split:9} n = {job.size:<5} {job.request.label}")
        if self.protocol.adaptive:
            lines.append("later settings depend on earlier results: where those are missing, these are first guesses")
        return lines

    def cost(self) -> str:
        """How much there is to run, and how long that may take, in a line."""
        planned = self.planned.values()
        done = self.asked - len(planned)
        text = f"{self.asked} trials asked for, {done} found done or alike; to run: {len(planned)}"
        if not planned:
            return text
        text += f" of {sum(job.size for job in planned)} samples"
        seconds, unknown = self._seconds()
        if unknown == len(planned):
            return f"{text}; no like evaluation is kept here to estimate by: see `tdrs.doctor`"
        text += f", {seconds / 60:.1f} minutes by like evaluations kept here"
        return f"{text} (none is like {unknown} of them)" if unknown else text

    def _seconds(self) -> tuple[float, int]:
        """How long the planned jobs may take, by records of like evaluations, and how many jobs have no like."""
        rates: dict[tuple[str, ...], list[float]] = {}
        for folder in filter(lambda folder: is_cache_key(folder.name), self.records.folder.glob("*")):
            outline = self.records.outline(folder.name)
            with suppress(Damaged, OSError, KeyError, TypeError):  # an estimate needs no single record
                kind = _kind(checked_file.read_yaml(folder / "config.yaml"))
                rates.setdefault(kind, []).append(outline["seconds"] / max(1, outline["n"]))
        total, unknown = 0.0, 0
        for job in self.planned.values():
            like = rates.get(_kind(job.plan.config))
            total += statistics.median(like) * job.size if like else 0
            unknown += not like
        return total, unknown

    def run(self) -> Outcome:
        """Run the study, resume it, or join another process that runs it.

        Returns:
            What its protocol found. It is also in the folder, as `study.json`.

        Raises:
            KeyboardInterrupt: somebody asked to stop; running the study again goes on from there.
            LostLease: another process has taken over the study.
        """
        pool = self._pool if self.planned else nullcontext()
        self.progress.total = len(self.planned)
        samples = sum(job.size for job in self.planned.values())
        hidden = not (samples and self._show and shows_progress())
        bar = tqdm(total=samples, unit="sample", disable=hidden, dynamic_ncols=True)
        with pool, bar as self.progress.bar, closing(self._executor):
            claim = self.store.lead(self.folder)
            if claim is None:
                print(f"{self.name} is being run by another process; joining it", file=sys.stderr)
                self.help()
            while claim is None:
                self._stop.check()
                time.sleep(WAIT)
                claim = self.store.lead(self.folder)
            with claim:  # it ends with the process, however that ends
                return self._lead(claim)

    def help(self) -> Outcome:
        """Measure until all is measured; another process writes the study's files."""
        return protocol.run(self.protocol.run(self.config, self._look), self._measure)

    def _measure(self, requests: list[Request]) -> list[Trial]:
        jobs = [self.jobs.of(request) for request in requests]
        trials = measure(jobs, self.results, self._executor, self.progress, self._stop, self._report)
        return self.results.paired(trials)

    def _look(self, trial: Trial) -> list[Record]:
        """The records of the samples that a trial saw; none if it is only planned, or failed."""
        return [] if trial.status in (PLANNED, FAILED) else self.results.records(trial)[: trial.n]

    def _report(self, trial: Trial) -> None:
        if not self._leads or trial.status == PARTIAL:
            return
        try:
            self.store.publish(trial.cache_key)
            self.log.add(trial)
        except OSError as error:
            if not self._unlogged:
                print(f"the study's log cannot be written ({error}); measuring goes on", file=sys.stderr)
            self._unlogged = True

    def _lead(self, claim: Claim) -> Outcome:
        self._leads = True
        surroundings = environment()
        with self.log.open({name: surroundings[name] for name in ("commit", "device")}, claim):
            outcome = self.help()
            overlap = self.jobs.overlap if any(row.budget for row in outcome.rows) else 0
            measured = _measured(self.records, outcome) or surroundings
            outcome = replace(outcome, key=self.log.key, command=self.command, environment=measured, overlap=overlap)
            self.log.finish(outcome)
        return outcome

    def attach(self, text: str) -> None:
        """Log a description of the study, and the figures and tables in its folder as artifacts of its run."""
        self.log.runs.attach(self.folder, text)


def _kind(config: Any) -> tuple[str, ...]:
    """What two evaluations that take equally long have in common."""
    dataset = config["dataset"]
    names = [config["backbone"]["name"], dataset["name"], label(config["intervention"])]
    return (*names, str(dataset.get("gap")), str(config["batch_size"]))


def _measured(records: Records, outcome: Outcome) -> dict[str, str]:
    """Where the records of a study were measured. If they differ, each value has the number of its evaluations."""
    done = [one for one in {t.cache_key for t in [*outcome.trials, *outcome.rows]} if records.done(one)]
    kept = [records.environment(cache_key) for cache_key in done]
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for one in kept for name in one):
        counts = Counter(one.get(name, "unknown") for one in kept).most_common()
        shown = [f"{value} ({count} evaluations)" for value, count in sorted(counts, key=lambda c: (-c[1], c[0]))]
        found[name] = counts[0][0] if len(counts) == 1 else ", ".join(shown)
    return found
