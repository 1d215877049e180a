"""From requests to jobs, which can be run, and from kept records to trials."""

import json
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tqdm import tqdm

from tdrs.benchmarks import Record, Samples
from tdrs.checked_file import Damaged
from tdrs.configuration import with_settings
from tdrs.evaluation import Plan, other_metrics, plan, summary
from tdrs.results import asked_of, mean_divergence, of_rows
from tdrs.settings import first_line

from .sampled import should_prune
from .store import Claim, Store
from .trial import COMPLETE, FAILED, PARTIAL, PRUNED, STOCK, Request, Trial, check_pair, difference

ATTEMPTS = 2  # of a trial that fails, each time a study is started


@dataclass(frozen=True)
class Job:
    """A checked request: its plan, its samples, its cache key."""

    request: Request
    plan: Plan
    samples: Samples
    cache_key: str

    def trial(self, **values: Any) -> Trial:
        """The job's trial, with these results."""
        r = self.request
        values |= {"budget": r.budget, "samples": self.samples.content}
        return Trial(r.name, r.split, r.condition, r.settings, self.cache_key, **{"n": len(self.samples)} | values)

    @property
    def size(self) -> int:
        """How many samples are measured: all, or as many whole batches as hold those that are asked for."""
        if self.request.upto is None:
            return len(self.samples)
        batches = math.ceil(self.request.upto / self.plan.batch_size)
        return min(len(self.samples), batches * self.plan.batch_size)


class Jobs:
    """Makes jobs of requests; loads each split once.

    Args:
        config: the study's plain configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        # by data set, split, limit, prompt style, and what decides which pictures the model takes
        self.samples: dict[tuple[Any, ...], Samples] = {}

    def of(self, request: Request) -> Job:
        """The job of a request; raises SettingError if a setting is not allowed or its samples are not available."""
        split = request.split
        config = with_settings(self.config, request.merged)
        planned = plan({**config, "split": split, "limit": self.config["preset"][split]})
        model = planned.backbone
        taken = model.source, model.revision, json.dumps(model.image, sort_keys=True)
        key = planned.dataset, split, planned.limit, model.prompt_style, *taken
        if key not in self.samples:
            self.samples[key] = planned.load(f"preset.{split}")
        return Job(request, planned, self.samples[key], planned.cache_key(self.samples[key]))

    @property
    def notes(self) -> list[str]:
        """Remarks on how the splits were read, such as how many rows were left out."""
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


class Results:
    """What is known of jobs: kept records, failures, and which trials may be pruned.

    Args:
        store: where evaluations are claimed and kept.
        begun: when the study was started, in seconds since 1970; earlier failures do not count.
    """

    def __init__(self, store: Store, begun: float) -> None:
        self.store = store
        self._begun = begun
        self._complete: dict[str, tuple[object, dict[str, Any]]] = {}  # by cache key: the files' state, the results
        self._failed: dict[str, tuple[int, str]] = {}  # attempts and reason, also if they could not be written
        self._incumbent: tuple[str, list[Record]] = ("", [])  # its cache key and its records
        self._divergence: dict[tuple[str, str], float] = {}  # of the stock model and an edited one, by cache keys

    def find(self, job: Job) -> Trial | None:
        """The trial if it is over: complete, pruned, or failed often enough since the study was started."""
        records, cache_key = self.store.records, job.cache_key
        self.store.fetch(cache_key)
        values = self._values(job)
        if job.size < len(job.samples):
            if part := self._part(job, values is not None):
                return part
        elif values is not None:
            return job.trial(**values)
        failure = records.failure(cache_key)
        if failure and failure.time >= self._begun:
            self._failed[cache_key] = max(self._failed.get(cache_key, (0, "")), (failure.attempts, failure.reason))
        pruned = self.pruned(job)
        if pruned:
            return pruned
        attempts, reason = self._failed.get(cache_key, (0, ""))
        return job.trial(status=FAILED, reason=reason) if attempts >= ATTEMPTS else None

    def _values(self, job: Job) -> dict[str, Any] | None:
        """The results of a finished evaluation, if its files are whole and of the samples that are asked.

        They are read and checked again only if the files have changed.
        """
        records, cache_key = self.store.records, job.cache_key
        state = records.state(cache_key)
        if state is None:
            return None
        known = self._complete.get(cache_key)
        if known is not None and known[0] == state:
            return known[1]
        if not records.done(cache_key):
            return None
        try:
            e = records.read(cache_key)
        except (Damaged, FileNotFoundError):  # since a moment ago
            return None
        if asked_of(e.records) != asked_of(job.samples) or other_metrics(job.plan.dataset, e):
            return None
        values = {name: getattr(e, name) for name in ("metrics", "clamped", "notes", "seconds", "finished")}
        self._complete[cache_key] = state, values
        return values

    def _part(self, job: Job, complete: bool) -> Trial | None:
        """The trial of a job that needs the first samples only; None if not all of these are kept.

        Args:
            complete: whether the whole evaluation is kept. Its later samples are not looked at.
        """
        records, size = self.store.records, job.size
        if complete:
            found, seconds = records.read(job.cache_key).records[:size], 0.0
        else:
            batches = [batch for batch in records.batches(job.cache_key) if batch.start < size]
            found = [record for batch in batches for record in batch.records]
            seconds = sum(batch.seconds for batch in batches)
        if asked_of(found) != asked_of(job.samples[:size]):
            return None
        metrics = job.plan.dataset.metrics(found)
        metrics |= of_rows(found) | {"accuracy": metrics["accuracy"]}
        status = PRUNED if job.request.ended else PARTIAL
        reason = f"after {size} of {len(job.samples)} samples"
        return job.trial(n=size, metrics=metrics, seconds=seconds, status=status, reason=reason)

    def pruned(self, job: Job) -> Trial | None:
        """The trial if its kept batches say that it may be pruned; `n` is how many samples it saw."""
        check = self.should_prune(job) if job.request.incumbent else None
        kept = self.store.records.batches(job.cache_key) if check else []
        for last in range(1, len(kept) + 1):
            part = kept[:last]
            seen = [record for batch in part for record in batch.records]
            expected = check(seen) if check and len(seen) < len(job.samples) else None
            if expected is not None:
                e = summary(job.plan.dataset, job.samples, part, job.plan.batch_size)
                reason = f"after {len(seen)} of {len(job.samples)} samples"
                values = {"n": len(seen), "metrics": e.metrics, "seconds": e.seconds}
                return job.trial(**values, status=PRUNED, reason=reason, expected=expected)
        return None

    def should_prune(self, job: Job) -> Callable[[Sequence[Record]], float | None] | None:
        """The rule by which a job may end early, as `complete` takes it; None if it may not."""
        if job.size < len(job.samples):
            asked = {sample.id for sample in job.samples[: job.size]}
            return lambda known: 0.0 if asked <= {record.id for record in known} else None
        incumbent = job.request.incumbent
        if incumbent is None:
            return None
        if self._incumbent[0] != incumbent.cache_key:
            self._incumbent = incumbent.cache_key, self.records(incumbent)
        return partial(should_prune, self._incumbent[1])

    def records(self, trial: Trial) -> list[Record]:
        """The records of a trial; of one that was pruned, as many as there are."""
        self.store.fetch(trial.cache_key)
        records = self.store.records
        if records.done(trial.cache_key):
            return records.read(trial.cache_key).records
        return [record for batch in records.batches(trial.cache_key) for record in batch.records]

    def paired(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials beside the stock model's at the same condition, if that is one of them: with their difference to
        it and their divergence from it."""
        pairs = [(trial, stock or trial) for trial, stock in self._with_stock(trials)]
        found = [t if stock == t else replace(t, difference=self.difference(stock, t)) for t, stock in pairs]
        return self.diverged(found)

    def diverged(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials; those that are complete beside the stock model's at the same condition have their `kl`."""
        found = []
        for trial, stock in self._with_stock(trials):
            if stock not in (None, trial) and trial.status == stock.status == COMPLETE:
                value = self._mean_divergence(stock, trial)
                trial = replace(trial, kl=None if math.isnan(value) else value)
            found.append(trial)
        return found

    @staticmethod
    def _with_stock(trials: Sequence[Trial]) -> list[tuple[Trial, Trial | None]]:
        """Each trial with the stock model's at the same condition; None if that is not one of them."""
        stock = {json.dumps(trial.condition): trial for trial in trials if trial.name == STOCK}
        return [(trial, stock.get(json.dumps(trial.condition))) for trial in trials]

    def _mean_divergence(self, stock: Trial, edited: Trial) -> float:
        key = stock.cache_key, edited.cache_key
        if key not in self._divergence:
            before, after = self.records(stock), self.records(edited)
            check_pair(stock, edited, before, after)
            self._divergence[key] = mean_divergence(before, after)
        return self._divergence[key]

    def difference(self, stock: Trial, edited: Trial) -> tuple[float, float, float] | None:
        """The paired difference of two trials, images as clusters; None if one is not complete.

        Raises:
            SettingError: they are not on the same samples.
        """
        if stock.status != COMPLETE or edited.status != COMPLETE:
            return None
        return difference(stock, edited, self.records(stock), self.records(edited))

    def claim(self, job: Job) -> Claim | None:
        """The right to run a job; None if another process has it, or if it could not be written, which counts as a
        failed attempt."""
        try:
            return self.store.claim(job.cache_key)
        except OSError as error:
            self.fail(job, error)
            return None

    def fail(self, job: Job, error: Exception) -> None:
        """Keep and print why a job failed."""
        reason = f"{type(error).__name__}: {first_line(error)}"
        attempts = self._failed.get(job.cache_key, (0, ""))[0] + 1
        self._failed[job.cache_key] = attempts, reason
        tqdm.write(f"{job.request.label} failed, attempt {attempts} of {ATTEMPTS}: {reason}", file=sys.stderr)
        with suppress(OSError):  # a full disk; the reason is in the study's table
            trace = "".join(traceback.format_exception(error))
            self.store.records.fail(job.cache_key, reason, attempts, trace)
