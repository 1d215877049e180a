"""One evaluation: a backbone, a benchmark, an intervention; one record a sample, and metrics with intervals.

    python -m tdrs.evaluate backbone=mini_llava dataset=mini_scienceqa intervention=tdrs limit=200

keeps `samples.parquet`, `result.json` and `config.yaml` in a folder under `outputs/records` and logs the run. Samples
are asked in batches that their numbers alone decide; a run that was stopped goes on at the next whole batch, so its
records are those of an uninterrupted one, bit for bit.
"""

import hashlib
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from tdrs import __version__, backbones, benchmarks, interventions
from tdrs.attention.core import EXECUTIONS
from tdrs.attention.intervene import intervene
from tdrs.attention.selection import names_numbers, resolve
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.features import Features
from tdrs.backbones.huggingface import Answer
from tdrs.benchmarks import Benchmark, Record, Sample, Samples
from tdrs.benchmarks.prompts import answer_length
from tdrs.commands import command
from tdrs.configuration import plain, run, typed
from tdrs.environment import environment
from tdrs.interventions import Method
from tdrs.records import Batch, Counts, Evaluation, Records, alike, asked_of, of_rows
from tdrs.settings import SettingError, check_choice, check_number
from tdrs.stopping import stoppable
from tdrs.tracking import open_tracker


@dataclass(frozen=True)
class Plan:
    """A checked configuration of one evaluation; nothing is loaded yet."""

    backbone: BackboneSettings
    dataset: Benchmark
    intervention: Method
    execution: str
    split: str
    limit: int | None
    batch_size: int
    config: Mapping[str, Any]

    def load(self, limit_name: str = "limit") -> Samples:
        """The samples; raises as `benchmarks.load`."""
        accepts = self.backbone.accepts
        return benchmarks.load(self.dataset, self.split, self.limit, self.style, limit_name, accepts)

    @property
    def style(self) -> str:
        """Whose prompt is asked: the data set's own, or the backbone's."""
        return self.backbone.prompt_style if self.dataset.prompt == "backbone" else self.dataset.prompt

    def cache_key(self, samples: Samples) -> str:
        """A hash of what decides the records of these samples: not of paths, names, or settings without effect."""
        method = self.intervention.effective
        for place, part in enumerate(("layers", "heads")):
            if method and method[part] != "all":
                count = self.backbone.shape[place]
                chosen = resolve(part, method[part], count)
                method[part] = "all" if len(chosen) == count else sorted(chosen)
        decisive = {
            "backbone": self.backbone.decisive,
            "samples": samples.content,
            "rule": [type(self.dataset).__name__, self.dataset.rule],
            "answer": answer_length(self.style, self.dataset.real, self.backbone.max_new_tokens),
            "method": method,
            "execution": self.execution if method else "",
            "batch_size": self.batch_size,
            "version": __version__,
        }
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
        dataset=benchmarks.from_settings(config["dataset"]).asked_by(backbone.prompt_style),
        intervention=intervention,
        execution=config["attention"]["execution"],
        split=config["split"],
        limit=config["limit"],
        batch_size=config["batch_size"],
        config=config,
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a device or a machine that has no more memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _ask(backbone: Backbone, batch: Sequence[Sample], benchmark: Benchmark, size: int) -> list[Answer] | None:
    """The answers to a batch, `size` samples at a time; None if memory ran out and fewer can be asked."""
    answers: list[Answer] = []
    try:
        for first in range(0, len(batch), size):
            answers += backbone.answer(batch[first : first + size], benchmark.real, benchmark.prompt)
    except (RuntimeError, MemoryError) as error:
        if size == 1 or not out_of_memory(error):
            raise
        return None
    return answers


def run_batches(
    backbone: Backbone,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    intervention: Method,
    batch_size: int,
    execution: str = "auto",
    done: Sequence[Batch] = (),
    starts: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Answer the samples greedily under the intervention, batch by batch but for those that are `done`.

    Args:
        starts: the first sample of each batch that is asked; None is all.

    Where memory runs out, a batch is asked in halves, and so are the later ones; that changes rounding, and is noted.

    Raises:
        FloatingPointError: the logits have a NaN.
    """
    benchmark = benchmark.asked_by(backbone.settings.prompt_style)
    size = min([batch_size, *(batch.size for batch in done)])
    with intervene(backbone.model, intervention, execution) as session:
        known = {batch.start for batch in done}
        for first in range(0, len(samples), batch_size) if starts is None else starts:
            if first in known:
                continue
            begun = time.perf_counter()
            batch = samples[first : first + batch_size]
            try:
                while (answers := _ask(backbone, batch, benchmark, size)) is None:
                    size = (size + 1) // 2
                    session.take_clamped()
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error}, in the batch of samples {first} to {first + len(batch) - 1}"
                ) from error
            records = [
                replace(benchmark.score(answer.text, sample), margin=answer.margin)
                for sample, answer in zip(batch, answers, strict=True)
            ]
            clamped = session.take_clamped()
            marked = dict(Counter(filter(None, map(backbone.marks_of, batch))))
            yield Batch(first, records, clamped, time.perf_counter() - begun, size, marked)


def summary(benchmark: Benchmark, samples: Sequence[Sample], batches: Sequence[Batch], batch_size: int) -> Evaluation:
    """What the batches of an evaluation say together."""
    records = [record for batch in batches for record in batch.records]
    clamped: Counts = {}
    for batch in batches:
        for name, (count, of) in batch.clamped.items():
            before = clamped.get(name, (0, 0))
            clamped[name] = (before[0] + count, before[1] + of)
    metrics = benchmark.metrics(records)
    metrics |= of_rows(records) | {"accuracy": metrics["accuracy"]}
    metrics |= {f"clamped_{name}": count / max(of, 1) for name, (count, of) in clamped.items()}
    notes = [*(samples.notes if isinstance(samples, Samples) else ()), *benchmark.notes(records)]
    marked = sum((Counter(batch.marked) for batch in batches), Counter())
    if marked:
        shown = ", ".join(f"{mark} in {count}" for mark, count in marked.most_common())
        notes.append(f"{marked.total()} samples spell out special tokens of the model, read as text: {shown}")
    smallest = min((batch.size for batch in batches), default=batch_size)
    if smallest < batch_size:
        notes.append(f"out of memory: batches of {batch_size} were asked {smallest} samples at a time")
    return Evaluation(records, metrics, notes, clamped, sum(batch.seconds for batch in batches), time.time())


def other_metrics(benchmark: Benchmark, evaluation: Evaluation) -> str:
    """How an evaluation's metrics differ from what its benchmark makes of its rows; "" if they do not."""
    for name, value in benchmark.metrics(evaluation.records).items():
        said = evaluation.metrics.get(name, math.nan)
        if not alike(said, value):
            return f"has {name} {said:g}, its rows give {value:g}"
    return ""


def evaluate(
    backbone: Backbone,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    intervention: Method,
    batch_size: int = 32,
    execution: str = "auto",
) -> Evaluation:
    """Answer every sample greedily under the intervention and score the answers."""
    batches = list(run_batches(backbone, benchmark, samples, intervention, batch_size, execution))
    return summary(benchmark, samples, batches, batch_size)


def clamped_line(clamped: Mapping[str, tuple[int, int]]) -> str:
    """A sentence on clamped w_min, or "" where none was."""
    parts = [f"{name}: {count} of {of}" for name, (count, of) in clamped.items() if count]
    return f"w_min clamped into (0, 1): {'; '.join(parts)}" if parts else ""


def main_evaluate(config: DictConfig) -> None:
    values = plain(config)
    planned, shard = plan(values), values["shard"]
    shard_starts(0, 1, shard)  # is it of its form?
    samples = planned.load()
    cache_key = planned.cache_key(samples)
    output = Path(values["output"])
    records = Records(output / "records")
    names = [values[part]["name"] for part in ("backbone", "dataset", "intervention")]
    with stoppable() as stop, open_tracker(values["tracking"], output) as tracker:
        known = records.done(cache_key)
        features = Features(output / "features", gib(values["features_gib"]))
        size = planned.batch_size
        total = sum(min(size, len(samples) - start) for start in shard_starts(len(samples), size, shard))
        with (
            records.wait_for(cache_key, stop, shard),
            tqdm(total=total, desc=" ".join(names), unit="sample", disable=True if known else None) as bar,
        ):

            def after(count: int) -> None:
                bar.update(count)
                stop.check()

            if not records.done(cache_key):
                load = lambda: backbones.load(planned.backbone, features)  # noqa: E731
                complete(planned, samples, load, records, cache_key, after, shard=shard)
        if not records.done(cache_key):
            kept = sum(len(batch.records) for batch in records.batches(cache_key))
            print(
                f"shard {shard}: {total} samples kept; {kept} of {len(samples)} are there, in {records.path(cache_key)}"
            )
            print("the last shard's command, or this one without shard=, makes the result")
            return
        evaluation = records.read(cache_key)
        tags = {
            "cache_key": cache_key,
            "split": planned.split,
            **dict(zip(("backbone", "dataset"), names, strict=False)),
        }
        metrics = {f"{planned.split}.{name}": value for name, value in evaluation.metrics.items()}
        tracker.log("evaluate", " ".join(names), cache_key, tags, {}, metrics, records.path(cache_key))
        metrics = evaluation.metrics
        low, high = metrics["accuracy_low"], metrics["accuracy_high"]
        print(f"{'backbone':18}{'dataset':18}{'intervention':14}{'split':10}{'n':>5}  accuracy [95 % interval]")
        print(
            f"{names[0]:18}{names[1]:18}{names[2]:14}{planned.split:10}{len(samples):>5}  "
            f"{metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}]  "
            + (f"found done, {evaluation.seconds:.0f} s then" if known else f"in {evaluation.seconds:.0f} s")
        )
        known_intervals = planned.dataset.intervals(evaluation.records)
        for name in planned.dataset.shown:
            i = known_intervals.get(name)
            limits = f" [{i.low:.3f}, {i.high:.3f}]" if i else ""
            print(f"{name} {metrics[name]:.3f}{limits}" if name in metrics else "", end="  ")
        print()
        for line in filter(None, [clamped_line(evaluation.clamped), *evaluation.notes]):
            print(line)
        print(f"records: {records.path(cache_key)}")
        print("\n".join(tracker.next_steps("evaluate", command("tdrs.evaluate", *typed))))


def gib(value: float) -> int:
    """A size in GiB as bytes; raises SettingError below 0."""
    check_number("features_gib", value, 0, 1e9)
    return int(value * 2**30)


def shard_starts(samples: int, batch_size: int, shard: str | None) -> Sequence[int]:
    """The first sample of each batch of a shard, "2/4" being the second quarter of the batches; None is all of them.

    Raises:
        SettingError: not of the form i/n with i from 1 to n.
    """
    starts = range(0, samples, batch_size)
    if shard is None:
        return starts
    found = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise SettingError("shard", shard, "must be i/n, such as 2/4, with i from 1 to n")
    return starts[(number - 1) * len(starts) // of : number * len(starts) // of]


def complete(
    planned: Plan,
    samples: Samples,
    backbone: Callable[[], Backbone],
    records: Records,
    cache_key: str,
    after: Callable[[int], None],
    enough: Callable[[list[Record]], object | None] | None = None,
    shard: str | None = None,
) -> Evaluation | None:
    """Run an evaluation to its end from where it was left, keeping each batch; the caller has claimed it.

    Args:
        backbone: loads the model; not called if nothing is left to ask.
        after: called after each batch with the number of its samples, also for those that were kept before.
        enough: asked after each batch, with all records so far; whatever but None ends the evaluation early.
        shard: only this part of the batches, as `shard_starts` has it.

    Returns:
        The evaluation, kept in `records`; None if it ended early, or lacks other shards, its batches kept.
    """
    starts = shard_starts(len(samples), planned.batch_size, shard)
    unlike = lambda evaluation: other_metrics(planned.dataset, evaluation)  # noqa: E731
    records.mend(cache_key, asked_of(samples), planned.batch_size, shard, unlike)
    known: list[Record] = []

    def add(batch: Batch) -> bool:
        known.extend(batch.records)
        after(len(batch.records))
        return enough is not None and len(known) < len(samples) and enough(known) is not None

    done = records.batches(cache_key)
    if any(add(batch) for batch in done if batch.start in starts):
        return None
    if set(starts) - {batch.start for batch in done}:
        steps = run_batches(
            backbone(),
            planned.dataset,
            samples,
            planned.intervention,
            planned.batch_size,
            planned.execution,
            done,
            starts,
        )
        with closing(steps):  # type: ignore[type-var]
            for batch in steps:
                records.append(cache_key, batch, shard)
                if add(batch):
                    return None
    batches = records.batches(cache_key)  # the other shards' too
    if sum(len(batch.records) for batch in batches) < len(samples):
        return None
    evaluation = summary(planned.dataset, samples, batches, planned.batch_size)
    evaluation = replace(evaluation, environment=environment())
    records.finish(cache_key, evaluation, planned.config)
    return evaluation


USAGE = """
python -m tdrs.evaluate [GROUP=CHOICE ...] [SETTING=VALUE ...]   (--cfg prints the configuration and stops)

Groups and their choices:
"""

if __name__ == "__main__":
    sys.exit(run("evaluate", main_evaluate, USAGE))
