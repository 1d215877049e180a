"""Further processes that do a command's work, each with a GPU of its own, or with its share of the cores."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch

from tdrs.settings import SettingError


class WorkerPool:
    """Worker processes; started on entering, ended on leaving. What they finished is kept.

    Args:
        count: how many processes work, including this one.
        command: what starts one.
        given: what each reads from its standard input.
        folder: where each writes its output, as `worker-1.log` and so on.
        devices: the GPUs, one a process; none on the CPU.
    """

    def __init__(
        self, count: int, command: Sequence[str], given: bytes, folder: Path, devices: Sequence[str] = ()
    ) -> None:
        self.count = count
        self.command = command
        self.devices = devices
        self.processes: list[subprocess.Popen[bytes]] = []
        self._given = given
        self._folder = folder
        self._logs: list[IO[bytes]] = []
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "WorkerPool":
        threads = max(1, self._threads // self.count)
        for number in range(1, self.count):
            surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            if self.devices:
                surroundings["CUDA_VISIBLE_DEVICES"] = self.devices[number]
            self._folder.mkdir(parents=True, exist_ok=True)
            log = (self._folder / f"worker-{number}.log").open("wb")
            self._logs.append(log)
            process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.PIPE, env=surroundings)
            self.processes.append(process)
            assert process.stdin
            with suppress(OSError), process.stdin:  # it may have failed already
                process.stdin.write(self._given)
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
            log_name = self._logs[number - 1].name
            print(f"worker {number} failed, the others did its share: {log_name}", file=sys.stderr)


def gpus(count: int) -> list[str]:
    """The GPUs for `count` workers, as CUDA_VISIBLE_DEVICES names them; none without CUDA.

    Raises:
        SettingError: there are fewer GPUs than workers.
    """
    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    if count > len(devices):
        raise SettingError("workers.count", count, f"must be at most {len(devices)}, the GPUs there are")
    return devices
