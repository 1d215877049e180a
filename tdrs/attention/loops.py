"""Loops in C, for edits that take many passes over a block in PyTorch: compiled where there is a compiler.

gcc or clang compiles a file in a quarter of a second, for the processor at hand, when a process first needs it. Nothing
is kept. Without a compiler the same edit runs in PyTorch, with the same results up to rounding.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

# not -ffast-math: it would round subnormal numbers to 0 in the whole process
OPTIONS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC".split()
SECONDS = 60


@cache
def load(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file; None if it cannot be compiled here."""
    compiler = os.environ.get("CC") or next((name for name in ("gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="tdrs-loop-") as folder:
        made = Path(folder) / f"{source.stem}.so"
        try:
            command = [*shlex.split(compiler), *OPTIONS, str(source), "-o", str(made), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            return ctypes.CDLL(str(made))
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
