"""Kernels compiled for GPUs that are not here, and what their machine code says."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tdrs.attention.triton.tiles import Tiles

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # the most that a program can have
MUFU = re.compile(r"\bMUFU\.(?:EX2|LG2|RCP|RSQ|SQRT|SIN|COS|TANH)")


@dataclass
class Compiled:
    """The machine code of a kernel, and the shared memory of a program in bytes."""

    code: str
    usage: str
    shared: int

    def count(self, pattern: str) -> int:
        """How many instructions match."""
        return len(re.findall(pattern, self.code))

    @property
    def spilled(self) -> int:
        """Bytes of a thread's stack and local memory."""
        return sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", self.usage))


def compile_for(kernel: Any, arch: int, types: dict[str, str], constants: dict[str, Any], tiles: Tiles) -> Compiled:
    """Compile a kernel for a GPU such as sm_90.

    Args:
        types: of the arguments that are not constants; an integer is i32 if it is not named.
    """
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    # as at run time: pointers, and distances between rows, are multiples of 16
    even = [i for i, n in enumerate(names) if signature[n].startswith("*") or (n not in constants and "_" in n)]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in even},
    )
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        code, usage = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "--dump-resource-usage")
        )
    return Compiled(code, usage, made.metadata.shared)
