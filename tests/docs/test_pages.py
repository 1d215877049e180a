"""The code in the documentation runs: what a page shows is written into a copy of the project, and run there."""

import ast
import io
import os
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from tests.docs.page import ROOT, blocks

COPIED = ("tdrs", "sweeps", "analysis", "conf", "docs", "tests")
MADE_FIRST = "docs/guides/studies.md"  # makes the study that other pages show
PAGES = sorted(
    (
        page.relative_to(ROOT).as_posix()
        for page in ROOT.glob("docs/**/*.md")
        if any(block.runs for block in blocks(page))
    ),
    key=lambda page: (page != MADE_FIRST, page),
)


def copy_of_project(folder: Path) -> None:
    """The project as it is imported, without links into the real one but for the weights."""
    for name in COPIED:
        for path in (ROOT / name).rglob("*"):
            here = folder / path.relative_to(ROOT)
            if "__pycache__" in path.parts or path.is_dir():
                continue
            here.parent.mkdir(parents=True, exist_ok=True)
            if "models" in path.parts:
                here.symlink_to(path)
            else:
                here.write_bytes(path.read_bytes())
    for name in ("sweeps", "analysis", "conf"):
        (folder / "tdrs" / name).symlink_to(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all pages were run: in one process, since a process needs seconds to import the libraries."""
    folder = tmp_path_factory.mktemp("project")
    copy_of_project(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.docs.page", *PAGES]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.timeout(600)  # the first page waits until all are run
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(folder: Path, page: str) -> None:
    failed = folder / f"{Path(page).stem}.failed"
    assert not failed.exists(), failed.read_text()
    assert (folder / f"{Path(page).stem}.passed").exists()


def test_the_readme_shows_code_that_runs() -> None:
    """The front page is not run: its lines are those of the tutorial and of the guide to an own model."""
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("tutorial.md", "guides/own-model.md"))
    shown = [
        line for block in blocks(ROOT / "README.md") if block.language == "python" for line in block.text.splitlines()
    ]
    assert shown
    assert [line for line in shown if line.strip() not in pages] == []


def lines_of_code(text: str) -> int:
    """How many lines have code: neither blank ones, nor comments, nor docstrings."""
    strings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    empty = "COMMENT NL NEWLINE INDENT DEDENT ENDMARKER".split()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = [token for token in tokens if tokenize.tok_name[token.type] not in empty]
    return len({line for token in code for line in range(token.start[0], token.end[0] + 1)} - strings)


@pytest.mark.parametrize(
    ("page", "file", "said"),
    [
        ("add-backbone", "my_family.py", "four lines of code"),
        ("add-backbone", "my_other_family.py", "12 lines of code"),
        ("add-benchmark", "my_counts.py", "32 lines of code"),
        ("add-method", "my_contrast.py", "21 lines of code"),
    ],
)
def test_a_guide_says_how_many_lines_its_file_has(page: str, file: str, said: str) -> None:
    guide = ROOT / "docs" / "guides" / f"{page}.md"
    assert said in guide.read_text()
    (shown,) = [block.text for block in blocks(guide) if block.title.endswith(f"/{file}")]
    assert lines_of_code(shown) == int(said.split()[0].replace("four", "4"))
