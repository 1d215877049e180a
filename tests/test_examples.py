"""The notebooks of examples/ run as they stand, and show what they made."""

from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def kinds(cell: Any) -> list[str]:
    """What a cell shows: texts, tables, pictures."""
    return sorted(kind for out in cell.get("outputs", []) for kind in out.get("data", {}))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as commands do: other tests need the cores
    notebook = nbformat.read(path, as_version=4)
    shown = [kinds(cell) for cell in notebook.cells]
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell, before in zip(notebook.cells, shown, strict=True):
        assert kinds(cell) == before, cell.source
    assert any("image/png" in found for found in shown)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_results_and_nothing_of_the_machine(path: Path) -> None:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            assert out.output_type in ("execute_result", "display_data"), cell.source
    text = path.read_text(encoding="utf-8")
    assert "/work/" not in text
    assert "/home/" not in text
    assert len(text) < 400_000
