"""What a run was measured with; and that a process keeps the memory it frees."""

import subprocess
import sys

import pytest

from tdrs.environment import environment, shows_progress

FAULTS = """
import resource, torch
from tdrs import TDRS
from tdrs.attention.core import blocked
from tdrs.environment import keep_memory
from tests.attention.test_core import large
keep_memory()
call = large(length=1024)
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocked(call, TDRS())
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_versions_and_machine() -> None:
    found = environment()
    assert found["torch"].startswith("2.")
    assert int(found["threads"]) >= 1
    assert found["device"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_is_kept_for_the_next_array() -> None:
    """A block's arrays are thousands of pages; taken anew each time, each page is a fault."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000


def test_a_progress_bar_is_for_terminals_and_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ipykernel is only imported, standard error may still be a file."""
    iostream = pytest.importorskip("ipykernel.iostream")
    assert not shows_progress()
    monkeypatch.setattr(sys, "stderr", iostream.OutStream.__new__(iostream.OutStream))
    monkeypatch.setattr(iostream.OutStream, "isatty", lambda self: False)
    assert shows_progress()
