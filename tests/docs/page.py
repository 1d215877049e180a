"""Run the code blocks of pages of the documentation, in the folder of a copy of the project.

    python -m tests.docs.page docs/guides/add-method.md docs/tutorial.md

A block with a title is a file: it is written or, if it is a diff, applied, before anything runs. Then the Python blocks
of each page run in one namespace, in their order, and between them the commands of its shell blocks that are about what
the page makes: it has a name like `mine` or `my_method`.
"""

import re
import runpy
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FIRST = ["tdrs.sweep", "+experiment=sqa_ablation", "preset=smoke"]  # the study that a reader of the tutorial has run
MADE = re.compile(r"[ =](mine|my_\w+)\b")
LOGGED = ("tdrs.sweep", "tdrs.evaluate")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title ("" for none), its text."""

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words behind `python -m` of the commands that run."""
        lines = self.text.splitlines() if self.language == "sh" else []
        found = [shlex.split(line, comments=True) for line in lines if MADE.search(line.partition("#")[0])]
        return [words[2:] for words in found if words[:2] == ["python", "-m"]]

    @property
    def runs(self) -> bool:
        """Whether anything of the block is written or runs."""
        return bool(self.title or self.language == "python" or self.commands)


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in their order."""
    for match in re.finditer(r"^```(\w+)(?: title=\"([^\"]*)\")?\n(.*?)^```$", page.read_text(), re.M | re.S):
        yield Block(match[1], match[2] or "", match[3])


def write(block: Block) -> None:
    """Write a block's file, or change a file as the block's diff says; its context must be there once."""
    path = Path(block.title)
    if block.language != "diff":
        assert not path.exists(), f"{path} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        return
    lines = block.text.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    text = path.read_text()
    assert text.count(before) == 1, f"{path} has {text.count(before)} times:\n{before}"
    path.write_text(text.replace(before, after))


def run(words: list[str]) -> None:
    """Run a command in this process; raises unless it ends well."""
    module, *arguments = [*words, *(["tracking=none"] if words[0] in LOGGED else [])]
    sys.argv = ["", *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as done:
        if done.code:
            raise RuntimeError(f"{shlex.join(words)} ended with {done.code}") from None


def run_page(page: Path) -> None:
    """Run the blocks of a page that are no files."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and not block.title:
            exec(compile(block.text, str(page), "exec"), names)
        for words in block.commands:
            run(words)


def main(pages: list[str]) -> None:
    """Write the files of all pages, then run each page, and write how each one ended."""
    sys.path.insert(0, "")
    for page in pages:
        for block in blocks(ROOT / page):
            if block.title:
                write(block)
    run(FIRST)
    for page in pages:
        began = time.perf_counter()
        try:
            run_page(ROOT / page)
        except Exception:
            Path(f"{Path(page).stem}.failed").write_text(traceback.format_exc())
        else:
            Path(f"{Path(page).stem}.passed").write_text(f"{time.perf_counter() - began:.1f} seconds")


if __name__ == "__main__":
    main(sys.argv[1:])
