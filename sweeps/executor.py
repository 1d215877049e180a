"""Executors run jobs: in this process, or by Ray (`sweeps/ray_executor.py`).

Every worker runs the whole protocol. It reads what others have measured and waits for what they are measuring. So
workers need nothing in common but the store; if one dies, the others take over its trials.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from tqdm import tqdm

from tdrs import backbones
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.evaluation import complete
from tdrs.settings import SettingError
from tdrs.stopping import Stop

from .job import Job, Results
from .trial import COMPLETE, Trial

WAIT = 0.2  # seconds between two looks at what other workers do


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
        """Run a job, or have a worker run it; returns its trial. None if it is not over: a worker runs it, another
        process has claimed it, no worker is free, or it failed and may be tried again."""

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
        self._loaded: dict[str, object] = {}  # what decides the answers of the model that is kept

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
                load = partial(self._model, job.plan.backbone)
                where, prune = self._results.store.records, self._results.should_prune(job)
                evaluation = complete(job.plan, job.samples, load, where, job.cache_key, self._after, prune)
            except SettingError:
                raise
            except Exception as error:
                self._results.fail(job, error)
                return None
            trial = self._results.find(job)
            if evaluation is None and trial is not None:
                self._progress.skip(job.size - trial.n)
            return trial

    def wait(self) -> None:
        time.sleep(WAIT)

    def close(self) -> None:
        self._backbone = None

    def _model(self, settings: BackboneSettings) -> Backbone:
        decisive = settings.decisive
        if self._backbone is None or self._backbone.settings != settings or self._loaded != decisive:
            self._backbone, self._loaded = None, decisive
            self._backbone = backbones.load(settings, self._features)
        return self._backbone

    def _after(self, samples: int) -> None:
        self._progress.advance(samples)
        self._stop.check()
