"""Trials as tasks of Ray, on this machine or on a cluster: `workers=ray`.

A worker is an actor: it has its GPU, or its share of the cores, to itself, keeps the model between trials, and brings
what it measured as files. The process that runs the study claims the evaluations and keeps the files. The nodes of a
cluster need tdrs, and the weights and data under the names that the configuration has.
"""

import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tdrs.backbones.features import Features
from tdrs.evaluation import gib, other_metrics
from tdrs.lease import Lease
from tdrs.records import Records
from tdrs.results import asked_of
from tdrs.settings import SettingError, check_number

from .engine import WAIT, Engine, Job
from .trials import Request, Trial

OBJECTS = 256 * 2**20  # bytes of shared memory for what workers bring


class _Counting(Engine):
    """An engine that says how many samples it has asked since it was last read."""

    seen = 0

    def _after(self, count: int) -> None:
        self.seen += count
        self.stop.check()


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
        features = Features(Path(config["output"]) / "features", gib(config["features_gib"]))
        self._engine = _Counting(config, self._records, features)

    def measure(self, request: Request, cache_key: str, kept: bytes) -> tuple[bytes, str]:
        """An evaluation's files, begun or gone on with, and what is wrong with a setting, if that ended it.

        Args:
            cache_key: what the study knows it by; it is the same here if weights, data and versions are.
            kept: what there is of it.
        """
        error = ""
        try:
            if self._engine.job(request).cache_key != cache_key:
                error = "a worker's weights, data or version of tdrs differ from those of this machine"
                return b"", error
            self._records.unpack(cache_key, kept)
            self._engine.measure([request])
        except SettingError as problem:
            error = str(problem)
        except KeyboardInterrupt:  # asked to stop
            pass
        return self._records.pack(cache_key), error

    def stop(self) -> None:
        """End at the next batch."""
        self._engine.stop.requested = True

    def seen(self) -> int:
        """How many samples were asked since the last call."""
        count, self._engine.seen = self._engine.seen, 0
        return count


@dataclass
class _Task:
    """A trial that is being measured: who measures, what will come of it, and our claim on it."""

    worker: Any
    result: Any
    lease: Lease


class RayEngine(Engine):
    """An engine whose trials are measured by Ray's actors; the first trial starts them.

    Raises:
        SettingError: a setting of `workers` is not allowed, or Ray is not installed.
    """

    def __init__(self, config: dict[str, Any], *given: Any) -> None:
        super().__init__(config, *given)
        self._settings = config["workers"]
        check_number("workers.count", self._settings["count"], 1, whole=True)
        check_number("workers.num_gpus", self._settings["num_gpus"], 0)
        address = self._settings["address"]
        if address is not None and not isinstance(address, str):
            raise SettingError("workers.address", address, "must be a cluster's address, such as auto, or null")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming default
        try:
            import ray
        except ModuleNotFoundError:
            raise SettingError("workers.name", "ray", "needs the package ray: pip install 'tdrs[ray]'") from None
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
            where |= {"num_cpus": count * threads, "object_store_memory": OBJECTS, "_node_ip_address": "127.0.0.1"}
            where |= {"include_dashboard": False}
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
        there = ray.cluster_resources()
        for name, each, key in (("GPU", gpus, "num_gpus"), ("CPU", threads, "count")):
            if count * each > there.get(name, 0):
                given, allowed = self._settings[key], f"{count} workers need {count * each:g} {name}s"
                raise SettingError(f"workers.{key}", given, f"{allowed}, Ray has {there.get(name, 0):g}")
        for _ in range(count):
            self._hire()

    def _hire(self) -> None:
        """One more worker; what it is given waits until it has started."""
        config = {**self.config, "output": str(Path(self.config["output"]).resolve())}
        # two calls at a time: one measures, the other says how far it is, or stops it
        gpus = self._settings["num_gpus"]
        actor = self._ray.remote(num_cpus=self._threads, num_gpus=gpus, max_concurrency=2)(Worker)
        worker = actor.remote(config, self._threads)
        self._workers.append(worker)
        self._free.append(worker)

    def _run(self, job: Job) -> Trial | None:
        """The trial, if a worker has brought it; else None, and a worker that is free is given it."""
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
        with task.lease:
            self._collect(job, task)
            return self._found(job)

    def _give(self, job: Job) -> None:
        """Let a worker measure a trial, if nobody does."""
        try:
            lease = self.store.claim(job.cache_key)
        except OSError as error:
            self._fail(job, error)
            return
        if lease is None:
            return
        if self._found(job):  # somebody was through with it just now
            lease.release()
            return
        unlike = lambda evaluation: other_metrics(job.plan.dataset, evaluation)  # noqa: E731
        self.store.mend(job.cache_key, asked_of(job.samples), job.plan.batch_size, unlike=unlike)
        self._show(job)
        worker = self._free.pop()
        result = worker.measure.remote(job.request, job.cache_key, self.store.pack(job.cache_key))
        self._tasks[job.cache_key] = _Task(worker, result, lease)

    def _collect(self, job: Job, task: _Task) -> None:
        """Keep what a worker brought, or why it brought nothing."""
        try:
            packed, error = self._ray.get(task.result)
        except self._ray.exceptions.RayError as gone:  # it died, such as for want of memory
            self._fail(job, gone)
            self._workers.remove(task.worker)
            self._ray.kill(task.worker)
            self._hire()
            return
        self._free.append(task.worker)
        self.store.unpack(job.cache_key, packed)
        if error:
            raise SettingError("workers.name", "ray", error)
        if self._pruned(job):
            self._ended_early(job)

    def _pause(self) -> None:
        """Wait for a worker, and say now and then how far all are."""
        if not self._tasks:
            super()._pause()
            return
        self._ray.wait([task.result for task in self._tasks.values()], timeout=WAIT)
        if not self.bar.disable and time.monotonic() - self._asked > 1:
            self._asked = time.monotonic()
            asked = [task.worker.seen.remote() for task in self._tasks.values()]
            with suppress(self._ray.exceptions.RayError):  # it is busy, or gone, which its trial will tell
                self.bar.update(sum(self._ray.get(asked, timeout=WAIT)))

    def close(self) -> None:
        """Let the batches end that are being asked, keep them, and send the workers home."""
        super().close()
        if not self._ray.is_initialized():
            return
        try:
            for worker in self._workers:
                worker.stop.remote()
            for cache_key, task in self._tasks.items():
                with task.lease, suppress(self._ray.exceptions.RayError):
                    self.store.unpack(cache_key, self._ray.get(task.result)[0])
        finally:
            self._tasks, self._workers, self._free = {}, [], []
            self._ray.shutdown()
