"""Executors run jobs: in this process, or by Ray (`sweeps/ray_executor.py`).

Every worker runs the whole protocol. It reads what others have measured and waits for what they are measuring. So
workers need nothing in common but the store; if one dies, the others take over its trials.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from tqdm import tqdm

from tdrs import backbones
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.evaluation import complete
from tdrs.settings import SettingError, check_choice, check_number
from tdrs.stopping import Stop

from .job import Job, Results
from .trial import COMPLETE, Trial

WAIT = 0.2  # seconds between two looks at what other workers do
KINDS = ("inline", "processes", "member", "ray")


class Progress:
    """Counts evaluations, and shows them in a bar.

    Attributes:
        bar: hidden, unless it is set.
        total: how many evaluations are expected to run.
        evaluated, reused: how many evaluations ran here, and how many were found done.
        samples: how many samples were asked here.
    """

    def __init__(self) -> None:
        self.bar: Any = tqdm(disable=True)
        self.total = self.evaluated = self.reused = self.samples = 0
        self._counted: set[str] = set()
        self._incumbent: Trial | None = None

    def begin(self, job: Job) -> None:
        """Count and show an evaluation that begins here."""
        if job.cache_key not in self._counted:
            self._counted.add(job.cache_key)
            self.evaluated += 1
        self.bar.set_description(f"trial {min(self.evaluated, self.total)} of {self.total}")
        best = f"; best {self._incumbent.score:.3f} ({self._incumbent.name})" if self._incumbent else ""
        self.bar.set_postfix_str(f"{job.request.label}{best}")

    def found(self, trial: Trial) -> None:
        """Count a complete evaluation that was found."""
        if trial.status == COMPLETE and trial.cache_key not in self._counted:
            self._counted.add(trial.cache_key)
            self.reused += 1

    def advance(self, samples: int) -> None:
        """Count samples that were asked."""
        self.samples += samples
        self.bar.update(samples)

    def skip(self, samples: int) -> None:
        """Expect fewer samples, since a trial was pruned."""
        self.bar.total = (self.bar.total or 0) - samples

    def tell(self, trial: Trial) -> None:
        """Remember the best trial on the tuning split."""
        if trial.split == "tuning" and trial.score > (self._incumbent.score if self._incumbent else -math.inf):
            self._incumbent = trial


class Executor(Protocol):
    """Runs jobs."""

    def run(self, job: Job) -> Trial | None:
        """Run a job, or have a worker run it.

        Returns:
            The trial; None if it is not over: a worker runs it, another process has claimed it, no worker is free, or
            it failed and may be tried again.
        """

    def wait(self) -> None:
        """Wait a moment for other processes or workers."""

    def close(self) -> None:
        """Let models and workers go."""


def measure(
    jobs: Sequence[Job],
    results: Results,
    executor: Executor,
    progress: Progress,
    stop: Stop,
    report: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """The trials of jobs, in their order; a trial that failed has the reason.

    Args:
        report: called with each trial, in the order of the jobs, as soon as it and all before it are over.

    Raises:
        SettingError: a setting is not allowed, or the model cannot be loaded.
        KeyboardInterrupt: somebody asked to stop; what was measured is kept.
    """
    trials: list[Trial | None] = [None] * len(jobs)
    told = 0
    while told < len(jobs):
        waiting = True
        for number, job in enumerate(jobs):
            if trials[number] is None:
                stop.check()
                trial = results.find(job) or executor.run(job)
                trials[number] = trial
                if trial is not None:
                    progress.found(trial)
                    waiting = False
            while told < len(jobs) and (trial := trials[told]) is not None:
                progress.tell(trial)
                report(trial)
                told += 1
        if waiting and told < len(jobs):
            executor.wait()
    return [trial for trial in trials if trial is not None]


class Inline:
    """Runs jobs in this process, one after the other, and keeps one model."""

    def __init__(self, results: Results, progress: Progress, stop: Stop, features: EmbeddingStore | None) -> None:
        self._results = results
        self._progress = progress
        self._stop = stop
        self._features = features
        self._backbone: Backbone | None = None

    def run(self, job: Job) -> Trial | None:
        """Run a job; None if another process has claimed it, or if it failed and may be tried again."""
        claim = self._results.claim(job)
        if claim is None:
            return None
        with claim:
            found = self._results.find(job)
            if found:
                return found
            self._progress.begin(job)
            try:
                evaluation = complete(
                    job.plan,
                    job.samples,
                    lambda: self._model(job.plan.backbone),
                    self._results.store.records,
                    job.cache_key,
                    self._after,
                    self._results.should_prune(job),
                )
            except SettingError:
                raise
            except Exception as error:
                self._results.fail(job, error)
                return None
            trial = self._results.find(job)
            if evaluation is None and trial is not None:
                self._progress.skip(len(job.samples) - trial.n)
            return trial

    def wait(self) -> None:
        time.sleep(WAIT)

    def close(self) -> None:
        self._backbone = None

    def _model(self, settings: BackboneSettings) -> Backbone:
        if self._backbone is None or self._backbone.settings != settings:
            self._backbone = None
            self._backbone = backbones.load(settings, self._features)
        return self._backbone

    def _after(self, samples: int) -> None:
        self._progress.advance(samples)
        self._stop.check()


class WorkerPool:
    """Further processes that run the same study; started on entering, ended on leaving. What they finished is kept.

    Args:
        count: how many processes measure, including this one.
        command: what starts one.
        folder: where each writes its output, as `worker-1.log` and so on.
        devices: the GPUs, one a process; none on the CPU.
    """

    def __init__(self, count: int, command: Sequence[str], folder: Path, devices: Sequence[str]) -> None:
        self.count = count
        self.command = command
        self.folder = folder
        self.devices = devices
        self.processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
        self._threads = torch.get_num_threads()

    @classmethod
    def of(cls, config: Mapping[str, Any], arguments: Sequence[str], folder: Path) -> "WorkerPool":
        """The pool that the group `workers` asks for; without other processes unless it is `processes`.

        Args:
            config: the study's plain configuration.
            arguments: those of the command, in Hydra's grammar.
            folder: the study's.

        Raises:
            SettingError: a setting is not allowed, or there are fewer GPUs than workers.
        """
        workers = config["workers"]
        check_choice("workers.name", workers["name"], KINDS)
        if workers["name"] != "processes":
            return cls(1, [], folder, [])
        count = workers["count"]
        check_number("workers.count", count, 1, whole=True)
        devices: list[str] = []
        if config["backbone"]["device"] != "cpu" and torch.cuda.is_available():
            given = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
            if count > len(devices):
                raise SettingError("workers.count", count, f"must be at most {len(devices)}, the GPUs there are")
        own = [word for word in arguments if not word.startswith(("workers=", "workers.", "tracking=", "tracking."))]
        command = [sys.executable, "-m", "tdrs.sweep", *own, "workers=member", "tracking=none"]
        return cls(count, command, folder, devices)

    def __enter__(self) -> "WorkerPool":
        threads = max(1, self._threads // self.count)
        for number in range(1, self.count):
            surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            if self.devices:
                surroundings["CUDA_VISIBLE_DEVICES"] = self.devices[number]
            self.folder.mkdir(parents=True, exist_ok=True)
            log = (self.folder / f"worker-{number}.log").open("wb")
            self._logs.append(log)
            self.processes.append(
                subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=surroundings)
            )
        if self.count > 1 and not self.devices:
            torch.set_num_threads(threads)
        return self

    def __exit__(self, *_: object) -> None:
        failed = [number for number, process in enumerate(self.processes, 1) if process.poll() not in (None, 0)]
        for process in self.processes:
            process.terminate()  # it ends at its next batch, if it is in one
        for process in self.processes:
            process.wait()
        for log in self._logs:
            log.close()
        torch.set_num_threads(self._threads)
        for number in failed:
            log_name = self._logs[number - 1].name
            print(f"worker {number} failed, the others did its share: {log_name}", file=sys.stderr)
