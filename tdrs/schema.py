"""What the configuration of each command consists of: every key, of its type and in its range.

`check` looks at a whole configuration before anything is loaded or written. What a backbone, a data set, a method or a
protocol consists of, their own dataclasses say.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tdrs.settings import SettingError, build, build_named, check_number

LONGEST_NAME = 200  # bytes of a study's name: with endings it has to be a file's name


def check_study_name(name: object, setting: str = "study.name") -> None:
    """Raises SettingError unless a name can be that of one folder, on any system, and be typed again."""
    if not isinstance(name, str):
        quoted = "'" + str(name) + "'"
        raise SettingError(setting, name, f'must be text; a number is quoted: {setting}="{quoted}"')
    if name.strip() in ("", ".", "..") or name != name.strip():
        raise SettingError(setting, name, "must be the name of a folder: not empty, no blank at its ends, not . or ..")
    if any(letter in "/\\" or not letter.isprintable() for letter in name):
        raise SettingError(setting, name, "must be the name of a folder: no slash, no control character")
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise SettingError(setting, f"{name[:20]}…", f"must have at most {LONGEST_NAME} bytes")


def check_output(output: object) -> None:
    """Raises SettingError unless a folder can be written, or made; nothing is made."""
    if not isinstance(output, str) or not output or not output.isprintable():
        raise SettingError("output", output, "must be the name of a folder")
    path = Path(output).absolute()
    try:
        if any(len(part.encode()) > 255 for part in path.parts):
            raise SettingError("output", f"{output[:40]}…", "has a name of more than 255 bytes")
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if there.is_symlink() and not there.exists():
            raise SettingError("output", output, f"{there} is a link that leads nowhere")
        if not there.is_dir():
            raise SettingError("output", output, f"{there} is a file, not a folder")
    except (OSError, UnicodeError) as error:
        raise SettingError("output", output, f"cannot be looked at: {error}") from None
    try:
        tempfile.TemporaryFile(dir=there).close()  # permissions do not tell of read-only and special file systems
    except OSError as error:
        raise SettingError("output", output, f"{there} cannot be written: {error.strerror}") from None


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    name: str
    storage: str = "journal"

    def __post_init__(self) -> None:
        check_study_name(self.name, "name")


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    execution: str


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How many samples of each split; None is all."""

    tuning: int | None
    held_out: int | None

    def __post_init__(self) -> None:
        for name in ("tuning", "held_out"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, whole=True)


@dataclass(frozen=True, kw_only=True)
class NoTracking:
    uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class MLflow:
    uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class Alone:
    """One process measures."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    count: int

    def __post_init__(self) -> None:
        check_number("count", self.count, 1, 1024, whole=True)


@dataclass(frozen=True, kw_only=True)
class Ray(Processes):
    num_gpus: float
    address: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("num_gpus", self.num_gpus, 0)
        if self.address is not None and ("@" in self.address or not self.address.strip()):
            raise SettingError(
                "address", "***", "must be a cluster's address, such as auto, without a user or a password"
            )


TRACKING: dict[str, type[Any]] = {"mlflow": MLflow, "none": NoTracking}
WORKERS: dict[str, type[Any]] = {"inline": Alone, "processes": Processes, "ray": Ray}


@dataclass(frozen=True, kw_only=True)
class Common:
    """What commands that measure have in common."""

    named: ClassVar[tuple[str, ...]] = ("backbone", "dataset", "intervention")  # groups with a name

    backbone: dict[str, Any]
    dataset: dict[str, Any]
    intervention: dict[str, Any]
    batch_size: int
    attention: AttentionSettings
    features_gib: float
    output: str

    def __post_init__(self) -> None:
        for group in self.named:
            values = getattr(self, group)
            if not isinstance(values.get("name", ""), str):
                raise SettingError(f"{group}.name", values["name"], "must be the name of a choice")
        check_number("batch_size", self.batch_size, 1, whole=True)
        check_number("features_gib", self.features_gib, 0, 1e9)
        check_output(self.output)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Common):
    tracking: dict[str, Any]
    split: str
    limit: int | None
    shard: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        build_named("tracking", TRACKING, self.tracking)
        if self.limit is not None:
            check_number("limit", self.limit, 1, whole=True)


@dataclass(frozen=True, kw_only=True)
class Sweep(Common):
    search: dict[str, Any]
    preset: Preset
    workers: dict[str, Any]
    tracking: dict[str, Any]
    study: StudySettings
    dry_run: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        build_named("tracking", TRACKING, self.tracking)
        build_named("workers", WORKERS, self.workers)


@dataclass(frozen=True, kw_only=True)
class Doctor(Common):
    search: dict[str, Any]
    preset: Preset
    samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("samples", self.samples, 1, whole=True)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    backbone: dict[str, Any]
    datasets: list[Any]
    split: str
    samples: int
    gap: int | None
    filler: str
    output: str

    def __post_init__(self) -> None:
        check_number("samples", self.samples, 1, whole=True)
        check_output(self.output)


@dataclass(frozen=True, kw_only=True)
class Train:
    backbone: dict[str, Any]
    recipe: dict[str, Any]
    recipes: dict[str, Any]
    output: str

    def __post_init__(self) -> None:
        check_output(self.output)


COMMANDS: dict[str, type[Any]] = {
    "evaluate": Evaluate,
    "sweep": Sweep,
    "doctor": Doctor,
    "gallery": Gallery,
    "train": Train,
}


def check(command: str, config: Mapping[str, Any]) -> None:
    """Raises SettingError unless a plain configuration is one of a command: its name is that of a file in `conf`."""
    if not all(isinstance(key, str) for key in config):
        raise SettingError("command line", list(config), "settings are named by text")
    build(COMMANDS[command], config)
