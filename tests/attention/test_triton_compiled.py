"""The fused kernels compiled for GPUs that are not here: no spills, tensor cores, few special functions a pair."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tdrs import TDRS
from tdrs.interventions import METHODS
from tests.attention.compiled import call_of, compile_for, launches

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

SHARED = {(8, 0): 163 << 10, (9, 0): 227 << 10}  # bytes that a program can have
PRODUCTS = {(8, 0): r"HMMA\.\S+", (9, 0): r"HGMMA\.\S+"}
CASES: dict[str, tuple[tuple[int, int], Any, dict[str, Any], list[str]]] = {
    "tdrs, sm_80": ((8, 0), TDRS(), {}, ["key_directions", "smallest_logits", "attend"]),
    "tdrs, sm_90a": ((9, 0), TDRS(), {}, ["key_directions", "smallest_logits", "attend"]),
    "tdrs, padding, weights, σ, sm_90a": (
        (9, 0),
        TDRS(gain="weights", sigma_re=0.3, pairs="cross_modal"),
        {"padding": ((9, 0),)},
        ["attend"],
    ),
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
        assert (made.count(PRODUCTS[capability]) > 0) == (kernel != "key_directions"), kernel
        if kernel == "attend":  # the loop over tiles is there with and without a mask, and where padding ends
            copies = 3 if given else 2
            special = [made.count(rf"MUFU\.{of}") // (copies * made.pairs) for of in ("EX2", "LG2", "RCP")]
            assert special == ([3, 1, 1] if method.needs == {"rotation"} or given else [1, 0, 0])


def test_every_head_size_has_tiles() -> None:
    from tdrs.attention.triton.tiles import tiles

    for capability in (*SHARED, (8, 9), (12, 0)):
        for wide in (16, 32, 64, 128, 256):
            for size in (2, 4):
                for heavy in (False, True):
                    found = tiles(wide, size, capability, heavy)
                    assert found.rows >= 16
                    assert found.keys >= 16
