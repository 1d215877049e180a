"""The core itself: the memory of an edit, its blocks, and what it refuses to guess."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tdrs import DC, TDRS
from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.attention.core import blocked, reference, weights
from tdrs.attention.tally import Tally
from tdrs.interventions import METHODS, Method
from tdrs.speed import peak_mib
from tests.interventions.calls import edits, make, rotate_half, rotation


def large(length: int = 4096, heads: int = 8, width: int = 64, padded: bool = False) -> Call:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, width, generator=generator) for _ in range(3))
    cos, sin = rotation(torch.arange(length)[None], width)
    q, k = (x * cos[:, None] + rotate_half(x) * sin[:, None] for x in (q, k))
    mask = None
    if padded:
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        mask[..., :5] = False
    positions = torch.arange(length)[None, :, None].expand(-1, -1, 3)
    roles = (torch.arange(length) > 600).long()[None] + 1
    return Call(q, k, v, width**-0.5, mask, (cos, sin), positions, roles)


HEAVY = {
    "tdrs": TDRS(),
    "tdrs, most asked for": TDRS(a_min_of="weights", distance="position", pairs="cross_modal", gain="weights"),
    "middle_layers": METHODS["middle_layers"](),
}


@pytest.mark.parametrize("name", HEAVY)
def test_extra_memory_stays_below_64_mib(name: str) -> None:
    """At 4096 tokens and 8 heads, where the whole map takes 512 MiB. The output's 8 MiB are included."""
    call = large(padded=name != "middle_layers")
    assert 4 < peak_mib(lambda: blocked(call, HEAVY[name])) <= 64


def test_the_measurement_sees_the_whole_map() -> None:
    """The same measurement on a map of 512 tokens: A alone is 8 MiB."""
    call = large(length=512)
    whole = peak_mib(lambda: blocked(replace(call, block_elements=1 << 30), METHODS["temperature"]()))
    assert whole > 16


@pytest.mark.parametrize("past", [0, 13])
@pytest.mark.parametrize("size", [1, 50, 333, 10_000])
def test_blocks_cover_all_rows_once(past: int, size: int) -> None:
    call = replace(make(29, past).call, block_elements=size)
    blocks = list(call.blocks())
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(29))
    assert all(block.keys == past + block.stop for block in blocks)
    elements = 2 * 4
    assert all(elements * (b.stop - b.start) * b.keys <= size or b.stop - b.start == 1 for b in blocks)


@pytest.mark.parametrize("past", [0, 7])
@pytest.mark.parametrize("wanted", [1, 11, 28])
@pytest.mark.parametrize("name", [*(name for name in edits() if name != "heads_off"), "none", "tdrs, row"])  # all 0
def test_rows_that_are_not_wanted_are_0_and_change_no_other(name: str, wanted: int, past: int) -> None:
    """The statistics still cover the whole map. Rows of padding, on the left, are always 0."""
    method = TDRS(stats_scope="row") if name == "tdrs, row" else {**edits(), "none": METHODS["none"]()}[name]
    call = replace(make(29, past, padding="left").call, block_elements=700)
    whole, part = reference(call, method), blocked(replace(call, wanted=wanted), method)
    torch.testing.assert_close(part[:, :, wanted:], whole[:, :, wanted:])
    assert not part[:, :, :wanted].any()
    assert whole[:, :, :wanted].any()


def test_what_is_clamped_is_counted_once_where_few_rows_are_wanted() -> None:
    call = replace(make(29).call, block_elements=700)
    counts = []
    for wanted in (0, 28):
        here = replace(call, wanted=wanted, tally=Tally())
        blocked(here, TDRS(dc=DC(w_min=1e9)))
        counts.append(here.tally.take()["clamped"]["dc.w_min"])
    assert counts[0] == counts[1] == (8, 8)  # 2 samples, 4 heads


def test_an_edit_leaves_what_it_was_given() -> None:
    """Methods may share a block's arrays, so none may write into them."""
    for name, method in edits().items():
        block = next(make(12, padding="left").call.blocks())
        before = block.logits.clone()
        statistics = method.statistics(block.call)
        method.edit(block, statistics)
        assert torch.equal(block.logits, before), name
        shares = block.hide(before.clone(), -math.inf).softmax(dim=-1)
        given = shares.clone()
        method.reweigh(block, shares, statistics)
        assert torch.equal(shares.nan_to_num(-1), given.nan_to_num(-1)), name
        assert torch.equal(block.logits, before), name


@pytest.mark.parametrize("name", edits())
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_padding_changes_nothing(name: str, side: str) -> None:
    method = edits()[name]
    clean, poisoned = make(20, padding=side).call, make(20, padding=side).call
    where = slice(0, 6) if side == "left" else slice(14, 20)
    for vectors in (poisoned.query, poisoned.key, poisoned.value):
        vectors[0, :, where] = math.nan
    for size in (97, 10_000):
        found = blocked(replace(poisoned, block_elements=size), method)
        torch.testing.assert_close(found, blocked(replace(clean, block_elements=size), method), atol=1e-6, rtol=1e-5)


def test_a_method_that_does_not_say_what_it_needs_is_told() -> None:
    call = replace(make(5).call, roles=None, rotation=None, positions=None)
    for method, what in (
        (METHODS["pai"](), "roles"),
        (TDRS(), "rotation"),
        (TDRS(features="post_rope", distance="position"), "positions"),
    ):
        with pytest.raises(AssertionError, match=f"must list '{what}' in its needs"):
            blocked(call, method)


@pytest.mark.parametrize(
    ("edited", "shown"),
    [
        (lambda logits: None, "NoneType"),
        (lambda logits: logits[..., :1], r"torch.float32 \(2, 4, 5, 1\)"),  # a sum with the mask would broadcast it
        (lambda logits: logits[:, 0], r"torch.float32 \(2, 5, 5\)"),
        (lambda logits: logits.double(), r"torch.float64 \(2, 4, 5, 5\)"),
    ],
)
@pytest.mark.parametrize("execute", [blocked, reference])
def test_an_edit_that_returns_no_logits_of_the_block_is_named(edited: Any, shown: str, execute: Any) -> None:
    class Odd(Method):
        def edit(self, block: Block, statistics: object) -> torch.Tensor:
            changed: torch.Tensor = edited(block.logits)
            return changed

    with pytest.raises(ValueError, match=rf"Odd.edit returned {shown}, not torch.float32 \(2, 4, 5, 5\)"):
        execute(make(5).call, Odd())


@pytest.mark.parametrize("execute", [blocked, reference])
def test_weights_that_are_none_of_the_block_are_named(execute: Any) -> None:
    class Odd(Method):
        def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
            return weights.sum(dim=-1, keepdim=True)

    with pytest.raises(ValueError, match=r"Odd.reweigh returned torch.float32 \(2, 4, 5, 1\), not"):
        execute(make(5).call, Odd())
    with pytest.raises(NotImplementedError):
        execute(make(5).call, Method())


class Flat(Method):
    """Weight 1 on every key, hidden ones too."""

    def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
        return torch.ones_like(weights)


@pytest.mark.parametrize("size", [None, 97])
def test_weights_of_hidden_pairs_stay_0(size: int | None) -> None:
    """Every visible value, summed once by each head that is edited."""
    heads = torch.tensor([True, False, True, True])[None, :, None, None]
    for sample in (make(19), make(19, padding="left"), make(19, padding="right"), make(3, past=16)):
        call = replace(sample.call, block_elements=size, heads=heads)
        shown = torch.from_numpy(sample.visible)[:, None].float()
        mixed = torch.where(heads, shown, weights(call, METHODS["none"]()))
        torch.testing.assert_close(weights(call, Flat()), mixed)
        values = call.value.repeat_interleave(2, dim=1)
        torch.testing.assert_close(blocked(call, Flat()) if size else reference(call, Flat()), mixed @ values)
