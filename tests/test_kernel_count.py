"""Counted kernels and bytes: what operators read and write, and what executions may cost in the real models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tdrs import kernel_count, speed
from tdrs.kernel_count import MODELS, Counter, Shape, Traffic, in_blocks, in_fused_kernels, stock


def test_operators_are_counted_by_what_they_read_and_write() -> None:
    x, row = torch.zeros(3, 4), torch.zeros(1, 4)
    with Counter() as counter:
        y = x.transpose(0, 1)[1:]  # views
        y.add_(1)  # 9 numbers in, 9 out
        x + row.expand(3, 4)  # 12 and 4 in, 12 out
    assert (counter.kernels, counter.bytes) == (2, 4 * (18 + 28))


def test_pairs_are_those_that_a_query_sees() -> None:
    shape = Shape(heads=3, groups=1, width=8, keys=5, queries=5)
    assert shape.pairs == 3 * 15
    assert replace(shape, queries=1).pairs == 3 * 5
    assert replace(shape, queries=2).pairs == 3 * 9
    assert stock(shape) == Traffic(1, 2 * 8 * (2 * 3 * 5 + 2 * 5))


def test_fused_kernels_load_each_key_once_for_each_block_of_rows() -> None:
    """Twice as long a prompt has four times as many loads of keys, and so has one with smaller blocks."""
    short, long = (in_fused_kernels(Shape(1, 1, 128, n, n)).bytes for n in (8192, 16384))
    assert 3.7 < long / short < 4
    assert in_fused_kernels(Shape(1, 1, 128, 8192, 8192, torch.float32)).bytes > 5 * short


@pytest.mark.parametrize("model", MODELS)
def test_fused_kernels_are_few_and_move_a_tenth(model: str) -> None:
    shape = Shape(*MODELS[model], keys=700, queries=700)
    fused, blocks = in_fused_kernels(shape), in_blocks(shape)
    assert fused.kernels <= 8 < blocks.kernels
    assert fused.bytes <= blocks.bytes / 10


@pytest.mark.parametrize(("model", "most"), [("LLaVA-1.5-7B", 2), ("InternVL2-8B", 2.5), ("Qwen2.5-VL-7B", 3)])
def test_a_decoded_token_does_not_compute_the_directions_of_all_keys(model: str, most: float) -> None:
    """In float32: with the directions of all keys it is 8 to 9 times what stock attention moves."""
    shape = Shape(*MODELS[model], keys=1024, queries=1, dtype=torch.float32)
    assert in_blocks(shape).bytes <= most * stock(shape).bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("model", MODELS)
def test_a_token_decoded_in_fused_kernels_moves_at_most_twice_the_bytes(model: str, dtype: torch.dtype) -> None:
    """`tests/attention/interpreted_decode.py` compares these bytes with what the programs load and store."""
    shape = Shape(*MODELS[model], keys=2048, queries=1, dtype=dtype)
    found = in_fused_kernels(shape)
    assert found.kernels == 3
    assert stock(shape).bytes < found.bytes <= 2 * stock(shape).bytes


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_count, "PARTS", {"prefill, L = 65": (65, 65), "a decoded token, L = 33": (33, 1)})
    assert speed.main(["kernels", f"output={tmp_path}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 6 + 1
    found = json.loads((tmp_path / "benchmark" / "kernels.json").read_text())["kernels"]
    assert {row["way"] for row in found} == {"stock", "blocked", "triton"}
    assert len(found) == 3 * 9
