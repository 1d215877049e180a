"""The versions, the machine and the commit of a measurement; and settings of this process."""

import ctypes
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path

import torch

from tdrs import __version__

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names in malloc.h


@lru_cache
def environment() -> dict[str, str]:
    """Versions of the libraries, the machine, and the commit: "" outside a checkout, with + if files differ from it."""
    libraries = versions() | {name: version(name) for name in ("optuna", "mlflow", "numpy")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "tdrs": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **libraries,
        "device": device,
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
    }


@cache
def version(name: str) -> str:
    """The version of an installed package; it is read once, since each cache key contains four of them."""
    return metadata.version(name)


def versions() -> dict[str, str]:
    """The versions of the libraries that decide a model's answers."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers", "pillow")}


@contextmanager
def quiet(*loggers: str, level: int = logging.WARNING) -> Iterator[None]:
    """Hide log messages below a level for a while, by the names of their loggers."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, was in before.items():
            logging.getLogger(name).setLevel(was)


def shows_progress() -> bool:
    """Whether standard error is that of a terminal or a notebook, where somebody sees a progress bar."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel.")


def keep_memory() -> None:
    """Let this process reuse memory that it frees. Needs glibc; elsewhere nothing happens.

    An edit allocates arrays of a few MiB, block after block. By default glibc returns each of them to the system and
    gets it back page by page: a quarter of the time of T-DRS at 2048 tokens. Only commands call this.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout.strip()
        except OSError:  # no git
            return ""

    return git("rev-parse", "--short=12", "HEAD") + (
        "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    )
