"""Requests become trials: found in the records if they were ever measured, else run, by whichever worker is first.

Every worker runs the whole protocol. What another one has measured is read, what another one is measuring is waited
for; so workers need nothing in common but the folder of records, and one that dies is missed by nobody.
"""

import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from tdrs import backbones, checked_file
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.features import Features
from tdrs.benchmarks import Benchmark, Record, Samples
from tdrs.checked_file import Damaged
from tdrs.configuration import with_settings
from tdrs.evaluation import Plan, complete, other_metrics, plan, summary
from tdrs.records import Records, is_cache_key
from tdrs.results import Evaluation, asked_of
from tdrs.settings import SettingError, first_line
from tdrs.statistics import paired_difference
from tdrs.stopping import Stop

from .trials import COMPLETE, FAILED, PLANNED, PRUNED, Request, Trial, check_pair

ATTEMPTS = 2  # of a trial that fails, each time a study is started
WAIT = 0.2  # seconds between two looks at what other workers do


@dataclass(frozen=True)
class Job:
    """A request, checked: its plan, its samples, its cache key."""

    request: Request
    plan: Plan
    samples: Samples
    cache_key: str


class Engine:
    """Turns requests into trials.

    Args:
        config: the study's plain configuration.
        report: called with each trial, in the order of the requests, as soon as it and all before it are there.
        samples: those that were loaded before, to be shared.

    Attributes:
        evaluated, reused: how many evaluations ran here, and how many were found done.
    """

    def __init__(
        self,
        config: dict[str, Any],
        records: Records,
        features: Features | None = None,
        stop: Stop | None = None,
        report: Callable[[Trial], None] = lambda trial: None,
        samples: dict[tuple[Benchmark, str, int | None, str], Samples] | None = None,
    ) -> None:
        self.config = config
        self.store = records
        self.report = report
        self.stop = stop or Stop()
        self.evaluated = 0
        self.reused = 0
        self._features = features
        self._begun = time.time()
        self.samples = {} if samples is None else samples
        self._backbone: Backbone | None = None
        self._counted: set[str] = set()
        self._failed: dict[str, tuple[int, str]] = {}  # attempts and reason, also where they could not be written
        self._best: Trial | None = None
        self.bar = tqdm(disable=True)
        self.total = 0

    def job(self, request: Request) -> Job:
        """A request's plan; raises SettingError if its settings, or its samples, are not to be had."""
        split = request.split
        config = with_settings(self.config, request.merged)
        planned = plan({**config, "split": split, "limit": self.config["preset"][split]})
        style = planned.backbone.prompt_style
        key = planned.dataset, split, planned.limit, style
        if key not in self.samples:
            self.samples[key] = planned.load(f"preset.{split}")
        samples = self.samples[key]
        return Job(request, planned, samples, planned.cache_key(samples))

    @property
    def notes(self) -> list[str]:
        """What there is to say about how the splits were read, such as rows that were left out."""
        found = [f"{split}: {note}" for (_, split, *_), samples in self.samples.items() for note in samples.notes]
        return list(dict.fromkeys(found))

    @property
    def overlap(self) -> int:
        """How many held-out samples, by picture and question, are also tuning samples of the same data set."""
        seen: dict[str, dict[str, set[tuple[str, str]]]] = {}
        for (dataset, split, *_), samples in self.samples.items():
            parts = seen.setdefault(type(dataset).__name__, {}).setdefault(split, set())
            # blank pictures are all alike: there the image's name tells them apart
            parts |= {(s.image_id if dataset.blank else s.picture.digest, s.question) for s in samples}
        return sum(len(parts.get("tuning", set()) & parts.get("held_out", set())) for parts in seen.values())

    def measure(self, requests: Sequence[Request]) -> list[Trial]:
        """The trials of requests, in their order; those that fail say why.

        Raises:
            SettingError: a setting is not allowed, or the model cannot be loaded.
            KeyboardInterrupt: somebody asked to stop; what was measured is kept.
        """
        jobs = [self.job(request) for request in requests]
        trials: list[Trial | None] = [None] * len(jobs)
        told = 0
        while told < len(jobs):
            waiting = True
            for number, job in enumerate(jobs):
                if trials[number] is None:
                    self.stop.check()
                    trials[number] = self._found(job) or self._run(job)
                    waiting = waiting and trials[number] is None
                while told < len(jobs) and (trial := trials[told]) is not None:
                    self._tell(trial)
                    told += 1
            if waiting and told < len(jobs):
                self._pause()
        return [trial for trial in trials if trial is not None]

    def _pause(self) -> None:
        """Wait for what others are measuring."""
        time.sleep(WAIT)

    def close(self) -> None:
        """Let the model go; a study is over, or stopped."""
        self._backbone = None

    def _tell(self, trial: Trial) -> None:
        if trial.split == "tuning" and trial.score > (self._best.score if self._best else -math.inf):
            self._best = trial
        self.report(trial)

    def records(self, trial: Trial) -> list[Record]:
        """The records of a trial; of one that was pruned, as many as there are."""
        if self.store.done(trial.cache_key):
            return self.store.read(trial.cache_key).records
        return [record for batch in self.store.batches(trial.cache_key) for record in batch.records]

    def difference(self, stock: Trial, edited: Trial) -> tuple[float, float, float] | None:
        """The paired difference of two trials, images as clusters; None if one is not whole.

        Raises:
            SettingError: they are not on the same samples.
        """
        if stock.status != COMPLETE or edited.status != COMPLETE:
            return None
        before, after = self.records(stock), self.records(edited)
        check_pair(stock, edited, before, after)
        return paired_difference(
            [record.score for record in before],
            [record.score for record in after],
            [record.image_id for record in before],
            [record.weight for record in before],
        )

    def _trial(self, job: Job, **values: Any) -> Trial:
        r = job.request
        values |= {"budget": r.budget, "samples": job.samples.content}
        return Trial(r.name, r.split, r.condition, r.settings, job.cache_key, len(job.samples), **values)

    def _found(self, job: Job) -> Trial | None:
        """The trial if it is over: done, or failed often enough since this study was started."""
        e = self._whole(job)
        if e is not None:
            if job.cache_key not in self._counted:
                self._counted.add(job.cache_key)
                self.reused += 1
            return self._trial(
                job, metrics=e.metrics, clamped=e.clamped, notes=e.notes, seconds=e.seconds, finished=e.finished
            )
        failure = self.store.failure(job.cache_key)
        if failure and failure.time >= self._begun:
            self._failed[job.cache_key] = max(
                self._failed.get(job.cache_key, (0, "")), (failure.attempts, failure.reason)
            )
        pruned = self._pruned(job)
        if pruned:
            return pruned
        attempts, reason = self._failed.get(job.cache_key, (0, ""))
        return self._trial(job, status=FAILED, reason=reason) if attempts >= ATTEMPTS else None

    def _whole(self, job: Job) -> Evaluation | None:
        """The evaluation, if it is finished, whole, and of the samples that are asked."""
        if not self.store.done(job.cache_key):
            return None
        try:
            evaluation = self.store.read(job.cache_key)
        except (Damaged, FileNotFoundError):  # since a moment ago
            return None
        same = asked_of(evaluation.records) == asked_of(job.samples)
        return evaluation if same and not other_metrics(job.plan.dataset, evaluation) else None

    def _run(self, job: Job) -> Trial | None:
        """The trial, run here; None if another worker is at it, or if it failed and may be tried again."""
        try:
            lease = self.store.claim(job.cache_key)
        except OSError as error:
            self._fail(job, error)
            return None
        if lease is None:
            return None
        with lease:
            found = self._found(job)
            if found:
                return found
            self._show(job)
            try:
                evaluation = complete(
                    job.plan,
                    job.samples,
                    lambda: self._model(job.plan.backbone),
                    self.store,
                    job.cache_key,
                    self._after,
                    job.request.enough,
                )
            except SettingError:
                raise
            except Exception as error:
                self._fail(job, error)
                return None
            if evaluation is None:
                self._ended_early(job)
            return self._found(job)

    def _ended_early(self, job: Job) -> None:
        """The bar need not wait for the rest."""
        pruned = self._pruned(job)
        assert pruned
        self.bar.total = (self.bar.total or 0) - (len(job.samples) - pruned.n)

    def _pruned(self, job: Job) -> Trial | None:
        """The trial if what is kept of it says that it may end early; `n` is how many samples it saw."""
        enough = job.request.enough
        kept = self.store.batches(job.cache_key) if enough else []
        for last in range(1, len(kept) + 1):
            part = kept[:last]
            seen = [record for batch in part for record in batch.records]
            expected = enough(seen) if enough and len(seen) < len(job.samples) else None
            if expected is not None:
                e = summary(job.plan.dataset, job.samples, part, job.plan.batch_size)
                reason = f"after {len(seen)} of {len(job.samples)} samples"
                trial = self._trial(job, metrics=e.metrics, seconds=e.seconds, status=PRUNED, reason=reason)
                return replace(trial, n=len(seen), expected=expected)
        return None

    def _fail(self, job: Job, error: Exception) -> None:
        reason = f"{type(error).__name__}: {first_line(error)}"
        attempts = self._failed.get(job.cache_key, (0, ""))[0] + 1
        self._failed[job.cache_key] = attempts, reason
        text = f"{job.request.label} failed, attempt {attempts} of {ATTEMPTS}: {reason}"
        self.bar.write(text, file=sys.stderr)
        try:
            trace = "".join(traceback.format_exception(error))
            self.store.fail(job.cache_key, reason, attempts, trace)
        except OSError:  # a full disk; the reason is in the study's table
            pass

    def _model(self, settings: BackboneSettings) -> Backbone:
        """The backbone of a trial; one at a time is held."""
        if self._backbone is None or self._backbone.settings != settings:
            self._backbone = None
            self._backbone = backbones.load(settings, self._features)
        return self._backbone

    def _show(self, job: Job) -> None:
        """Count a trial that begins here, and say which it is."""
        if job.cache_key not in self._counted:
            self._counted.add(job.cache_key)
            self.evaluated += 1
        self.bar.set_description(f"trial {min(self.evaluated, self.total)} of {self.total}")
        best = f"; best {self._best.score:.3f} ({self._best.name})" if self._best else ""
        self.bar.set_postfix_str(f"{job.request.label}{best}")

    def _after(self, count: int) -> None:
        self.bar.update(count)
        self.stop.check()


class Preview(Engine):
    """An engine that runs nothing: what is not there yet is `planned`, and listed in `planned`."""

    def __init__(self, config: dict[str, Any], records: Records) -> None:
        super().__init__(config, records)
        self.planned: dict[str, Job] = {}
        self.asked = 0

    def measure(self, requests: Sequence[Request]) -> list[Trial]:
        """The trials that are there, and placeholders."""
        self.asked += len(requests)
        found = []
        for job in map(self.job, requests):
            trial = self._found(job)
            if trial is None:
                self.planned.setdefault(job.cache_key, job)
                trial = self._trial(job, status=PLANNED)
            found.append(trial)
        return found

    def difference(self, stock: Trial, edited: Trial) -> None:
        """None: no plan depends on it, and the run will ask for it again."""

    def seconds(self) -> tuple[float, int]:
        """How long what is planned may take by records of like evaluations, and how many jobs have no like."""
        rates: dict[tuple[str, ...], list[float]] = {}
        for folder in filter(lambda folder: is_cache_key(folder.name), self.store.folder.glob("*")):
            outline = self.store.outline(folder.name)
            with suppress(Damaged, OSError, KeyError, TypeError):  # an estimate needs no record of its own
                kind = _kind(checked_file.read_yaml(folder / "config.yaml"))
                rates.setdefault(kind, []).append(outline["seconds"] / max(1, outline["n"]))
        total, unknown = 0.0, 0
        for job in self.planned.values():
            like = rates.get(_kind(job.plan.config))
            total += statistics.median(like) * len(job.samples) if like else 0
            unknown += not like
        return total, unknown


def _kind(config: Any) -> tuple[str, ...]:
    """What two evaluations that take equally long have in common."""
    dataset = config["dataset"]
    names = [config[part]["name"] for part in ("backbone", "dataset", "intervention")]
    return (*names, str(dataset.get("gap")), str(config["batch_size"]))
