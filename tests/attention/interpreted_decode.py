"""Decoded tokens in Triton's interpreter: cases of `interpreted.py`."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from tdrs import TDRS, VAF, backbones, benchmarks, intervene
from tdrs.attention.call import Call
from tdrs.attention.core import fused
from tdrs.configuration import choice
from tdrs.kernel_count import Shape, in_fused_kernels
from tests.attention.interpreted import BOTH, EXTREME, LEFT, STEEP, deviation, make, poisoned, transposed
from tests.attention.test_directions import PADDED, READ, outputs
from tests.conftest import tiny_llama
from tests.interventions.deviations import strong


class Traffic:
    """What the interpreted programs loaded and stored: bytes of different elements of each instruction."""

    def __init__(self) -> None:
        self.bytes = 0
        self.marks = 0  # how many were stored


@contextmanager
def traffic() -> Iterator[Traffic]:
    from triton.runtime.interpreter import interpreter_builder as builder

    found, load, store = Traffic(), builder.create_masked_load, builder.create_masked_store

    def count(pointers: Any, mask: Any) -> int:
        addresses = np.unique(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)])
        found.bytes += addresses.size * pointers.get_element_ty().primitive_bitwidth // 8
        return int(addresses.size)

    def loaded(pointers: Any, mask: Any, *others: Any) -> Any:
        count(pointers, mask)
        return load(pointers, mask, *others)

    def stored(pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        number = count(pointers, mask)
        found.marks += number if pointers.get_element_ty().is_int32() else 0
        return store(pointers, value, mask, *others)

    builder.create_masked_load, builder.create_masked_store = loaded, stored
    try:
        yield found
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


def counted(dtype: torch.dtype) -> float:
    """How far the counted bytes of a token are from what its programs load and store, as a share."""
    call = make(1, past=139, width=64, heads=4, groups=2)
    assert call.rotation is not None
    vectors = {name: getattr(call, name).to(dtype) for name in ("query", "key", "value")}
    cos, sin = (x.to(dtype) for x in call.rotation)
    call = replace(call, **vectors, rotation=(cos, sin))
    fused(part(call, 139), TDRS())
    with traffic() as found:
        fused(call, TDRS())
    assert found.marks == 2, found.marks  # the new key of each head
    expected = in_fused_kernels(Shape(heads=4, groups=2, width=64, keys=140, queries=1, dtype=dtype)).bytes
    return abs(found.bytes / expected - 1)


def part(call: Call, stop: int) -> Call:
    """A call with the same query, and the first `stop` keys. It shares what is kept of directions."""
    assert call.rotation is not None
    cos, sin = (part[:, :stop] for part in call.rotation)
    mask = None if call.mask is None else call.mask[..., :stop]
    return replace(call, key=call.key[:, :, :stop], value=call.value[:, :, :stop], rotation=(cos, sin), mask=mask)


def steps() -> float:
    """Calls with one cache, one after the other: it grows, is cropped and filled again, reordered, and outgrows the
    memory that was reserved for it. Each time the directions of the keys that changed are made."""
    call = make(1, past=139, padding=((0, 0), (5, 0)))
    other = make(1, past=138)
    worst = 0.0
    script = [(65, 60 + 65), (66, 2), (67, 2), (64, 0), (66, 0), (66, 4), (66, 60), (140, 275)]
    for number, (stop, expected) in enumerate(script):
        if number == 5:  # other tokens where the cache was cropped
            call.key[:, :, 64:66] = other.key[:, :, 64:66]
        if number == 6:
            call.key[:, :, 10:40] = call.key.flip(0)[:, :, 10:40]
        now = part(call, stop)
        with traffic() as seen:
            worst = max(worst, deviation(now, TDRS(**STEEP)))
        assert seen.marks == expected, (number, seen.marks)
    return worst


def kept() -> float:
    """A second call uses the directions of the first: it changes if they are turned around."""
    call = make(1, past=64)
    first = fused(call, strong())
    (directions,) = call.directions.values()
    again = fused(call, strong())
    directions.vectors.neg_()
    assert float((fused(call, strong()) - first).abs().max()) > 0.01
    return float((again - first).abs().max())


def changed(change: Callable[[torch.Tensor], object], expected: int, dtype: torch.dtype) -> float:
    """The deviation after a change of one key in place, whose direction alone is made anew."""
    call = make(1, past=64, width=64, groups=2)
    vectors = {name: getattr(call, name).to(dtype) for name in ("query", "key", "value")}
    call = replace(call, **vectors)
    fused(call, TDRS(**STEEP))
    change(call.key[0, 1, 7])
    with traffic() as found:
        error = deviation(call, TDRS(**STEEP), dtype=dtype)
    assert found.marks == expected, found.marks
    return error


def _swap(key: torch.Tensor) -> None:
    key[[2, 5]] = key[[5, 2]]


def model() -> float:
    """A model that decodes with a padded batch, and with one key changed in place: how far its logits are from the
    reference."""
    mask, found = PADDED[:2], []
    for execution in ("reference", "triton"):
        llama = tiny_llama(num_hidden_layers=1)
        with outputs(llama, TDRS(**STEEP), execution, mask) as run, traffic() as seen:
            run.decode(READ, READ + 2)
            run.each_key(lambda keys: keys[1, 0, 7, 3].add_(0.5))
            run.decode(READ + 2, READ + 3)
        found.append(torch.cat(run.outputs))
    assert found[0].isfinite().all()
    assert seen.marks == int(mask[:, : READ + 3].sum()) * llama.config.num_key_value_heads + 1
    return float((found[0] - found[1]).abs().max().nan_to_num(math.inf))


def answers() -> float:
    """An embedded model answers under the kernels as under the reference: how far the margins differ."""
    backbone = backbones.load(backbones.from_settings(choice("backbone", "mini_llava")))
    benchmark = benchmarks.from_settings({"name": "mini_textvqa", "gap": 0})
    samples = benchmarks.load(benchmark, "tuning", 2, backbone.settings.prompt_style)
    found = []
    for execution in ("reference", "triton"):
        with intervene(backbone.model, TDRS(**STEEP, layers=[1]), execution), traffic() as seen:
            found.append(backbone.answer(samples, benchmark.real))
    assert seen.marks > 0
    assert [one.text for one in found[0]] == [one.text for one in found[1]]
    return max(abs(one.margin - other.margin) for one, other in zip(*found, strict=True))


DECODED: dict[str, Callable[[], float]] = {
    "63 keys": lambda: deviation(make(1, past=62), strong()),
    "65 keys": lambda: deviation(make(1, past=64), strong()),
    "257 keys": lambda: deviation(make(1, past=256), strong()),
    "257 keys, layer, weights": lambda: deviation(make(1, past=256), strong(a_min_per="layer", gain="weights")),
    "257 keys, own |A|_min": lambda: deviation(make(1, past=256, padding=LEFT), strong(), own=True),
    "257 keys, vaf": lambda: deviation(make(1, past=256), VAF(image=1.5, system=0.4), own=True),
    "padding at both ends, decoded": lambda: deviation(make(1, past=64, padding=BOTH), TDRS(**STEEP)),
    "a part of padding": lambda: deviation(make(1, past=140, padding=((130, 0), (0, 0))), TDRS(**STEEP, scale="max")),
    "one visible key, and none": lambda: deviation(make(1, past=36, padding=EXTREME), TDRS(**STEEP)),
    "distance=position, padding, decoded": lambda: deviation(
        make(1, past=140, padding=BOTH), TDRS(**STEEP, distance="position")
    ),
    "a_min_of=weights, 20 heads a key": lambda: deviation(
        make(1, past=140, heads=40, groups=2, padding=LEFT), strong(a_min_of="weights", a_min_per="layer"), own=True
    ),
    "7 heads a key": lambda: deviation(make(1, past=64, heads=14, groups=2), strong()),
    "7 heads a key, layer": lambda: deviation(make(1, past=64, heads=14, groups=2), strong(a_min_per="layer")),
    "20 heads a key": lambda: deviation(make(1, past=64, heads=20), TDRS(**STEEP)),
    "head size 80, decoded": lambda: deviation(make(1, past=32, width=80), strong()),
    "head size 256, decoded": lambda: deviation(make(1, past=32, width=256), strong()),
    "layout pairs, decoded": lambda: deviation(make(1, past=32, layout="pairs"), strong()),
    "layout pairs of halves, decoded": lambda: deviation(make(1, past=32, layout="pairs_of_halves"), strong()),
    "layout none, decoded": lambda: deviation(make(1, past=32, layout="none"), strong()),
    "YaRN, decoded": lambda: deviation(make(1, past=32, width=32, turned=16, factor=1.3), TDRS(**STEEP)),
    "other strides, decoded": lambda: deviation(transposed(make(1, past=32, groups=2)), TDRS(**STEEP)),
    "float16, decoded": lambda: deviation(make(1, past=64, width=64), strong(), dtype=torch.float16),
    "bfloat16, decoded": lambda: deviation(make(1, past=64, width=64), strong(), dtype=torch.bfloat16),
    "NaN in padding, decoded": lambda: poisoned(make(1, past=64, padding=BOTH)),
    "kept directions": kept,
    "two elements change places": partial(changed, _swap, 1, torch.float32),
    "a key is negated": partial(changed, torch.neg_, 1, torch.float32),
    "a key is negated, bfloat16": partial(changed, torch.neg_, 1, torch.bfloat16),
    "a key is 0": partial(changed, torch.zero_, 1, torch.float32),
    "no key changes": partial(changed, torch.clone, 0, torch.float32),
    "bytes, float32": partial(counted, torch.float32),
    "bytes, bfloat16": partial(counted, torch.bfloat16),
    "answers": answers,
    "steps": steps,
    "a model": model,
}
