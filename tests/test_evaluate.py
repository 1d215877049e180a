"""One evaluation on the embedded default, from the command line to its files and its run."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.tracking import MlflowClient

from tdrs import TDRS, Stock, benchmarks
from tdrs.backbones import Backbone
from tdrs.configuration import run
from tdrs.evaluate import Evaluation, evaluate, main_evaluate
from tdrs.interventions import METHODS


def test_files_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["intervention=tdrs", "limit=10", "batch_size=4", "dataset.gap=8", f"output={tmp_path}"]
    assert run("evaluate", main_evaluate, "", arguments) == 0
    (folder,) = (tmp_path / "evaluate").iterdir()
    result = json.loads((folder / "result.json").read_text())
    metrics = result["metrics"]
    assert result["n"] == 10
    assert 0 <= metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"] <= 1
    records = pq.read_table(folder / "samples.parquet").to_pylist()
    assert list(records[0]) == ["id", "image_id", "question", "prediction", "gold", "correct", "margin"]
    assert metrics["accuracy"] == pytest.approx(sum(r["correct"] for r in records) / 10)
    assert yaml.safe_load((folder / "config.yaml").read_text())["dataset"]["gap"] == 8
    assert str(folder) in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (logged,) = client.search_runs([client.get_experiment_by_name("evaluate").experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["held_out.accuracy"] == metrics["accuracy"]
    assert {a.path for a in client.list_artifacts(logged.info.run_id)} == {
        "samples.parquet",
        "result.json",
        "config.yaml",
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_from_the_command_line(name: str, tmp_path: Path) -> None:
    arguments = [f"intervention={name}", "limit=3", "dataset.gap=8", "tracking=none", f"output={tmp_path}"]
    assert run("evaluate", main_evaluate, "", arguments) == 0
    assert len(list((tmp_path / "evaluate").glob("*/result.json"))) == 1


def test_stock_is_deterministic_and_right_answers_have_positive_margins(mini_llava: Backbone) -> None:
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 0}), "held_out", 40)
    first = evaluate(mini_llava, samples, Stock(), batch_size=16)
    assert first.records == evaluate(mini_llava, samples, Stock(), batch_size=16).records
    assert all(len(record.prediction) == 1 for record in first.records)
    for record in first.records:
        assert record.correct == (record.margin > 0)


def test_all_stages_off_gives_the_stock_records(mini_llava: Backbone) -> None:
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 40}), "held_out", 12)
    stock = evaluate(mini_llava, samples, Stock())
    assert evaluate(mini_llava, samples, TDRS(sd=False, dc=None, re=None)).records == stock.records
    edited = evaluate(mini_llava, samples, TDRS())
    assert [r.margin for r in edited.records] != [r.margin for r in stock.records]


def test_the_image_is_used(mini_llava: Backbone) -> None:
    """With blank pictures the answers fall to about chance."""
    from dataclasses import replace

    from PIL import Image

    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 0}), "held_out", 200)
    blank = [replace(s, image=Image.new("RGB", s.image.size, (165, 165, 165))) for s in samples]
    seen = evaluate(mini_llava, samples, Stock(), batch_size=64).metrics["accuracy"]
    unseen = evaluate(mini_llava, blank, Stock(), batch_size=64).metrics["accuracy"]
    assert seen > 0.8
    assert unseen < 0.5


def test_saving_and_reading_agree(tmp_path: Path, mini_llava: Backbone) -> None:
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 4}), "tuning", 3)
    made = evaluate(mini_llava, samples, TDRS())
    made.save(tmp_path / "e", {"a": 1})
    assert Evaluation.read(tmp_path / "e") == made


def test_bad_input_ends_with_code_2_before_a_model_is_loaded(tmp_path: Path) -> None:
    """As a user meets it: a process, one line on standard error, nothing written."""
    done = subprocess.run(
        [sys.executable, "-m", "tdrs.evaluate", "intervention=tdrs", "intervention.re.weight=-1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: intervention.re.weight = -1.0: must be a finite number of at least 0\n"
    assert not list(tmp_path.iterdir())
