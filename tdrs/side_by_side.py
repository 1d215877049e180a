"""The command `python -m tdrs.speed neighbours`: what an evaluation costs next to another one on the same cores."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from tdrs.environment import environment


def neighbours(given: Mapping[str, str], folder: Path) -> None:
    """The command `neighbours`: time an evaluation alone and next to another one, for two ways to wait of idle threads.

    Commands let idle threads sleep (`tdrs/entry_point.py`). By OpenMP's defaults they spin, on cores that others need.
    """
    ways = {"asleep, as commands": {}, "by OpenMP's defaults": {"KMP_BLOCKTIME": "200"}}  # Intel's own; GNU has another
    rounds = int(given.get("rounds", 3))
    found: dict[str, dict[str, list[float]]] = {way: {"alone": [], "two": []} for way in ways}
    for _ in tqdm(range(rounds), desc="rounds", unit="round", disable=None, leave=False):
        for way, variables in ways.items():
            found[way]["alone"].append(_side_by_side(1, variables))
            found[way]["two"].append(_side_by_side(2, variables))
    rows = {way: {number: statistics.median(times) for number, times in some.items()} for way, some in found.items()}
    print(f"{environment()['device']}, {os.cpu_count()} cores; seconds of a command on 64 samples, median of {rounds}")
    for way, row in rows.items():
        print(f"  threads wait {way:22}alone {row['alone']:6.1f}    two side by side {row['two']:6.1f}")
    path = folder / "neighbours.json"
    path.write_text(json.dumps({"seconds": rows, "environment": environment()}, indent=1), encoding="utf-8")
    print(path)


def _side_by_side(count: int, variables: Mapping[str, str]) -> float:
    """Seconds until `count` evaluations that start together are all finished."""
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    surroundings = {name: value for name, value in os.environ.items() if name not in unset} | dict(variables)
    words = ["-m", "tdrs.evaluate", "limit=64", "intervention=tdrs", "tracking=none", "features_gib=0"]
    with tempfile.TemporaryDirectory(prefix="tdrs-speed-") as folder:
        start = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, *words, f"output={folder}/{number}"], env=surroundings, stdout=subprocess.DEVNULL
            )
            for number in range(count)
        ]
        codes = [one.wait() for one in running]
        seconds = time.perf_counter() - start
    if any(codes):
        raise RuntimeError(f"an evaluation ended with code {max(codes)}")
    return seconds
