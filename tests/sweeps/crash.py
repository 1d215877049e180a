"""Kill a study with SIGKILL at random moments and go on, until it is done: it must equal the one nobody killed.

    python -m tests.sweeps.crash 20           # so many kills; `make crash`

Equal means: the same `study.json` but for times, the same trials in Optuna, the same runs in MLflow as a set of (trial,
params, metrics, status), none of them running.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from tdrs.sweeps.storage import load_optuna
from tests.forked import Forked

STUDY = [
    "search=compare", "study.name=crash", "preset=smoke", "batch_size=4", "search.budget=3",
    "++search.axes={dataset.gap: [8]}",
    "++search.methods={"
    "as printed: {intervention: tdrs}, "
    "weights: {intervention: tdrs, intervention.gain: weights,"
    " tune: {intervention.dc.weight: {low: 0.1, high: 3, log: true}}}, "
    "temperature: {intervention: temperature, tune: {intervention.tau: {low: 0.2, high: 1}}}}",
]  # fmt: skip


def start(output: Path, *more: str) -> "subprocess.Popen[str]":
    """The study's command, in a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tdrs.sweep", *STUDY, *more, f"output={output}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str] | Forked") -> None:
    """Wait for a process; raises RuntimeError with what it said if it failed."""
    said = process.communicate()
    if process.returncode:
        raise RuntimeError(said)


def running() -> dict[Path, bytes]:
    """The command line of every process, by its file; a process that ends meanwhile has none."""
    found: dict[Path, bytes] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found[path] = path.read_bytes()
    return found


def batches(output: Path) -> int:
    """How far a study is: finished evaluations and kept batches of others."""
    done = len(list(output.glob("records/*/result.json")))
    return 10 * done + sum(path.read_bytes().count(b"\n") for path in output.glob("records/*/batches.jsonl"))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: _timeless(v)
            for k, v in value.items()
            if k not in ("seconds", "finished", "output", "command", "workers", "key", "sha256")
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def runs(output: Path) -> list[Any]:
    """All runs in MLflow."""
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("crash").experiment_id], max_results=1000))


def state(output: Path) -> dict[str, Any]:
    """All there is to compare of a finished study."""
    folder = output / "studies" / "crash"
    trials = load_optuna(folder, "crash").get_trials()
    key_of_study = "study"
    return {
        "study": _timeless(json.loads((folder / "study.json").read_text())),
        "lines": [_timeless(json.loads(line)) for line in (folder / "trials.jsonl").read_text().splitlines()],
        "optuna": [(t.number, t.state.name, t.values, t.user_attrs["key"]) for t in trials],
        "mlflow": sorted(
            (
                run.data.tags["key"] if "mlflow.parentRunId" in run.data.tags else key_of_study,
                run.info.status,
                sorted(run.data.params.items()),
                sorted(run.data.metrics.items()),
            )
            for run in runs(output)
        ),
    }


def main(kills: int, seed: int = 0) -> None:
    """Print a line a kill; raises AssertionError if a study that was killed differs."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        begun = time.perf_counter()
        finish(start(whole))
        seconds = time.perf_counter() - begun
        expected = state(whole)
        print(f"uninterrupted: {seconds:.0f} s, {len(expected['mlflow'])} runs", flush=True)
        killed, study = 0, 0
        while killed < kills:
            study += 1
            output = Path(folder) / f"killed-{study}"
            while True:
                workers = [start(output) for _ in range(1 + (study + 1) % 2)]
                victim = workers[0]
                try:
                    victim.wait(rng.uniform(0.2, 1) * seconds)
                    ended = True
                except subprocess.TimeoutExpired:
                    ended = False
                    os.kill(victim.pid, signal.SIGKILL)
                    killed += 1
                    print(f"kill {killed}: {len(workers)} at work, progress {batches(output)}", flush=True)
                for worker in workers[1:]:
                    finish(worker)
                    ended = True
                victim.communicate()
                if ended or killed == kills:
                    break
            finish(start(output))
            found = state(output)
            for part, value in expected.items():
                assert found[part] == value, f"{output}: {part} differs"
            print(f"study {study} equals the uninterrupted one", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(int, sys.argv[2:]))
