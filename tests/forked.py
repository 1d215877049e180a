"""Commands in processes that start at once: they are forked from a server that has imported the libraries.

A Python process needs seconds to import them. A forked one has another process id, environment, working folder and
standard streams, can be killed, and exits with the command's code, as one that was started from a shell.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import TimeoutExpired

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.forked", "tdrs.sweep", "tdrs.analysis.report"])


class Forked:
    """A running function; its methods are those of `subprocess.Popen`.

    Args:
        function: importable by name; what it returns is the exit code.
        words: its arguments.
        log: the file for both of its output streams.
        environment: changes to the environment of this process.
    """

    def __init__(
        self, function: Callable[..., int], words: tuple[object, ...], log: Path, environment: Mapping[str, str]
    ) -> None:
        self._log = log
        given = {**os.environ, **environment}
        self._process = _CONTEXT.Process(target=_run, args=(function, words, str(log), given, os.getcwd()), daemon=True)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when the process has ended; raises TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise TimeoutExpired("a forked command", timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Both output streams in one, and "", when the process has ended."""
        self.wait(timeout)
        return self._log.read_text(), ""


def _run(
    function: Callable[..., int], words: tuple[object, ...], log: str, environment: dict[str, str], folder: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = function(*words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def sweep(*words: str) -> int:
    """`python -m tdrs.sweep WORDS`."""
    import torch

    from tdrs.configuration import run
    from tdrs.sweep import main_sweep

    torch.set_num_threads(1)  # the last digits depend on how many threads share a sum
    sys.argv = ["sweep", *words]
    return run("sweep", main_sweep, "")
