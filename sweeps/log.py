"""What is written of a study: its trials, in a file, in Optuna and in MLflow, each once, and what it found.

    outputs/studies/NAME/config.yaml      what was asked
                         trials.jsonl     a line a finished trial, in the protocol's order
                         study.journal    the same trials as an Optuna study, unless `study.storage` is elsewhere
                         study.json       what the protocol found, from which figures are redrawn without a model
                         replaced/KEY     all files of an earlier study of this name over other settings; or, under
                                          this study's own key, trials of earlier versions, weights or data

Trials are written when they are over, so a process that dies leaves none of them running.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tdrs import checked_file, escape
from tdrs.checked_file import Damaged
from tdrs.configuration import with_settings
from tdrs.interventions.tdrs import READINGS
from tdrs.published import Comparison, checked, compare
from tdrs.records import Records
from tdrs.settings import SettingError, first_line
from tdrs.tracking import LoggedSamples, Run, Tracker, metric_name

from . import protocol
from .storage import JOURNAL, load_optuna, open_storage
from .store import Claim, Store
from .trial import COMPLETE, FAILED, PRUNED, STOCK, Outcome, Request, Trial

REPLACED, TRIALS = "replaced", "trials.jsonl"
UNKNOWN = "unknown"  # the key of a study whose configuration cannot be read
_NOT_DECISIVE = ("output", "tracking", "study", "workers", "features_gib", "dry_run")


def studies_folder(output: Path) -> Path:
    """Where all studies are kept."""
    return output / "studies"


def study_folders(output: Path) -> list[Path]:
    """The folders of all studies; raises SettingError if they cannot be listed."""
    folder = studies_folder(output)
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() or path.is_symlink())
    except FileNotFoundError:
        if not folder.is_symlink():
            return []
        raise SettingError("output", str(output), f"{folder} is a link that leads nowhere") from None
    except OSError as error:
        raise SettingError("output", str(output), f"{folder} cannot be listed: {error.strerror}") from None


def study_folder(output: Path, name: str) -> Path:
    """Where a study is kept; raises SettingError if its name is none of a folder there."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise SettingError("study", name, "must be the name of one folder: without a slash, and not . or ..")
    return studies_folder(output) / name


class Log:
    """A study's trials, in three places: a file, Optuna, MLflow. Writing one twice writes it once.

    Args:
        config: the study's plain configuration.
        storage: where the Optuna study is; None for the journal in the folder.

    Attributes:
        key: what tells it from a study of the same name over other settings, whose trials are not its own.
        parent: the study's run in the store, "" without one.
        trials: those that are written, by their keys, in the protocol's order.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        tracker: Tracker,
        store: Store,
        storage: BaseStorage | None = None,
    ) -> None:
        self.folder = folder
        self.key = study_key(config)
        self.tracker = tracker
        self.parent = ""
        self.name = str(config["study"]["name"])
        self._store = store
        self._storage = storage
        self._search = protocol.from_settings(config["search"])
        self._objective = getattr(self._search, "objective", "accuracy")
        self._config = dict(config)
        self.trials: dict[str, Trial] = {}
        self.claim: Claim | None = None  # the right to write
        self._optuna: optuna.Study | None = None
        self._told: set[str] = set()
        self._asked: dict[str, Trial] = {}

    def check(self) -> None:
        """Raises LostLease unless this process still leads the study; asked before each write."""
        if self.claim:
            self.claim.check()

    def open(self) -> None:
        """Read what there is, after the files of a study over other settings are moved out of the way.

        Damaged lines are set aside and said.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check()
        self._replace()
        checked_file.write_yaml(self.folder / "config.yaml", self._config)
        path = self.folder / TRIALS
        lines, faults = checked_file.read_lines(path, self.key)
        trials = [line for line in lines if _is_trial(line)]
        if len(trials) < len(lines):
            faults.append(f"{TRIALS} has {len(lines) - len(trials)} lines that are no trials of this version")
            lines = trials
        if faults:
            aside = checked_file.keep_lines(path, lines, self.key)
            print(f"{path}: {faults[0]}; it is now {aside.name}, {len(lines)} trials are kept", file=sys.stderr)
        self.trials = {trial.key: trial for trial in map(Trial.of, lines)}
        self._open_optuna()

    def _replace(self) -> None:
        """Move all files of an earlier study of this name over other settings into a folder of its own."""
        key = key_in(self.folder)
        # the helpers of this run may have begun their logs, which say nothing of results
        files = [p for p in self.folder.iterdir() if p.name not in ("lock", REPLACED) and not p.match("worker-*.log")]
        if key == self.key or not files:
            return
        place = self._aside(key)
        for path in sorted(files, key=lambda path: path.name == "config.yaml"):  # last: till then it names its study
            path.rename(place / path.name)
        why = "config.yaml is damaged" if key == UNKNOWN else "an earlier study of this name had other settings"
        print(f"{self.name}: {why}; it is now in {place}", file=sys.stderr)

    def _aside(self, key: str) -> Path:
        """A new folder for what is replaced of a study with this key."""
        number = 1
        (self.folder / REPLACED).mkdir(exist_ok=True)
        while True:
            place = self.folder / REPLACED / (key if number == 1 else f"{key}-{number}")
            try:
                place.mkdir()
            except FileExistsError:
                number += 1
            else:
                return place

    def finish(self) -> None:
        """Leave the trials that this run asked for; others, as of earlier weights or versions, are moved away."""
        self.check()
        stale = [trial for key, trial in self.trials.items() if key not in self._asked]
        assert self._optuna
        told = {trial.user_attrs["key"] for trial in self._optuna.get_trials(deepcopy=False)}
        if stale or not told <= set(self._asked):
            place = self._aside(self.key)
            for trial in stale:
                checked_file.append_line(place / TRIALS, checked_file.seal(asdict(trial), self.key))
            lines = [checked_file.seal(asdict(trial), self.key) + "\n" for trial in self._asked.values()]
            checked_file.write(self.folder / TRIALS, "".join(lines).encode())
            self.trials = dict(self._asked)
            if self._storage:
                optuna.delete_study(study_name=self.name, storage=self._storage)
            else:
                (self.folder / "study.journal").rename(place / "study.journal")
            self._open_optuna()
            for trial in self._asked.values():
                self._tell_optuna(trial)
            print(f"{self.name}: {len(stale)} trials that are no longer asked for are now in {place}", file=sys.stderr)
        self.tracker.keep(self.name, self.parent, set(self._asked))

    def _open_optuna(self) -> None:
        """The Optuna study; a damaged journal is made again from the trials."""
        path = self.folder / "study.journal"
        checked_file.free(path)
        checked_file.cut_torn_line(path)
        for attempt in range(2):
            try:
                self._optuna = load_optuna(self._storage or self.folder, self.name, create=True)
                if self._storage:
                    self._optuna.set_user_attr("key", self.key)
                told = self._optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                if not self._storage:
                    self._check_told(told)
                self._told = {trial.user_attrs["key"] for trial in told}
                return
            except Exception as error:  # whatever a damaged file makes the library raise
                if attempt or self._storage:
                    raise
                aside = checked_file.set_aside(path)
                print(f"{path}: {first_line(error)}; it is now {aside.name}, and made again", file=sys.stderr)

    def journal_fault(self) -> str:
        """What is wrong with the journal; "" if nothing is, or there is none. Nothing is written."""
        if self._storage or not (self.folder / "study.journal").exists():
            return ""
        self.trials = read_trials(self.folder, self.key)
        try:
            study = load_optuna(self.folder, self.name)
            self._check_told(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        except Exception as error:  # whatever a damaged file makes the library raise
            return first_line(error)
        return ""

    def _check_told(self, told: Sequence[FrozenTrial]) -> None:
        """Raises Damaged unless the journal's trials are those of the log, each once."""
        keys = [trial.user_attrs.get("key") for trial in told]
        if len(set(keys)) < len(keys):
            raise Damaged("a trial stands there twice")
        for trial in told:
            known = self.trials.get(trial.user_attrs.get("key", ""))
            # one that the log does not have was added before its line was written, or its line was damaged
            if known is not None and not self._same(known, trial):
                raise Damaged(f"trial {trial.number} is not the one of {TRIALS}")

    def _same(self, trial: Trial, told: FrozenTrial) -> bool:
        value = trial.value(self._objective) if trial.metrics else None
        alike = told.value == value or (told.value is None and value is None)
        return alike and told.params == self._search.params(trial) and told.user_attrs == _attributes(trial)

    def add(self, trial: Trial) -> None:
        """Write a trial wherever it is missing; raises LostLease if another process leads the study now."""
        self.check()
        self._asked[trial.key] = trial
        known = self.trials.get(trial.key)
        line = checked_file.seal(asdict(trial), self.key)
        if known is None or line != checked_file.seal(asdict(known), self.key):
            checked_file.append_line(self.folder / TRIALS, line)
            self.trials[trial.key] = trial
        self._store.publish(trial.cache_key)
        self._tell_optuna(trial)
        self.track(trial)

    def _tell_optuna(self, trial: Trial) -> None:
        """Add a trial on the tuning split to the Optuna study, if it is not there."""
        if trial.split != "tuning" or trial.key in self._told:
            return
        assert self._optuna
        params = self._search.params(trial)
        distributions = self._search.distributions()
        self.check()
        failed = trial.status == FAILED
        self._optuna.add_trial(
            create_trial(
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                value=None if failed else trial.value(self._objective),
                params=params,
                distributions={key: distributions[key] for key in params},
                user_attrs=_attributes(trial),
            )
        )
        if not failed:
            self._told.add(trial.key)

    def track(self, trial: Trial) -> None:
        """Write a trial to the store of runs, if it is not there."""
        request = Request(trial.name, trial.split, trial.settings, trial.condition)
        about = tags(with_settings(self._config, request.merged))
        about |= {"cache_key": trial.cache_key, "series": trial.name, "split": trial.split, "status": trial.status}
        whole = trial.status == COMPLETE and self._store.records.done(trial.cache_key)
        self.tracker.log(
            Run(
                experiment=self.name,
                name=request.label,
                key=trial.key,
                tags=about,
                params={} if trial.name == STOCK else trial.settings,
                metrics={f"{trial.split}.{name}": value for name, value in trial.metrics.items()},
                folder=self._store.records.path(trial.cache_key) if whole else None,
                parent=self.parent,
                error=trial.reason if trial.status == FAILED else "",
                samples=LoggedSamples(about["dataset"], trial.split, trial.samples, trial.n),
            )
        )


def _attributes(trial: Trial) -> dict[str, Any]:
    """What an Optuna trial says of ours, beside parameters and value."""
    return {
        "key": trial.key,
        "cache_key": trial.cache_key,
        "name": trial.name,
        "condition": trial.condition,
        "settings": trial.settings,
        "pruned": trial.status == PRUNED,
        "reason": trial.reason,
    }


def _is_trial(line: Mapping[str, Any]) -> bool:
    try:
        Trial.of(line)
    except (ValueError, KeyError, TypeError, AttributeError):  # a SettingError is a ValueError
        return False
    return True


def read_trials(folder: Path, key: str) -> dict[str, Trial]:
    """The trials of the study with a key, by their own keys, in the protocol's order; damaged lines are left out.

    Raises:
        SettingError: a whole line is no trial.
    """
    found: dict[str, Trial] = {}
    for number, line in enumerate(checked_file.read_lines(folder / TRIALS, key)[0], 1):
        try:
            trial = Trial.of(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # a SettingError is a ValueError
            allowed = f"line {number} of {folder / TRIALS} is no trial ({first_line(error)})"
            raise SettingError("study", folder.name, allowed) from None
        found[trial.key] = trial  # of one that was tried again, the last line counts
    return found


def read_outcome(folder: Path) -> Outcome:
    """What a study found, from its folder.

    Raises:
        FileNotFoundError: it is not finished.
        SettingError: `study.json` is of another study than `config.yaml`, or damaged.
    """
    try:
        return Outcome.read(folder / "study.json", key_in(folder))
    except Damaged as error:
        raise SettingError("study", folder.name, f"{error}; run the study again") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # of another version
        allowed = f"study.json has another form ({first_line(error)}); run the study again"
        raise SettingError("study", folder.name, allowed) from None


def key_in(folder: Path) -> str:
    """The key of the study in a folder; `unknown` if its configuration cannot be read."""
    try:
        return study_key(checked_file.read_yaml(folder / "config.yaml"))
    except (FileNotFoundError, Damaged, KeyError, TypeError):
        return UNKNOWN


def study_key(config: Mapping[str, Any]) -> str:
    """A hash of what a study asks: not of where it is kept."""
    values = {name: value for name, value in config.items() if name not in _NOT_DECISIVE}
    return hashlib.sha256(json.dumps([config["study"]["name"], values], sort_keys=True).encode()).hexdigest()[:16]


def tags(config: Mapping[str, Any]) -> dict[str, str]:
    """What a configuration is about: protocol, backbone, dataset, method and its readings."""
    method = config["intervention"]
    found = {"protocol": config["search"]["protocol"], "method": method["name"]}
    found |= {part: config[part]["name"] for part in ("backbone", "dataset")}
    return found | {f"reading.{name}": str(value) for name, value in method.items() if name in READINGS}


def describe(tracker: Tracker, parent: str, outcome: Outcome, records: Records) -> None:
    """Put an outcome's result, its table and its held-out numbers on the study's run."""
    metrics: dict[str, float] = {}
    for row in outcome.rows:
        parts = ["held_out", *(str(value) for value in row.condition.values()), row.name.replace(", ", ".")]
        name = metric_name(".".join(parts), {key.rpartition(".")[0] for key in metrics}, 200)
        if row.metrics:
            metrics[f"{name}.accuracy"] = row.metrics["accuracy"]
        if row.difference:
            values = zip(("", "_low", "_high"), row.difference, strict=True)
            metrics |= {f"{name}.difference{end}": value for end, value in values}
    code = [escape.fenced(outcome.command), "", escape.fenced("\n".join(outcome.table()))]
    tracker.describe(parent, "\n".join([*_summary(outcome, records), "", *code]), metrics, [])


def _summary(outcome: Outcome, records: Records) -> list[str]:
    """The result in lines: what was compared, the rows furthest above and below the stock model, what was checked."""
    rows = [row for row in outcome.rows if row.difference]
    tuned = sum(row.budget > 0 for row in rows)
    lines = [outcome.warning] if outcome.warning else []
    lines += [
        f"{len(rows)} rows beside the stock model on the held-out split, {tuned} of them tuned on the tuning split"
    ]
    for word, pick in (("highest", max), ("lowest", min)) if rows else ():
        row = pick(rows, key=lambda row: row.difference or (0, 0, 0))
        assert row.difference
        value, low, high = (100 * number for number in row.difference)
        name = " ".join([*(str(value) for value in row.condition.values()), row.name])
        lines.append(f"{word}: {name}, {value:+.1f} [{low:+.1f}, {high:+.1f}] points, n = {row.n}")
    compared = [
        compare(with_settings(outcome.config, row.condition), records.read(row.cache_key).records)
        for row in outcome.rows
        if row.name == STOCK and row.status == COMPLETE
    ]
    lines.append(checked(compared))
    lines += [one.sentence for one in compared if isinstance(one, Comparison) and one.off]
    return [f"{escape.markdown(line)}  " for line in lines]  # two blanks break the line


def sync(folder: Path, tracker: Tracker, records: Records) -> int:
    """Write a study's trials wherever they are missing, from its files; returns how many trials it has."""
    config = checked_file.read_yaml(folder / "config.yaml")
    where = config["study"].get("storage", JOURNAL)
    log = Log(folder, config, tracker, Store(records), None if where == JOURNAL else open_storage(where))
    log.open()
    trials = list(log.trials.values())
    with tracker.study(log.name, log.key, log.name, tags(config)) as log.parent:
        for trial in trials:
            log.add(trial)
        if (folder / "study.json").exists():
            describe(tracker, log.parent, read_outcome(folder), records)
            kinds = (".html", ".md", ".tex", ".csv", ".png", ".svg")  # as `Study.attach` logs them
            files = [path for path in sorted(folder.iterdir()) if path.suffix in kinds]
            tracker.describe(log.parent, None, {}, [*files, folder / "study.json", folder / "config.yaml"])
    return len(trials)
