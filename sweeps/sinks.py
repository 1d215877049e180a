"""Where a study's trials are written: JSON lines, Optuna, MLflow. Writing a trial twice writes it once.

Trials are written when they are over, so a process that dies leaves none of them running.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tdrs import checked_file
from tdrs.addresses import JOURNAL
from tdrs.checked_file import Damaged
from tdrs.configuration import with_settings
from tdrs.interventions import label
from tdrs.interventions.tdrs import READINGS
from tdrs.records import Records
from tdrs.settings import first_line
from tdrs.tracking import LoggedSamples, Run, Tracker, metric_name

from . import protocol
from .folder import NO_TRIAL, TRIALS, move_other_study, new_replaced_folder, read_outcome, read_trials, study_key
from .storage import load_optuna, open_storage
from .store import Claim
from .trial import COMPLETE, FAILED, PRUNED, STOCK, Outcome, Request, Trial

ATTACHED = (".html", ".md", ".tex", ".csv", ".png", ".svg")  # files of a study's folder that are logged with its run
NOT_ATTACHED = "samples.html"  # it needs the folder beside it, which may have thousands of pictures


class Sink(Protocol):
    """Where trials are written."""

    def open(self) -> None:
        """Read what is there. What is damaged is set aside, with a message."""

    def add(self, trial: Trial) -> None:
        """Write a trial, if it is not there."""

    def keep(self, trials: Mapping[str, Trial], aside: Callable[[], Path]) -> None:
        """Keep these trials, by key, and no others. Files with others are moved to the folder that `aside` gives."""


class JsonLines:
    """A line a trial in `trials.jsonl`.

    Attributes:
        trials: those that are written, by key, in the protocol's order.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.trials: dict[str, Trial] = {}
        self._path = folder / TRIALS
        self._key = key

    def open(self) -> None:
        lines, faults = checked_file.read_lines(self._path, self._key)
        trials = [line for line in lines if _is_trial(line)]
        if len(trials) < len(lines):
            faults.append(f"{TRIALS} has {len(lines) - len(trials)} lines that are no trials of this version")
        if faults:
            aside = checked_file.keep_lines(self._path, trials, self._key)
            print(f"{self._path}: {faults[0]}; it is now {aside.name}, {len(trials)} trials are kept", file=sys.stderr)
        self.trials = {trial.key: trial for trial in map(Trial.of, trials)}

    def add(self, trial: Trial) -> None:
        known = self.trials.get(trial.key)
        line = self._line(trial)
        if known is None or line != self._line(known):
            checked_file.append_line(self._path, line)
            self.trials[trial.key] = trial

    def keep(self, trials: Mapping[str, Trial], aside: Callable[[], Path]) -> None:
        others = [trial for key, trial in self.trials.items() if key not in trials]
        if others:
            for trial in others:
                checked_file.append_line(aside() / TRIALS, self._line(trial))
            checked_file.write(self._path, "".join(self._line(trial) + "\n" for trial in trials.values()).encode())
            self.trials = dict(trials)

    def _line(self, trial: Trial) -> str:
        return checked_file.seal(asdict(trial), self._key)


def _is_trial(line: Mapping[str, Any]) -> bool:
    try:
        Trial.of(line)
    except NO_TRIAL:
        return False
    return True


class OptunaTrials:
    """The trials on the tuning split as an Optuna study, in `study.journal`, or in a storage if there is one.

    Args:
        lines: the same trials, which must be those of the journal.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], lines: JsonLines, storage: BaseStorage | None = None
    ) -> None:
        self._folder = folder
        self._journal = folder / "study.journal"
        self._name, self._key = str(config["study"]["name"]), study_key(config)
        self._search = protocol.from_settings(config["search"])
        self._storage = storage
        self._lines = lines
        self._study: optuna.Study | None = None
        self._told: set[str] = set()

    def open(self) -> None:
        checked_file.free(self._journal)
        checked_file.cut_torn_line(self._journal)
        for attempt in range(2):
            try:
                self._study = load_optuna(self._storage or self._folder, self._name, create=True)
                if self._storage:
                    self._study.set_user_attr("key", self._key)
                self._told = self._checked(self._study)
                return
            except Exception as error:  # whatever a damaged file makes the library raise
                if attempt or self._storage:
                    raise
                aside = checked_file.set_aside(self._journal)
                print(f"{self._journal}: {first_line(error)}; it is now {aside.name}, and made again", file=sys.stderr)

    def fault(self) -> str:
        """What is wrong with the journal; "" if nothing is, or if there is none. Writes nothing."""
        try:
            if self._journal.exists():
                self._checked(load_optuna(self._folder, self._name))
        except Exception as error:  # whatever a damaged file makes the library raise
            return first_line(error)
        return ""

    def _checked(self, study: optuna.Study) -> set[str]:
        """The keys of the complete trials; raises Damaged unless a journal's are those of the lines, each once."""
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        keys = {trial.user_attrs["key"] for trial in told}
        if self._storage:
            return keys
        if len(keys) < len(told):
            raise Damaged("a trial stands there twice")
        for trial in told:
            known = self._lines.trials.get(trial.user_attrs["key"])
            # a trial without a line was added before its line was written, or its line was damaged
            if known is not None and not self._same(known, trial):
                raise Damaged(f"trial {trial.number} is not the one of {TRIALS}")
        return keys

    def _same(self, trial: Trial, told: FrozenTrial) -> bool:
        value = trial.value(self._search.objective) if trial.metrics else None
        return (told.value, told.params, told.user_attrs) == (value, self._search.params(trial), _attributes(trial))

    def add(self, trial: Trial) -> None:
        """Add a trial on the tuning split, if it is not there."""
        if trial.split != "tuning" or trial.key in self._told:
            return
        assert self._study
        params = self._search.params(trial)
        distributions = self._search.distributions()
        failed = trial.status == FAILED
        self._study.add_trial(
            create_trial(
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                value=None if failed else protocol.objective_value(trial, self._search.objective),
                params=params,
                distributions={key: distributions[key] for key in params},
                user_attrs=_attributes(trial),
            )
        )
        if not failed:
            self._told.add(trial.key)

    def keep(self, trials: Mapping[str, Trial], aside: Callable[[], Path]) -> None:
        assert self._study
        if {trial.user_attrs["key"] for trial in self._study.get_trials(deepcopy=False)} <= set(trials):
            return
        if self._storage:
            optuna.delete_study(study_name=self._name, storage=self._storage)
        else:
            self._journal.rename(aside() / self._journal.name)
        self.open()
        for trial in trials.values():
            self.add(trial)


def _attributes(trial: Trial) -> dict[str, Any]:
    """The attributes of an Optuna trial, beside its parameters and its value."""
    names = ("key", "cache_key", "name", "condition", "settings", "reason")
    return {name: getattr(trial, name) for name in names} | {"pruned": trial.status == PRUNED}


def journal_fault(folder: Path, config: Mapping[str, Any]) -> str:
    """What is wrong with the journal in a study's folder; "" if nothing is. Writes nothing.

    Raises:
        SettingError: the configuration, or a line of `trials.jsonl`, is of another version.
    """
    lines = JsonLines(folder, study_key(config))
    if (folder / "study.journal").exists():
        lines.trials = read_trials(folder, study_key(config))
    return OptunaTrials(folder, config, lines).fault()


class MlflowRuns:
    """A run a trial in the store of runs, as children of the study's run.

    Attributes:
        parent: the study's run; "" without a store.
    """

    def __init__(self, tracker: Tracker, config: Mapping[str, Any], records: Records) -> None:
        self.tracker = tracker
        self.parent = ""
        self._name = str(config["study"]["name"])
        self._config = config
        self._records = records

    def open(self) -> None:
        """Nothing: `Log.open` begins the study's run."""

    def add(self, trial: Trial) -> None:
        request = Request(trial.name, trial.split, trial.settings, trial.condition)
        about = tags(with_settings(self._config, request.merged))
        about |= {"cache_key": trial.cache_key, "series": trial.name, "split": trial.split, "status": trial.status}
        complete = trial.status == COMPLETE and self._records.done(trial.cache_key)
        self.tracker.log(
            Run(
                experiment=self._name,
                name=request.label,
                key=trial.key,
                tags=about,
                params={} if trial.name == STOCK else trial.settings,
                metrics={f"{trial.split}.{name}": value for name, value in trial.metrics.items()},
                folder=self._records.path(trial.cache_key) if complete else None,
                parent=self.parent,
                error=trial.reason if trial.status == FAILED else "",
                samples=LoggedSamples(about["dataset"], trial.split, trial.samples, trial.n),
            )
        )

    def keep(self, trials: Mapping[str, Trial], aside: Callable[[], Path]) -> None:
        self.tracker.keep(self._name, self.parent, set(trials))

    def result(self, outcome: Outcome) -> None:
        """Put an outcome's held-out numbers on the study's run."""
        metrics: dict[str, float] = {}
        for row in outcome.rows:
            parts = ["held_out", *(str(value) for value in row.condition.values()), row.name.replace(", ", ".")]
            name = metric_name(".".join(parts), {key.rpartition(".")[0] for key in metrics}, 200)
            if row.metrics:
                metrics[f"{name}.accuracy"] = row.metrics["accuracy"]
            if row.difference:
                values = zip(("", "_low", "_high"), row.difference, strict=True)
                metrics |= {f"{name}.difference{end}": value for end, value in values}
        self.tracker.describe(self.parent, None, metrics, [])

    def attach(self, folder: Path, text: str) -> None:
        """Log a study's description, the figures and tables in its folder, its outcome and its configuration."""
        found = [path for path in sorted(folder.iterdir()) if path.suffix in ATTACHED]
        files = [path for path in found if path.name != NOT_ATTACHED]
        self.tracker.describe(self.parent, text, {}, [*files, folder / "study.json", folder / "config.yaml"])


def tags(config: Mapping[str, Any]) -> dict[str, str]:
    """What a configuration is about: protocol, backbone, data set, method and its readings."""
    method = config["intervention"]
    found = {"protocol": config["search"]["protocol"], "method": label(method)}
    found |= {part: config[part]["name"] for part in ("backbone", "dataset")}
    return found | {f"reading.{name}": str(value) for name, value in method.items() if name in READINGS}


class Log:
    """All sinks of a study.

    Args:
        folder: the study's.
        config: its plain configuration.
        tracker: the store of runs.
        records: the evaluations.
        storage: where the Optuna study is; None for the journal in the folder.

    Attributes:
        key: tells the study from one of the same name with other settings, whose trials are not its own.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], tracker: Tracker, records: Records, storage: BaseStorage | None
    ) -> None:
        self.key = study_key(config)
        self._folder = folder
        self._config = dict(config)
        self._name = str(config["study"]["name"])
        self.lines = JsonLines(folder, self.key)
        self.runs = MlflowRuns(tracker, config, records)
        self._sinks: list[Sink] = [self.lines, OptunaTrials(folder, config, self.lines, storage), self.runs]
        self._claim: Claim | None = None
        self._asked: dict[str, Trial] = {}

    def _check(self) -> None:
        """Raises LostLease if another process leads the study now; called before each write."""
        if self._claim:
            self._claim.check()

    @contextmanager
    def open(self, about: Mapping[str, str], claim: Claim | None = None) -> Iterator[None]:
        """Open all sinks, after the files of a study with other settings are moved away. The study's run is on
        while the context lasts.

        Args:
            about: further tags of the study's run.
            claim: the right to write, which is checked before each write.
        """
        self._claim = claim
        self._folder.mkdir(parents=True, exist_ok=True)
        self._check()
        move_other_study(self._folder, self._name, self.key)
        checked_file.write_yaml(self._folder / "config.yaml", self._config)
        for sink in self._sinks:
            sink.open()
        run = self.runs.tracker.study(self._name, self.key, self._name, {**tags(self._config), **about})
        with run as self.runs.parent:
            yield

    def add(self, trial: Trial) -> None:
        """Write a trial wherever it is missing; raises LostLease if another process leads the study now."""
        self._asked[trial.key] = trial
        for sink in self._sinks:
            self._check()
            sink.add(trial)

    def finish(self, outcome: Outcome) -> None:
        """Write the outcome. Trials that were not added since `open`, such as those of earlier weights or versions,
        are moved away."""
        self._check()
        outcome.save(self._folder / "study.json")
        others = len(set(self.lines.trials) - set(self._asked))
        aside = lru_cache(lambda: new_replaced_folder(self._folder, self.key))
        for sink in self._sinks:
            self._check()
            sink.keep(self._asked, aside)
        if aside.cache_info().misses:
            print(f"{self._name}: {others} trials that are no longer asked for are now in {aside()}", file=sys.stderr)
        self.runs.result(outcome)


def sync(folder: Path, tracker: Tracker, records: Records, describe: Callable[[Outcome, Records], str]) -> int:
    """Write a study's trials wherever they are missing, from its files; returns how many trials it has.

    Args:
        describe: the description of a finished study's run.
    """
    config = checked_file.read_yaml(folder / "config.yaml")
    log = Log(folder, config, tracker, records, open_storage(config["study"].get("storage", JOURNAL)))
    with log.open({}):
        trials = list(log.lines.trials.values())
        for trial in trials:
            log.add(trial)
        if (folder / "study.json").exists():
            outcome = read_outcome(folder)
            log.runs.result(outcome)
            log.runs.attach(folder, describe(outcome, records))
    return len(trials)
