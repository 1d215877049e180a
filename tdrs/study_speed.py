"""The command `python -m tdrs.speed sweep`: a study beside the plain loop, and where its time goes."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from tdrs import backbones
from tdrs.analysis import speed
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.backbones.prompt_encoder import TokenCache
from tdrs.configuration import compose, plain
from tdrs.environment import environment
from tdrs.evaluation import evaluate, gib
from tdrs.spans import Division, measured, timed
from tdrs.sweeps.job import Job
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import STOCK, Request, Trial
from tdrs.tracking import Tracker

PLAIN_BATCHES = 2  # batches of each trial on which the plain loop is timed


def sweep(given: Mapping[str, str], folder: Path) -> None:
    """The command `sweep`: a study, and an estimate of the plain loop from the first batches of each trial.

    The plain loop runs every requested trial to its end. For each trial it loads the model, encodes every picture, and
    lets `generate` read each prompt by itself inside `intervene`. Its attention core and batch size are the study's.
    Of a race it measures only the samples that the race measured: a plain loop would not measure all its points whole.
    """
    experiment = given.get("experiment", "sqa_ablation")
    overrides = [f"+experiment={experiment}", f"preset={given.get('preset', 'default')}", "tracking=none"]
    chosen = {group: given[group] for group in ("backbone", "dataset") if group in given}
    overrides += [f"{group}={name}" for group, name in chosen.items()]
    title = "_".join([experiment, *chosen.values()])
    with tempfile.TemporaryDirectory(prefix="tdrs-speed-") as output:
        values = plain(compose("sweep", [*overrides, f"output={output}"]))
        start = time.perf_counter()
        with measured() as division:
            study = Study(values, Tracker("none", Path(output)))
            outcome = study.run()
        engine = time.perf_counter() - start
        asked = [*outcome.trials, *outcome.rows]
        unique = {trial.cache_key: trial for trial in asked}
        measuring = sum(trial.seconds for trial in unique.values())
        jobs = {key: study.jobs.of(_request(trial)) for key, trial in unique.items()}
        bar = tqdm(jobs.items(), desc="plain loop", unit="trial", disable=None, leave=False)
        plains = {key: _plain(job) for key, job in bar}
        store = EmbeddingStore(Path(output) / "features", gib(values["features_gib"]))
        idle = _idle_of_gpu({unique[key].name: job for key, job in reversed(jobs.items())}, store)
    loading = plain_seconds = whole = begun = kept = 0.0
    for trial in asked:
        size = trial.n if outcome.protocol == "raced" else values["preset"][trial.split] or trial.n
        load, all_rows, alone, shared = plains[trial.cache_key]
        once = unique[trial.cache_key]
        loading += load
        plain_seconds += size * all_rows
        whole += size * alone
        begun += size * shared
        kept += size * once.seconds / once.n
    loop = loading + plain_seconds
    parts = {
        "resident model": loading,
        "one row of the last layer": plain_seconds - whole,
        "shared beginnings": whole - begun,
        "pictures and prompts kept": begun - kept,
        "reuse and pruning": kept - measuring,
    }
    stock = {key: trial for key, trial in unique.items() if trial.name == STOCK and trial.seconds}
    in_engine = [sum(trial.n for trial in stock.values()), sum(trial.seconds for trial in stock.values())]
    rates = {
        "plain loop, stock model": [len(stock), sum(plains[key][1] for key in stock)],
        "engine, stock model, pictures included": in_engine,
        "engine, the whole study": [sum(trial.n for trial in unique.values()), engine],
    }
    result: dict[str, Any] = {
        "experiment": title, "trials": len(asked), "evaluations": len(unique), "engine_seconds": engine,
        "loop_seconds": loop, "ratio": loop / engine, "framework_share": (engine - measuring) / engine,
        "saved_seconds": parts, "samples_a_second": {way: n / spent for way, (n, spent) in rates.items() if n},
        "division_seconds": division.seconds, "no_forward_share": division.idle, "no_kernel_share": idle,
        "environment": environment(),
    }  # fmt: skip
    (folder / f"sweep_{title}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"{title}: {len(asked)} trials, {len(unique)} evaluations")
    print(f"  plain loop {loop:7.0f} s   {3600 * len(asked) / loop:6.0f} trials an hour")
    print(f"  engine     {engine:7.0f} s   {3600 * len(asked) / engine:6.0f} trials an hour, {loop / engine:.2f} ×")
    for name, seconds in parts.items():
        print(f"    {name:26}{seconds:7.1f} s saved")
    outside = engine - measuring
    print(f"  outside of batches {outside:.1f} s, {100 * outside / engine:.1f} % of the engine's time")
    for way, rate in result["samples_a_second"].items():
        print(f"  {way:39}{rate:7.1f} samples a second")
    _print_division(division, idle)
    for written in [folder / f"sweep_{title}.json", *speed.write_study_time(result, folder)]:
        print(written)


def _plain(job: Job) -> tuple[float, float, float, float]:
    """Seconds to load the model, and seconds a sample in three ways: as the plain loop; with one row of the last layer;
    also with shared prefixes."""
    samples = job.samples[: PLAIN_BATCHES * job.plan.batch_size]
    start = time.perf_counter()
    backbone = backbones.load(job.plan.backbone)
    loading = time.perf_counter() - start
    how = job.plan.intervention, job.plan.batch_size, job.plan.execution
    evaluate(backbone, job.plan.dataset, samples[:1], *how)  # a first call is slow

    def seconds(next_token_only: bool, share_prefixes: bool) -> float:
        fresh = replace(backbone, next_token_only=next_token_only, share_prefixes=share_prefixes, tokens=TokenCache())
        return timed(lambda: evaluate(fresh, job.plan.dataset, samples, *how)) / len(samples)

    shared = seconds(True, True)
    whole = seconds(True, False)
    return loading, seconds(False, False), whole, shared  # the plain loop last, when everything is warm


def _request(trial: Trial) -> Request:
    return Request(trial.name, trial.split, trial.settings, trial.condition)


def _print_division(division: Division, idle: Mapping[str, float]) -> None:
    """Print how a study's time divides, and for which share of it the device has no work."""
    parts = {**division.seconds, "scoring, records, the rest": division.whole - sum(division.seconds.values())}
    for name, seconds in parts.items():
        print(f"    {name:26}{seconds:7.1f} s, {100 * seconds / division.whole:4.1f} %")
    print(f"  the model does not compute in {100 * division.idle:.1f} % of the time")
    for name, share in idle.items():
        print(f"  the GPU runs no kernel in {100 * share:.1f} % of the time of {name}, everything kept, as profiled")


def _idle_of_gpu(jobs: Mapping[str, Job], store: EmbeddingStore) -> dict[str, float]:
    """By trial: the share of time without a kernel, of the stock model and of another trial; empty without CUDA."""
    found: dict[str, float] = {}
    if not torch.cuda.is_available():
        return found
    other = next((name for name in jobs if name != STOCK), STOCK)
    for name in dict.fromkeys([STOCK, other]):
        if name in jobs:
            plan, samples = jobs[name].plan, jobs[name].samples[: PLAIN_BATCHES * jobs[name].plan.batch_size]
            backbone = backbones.load(plan.backbone, store)
            how = backbone, plan.dataset, samples, plan.intervention, plan.batch_size, plan.execution
            evaluate(*how)
            share = _profiled(lambda how=how: evaluate(*how))  # type: ignore[misc]
            found |= {} if share is None else {name: share}
    return found


def _profiled(run: Callable[[], object]) -> float | None:
    """The share of a run's time in which the GPU runs no kernel; None if the profiler saw none."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        timed(run)
    events = [e for e in trace.profiler.kineto_results.events() if e.device_type().name == "CUDA"]
    return without_work((e.start_ns(), e.start_ns() + e.duration_ns()) for e in events)


def without_work(kernels: Iterable[tuple[int, int]]) -> float | None:
    """The share of the time from the first kernel's start to the last one's end in which none runs; None without any.

    Args:
        kernels: when each starts and ends; they may overlap.
    """
    ordered = sorted(kernels)
    if not ordered:
        return None
    begun = until = ordered[0][0]
    gaps = 0
    for start, end in ordered:
        gaps += max(0, start - until)
        until = max(until, end)
    return gaps / (until - begun) if until > begun else 0.0
