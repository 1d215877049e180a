"""From a call to the output: the kernels in order, with their tiles."""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
import triton

from tdrs.attention.call import Call
from tdrs.attention.directions import room
from tdrs.attention.fused import FusedEdit, interpreted
from tdrs.attention.triton.attend import attend, no_count, no_rows
from tdrs.attention.triton.decode import combine, weigh
from tdrs.attention.triton.directions import key_directions
from tdrs.attention.triton.distance import row_spans
from tdrs.attention.triton.scan import scan
from tdrs.attention.triton.smallest import smallest_logits
from tdrs.attention.triton.tiles import CHUNK, INTERPRETED, SPLIT, Tiles, row_tiles, tiles


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
        if call.query.shape[2] == 1:
            row = RowLaunches(call, edit)
            return row.weigh(row.scan())
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


class _Inputs:
    """What the kernels of one call read.

    Args:
        call, edit: as in `run`.
    """

    def __init__(self, call: Call, edit: FusedEdit) -> None:
        self.call, self.edit = call, edit
        self.query, self.key, self.value = (_dense(x) for x in (call.query, call.key, call.value))
        self.batch, self.heads, self.rows, width = self.query.shape
        self.groups, self.keys = self.key.shape[1], self.key.shape[2]
        self.device = self.query.device
        exact = self.query.dtype == torch.float32
        self.kind = torch.float32 if exact else torch.float16  # of directions
        self.wide = triton.next_power_of_2(width)
        functions = edit.functions()
        # what all kernels take, those with products, and those with an edit
        self.padded = call.bounds is not None
        self.common: dict[str, Any] = {
            "D": width,
            "WIDE": self.wide,
            "PADDED": self.padded,
            "enable_fp_fusion": True,
        }
        self.products: dict[str, Any] = {
            "HEADS": self.heads,
            "GROUP": self.heads // self.groups,
            "PRECISION": "tf32x3" if exact else "tf32",  # with 16 bits, products are exact in any case
            "INTERPRETED": interpreted(),
        }
        self.edits: dict[str, Any] = {
            "ROWS": functions.rows or no_rows,
            "EDIT": functions.edit,
            "COUNT": functions.count or no_count,
            "FLAGS": edit.flags,
            "COSINE": bool(edit.cosine),
            "NORM": edit.norm,
            "SMALLEST": edit.smallest,
            "WEIGHTS": edit.weights,
            "BY_ROW": edit.by_row,
            "FACTOR": edit.factor,
            "ROLES": edit.roles,
            "AXES": self._positions.shape[-1] if edit.positions else 0,
            "SOME_HEADS": call.heads is not None,
        }

    def _tile(self, given: Tiles) -> None:
        self.products |= {"M": given.rows, "N": given.keys, "num_warps": given.warps, "num_stages": given.stages}

    def _numbers(self) -> list[float]:
        return [*map(float, self.edit.numbers), *[0.0] * (5 - len(self.edit.numbers))]

    @cached_property
    def _positions(self) -> torch.Tensor:
        """Position ids, (B, K, axes); anything of three axes if the edit does not use them."""
        if not self.edit.positions:
            return self.query[0]
        assert self.call.positions is not None, "the method must list 'positions' in its needs"
        return self.call.positions.expand(self.batch, -1, -1)

    def _spans(self) -> torch.Tensor:
        """d_max of each row by positions, (B, Q), which the layers of a forward pass share."""
        if not self.edit.positions:
            return self.query
        positions, mask = self._positions, self.call.mask
        key = "spans", positions.data_ptr(), self.device, self.rows, self.keys
        known, spans = self.call.memory.get(key, (None, None))
        if spans is None or known is not mask:
            spans = torch.empty(self.batch, self.rows, dtype=torch.float32, device=self.device)
            row_spans[(triton.cdiv(self.rows, 16), self.batch)](
                positions, self._bounds, spans, self.rows, self.keys, *positions.stride(),
                AXES=positions.shape[-1], M=16, N=128, PADDED=self.padded, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
            self.call.memory[key] = mask, spans
        return spans

    def _chosen(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The roles of tokens, their positions, the edited heads, and the counts, which the kernel adds to."""
        call, edit, nothing = self.call, self.edit, self.query
        roles = heads = nothing
        if edit.roles:
            assert call.roles is not None, "the method must list 'roles' in its needs"
            roles = call.roles.expand(self.batch, -1).int().contiguous()
        if call.heads is not None:
            heads = call.heads.flatten().int()
        return (
            roles,
            self._positions,
            heads,
            call.tally.counters(*edit.counted, self.device) if edit.smallest else nothing,
        )

    def _output(self) -> torch.Tensor:
        """Memory for the output, (B, H, Q, D); the session puts heads behind rows again."""
        return self.query.new_empty(self.batch, self.rows, self.heads, self.query.shape[-1]).transpose(1, 2)

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


class Launches(_Inputs):
    """The kernels of one call.

    Args:
        call, edit: as in `run`.
        given: the tiles; None chooses them.
    """

    def __init__(self, call: Call, edit: FusedEdit, given: Tiles | None = None) -> None:
        super().__init__(call, edit)
        if given is None:
            here = interpreted()
            capability = (0, 0) if here else torch.cuda.get_device_capability(self.device)
            given = INTERPRETED if here else tiles(self.wide, self.query.element_size(), capability, edit.heavy)
        self.blocks, self.chunks = triton.cdiv(self.rows, given.rows), triton.cdiv(self.keys, CHUNK)
        self._tile(given)

    def _directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The directions of the keys, (B, Hₖ, K, D), and the sum over each chunk, (B, Hₖ, chunks, D) float32."""
        directions = torch.empty(self.key.shape, dtype=self.kind, device=self.device)
        sums = torch.empty(self.batch, self.groups, self.chunks, self.wide, dtype=torch.float32, device=self.device)
        angles = self._angles
        key_directions[(self.chunks, self.batch * self.groups)](
            self.key, angles.cos, angles.sin, self._bounds, directions, sums,
            self.keys, *self.key.stride()[:3], *angles.strides,
            GROUPS=self.groups, CHUNK=CHUNK, TURNED=angles.turned, LAYOUT=angles.layout, SUMS=self.edit.norm == "mean",
            num_warps=4, **self.common,
        )  # fmt: skip
        return directions, sums

    def smallest(self) -> torch.Tensor:
        """|A|_min of each block of rows, (B, H, blocks), or of each row, (B, H, Q)."""
        count = self.rows if self.edit.by_row else self.blocks
        found = torch.empty(self.batch, self.heads, count, dtype=torch.float32, device=self.device)
        smallest_logits[(self.blocks, self.batch * self.heads)](
            self.query, self.key, self._bounds, found,
            self.rows, self.keys, self.call.scaling, *self.query.stride()[:3], *self.key.stride()[:3],
            WEIGHTS=self.edit.weights, BY_ROW=self.edit.by_row, **self.common, **self.products,
        )  # fmt: skip
        return found

    def attend(self, smallest: torch.Tensor | None) -> torch.Tensor:
        """The output, (B, H, Q, D).

        Args:
            smallest: what `smallest` gives; None if the edit does not use it.
        """
        call, angles, nothing = self.call, self._angles, self.query
        directions, sums = self._directions() if self.edit.cosine else (nothing, nothing)
        output = self._output()
        attend[(self.blocks, self.batch * self.heads)](
            self.query, self.key, self.value, angles.cos, angles.sin, directions, sums,
            nothing if smallest is None else smallest, self._spans(), self._bounds, *self._chosen(), output,
            self.rows, self.keys, self.chunks, self.blocks, call.wanted, call.scaling, *self._numbers(),
            *self.query.stride()[:3], *self.key.stride()[:3], *self.value.stride()[:3], *output.stride()[:3],
            *self._positions.stride(), *angles.strides,
            CHUNK=CHUNK, TURNED=angles.turned, LAYOUT=angles.layout, **self.edits, **self.common, **self.products,
        )  # fmt: skip
        return output


class Kept(NamedTuple):
    """Directions of keys that are kept from one token to the next.

    Attributes:
        vectors: (B, Hₖ, K or more, D).
        marks: the mark of each key whose direction was made, (B, Hₖ, K or more) int32; 0 where none was.
    """

    vectors: torch.Tensor
    marks: torch.Tensor


class Scanned(NamedTuple):
    """What is known of a row before its edit.

    Attributes:
        logits, cosines: of the row with all keys, (B, H, K).
        smallest: |A|_min of each part of the keys, (B, H, parts); its smallest logit, if |A|_min is of weights.
        tops, masses: in that case, the largest logit of each part, and the sum of its weights relative to that one.
        norms: the sum or the maximum of the cosine over each part, (B, H, parts).
    """

    logits: torch.Tensor
    cosines: torch.Tensor
    smallest: torch.Tensor
    tops: torch.Tensor
    masses: torch.Tensor
    norms: torch.Tensor


class RowLaunches(_Inputs):
    """The kernels of a call with one row; arguments as in `run`."""

    def __init__(self, call: Call, edit: FusedEdit) -> None:
        super().__init__(call, edit)
        self.parts = triton.cdiv(self.keys, SPLIT)
        given = row_tiles(self.wide, self.query.element_size(), self.heads // self.groups)
        self._tile(given)
        self.products["SPLIT"] = SPLIT
        self.grid = self.parts, self.batch * self.groups

    def _kept(self) -> Kept:
        """The directions that are kept, or memory for them."""
        name = f"decode {self.edit.cosine}"
        found: Kept | None = self.call.directions.get(name)
        shape = (*self.key.shape[:2], self.keys, self.key.shape[-1])
        if found is None or not _fits(found.vectors, shape, self.kind, self.device):
            vectors = torch.empty(
                *shape[:2], self.keys + room(self.keys), shape[-1], dtype=self.kind, device=self.device
            )
            found = Kept(vectors, torch.zeros(vectors.shape[:3], dtype=torch.int32, device=self.device))
            self.call.directions[name] = found
        return found

    def scan(self) -> Scanned | None:
        """The logits, the cosines and their statistics; None if the edit needs neither cosines nor |A|_min."""
        edit, angles = self.edit, self._angles
        if not edit.cosine and not edit.smallest:
            return None
        vectors, marks = self._kept() if edit.cosine else (self.query, self.query[..., 0])
        of_pairs, of_parts = (
            torch.empty(number, self.batch, self.heads, count, dtype=torch.float32, device=self.device)
            for number, count in ((2, self.keys), (4, self.parts))
        )
        found = Scanned(*of_pairs, *of_parts)
        scan[self.grid](
            self.query, self.key, angles.cos, angles.sin, self._bounds, vectors, marks, *found,
            self.keys, self.parts, self.call.scaling, *self.query.stride()[:2], *self.key.stride()[:3],
            *marks.stride()[:2], *angles.strides,
            TURNED=angles.turned, LAYOUT=angles.layout, COSINE=bool(edit.cosine), NORM=edit.norm,
            WEIGHTS=edit.weights, **self.common, **self.products,
        )  # fmt: skip
        return found

    def weigh(self, scanned: Scanned | None) -> torch.Tensor:
        """The output, (B, H, 1, D)."""
        known = [self.query] * 6 if scanned is None else scanned
        tops, masses = torch.empty(2, self.batch, self.heads, self.parts, dtype=torch.float32, device=self.device)
        sums = torch.empty(self.batch, self.heads, self.parts, self.wide, dtype=torch.float32, device=self.device)
        weigh[self.grid](
            self.query, self.key, self.value, self._bounds, *known, self._spans(), *self._chosen(), tops, masses, sums,
            self.keys, self.parts, self.call.scaling, *self._numbers(),
            *self.query.stride()[:2], *self.key.stride()[:3], *self.value.stride()[:3], *self._positions.stride(),
            SCANNED=scanned is not None, **self.edits, **self.common, **self.products,
        )  # fmt: skip
        output = self._output()
        sizes = {name: self.common[name] for name in ("D", "WIDE", "enable_fp_fusion")}
        combine[(self.batch * self.heads,)](tops, masses, sums, output, self.parts, **sizes, num_warps=4)
        return output


def _fits(memory: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether memory of vectors has room for those of a shape, (B, Hₖ, K, D)."""
    batch, groups, keys, width = shape
    same = (*memory.shape[:2], memory.shape[3]) == (batch, groups, width)
    return same and memory.shape[2] >= keys and memory.dtype == dtype and memory.device == device


def _dense(x: torch.Tensor) -> torch.Tensor:
    """The same vectors with their coordinates next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()
