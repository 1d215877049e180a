"""One evaluation: a backbone, a benchmark, an intervention; one record a sample, and metrics with intervals.

    python -m tdrs.evaluate backbone=mini_llava dataset=mini_scienceqa intervention=tdrs limit=200

writes `samples.parquet`, `result.json` and `config.yaml` into a folder under `outputs/evaluate` and logs the run.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from omegaconf import DictConfig
from tqdm import tqdm

from tdrs import __version__, backbones, benchmarks, interventions
from tdrs.attention.core import EXECUTIONS, Intervention
from tdrs.attention.intervene import Session, intervene
from tdrs.attention.selection import names_numbers, resolve
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.benchmarks import Benchmark, Record, Sample, Samples
from tdrs.configuration import plain, run
from tdrs.settings import check_choice, check_number
from tdrs.statistics import accuracy_interval
from tdrs.tracking import open_tracker

# What decides the records of an evaluation; output and tracking settings do not.
DECISIVE = ("backbone", "dataset", "intervention", "attention", "split", "limit", "batch_size")


@dataclass(frozen=True)
class Plan:
    """A checked configuration of one evaluation; nothing is loaded yet."""

    backbone: BackboneSettings
    dataset: Benchmark
    intervention: Intervention
    execution: str
    split: str
    limit: int | None
    batch_size: int
    config: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """A hash of what decides the records."""
        decisive = {name: self.config[name] for name in DECISIVE}
        decisive |= {"weights": self.backbone.fingerprint, "version": __version__}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def plan(config: Mapping[str, Any]) -> Plan:
    """Check a plain configuration, before anything is loaded.

    Raises:
        SettingError: a setting is unknown or out of range.
    """
    check_choice("split", config["split"], benchmarks.SPLITS)
    check_choice("attention.execution", config["attention"]["execution"], list(EXECUTIONS))
    check_number("batch_size", config["batch_size"], 1, whole=True)
    if config["limit"] is not None:
        check_number("limit", config["limit"], 1, whole=True)
    backbone = backbones.from_settings(config["backbone"])
    intervention = interventions.from_settings(config["intervention"])
    for place, part in enumerate(("layers", "heads")):
        chosen = getattr(intervention, part)
        if names_numbers(chosen):
            resolve(f"intervention.{part}", chosen, backbone.shape[place])
    return Plan(
        backbone=backbone,
        dataset=benchmarks.from_settings(config["dataset"]),
        intervention=intervention,
        execution=config["attention"]["execution"],
        split=config["split"],
        limit=config["limit"],
        batch_size=config["batch_size"],
        config=config,
    )


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        records: one a sample.
        metrics: the benchmark's, and the accuracy's 95 % limits, the mean margin, the share of clamped w_min.
        notes: what a reader of the metrics should know.
        clamped: how many w_min were clamped, and of how many.
        seconds: how long it took.
    """

    records: list[Record]
    metrics: dict[str, float]
    notes: list[str]
    clamped: dict[str, tuple[int, int]]
    seconds: float

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write the three files; `result.json` last, so that a folder with it is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([asdict(record) for record in self.records]), folder / "samples.parquet")
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
        result = {
            "metrics": {name: None if math.isnan(value) else value for name, value in self.metrics.items()},
            "n": len(self.records),
            "notes": self.notes,
            "clamped": self.clamped,
            "seconds": self.seconds,
        }
        partial = folder / "result.json.partial"
        partial.write_text(json.dumps(result, indent=2))
        partial.replace(folder / "result.json")

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """What `save` wrote."""
        result = json.loads((folder / "result.json").read_text())
        rows = pq.read_table(folder / "samples.parquet").to_pylist()
        clamped = {name: (count, of) for name, (count, of) in result["clamped"].items()}
        metrics = {name: math.nan if value is None else value for name, value in result["metrics"].items()}
        return cls([Record(**row) for row in rows], metrics, result["notes"], clamped, result["seconds"])


def _metrics(
    benchmark: Benchmark, records: Sequence[Record], clamped: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    metrics = benchmark.metrics(records)
    weights = [record.weight for record in records]
    interval = accuracy_interval([r.score for r in records], [r.image_id for r in records], weights)
    metrics |= {"accuracy_low": interval.low, "accuracy_high": interval.high}
    metrics["margin"] = sum(r.margin * r.weight for r in records) / sum(weights) if records else math.nan
    return metrics | {f"clamped_{name}": count / max(of, 1) for name, (count, of) in clamped.items()}


def evaluate(
    backbone: Backbone,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    intervention: Intervention,
    batch_size: int = 32,
    execution: str = "blocked",
    progress: str | None = None,
) -> Evaluation:
    """Answer every sample greedily under the intervention and score the answers.

    Args:
        progress: the progress bar's text; None for no bar.
    """
    start = time.perf_counter()
    scope: AbstractContextManager[Session | None] = (
        intervene(backbone.model, intervention, execution) if intervention.active else nullcontext()
    )
    records = []
    quiet = progress is None or not sys.stderr.isatty()
    with scope as session, tqdm(total=len(samples), desc=progress, unit="sample", disable=quiet, leave=False) as bar:
        for first in range(0, len(samples), batch_size):
            batch = samples[first : first + batch_size]
            for sample, answer in zip(batch, backbone.answer(batch, benchmark.real), strict=True):
                records.append(replace(benchmark.score(answer.text, sample), margin=answer.margin))
            bar.update(len(batch))
    clamped = session.clamped if session else {}
    notes = [*(samples.notes if isinstance(samples, Samples) else ()), *benchmark.notes(records)]
    return Evaluation(records, _metrics(benchmark, records, clamped), notes, clamped, time.perf_counter() - start)


def clamped_line(clamped: Mapping[str, tuple[int, int]]) -> str:
    """A sentence on clamped w_min, or "" where none was."""
    parts = [f"{name}: {count} of {of}" for name, (count, of) in clamped.items() if count]
    return f"w_min clamped into (0, 1): {'; '.join(parts)}" if parts else ""


def main_evaluate(config: DictConfig) -> None:
    values = plain(config)
    planned = plan(values)
    samples = benchmarks.load(planned.dataset, planned.split, planned.limit, planned.backbone.prompt_style)
    with open_tracker(values["tracking"], Path(values["output"])) as tracker:
        backbone = backbones.load(planned.backbone)
        names = [values[part]["name"] for part in ("backbone", "dataset", "intervention")]
        folder = Path(values["output"]) / "evaluate" / f"{'-'.join(names)}-{planned.identity}"
        tags = {"identity": planned.identity, "split": planned.split, **dict(zip(DECISIVE, names, strict=False))}
        with tracker.run("evaluate", " ".join(names), tags) as logged:
            evaluation = evaluate(
                backbone,
                planned.dataset,
                samples,
                planned.intervention,
                planned.batch_size,
                planned.execution,
                progress=" ".join(names),
            )
            evaluation.save(folder, values)
            logged.result({f"{planned.split}.{k}": v for k, v in evaluation.metrics.items()}, folder)
        metrics = evaluation.metrics
        low, high = metrics["accuracy_low"], metrics["accuracy_high"]
        print(f"{'backbone':18}{'dataset':18}{'intervention':14}{'split':10}{'n':>5}  accuracy [95 % interval]")
        print(
            f"{names[0]:18}{names[1]:18}{names[2]:14}{planned.split:10}{len(samples):>5}  "
            f"{metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}]  in {evaluation.seconds:.0f} s"
        )
        others = {k: v for k, v in metrics.items() if k in planned.dataset.shown}
        if others:
            print("  ".join(f"{name} {value:.3f}" for name, value in others.items()))
        for line in filter(None, [clamped_line(evaluation.clamped), *evaluation.notes]):
            print(line)
        print(f"records: {folder}")
        print("\n".join(tracker.next_steps("evaluate")))


USAGE = """
python -m tdrs.evaluate [GROUP=CHOICE ...] [SETTING=VALUE ...]   (--cfg prints the configuration and stops)

Groups and their choices:
"""

if __name__ == "__main__":
    sys.exit(run("evaluate", main_evaluate, USAGE))
