"""The MLflow pages as a user sees them, in headless Chromium, over the store of a real sweep."""

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.browser import Browser, needs_chromium
from tests.forked import Forked, sweep

KEYS = [f"intervention.{name}" for name in ("dc.w_min", "dc.weight", "re.weight")]
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a sweep of the embedded default."""
    output = tmp_path_factory.mktemp("ui")
    given = [
        "search=grid",
        "study.name=shown",
        "preset=smoke",
        "dataset.gap=2",
        "search.controls={}",
        f"output={output}",
    ]
    ends = [(1, 9), (0.5, 1), (0.5, 1)]
    space = ", ".join(f"{key}: [{low}, {high}]" for key, (low, high) in zip(KEYS, ends, strict=True))
    process = Forked(sweep, (*given, f"++search.space={{{space}}}"), tmp_path_factory.mktemp("said") / "log", {})
    assert process.wait() == 0, process.communicate()
    return output


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    """A server of the store, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"sqlite:///{store}/mlflow.db"
    command = ["mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    server = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/#/"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.timeout(600)  # a sweep, and a server that needs a minute to start where others use the cores
def test_runs_charts_and_report(store: Path, address: str, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("shown").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    cells = [run.info.run_id for run in runs if run.data.tags.get("series") == "cell"]
    assert len(cells) == 8

    with Browser(tmp_path) as browser:
        browser.open(f"{address}experiments/{experiment}/runs?workflowType=machine_learning")
        browser.wait(f"document.body.innerHTML.includes('{len(runs)}</strong>')", 100)  # matching runs
        browser.wait("document.body.innerHTML.includes('shown')", 100)

        words = {"runs": json.dumps(cells), "experiments": json.dumps([experiment])}
        browser.open(f"{address}compare-runs?{urllib.parse.urlencode(words)}")
        browser.wait("document.body.innerText.includes('Parallel Coordinates Plot')", 100)
        axes = "[...document.querySelectorAll('.parcoords .axis-title')].map((one) => one.textContent)"
        browser.wait(f"{axes}.length === {len(KEYS) + 1}", 100)
        assert set(browser.ask(axes)) == {*KEYS, "tuning.accuracy"}

        browser.open(f"{address}experiments/{experiment}/runs/{parent.info.run_id}/artifacts/report.html")
        browser.wait("document.body.innerText.includes('table.csv')", 100)
        shown = browser.ask("document.body.innerText")
        assert "report.html" in shown
        assert "samples.html" not in shown  # it needs the files beside it
