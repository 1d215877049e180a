"""MLflow: every run is logged into one SQLite store under the output folder, with a status that is always true.

A study is a parent run, its trials are children. Only swept settings are logged as params; the whole configuration and
the samples are artifacts. Runs are addressed by id through `MlflowClient`, never through MLflow's global active run.
"""

import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

from tdrs.settings import check_choice

KINDS = ("mlflow", "none")
for _name in ("mlflow", "alembic"):  # creating the store is no news
    logging.getLogger(_name).setLevel(logging.WARNING)


class Run:
    """One run that is being logged; without a client it logs nothing."""

    def __init__(self, client: MlflowClient | None, run_id: str) -> None:
        self.client = client
        self.id = run_id

    def params(self, values: Mapping[str, object]) -> None:
        if self.client:
            self.client.log_batch(self.id, params=[Param(name, str(value)) for name, value in values.items()])

    def metrics(self, values: Mapping[str, float]) -> None:
        if self.client:
            now = get_current_time_millis()
            self.client.log_batch(self.id, metrics=[Metric(name, value, now, 0) for name, value in values.items()])

    def artifacts(self, folder: Path) -> None:
        if self.client:
            self.client.log_artifacts(self.id, str(folder))

    def describe(self, text: str) -> None:
        if self.client:
            self.client.set_tag(self.id, "mlflow.note.content", text)

    def result(self, metrics: Mapping[str, float], folder: Path) -> None:
        """Metrics, and an evaluation's files as artifacts."""
        self.metrics(metrics)
        self.artifacts(folder)


class Tracker:
    """The store of an output folder; `kind` none logs nothing."""

    def __init__(self, kind: str, output: Path) -> None:
        self.client: MlflowClient | None = None
        self._ui_command = ""
        self._root = output.resolve()
        if kind == "mlflow":
            self._root.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{self._root}/mlflow.db"
            self.client = MlflowClient(tracking_uri=uri)
            self._ui_command = f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"

    def next_steps(self, experiment: str) -> list[str]:
        """What to type and open to look at an experiment's runs; nothing without a store."""
        if not self.client:
            return []
        page = f"#/experiments/{self._experiment(experiment)}/runs?workflowType=machine_learning"
        return [f"next:    {self._ui_command}", f"         then open http://127.0.0.1:5000/{page}"]

    def _experiment(self, name: str) -> str:
        assert self.client
        found = self.client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        return str(
            self.client.create_experiment(
                name,
                artifact_location=(self._root / "mlartifacts" / name).as_uri(),
                tags={"mlflow.experimentKind": "custom_model_development"},  # opens at its runs, not at LLM traces
            )
        )

    def resume(self, run_id: str | None) -> bool:
        """Whether a run of this id is in the store; its children left RUNNING by a killed process become KILLED."""
        if not self.client or not run_id:
            return False
        try:
            run = self.client.get_run(run_id)
        except MlflowException:
            return False
        for child in self._children(run.info.experiment_id, run_id):
            if child.info.status == "RUNNING":
                self.client.set_terminated(child.info.run_id, "KILLED")
        return True

    def _children(self, experiment_id: str, parent: str) -> list[Any]:
        assert self.client
        return list(
            self.client.search_runs(
                [experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'", max_results=10_000
            )
        )

    def finished_children(self, experiment: str, parent: str) -> set[str]:
        """Identities of the parent's children that finished."""
        if not self.client:
            return set()
        runs = self._children(self._experiment(experiment), parent)
        return {run.data.tags.get("identity", "") for run in runs if run.info.status == "FINISHED"}

    @contextmanager
    def run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        parent: str | None = None,
        run_id: str | None = None,
    ) -> Iterator[Run]:
        """A run that ends FINISHED, FAILED after an exception, or KILLED after Ctrl-C or SIGTERM.

        Args:
            parent: the id of the study's run.
            run_id: go on with this run instead of beginning a new one.
        """
        if not self.client:
            yield Run(None, "")
            return
        if run_id:
            self.client.update_run(run_id, status="RUNNING")
        else:
            links = {"mlflow.parentRunId": parent} if parent else {}
            created = self.client.create_run(
                self._experiment(experiment), tags={**tags, **links, "mlflow.source.name": "tdrs"}, run_name=name
            )
            run_id = str(created.info.run_id)
        status = "FAILED"
        try:
            yield Run(self.client, run_id)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except Exception as error:
            self.client.set_tag(run_id, "error", str(error)[:500])
            raise
        finally:
            self.client.set_terminated(run_id, status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def open_tracker(settings: Mapping[str, Any], output: Path) -> Iterator[Tracker]:
    """The store; while it is open, SIGTERM stops the program as Ctrl-C does, so that no run is left RUNNING.

    Raises:
        SettingError: `tracking.name` is unknown.
    """
    check_choice("tracking.name", settings.get("name"), KINDS)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield Tracker(settings["name"], output)
    finally:
        signal.signal(signal.SIGTERM, before)
