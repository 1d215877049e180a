"""Read a study from its folder."""

from pathlib import Path
from typing import Any

from tdrs import checked_file
from tdrs.checked_file import Damaged
from tdrs.lease import Lease
from tdrs.records import Records
from tdrs.settings import SettingError, first_line
from tdrs.sweeps.folder import REPLACED, TRIALS, read_trials, studies_folder, study_folder, study_key
from tdrs.sweeps.protocol import PROTOCOLS
from tdrs.sweeps.trial import Trial


class Kept:
    """A study as its files describe it.

    Raises:
        SettingError: there is no such study, or one of its files is damaged.
    """

    def __init__(self, output: Path, name: str) -> None:
        self.folder = study_folder(output, name)
        if not (self.folder / "config.yaml").exists():
            known = sorted(path.parent.name for path in studies_folder(output).glob("*/config.yaml"))
            raise SettingError("study", name, f"must be one of {', '.join(known) or 'none yet'} in {output}")
        self.name = name
        self.output = output
        self.records = Records(output / "records")
        self.config = _configuration(self.folder / "config.yaml")
        faults = checked_file.read_lines(self.folder / TRIALS, self.key)[1]
        if faults:
            raise SettingError("study", name, f"{faults[0]}; run the study again, which sets it aside")
        self.trials = list(read_trials(self.folder, self.key).values())

    @property
    def key(self) -> str:
        """A hash of its settings."""
        return study_key(self.config)

    @property
    def replaced(self) -> list[Path]:
        """The folders of replaced files: of an earlier study of this name, or of earlier versions, weights or data."""
        return sorted(path for path in (self.folder / REPLACED).glob("*") if path.is_dir())

    @property
    def all_trials(self) -> list[Trial]:
        """Its trials, and those that were replaced."""
        folders = {self.folder: self.key} | {path: path.name.partition("-")[0] for path in self.replaced}
        return [trial for path, key in folders.items() for trial in read_trials(path, key).values()]

    @property
    def running(self) -> bool:
        """Whether a process on this machine runs it."""
        return is_running(self.folder)

    @property
    def state(self) -> str:
        """`running`, `finished` or `stopped`."""
        if self.running:
            return "running"
        return "finished" if (self.folder / "study.json").exists() else "stopped"

    def count(self, status: str) -> int:
        """How many trials have a status."""
        return sum(trial.status == status for trial in self.trials)


def is_running(folder: Path) -> bool:
    """Whether a process on this machine runs the study in a folder."""
    return Lease.taken(folder, Records(folder).lease_seconds, "lock")


def _configuration(path: Path) -> dict[str, Any]:
    """A study's configuration; raises SettingError if the file is damaged."""
    try:
        config = checked_file.read_yaml(path)
        for group in ("backbone", "dataset", "intervention"):
            str(config[group]["name"])
        for key in ("preset", "batch_size", "attention", "tracking", "study", "output"):
            str(config[key])
        str(config["tracking"]["name"])
        if config["search"]["protocol"] not in PROTOCOLS:
            raise KeyError(config["search"]["protocol"])
        return dict(config)
    except (Damaged, KeyError, TypeError, AttributeError) as error:
        raise SettingError("study", path.parent.name, f"{path} is damaged ({first_line(error)})") from None
