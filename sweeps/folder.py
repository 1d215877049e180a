"""The files of a study.

outputs/studies/NAME/config.yaml      the configuration
                     trials.jsonl     a line a finished trial, in the protocol's order
                     study.journal    the same trials as an Optuna study, unless `study.storage` is elsewhere
                     study.json       what the protocol found; figures are redrawn from it without a model
                     replaced/KEY     all files of an earlier study of this name with other settings; or, under
                                      this study's own key, trials of earlier versions, weights or data
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdrs import checked_file
from tdrs.checked_file import Damaged
from tdrs.settings import SettingError, first_line

from .trial import Outcome, Trial

REPLACED, TRIALS = "replaced", "trials.jsonl"
UNKNOWN = "unknown"  # the key of a study whose configuration cannot be read
NO_TRIAL = ValueError, KeyError, TypeError, AttributeError  # of a line that is no trial; SettingError is a ValueError
_NOT_DECISIVE = ("output", "tracking", "study", "workers", "features_gib", "dry_run")
_ADDED = (("batch_tokens", None),)  # settings that came later, at the value that all studies had before


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
    """Where a study is kept; raises SettingError if its name cannot be the name of a folder there."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise SettingError("study", name, "must be the name of one folder: without a slash, and not . or ..")
    return studies_folder(output) / name


def study_key(config: Mapping[str, Any]) -> str:
    """A hash of what a study asks, but not of where it is kept."""
    values = dict(one for one in config.items() if one[0] not in _NOT_DECISIVE and one not in _ADDED)
    return hashlib.sha256(json.dumps([config["study"]["name"], values], sort_keys=True).encode()).hexdigest()[:16]


def key_in(folder: Path) -> str:
    """The key of the study in a folder; `unknown` if its configuration cannot be read."""
    try:
        return study_key(checked_file.read_yaml(folder / "config.yaml"))
    except (FileNotFoundError, Damaged, KeyError, TypeError):
        return UNKNOWN


def read_trials(folder: Path, key: str) -> dict[str, Trial]:
    """The trials of the study with a key, by their own keys, in the protocol's order. Damaged lines are left out.

    Raises:
        SettingError: an undamaged line is no trial.
    """
    found: dict[str, Trial] = {}
    for number, line in enumerate(checked_file.read_lines(folder / TRIALS, key)[0], 1):
        try:
            trial = Trial.of(line)
        except NO_TRIAL as error:
            allowed = f"line {number} of {folder / TRIALS} is no trial ({first_line(error)})"
            raise SettingError("study", folder.name, allowed) from None
        found[trial.key] = trial  # if a trial was tried again, its last line counts
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


def move_other_study(folder: Path, name: str, key: str) -> None:
    """Move all files of an earlier study of this name, but with another key, into a folder of its own."""
    other = key_in(folder)
    # the workers of this run may have begun their logs, which contain no results
    files = [p for p in folder.iterdir() if p.name not in ("lock", REPLACED) and not p.match("worker-*.log")]
    if other == key or not files:
        return
    aside = new_replaced_folder(folder, other)
    for path in sorted(files, key=lambda path: path.name == "config.yaml"):  # last: until then it names its study
        path.rename(aside / path.name)
    why = "config.yaml is damaged" if other == UNKNOWN else "an earlier study of this name had other settings"
    print(f"{name}: {why}; it is now in {aside}", file=sys.stderr)


def new_replaced_folder(folder: Path, key: str) -> Path:
    """A new folder for what is replaced of a study with this key."""
    number = 1
    (folder / REPLACED).mkdir(exist_ok=True)
    while True:
        aside = folder / REPLACED / (key if number == 1 else f"{key}-{number}")
        try:
            aside.mkdir()
        except FileExistsError:
            number += 1
        else:
            return aside
