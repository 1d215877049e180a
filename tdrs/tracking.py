"""Logging to MLflow: every study and every evaluation is a run, whose status is kept correct.

A study is a parent run and its trials are its children; each trial is written when it is over. Only the settings that a
study varies are params. The whole configuration and the samples are files of the run. A run is found again by its key,
so logging twice writes once. If the store cannot be reached, the study goes on: the records are complete without it,
and `python -m tdrs.study sync` writes the missing runs later. It also repairs: runs that lost their files get them
again, and a damaged `mlflow.db` is replaced.
"""

import hashlib
import json
import logging
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

from tdrs.addresses import check_tracking
from tdrs.commands import command, study_command
from tdrs.environment import quiet
from tdrs.lease import LostLease
from tdrs.results import FILES, Evaluation
from tdrs.settings import check_choice, first_line
from tdrs.stopping import uninterrupted
from tdrs.tracking_store import PATIENCE, Store, start_guard

KINDS = ("mlflow", "none")
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "INVALID_PARAMETER_VALUE")  # somebody deleted it meanwhile
LONGEST = 240  # letters of a metric's name; the store takes 250
T = TypeVar("T")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide log messages that say nothing new: that a store was made, or an error that is also raised."""
    with quiet("mlflow", "alembic"), quiet("mlflow.store.db.utils", level=logging.CRITICAL):
        yield


class LoggedSamples(NamedTuple):
    """The samples of a run: their data set and split, a hash of their content, how many there are."""

    dataset: str
    split: str
    digest: str
    n: int


@dataclass(frozen=True)
class Run:
    """What is logged of one evaluation.

    Attributes:
        experiment: MLflow's experiment.
        name: the run's title.
        key: what the run is found again by.
        folder: the folder of the finished evaluation, whose files are logged; None if there is none.
        parent: the id of the parent run; "" for none.
        error: why it failed; "" if it did not.
        samples: what was asked.
    """

    experiment: str
    name: str
    key: str
    tags: Mapping[str, str]
    params: Mapping[str, object]
    metrics: Mapping[str, float]
    folder: Path | None
    parent: str = ""
    error: str = ""
    samples: LoggedSamples | None = None

    @property
    def status(self) -> str:
        return "FAILED" if self.error else "FINISHED"

    def all_tags(self) -> dict[str, str]:
        """The tags, with those that MLflow and `Tracker` need."""
        found = {**self.tags, "key": self.key, "mlflow.source.name": "tdrs"}
        if self.parent:
            found["mlflow.parentRunId"] = self.parent
        if self.error:
            found["error"] = self.error[:500]
        return found


class Tracker:
    """A store of runs.

    Args:
        kind: `mlflow`, or `none`, which logs nothing.
        output: the folder of the local store.
        uri: another store, for example a server's address; None is the local one.
        repair: whether a damaged or older `mlflow.db` is repaired, and runs that lost their files get them again.

    Attributes:
        client: MLflow's client; None if nothing is logged.
        down: why logging stopped; "" while it works.
    """

    def __init__(self, kind: str, output: Path, uri: str | None = None, repair: bool = False) -> None:
        self.client: MlflowClient | None = None
        self.down = ""
        self._output = output
        self._repair = repair
        self._store = Store(output, uri, repair)
        self._known: dict[str, dict[str, tuple[str, str]]] = {}  # for each parent: key → run and status
        self._experiments: dict[str, str] = {}
        if kind == "mlflow":
            try:
                with _quiet():
                    self.client = self._store.open()
            except Exception as error:  # the libraries of a store raise errors of many kinds
                self._give_up(error)

    @property
    def uri(self) -> str:
        """The store's address."""
        return self._store.uri

    def _give_up(self, error: Exception) -> None:
        """Go on without a store, and say so."""
        self.down = first_line(error)
        self.client = None
        print(f"tracking stopped ({self.down}); the records are complete without it", file=sys.stderr)

    def _attempt(self, action: Callable[[MlflowClient], T]) -> T | None:
        """What an action returns; None without a store, or if the store fails, which is printed once."""
        for attempt in range(2):
            if not self.client:
                break
            try:
                with uninterrupted(), _quiet():
                    return action(self.client)
            except Exception as error:  # the libraries of a store raise errors of many kinds
                if attempt or not isinstance(error, MlflowException) or error.error_code not in _GONE:
                    self._give_up(error)
                self._known.clear()  # somebody may have deleted what they name
                self._experiments.clear()
        return None

    def next_steps(self, experiment: str, later: str = "") -> list[str]:
        """The commands and addresses that show the runs of an experiment; nothing without a store.

        Args:
            later: the command that logs what could not be logged now; "" is `sync` of the study of this name.
        """
        found = self._attempt(lambda client: self._experiment(client, experiment))
        page = f"#/experiments/{found}/runs?workflowType=machine_learning"
        if self.down:
            return [f"tracking was unavailable; later:  {later}"] if later else self.later(experiment)
        if not found:
            return []
        if not self._store.local:
            return [f"runs:    {self.uri.rstrip('/')}/{page}"]
        ui = command("mlflow", "ui", "--host", "127.0.0.1", "--backend-store-uri", self.uri)
        return [f"next:    {ui}", f"         then open http://127.0.0.1:5000/{page}"]

    def later(self, experiment: str) -> list[str]:
        """The commands that repair a store that was down, or write a study's runs to another one."""
        sync = study_command("sync", experiment, self._output.absolute())
        if self._store.local:
            return [f"tracking was unavailable; {'again' if self._repair else 'this repairs it'}:  {sync}"]
        return [
            f"tracking was unavailable; when it answers again:  {sync}",
            f"         or, into {self._output.absolute()}/mlflow.db:  {sync} tracking.uri=null",
        ]

    def _find(self, client: MlflowClient, name: str) -> str:
        """The number of an experiment; "" if there is none. A deleted one is restored with its runs."""
        if name not in self._experiments:
            found = client.get_experiment_by_name(name)
            if not found:
                return ""
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
                print(f"the experiment {name} was deleted in MLflow; it is restored", file=sys.stderr)
            self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _experiment(self, client: MlflowClient, name: str) -> str:
        found = self._find(client, name)
        if not found:
            found = self._experiments[name] = client.create_experiment(
                name,
                artifact_location=self._store.artifacts(name),
                tags={"mlflow.experimentKind": "custom_model_development"},  # opens at its runs, not at LLM traces
            )
        return found

    def _children(self, client: MlflowClient, experiment: str, parent: str) -> dict[str, tuple[str, str]]:
        """The runs under a parent by their keys, each with its status; the parent "" stands for runs without one."""
        if parent not in self._known:
            number = self._find(client, experiment)
            where = f"tags.`mlflow.parentRunId` = '{parent}'" if parent else ""
            found: dict[str, tuple[str, str]] = {}
            token = None
            while number:
                page = client.search_runs([number], where, max_results=1000, page_token=token)
                for run in page:
                    if "key" in run.data.tags and (parent or "mlflow.parentRunId" not in run.data.tags):
                        found[run.data.tags["key"]] = (run.info.run_id, run.info.status)
                token = page.token
                if not token:
                    break
            self._known[parent] = found
        return self._known[parent]

    @contextmanager
    def study(self, name: str, key: str, title: str, tags: Mapping[str, str]) -> Iterator[str]:
        """Begin or continue a parent run; its id, "" without a store.

        It ends as FINISHED, after an exception as FAILED, after Ctrl-C, SIGTERM or the death of this process as KILLED.

        Args:
            name: the experiment.
            key: what the run is found again by when the study continues.
        """
        with uninterrupted():  # no run without its guard
            leader = uuid.uuid4().hex
            begin = lambda client: self._begin(client, name, key, title, {**tags, "leader": leader})  # noqa: E731
            parent = self._attempt(begin) or ""
            guard = start_guard(self.uri, parent, leader) if parent else None
        if not parent:
            yield parent
            return
        status = "FAILED"
        try:
            yield parent
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except LostLease:  # the run belongs to another process now
            status = ""
            raise
        finally:
            if status:
                self._attempt(lambda client: client.set_terminated(parent, status))
            if guard and guard.stdin:
                with suppress(OSError), guard.stdin:
                    guard.stdin.write("ended" if self.client else "")  # else it ends what still runs
                if self.client:
                    with suppress(subprocess.TimeoutExpired):
                        guard.wait(PATIENCE)

    def _begin(self, client: MlflowClient, name: str, key: str, title: str, tags: Mapping[str, str]) -> str:
        known = self._children(client, name, "").get(key)
        if known:
            client.set_tag(known[0], "leader", tags["leader"])  # from here on the guard of a dead leader ends nothing
            client.update_run(known[0], status="RUNNING")
            return known[0]
        values = {**tags, "key": key, "mlflow.source.name": "tdrs"}
        run = client.create_run(self._experiment(client, name), tags=values, run_name=title)
        return str(run.info.run_id)

    def log(self, run: Run) -> None:
        """Write one run with its settings, metrics and files; nothing is written if it is there and complete.

        Raises:
            FileNotFoundError, Damaged: the evaluation cannot be read from its folder.
        """

        def missing(client: MlflowClient) -> bool:
            found, status = self._children(client, run.experiment, run.parent).get(run.key, ("", ""))
            whole = status == run.status
            if whole and run.folder and self._repair:
                whole = set(FILES) <= {file.path for file in client.list_artifacts(found)}
            return not whole

        if not self._attempt(missing):
            return
        evaluation = Evaluation.read(run.folder) if run.folder else None

        def write(client: MlflowClient) -> None:
            known = self._children(client, run.experiment, run.parent)
            end = int(1000 * evaluation.finished) if evaluation else get_current_time_millis()
            start = end - int(1000 * evaluation.seconds) if evaluation else end
            tags = run.all_tags()
            if run.key in known:
                number = known[run.key][0]
                client.log_batch(number, tags=[RunTag(k, v) for k, v in ({"error": ""} | tags).items()])
            else:
                number = client.create_run(self._experiment(client, run.experiment), start, tags, run.name).info.run_id
            logged = [Metric(k, value, end, 0) for k, value in _named(run.metrics).items()]
            logged += [Metric("running_accuracy", v, end, step) for step, v in _running(evaluation)]
            client.log_batch(number, logged, [Param(k, str(value)) for k, value in run.params.items()])
            if run.samples:
                client.log_inputs(number, [_input(run.samples)])
            if run.folder:
                for file in FILES:
                    client.log_artifact(number, str(run.folder / file))
            client.set_terminated(number, run.status, end)
            known[run.key] = (number, run.status)

        self._attempt(write)

    def describe(self, run: str, text: str | None, metrics: Mapping[str, float], files: list[Path]) -> None:
        """Write a run's description (None keeps it), metrics and files; nothing without a store."""

        def write(client: MlflowClient) -> None:
            if text is not None:
                client.set_tag(run, "mlflow.note.content", text)
            now = get_current_time_millis()
            named = [Metric(name, value, now, 0) for name, value in _named(metrics).items()]
            for first in range(0, len(named), 1000):  # the most that the store takes at a time
                client.log_batch(run, named[first : first + 1000])
            for file in files:
                client.log_artifact(run, str(file))

        if run:
            self._attempt(write)

    def keep(self, experiment: str, parent: str, keys: set[str]) -> None:
        """Delete the children of a parent run except those with these keys. MLflow can restore them."""

        def remove(client: MlflowClient) -> None:
            known = self._children(client, experiment, parent)
            for key in set(known) - keys:
                client.delete_run(known.pop(key)[0])

        if parent:
            self._attempt(remove)

    def delete(self, experiment: str, keys: set[str]) -> int:
        """Delete parent runs by their keys, with their children; returns the number of deleted runs."""

        def remove(client: MlflowClient) -> int:
            there = client.get_experiment_by_name(experiment)
            if not there or there.lifecycle_stage == "deleted":
                return 0
            parents = [run for key, (run, _) in self._children(client, experiment, "").items() if key in keys]
            runs = [run for parent in parents for run, _ in self._children(client, experiment, parent).values()]
            for run in [*runs, *parents]:
                client.delete_run(run)
            return len(runs) + len(parents)

        return self._attempt(remove) or 0


def metric_name(text: str, taken: Container[str], longest: int = LONGEST) -> str:
    """A name for a metric that the store accepts and that is not taken. Dots stand for letters that it refuses."""
    name = re.sub(r"^\.+", "_", re.sub(r"[^\w.\- ]", ".", text)) or "_"
    if len(name) <= longest and name not in taken:
        return name
    return f"{name[: longest - 9]}.{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under names that the store accepts."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found[metric_name(name, found)] = value
    return found


def _input(samples: LoggedSamples) -> DatasetInput:
    """The samples as MLflow's data set."""
    source = json.dumps({"dataset": samples.dataset, "split": samples.split})
    profile = json.dumps({"num_rows": samples.n})
    made = Dataset(samples.dataset, samples.digest[:12], "tdrs", source, profile=profile)
    return DatasetInput(made, [InputTag("mlflow.data.context", samples.split)])


def _running(evaluation: Evaluation | None, points: int = 20) -> list[tuple[int, float]]:
    """The accuracy of the first n samples, as (n, accuracy), at up to `points` values of n."""
    records = evaluation.records if evaluation else []
    stops = sorted({round(len(records) * (i + 1) / points) for i in range(points)} - {0})
    found = []
    for stop in stops:
        weights = sum(record.weight for record in records[:stop])
        found.append((stop, sum(record.score * record.weight for record in records[:stop]) / weights))
    return found


@contextmanager
def open_tracker(settings: Mapping[str, Any], output: Path, repair: bool = False) -> Iterator[Tracker]:
    """The store that the `tracking` settings name; `repair` as in `Tracker`.

    Raises:
        SettingError: `tracking.name` is unknown, or `tracking.uri` no address.
    """
    check_choice("tracking.name", settings.get("name"), KINDS)
    check_tracking(settings.get("uri"))
    yield Tracker(settings["name"], output, settings.get("uri"), repair)
