"""The study loop: measure settings once each, keep them in files, in Optuna and in MLflow, and go on after a stop.

A study's folder holds `study.journal` (Optuna), `trials/<identity>/` (records, result and configuration of each
evaluation) and, at the end, `study.json` (curves and held-out table), from which figures are redrawn without a model.
An evaluation is found again by its identity, a hash of what decides its records; it never runs twice.
"""

import copy
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tqdm import tqdm

from tdrs import backbones, benchmarks
from tdrs.backbones import Backbone
from tdrs.benchmarks import Samples
from tdrs.evaluate import Evaluation, Plan, evaluate, plan
from tdrs.settings import SettingError
from tdrs.statistics import paired_difference
from tdrs.tracking import Run, Tracker

from . import coordinate

Settings = Mapping[str, Any]


def apply(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A copy of a plain configuration with dotted keys set.

    Raises:
        SettingError: the configuration has no such key.
    """
    result = copy.deepcopy(dict(config))
    for key, value in settings.items():
        *path, last = key.split(".")
        node: Any = result
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise SettingError("search.steps", key, "no such setting in this configuration (is its stage off?)")
        node[last] = value
    return result


def _shown(settings: Settings) -> str:
    """The numbers among settings, for people: "dc.w_min=3 dc.weight=1"."""
    return " ".join(
        f"{key.removeprefix('intervention.')}={value:g}"
        for key, value in settings.items()
        if isinstance(value, int | float)
    )


@dataclass(frozen=True)
class Row:
    """One row of the held-out table; `difference` is against stock on the same samples, with its 95 % interval."""

    name: str
    settings: dict[str, Any]
    identity: str
    n: int
    accuracy: tuple[float, float, float]
    difference: tuple[float, float, float] | None
    clamped: dict[str, tuple[int, int]]


class Study:
    """One study: a folder, an Optuna study, an MLflow parent run.

    Args:
        config: the plain configuration of `conf/sweep.yaml`.
        tracker: where runs are logged.

    Raises:
        SettingError: from `check`, before anything is loaded or written.
    """

    def __init__(self, config: Mapping[str, Any], tracker: Tracker) -> None:
        self.config = config
        self.tracker = tracker
        self.name = str(config["study"]["name"])
        self.folder = Path(config["output"]) / self.name
        self.search = coordinate.from_settings(config["search"])
        self.evaluated = 0
        self.reused = 0
        self._samples: dict[str, Samples] = {}
        self._backbone: Backbone | None = None
        self._logged: set[str] = set()
        self._run = Run(None, "")
        self.check()

    def _plan(self, settings: Settings | None, split: str) -> Plan:
        """The evaluation of settings, or of the stock model for None, on a split."""
        stock = {**self.config, "intervention": {"name": "none"}}
        values = stock if settings is None else apply(self.config, settings)
        return plan({**values, "split": split, "limit": self.config["preset"][split]})

    def check(self) -> None:
        """Build every trial's settings and load both splits, so that no error waits behind the model."""
        for settings in self.search.possible():
            self._plan(settings, "tuning")
        for split in benchmarks.SPLITS:
            planned = self._plan(None, split)
            style = planned.backbone.prompt_style
            self._samples[split] = benchmarks.load(planned.dataset, split, planned.limit, style, f"preset.{split}")

    @property
    def notes(self) -> list[str]:
        """What there is to say about how the splits were read, such as rows that were left out."""
        return [f"{split}: {note}" for split, samples in self._samples.items() for note in samples.notes]

    def run(self) -> "Outcome":
        """Run or resume the whole study; returns its curves and its held-out table, also written to `study.json`."""
        with self._alone():
            return self._run_or_resume()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the study's folder; the lock goes with the process, however that ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SettingError(
                    "study.name", self.name, "is being run by another process; wait, or name another"
                ) from None
            yield

    def _run_or_resume(self) -> "Outcome":
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(self.folder / "study.journal")))
        self.optuna = optuna.create_study(
            storage=storage, study_name=self.name, direction="maximize", load_if_exists=True
        )
        self._fail_abandoned_trials()
        parent = self.optuna.user_attrs.get("mlflow_run")
        known = parent if self.tracker.resume(parent) else None
        if known:
            self._logged = self.tracker.finished_children(self.name, known)
        names = [self.config[part]["name"] for part in ("backbone", "dataset", "intervention")]
        tags = dict(zip(("backbone", "dataset", "intervention"), names, strict=True))
        with self.tracker.run(self.name, f"{self.name}: {' '.join(names)}", tags, run_id=known) as self._run:
            self.optuna.set_user_attr("mlflow_run", self._run.id)
            stock = self._measure("stock", {}, self._plan(None, "tuning"))
            with tqdm(total=self.search.trials, desc="tuning", unit="trial") as self._bar:
                curves = coordinate.run(self.search, self._score)
            outcome = Outcome(self.name, dict(self.config), curves, stock.metrics, self._held_out(curves))
            outcome.save(self.folder / "study.json")
            for row in outcome.rows:
                name = f"held_out.{row.name.replace(', ', '.')}"
                values = {"accuracy": row.accuracy[0]}
                if row.difference:
                    values |= zip(("difference", "difference_low", "difference_high"), row.difference, strict=True)
                self._run.metrics({f"{name}.{key}": value for key, value in values.items()})
            self._run.describe("```\n" + "\n".join(outcome.table()) + "\n```")
        return outcome

    def _fail_abandoned_trials(self) -> None:
        """Trials a killed process left running or waiting; what they asked for is asked again."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.optuna.tell(trial.number, state=TrialState.FAIL)
        while self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.optuna.tell(self.optuna.ask(), state=TrialState.FAIL)

    def attach(self, *files: Path) -> None:
        """Log files, such as figures, as artifacts of the study's run."""
        if self._run.client:
            for file in files:
                self._run.client.log_artifact(self._run.id, str(file))

    def _score(self, series: str, settings: Settings) -> dict[str, float]:
        """Metrics on the tuning split: one trial of the Optuna study."""
        planned = self._plan(settings, "tuning")
        self._bar.set_postfix_str(f"{_shown(settings)} {series}")
        done = {
            trial.user_attrs.get("identity")
            for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        }
        if planned.identity in done:
            evaluation = self._measure(series, settings, planned)
        else:
            self.optuna.enqueue_trial(dict(settings))
            trial = self.optuna.ask()
            for key, value in settings.items():
                if isinstance(value, int | float):
                    trial.suggest_float(key, min(0.0, value), max(1e6, value))
                else:
                    trial.suggest_categorical(key, [str(s[key]) for s in self.search.series.values()])
            trial.set_user_attr("identity", planned.identity)
            try:
                evaluation = self._measure(series, settings, planned)
            except BaseException:
                self.optuna.tell(trial, state=TrialState.FAIL)
                raise
            self.optuna.tell(trial, evaluation.metrics["accuracy"])
        self._bar.update()
        return evaluation.metrics

    def _measure(self, name: str, settings: Settings, planned: Plan) -> Evaluation:
        """The evaluation of a plan: read if it was done before, else run; logged as a child run either way."""
        folder = self.folder / "trials" / planned.identity
        done = (folder / "result.json").exists()
        if done and planned.identity in self._logged:
            self.reused += 1
            return Evaluation.read(folder)
        if not done and self._backbone is None:
            self._backbone = backbones.load(planned.backbone)
        tags = {"identity": planned.identity, "series": name, "split": planned.split}
        values = " / ".join(f"{value:g}" for value in settings.values() if isinstance(value, int | float))
        with self.tracker.run(self.name, f"{name}: {values}" if values else name, tags, self._run.id) as child:
            child.params(settings)
            if done:
                self.reused += 1
                evaluation = Evaluation.read(folder)
            else:
                self.evaluated += 1
                assert self._backbone
                evaluation = evaluate(
                    self._backbone,
                    planned.dataset,
                    self._samples[planned.split],
                    planned.intervention,
                    planned.batch_size,
                    planned.execution,
                    progress=name,
                )
                evaluation.save(folder, planned.config)
            child.result({f"{planned.split}.{key}": value for key, value in evaluation.metrics.items()}, folder)
        self._logged.add(planned.identity)
        return evaluation

    def _held_out(self, curves: Sequence[coordinate.Curve]) -> list[Row]:
        """Stock, and for each series the paper's settings and the best ones, on the held-out split."""
        cases: list[tuple[str, Settings, Plan]] = [("stock", {}, self._plan(None, "held_out"))]
        for series in self.search.series:
            paper, best = self.search.paper(series), coordinate.best_settings(curves, series)
            cases.append((f"{series}, paper", paper, self._plan(paper, "held_out")))
            cases.append((f"{series}, tuned", best, self._plan(best, "held_out")))
        rows: list[Row] = []
        stock: list[float] = []
        for name, settings, planned in tqdm(cases, desc="held-out", unit="run"):
            evaluation = self._measure(name, settings, planned)
            scores = [record.score for record in evaluation.records]
            if not rows:
                stock = scores
            images = [record.image_id for record in evaluation.records]
            weights = [record.weight for record in evaluation.records]
            m = evaluation.metrics
            rows.append(
                Row(
                    name=name,
                    settings=dict(settings),
                    identity=planned.identity,
                    n=len(scores),
                    accuracy=(m["accuracy"], m["accuracy_low"], m["accuracy_high"]),
                    difference=paired_difference(stock, scores, images, weights) if rows else None,
                    clamped=evaluation.clamped,
                )
            )
        return rows


@dataclass(frozen=True)
class Outcome:
    """What a finished study says.

    Attributes:
        stock: metrics of the stock model on the tuning split.
        rows: the held-out table, stock first.
    """

    name: str
    config: dict[str, Any]
    curves: list[coordinate.Curve]
    stock: dict[str, float]
    rows: list[Row]

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        """What `save` wrote."""
        values = json.loads(path.read_text())
        curves = [
            coordinate.Curve(
                curve["series"], coordinate.Step(**curve["step"]), [coordinate.Point(**p) for p in curve["points"]]
            )
            for curve in values["curves"]
        ]
        rows = []
        for row in values["rows"]:
            row["accuracy"] = tuple(row["accuracy"])
            row["difference"] = row["difference"] and tuple(row["difference"])
            row["clamped"] = {name: tuple(counts) for name, counts in row["clamped"].items()}
            rows.append(Row(**row))
        return cls(values["name"], values["config"], curves, values["stock"], rows)

    def table(self) -> list[str]:
        """The held-out table as lines of text; settings were chosen on the tuning split."""
        preset = self.config["preset"]
        lines = [
            f"held-out split, n = {self.rows[0].n}; settings chosen on the tuning split, n = {preset['tuning']}",
            f"{'':20}{'accuracy [95 %]':22}{'difference to stock, paired [95 %]':38}settings",
        ]
        for row in self.rows:
            accuracy = "{:.3f} [{:.3f}, {:.3f}]".format(*row.accuracy)
            difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row.difference) if row.difference else "-"
            lines.append(f"{row.name:20}{accuracy:22}{difference:38}{_shown(row.settings)}")
        return lines
