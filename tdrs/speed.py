"""How fast is it? All numbers are ratios within one run, since machines are shared and noisy.

    python -m tdrs.speed attention                    # each method's attention beside PyTorch's; a model end to end
    python -m tdrs.speed sweep experiment=sqa_ablation      # a study beside the plain loop, and where its time goes
    python -m tdrs.speed neighbours                   # an evaluation alone, and two on the same cores
    python -m tdrs.speed kernels                      # kernels and bytes of real models' attention, counted

Options are `lengths=512,2048`, `rounds=9`, `backbone=mini_llava`, `dataset=mini_textvqa`, `preset=smoke` and
`output=FOLDER`. Each command writes a JSON file into OUTPUT/benchmark; `attention` and `sweep` also write a figure.
"""

import json
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from tdrs import backbones, benchmarks
from tdrs.analysis import speed
from tdrs.attention.block import IMAGE, TEXT
from tdrs.attention.call import Call
from tdrs.attention.core import blocked, fastest, reference
from tdrs.attention.rope import Frequencies
from tdrs.backbones import Backbone
from tdrs.commands import parse
from tdrs.configuration import choice, choices
from tdrs.entry_point import run_command
from tdrs.environment import environment, keep_memory
from tdrs.evaluation import evaluate
from tdrs.interventions import METHODS, Method
from tdrs.kernel_count import kernels
from tdrs.schema import check_output
from tdrs.settings import SettingError, check_choice, first_line, folder_named
from tdrs.side_by_side import neighbours
from tdrs.spans import timed
from tdrs.study_speed import sweep

HEADS, WIDTH = 8, 64
LENGTHS = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (256, 1024, 4096, 16384)}
WHOLE_MAP = {"cpu": 2048, "cuda": 4096}  # the longest map that is built at once
DECODED = 32
EVALUATED = 32  # samples of an evaluation


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def medians(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each run. In every round the runs take turns, after one run each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(run))
    return {name: statistics.median(some) for name, some in times.items()}


@contextmanager
def _silent() -> Iterator[None]:
    """Hide the lines that the profiler writes directly to file descriptor 2 when it starts."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_mib(run: Callable[[], object]) -> float:
    """The peak memory, in MiB, of what `run` allocates in torch, temporaries included."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = trace.profiler.kineto_results.events()
    held = most = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += change
        most = max(most, held)
    return most / 2**20


def _calls(length: int, dtype: torch.dtype, device: str) -> tuple[Call, Callable[[], object], Callable[[], object]]:
    """A call of one layer on random vectors, and stock attention on the same vectors: SDPA and eager."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, WIDTH, generator=generator).to(device, dtype) for _ in range(3))
    turns = 1 / 10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    angles = torch.arange(length)[:, None] * turns
    angles = torch.cat((angles, angles), dim=-1)[None].to(device)
    roles = torch.full((1, length), TEXT, device=device)
    side = math.isqrt(length // 3)
    roles[:, 5 : 5 + side**2] = IMAGE  # a square picture
    positions = torch.arange(length, device=device)[None, :, None]
    frequencies = Frequencies(turns[None].to(device), 1.0)
    call = Call(q, k, v, WIDTH**-0.5, None, (angles.cos(), angles.sin()), positions, roles, frequencies)
    call.tile_side = side
    call.states = torch.randn(1, length, HEADS * WIDTH, generator=generator).to(device, dtype)
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    hidden = torch.zeros(length, length, dtype=dtype, device=device).masked_fill(future, -torch.inf)

    def eager() -> torch.Tensor:
        logits = q @ k.transpose(-1, -2) * WIDTH**-0.5 + hidden
        return logits.softmax(dim=-1, dtype=torch.float32).to(dtype) @ v

    return call, lambda: scaled_dot_product_attention(q, k, v, is_causal=True), eager


def _flexible(call: Call) -> Callable[[], object] | None:
    """FlexAttention, compiled, without an edit; None where there is no compiler for it."""
    length = call.query.shape[-2]
    compiled = torch.compile(flex_attention, dynamic=False)
    try:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=call.query.device.type)
        compiled(call.query, call.key, call.value, block_mask=mask)
    except Exception as error:  # a missing or old compiler makes torch raise many kinds
        tqdm.write(f"no FlexAttention here: {first_line(error)}", file=sys.stderr)
        return None
    return lambda: compiled(call.query, call.key, call.value, block_mask=mask)


def _edits() -> dict[str, Method]:
    """The methods that edit attention, by name. Only their edit is timed, not the second pass that one may have."""
    methods = {name: kind() for name, kind in METHODS.items()}
    return {name: method for name, method in methods.items() if method.edits_attention}


def _anew(call: Call) -> Call:
    """The same call without what a run has kept for the next."""
    return replace(call, memory={}, kept={}, directions={})


@torch.inference_mode()
def attention_rows(lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """One row for each length, dtype and implementation: seconds, their ratio to SDPA's, peak extra MiB."""
    device = _device()
    found: list[dict[str, Any]] = []
    dtypes = [torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16]
    for length, dtype in tqdm([(n, d) for n in lengths for d in dtypes], desc="attention", unit="length", disable=None):
        call, stock, eager = _calls(length, dtype, device)
        runs: dict[str, Callable[[], object]] = {"SDPA": stock, "eager": eager}
        if length <= WHOLE_MAP[device]:
            runs["tdrs, reference"] = lambda call=call: reference(call, METHODS["tdrs"]())  # type: ignore[misc]
        runs["tdrs, blocked"] = lambda call=call: blocked(_anew(call), METHODS["tdrs"]())  # type: ignore[misc]
        for name, method in _edits().items():
            runs[name] = lambda call=call, method=method: fastest(_anew(call), method)  # type: ignore[misc]
        found += _rows(length, dtype, runs, rounds)
    return found


@torch.inference_mode()
def flexible_rows(lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """As `attention_rows`, for FlexAttention without an edit. It runs last: its threads slow down the others."""
    device, dtype = _device(), torch.float32 if _device() == "cpu" else torch.bfloat16
    found: list[dict[str, Any]] = []
    for length in tqdm(lengths, desc="FlexAttention", unit="length", disable=None):
        call, stock, _ = _calls(length, dtype, device)
        run = _flexible(call)
        if run is None:
            break
        found += _rows(length, dtype, {"SDPA": stock, "FlexAttention, no edit": run}, rounds)[1:]
    return found


def _rows(length: int, dtype: torch.dtype, runs: dict[str, Callable[[], object]], rounds: int) -> list[dict[str, Any]]:
    seconds = medians(runs, rounds)
    found = []
    for name, run in runs.items():
        row = {"length": length, "dtype": str(dtype).removeprefix("torch."), "way": name, "seconds": seconds[name]}
        found.append({**row, "ratio": seconds[name] / seconds["SDPA"], "mib": peak_mib(run)})
    return found


@torch.inference_mode()
def model_rows(name: str, rounds: int) -> list[dict[str, Any]]:
    """A backbone end to end on 8 prompts of mini_scienceqa with a gap of 256: seconds of prefill and of one token, for
    the methods that edit attention; and for all methods, of an evaluation of 32 samples."""
    backbone: Backbone = backbones.load(backbones.from_settings(choice("backbone", name)))
    twin = benchmarks.from_settings({"name": "mini_scienceqa", "gap": 256})
    samples = benchmarks.load(twin, "tuning", EVALUATED, backbone.settings.prompt_style)
    inputs = backbone.model_inputs(samples[:8])
    length = inputs["input_ids"].shape[1]

    def generate(tokens: int, method: Method | None) -> None:
        given = {**inputs, "do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}
        if method is None:
            backbone.model.generate(**given)  # type: ignore[operator]
            return
        with backbone.intervene(method):
            backbone.model.generate(**given)  # type: ignore[operator]

    def both(method: Method | None) -> dict[str, Callable[[], object]]:
        return {"prefill": lambda: generate(1, method), "whole": lambda: generate(1 + DECODED, method)}

    methods: dict[str, Method | None] = {"stock": None}
    methods |= _edits()
    runs = {f"{part} {m}": run for m, method in methods.items() for part, run in both(method).items()}
    asked = {"stock": METHODS["none"]()} | {m: kind() for m, kind in METHODS.items() if kind().active}
    for m, method in asked.items():
        runs[f"evaluation {m}"] = lambda method=method: evaluate(backbone, twin, samples, method, EVALUATED)  # type: ignore[misc]
    seconds = medians(runs, rounds)
    found = []
    for kind in asked:
        evaluation = seconds[f"evaluation {kind}"]
        row = {"backbone": name, "length": length, "way": kind, "evaluation": evaluation}
        row["evaluation_ratio"] = evaluation / seconds["evaluation stock"]
        found.append(row)
        if kind not in methods:
            continue
        prefill, whole = (seconds[f"{part} {kind}"] for part in ("prefill", "whole"))
        decode = (whole - prefill) / DECODED
        stock = seconds["prefill stock"], (seconds["whole stock"] - seconds["prefill stock"]) / DECODED
        row |= {"prefill": prefill, "decode": decode}
        row |= {"prefill_ratio": prefill / stock[0], "decode_ratio": decode / stock[1]}
    return found


def attention(given: Mapping[str, str], folder: Path) -> None:
    """The command `attention`."""
    lengths = [int(n) for n in given["lengths"].split(",")] if "lengths" in given else LENGTHS[_device()]
    rounds = int(given.get("rounds", 7))
    rows = attention_rows(lengths, rounds)
    model = model_rows(given.get("backbone", "mini_llava"), rounds)
    rows += flexible_rows(lengths, rounds)
    print(f"{environment()['device']}, {torch.get_num_threads()} threads; 8 heads of 64; time as a ratio to SDPA (MiB)")
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        some = [row for row in rows if row["dtype"] == dtype]
        print(f"{dtype:25}" + "".join(f"{f'L = {n}':>16}" for n in dict.fromkeys(row["length"] for row in some)))
        for way in dict.fromkeys(row["way"] for row in some):
            cells = {row["length"]: f"{row['ratio']:.2f} ({row['mib']:.0f})" for row in some if row["way"] == way}
            print(f"  {way:23}" + "".join(f"{cells.get(n, '-'):>16}" for n in dict.fromkeys(r["length"] for r in some)))
    print(f"{model[0]['backbone']}, 8 prompts of {model[0]['length']} tokens, {DECODED} decoded; ratios to stock")
    for row in model:
        parts = [f"{part} {row[f'{part}_ratio']:5.2f}" for part in ("evaluation", "prefill", "decode") if part in row]
        print(f"  {row['way']:24}{'    '.join(parts)}")
    path = folder / "attention.json"
    path.write_text(
        json.dumps({"attention": rows, "model": model, "environment": environment()}, indent=1), encoding="utf-8"
    )
    for written in [path, *speed.write_speed(speed.speed_curves(rows), folder)]:
        print(written)


VERBS: dict[str, tuple[Callable[[Mapping[str, str], Path], None], tuple[str, ...]]] = {
    "attention": (attention, ("lengths", "rounds", "backbone", "output")),
    "sweep": (sweep, ("experiment", "backbone", "dataset", "preset", "output")),
    "neighbours": (neighbours, ("rounds", "output")),
    "kernels": (kernels, ("output",)),
}


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 2 for bad arguments."""
    bare, given = parse(arguments)
    words = [word for word in bare if not word.startswith("-")]
    if len(words) != 1 or {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0 if {"--help", "-h"} & set(arguments) else 2
    try:
        check_choice("verb", words[0], list(VERBS))
        run, known = VERBS[words[0]]
        for key in given:
            check_choice("option", key, known)
        for word in bare:
            if word.startswith("-"):
                raise SettingError("option", word, f"must be {', '.join(f'{name}=…' for name in known)}")
        lengths = given.get("lengths", "1").split(",")
        if not all(re.fullmatch("[1-9][0-9]{0,5}", length) for length in lengths) or len(set(lengths)) < len(lengths):
            raise SettingError("lengths", given["lengths"], "must be different whole numbers from 1 to 999999")
        if not re.fullmatch("[1-9][0-9]{0,5}", given.get("rounds", "1")):
            raise SettingError("rounds", given["rounds"], "must be a whole number from 1 to 999999")
        for key in ("experiment", "preset", "backbone", "dataset"):
            if key in given:
                check_choice(key, given[key], choices(key))
        folder = folder_named("output", given.get("output", "outputs"))
        check_output(str(folder))
        folder = folder / "benchmark"
        folder.mkdir(parents=True, exist_ok=True)
        keep_memory()  # as all commands
        run(given, folder)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
