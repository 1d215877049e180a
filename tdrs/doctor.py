"""Is a backbone on a data set set up right, and what will a study of it cost?

    python -m tdrs.doctor backbone=llava_1_5_7b dataset=scienceqa batch_size=8

checks files, prompt and token counts, compares T-DRS with all stages off and the stock model bit for bit, measures the
cost of the edit, estimates the time of a whole study, and compares the stock model's score on some samples with the
published one. It exits with 1 if something is wrong.
"""

import itertools
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from tdrs import backbones
from tdrs.analysis.figure import span
from tdrs.attention.second_pass import second_pass_of
from tdrs.backbones import Backbone
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.backbones.limits import notes_of
from tdrs.benchmarks import Sample
from tdrs.commands import command
from tdrs.configuration import plain, run, typed
from tdrs.environment import environment
from tdrs.evaluation import Plan, complete, gib, out_of_memory, plan
from tdrs.interventions import tdrs_loop
from tdrs.interventions.tdrs import TDRS
from tdrs.published import compare
from tdrs.records import Records
from tdrs.settings import check_number
from tdrs.spans import timed
from tdrs.speed import medians, peak_mib
from tdrs.stopping import stoppable
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker

ROUNDS = 3  # timings of a batch; their median counts
GIB = 2**30


class Finding(NamedTuple):
    """One check: its name, its result as lines of text, and whether the result is good."""

    what: str
    lines: list[str]
    good: bool = True


def examine(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Check a set-up, and yield each finding as soon as it is known.

    Args:
        values: the plain configuration of `conf/doctor.yaml`.

    Raises:
        SettingError: a setting is not allowed, or the model or the data is not available.
    """
    check_number("samples", values["samples"], 1, whole=True)
    output = Path(values["output"])
    features = EmbeddingStore(output / "features", gib(values["features_gib"]))
    planned = plan({**values, "split": "held_out", "limit": None})
    yield _files(planned)
    asked = {name: value for name, value in values.items() if name != "samples"}
    asked |= {"study": {"name": "doctor", "storage": "journal"}, "workers": {"name": "inline"}}
    asked |= {"tracking": {"name": "none"}, "dry_run": True, "batch_tokens": None}
    study = Study(asked, Tracker("none", output))
    samples = planned.load()
    yield Finding("data", [_data(planned, samples), *samples.notes])
    start = time.perf_counter()
    backbone = backbones.load(planned.backbone, features)
    yield _model(planned, backbone, time.perf_counter() - start)
    batch = samples[: values["batch_size"]]
    yield _prompt(backbone, batch[0])
    look = timed(lambda: backbone.model_inputs(batch))  # the vision tower's part, unless features were kept before
    yield _tokens(backbone, batch)
    yield _off(backbone, batch)
    rates, finding = _cost(backbone, planned, batch)
    yield finding
    if backbone.model.device.type == "cuda":
        yield _largest_batch(backbone, planned, samples)
    if backbone.reads_pictures:
        yield _features(backbone, batch, study, look / len(batch), output, gib(values["features_gib"]))
    yield _study(study, rates, len(batch), values)
    yield _score(backbone, values, output)


def _files(planned: Plan) -> Finding:
    settings = planned.backbone
    folder = settings.folder
    lines = [f"{settings.location}, fingerprint {settings.fingerprint}"]
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors"))
        size = sum(path.stat().st_size for path in weights)
        lines.append(f"{len(weights)} file{'s' * (len(weights) != 1)} of weights, {_size(size)}")
    if settings.adapter is not None:
        lines.append(f"adapter {settings.adapter}, fingerprint {settings.adapter_fingerprint}, merged into the weights")
    return Finding("files", [*lines, *settings.notes])


def _data(planned: Plan, samples: Sequence[Sample]) -> str:
    dataset = planned.dataset
    style = dataset.prompt if dataset.prompt != "backbone" else planned.backbone.prompt_style
    images = len({sample.image_id for sample in samples})
    kind = "pictures" if dataset.pictures else "passages"
    prompt = (
        f"prompt {style}, " if dataset.pictures or dataset.rule == "multiple_choice" else ""
    )  # or the question alone
    text = f"{len(samples)} held-out samples over {images} {kind}; {prompt}rule {dataset.rule}"
    return f"{text}, gap {dataset.gap}" if dataset.gap else text


def _model(planned: Plan, backbone: Backbone, seconds: float) -> Finding:
    model = backbone.model
    layers, heads = planned.backbone.shape
    groups = model.config.get_text_config().num_key_value_heads
    number = model.num_parameters()
    size = f"{number / 1e9:.2f} billion" if number > 5e7 else f"{number / 1e6:.1f} million"
    bits = f", weights in {planned.backbone.weight_bits} bits" if planned.backbone.weight_bits else ""
    where = environment()["device"] if model.device.type == "cuda" else f"{environment()['device']} (cpu)"
    return Finding(
        "model",
        [
            f"{type(model).__name__}, {size} parameters, {layers} layers × {heads} heads ({groups} for keys)",
            f"{str(model.dtype).removeprefix('torch.')}{bits} on {where}, {planned.backbone.attention}; "
            f"loaded in {seconds:.1f} s",
        ],
    )


def _prompt(backbone: Backbone, sample: Sample) -> Finding:
    """The first prompt as the model reads it; image tokens in a row are shown as one token and their number."""
    inputs = backbone.inputs([sample])
    ids, marks = inputs["input_ids"][0].tolist(), backbone.image_tokens(inputs)[0].tolist()
    parts = []
    for is_image, run_ in itertools.groupby(zip(ids, marks, strict=True), lambda token: token[1]):
        some = [token for token, _ in run_]
        short = is_image and backbone.reads_pictures
        text = backbone.processor.tokenizer.decode(some[:1] if short else some)
        parts.append(f"{text}×{len(some)}" if short else text)
    whole = "".join(parts)
    if len(whole) > 700:
        whole = f"{whole[:350]} […] {whole[-350:]}"
    return Finding("prompt", whole.splitlines())


def _tokens(backbone: Backbone, batch: Sequence[Sample]) -> Finding:
    inputs = backbone.inputs(batch)
    counted = backbone.image_tokens(inputs).sum(dim=1).tolist()
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    left = bool(inputs["attention_mask"][:, -1].all())
    padded = f"{span(lengths)} tokens a prompt; padding {'left' if left else 'NOT ON THE LEFT'}"
    longer = {what: sum(some) for what, some in backbone.lengths.over(inputs).items() if any(some)}
    notes = [f"{note}, of {len(batch)}" for note in notes_of(longer)]
    if not backbone.reads_pictures:
        return Finding("tokens", [f"{span(counted)} tokens a passage", padded, *notes], min(counted) > 0 and left)
    made = [backbone.image_embeddings(sample.picture).shape[0] for sample in batch]
    lines = [
        f"{span(counted)} image tokens a prompt, {span(made)} features a picture: "
        f"{'equal' if counted == made else 'UNEQUAL'}",
        padded,
        *notes,
    ]
    return Finding("tokens", lines, counted == made and left)


@torch.inference_mode()
def _off(backbone: Backbone, batch: Sequence[Sample]) -> Finding:
    inputs = backbone.model_inputs(batch)
    stock = backbone.model(**inputs).logits
    with backbone.intervene(TDRS(sd=False, dc=None, re=None)):
        off = backbone.model(**inputs).logits
    equal = torch.equal(stock, off)
    said = "equal bit for bit" if equal else f"DIFFERENT by up to {(stock - off).abs().max().item():.3g}"
    return Finding("off", [f"logits of {len(batch)} samples with all stages off and of the stock model: {said}"], equal)


def _cost(backbone: Backbone, planned: Plan, batch: Sequence[Sample]) -> tuple[dict[bool, float], Finding]:
    """Seconds of a batch without and with the edit, including the answers."""
    whole_prompts = replace(backbone, share_prefixes=False)

    def stock() -> None:
        backbone.answer(batch, planned.dataset.real, planned.style)

    def whole() -> None:
        whole_prompts.answer(batch, planned.dataset.real, planned.style)

    def edited() -> None:
        with backbone.intervene(planned.intervention, planned.execution):
            backbone.answer(batch, planned.dataset.real, planned.style)

    times = medians({"stock": stock, "whole": whole, "edited": edited}, ROUNDS)
    peaks = [_size(int(peak_mib(run_) * 2**20)) for run_ in (stock, edited)]
    name = type(planned.intervention).__name__
    ratio = f"{times['edited'] / times['stock']:.2f} ×"
    lines = [f"a batch of {len(batch)}: stock {times['stock']:.2f} s, {name} {times['edited']:.2f} s, {ratio}"]
    second = second_pass_of(planned.intervention)
    if second:
        count = 1 + len(second.others)
        rows = f"{count * len(batch)} rows at a time, and a cache of {'both' if count == 2 else 'all'}"
        lines.append(f"{name} combines {'two' if count == 2 else count} forward passes: {rows}")
    if second or not planned.intervention.row_local:
        ratio = f"{times['edited'] / times['whole']:.2f} ×"
        lines.append(f"each prompt read whole, as under {name}: stock {times['whole']:.2f} s, {ratio}")
    lines.append(f"memory beyond the weights: {', '.join(peaks)}")
    here = planned.execution == "auto" and backbone.model.device.type == "cpu"
    if here and not tdrs_loop.compiled() and any(isinstance(one, TDRS) for one in planned.intervention.parts):
        lines.append("T-DRS would be faster with gcc or clang, which compile its loop (with OpenMP)")
    return {False: times["stock"], True: times["edited"]}, Finding("cost", lines)


def _size(count: int) -> str:
    """A number of bytes as text for readers."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1024:.0f} KiB"


def _largest_batch(backbone: Backbone, planned: Plan, samples: Sequence[Sample]) -> Finding:
    """The largest batch of the longest prompts that fits into memory under the edit, found by doubling."""
    longest = sorted(samples, key=lambda sample: len(sample.prompt), reverse=True)
    fits, size = 0, 1
    while size <= len(longest):
        try:
            with backbone.intervene(planned.intervention, planned.execution):
                backbone.answer(longest[:size], planned.dataset.real, planned.style)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            break
        fits, size = size, 2 * size
    torch.cuda.empty_cache()
    return Finding("batch", [f"of the longest prompts, batches of {fits} fit into the device's memory"], fits > 0)


def _features(
    backbone: Backbone, batch: Sequence[Sample], study: Study, seconds: float, output: Path, bound: int
) -> Finding:
    """The size on disk of the pictures' features: the mean over a batch, since prompts may have several pictures."""
    tensors = [backbone.image_embeddings(sample.picture) for sample in batch]
    each = sum(tensor.nbytes for tensor in tensors) // len(tensors)
    pictures = {sample.picture.digest for some in study.jobs.samples.values() for sample in some}
    passes = [second_pass_of(job.plan.intervention) for job in study.planned.values()]
    changes = {second.change.name for second in passes if second and second.change}
    whole = each * len(pictures) * (1 + len(changes))
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    also = f", each also in {len(changes)} changed forms" if changes else ""
    lines = [
        f"{_size(each)} a picture, {_size(whole)} for the {len(pictures)} of a study's two splits{also}, "
        f"{1000 * seconds:.0f} ms each; features_gib={bound / GIB:g}, {_size(free)} of disk are free"
    ]
    good = whole <= bound or not bound
    if not good:
        enough = f"features_gib={whole / GIB + 1:.0f}"
        lines.append(f"MORE than features_gib keeps: each trial would encode pictures again; set {enough}")
    if whole > free:
        lines.append("MORE than the disk has")
    return Finding("features", lines, good and whole <= free)


def _study(study: Study, rates: Mapping[bool, float], size: int, values: Mapping[str, Any]) -> Finding:
    jobs = study.planned.values()
    seconds = sum(len(job.samples) * rates[job.plan.intervention.active] / size for job in jobs)
    sizes: dict[str, list[int]] = {"tuning": [], "held_out": []}
    for (_, split, *_), some in study.jobs.samples.items():
        sizes[split].append(len(some))
    splits = f"{span(sizes['tuning'] or [0])} tuning and {span(sizes['held_out'])} held-out samples"
    protocol = values["search"]["protocol"]
    units = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
    unit, name = next(unit for unit in units if seconds >= 2 * unit[0] or unit[0] == 1)
    trials = f"{study.asked} trials, {study.asked - len(jobs)} of them done or alike"
    lines = [f"search={protocol}, {splits}: {trials}; about {seconds / unit:.1f} {name} to run"]
    return Finding("study", lines)


def _score(backbone: Backbone, values: Mapping[str, Any], output: Path) -> Finding:
    """The stock model's score on some held-out samples, kept like any evaluation, beside the published score."""
    count: int = values["samples"]
    planned = plan({**values, "intervention": {"name": "none"}, "split": "held_out", "limit": count})
    samples = planned.load("samples")
    records = Records(output / "records")
    cache_key = planned.cache_key(samples)
    with stoppable() as stop, records.wait_for(cache_key, stop):
        if not records.done(cache_key):
            with tqdm(total=len(samples), desc="stock", unit="sample", disable=None, leave=False) as bar:

                def after(number: int) -> None:
                    bar.update(number)
                    stop.check()

                complete(planned, samples, lambda: backbone, records, cache_key, after)
    evaluation = records.read(cache_key)
    metrics = evaluation.metrics
    accuracy = [metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high")]
    lines = ["accuracy {:.3f} [{:.3f}, {:.3f}]".format(*accuracy) + f" on {len(samples)} held-out samples"]
    compared = compare(values, evaluation.records)
    if isinstance(compared, str):
        return Finding("score", [*lines, f"not verified by a published score: {compared}"])
    known = compared.published
    points = "{:+.1f} points off [{:+.1f}, {:+.1f}]".format(*compared.points)
    shown = "" if known.metric == "accuracy" else f"{known.metric} {compared.measured.value:.3f}; "
    lines.append(f"{shown}published: {known.metric} {known.value:.3f} ({known.where}), {points}")
    if compared.off:
        lines.append(
            "MORE than 3 points: look at prompt, pictures, dtype, rule and weights before you measure anything"
        )
    elif compared.far:
        lines.append("more than 3 points, but inside this interval: more samples would tell (samples=…)")
    return Finding("score", lines, not compared.off)


def main_doctor(config: DictConfig) -> int:
    values = plain(config)
    wrong = []
    for finding in examine(values):
        mark = "ok" if finding.good else "!!"
        for number, line in enumerate(finding.lines):
            print(f"{'' if number else finding.what:10}{'' if number else mark:4}{line}", flush=True)
        if not finding.good:
            wrong.append(finding.what)
    print()
    if wrong:
        print(f"not as it should be: {', '.join(wrong)}")
        return 1
    given = [word for word in typed if not word.lstrip("+").startswith("samples=")]
    print(f"all is as it should be; next:  {command('tdrs.sweep', *given, 'study.name=mine')}")
    return 0


USAGE = """
python -m tdrs.doctor [backbone=CHOICE] [dataset=CHOICE] [SETTING=VALUE ...]   (--cfg prints the configuration)

Groups and their choices:
"""

if __name__ == "__main__":
    sys.exit(run("doctor", main_doctor, USAGE))
