"""Ask a benchmark of a model that the caller has loaded, under a method of the caller's choice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel

from tdrs import benchmarks
from tdrs.analysis.evidence import compare_records, verdict
from tdrs.analysis.study_results import measure_columns
from tdrs.attention.core import EXECUTIONS
from tdrs.attention.method import check_method
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.checkpoint import Incomplete, check_processor
from tdrs.backbones.decoding import greedy
from tdrs.backbones.families import family_of
from tdrs.backbones.processors import fault_of_several
from tdrs.backbones.prompt_encoder import check_template
from tdrs.backbones.tokens import ends
from tdrs.benchmarks import SPLITS, Benchmark, Record
from tdrs.benchmarks.prompts import STYLES
from tdrs.configuration import choice
from tdrs.environment import shows_progress
from tdrs.evaluation import run_batches, summary
from tdrs.interventions import Method
from tdrs.interventions.none import Stock
from tdrs.results import Evaluation, check_same_samples
from tdrs.settings import SettingError, check_choice, check_number
from tdrs.statistics import Interval


@dataclass(frozen=True)
class LoadedModel(BackboneSettings):
    """The settings of a model that the caller has loaded. Its source is only a name: nothing is looked up by it."""

    def __post_init__(self) -> None:
        check_choice("prompt_style", self.prompt_style, STYLES)
        if self.max_new_tokens is not None:
            check_number("max_new_tokens", self.max_new_tokens, 1, whole=True)


@dataclass(frozen=True, repr=False)
class ModelEvaluation:
    """What a model answered to a benchmark under a method.

    Attributes:
        benchmark: with the prompt style that was asked.
        method: the edit.
        split: `held_out` or `tuning`.
        content: a hash of all that was asked.
        system, max_new_tokens: the system prompt and the longest answer that were given.
        evaluation: records, metrics and notes, as an evaluation's command keeps them.
    """

    benchmark: Benchmark
    method: Method
    split: str
    content: str
    evaluation: Evaluation
    system: str | None = None
    max_new_tokens: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The benchmark's metrics, shares from 0 to 1; `accuracy_low` and `accuracy_high` are its 95 % interval."""
        return self.evaluation.metrics

    @property
    def intervals(self) -> dict[str, Interval]:
        """Accuracy, and metrics such as F1, each with its 95 % interval, images as clusters."""
        accuracy = Interval(*(self.metrics[f"accuracy{end}"] for end in ("", "_low", "_high")))
        return {"accuracy": accuracy, **self.benchmark.intervals(self.records)}

    @property
    def records(self) -> list[Record]:
        """One record for each sample."""
        return self.evaluation.records

    @property
    def notes(self) -> list[str]:
        """What a reader of the metrics should know."""
        return self.evaluation.notes

    def __repr__(self) -> str:
        shown = [f"{name} {i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for name, i in self.intervals.items()]
        head = f"{self.method}: {', '.join(shown)}, {self.split} split, n = {len(self.records)}"
        return "\n".join([head, *self.notes])

    def samples(self) -> pd.DataFrame:
        """One row for each sample, with the columns of a record; see `StudyResults.samples`."""
        return pd.DataFrame(map(asdict, self.records))

    def compare(self, baseline: "ModelEvaluation") -> pd.DataFrame:
        """Compare this evaluation with another one of the same samples, with the statistics of `StudyResults.compare`.

        The difference is this evaluation's accuracy minus the baseline's. Questions of yes and no have more lines, for
        F1, balanced accuracy and the ROC area. The model, the batch size and the execution may differ.

        Raises:
            SettingError: the baseline is no evaluation, was not asked the same, or was scored by another rule.
        """
        if not isinstance(baseline, ModelEvaluation):
            raise SettingError("baseline", baseline, "must be what tdrs.evaluate returned")
        for name in ("system", "max_new_tokens"):
            given, other = getattr(self, name), getattr(baseline, name)
            if given != other:
                allowed = f"was asked with {name} = {other!r}, not {given!r}"
                raise SettingError("baseline", str(baseline.method), allowed)
        if (self.content, self.benchmark.rule) != (baseline.content, baseline.benchmark.rule):
            raise SettingError("baseline", str(baseline.method), "was asked other samples, or scored by another rule")
        check_same_samples(baseline.records, self.records, "baseline")
        measures = self.benchmark.measures_of(self.benchmark.rule)
        paired = compare_records(baseline.records, self.records, measures)
        gained, lost, p = paired.discordant or (None, None, float("nan"))
        tests = {"p": paired.p, "gained": gained, "lost": lost, "mcnemar_p": p, "smallest": paired.smallest}
        words = {"verdict": verdict(paired.difference, paired.p)}
        intervals = self.intervals
        about = {"n": len(self.records)}
        lines = [about | measure_columns("accuracy", intervals["accuracy"], paired.difference) | tests | words]
        for name, change in paired.differences.items():
            lines.append(about | measure_columns(name, intervals[measures[name].metric], change))
        return pd.DataFrame(lines)


def evaluate(
    model: PreTrainedModel,
    processor: Any,
    benchmark: str | Benchmark,
    method: Method | None = None,
    *,
    split: str = "held_out",
    limit: int | None = None,
    batch_size: int = 32,
    prompt_style: str | None = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    execution: str = "auto",
) -> ModelEvaluation:
    """Ask a benchmark of a loaded model, greedily, under a method. Nothing is written, and the model is left as it was.

        stock = tdrs.evaluate(model, processor, "mini_pope", limit=100)
        edited = tdrs.evaluate(model, processor, "mini_pope", tdrs.Temperature(tau=0.5), limit=100)
        edited.compare(stock)

    A terminal or a notebook shows progress.

    Args:
        model: a vision-language model of transformers, on its device, with `sdpa` or `eager` attention.
        processor: its processor, with a chat template.
        benchmark: a name in `conf/dataset`, with the settings of that file; or an object of `tdrs.benchmarks`.
        method: the edit; None is the stock model.
        split: `held_out`, or `tuning`, on which settings are chosen.
        limit: at most this number of samples, a fair draw of whole images; None asks all.
        batch_size: how many samples are asked at a time; it changes rounding, and so, rarely, an answer.
        prompt_style: `llava`, `lmms_eval`, `internvl` or `vlmevalkit`; None is that of the model's family.
        system: the system prompt; None is the chat template's own.
        max_new_tokens: the longest answer; None is what the prompt style's toolkit allows.
        execution: `auto`, `blocked`, `triton` or `reference`; see `tdrs.attention.core`.

    Raises:
        SettingError: an argument is not allowed, the data set is not available, or the processor is not the model's.
        ValueError: the model's attention cannot be edited.
        FloatingPointError: the logits have a NaN.
    """
    method = Stock() if method is None else method
    check_method(method)
    if not isinstance(model, PreTrainedModel):
        raise SettingError("model", type(model).__name__, "must be a loaded model of transformers")
    if not isinstance(benchmark, str | Benchmark):
        raise SettingError("benchmark", type(benchmark).__name__, "must be a name in conf/dataset or a Benchmark")
    if system is not None and not isinstance(system, str):
        raise SettingError("system", system, "must be text")
    check_choice("split", split, SPLITS)
    check_choice("execution", execution, list(EXECUTIONS))
    check_number("batch_size", batch_size, 1, whole=True)
    if limit is not None:
        check_number("limit", limit, 1, whole=True)
    if isinstance(benchmark, str):
        benchmark = benchmarks.from_settings(choice("dataset", benchmark))
    if not benchmark.pictures:
        raise SettingError("benchmark", benchmark.real, "has passages of text; only questions about pictures are asked")
    _check_model(model, processor, system)
    style = prompt_style or family_of(model.config.model_type).prompt_style
    if style is None:
        known = f"must be given for a model of type {model.config.model_type}: {', '.join(STYLES)}"
        raise SettingError("prompt_style", None, known)
    settings = LoadedModel(
        name=model.name_or_path or type(model).__name__,
        source="",
        prompt_style=style,
        system=system,
        max_new_tokens=max_new_tokens,
    )
    benchmark = benchmark.asked_by(style)
    several = cache(partial(fault_of_several, processor, family_of(model.config.model_type), {}))
    accepts = lambda sizes: several(len(sizes)) if len(sizes) > 1 else ""  # noqa: E731
    samples = benchmarks.load(benchmark, split, limit, style, accepts=accepts)
    batches = []
    with _prepared(model, processor), tqdm(total=len(samples), unit="sample", disable=not shows_progress()) as bar:
        backbone = Backbone.of(settings, model, processor)
        for batch in run_batches(backbone, benchmark, samples, method, batch_size, execution):
            batches.append(batch)
            bar.update(len(batch.records))
    found = summary(benchmark, samples, batches, batch_size)
    return ModelEvaluation(benchmark, method, split, samples.content, found, system, max_new_tokens)


def _check_model(model: PreTrainedModel, processor: Any, system: str | None) -> None:
    """Raises SettingError unless the model has image tokens and the processor is its own."""
    if getattr(model.config, "image_token_id", None) is None:
        raise SettingError("model", type(model).__name__, "must be a vision-language model: it has no image_token_id")
    name = type(processor).__name__
    lacking = [part for part in ("tokenizer", "image_processor") if not hasattr(processor, part)]
    if lacking:
        raise SettingError("processor", name, f"must be a processor of pictures and text: it has no {lacking[0]}")
    if not processor.chat_template:
        raise SettingError("processor", name, "has no chat template; set processor.chat_template")
    try:
        check_processor(processor, model.config)
        check_template(processor, system)
    except Incomplete as error:
        raise SettingError("processor", name, str(error)) from None


@contextmanager
def _prepared(model: PreTrainedModel, processor: Any) -> Iterator[None]:
    """A `with` block in which the model is in eval mode and decodes greedily. Afterwards it is as before."""
    generation_config, training = model.generation_config, {part: part.training for part in model.modules()}
    model.generation_config = greedy(generation_config, ends(processor))
    model.eval()
    try:
        yield
    finally:
        model.generation_config = generation_config
        for part, mode in training.items():
            part.training = mode
