"""The settings of each command: their types, ranges, defaults and meaning.

A default is in its dataclass alone; the files in `conf` say only what differs from it. `check` examines a whole
configuration before anything is loaded or written. The settings of a backbone, a data set, a method and a protocol are
in dataclasses of their own.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tdrs.settings import SettingError, build, build_named, check_complete, check_number

LONGEST_NAME = 200  # bytes of a study's name: with an ending it must still be a valid file name


def check_study_name(name: object, setting: str = "study.name") -> None:
    """Raises SettingError unless a name can be a folder's name on any system, and can be typed in a command."""
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
        tempfile.TemporaryFile(dir=there).close()  # permissions do not show that a file system is read-only
    except OSError as error:
        raise SettingError("output", output, f"{there} cannot be written: {error.strerror}") from None


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """The `study` group.

    Args:
        name: the study's folder under `output`, and its experiment in MLflow.
        storage: where its trials are an Optuna study: `journal`, `postgresql://HOST/NAME` or `grpc://HOST:PORT`.
    """

    name: str = "sweep"
    storage: str = "journal"

    def __post_init__(self) -> None:
        check_study_name(self.name, "name")


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """The `attention` group.

    Args:
        execution: how edited attention is computed: `auto`; `blocked`, in blocks of query rows; `triton`, in
            fused kernels on a GPU; `reference`, the whole map at once, which is the specification and slow.
    """

    execution: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The `preset` group: how many samples of each split.

    Args:
        tuning: at most this number of samples on the tuning split, a fair draw of whole images; None is all.
        held_out: the same on the held-out split.
    """

    tuning: int | None
    held_out: int | None

    def __post_init__(self) -> None:
        for name in ("tuning", "held_out"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, whole=True)


@dataclass(frozen=True, kw_only=True)
class MLflow:
    """`tracking=mlflow`.

    Args:
        uri: a store's address, such as http://127.0.0.1:5000; None is `mlflow.db` in the output folder.
    """

    uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class NoTracking(MLflow):
    """`tracking=none`: nothing is logged."""


@dataclass(frozen=True, kw_only=True)
class Alone:
    """`workers=inline`: one process measures."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """`workers=processes`.

    Args:
        count: how many processes measure; each has a GPU of its own, or its share of the cores.
    """

    count: int = 2

    def __post_init__(self) -> None:
        check_number("count", self.count, 1, 1024, whole=True)


@dataclass(frozen=True, kw_only=True)
class Ray(Processes):
    """`workers=ray`.

    Args:
        count: how many of Ray's workers measure.
        num_gpus: GPUs of each worker; 1 for the models of 7 and 8 billion parameters.
        address: a cluster's address, such as auto on one of its nodes; None starts Ray on this machine.
    """

    num_gpus: float = 0
    address: str | None = None

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
    """Settings of all commands that measure.

    Args:
        backbone, dataset, intervention: the choices of these groups.
        batch_size: how many samples are asked at a time. It changes rounding, and so, rarely, an answer.
        attention: how attention is computed.
        features_gib: GiB of image features that are kept on disk at most; 0 keeps none.
        output: the folder for all that is written.
    """

    named: ClassVar[tuple[str, ...]] = ("backbone", "dataset", "intervention")  # groups with a name

    backbone: dict[str, Any]
    dataset: dict[str, Any]
    intervention: dict[str, Any]
    batch_size: int = 32
    attention: AttentionSettings = AttentionSettings()
    features_gib: float = 20
    output: str = "outputs"

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
    """`python -m tdrs.evaluate`.

    Args:
        tracking: where the run is logged.
        batch_tokens: the most tokens that are asked at a time, padding included. A batch is then asked in parts of
            similar length. None is whole batches.
        split: `tuning`, on which settings are chosen, or `held_out`, which is reported.
        limit: the most samples, a fair draw of the split; None is all.
        shard: a part of the samples, for several machines: 2/4 is the second of four. The last one makes the result.
    """

    tracking: dict[str, Any]
    batch_tokens: int | None = None
    split: str = "held_out"
    limit: int | None = None
    shard: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        build_named("tracking", TRACKING, self.tracking)
        if self.batch_tokens is not None:
            check_number("batch_tokens", self.batch_tokens, 1, whole=True)
        if self.limit is not None:
            check_number("limit", self.limit, 1, whole=True)


@dataclass(frozen=True, kw_only=True)
class Sweep(Common):
    """`python -m tdrs.sweep`.

    Args:
        search: the protocol and its settings.
        preset: how many samples of each split.
        workers: what measures: this process, several processes, or Ray.
        tracking: where the runs are logged.
        batch_tokens: the most tokens that are asked at a time, padding included. A batch is then asked in parts of
            similar length. None is whole batches.
        study: the study's name and storage.
        dry_run: print the trials that would run, and an estimate of the time.
    """

    search: dict[str, Any]
    preset: Preset
    workers: dict[str, Any]
    tracking: dict[str, Any]
    batch_tokens: int | None = None
    study: StudySettings = StudySettings()
    dry_run: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        build_named("tracking", TRACKING, self.tracking)
        if self.batch_tokens is not None:
            check_number("batch_tokens", self.batch_tokens, 1, whole=True)
        build_named("workers", WORKERS, self.workers)


@dataclass(frozen=True, kw_only=True)
class Calibrate(Common):
    """`python -m tdrs.calibrate`.

    Args:
        score: by what heads are chosen: `influence`, `text_weight` or `image_logits`; None is the method's own.
        keep: how many heads are chosen; None is 2 % of all, as AD-HH's 20 of 1024, at least one.
        limit: the most samples of the tuning split, a fair draw; None is all.
        file: where the choice is written, a name that ends with .yaml; None is in `heads` in the output folder.
    """

    score: str | None = None
    keep: int | None = None
    limit: int | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "limit"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, whole=True)
        if self.file is not None and not self.file.endswith(".yaml"):
            raise SettingError("file", self.file, "must end with .yaml")


@dataclass(frozen=True, kw_only=True)
class Doctor(Common):
    """`python -m tdrs.doctor`.

    Args:
        search: the protocol whose time is estimated.
        preset: how many samples of each split that study has.
        samples: held-out samples on which the unedited model is compared with its published score.
    """

    search: dict[str, Any]
    preset: Preset
    samples: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("samples", self.samples, 1, whole=True)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """`python -m tdrs.analysis.gallery`.

    Args:
        backbone: whose prompts are shown.
        datasets: names of `conf/dataset`; a page for each.
        split: `tuning`, or `held_out`, which is for reporting and not for looking at.
        samples: how many on a page.
        gap: tokens of unrelated text; None is each data set's own gap.
        filler: where this text stands: `between` image and question, or `before_image`.
        output: the folder for all that is written.
    """

    backbone: dict[str, Any]
    datasets: list[Any] = field(default_factory=lambda: ["mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"])
    split: str = "tuning"
    samples: int = 6
    gap: int | None = 12
    filler: str = "between"
    output: str = "outputs"

    def __post_init__(self) -> None:
        check_number("samples", self.samples, 1, whole=True)
        check_output(self.output)


@dataclass(frozen=True, kw_only=True)
class Train:
    """`python -m tdrs.zoo.train`.

    Args:
        backbone: the embedded model that is trained again.
        recipe: settings that differ from the model's own recipe; null is the model's own.
        recipes: the recipes of the embedded models.
        output: the folder for all that is written.
    """

    backbone: dict[str, Any]
    recipe: dict[str, Any]
    recipes: dict[str, Any]
    output: str = "outputs"

    def __post_init__(self) -> None:
        check_output(self.output)


COMMANDS: dict[str, type[Any]] = {
    "evaluate": Evaluate,
    "sweep": Sweep,
    "calibrate": Calibrate,
    "doctor": Doctor,
    "gallery": Gallery,
    "train": Train,
}


def check(command: str, config: Mapping[str, Any]) -> None:
    """Raises SettingError unless a plain configuration is one of a command, whose name is that of a file in `conf`."""
    if not all(isinstance(key, str) for key in config):
        raise SettingError("command line", list(config), "settings are named by text")
    check_complete(COMMANDS[command], config)
    for group, kind in (("attention", AttentionSettings), ("study", StudySettings)):
        if isinstance(config.get(group), Mapping):
            _check_group(group, kind, config[group])
    workers = config.get("workers")
    if isinstance(workers, Mapping) and workers.get("name") in WORKERS:
        _check_group("workers", WORKERS[workers["name"]], workers)
    build(COMMANDS[command], config)


def _check_group(group: str, kind: type[Any], values: Mapping[str, Any]) -> None:
    try:
        check_complete(kind, values)
    except SettingError as error:
        raise error.under(group) from None
