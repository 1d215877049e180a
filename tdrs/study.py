"""Studies that were run: look at them, take them elsewhere, delete them, log what is missing.

    python -m tdrs.study list                          # all of them
    python -m tdrs.study show sqa_ablation             # its trials and what it found
    python -m tdrs.study best sqa_ablation             # the best settings, as a command
    python -m tdrs.study export sqa_ablation           # trials.csv and samples.parquet
    python -m tdrs.study sync sqa_ablation             # write to Optuna and MLflow what is missing there
    python -m tdrs.study delete sqa_ablation --yes     # without --yes it says what would go

`output=FOLDER` is where studies are kept, `outputs` unless said; `sync` and `delete` take `tracking.uri=ADDRESS`.
"""

import csv
import fcntl
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from tdrs.command import command
from tdrs.configuration import choice, with_settings
from tdrs.records import Records
from tdrs.settings import SettingError, check_choice, folder_named
from tdrs.sweeps.log import REPLACED, read_outcome, read_trials, study_folder, study_key, sync
from tdrs.sweeps.storage import JOURNAL
from tdrs.sweeps.trials import FAILED, PRUNED, STOCK, Request, Trial, spelled
from tdrs.tracking import open_tracker


class Kept:
    """A study in its folder."""

    def __init__(self, output: Path, name: str) -> None:
        known = sorted(path.parent.name for path in study_folder(output, "").glob("*/config.yaml"))
        if name not in known:
            raise SettingError("study", name, f"must be one of {', '.join(known) or 'none yet'} in {output}")
        self.name = name
        self.output = output
        self.folder = study_folder(output, name)
        self.records = Records(output / "records")
        self.config: dict[str, Any] = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        self.trials = read_trials(self.folder)

    @property
    def key(self) -> str:
        return study_key(self.config)

    @property
    def replaced(self) -> list[Path]:
        """The folders with what another study of this name, or an earlier version, has left."""
        return sorted(path for path in (self.folder / REPLACED).glob("*") if path.is_dir())

    @property
    def identities(self) -> set[str]:
        """The evaluations of its trials, also of those that were replaced."""
        return {trial.identity for folder in (self.folder, *self.replaced) for trial in read_trials(folder)}

    @property
    def running(self) -> bool:
        """Whether a process on this machine leads it."""
        try:
            with (self.folder / "lock").open("rb") as file:  # looking needs no right to write
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    @property
    def state(self) -> str:
        if self.running:
            return "running"
        return "finished" if (self.folder / "study.json").exists() else "stopped"

    def count(self, status: str) -> int:
        return sum(trial.status == status for trial in self.trials)


def _all(output: Path) -> list[Kept]:
    return [Kept(output, path.parent.name) for path in sorted(study_folder(output, "").glob("*/config.yaml"))]


def _list(output: Path) -> None:
    studies = _all(output)
    if not studies:
        print(f"no study in {output}; the first:  python -m tdrs.sweep +experiment=sqa_ablation")
        return
    print(f"{'study':20}{'protocol':12}{'state':10}{'trials':>7}{'failed':>8}{'pruned':>8}  last change")
    for study in studies:
        protocol = study.config["search"]["protocol"]
        changed = max(path.stat().st_mtime for path in study.folder.iterdir())
        counts = f"{len(study.trials):>7}{study.count(FAILED):>8}{study.count(PRUNED):>8}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed))
        print(f"{study.name:20}{protocol:12}{study.state:10}{counts}  {when}")


def _settings(trial: Trial) -> str:
    return spelled(trial.place | (trial.settings if trial.name != STOCK else {}))


def _show(study: Kept) -> None:
    print(f"{study.name}: {study.config['search']['protocol']}, {study.state}, {len(study.trials)} trials")
    print(f"{'':>4} {'split':9} {'status':9} {'accuracy':>8} {'margin':>8}  name, settings; records")
    for number, trial in enumerate(study.trials):
        metrics = trial.metrics
        values = [f"{metrics[name]:8.3f}" if name in metrics else f"{'-':>8}" for name in ("accuracy", "margin")]
        text = f"{trial.name}: {_settings(trial)}" if _settings(trial) else trial.name
        print(f"{number:>4} {trial.split:9} {trial.status:9} {' '.join(values)}  {text}; {trial.identity}")
        if trial.reason:
            whole = "" if trial.expected is None else f", where all were expected to give {trial.expected:.3f}"
            print(f"{'':>35}{trial.reason}{whole}")
    if (study.folder / "study.json").exists():
        print()
        print("\n".join(read_outcome(study.folder).table()))


def _best(study: Kept) -> None:
    """What was chosen on the tuning split, and the command that reports it; so far, if the study is not finished."""
    if (study.folder / "study.json").exists():
        chosen = [row for row in read_outcome(study.folder).rows if row.budget]
    else:
        groups: dict[tuple[str, str], Trial] = {}
        for trial in study.trials:
            key = trial.name, str(trial.place)
            if trial.split == "tuning" and trial.name != STOCK and trial.score > getattr(groups.get(key), "score", -1):
                groups[key] = trial
        chosen = list(groups.values())
    if not chosen:
        print(f"{study.name} chose nothing: its settings were given")
    for trial in chosen:
        where = "held out" if trial.split == "held_out" else "on the tuning split, so far"
        print(f"{' '.join(filter(None, [trial.name, spelled(trial.place)]))}: {trial.score:.3f} {where}")
        print(f"    {_command(study, trial)}")


def _command(study: Kept, trial: Trial) -> str:
    """What evaluates a trial's settings on the held-out split."""
    config = with_settings(study.config, Request("", "", trial.settings, trial.place).merged)
    words = []
    for part in ("backbone", "dataset", "intervention"):
        given, usual = config[part], choice(part, config[part]["name"])
        words += [f"{part}={given['name']}", *_overrides(part, given, usual)]
    words += [f"limit={config['preset']['held_out']}", f"batch_size={config['batch_size']}"]
    return f"python -m tdrs.evaluate {shlex.join(words)} output={study.output}"


def _overrides(name: str, given: Any, usual: Any) -> list[str]:
    """Hydra overrides that make of a usual value the given one."""
    if isinstance(given, dict) and isinstance(usual, dict):
        return [word for key in given for word in _overrides(f"{name}.{key}", given[key], usual.get(key))]
    if given == usual:
        return []
    return [f"{name}={json.dumps(given) if not isinstance(given, str) else given}"]


def _export(study: Kept) -> None:
    folder = study.folder / "export"
    folder.mkdir(exist_ok=True)
    metrics = sorted({name for trial in study.trials for name in trial.metrics})
    keys = sorted({key for trial in study.trials for key in {**trial.place, **trial.settings}})
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["study_key", "number", "name", "split", "status", "reason", "identity", "n", "seconds"]
        writer.writerow([*head, *keys, *metrics])
        for number, t in enumerate(study.trials):
            given = {**t.place, **t.settings}
            row = [study.key, number, t.name, t.split, t.status, t.reason, t.identity, t.n, f"{t.seconds:.3f}"]
            writer.writerow([*row, *(given.get(key, "") for key in keys), *(t.metrics.get(m, "") for m in metrics)])
    path = folder / "samples.parquet"
    writer_: pq.ParquetWriter | None = None
    for identity in tqdm({t.identity for t in study.trials}, desc="samples", unit="trial", disable=None, leave=False):
        if study.records.done(identity):
            table = pq.read_table(study.records.path(identity) / "samples.parquet")
            table = table.append_column("identity", pa.array([identity] * len(table)))
            table = table.replace_schema_metadata({"study": study.name, "study_key": study.key})
            writer_ = writer_ or pq.ParquetWriter(path, table.schema)
            writer_.write_table(table)
    if writer_:
        writer_.close()
    print(folder / "trials.csv")
    print(f"{path}   (joins trials.csv by identity)")


def _delete(study: Kept, yes: bool, tracking: dict[str, Any]) -> None:
    if study.running:
        raise SettingError("study", study.name, "is running; stop it first")
    others = {identity for other in _all(study.output) if other.name != study.name for identity in other.identities}
    own = study.identities - others
    shared = len(study.identities & others)
    print(
        f"{study.folder}: {len(study.trials)} trials; {len(own)} evaluations of its own, {shared} of other studies, too"
    )
    if study.replaced:
        print(f"with what {len(study.replaced)} earlier runs under this name have left in {study.folder / REPLACED}")
    if not yes:
        print(f"nothing was deleted; to do it:  python -m tdrs.study delete {study.name} output={study.output} --yes")
        return
    with open_tracker(tracking, study.output) as tracker:
        runs = tracker.delete(study.name, {study.key, *(path.name for path in study.replaced)})
    for identity in own:
        with study.records.claim(identity) or _Busy():
            shutil.rmtree(study.records.path(identity), ignore_errors=True)
    shutil.rmtree(study.folder)
    if study.config["study"].get("storage", JOURNAL) != JOURNAL:
        print(f"its trials in {study.config['study']['storage']} are kept: other machines may need them")
    told = f"with {runs} runs in MLflow (`mlflow gc` frees their space)"
    print(f"deleted, {'but for its runs in MLflow' if tracker.down else told}; evaluations of other studies are kept")


class _Busy:
    """In place of a claim that another process has: then nothing is deleted."""

    def __enter__(self) -> None:
        raise SettingError("study", "", "another process is measuring one of its evaluations; stop it first")

    def __exit__(self, *_: object) -> None: ...


def _sync(study: Kept, tracking: dict[str, Any]) -> int:
    if study.running:
        raise SettingError("study", study.name, "is running, and logs by itself")
    with open_tracker(tracking, study.output, repair=True) as tracker:
        count = sync(study.folder, tracker, study.records)
        if tracker.down:
            print("\n".join(tracker.later(study.name)), file=sys.stderr)
            return 1
        print(f"{count} trials of {study.name} are in Optuna and MLflow")
        print("\n".join(tracker.next_steps(study.name)))
    return 0


VERBS = ("list", "show", "best", "export", "delete", "sync")


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 2 for bad arguments."""
    words = [word for word in arguments if "=" not in word and not word.startswith("-")]
    given = dict(word.partition("=")[::2] for word in arguments if "=" in word)
    if "--help" in arguments or "-h" in arguments or not words:
        print((__doc__ or "").strip())
        return 0 if words or "--help" in arguments or "-h" in arguments else 2
    try:
        check_choice("verb", words[0], VERBS)
        for key in given:
            check_choice("option", key, ("output", "tracking.uri"))
        output = folder_named("output", given.get("output", "outputs"))
        if words[0] == "list":
            _list(output)
            return 0
        if len(words) != 2:
            raise SettingError("study", " ".join(words[1:]), f"{words[0]} takes the name of one study")
        study = Kept(output, words[1])
        tracking = dict(study.config["tracking"])
        if tracking["name"] == "none" or "tracking.uri" in given:
            uri = given.get("tracking.uri")
            tracking = {"name": "mlflow", "uri": None if uri == "null" else uri}
        verbs: dict[str, Callable[[], int | None]] = {
            "show": lambda: _show(study),
            "best": lambda: _best(study),
            "export": lambda: _export(study),
            "delete": lambda: _delete(study, "--yes" in arguments, tracking),
            "sync": lambda: _sync(study, tracking),
        }
        return verbs[words[0]]() or 0
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(command(lambda: main(sys.argv[1:])))
