"""Where something was measured: versions, machine, commit."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from tdrs import __version__


@lru_cache
def environment() -> dict[str, str]:
    """Versions of what decides numbers, the machine, and the commit ("" outside a checkout; + where files differ)."""
    libraries = {name: version(name) for name in ("torch", "transformers", "optuna", "mlflow", "numpy")}
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


def _processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (
        "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    )
