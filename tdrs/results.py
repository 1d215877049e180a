"""The result of an evaluation, its schema and its files: one record a sample, metrics, and what a reader should know.

A finished evaluation is three files: `samples.parquet` (its records), `config.yaml`, and `result.json` with the metrics
and the checksums of the other two. Each is written under another name and moved into place, `result.json` last: where
it exists, the evaluation is finished.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tdrs import checked_file
from tdrs.benchmarks import Record
from tdrs.benchmarks.benchmark import mean_score
from tdrs.checked_file import Damaged
from tdrs.first_token import divergence
from tdrs.settings import SettingError
from tdrs.statistics import accuracy_interval

Counts = dict[str, tuple[int, int]]  # by name: how many, of how many
Asked = tuple[str, str, str, float]
FILES = ("config.yaml", "samples.parquet", "result.json")  # of a finished evaluation
_COLUMNS = [column.name for column in fields(Record)]


@dataclass(frozen=True)
class Batch:
    """A finished batch of an evaluation.

    Attributes:
        start: the number of its first sample.
        records: one record a sample.
        clamped: by stage, how many w_min were clamped, and of how many.
        seconds: how long it took.
        size: how many samples were asked at a time: the batch size, or fewer after memory ran out.
        marked: special tokens of the model that samples spell out, and in how many samples.
        diagnostics: other counts of the method, by kind; see `tdrs.attention.tally`.
        over: what prompts of the batch are longer than, in words, and how many are.
    """

    start: int
    records: list[Record]
    clamped: Counts
    seconds: float
    size: int
    marked: dict[str, int] = field(default_factory=dict)
    diagnostics: dict[str, Counts] = field(default_factory=dict)
    over: dict[str, int] = field(default_factory=dict)

    def as_line(self) -> dict[str, Any]:
        """The batch as plain values, for a line of `batches.jsonl`."""
        line = vars(self) | {"records": [[getattr(record, name) for name in _COLUMNS] for record in self.records]}
        return {name: value for name, value in line.items() if name not in ("diagnostics", "over") or value}

    @classmethod
    def of_line(cls, values: Mapping[str, Any]) -> "Batch":
        """The batch that `as_line` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the values have another form.
        """
        records = [Record(*row) for row in values["records"]]
        clamped, marked = _counts(values["clamped"]), values.get("marked") or {}
        others, over = _diagnostics(values), values.get("over") or {}
        return cls(values["start"], records, clamped, values["seconds"], values["size"], marked, others, over)

    def answers(self, asked: Sequence[Asked], size: int) -> bool:
        """Whether this is a whole batch of `size` of these samples, which `asked_of` gave."""
        expected = list(asked[self.start : self.start + size])
        return self.start % size == 0 and len(expected) > 0 and asked_of(self.records) == expected


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation.

    Attributes:
        records: one record a sample.
        metrics: the benchmark's metrics, the 95 % limits of the accuracy, the mean margin, the share of clamped w_min.
        notes: what a reader of the metrics should know.
        clamped: by stage, how many w_min were clamped, and of how many.
        seconds: how long its batches took.
        finished: when it was finished, in seconds since 1970.
        environment: versions and machine of the process that finished it; empty if they are not known.
        diagnostics: other counts of the method, by kind; see `tdrs.attention.tally`.
    """

    records: list[Record]
    metrics: dict[str, float]
    notes: list[str]
    clamped: Counts
    seconds: float
    finished: float
    environment: dict[str, str] = field(default_factory=dict)
    diagnostics: dict[str, Counts] = field(default_factory=dict)

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write the three files into a folder whose name is the cache key."""
        table = pa.table({name: [getattr(record, name) for record in self.records] for name in _COLUMNS})
        samples = io.BytesIO()
        pq.write_table(table, samples)
        checked_file.write(folder / "samples.parquet", samples.getvalue())
        written = checked_file.write_yaml(folder / "config.yaml", config)
        result = {
            "metrics": {name: None if math.isnan(value) else value for name, value in self.metrics.items()},
            "n": len(self.records),
            "notes": self.notes,
            "clamped": self.clamped,
            **({"diagnostics": self.diagnostics} if self.diagnostics else {}),
            "seconds": self.seconds,
            "finished": self.finished,
            "environment": self.environment,
            "files": {"samples.parquet": checked_file.sha256(samples.getvalue()), "config.yaml": written},
        }
        checked_file.write_json(folder / "result.json", result, folder.name)

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the evaluation is not finished.
            Damaged: a file differs from what was written, or the metrics differ from those of the rows.
        """
        try:
            return cls._read(folder)
        except Damaged:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
            raise Damaged(f"result.json or samples.parquet has another form ({type(error).__name__})") from None

    @classmethod
    def _read(cls, folder: Path) -> "Evaluation":
        result = checked_file.read_json(folder / "result.json", folder.name)
        contents = {}
        for name, digest in result["files"].items():
            try:
                contents[name] = (folder / name).read_bytes()
            except OSError:
                raise Damaged(f"{name} is missing or cannot be read") from None
            if checked_file.sha256(contents[name]) != digest:
                raise Damaged(f"{name} has another content than result.json says")
        rows = pq.read_table(io.BytesIO(contents["samples.parquet"])).to_pylist()
        records = [Record(**row) for row in rows]
        metrics = {name: math.nan if value is None else value for name, value in result["metrics"].items()}
        if len(records) != result["n"]:
            raise Damaged(f"result.json has {result['n']} samples, samples.parquet {len(records)}")
        for name, value in of_rows(records).items():
            if not alike(metrics[name], value):
                raise Damaged(f"result.json has {name} {metrics[name]:g}, its rows give {value:g}")
        return cls(
            records=records,
            metrics=metrics,
            notes=result["notes"],
            clamped=_counts(result["clamped"]),
            seconds=result["seconds"],
            finished=result["finished"],
            environment=result["environment"],
            diagnostics=_diagnostics(result),
        )


@dataclass(frozen=True)
class Failure:
    """Why an evaluation failed.

    Attributes:
        reason: the error, in one line.
        attempts: how often the evaluation was tried.
        time: when it failed last, in seconds since 1970.
        trace: where in the code.
    """

    reason: str
    attempts: int
    time: float
    trace: str


def _counts(values: Mapping[str, Sequence[int]]) -> Counts:
    return {name: (count, of) for name, (count, of) in values.items()}


def _diagnostics(values: Mapping[str, Any]) -> dict[str, Counts]:
    return {kind: _counts(counts) for kind, counts in (values.get("diagnostics") or {}).items()}


def of_rows(records: Sequence[Record]) -> dict[str, float]:
    """The metrics of every benchmark: accuracy with its 95 % limits, and the mean margin."""
    weights = [record.weight for record in records]
    interval = accuracy_interval([r.score for r in records], [r.image_id for r in records], weights)
    margin = weighted_mean([record.margin for record in records], records)
    limits = {"accuracy_low": interval.low, "accuracy_high": interval.high}
    return {"accuracy": mean_score(records), **limits, "margin": margin}


def weighted_mean(values: Sequence[float], records: Sequence[Record]) -> float:
    """The mean of one value a record, weighted as the samples are; nan without records."""
    weights = [record.weight for record in records]
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return total / sum(weights) if records else math.nan


def divergences(stock: Sequence[Record], edited: Sequence[Record]) -> list[float]:
    """For each sample, KL(stock ‖ edited) of the first token's distribution, in nats; see `first_token.divergence`.

    It is nan where a record does not have the distribution.

    Args:
        stock, edited: records of the same samples in the same order.
    """
    return [divergence(before.first_token, after.first_token) for before, after in zip(stock, edited, strict=True)]


def mean_divergence(stock: Sequence[Record], edited: Sequence[Record]) -> float:
    """The weighted mean of `divergences`; nan if a record does not have the distribution."""
    return weighted_mean(divergences(stock, edited), stock)


def alike(first: float, second: float) -> bool:
    """Whether two metrics are equal except for rounding. Two nan, which mean not measured, are equal."""
    return math.isclose(first, second, abs_tol=1e-9) or (math.isnan(first) and math.isnan(second))


def asked_of(items: Sequence[Any]) -> list[Asked]:
    """What identifies samples or records: id, image, gold answer, weight."""
    return [(one.id, one.image_id, one.gold, float(one.weight)) for one in items]


def check_same_samples(first: Sequence[Record], second: Sequence[Record], name: str) -> None:
    """Raises SettingError under `name` unless both are records of the same samples in the same order."""
    if len(first) != len(second):
        raise SettingError(name, len(second), f"records cannot be paired with {len(first)} of the stock model")
    for before, after in zip(first, second, strict=True):
        if _asked(before) != _asked(after):
            raise SettingError(name, after.id, f"cannot be paired with the stock model's {before.id}: other samples")


def _asked(record: Record) -> tuple[object, ...]:
    """What a record says of its sample."""
    return record.id, record.image_id, record.question, record.gold, record.categories, record.weight
