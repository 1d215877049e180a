"""`tdrs.study delete` moves a study, and the evaluations that no other study names, into a trash folder.

Nothing is erased: `outputs/trash/NAME-DATE` has the study's folder as `study` and its evaluations under `records`. An
evaluation is kept if its cache key stands anywhere in the files of another study, whatever else is missing there.
"""

import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tdrs.addresses import JOURNAL
from tdrs.commands import command, study_command
from tdrs.kept import Kept, is_running
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.sweeps.folder import REPLACED, read_outcome, study_folders
from tdrs.sweeps.trial import Trial
from tdrs.tracking import open_tracker

MADE = (".parquet", ".jpg", ".png")  # files of a study that are made from others: its export, pictures of its samples
_CACHE_KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")


def delete(study: Kept, yes: bool, tracking: Mapping[str, Any]) -> None:
    """Move a study and the evaluations that only it uses into the trash; without `yes` only say what would be moved.

    Raises:
        SettingError: it, or another study, is running; its folder is a link; another study's files cannot be read; or
            the store of runs cannot be reached.
    """
    if study.folder.is_symlink():
        allowed = f"is a link to {study.folder.resolve()}; remove the link, or delete it there"
        raise SettingError("study", study.name, allowed)
    if study.running:
        raise SettingError("study", study.name, "is running; stop it first")
    trials = study.all_trials
    cache_keys = {trial.cache_key for trial in trials}
    measured = {trial.cache_key for trial in trials if _is_record_of(study.records, trial)}
    others: set[str] = set()
    for folder in study_folders(study.output):
        if folder.name != study.name:
            others |= named_in(folder)
    own = {cache_key for cache_key in measured - others if study.records.exists(cache_key)}
    shared = len(cache_keys & others)
    print(
        f"{study.folder}: {len(study.trials)} trials; {len(own)} evaluations of its own, {shared} of other studies, too"
    )
    for cache_key in sorted(cache_keys - measured):
        print(f"{study.records.path(cache_key)} is kept: it has other metrics than the study's trial")
    if study.replaced:
        print(f"with what {len(study.replaced)} earlier runs under this name have left in {study.folder / REPLACED}")
    if not yes:
        again = study_command("delete", study.name, study.output.absolute(), "--yes")
        print(f"nothing was deleted; to do it:  {again}")
        return
    for cache_key in own:
        with claimed(study.records, cache_key):
            pass  # all must be free before the first one is moved
    with open_tracker(tracking, study.output) as tracker:
        runs = tracker.delete(study.name, {study.key, *(path.name for path in study.replaced)})
        if tracker.down:
            allowed = f"cannot be reached ({tracker.down}), so the study's runs there, and its files, are kept"
            raise SettingError("tracking.uri", tracker.uri, allowed)
    trash = _trash(study)
    for cache_key in own:
        with claimed(study.records, cache_key):
            shutil.move(study.records.path(cache_key), trash / "records" / cache_key)
    shutil.move(study.folder, trash / "study")
    if study.config["study"].get("storage", JOURNAL) != JOURNAL:
        print(f"its trials in {study.config['study']['storage']} are kept: other machines may need them")
    print(f"deleted, with {runs} runs in MLflow; evaluations of other studies are kept")
    print(f"its files are in {trash} until:  {shlex.join(['rm', '-r', str(trash.absolute())])}")
    if runs and not tracker.uri.startswith("http"):  # on a server, its administrator does this
        gone = command("mlflow", "gc", "--backend-store-uri", tracker.uri, "--tracking-uri", tracker.uri)
        print(f"its runs can be restored until:  {gone}")


def named_in(folder: Path) -> set[str]:
    """Every text in the files of a study that may be a cache key, also in damaged files.

    Raises:
        SettingError: a file cannot be read, or the study is running and may come to name more.
    """

    def unknown(error: OSError) -> None:
        allowed = f"{error}; which evaluations this study needs is not known, so nothing was deleted"
        raise SettingError("study", folder.name, allowed) from None

    found: set[str] = set()
    if (folder / "config.yaml").exists() and not folder.is_symlink():
        try:
            Kept(folder.parents[1], folder.name)
            if (folder / "study.json").exists():
                read_outcome(folder)
        except SettingError as error:
            allowed = f"{error.allowed}; till then it is not known which evaluations it needs"
            raise SettingError("study", folder.name, allowed) from None
    try:
        if (folder / "lock").exists() and is_running(folder):
            allowed = "is running, and may need evaluations of the other one; nothing was deleted: stop it first"
            raise SettingError("study", folder.name, allowed)
        for place, _, names in os.walk(folder, onerror=unknown):
            for name in (name for name in names if not name.endswith(MADE)):
                path = Path(place, name)
                if not stat.S_ISREG(path.stat().st_mode):
                    raise OSError(f"{path} is no file")
                found |= {one.decode() for one in _CACHE_KEY.findall(path.read_bytes())}
    except OSError as error:
        unknown(error)
    return found


def _is_record_of(records: Records, trial: Trial) -> bool:
    """Whether a record can be what a trial measured: it is unfinished, or it has the trial's metrics.

    A line of `trials.jsonl` that somebody changed may name any record.
    """
    kept = records.outline(trial.cache_key).get("metrics")
    return kept is None or kept == trial.metrics


def _trash(study: Kept) -> Path:
    """A new folder in the trash."""
    name = f"{study.name[:100]}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    (study.output / "trash").mkdir(exist_ok=True)
    while True:
        trash = study.output / "trash" / (name if number == 1 else f"{name}-{number}")
        try:
            trash.mkdir()
        except FileExistsError:
            number += 1
        else:
            (trash / "records").mkdir()
            return trash


def claimed(records: Records, cache_key: str) -> AbstractContextManager[object]:
    """Hold the lease of an evaluation while the context lasts. A link is not followed and needs no lease.

    Raises:
        SettingError: another process measures it.
    """
    if records.path(cache_key).is_symlink():
        return nullcontext()
    lease = records.claim(cache_key)
    if lease is None:
        raise SettingError("study", cache_key, "another process is measuring this evaluation; stop it first")
    return lease
