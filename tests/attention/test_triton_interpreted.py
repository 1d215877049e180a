"""The fused kernels against the specification, in Triton's interpreter; the cases are in `interpreted.py` and, of
decoded tokens, `interpreted_decode.py`."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tdrs.interventions import METHODS
from tests.attention.interpreted import cases
from tests.interventions.deviations import READINGS

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

# Outputs are means of standard normal values. |A|_min is given, unless the name says otherwise.
CLOSE = 4e-6
LIMITS = {
    "float16": 4e-3,
    "bfloat16": 4e-2,
    "|A|_min": 0.01,  # of what the core allows
    "|A|_min, cache": 0.01,
    "NaN in padding": 0.0,
    "NaN in padding, cache": 0.0,
    "float16, decoded": 4e-3,
    "bfloat16, decoded": 4e-2,
    "a key is negated, bfloat16": 4e-2,
    "NaN in padding, decoded": 0.0,
    "kept directions": 0.0,
    "bytes, float32": 0.01,
    "bytes, bfloat16": 0.01,
    "answers": 1e-4,
    "a model": 3e-4,  # of logits; as in `test_directions`
}
NAMES = [name for name, _ in cases()]


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    """What each case found. The interpreter has to be on before Triton is imported."""
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "tests.attention.interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_agree_with_the_reference(found: dict[str, float], name: str) -> None:
    assert found[name] <= LIMITS.get(name, CLOSE)


def test_no_case_is_left_out(found: dict[str, float]) -> None:
    assert set(found) == set(NAMES)
    assert len(NAMES) == len(set(NAMES))
    assert set(LIMITS) <= set(NAMES)


def test_which_methods_have_a_kernel() -> None:
    assert {name for name, kind in METHODS.items() if kind().fused} == {"tdrs", "temperature", "vaf", "key_bias"}


def test_every_reading_has_a_kernel() -> None:
    assert [name for name, method in READINGS.items() if method.fused is None] == []
