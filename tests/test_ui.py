"""The MLflow pages as a user sees them, in headless Chromium, over the store of a real sweep."""

import json
import shutil
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

from tests.forked import Forked, sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = [f"intervention.{name}" for name in ("dc.w_min", "dc.weight", "re.weight")]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")


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


def page(address: str) -> str:
    """What a page shows after its scripts ran."""
    given = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--dump-dom", address]
    assert CHROMIUM
    return subprocess.run([CHROMIUM, *given], capture_output=True, text=True, timeout=100, check=True).stdout


def test_runs_charts_and_report(store: Path, address: str) -> None:
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("shown").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    cells = [run.info.run_id for run in runs if run.data.tags.get("series") == "cell"]
    assert len(cells) == 8

    listed = page(f"{address}experiments/{experiment}/runs?workflowType=machine_learning")
    assert f"{len(runs)}</strong>" in listed  # matching runs
    assert "shown" in listed

    words = {"runs": json.dumps(cells), "experiments": json.dumps([experiment])}
    compared = page(f"{address}compare-runs?{urllib.parse.urlencode(words)}")
    assert "Parallel Coordinates Plot" in compared
    assert all(key in compared for key in KEYS)

    shown = page(f"{address}experiments/{experiment}/runs/{parent.info.run_id}/artifacts/report.html")
    assert "report.html" in shown
    assert "table.csv" in shown
