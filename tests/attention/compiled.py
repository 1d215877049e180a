"""The kernels that a call would launch, compiled for GPUs that are not here, and what their machine code says."""

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tdrs.attention.call import Call
from tdrs.attention.method import Method
from tests.attention.interpreted import edit_of, make

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
KERNELS = ("key_directions", "smallest_logits", "attend", "scan", "weigh", "combine", "row_spans")


@dataclass
class Launch:
    """One launch of a kernel that did not happen."""

    kernel: Any
    args: tuple[Any, ...] = ()
    constants: dict[str, Any] | None = None

    def __getitem__(self, grid: object) -> Any:
        def record(*args: Any, **constants: Any) -> None:
            self.args, self.constants = args, constants

        return record


@dataclass
class Compiled:
    """The machine code of a kernel, what it uses, the shared memory of a program in bytes, and its pairs a thread."""

    code: str
    usage: str
    shared: int
    pairs: int

    def count(self, pattern: str) -> int:
        """How many instructions match."""
        return len(re.findall(rf"\b{pattern}\b", self.code))

    @property
    def spilled(self) -> int:
        """Bytes of a thread's stack and local memory, and instructions that use them."""
        found = sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", self.usage))
        return found + self.count("(?:STL|LDL)")


def call_of(width: int, dtype: torch.dtype = torch.bfloat16, rows: int = 256, **given: Any) -> Call:
    """A call of 256 tokens, of which the last ones are rows, with rotation and roles in one dtype."""
    call = make(rows, past=256 - rows, width=width, **given)
    assert call.rotation is not None
    cos, sin = call.rotation
    vectors = {name: getattr(call, name).to(dtype) for name in ("query", "key", "value")}
    return replace(call, rotation=(cos.to(dtype), sin.to(dtype)), **vectors)


def launches(call: Call, method: Method, capability: tuple[int, int]) -> list[Launch]:
    """The kernels that a call launches on a GPU of this capability."""
    from tdrs.attention.triton import run
    from tdrs.attention.triton.tiles import tiles

    found = [Launch(getattr(run, name)) for name in KERNELS]
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, launch in zip(KERNELS, found, strict=True):
            monkeypatch.setattr(run, name, launch)
        wide = 1 << (call.query.shape[-1] - 1).bit_length()
        edit = edit_of(method)
        if call.query.shape[2] == 1:
            row = run.RowLaunches(call, edit)
            row.weigh(row.scan())
            return [launch for launch in found if launch.constants is not None]
        made = run.Launches(call, edit, tiles(wide, call.query.element_size(), capability, edit.heavy))
        made.attend(made.smallest() if edit.smallest else None)
    return [launch for launch in found if launch.constants is not None]


def compile_for(launch: Launch, capability: tuple[int, int]) -> Compiled:
    """Compile a launch as Triton would at run time."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert launch.constants is not None
    names = launch.kernel.arg_names
    constants = {name: value for name, value in launch.constants.items() if name in names}
    options = {name: value for name, value in launch.constants.items() if name not in names}
    signature, attrs = dict.fromkeys(constants, "constexpr"), {}
    for number, (name, value) in enumerate(zip(names, launch.args, strict=False)):
        signature[name] = _type(value)
        if not isinstance(value, float) and (isinstance(value, torch.Tensor) or value % 16 == 0):
            attrs[number,] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=launch.kernel,
        signature={name: signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attrs,
    )
    made = triton.compile(source, target=GPUTarget("cuda", 10 * capability[0] + capability[1], 32), options=options)
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        code, usage = (
            subprocess.run([cuobjdump, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "--dump-resource-usage")
        )
    pairs = constants.get("M", 0) * constants.get("N", 0) // (32 * options["num_warps"])
    return Compiled(code, usage, made.metadata.shared, pairs)


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"
