"""A study: a protocol, run once, however often it is stopped; its trials in files, in Optuna and in MLflow.

    outputs/records/                      every evaluation, shared by all studies (`tdrs/records.py`)
    outputs/studies/NAME/config.yaml      what was asked
                         trials.jsonl     a line a finished trial, in the protocol's order
                         study.journal    the same trials as an Optuna study, for its dashboard and its analyses
                         study.json       what the protocol found, from which figures are redrawn without a model

The process that holds the folder's lock leads: it alone writes these files and the store of runs. Another one with the
same command joins: it measures, and leads when the first is gone. Trials are written to Optuna and MLflow when they are
over, so a process that dies leaves none of them running.
"""

import fcntl
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from tqdm import tqdm

from tdrs.backbones.features import Features
from tdrs.configuration import with_settings
from tdrs.environment import environment
from tdrs.evaluate import gib
from tdrs.interventions.tdrs import READINGS
from tdrs.records import Records, append_line, read_lines
from tdrs.settings import check_choice
from tdrs.stopping import Stop
from tdrs.tracking import Tracker

from . import compare, coordinate, grid, sampled
from .engine import WAIT, Engine, Preview
from .search import Search
from .trials import COMPLETE, FAILED, PRUNED, STOCK, Outcome, Request, Trial


@dataclass(frozen=True)
class Protocol:
    """A protocol: its checked settings from plain ones, and its run."""

    from_settings: Callable[[Mapping[str, Any]], Search]
    run: Callable[[Any, Engine, str], Outcome]


PROTOCOLS = {
    "coordinate": Protocol(coordinate.from_settings, coordinate.run),
    "grid": Protocol(grid.from_settings, grid.run),
    "sampled": Protocol(sampled.from_settings, sampled.run),
    "compare": Protocol(compare.from_settings, compare.run),
}
_NOT_DECISIVE = ("output", "tracking", "study", "features_gib", "dry_run")


def study_folder(output: Path, name: str) -> Path:
    """Where a study is kept."""
    return output / "studies" / name


class Log:
    """A study's trials, in three places: a file, Optuna, MLflow. Writing one twice writes it once.

    Args:
        config: the study's plain configuration.
        key: what tells it from a study of the same name over other settings, whose trials are not its own.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], key: str, tracker: Tracker, records: Records) -> None:
        self.folder = folder
        self.key = key
        self.tracker = tracker
        self.parent = ""
        self._name = str(config["study"]["name"])
        self._store = records
        self._search = PROTOCOLS[config["search"]["protocol"]].from_settings(config["search"])
        self._objective = getattr(self._search, "objective", "accuracy")
        self._config = dict(config)
        self._lines: dict[str, Trial] = {}
        self._optuna: optuna.Study | None = None
        self._told: set[str] = set()

    def open(self) -> None:
        """Read what there is; start anew where the folder holds a study over other settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.yaml"
        if not path.exists() or study_key(yaml.safe_load(path.read_text())) != self.key:
            for name in ("trials.jsonl", "study.json", "study.journal"):
                (self.folder / name).unlink(missing_ok=True)
        path.write_text(yaml.safe_dump(self._config, sort_keys=False))
        self._lines = {trial.key: trial for trial in read_trials(self.folder)}
        self._open_optuna()

    def _open_optuna(self) -> None:
        """The Optuna study; it is made again from the trials where its file is damaged."""
        path = self.folder / "study.journal"
        for attempt in range(2):
            try:
                self._optuna = load_optuna(path, self._name, create=True)
                self._told = {
                    trial.user_attrs["key"]
                    for trial in self._optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                }
                return
            except Exception:  # whatever a torn file makes the library raise
                if attempt:
                    raise
                shutil.move(path, path.with_suffix(".damaged"))

    def add(self, trial: Trial) -> None:
        """Write a trial wherever it is missing."""
        known = self._lines.get(trial.key)
        if known is None or known.status != trial.status:
            append_line(self.folder / "trials.jsonl", json.dumps(asdict(trial)))
            self._lines[trial.key] = trial
        if trial.split == "tuning" and trial.key not in self._told:
            self._tell_optuna(trial)
        self.track(trial)

    def _tell_optuna(self, trial: Trial) -> None:
        assert self._optuna
        params = self._search.params(trial)
        distributions = self._search.distributions()
        attributes = {
            "key": trial.key,
            "identity": trial.identity,
            "name": trial.name,
            "place": trial.place,
            "settings": trial.settings,
            "pruned": trial.status == PRUNED,
            "reason": trial.reason,
        }
        failed = trial.status == FAILED
        self._optuna.add_trial(
            create_trial(
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                value=None if failed else trial.metrics[self._objective],
                params=params,
                distributions={key: distributions[key] for key in params},
                user_attrs=attributes,
            )
        )
        if not failed:
            self._told.add(trial.key)

    def track(self, trial: Trial) -> None:
        """Write a trial to the store of runs, if it is not there."""
        request = Request(trial.name, trial.split, trial.settings, trial.place)
        tags = _tags(with_settings(self._config, request.merged))
        tags |= {"identity": trial.identity, "series": trial.name, "split": trial.split, "status": trial.status}
        whole = trial.status == COMPLETE and self._store.done(trial.identity)
        self.tracker.log(
            experiment=self._name,
            name=request.label,
            data=(tags["dataset"], trial.split, trial.samples, trial.n),
            key=trial.key,
            tags=tags,
            params={} if trial.name == STOCK else trial.settings,
            metrics={f"{trial.split}.{name}": value for name, value in trial.metrics.items()},
            folder=self._store.path(trial.identity) if whole else None,
            parent=self.parent,
            error=trial.reason if trial.status == FAILED else "",
        )


def load_optuna(path: Path, name: str, create: bool = False) -> optuna.Study:
    """A study's trials on the tuning split as an Optuna study."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    if create:
        return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    return optuna.load_study(storage=storage, study_name=name)


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a study, in the protocol's order; of one that was tried again, the last line."""
    found: dict[str, Trial] = {}
    for line in read_lines(folder / "trials.jsonl"):
        trial = Trial.of(json.loads(line))
        found[trial.key] = trial
    return list(found.values())


def study_key(config: Mapping[str, Any]) -> str:
    """A hash of what a study asks: not of where it is kept."""
    values = {name: value for name, value in config.items() if name not in _NOT_DECISIVE}
    return hashlib.sha256(json.dumps([config["study"]["name"], values], sort_keys=True).encode()).hexdigest()[:16]


class Study:
    """One study.

    Args:
        config: the plain configuration of `conf/sweep.yaml`.
        tracker: where runs are logged.
        stop: whether somebody asked to stop.
        command: what was typed.

    Raises:
        SettingError: a setting, or a data set, is not to be had; nothing is loaded or written by then.
    """

    def __init__(self, config: dict[str, Any], tracker: Tracker, stop: Stop | None = None, command: str = "") -> None:
        self.config = config
        self.command = command
        self.name = str(config["study"]["name"])
        output = Path(config["output"])
        self.folder = study_folder(output, self.name)
        self.tracker = tracker
        check_choice("search.protocol", config["search"].get("protocol"), list(PROTOCOLS))
        self.protocol = PROTOCOLS[config["search"]["protocol"]]
        self.search = self.protocol.from_settings(config["search"])
        self.records = Records(output / "records")
        self.preview = Preview(config, self.records)
        for request in self.search.possible(config["dataset"]["name"]):
            self.preview.job(request)
        self.protocol.run(self.search, self.preview, self.name)
        self.log = Log(self.folder, config, study_key(config), tracker, self.records)
        features = Features(output / "features", gib(config["features_gib"]))
        self.engine = Engine(config, self.records, features, stop, self._report, self.preview.samples)
        self._leads = False
        self._unlogged = False

    def _report(self, trial: Trial) -> None:
        if not self._leads:
            return
        try:
            self.log.add(trial)
        except OSError as error:
            if not self._unlogged:
                print(f"the study's log cannot be written ({error}); measuring goes on", file=sys.stderr)
            self._unlogged = True

    def dry_run(self) -> list[str]:
        """What would run, as lines of text."""
        preview = self.preview
        lines = [
            f"{preview.asked} trials asked for, {preview.asked - len(preview.planned)} found done or alike; to run:"
        ]
        for job in preview.planned.values():
            lines.append(f"  {job.identity}  {job.request.split:9} n = {len(job.samples):<5} {job.request.label}")
        if self.config["search"]["protocol"] in ("coordinate", "sampled"):
            lines.append("later settings depend on earlier results: where those are missing, these are first guesses")
        seconds, unknown = preview.seconds()
        known = len(preview.planned) - unknown
        if known:
            lines.append(f"estimate by like evaluations kept here: {seconds / 60:.1f} minutes for {known} of them")
        if unknown:
            lines.append(f"no like evaluation is kept here for {unknown}: no estimate for these")
        return lines

    def run(self) -> Outcome:
        """Run the study, go on with it, or join it; returns what its protocol found.

        Raises:
            KeyboardInterrupt: somebody asked to stop; the same command goes on.
        """
        with self._bar() as self.engine.bar:
            lock = self._lock()
            if lock is None:
                print(f"{self.name} is being run by another process; joining it", file=sys.stderr)
                self.protocol.run(self.search, self.engine, self.name)
            while lock is None:
                self.engine.stop.check()
                time.sleep(WAIT)
                lock = self._lock()
            with lock:  # it goes with the process, however that ends
                self._leads = True
                return self._run()

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        total = sum(len(job.samples) for job in self.preview.planned.values())
        self.engine.total = len(self.preview.planned)
        with tqdm(total=total, unit="sample", disable=None if total else True, dynamic_ncols=True) as bar:
            yield bar

    def _lock(self) -> TextIO | None:
        """The folder's lock, or None if another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock

    def _run(self) -> Outcome:
        self.log.open()
        surroundings = environment()
        tags = {**_tags(self.config), "commit": surroundings["commit"], "device": surroundings["device"]}
        with self.tracker.study(self.name, self.log.key, self.name, tags) as self.log.parent:
            outcome = self.protocol.run(self.search, self.engine, self.name)
            tuned = any(row.budget for row in outcome.rows)
            overlap = self.engine.overlap if tuned else 0
            outcome = replace(outcome, command=self.command, environment=surroundings, overlap=overlap)
            outcome.save(self.folder / "study.json")
            describe(self.tracker, self.log.parent, outcome)
        return outcome

    def attach(self, files: list[Path]) -> None:
        """Log files, such as figures, as artifacts of the study's run."""
        self.tracker.describe(
            self.log.parent, None, {}, [*files, self.folder / "study.json", self.folder / "config.yaml"]
        )


def _tags(config: Mapping[str, Any]) -> dict[str, str]:
    """What a configuration is about: protocol, backbone, dataset, method and its readings."""
    method = config["intervention"]
    found = {"protocol": config["search"]["protocol"], "method": method["name"]}
    found |= {part: config[part]["name"] for part in ("backbone", "dataset")}
    return found | {f"reading.{name}": str(value) for name, value in method.items() if name in READINGS}


def describe(tracker: Tracker, parent: str, outcome: Outcome) -> None:
    """Put an outcome's result, its table and its held-out numbers on the study's run."""
    metrics: dict[str, float] = {}
    for row in outcome.rows:
        name = ".".join(["held_out", *(str(value) for value in row.place.values()), row.name.replace(", ", ".")])
        name = "".join(letter if letter.isalnum() or letter in "._- " else "." for letter in name)
        if row.metrics:
            metrics[f"{name}.accuracy"] = row.metrics["accuracy"]
        if row.difference:
            values = zip(("", "_low", "_high"), row.difference, strict=True)
            metrics |= {f"{name}.difference{end}": value for end, value in values}
    text = [*_summary(outcome), "", f"`{outcome.command}`", "", "```", *outcome.table(), "```"]
    tracker.describe(parent, "\n".join(text), metrics, [])


def _summary(outcome: Outcome) -> list[str]:
    """The result in three lines: what was compared, the row furthest above the stock model, the one furthest below."""
    rows = [row for row in outcome.rows if row.difference]
    tuned = sum(row.budget > 0 for row in rows)
    lines = [outcome.warning] if outcome.warning else []
    lines += [
        f"{len(rows)} rows beside the stock model on the held-out split, {tuned} of them tuned on the tuning split"
    ]
    for word, row in zip(("highest", "lowest"), _extremes(rows), strict=False):
        assert row.difference
        value, low, high = (100 * number for number in row.difference)
        name = " ".join([*(str(value) for value in row.place.values()), row.name])
        lines.append(f"{word}: {name}, {value:+.1f} [{low:+.1f}, {high:+.1f}] points, n = {row.n}")
    return [f"{line}  " for line in lines]  # two blanks break the line


def _extremes(rows: list[Trial]) -> list[Trial]:
    """The rows with the largest and the smallest difference; none of none."""
    ordered = sorted(rows, key=lambda row: row.difference or (0, 0, 0))
    return [ordered[-1], ordered[0]] if ordered else []


def sync(folder: Path, tracker: Tracker, records: Records) -> int:
    """Write a study's trials wherever they are missing, from its files; returns how many trials it has."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    log = Log(folder, config, study_key(config), tracker, records)
    log.open()
    trials = read_trials(folder)
    with tracker.study(log._name, log.key, log._name, _tags(config)) as log.parent:
        for trial in trials:
            log.add(trial)
        if (folder / "study.json").exists():
            describe(tracker, log.parent, Outcome.read(folder / "study.json"))
    return len(trials)
