"""Who measures a study's trials: this process, several on this machine, or Ray's (`sweeps/ray_workers.py`).

Processes share nothing but the folder of records, in which each claims the evaluations it runs (`sweeps/engine.py`). So
a worker is the same command again; one that dies is missed by nobody.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from tdrs.settings import SettingError, check_choice, check_number

KINDS = ("inline", "processes", "member", "ray")


class Crew:
    """This process's helpers, started on entering and sent home on leaving; what they finished is kept.

    Args:
        count: how many processes measure, this one among them.
        command: what starts one.
        folder: where each writes what it has to say, `worker-1.log` and so on.
        devices: the GPUs, one a process; none on the CPU.
    """

    def __init__(self, count: int, command: Sequence[str], folder: Path, devices: Sequence[str]) -> None:
        self.count = count
        self.command = command
        self.folder = folder
        self.devices = devices
        self.processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "Crew":
        threads = max(1, self._threads // self.count)
        for number in range(1, self.count):
            surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            if self.devices:
                surroundings["CUDA_VISIBLE_DEVICES"] = self.devices[number]
            self.folder.mkdir(parents=True, exist_ok=True)
            log = (self.folder / f"worker-{number}.log").open("wb")
            self._logs.append(log)
            self.processes.append(
                subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=surroundings)
            )
        if self.count > 1 and not self.devices:
            torch.set_num_threads(threads)
        return self

    def __exit__(self, *_: object) -> None:
        failed = [number for number, process in enumerate(self.processes, 1) if process.poll() not in (None, 0)]
        for process in self.processes:
            process.terminate()  # it ends at its next batch, if it is in one
        for process in self.processes:
            process.wait()
        for log in self._logs:
            log.close()
        torch.set_num_threads(self._threads)
        for number in failed:
            print(f"worker {number} failed, the others did its share: {self._logs[number - 1].name}", file=sys.stderr)


def from_settings(config: Mapping[str, Any], arguments: Sequence[str], folder: Path) -> Crew:
    """The helpers that the group `workers` asks for.

    Args:
        config: the study's plain configuration.
        arguments: those of the command, in Hydra's grammar.
        folder: the study's.

    Raises:
        SettingError: a setting is not allowed, or there are fewer GPUs than workers.
    """
    workers = config["workers"]
    check_choice("workers.name", workers["name"], KINDS)
    if workers["name"] != "processes":
        return Crew(1, [], folder, [])
    count = workers["count"]
    check_number("workers.count", count, 1, whole=True)
    devices: list[str] = []
    if config["backbone"]["device"] != "cpu" and torch.cuda.is_available():
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
        if count > len(devices):
            raise SettingError("workers.count", count, f"must be at most {len(devices)}, the GPUs there are")
    own = [word for word in arguments if not word.startswith(("workers=", "workers.", "tracking=", "tracking."))]
    command = [sys.executable, "-m", "tdrs.sweep", *own, "workers=member", "tracking=none"]
    return Crew(count, command, folder, devices)
