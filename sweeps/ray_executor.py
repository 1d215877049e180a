"""An executor whose jobs run as tasks of Ray, on this machine or on a cluster: `workers=ray`.

A worker is an actor. It has a GPU, or a share of the cores, to itself, keeps the model between jobs, and returns what
it measured as files. The process that runs the study claims the evaluations and keeps the files. The nodes of a cluster
need tdrs, and the weights and data under the names that the configuration has.
"""

import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.evaluation import gib, other_metrics
from tdrs.records import Records
from tdrs.results import asked_of
from tdrs.settings import SettingError
from tdrs.stopping import Stop

from .executor import WAIT, Inline, Progress, measure
from .job import Job, Jobs, Results
from .store import Claim, Store
from .trial import Request, Trial

OBJECTS = 256 * 2**20  # bytes of shared memory for what workers return


class Worker:
    """What runs in an actor.

    Args:
        config: the study's plain configuration.
        threads: how many cores it computes with.
    """

    def __init__(self, config: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._folder = tempfile.TemporaryDirectory(prefix="tdrs-")
        self._records = Records(Path(self._folder.name))
        self._jobs = Jobs(config)
        self._results = Results(Store(self._records), time.time())
        self._progress = Progress()
        self._stop = Stop()
        features = EmbeddingStore(Path(config["output"]) / "features", gib(config["features_gib"]))
        self._executor = Inline(self._results, self._progress, self._stop, features)
        self._seen = 0

    def measure(self, request: Request, cache_key: str, kept: dict[str, bytes]) -> tuple[bytes, str]:
        """Run an evaluation, or resume it; returns its files, and the fault of a setting that ended it.

        Args:
            cache_key: the study's; it is the same here if weights, data and versions are.
            kept: by cache key, what there is of this evaluation and of the incumbent.
        """
        error = ""
        try:
            job = self._jobs.of(request)
            if job.cache_key != cache_key:
                return b"", "a worker's weights, data or version of tdrs differ from those of this machine"
            for key, packed in kept.items():
                self._records.unpack(key, packed)
            measure([job], self._results, self._executor, self._progress, self._stop)
        except SettingError as problem:
            error = str(problem)
        except KeyboardInterrupt:  # asked to stop
            pass
        return self._records.pack(cache_key), error

    def stop(self) -> None:
        """End at the next batch."""
        self._stop.requested = True

    def seen(self) -> int:
        """How many samples were asked since the last call."""
        before, self._seen = self._seen, self._progress.samples
        return self._seen - before


@dataclass
class _Task:
    """A job that a worker runs: the worker, its future result, and our claim on the job."""

    worker: Any
    result: Any
    claim: Claim


class RayExecutor:
    """Runs jobs on Ray's actors; the first job starts them.

    Args:
        config: the study's plain configuration.

    Raises:
        SettingError: Ray is not installed.
    """

    def __init__(self, config: dict[str, Any], results: Results, progress: Progress) -> None:
        self._config = config
        self._settings = config["workers"]
        self._results = results
        self._progress = progress
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming default
        try:
            import ray
        except ModuleNotFoundError:
            raise SettingError("workers.name", "ray", "needs the package ray: pip install ray") from None
        self._ray: Any = ray
        self._threads = max(1, torch.get_num_threads() // self._settings["count"])  # of each worker
        self._workers: list[Any] = []
        self._free: list[Any] = []
        self._tasks: dict[str, _Task] = {}
        self._asked = time.monotonic()

    def _start(self) -> None:
        """Start or join Ray, and start the workers."""
        ray, count, gpus, threads = self._ray, self._settings["count"], self._settings["num_gpus"], self._threads
        where = {"address": self._settings["address"] or "local"}
        if where["address"] == "local":
            where |= {"num_cpus": count * threads, "object_store_memory": OBJECTS, "include_dashboard": False}
            where |= {"_node_ip_address": "127.0.0.1"}
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
        there = ray.cluster_resources()
        for name, each, key in (("GPU", gpus, "num_gpus"), ("CPU", threads, "count")):
            if count * each > there.get(name, 0):
                given, allowed = self._settings[key], f"{count} workers need {count * each:g} {name}s"
                raise SettingError(f"workers.{key}", given, f"{allowed}, Ray has {there.get(name, 0):g}")
        for _ in range(count):
            self._hire()

    def _hire(self) -> None:
        """Add a worker; its first job waits until it has started."""
        config = {**self._config, "output": str(Path(self._config["output"]).resolve())}
        # two calls at a time: one measures, the other asks for its progress, or stops it
        needs = {"num_cpus": self._threads, "num_gpus": self._settings["num_gpus"], "max_concurrency": 2}
        worker = self._ray.remote(**needs)(Worker).remote(config, self._threads)
        self._workers.append(worker)
        self._free.append(worker)

    def run(self, job: Job) -> Trial | None:
        """The trial, if a worker has finished it. Otherwise None, and a free worker begins it."""
        task = self._tasks.get(job.cache_key)
        if task is None:
            if not self._workers:
                self._start()
            if self._free:
                self._give(job)
            return None
        if not self._ray.wait([task.result], timeout=0)[0]:
            return None
        del self._tasks[job.cache_key]
        with task.claim:
            self._collect(job, task)
            return self._results.find(job)

    def _give(self, job: Job) -> None:
        """Have a worker begin a job, if no process runs it."""
        claim = self._results.claim(job)
        if claim is None:
            return
        if self._results.find(job):  # another process has just finished it
            claim.close()
            return
        records = self._results.store.records
        unlike = lambda evaluation: other_metrics(job.plan.dataset, evaluation)  # noqa: E731
        records.mend(job.cache_key, asked_of(job.samples), job.plan.batch_size, unlike=unlike)
        self._progress.begin(job)
        worker = self._free.pop()
        incumbent = job.request.incumbent
        keys = [job.cache_key, *([incumbent.cache_key] if incumbent else [])]
        kept = {key: records.pack(key) for key in keys}
        result = worker.measure.remote(job.request, job.cache_key, kept)
        self._tasks[job.cache_key] = _Task(worker, result, claim)

    def _collect(self, job: Job, task: _Task) -> None:
        """Keep what a worker returned, or why it returned nothing."""
        try:
            packed, error = self._ray.get(task.result)
        except self._ray.exceptions.RayError as gone:  # it died, for example for lack of memory
            self._results.fail(job, gone)
            self._workers.remove(task.worker)
            self._ray.kill(task.worker)
            self._hire()
            return
        self._free.append(task.worker)
        self._results.store.records.unpack(job.cache_key, packed)
        if error:
            raise SettingError("workers.name", "ray", error)
        pruned = self._results.pruned(job)
        if pruned:
            self._progress.skip(job.size - pruned.n)

    def wait(self) -> None:
        """Wait for a worker, and update the bar now and then."""
        if not self._tasks:
            time.sleep(WAIT)
            return
        self._ray.wait([task.result for task in self._tasks.values()], timeout=WAIT)
        if not self._progress.bar.disable and time.monotonic() - self._asked > 1:
            self._asked = time.monotonic()
            asked = [task.worker.seen.remote() for task in self._tasks.values()]
            with suppress(self._ray.exceptions.RayError):  # it is busy, or gone, which its job will tell
                self._progress.advance(sum(self._ray.get(asked, timeout=WAIT)))

    def close(self) -> None:
        """Let the running batches end, keep them, and end the workers."""
        if not self._ray.is_initialized():
            return
        try:
            for worker in self._workers:
                worker.stop.remote()
            for cache_key, task in self._tasks.items():
                with task.claim, suppress(self._ray.exceptions.RayError):
                    self._results.store.records.unpack(cache_key, self._ray.get(task.result)[0])
        finally:
            self._tasks, self._workers, self._free = {}, [], []
            self._ray.shutdown()
