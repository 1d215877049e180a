"""The documentation builds without a warning, loads nothing from a network, and names every setting."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tdrs import schema
from tdrs.configuration import compose, plain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_a_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=[\"']?([^\"' >]+)", page.read_text())
        loaded += re.findall(r"<link[^>]* rel=[\"']?(?:stylesheet|preconnect|icon)[\"']?[^>]*", page.read_text())
        assert not [one for one in loaded if re.search(r"(https?:)?//", one)], page


def keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, Mapping) and name in (
            "backbone",
            "dataset",
            "intervention",
            "preset",
            "study",
            "tracking",
        ):
            yield from keys(value, f"{prefix}{name}.")


@pytest.mark.parametrize("command", schema.COMMANDS)
def test_every_setting_is_on_the_page_of_settings(site: Path, command: str) -> None:
    page = (site / "reference" / "settings.html").read_text()
    settings = set(keys(plain(compose(command, []))))
    named = {*re.findall(r"<td><code>([\w.]+)</code></td>", page)}
    assert {name for name in settings - named if not name.endswith(".name")} == set()
