"""The study loop: measure settings once each, keep them in files, in Optuna and in MLflow, and go on after a stop.

A study's folder holds `study.journal` (Optuna), `trials/<identity>/` (records, result and configuration of each
evaluation) and, at the end, `study.json` (what its protocol found), from which figures are redrawn without a model.
An evaluation is found again by its identity, a hash of what decides its records; it never runs twice.
"""

import copy
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tdrs.benchmarks import Benchmark, Record, Samples
from tdrs.configuration import choice
from tdrs.evaluate import Evaluation, Plan, evaluate, plan
from tdrs.settings import SettingError, check_choice
from tdrs.statistics import paired_difference
from tdrs.tracking import Run, Tracker

from . import compare, coordinate

Search = coordinate.Coordinate | compare.Compare
PROTOCOLS: dict[str, Callable[[Mapping[str, Any]], Search]] = {
    "coordinate": coordinate.from_settings,
    "compare": compare.from_settings,
}

Settings = Mapping[str, Any]


def apply(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A copy of a plain configuration with dotted keys set; a group (`backbone`) is set by the name of its choice.

    Raises:
        SettingError: the configuration has no such key, or the group no such choice.
    """
    result = copy.deepcopy(dict(config))
    for key, value in settings.items():
        if isinstance(result.get(key), dict):
            result[key] = choice(key, value)
            continue
        *path, last = key.split(".")
        node: Any = result
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise SettingError("search", key, "no such setting in this configuration (is its stage off?)")
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
        check_choice("search.protocol", config["search"].get("protocol"), list(PROTOCOLS))
        self.search = PROTOCOLS[config["search"]["protocol"]](config["search"])
        self.evaluated = 0
        self.reused = 0
        self._samples: dict[tuple[Benchmark, str], Samples] = {}
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
        """Build every trial's settings and load each data set's splits, so that no error waits behind the model."""
        if isinstance(self.search, compare.Compare):
            planned = [self._plan(settings, "held_out") for _, _, settings in self.search.cases()]
            for one in {plan.dataset.__class__: plan for plan in planned}.values():
                self._load(one)
            return
        for settings in self.search.possible():
            self._plan(settings, "tuning")
        for split in benchmarks.SPLITS:
            self._load(self._plan(None, split))

    def _load(self, planned: Plan) -> Samples:
        """The samples of a plan, kept while the study lasts."""
        key = planned.dataset, planned.split
        if key not in self._samples:
            style = planned.backbone.prompt_style
            self._samples[key] = benchmarks.load(*key, planned.limit, style, f"preset.{planned.split}")
        return self._samples[key]

    def _model(self, planned: Plan) -> Backbone:
        """The backbone of a plan; one at a time is held."""
        if self._backbone is None or self._backbone.settings != planned.backbone:
            self._backbone = None
            self._backbone = backbones.load(planned.backbone)
        return self._backbone

    @property
    def notes(self) -> list[str]:
        """What there is to say about how the splits were read, such as rows that were left out."""
        found = [f"{split}: {note}" for (_, split), samples in self._samples.items() for note in samples.notes]
        return list(dict.fromkeys(found))

    def run(self) -> "Outcome | Table":
        """Run or resume the whole study; returns what its protocol found, also written to `study.json`."""
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

    def _run_or_resume(self) -> "Outcome | Table":
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
        tags = {"protocol": self.search.protocol}
        if isinstance(self.search, coordinate.Coordinate):  # the others have several
            tags |= {part: self.config[part]["name"] for part in ("backbone", "dataset", "intervention")}
        with self.tracker.run(self.name, " ".join([f"{self.name}:", *tags.values()]), tags, run_id=known) as self._run:
            self.optuna.set_user_attr("mlflow_run", self._run.id)
            found = self._cells(self.search) if isinstance(self.search, compare.Compare) else self._curves(self.search)
            found.save(self.folder / "study.json")
            self._run.describe("```\n" + "\n".join(found.table()) + "\n```")
        return found

    def _cells(self, search: compare.Compare) -> "Table":
        """Every method and the stock model at every place, on the held-out split."""
        cells: list[Cell] = []
        stock: list[Record] = []
        with tqdm(list(search.cases()), desc="held-out", unit="run") as bar:
            for method, place, settings in bar:
                label = " ".join([method, *map(str, place.values())])
                bar.set_postfix_str(label)
                planned = self._plan(settings, "held_out")
                found = self._trial(method, settings, planned, label=label)
                difference = None
                if method == compare.STOCK:
                    stock = found.records
                else:
                    difference = difference_to(stock, found.records)
                cells.append(Cell(method, place, planned.identity, len(found.records), found.metrics, difference))
        return Table(self.name, dict(self.config), cells)

    def _curves(self, search: coordinate.Coordinate) -> "Outcome":
        """The coordinate protocol on the tuning split, then its table on the held-out split."""
        stock = self._measure("stock", {}, self._plan(None, "tuning"))
        choices = {key: [s[key] for s in search.series.values()] for s in search.series.values() for key in s}
        with tqdm(total=search.trials, desc="tuning", unit="trial") as bar:

            def score(series: str, settings: Settings) -> dict[str, float]:
                bar.set_postfix_str(f"{_shown(settings)} {series}")
                metrics = self._trial(series, settings, self._plan(settings, "tuning"), choices).metrics
                bar.update()
                return metrics

            curves = coordinate.run(search, score)
        outcome = Outcome(self.name, dict(self.config), curves, stock.metrics, self._held_out(search, curves))
        for row in outcome.rows:
            name = f"held_out.{row.name.replace(', ', '.')}"
            values = {"accuracy": row.accuracy[0]}
            if row.difference:
                values |= zip(("difference", "difference_low", "difference_high"), row.difference, strict=True)
            self._run.metrics({f"{name}.{key}": value for key, value in values.items()})
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

    def _trial(
        self,
        name: str,
        settings: Settings,
        planned: Plan,
        choices: Mapping[str, list[Any]] | None = None,
        label: str = "",
    ) -> Evaluation:
        """The evaluation of a plan as one trial of the Optuna study.

        Args:
            choices: all values of the settings that are no numbers, where settings are Optuna's parameters; None keeps
                them as an attribute, so that another run of the study may have other ones.
            label: what the trial is called in MLflow; "" is its name and its numbers.
        """
        done = {
            trial.user_attrs.get("identity")
            for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        }
        if planned.identity in done:
            return self._measure(name, settings, planned, label)
        self.optuna.enqueue_trial({} if choices is None else dict(settings))
        trial = self.optuna.ask()
        if choices is not None:
            for key, value in settings.items():
                if isinstance(value, int | float):
                    trial.suggest_float(key, min(0.0, value), max(1e6, value))
                else:
                    trial.suggest_categorical(key, choices[key])
        trial.set_user_attr("settings", dict(settings))
        trial.set_user_attr("identity", planned.identity)
        try:
            evaluation = self._measure(name, settings, planned, label)
        except BaseException:
            self.optuna.tell(trial, state=TrialState.FAIL)
            raise
        self.optuna.tell(trial, evaluation.metrics["accuracy"])
        return evaluation

    def _measure(self, name: str, settings: Settings, planned: Plan, label: str = "") -> Evaluation:
        """The evaluation of a plan: read if it was done before, else run; logged as a child run either way."""
        folder = self.folder / "trials" / planned.identity
        done = (folder / "result.json").exists()
        if done and planned.identity in self._logged:
            self.reused += 1
            return Evaluation.read(folder)
        model = None if done else self._model(planned)
        tags = {"identity": planned.identity, "series": name, "split": planned.split}
        values = " / ".join(f"{value:g}" for value in settings.values() if isinstance(value, int | float))
        label = label or (f"{name}: {values}" if values else name)
        with self.tracker.run(self.name, label, tags, self._run.id) as child:
            child.params(settings)
            if done:
                self.reused += 1
                evaluation = Evaluation.read(folder)
            else:
                self.evaluated += 1
                assert model
                evaluation = evaluate(
                    model,
                    planned.dataset,
                    self._load(planned),
                    planned.intervention,
                    planned.batch_size,
                    planned.execution,
                    progress=label,
                )
                evaluation.save(folder, planned.config)
            child.result({f"{planned.split}.{key}": value for key, value in evaluation.metrics.items()}, folder)
        self._logged.add(planned.identity)
        return evaluation

    def _held_out(self, search: coordinate.Coordinate, curves: Sequence[coordinate.Curve]) -> list[Row]:
        """Stock, and for each series the paper's settings and the best ones, on the held-out split."""
        cases: list[tuple[str, Settings, Plan]] = [("stock", {}, self._plan(None, "held_out"))]
        for series in search.series:
            paper, best = search.paper(series), coordinate.best_settings(curves, series)
            cases.append((f"{series}, paper", paper, self._plan(paper, "held_out")))
            cases.append((f"{series}, tuned", best, self._plan(best, "held_out")))
        rows: list[Row] = []
        stock: list[Record] = []
        for name, settings, planned in tqdm(cases, desc="held-out", unit="run"):
            evaluation = self._measure(name, settings, planned)
            stock = stock or evaluation.records
            m = evaluation.metrics
            rows.append(
                Row(
                    name=name,
                    settings=dict(settings),
                    identity=planned.identity,
                    n=len(evaluation.records),
                    accuracy=(m["accuracy"], m["accuracy_low"], m["accuracy_high"]),
                    difference=difference_to(stock, evaluation.records) if rows else None,
                    clamped=evaluation.clamped,
                )
            )
        return rows


def difference_to(stock: Sequence[Record], edited: Sequence[Record]) -> tuple[float, float, float]:
    """The paired difference of two evaluations on the same samples, with its 95 % interval; images are clusters."""
    before, after = ([record.score for record in records] for records in (stock, edited))
    return paired_difference(before, after, [record.image_id for record in stock], [record.weight for record in stock])


@dataclass(frozen=True)
class Cell:
    """A method, or the stock model, at one place, on the held-out split; `difference` is to the stock model there."""

    method: str
    place: dict[str, Any]
    identity: str
    n: int
    metrics: dict[str, float]
    difference: tuple[float, float, float] | None


@dataclass(frozen=True)
class Table:
    """What a finished study of the protocol `compare` says."""

    name: str
    config: dict[str, Any]
    cells: list[Cell]

    def save(self, path: Path) -> None:
        _save(self, path)

    @classmethod
    def read(cls, path: Path) -> "Table":
        """What `save` wrote."""
        values = json.loads(path.read_text())
        for cell in values["cells"]:
            cell["difference"] = cell["difference"] and tuple(cell["difference"])
        return cls(values["name"], values["config"], [Cell(**cell) for cell in values["cells"]])

    def table(self) -> list[str]:
        """The cells as lines of text, place by place."""
        width = max(len(cell.method) for cell in self.cells) + 4
        lines = ["held-out split, settings fixed beforehand: accuracy [95 %], paired difference to stock [95 %]"]
        place = None
        for cell in self.cells:
            if cell.place != place:
                place = cell.place
                lines.append(f"{' '.join(f'{key}={value}' for key, value in place.items())}, n = {cell.n}")
            m = cell.metrics
            line = f"  {cell.method:{width}}{m['accuracy']:.3f} [{m['accuracy_low']:.3f}, {m['accuracy_high']:.3f}]"
            if cell.difference:
                line += "   {:+.3f} [{:+.3f}, {:+.3f}]".format(*cell.difference)
            lines.append(line)
        return lines


def _save(found: "Outcome | Table", path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(found), indent=1))
    partial.replace(path)


@dataclass(frozen=True)
class Outcome:
    """What a finished study of the protocol `coordinate` says.

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
        _save(self, path)

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
