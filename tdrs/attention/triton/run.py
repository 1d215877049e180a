"""From a call to the output: the kernels in order, with their tiles."""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
import triton

from tdrs.attention.call import Call
from tdrs.attention.fused import FusedEdit, interpreted
from tdrs.attention.triton.attend import attend, no_count, no_rows
from tdrs.attention.triton.directions import key_directions
from tdrs.attention.triton.smallest import smallest_logits
from tdrs.attention.triton.tiles import CHUNK, INTERPRETED, Tiles, tiles


def run(call: Call, edit: FusedEdit) -> torch.Tensor:
    """The output of all rows, (B, H, Q, D), 0 in rows of padding and before `call.wanted`.

    Args:
        call: one that `fused.unfit` finds nothing against.
        edit: the method's edit.
    """
    guard: AbstractContextManager[Any] = nullcontext()
    if call.query.is_cuda:
        guard = torch.cuda.device(call.query.device)  # Triton launches on the current device
    with guard:
        launches = Launches(call, edit)
        return launches.attend(launches.smallest() if edit.smallest else None)


class _Angles(NamedTuple):
    """cos and sin as the kernels read them, how many coordinates are rotated, and their layout."""

    cos: torch.Tensor
    sin: torch.Tensor
    turned: int
    layout: str

    @property
    def strides(self) -> tuple[int, int]:
        """From one sample to the next, and from one token to the next."""
        return (self.cos.stride(0) if self.turned and self.cos.shape[0] > 1 else 0), self.cos.stride(1)


class Launches:
    """The kernels of one call.

    Args:
        call, edit: as in `run`.
        given: the tiles; None chooses them.
    """

    def __init__(self, call: Call, edit: FusedEdit, given: Tiles | None = None) -> None:
        self.call, self.edit = call, edit
        self.query, self.key, self.value = (_dense(x) for x in (call.query, call.key, call.value))
        self.batch, self.heads, self.rows, width = self.query.shape
        self.groups, self.keys = self.key.shape[1], self.key.shape[2]
        self.device = self.query.device
        self.exact = self.query.dtype == torch.float32
        wide = triton.next_power_of_2(width)
        if given is None:
            here = interpreted()
            capability = (0, 0) if here else torch.cuda.get_device_capability(self.device)
            given = INTERPRETED if here else tiles(wide, self.query.element_size(), capability, edit.heavy)
        self.blocks, self.chunks = triton.cdiv(self.rows, given.rows), triton.cdiv(self.keys, CHUNK)
        self.padded = call.bounds is not None
        # what all kernels take, and what those with products take
        self.common: dict[str, Any] = {"D": width, "WIDE": wide, "PADDED": self.padded, "enable_fp_fusion": True}
        self.products: dict[str, Any] = {
            "HEADS": self.heads,
            "GROUP": self.heads // self.groups,
            "M": given.rows,
            "N": given.keys,
            "PRECISION": "tf32x3" if self.exact else "tf32",  # with 16 bits, products are exact in any case
            "INTERPRETED": interpreted(),
            "num_warps": given.warps,
            "num_stages": given.stages,
        }

    @cached_property
    def _bounds(self) -> torch.Tensor:
        bounds = self.call.bounds
        return self.query if bounds is None else bounds.to(self.device).expand(self.batch, 2).contiguous()

    @cached_property
    def _angles(self) -> _Angles:
        if self.edit.cosine != "pre_rope" or self.call.layout == "none":
            return _Angles(self.query[0], self.query[0], 0, "none")
        assert self.call.rotation is not None, "the method must list 'rotation' in its needs"
        cos, sin = (_dense(x) for x in self.call.rotation)
        if cos.stride() != sin.stride():
            cos, sin = cos.contiguous(), sin.contiguous()
        return _Angles(cos, sin, cos.shape[-1], self.call.layout)

    def _directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The directions of the keys, (B, Hₖ, K, D), and the sum over each chunk, (B, Hₖ, chunks, D) float32."""
        kind = torch.float32 if self.exact else torch.float16
        directions = torch.empty(self.key.shape, dtype=kind, device=self.device)
        wide = self.common["WIDE"]
        sums = torch.empty(self.batch, self.groups, self.chunks, wide, dtype=torch.float32, device=self.device)
        angles = self._angles
        key_directions[(self.chunks, self.batch * self.groups)](
            self.key, angles.cos, angles.sin, self._bounds, directions, sums,
            self.keys, *self.key.stride()[:3], *angles.strides,
            GROUPS=self.groups, CHUNK=CHUNK, TURNED=angles.turned, LAYOUT=angles.layout, SUMS=self.edit.norm == "mean",
            num_warps=4, **self.common,
        )  # fmt: skip
        return directions, sums

    def smallest(self) -> torch.Tensor:
        """|A|_min of each block of rows, (B, H, blocks)."""
        found = torch.empty(self.batch, self.heads, self.blocks, dtype=torch.float32, device=self.device)
        smallest_logits[(self.blocks, self.batch * self.heads)](
            self.query, self.key, self._bounds, found,
            self.rows, self.keys, self.call.scaling, *self.query.stride()[:3], *self.key.stride()[:3],
            **self.common, **self.products,
        )  # fmt: skip
        return found

    def attend(self, smallest: torch.Tensor | None) -> torch.Tensor:
        """The output, (B, H, Q, D).

        Args:
            smallest: |A|_min of each block of rows, (B, H, blocks); None if the edit does not use it.
        """
        call, edit, angles, functions = self.call, self.edit, self._angles, self.edit.functions()
        nothing = self.query  # what a kernel is given where it reads nothing
        directions, sums = self._directions() if edit.cosine else (nothing, nothing)
        counts = nothing if smallest is None else call.tally.counters(*edit.counted, self.device)
        roles = heads = nothing
        if edit.roles:
            assert call.roles is not None, "the method must list 'roles' in its needs"
            roles = call.roles.expand(self.batch, -1).int().contiguous()
        if call.heads is not None:
            heads = call.heads.flatten().int()
        numbers = [*map(float, edit.numbers), *[0.0] * (5 - len(edit.numbers))]
        # the session puts heads behind rows again
        output = self.query.new_empty(self.batch, self.rows, self.heads, self.query.shape[-1]).transpose(1, 2)
        attend[(self.blocks, self.batch * self.heads)](
            self.query, self.key, self.value, angles.cos, angles.sin, directions, sums,
            nothing if smallest is None else smallest, self._bounds, roles, heads, counts, output,
            self.rows, self.keys, self.chunks, self.blocks, call.wanted, call.scaling, *numbers,
            *self.query.stride()[:3], *self.key.stride()[:3], *self.value.stride()[:3], *output.stride()[:3],
            *angles.strides,
            CHUNK=CHUNK, TURNED=angles.turned, LAYOUT=angles.layout,
            ROWS=functions.rows or no_rows, EDIT=functions.edit, COUNT=functions.count or no_count,
            FLAGS=edit.flags, COSINE=bool(edit.cosine), NORM=edit.norm, SMALLEST=edit.smallest, FACTOR=edit.factor,
            ROLES=edit.roles, SOME_HEADS=call.heads is not None, **self.common, **self.products,
        )  # fmt: skip
        return output


def _dense(x: torch.Tensor) -> torch.Tensor:
    """The same vectors with their coordinates next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()
