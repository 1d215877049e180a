"""The data of a study: requests, the trials that answer them, and the outcome of a finished study."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tdrs import checked_file
from tdrs.benchmarks import Record
from tdrs.results import Counts, check_same_samples
from tdrs.settings import SettingError, build
from tdrs.statistics import Interval, paired_difference

Settings = dict[str, Any]  # dotted configuration key → value; a group (`backbone`) by the name of its choice
STOCK = "stock"
STOCK_SETTINGS: Settings = {"intervention": "none"}
COMPLETE, FAILED, PRUNED, PARTIAL, PLANNED = "complete", "failed", "pruned", "partial", "planned"
METHOD_GROUPS = ("intervention", "attention")  # what a method, a series, a step or a space may set: not the samples
AXIS_GROUPS = ("backbone", "dataset", *METHOD_GROUPS, "batch_size")  # what an axis may set: all that decides a record


@dataclass(frozen=True)
class Request:
    """One evaluation that a protocol asks for.

    Args:
        name: the row or the series it belongs to.
        settings: changes to the study's configuration, applied after those of `condition`.
        budget: how many trials on the tuning split its settings were chosen from; 0 if they were given.
        incumbent: the trial to beat. With it, this trial is pruned if it has little chance to (`sampled.should_prune`).
        upto: how many samples are measured, the first ones of the split, in whole batches; None is all of them.
        ended: with `upto`, whether the trial ends there, and is written as pruned. If not, it may go on.
    """

    name: str
    split: str
    settings: Settings
    condition: Settings = field(default_factory=dict)
    budget: int = 0
    incumbent: "Trial | None" = field(default=None, compare=False)
    upto: int | None = None
    ended: bool = False

    @property
    def merged(self) -> Settings:
        """Condition and settings, groups before single keys."""
        both = {**self.condition, **self.settings}
        return dict(sorted(both.items(), key=lambda item: "." in item[0]))

    @property
    def label(self) -> str:
        """The request in a few words, to show."""
        conditions = (str(value) for value in self.condition.values())
        return " ".join(filter(None, [self.name, *conditions, shown(self.settings)]))


def check_method_keys(settings: object, name: str) -> None:
    """Raises SettingError under `name` unless this is a mapping, and no key changes the samples or what answers them.

    Trials of one condition are compared with each other and with the stock model there, so they may differ in the edit
    alone.
    """
    if not isinstance(settings, Mapping):
        raise SettingError(name, settings, "must be settings: a mapping of keys and values")
    for key, value in settings.items():
        if str(key).split(".")[0] not in METHOD_GROUPS:
            allowed = "changes the samples or what answers them, so it belongs to search.axes"
            raise SettingError(f"{name}.{key}", value, allowed)


def shown(settings: Mapping[str, Any], digits: int = 6) -> str:
    """Settings with short numbers, to show: `gain=weights dc.w_min=3`. The choice of a group is left out.

    Args:
        digits: of a number that is not whole.
    """
    return spelled(
        {
            key: f"{value:.{digits}g}" if isinstance(value, float) else value
            for key, value in settings.items()
            if "." in key
        }
    )


def spelled(settings: Mapping[str, Any]) -> str:
    """All settings, to show: `gain=logits dc.w_min=3`."""
    return " ".join(f"{key.removeprefix('intervention.')}={value}" for key, value in settings.items())


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a kept file under the names of today; until version 0.6 some had others."""
    return {{"place": "condition", "identity": "cache_key"}.get(key, key): value for key, value in values.items()}


@dataclass(frozen=True)
class Trial:
    """A request that was measured.

    Attributes:
        cache_key: the hash of what decides the records; the name of their folder.
        n: how many samples it saw.
        metrics: empty if the trial failed; of the samples it saw if it was pruned.
        expected: if it was pruned, the expected value of its objective over all samples.
        status: `complete`; `failed`, with its `reason`; `pruned`; `partial`, if it may go on; `planned`, in a dry run.
        difference: to the stock model at the same condition, paired, with its 95 % limits; None if there is none.
        kl: the mean of KL(stock ‖ edited) of the first token's distribution to the same stock model, in nats; see
            `tdrs/first_token.py`. None if there is none, or if records do not have the distributions.
        samples: a hash of the samples' content.
        seconds, finished: how long its batches took, and when it was over, in seconds since 1970.
    """

    name: str
    split: str
    condition: Settings
    settings: Settings
    cache_key: str
    n: int
    metrics: dict[str, float] = field(default_factory=dict)
    clamped: Counts = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    finished: float = 0.0
    status: str = COMPLETE
    reason: str = ""
    budget: int = 0
    difference: tuple[float, float, float] | None = None
    samples: str = ""
    expected: float | None = None
    kl: float | None = None

    @property
    def key(self) -> str:
        """A hash of what was asked and what decides the result; it names the trial in Optuna and MLflow."""
        values = [self.name, self.split, self.condition, self.settings, self.cache_key]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def value(self, objective: str) -> float:
        """A metric; if the trial was pruned, its expected value over all samples."""
        return self.metrics[objective] if self.expected is None else self.expected

    @property
    def accuracy(self) -> tuple[float, float, float]:
        """The accuracy with its 95 % limits; for a trial that has metrics."""
        return self.metrics["accuracy"], self.metrics["accuracy_low"], self.metrics["accuracy_high"]

    @property
    def score(self) -> float:
        """The accuracy; −∞ if the trial is not complete."""
        return self.metrics["accuracy"] if self.status == COMPLETE else -math.inf

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Trial":
        """The trial of plain values, such as JSON gives; raises SettingError if one is not of its form."""
        found = build(cls, renamed(values))
        if not all(isinstance(value, int | float) for value in found.metrics.values()):
            raise SettingError("metrics", found.metrics, "must be numbers")
        if found.status == COMPLETE and "accuracy" not in found.metrics:
            raise SettingError("metrics", found.metrics, "lack the accuracy")
        if not re.fullmatch(r"[0-9a-f]{16}", found.cache_key):
            raise SettingError("cache_key", found.cache_key, "must be 16 hexadecimal digits")
        return replace(found, clamped={name: (count, of) for name, (count, of) in found.clamped.items()})


def check_pair(stock: Trial, edited: Trial, before: Sequence[Record], after: Sequence[Record]) -> None:
    """Raises SettingError unless two trials, with these records, may be compared sample by sample."""
    if stock.samples != edited.samples:
        allowed = "cannot be compared with the stock model: its samples have another content"
        raise SettingError(edited.name, edited.samples, allowed)
    check_same_samples(before, after, edited.name)


def difference(stock: Trial, edited: Trial, before: Sequence[Record], after: Sequence[Record]) -> Interval:
    """The paired difference of two trials with these records, with its 95 % interval; images are the clusters.

    Raises:
        SettingError: the trials are not on the same samples.
    """
    check_pair(stock, edited, before, after)
    return paired_difference(
        [record.score for record in before],
        [record.score for record in after],
        [record.image_id for record in before],
        [record.weight for record in before],
    )


@dataclass(frozen=True)
class Curve:
    """One step of one series of the protocol `coordinate`.

    Attributes:
        trials: the numbers of its points' trials in the outcome's list.
        values: in the order they were asked.
        chosen: the value that was kept for the next steps.
        round: from 1 on.
    """

    series: str
    condition: Settings
    round: int
    key: str
    label: str
    paper: float
    values: list[float]
    trials: list[int]
    chosen: float


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes:
        trials: on the tuning split, in the protocol's order.
        rows: on the held-out split; at each condition the stock model is first.
        key: of the study, as `study_key` makes it of its settings.
        command: what was typed.
        environment: versions, machine, commit, where its records were measured.
        overlap: how many held-out samples are also in the tuning split, if settings were chosen there. Unless it is 0,
            the result is marked wherever it is shown.
    """

    name: str
    protocol: str
    config: dict[str, Any]
    trials: list[Trial]
    rows: list[Trial]
    curves: list[Curve] = field(default_factory=list)
    key: str = ""
    command: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    overlap: int = 0

    @property
    def warning(self) -> str:
        """The warning that comes first if settings were chosen on samples that are reported; "" if they were not."""
        if not self.overlap:
            return ""
        return f"TUNED ON THE REPORTED SPLIT: {self.overlap} held-out samples are also in the tuning split"

    @property
    def tuning_n(self) -> str:
        """How many samples settings were chosen on, to show: `150 to 160` if trials have different numbers."""
        numbers = sorted({t.n for t in self.trials if t.split == "tuning" and t.status != PRUNED}) or [0]
        return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"

    @property
    def stamp(self) -> dict[str, str]:
        """The study's name and key and the version of tdrs, for the metadata of figures and tables."""
        version = self.environment.get("tdrs", "an unknown version")
        return {"Title": self.name, "Identifier": self.key, "Source": f"tdrs {version}"}

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        checked_file.write_json(path, asdict(self), self.key)

    @classmethod
    def read(cls, path: Path, key: str) -> "Outcome":
        """What `save` wrote, of the study with this key; raises FileNotFoundError, or Damaged."""
        values = checked_file.read_json(path, key)
        trials, rows = ([Trial.of(trial) for trial in values[part]] for part in ("trials", "rows"))
        curves = [Curve(**renamed(curve)) for curve in values["curves"]]
        return cls(**{**values, "key": key, "trials": trials, "rows": rows, "curves": curves})

    def named(self, condition: Mapping[str, Any], group: str) -> str:
        """The name of a condition's backbone or data set."""
        return str(condition.get(group, self.config[group]["name"]))

    def all_named(self, group: str) -> list[str]:
        """The names of all rows' backbones or data sets, in order, each once."""
        return list(dict.fromkeys(self.named(row.condition, group) for row in self.rows))

    @property
    def failures(self) -> list[Trial]:
        """Trials that failed, on either split."""
        return [trial for trial in [*self.trials, *self.rows] if trial.status == FAILED]
