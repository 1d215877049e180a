"""Kernels and bytes of a layer's attention under T-DRS in the real models, counted without a GPU.

    python -m tdrs.speed kernels

`blocked` runs operators of PyTorch. Each one is counted as a kernel that reads its inputs and writes its outputs once;
views and allocations are none. Prefill runs on meta tensors, with the blocks of a GPU; decoding runs on the CPU, since
`blocked` compares kept directions. The fused kernels are counted by the loads and stores of their programs, with the
tiles of an H100. What several programs load of one key is counted each time, though a GPU's cache may serve it.

Stock attention is counted as one kernel that reads queries, keys and values once.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdrs.attention.call import Call
from tdrs.attention.core import blocked
from tdrs.attention.triton.tiles import CHUNK, SPLIT, tiles
from tdrs.environment import environment
from tdrs.interventions import METHODS

# Operators that launch no kernel
FREE = frozenset(
    "view _unsafe_view reshape transpose t permute select slice expand unsqueeze squeeze unflatten split detach alias "
    "diagonal as_strided lift_fresh empty empty_like empty_strided new_empty _local_scalar_dense".split()
)
H100 = (9, 0)


@dataclass(frozen=True)
class Shape:
    """A decoder layer, its prompt length L, and how many of the tokens are queries, in a model's dtype."""

    heads: int
    groups: int
    width: int
    keys: int
    queries: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key that it sees there are, over all heads."""
        return self.heads * (self.queries * self.keys - self.queries * (self.queries - 1) // 2)

    def call(self, device: str) -> Call:
        """An attention call of this shape, on random vectors."""
        generator = None if device == "meta" else torch.Generator().manual_seed(0)

        def vectors(heads: int, rows: int) -> torch.Tensor:
            return torch.randn(1, heads, rows, self.width, device=device, dtype=self.dtype, generator=generator)

        angles = (
            torch.arange(self.keys, device=device)[None, :, None] / 7 + torch.arange(self.width, device=device) % 32
        )
        query, key, value = vectors(self.heads, self.queries), *(vectors(self.groups, self.keys) for _ in range(2))
        angles = angles.expand(-1, -1, self.width).clone()
        rotation = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        return Call(query, key, value, self.width**-0.5, rotation=rotation)


@dataclass(frozen=True)
class Traffic:
    """What a layer's attention launches, and what that reads and writes."""

    kernels: int
    bytes: int


class Counter(TorchDispatchMode):
    """Counts the operators that run, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in FREE:
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            made = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor)]
            self.kernels += 1
            self.bytes += sum(map(_bytes, given + made))
        return output


def _bytes(x: torch.Tensor) -> int:
    """Bytes of the different elements of a tensor: one that is repeated by `expand` counts once."""
    count = x.element_size()
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def stock(shape: Shape) -> Traffic:
    """PyTorch's scaled dot product attention."""
    element = torch.empty((), dtype=shape.dtype).element_size()
    vectors = 2 * shape.heads * shape.queries + 2 * shape.groups * shape.keys
    return Traffic(1, vectors * shape.width * element)


@torch.no_grad()
def in_blocks(shape: Shape) -> Traffic:
    """The execution `blocked`. A decoded token finds the directions of the keys before it."""
    decoding = shape.queries == 1 < shape.keys
    call, method = shape.call("cpu" if decoding else "meta"), METHODS["tdrs"]()
    if decoding:
        assert call.rotation is not None
        cos, sin = (part[:, :-1] for part in call.rotation)
        blocked(replace(call, key=call.key[:, :, :-1], value=call.value[:, :, :-1], rotation=(cos, sin)), method)
    with Counter() as counter:
        blocked(call, method)
    return Traffic(counter.kernels, counter.bytes)


def in_fused_kernels(shape: Shape) -> Traffic:
    """The execution `triton`: directions of the keys, |A|_min, attention; or those of a decoded token."""
    element = torch.empty((), dtype=shape.dtype).element_size()
    direction = 4 if element == 4 else 2  # bytes of an element of a direction
    key, unit = shape.width * element, shape.width * direction
    if shape.queries == 1:
        return _decoded(shape, key, unit)
    size, past = tiles(shape.width, element, H100), shape.keys - shape.queries
    chunks = -(-shape.keys // CHUNK)
    # each key with its cos and sin; its direction, and the sums of chunks, in float32
    total = shape.groups * (shape.keys * (3 * key + unit) + chunks * shape.width * 4)
    blocks = range(-(-shape.queries // size.rows))
    for block in blocks:
        rows = min(size.rows, shape.queries - block * size.rows)
        seen = min(past + (block + 1) * size.rows, shape.keys)
        smallest = rows * key + seen * key + 4
        whole = (past + block * size.rows) // CHUNK
        # queries for the logits, and in two halves with cos and sin for their directions; sums; the keys behind them
        begin = 4 * rows * key + whole * shape.width * 4 + (seen - whole * CHUNK) * unit + len(blocks) * 4
        total += shape.heads * (smallest + begin + seen * (2 * key + unit) + rows * key)
    return Traffic(3, total)


def _decoded(shape: Shape, key: int, unit: int) -> Traffic:
    """The fused kernels of a decoded token, which find the directions of the keys before it.

    Args:
        key, unit: bytes of a key, and of a direction.
    """
    parts, group = -(-shape.keys // SPLIT), shape.heads // shape.groups
    pairs = group * shape.keys * 2 * 4  # logits and cosines, in float32
    statistics = group * parts * 2 * 4  # |A|_min and the sum of the cosine, of each part
    # queries as in `in_fused_kernels`, in each part; keys, directions and marks; the new key, which gets a direction
    scan = parts * (3 * group + 2) * key + shape.keys * (key + unit + 4) + 4 * key + unit + 4 + pairs + statistics
    sums = group * parts * (shape.width + 2) * 4
    weigh = parts * statistics + pairs + shape.keys * key + sums
    combine = sums + group * (parts * 4 + key)  # the largest logits twice
    return Traffic(3, shape.groups * (scan + weigh + combine))


WAYS: dict[str, Callable[[Shape], Traffic]] = {"stock": stock, "blocked": in_blocks, "triton": in_fused_kernels}

# heads, key heads and head size of the decoders
MODELS = {"LLaVA-1.5-7B": (32, 32, 128), "InternVL2-8B": (32, 8, 128), "Qwen2.5-VL-7B": (28, 4, 128)}
PARTS = {"prefill, L = 700": (700, 700), "prefill, L = 2048": (2048, 2048), "a decoded token, L = 2048": (2048, 1)}


HALF, SINGLE = torch.bfloat16, torch.float32


def rows() -> list[dict[str, Any]]:
    """One row for each part, model, dtype and way: kernels a layer, bytes a pair, bytes as a ratio to stock."""
    found = []
    for part, (keys, queries) in PARTS.items():
        for model, dtype in product(MODELS, (HALF, SINGLE) if queries == 1 else (HALF,)):
            heads, groups, width = MODELS[model]
            shape = Shape(heads, groups, width, keys, queries, dtype)
            row = {"part": part, "model": model, "dtype": str(dtype).removeprefix("torch.")}
            least = stock(shape).bytes
            for way, count in WAYS.items():
                traffic = count(shape)
                numbers = {"bytes_a_pair": traffic.bytes / shape.pairs, "ratio": traffic.bytes / least}
                found.append({**row, "way": way, "kernels": traffic.kernels, **numbers})
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows as text, one line for each part, model and dtype."""
    lines = [f"{'kernels a layer, bytes a pair (× stock)':50}" + "".join(f"{way:>24}" for way in WAYS)]
    cells: dict[tuple[str, ...], list[str]] = {}
    for row in found:
        shown = f"{row['kernels']}, {row['bytes_a_pair']:.1f} ({row['ratio']:.1f})"
        cells.setdefault((row["part"], row["model"], row["dtype"]), []).append(shown)
    for (part, model, dtype), some in cells.items():
        lines.append(f"{part:26}{model:15}{dtype:9}" + "".join(f"{one:>24}" for one in some))
    return "\n".join(lines)


def kernels(given: Mapping[str, str], folder: Path) -> None:
    """The command `kernels`."""
    found = rows()
    print(table(found))
    path = folder / "kernels.json"
    path.write_text(json.dumps({"kernels": found, "environment": environment()}, indent=1), encoding="utf-8")
    print(path)
