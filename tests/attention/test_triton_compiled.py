"""The fused kernels compiled for GPUs that are not here: no spills, tensor cores, few special functions a pair."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tdrs import TDRS
from tdrs.interventions import METHODS
from tests.attention.compiled import call_of, compile_for, launches

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

SHARED = {(8, 0): 163 << 10, (9, 0): 227 << 10}  # bytes that a program can have
PRODUCTS = {(8, 0): r"HMMA\.\S+", (9, 0): r"HGMMA\.\S+"}
FEW_ROWS = r"HMMA\.\S+"  # HGMMA takes 64 rows, at least
TOKEN: dict[str, Any] = {"rows": 1, "heads": 14, "groups": 2}
CASES: dict[str, tuple[tuple[int, int], Any, dict[str, Any], list[str]]] = {
    "tdrs, sm_80": ((8, 0), TDRS(), {}, ["key_directions", "smallest_logits", "attend"]),
    "tdrs, sm_90a": ((9, 0), TDRS(), {}, ["key_directions", "smallest_logits", "attend"]),
    "tdrs, padding, weights, σ, sm_90a": (
        (9, 0),
        TDRS(gain="weights", sigma_re=0.3, pairs="cross_modal"),
        {"padding": ((9, 0),)},
        ["attend"],
    ),
    "tdrs, row, sm_90a": ((9, 0), TDRS(stats_scope="row"), {}, ["smallest_logits", "attend"]),
    "tdrs, positions, sm_90a": ((9, 0), TDRS(distance="position"), {}, ["attend"]),
    "tdrs, weights, sm_90a": ((9, 0), TDRS(a_min_of="weights"), {}, ["smallest_logits"]),
    "a token, weights, sm_90a": ((9, 0), TDRS(a_min_of="weights"), TOKEN, ["scan", "weigh"]),
    "a token, sm_80": ((8, 0), TDRS(), TOKEN, ["scan", "weigh", "combine"]),
    "a token, sm_90a": ((9, 0), TDRS(), TOKEN, ["scan", "weigh", "combine"]),
    "a token, padding, weights, σ, sm_90a": (
        (9, 0),
        TDRS(gain="weights", sigma_re=0.3, pairs="cross_modal"),
        {**TOKEN, "padding": ((9, 0),)},
        ["scan", "weigh"],
    ),
    "a token, vaf, sm_80": ((8, 0), METHODS["vaf"](), TOKEN, ["weigh"]),
    "vaf, sm_80": ((8, 0), METHODS["vaf"](), {}, ["attend"]),
    "vaf, sm_90a": ((9, 0), METHODS["vaf"](), {}, ["attend"]),
}


@pytest.mark.parametrize("name", CASES)
def test_machine_code(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    capability, method, given, kernels = CASES[name]
    for launch in launches(call_of(128, **given), method, capability):
        kernel = launch.kernel.__name__
        if kernel not in kernels:
            continue
        made = compile_for(launch, capability)
        assert made.spilled == 0, kernel
        assert made.shared <= SHARED[capability], kernel
        products = FEW_ROWS if kernel in ("scan", "weigh") else PRODUCTS[capability]
        assert (made.count(products) > 0) == (kernel not in ("key_directions", "combine")), kernel
        if kernel == "attend":  # the loop over tiles is there with and without a mask, and where padding ends
            copies = 3 if given else 2
            special = [made.count(rf"MUFU\.{of}") // (copies * made.pairs) for of in ("EX2", "LG2", "RCP")]
            assert special == ([3, 1, 1] if "rotation" in method.needs else [1, 0, 0])


@pytest.mark.parametrize("width", [64, 256])
def test_a_decoded_float32_row_fits_every_gpu(width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for launch in launches(call_of(width, torch.float32, **TOKEN), TDRS(), (8, 9)):
        assert compile_for(launch, (8, 9)).shared <= 99 << 10


def test_every_head_size_has_tiles() -> None:
    from tdrs.attention.triton.tiles import tiles

    for capability in (*SHARED, (8, 9), (12, 0)):
        for wide in (16, 32, 64, 128, 256):
            for size in (2, 4):
                for heavy in (False, True):
                    found = tiles(wide, size, capability, heavy)
                    assert found.rows >= 16
                    assert found.keys >= 16
