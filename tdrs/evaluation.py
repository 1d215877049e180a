"""One evaluation: ask a backbone the samples of a benchmark under an intervention, and score the answers.

`evaluate` does it in memory. `complete` also keeps each batch in a store of records: an evaluation that was stopped
continues at the next whole batch, and its records are equal bit for bit to those of an uninterrupted one. For that
reason the samples of a batch depend on their numbers alone. `Plan` is the checked configuration of one evaluation;
its cache key says which records belong to it.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from tdrs import __version__, backbones, benchmarks, heads_file, interventions
from tdrs.attention.core import EXECUTIONS
from tdrs.attention.fused import check_fused
from tdrs.attention.second_pass import check_second_pass
from tdrs.attention.selection import heads_by_layer, names_numbers, normal_form
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.decoding import Answer
from tdrs.backbones.limits import notes_of
from tdrs.benchmarks import Benchmark, Record, Sample, Samples
from tdrs.benchmarks.prompts import answer_length
from tdrs.environment import environment
from tdrs.interventions import Method
from tdrs.records import Records
from tdrs.results import Batch, Counts, Evaluation, alike, asked_of, of_rows
from tdrs.settings import SettingError, check_choice, check_number, first_line

SMALLER = "a picture of fewer tokens (backbone.image), backbone.bits=8 and a smaller dataset.gap take less"


@dataclass(frozen=True)
class Plan:
    """The checked configuration of one evaluation. No model or data is loaded yet."""

    backbone: BackboneSettings
    dataset: Benchmark
    intervention: Method
    execution: str
    split: str
    limit: int | None
    batch_size: int
    batch_tokens: int | None
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def load(self, limit_name: str = "limit") -> Samples:
        """Load the samples. Raises the errors of `benchmarks.load`, and SettingError if they do not fit the method."""
        accepts = self.backbone.accepts
        samples = benchmarks.load(self.dataset, self.split, self.limit, self.style, limit_name, accepts)
        check_second_pass(self.intervention, rated=any(sample.rated for sample in samples))
        return samples

    @property
    def style(self) -> str:
        """The prompt style: the data set's own, or the backbone's."""
        return self.backbone.prompt_style if self.dataset.prompt == "backbone" else self.dataset.prompt

    def cache_key(self, samples: Samples) -> str:
        """A hash of all that decides the records of these samples.

        Paths, names and settings without effect are not part of it.
        """
        method = self.intervention.effective
        for one in method.get("parts", [method] if method else []):
            if (one["layers"], one["heads"]) != ("all", "all"):
                chosen = heads_by_layer(one["layers"], one["heads"], self.backbone.shape)
                one |= normal_form(chosen, self.backbone.shape)
        decisive = {
            "backbone": self.backbone.decisive,
            "samples": samples.content,
            "rule": self.dataset.scoring,
            "answer": answer_length(self.style, self.dataset.real, self.backbone.max_new_tokens),
            "method": method,
            "execution": self.execution if method else "",
            "batch_size": self.batch_size,
            "version": __version__,
        }
        if self.batch_tokens is not None:
            decisive["batch_tokens"] = self.batch_tokens
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def weights_of(backbone: BackboneSettings) -> str:
    """A hash of a model's weights as they are used: with its adapter, and quantised."""
    decides = {name: value for name, value in backbone.decisive.items() if name in ("weights", "adapter", "bits")}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def plan(config: Mapping[str, Any]) -> Plan:
    """Check a plain configuration before anything is loaded.

    Raises:
        SettingError: a setting is unknown or out of range.
    """
    check_choice("split", config["split"], benchmarks.SPLITS)
    check_choice("attention.execution", config["attention"]["execution"], list(EXECUTIONS))
    check_number("batch_size", config["batch_size"], 1, whole=True)
    if config.get("batch_tokens") is not None:
        check_number("batch_tokens", config["batch_tokens"], 1, whole=True)
    if config["limit"] is not None:
        check_number("limit", config["limit"], 1, whole=True)
    backbone = backbones.from_settings(config["backbone"])
    if config["attention"]["execution"] == "triton":
        check_fused(backbone.resolved_device, "attention.execution")
    intervention = interventions.from_settings(config["intervention"])
    for name, method in interventions.named(config["intervention"], intervention).items():
        if names_numbers(method.layers) or names_numbers(method.heads):
            heads_by_layer(method.layers, method.heads, backbone.shape, f"{name}.")
    notes = []
    for name, given in interventions.settings_of(config["intervention"]).items():
        if heads_file.is_file_name(given.get("heads")):
            notes.append(heads_file.check_weights(given, weights_of(backbone), backbone.name, f"{name}.heads"))
    dataset = benchmarks.from_settings(config["dataset"]).asked_by(backbone.prompt_style)
    # what a model of the hub reads is known when it is there; asking it about pictures is refused then
    if (not dataset.pictures or backbone.folder.is_dir()) and dataset.pictures != backbone.reads_pictures:
        kind, other = ("pictures", "text alone") if dataset.pictures else ("passages of text", "pictures")
        raise SettingError("dataset", config["dataset"]["name"], f"has {kind}, and {backbone.name} reads {other}")
    check_second_pass(intervention, pictures=dataset.pictures)
    return Plan(
        backbone=backbone,
        dataset=dataset,
        intervention=intervention,
        execution=config["attention"]["execution"],
        split=config["split"],
        limit=config["limit"],
        batch_size=config["batch_size"],
        batch_tokens=config.get("batch_tokens"),
        config=config,
        notes=tuple(notes),
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has no more memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _ask(
    backbone: Backbone,
    batch: Sequence[Sample],
    benchmark: Benchmark,
    parts: Sequence[Sequence[int]],
    then: Sequence[Sample],
) -> list[Answer] | None:
    """The answers to a batch, asked in parts; None if memory ran out and smaller parts are possible.

    Args:
        parts: the numbers of the samples of each part.
        then: the samples that are asked next; empty if there are none.
    """
    answers: dict[int, Answer] = {}
    asked = [[batch[number] for number in part] for part in parts]
    try:
        for part, some, following in zip(parts, asked, [*asked[1:], then], strict=True):
            answers |= zip(part, backbone.answer(some, benchmark.real, benchmark.prompt, following), strict=True)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if max(map(len, parts)) == 1:
            raise type(error)(f"{first_line(error)}; with one sample at a time; {SMALLER}") from error
        return None
    return [answers[number] for number in range(len(batch))]


def _parts(backbone: Backbone, batch: Sequence[Sample], size: int, tokens: int | None) -> list[list[int]]:
    """The numbers of a batch's samples in the parts in which they are asked."""
    if tokens is None:
        return [list(range(first, min(first + size, len(batch)))) for first in range(0, len(batch), size)]
    return backbone.parts(batch, size, tokens)


def run_batches(
    backbone: Backbone,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    intervention: Method,
    batch_size: int,
    execution: str = "auto",
    done: Sequence[Batch] = (),
    starts: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> Iterator[Batch]:
    """Answer the samples greedily under the intervention and score the answers, one batch after the other.

    Where memory runs out, this batch and all later ones are asked in smaller parts. That changes rounding; each batch
    says its size.

    Args:
        done: the batches that exist already; they are skipped.
        starts: the number of the first sample of each batch that is asked; None is all batches.
        batch_tokens: the most tokens, padding included, that are asked at a time; None is whole batches.

    Raises:
        FloatingPointError: the logits have a NaN.
    """
    benchmark = benchmark.asked_by(backbone.settings.prompt_style)
    size = min([batch_size, *(batch.size for batch in done)])
    with backbone.intervene(intervention, execution) as session:
        known = {batch.start for batch in done}
        missing = [s for s in (range(0, len(samples), batch_size) if starts is None else starts) if s not in known]
        batches = [samples[first : first + batch_size] for first in missing]
        for first, batch, then in zip(missing, batches, [*batches[1:], ()], strict=True):
            begun = time.perf_counter()
            try:
                parts = _parts(backbone, batch, size, batch_tokens)
                following = then if batch_tokens else then[:size]  # a budget cuts what is prepared whole
                while (answers := _ask(backbone, batch, benchmark, parts, following)) is None:
                    size = ((max(map(len, parts)) if batch_tokens else size) + 1) // 2
                    parts = _parts(backbone, batch, size, batch_tokens)
                    session.tally.take()
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error}, in the batch of samples {first} to {first + len(batch) - 1}"
                ) from error
            records = [
                replace(benchmark.score(answer.text, sample), margin=answer.margin, first_token=answer.first_token)
                for sample, answer in zip(batch, answers, strict=True)
            ]
            counts = session.tally.take()
            clamped = counts.pop("clamped", {})
            marked = dict(Counter(filter(None, map(backbone.special_token_in, batch))))
            over = backbone.lengths.take()
            yield Batch(first, records, clamped, time.perf_counter() - begun, size, marked, counts, over)


def summary(benchmark: Benchmark, samples: Sequence[Sample], batches: Sequence[Batch], batch_size: int) -> Evaluation:
    """The evaluation that the batches make together: metrics, notes and counts over all their records."""
    records = [record for batch in batches for record in batch.records]
    counts: dict[str, Counts] = {"clamped": {}}
    for batch in batches:
        for kind, named in {"clamped": batch.clamped, **batch.diagnostics}.items():
            totals = counts.setdefault(kind, {})
            for name, (count, of) in named.items():
                before = totals.get(name, (0, 0))
                totals[name] = (before[0] + count, before[1] + of)
    metrics = benchmark.metrics(records)
    metrics |= of_rows(records) | {"accuracy": metrics["accuracy"]}
    for kind, named in counts.items():
        metrics |= {f"{kind}_{name}": count / max(of, 1) for name, (count, of) in named.items()}
    notes = [*(samples.notes if isinstance(samples, Samples) else ()), *benchmark.notes(records)]
    marked = sum((Counter(batch.marked) for batch in batches), Counter())
    if marked:
        shown = ", ".join(f"{mark} in {count}" for mark, count in marked.most_common())
        notes.append(f"{marked.total()} samples spell out special tokens of the model, read as text: {shown}")
    notes += notes_of(sum((Counter(batch.over) for batch in batches), Counter()))
    smallest = min((batch.size for batch in batches), default=batch_size)
    if smallest < batch_size:
        asked = f"batches of {batch_size} were asked {smallest} samples at a time"
        notes.append(f"out of memory: {asked} (set batch_size={smallest})")
    clamped, seconds = counts.pop("clamped"), sum(batch.seconds for batch in batches)
    return Evaluation(records, metrics, notes, clamped, seconds, time.time(), diagnostics=counts)


def other_metrics(benchmark: Benchmark, evaluation: Evaluation) -> str:
    """How an evaluation's metrics differ from those that its benchmark computes from its rows; "" if they agree.

    A metric that the evaluation lacks is not compared: it was made before the benchmark had this metric.
    """
    for name, value in benchmark.metrics(evaluation.records).items():
        said = evaluation.metrics.get(name, value)
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
    """Answer every sample greedily under the intervention and score the answers. Nothing is written.

    Args:
        batch_size: how many samples are asked at a time; it changes rounding, and so, rarely, an answer.
        execution: one of `EXECUTIONS`: `auto`, `blocked`, `triton` or `reference`.

    Raises:
        FloatingPointError: the logits have a NaN.
    """
    batches = list(run_batches(backbone, benchmark, samples, intervention, batch_size, execution))
    return summary(benchmark, samples, batches, batch_size)


def clamped_line(clamped: Mapping[str, tuple[int, int]]) -> str:
    """A sentence about clamped w_min; "" if none was clamped."""
    parts = [f"{name}: {count} of {of}" for name, (count, of) in clamped.items() if count]
    return f"w_min clamped into (0, 1): {'; '.join(parts)}" if parts else ""


def gib(value: float) -> int:
    """A size in GiB as bytes. Raises SettingError for a size below 0."""
    check_number("features_gib", value, 0, 1e9)
    return int(value * 2**30)


def shard_starts(samples: int, batch_size: int, shard: str | None) -> Sequence[int]:
    """The number of the first sample of each batch of a shard: "2/4" is the second quarter of the batches, None all.

    Raises:
        SettingError: the shard is not i/n with i from 1 to n.
    """
    starts = range(0, samples, batch_size)
    if shard is None:
        return starts
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", str(shard))
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
    should_prune: Callable[[Sequence[Record]], float | None] | None = None,
    shard: str | None = None,
) -> Evaluation | None:
    """Run an evaluation to its end and keep each batch in `records`. Finished batches are not asked again.

    The caller must hold the claim of the evaluation.

    Args:
        backbone: loads the model. It is not called if no batch is left to ask.
        after: called with the number of samples of each finished batch, also of those that were kept before.
        should_prune: called after each batch with all records so far. If it returns a number, the evaluation ends.
        shard: the part of the batches that is asked, as in `shard_starts`.

    Raises:
        SettingError: the model's files are others than those of the cache key.

    Returns:
        The evaluation, which is then in `records`. None if it was ended early or other shards are missing; its batches
        are kept.
    """
    starts = shard_starts(len(samples), planned.batch_size, shard)
    unlike = lambda evaluation: other_metrics(planned.dataset, evaluation)  # noqa: E731
    records.mend(cache_key, asked_of(samples), planned.batch_size, shard, unlike)
    known: list[Record] = []

    def add(batch: Batch) -> bool:
        known.extend(batch.records)
        after(len(batch.records))
        return should_prune is not None and len(known) < len(samples) and should_prune(known) is not None

    done = records.batches(cache_key)
    if any(add(batch) for batch in done if batch.start in starts):
        return None
    if set(starts) - {batch.start for batch in done}:
        loaded = backbone()
        if planned.cache_key(samples) != cache_key:  # records under this key would be those of other weights
            changed = "its files, or an adapter's, changed after this evaluation was planned; run the command again"
            raise SettingError("backbone.source", planned.backbone.source, changed)
        steps = run_batches(
            loaded,
            planned.dataset,
            samples,
            planned.intervention,
            planned.batch_size,
            planned.execution,
            done,
            starts,
            planned.batch_tokens,
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
    notes = [*planned.backbone.notes, *planned.notes, *evaluation.notes]
    evaluation = replace(evaluation, environment=environment(), notes=notes)
    records.finish(cache_key, evaluation, planned.config)
    return evaluation
