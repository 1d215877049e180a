"""MLflow: every study and evaluation is logged, with a status that is always true, from records that stay if it fails.

A study is a parent run, its trials are children, each written when it is over. Only swept settings are params; the
whole configuration and the samples are artifacts. A run is found again by its key, so logging twice writes once. A
store that cannot be reached stops nothing: the records are complete, and `python -m tdrs.study sync` writes the rest.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a server that is down is told from a slow one at once
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis
from sqlalchemy.exc import SQLAlchemyError

from tdrs.commands import command, study_command
from tdrs.records import Evaluation
from tdrs.settings import SettingError, check_choice, first_line

KINDS = ("mlflow", "none")
LONGEST = 240  # letters of a metric's name; the store takes 250
T = TypeVar("T")
for _name in ("mlflow", "alembic"):  # creating the store is no news
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # the error it logs is raised, too, and said once

# A process of its own, which outlives a kill -9: when the study's process is gone without a word, it ends its runs.
_GUARD = """
import sys
if sys.stdin.read() != "ended":
    from mlflow.tracking import MlflowClient
    client, parent = MlflowClient(sys.argv[1]), sys.argv[2]
    run = client.get_run(parent)
    where = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    for one in [run, *client.search_runs([run.info.experiment_id], where)]:
        if one.info.status == "RUNNING":
            client.set_terminated(one.info.run_id, "KILLED")
"""


class Tracker:
    """A store of runs.

    Args:
        kind: `mlflow`, or `none`, which logs nothing.
        output: the folder whose `mlflow.db` is the store.
        uri: another store, e.g. a server's address.

    Attributes:
        down: why logging stopped; "" while it works.
        uri: the store's address.
    """

    def __init__(self, kind: str, output: Path, uri: str | None = None) -> None:
        self.client: MlflowClient | None = None
        self.down = ""
        self._root = output.resolve()
        self._local = uri is None
        self.uri = uri or f"sqlite:///{self._root}/mlflow.db"
        self._known: dict[str, dict[str, tuple[str, str]]] = {}  # of each parent: key → run and status
        self._experiments: dict[str, str] = {}
        if kind == "mlflow":
            if self._local:
                try:
                    self._create()
                except (MlflowException, SQLAlchemyError, OSError) as error:
                    self._give_up(error)
                    return
            self.client = MlflowClient(tracking_uri=self.uri)

    def _create(self) -> None:
        """Make the local store if there is none: one process alone, and it is whole or not there."""
        self._root.mkdir(parents=True, exist_ok=True)
        store, new = self._root / "mlflow.db", self._root / "mlflow.db.new"
        with (self._root / "mlflow.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not store.exists():
                new.unlink(missing_ok=True)
                MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)
                new.replace(store)

    def _give_up(self, error: Exception) -> None:
        """Go on without a store, and say so."""
        self.down = first_line(error)
        self.client = None
        print(f"tracking stopped ({self.down}); the study goes on, and its records are kept", file=sys.stderr)

    def _attempt(self, action: Callable[[MlflowClient], T]) -> T | None:
        """What an action returns; None without a store, or when this one fails, which is said once."""
        if not self.client:
            return None
        try:
            return action(self.client)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            self._give_up(error)
            return None

    def next_steps(self, experiment: str, later: str = "") -> list[str]:
        """What to type and open to look at an experiment's runs; nothing without a store.

        Args:
            later: the command that logs what could not be logged now; of a study, `sync`, unless another is given.
        """
        found = self._attempt(lambda client: self._experiment(client, experiment))
        page = f"#/experiments/{found}/runs?workflowType=machine_learning"
        if self.down:
            return [f"tracking was unavailable; later:  {later or study_command('sync', experiment, self._root)}"]
        if not found:
            return []
        if not self._local:
            return [f"runs:    {self.uri.rstrip('/')}/{page}"]
        ui = command("mlflow", "ui", "--host", "127.0.0.1", "--backend-store-uri", self.uri)
        return [f"next:    {ui}", f"         then open http://127.0.0.1:5000/{page}"]

    def _experiment(self, client: MlflowClient, name: str) -> str:
        if name not in self._experiments:
            found = client.get_experiment_by_name(name)
            self._experiments[name] = (
                found.experiment_id
                if found
                else client.create_experiment(
                    name,
                    artifact_location=(self._root / "mlartifacts" / name).as_uri() if self._local else None,
                    tags={"mlflow.experimentKind": "custom_model_development"},  # opens at its runs, not at LLM traces
                )
            )
        return self._experiments[name]

    def _children(self, client: MlflowClient, experiment: str, parent: str) -> dict[str, tuple[str, str]]:
        """By key the runs under a parent ("" for those under none), with their statuses."""
        if parent not in self._known:
            where = f"tags.`mlflow.parentRunId` = '{parent}'" if parent else ""
            found: dict[str, tuple[str, str]] = {}
            token = None
            while True:
                page = client.search_runs(
                    [self._experiment(client, experiment)], where, max_results=1000, page_token=token
                )
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
        """A parent run, begun or gone on with; its id, "" without a store.

        It ends FINISHED, FAILED after an exception, KILLED after Ctrl-C, SIGTERM, or the death of this process.

        Args:
            name: the experiment.
            key: what it is found by when the study goes on.
        """
        parent = self._attempt(lambda client: self._begin(client, name, key, title, tags)) or ""
        if not parent:
            yield parent
            return
        guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, self.uri, parent],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        status = "FAILED"
        try:
            yield parent
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self._attempt(lambda client: client.set_terminated(parent, status))
            guard.communicate("ended" if self.client else "")

    def _begin(self, client: MlflowClient, name: str, key: str, title: str, tags: Mapping[str, str]) -> str:
        known = self._children(client, name, "").get(key)
        if known:
            client.update_run(known[0], status="RUNNING")
            return known[0]
        values = {**tags, "key": key, "mlflow.source.name": "tdrs"}
        run = client.create_run(self._experiment(client, name), tags=values, run_name=title)
        return str(run.info.run_id)

    def log(
        self,
        experiment: str,
        name: str,
        key: str,
        tags: Mapping[str, str],
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        folder: Path | None,
        parent: str = "",
        error: str = "",
        data: tuple[str, str, str, int] | None = None,
    ) -> None:
        """Write one run, whole: settings, metrics, an evaluation's files; nothing if it is there.

        Args:
            key: what it is found by.
            folder: of the evaluation, which is read if the run is to be written; None where there is no whole one.
            error: why it failed.
            data: the samples: data set, split, a hash of their content, how many.
        """

        def write(client: MlflowClient) -> None:
            known = self._children(client, experiment, parent)
            status = "FAILED" if error else "FINISHED"
            if known.get(key, ("", ""))[1] == status:
                return
            evaluation = Evaluation.read(folder) if folder else None
            end = int(1000 * evaluation.finished) if evaluation else get_current_time_millis()
            start = end - int(1000 * evaluation.seconds) if evaluation else end
            values = {**tags, "key": key, "mlflow.source.name": "tdrs"}
            if parent:
                values["mlflow.parentRunId"] = parent
            if error:
                values["error"] = error[:500]
            if key in known:
                run = known[key][0]
                client.log_batch(run, tags=[RunTag(k, v) for k, v in ({"error": ""} | values).items()])
            else:
                created = client.create_run(self._experiment(client, experiment), start, values, name)
                run = created.info.run_id
            logged = [Metric(k, value, end, 0) for k, value in _named(metrics).items()]
            logged += [Metric("running_accuracy", v, end, step) for step, v in _running(evaluation)]
            client.log_batch(run, logged, [Param(k, str(value)) for k, value in params.items()])
            if data:
                name_, split, digest, n = data
                source = {"dataset": name_, "split": split}
                made = Dataset(name_, digest[:12], "tdrs", json.dumps(source), profile=json.dumps({"num_rows": n}))
                client.log_inputs(run, [DatasetInput(made, [InputTag("mlflow.data.context", split)])])
            if folder:
                for file in ("config.yaml", "result.json", "samples.parquet"):
                    client.log_artifact(run, str(folder / file))
            client.set_terminated(run, status, end)
            known[key] = (run, status)

        self._attempt(write)

    def describe(self, run: str, text: str | None, metrics: Mapping[str, float], files: list[Path]) -> None:
        """A run's description (None leaves it), metrics and files; nothing without a store."""

        def write(client: MlflowClient) -> None:
            if text is not None:
                client.set_tag(run, "mlflow.note.content", text)
            now = get_current_time_millis()
            named = [Metric(name, value, now, 0) for name, value in _named(metrics).items()]
            for first in range(0, len(named), 1000):  # the store takes so many at a time
                client.log_batch(run, named[first : first + 1000])
            for file in files:
                client.log_artifact(run, str(file))

        if run:
            self._attempt(write)

    def keep(self, experiment: str, parent: str, keys: set[str]) -> None:
        """Delete the children of a parent run but those with these keys; MLflow can restore them until `mlflow gc`."""

        def remove(client: MlflowClient) -> None:
            known = self._children(client, experiment, parent)
            for key in set(known) - keys:
                client.delete_run(known.pop(key)[0])

        if parent:
            self._attempt(remove)

    def delete(self, experiment: str, keys: set[str]) -> int:
        """Delete parent runs by their keys, with their children; returns how many runs that were."""

        def remove(client: MlflowClient) -> int:
            parents = [run for key, (run, _) in self._children(client, experiment, "").items() if key in keys]
            runs = [run for parent in parents for run, _ in self._children(client, experiment, parent).values()]
            for run in [*runs, *parents]:
                client.delete_run(run)
            return len(runs) + len(parents)

        return self._attempt(remove) or 0


def metric_name(text: str, taken: Container[str], longest: int = LONGEST) -> str:
    """A name that the store takes for a metric, and that is not taken yet; for other letters than it takes, dots."""
    name = re.sub(r"^\.+", "_", re.sub(r"[^\w.\- ]", ".", text)) or "_"
    if len(name) <= longest and name not in taken:
        return name
    return f"{name[: longest - 9]}.{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under names that the store takes."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found[metric_name(name, found)] = value
    return found


def _running(evaluation: Evaluation | None, points: int = 20) -> list[tuple[int, float]]:
    """The accuracy of the first samples at up to so many places; the step is how many samples they are."""
    records = evaluation.records if evaluation else []
    stops = sorted({round(len(records) * (i + 1) / points) for i in range(points)} - {0})
    found = []
    for stop in stops:
        weights = sum(record.weight for record in records[:stop])
        found.append((stop, sum(record.score * record.weight for record in records[:stop]) / weights))
    return found


@contextmanager
def open_tracker(settings: Mapping[str, Any], output: Path) -> Iterator[Tracker]:
    """The store that `tracking` settings describe.

    Raises:
        SettingError: `tracking.name` is unknown, or `tracking.uri` no text.
    """
    check_choice("tracking.name", settings.get("name"), KINDS)
    uri = settings.get("uri")
    if uri is not None and not isinstance(uri, str):
        raise SettingError("tracking.uri", uri, "must be an address, or null")
    yield Tracker(settings["name"], output, uri)
