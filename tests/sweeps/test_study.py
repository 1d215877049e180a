"""A whole small study: exactly once, resumed after a stop, right statuses, a figure, bad input before the model."""

import copy
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tdrs.analysis import sensitivity
from tdrs.sweeps import study as study_module
from tdrs.sweeps.study import Outcome, Study, apply

from tdrs import backbones
from tdrs.benchmarks import mini_textvqa
from tdrs.configuration import compose, plain, run
from tdrs.settings import SettingError
from tdrs.sweep import main_sweep
from tdrs.tracking import Tracker


def small(output: Path) -> dict[str, Any]:
    """Two values a step, both series; 8 tuning and 8 held-out samples."""
    config = plain(compose("sweep", ["dataset.gap=12", "study.name=small", f"output={output}", "batch_size=8"]))
    config["preset"] = {"tuning": 8, "held_out": 8}
    for step in config["search"]["steps"]:
        step["values"] = [step["paper"], step["paper"] * 2]
    return config


def children(output: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def parents(output: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def stored(output: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(output / "small" / "study.journal")))
    return optuna.load_study(storage=storage, study_name="small")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    output = tmp_path_factory.mktemp("finished")
    return output, Study(small(output), Tracker("mlflow", output)).run()


def test_a_finished_study(finished: tuple[Path, Outcome]) -> None:
    output, outcome = finished
    assert [row.name for row in outcome.rows] == [
        "stock", "logits, paper", "logits, tuned", "weights, paper", "weights, tuned"
    ]  # fmt: skip
    assert outcome.rows[0].difference is None
    for row in outcome.rows[1:]:
        assert row.difference is not None
        assert row.difference[0] == pytest.approx(row.accuracy[0] - outcome.rows[0].accuracy[0])
        assert row.difference[1] <= row.difference[0] <= row.difference[2]
    assert Outcome.read(output / "small" / "study.json") == outcome
    trials = stored(output).get_trials()
    assert {t.state for t in trials} == {optuna.trial.TrialState.COMPLETE}
    assert all(set(t.params) >= {"intervention.dc.w_min", "intervention.gain"} for t in trials)
    (parent,) = parents(output)
    assert parent.info.status == "FINISHED"
    assert "held-out split, n = 8" in parent.data.tags["mlflow.note.content"]
    logged = children(output)
    assert {run.info.status for run in logged} == {"FINISHED"}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in logged)
    tuned = [run for run in logged if run.data.tags["series"] == "logits"]
    assert set(tuned[0].data.params) == {
        "intervention.dc.w_min", "intervention.dc.weight", "intervention.re.w_min", "intervention.re.weight",
        "intervention.gain",
    }  # fmt: skip
    assert len({run.data.tags["identity"] for run in logged}) == len(logged)


def test_the_second_run_evaluates_nothing(finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    output, outcome = finished
    before, trials = len(children(output)), len(stored(output).get_trials())

    def never(*arguments: object, **settings: object) -> None:
        raise AssertionError("evaluated or loaded again")

    monkeypatch.setattr(study_module, "evaluate", never)
    monkeypatch.setattr(backbones, "load", never)
    study = Study(small(output), Tracker("mlflow", output))
    assert study.run() == outcome
    assert study.evaluated == 0
    assert len(children(output)) == before
    assert len(stored(output).get_trials()) == trials
    assert len(parents(output)) == 1


@pytest.mark.parametrize(
    ("stop", "status"), [(KeyboardInterrupt(), "KILLED"), (RuntimeError("the GPU fell off"), "FAILED")]
)
def test_a_stop_in_the_middle(
    finished: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, status: str
) -> None:
    """Statuses are right after it, and going on gives the uninterrupted study's outcome."""
    original, calls = study_module.evaluate, []

    def sixth_stops(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 6:
            raise stop
        return original(*arguments, **settings)

    monkeypatch.setattr(study_module, "evaluate", sixth_stops)
    with pytest.raises(type(stop)):
        Study(small(tmp_path), Tracker("mlflow", tmp_path)).run()
    assert parents(tmp_path)[0].info.status == status
    assert sorted(run.info.status for run in children(tmp_path)) == sorted(["FINISHED"] * 5 + [status])
    assert optuna.trial.TrialState.RUNNING not in {t.state for t in stored(tmp_path).get_trials()}

    resumed = Study(small(tmp_path), Tracker("mlflow", tmp_path))
    outcome = resumed.run()
    reference = finished[1]
    assert [row.accuracy for row in outcome.rows] == [row.accuracy for row in reference.rows]
    assert [curve.points for curve in outcome.curves] == [curve.points for curve in reference.curves]
    done = [run for run in children(tmp_path) if run.info.status == "FINISHED"]
    assert len(done) == len(children(finished[0]))
    assert parents(tmp_path)[0].info.status == "FINISHED"


def test_a_lost_store_is_filled_again_from_the_records(finished: tuple[Path, Outcome], tmp_path: Path) -> None:
    import shutil

    output, outcome = finished
    shutil.copytree(output / "small", tmp_path / "small")
    study = Study(small(tmp_path), Tracker("mlflow", tmp_path))
    assert study.run().rows == outcome.rows
    assert study.evaluated == 0
    assert len(children(tmp_path)) == len(children(output))


def test_bad_values_are_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "load", lambda settings: pytest.fail("loaded"))
    config = small(tmp_path)
    last = copy.deepcopy(config)
    last["search"]["steps"][3]["values"].append(-1.0)
    with pytest.raises(SettingError, match=r"intervention.re.weight = -1.0: must be a finite number of at least 0"):
        Study(last, Tracker("none", tmp_path))
    off = copy.deepcopy(config)
    off["intervention"]["dc"] = None
    with pytest.raises(SettingError, match=r"search = 'intervention.dc.w_min': no such setting"):
        Study(off, Tracker("none", tmp_path))
    many = copy.deepcopy(config)
    many["preset"]["held_out"] = 9999
    with pytest.raises(SettingError, match=r"preset.held_out = 9999: mini_scienceqa has 2000"):
        Study(many, Tracker("none", tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_study_that_is_running_is_left_alone(tmp_path: Path) -> None:
    first, second = (Study(small(tmp_path), Tracker("none", tmp_path)) for _ in range(2))
    with first._alone(), pytest.raises(SettingError, match=r"study.name = 'small': is being run by another process"):
        second.run()


def test_apply_sets_dotted_keys_on_a_copy() -> None:
    config = {"a": {"b": 1}}
    assert apply(config, {"a.b": 2}) == {"a": {"b": 2}}
    assert config == {"a": {"b": 1}}


def test_the_command_draws_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["+experiment=sqa_ablation", "preset=smoke", "tracking=none", f"output={tmp_path}", "dataset.gap=2"]
    assert run("sweep", main_sweep, "", arguments) == 0
    folder = tmp_path / "sqa_ablation"
    assert (folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "sensitivity.svg").read_text()[:2000]
    printed = capsys.readouterr().out
    assert "difference to stock, paired [95 %]" in printed
    assert "redraw:" in printed
    numbers = sensitivity.numbers(Outcome.read(folder / "study.json"))
    values = json.loads((folder / "study.json").read_text())
    assert [panel.paper for panel in numbers.panels] == [3, 1, 2, 0.8]
    assert [series.name for series in numbers.panels[0].series] == ["logits", "weights"]
    assert numbers.panels[1].series[0].values == [0, 0.01, 0.03, 0.1, 0.3, 1]
    assert numbers.stock[0] == values["stock"]["accuracy"]
    (folder / "sensitivity.png").unlink()
    assert sensitivity.main(["study=sqa_ablation", f"output={tmp_path}"]) == 0
    assert (folder / "sensitivity.png").exists()
    assert sensitivity.main(["study=nothing", f"output={tmp_path}"]) == 2


def test_rows_left_out_are_said(tmp_path: Path) -> None:
    for split in ("tuning", "held_out"):
        rows = mini_textvqa.dataset(split, 6)
        rows = rows.map(lambda row, number: {"answers": row["answers"][: 10 - (number == 1)]}, with_indices=True)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    given = ["dataset=textvqa", f"dataset.source={tmp_path}", "dataset.rows=null", "dataset.bad_rows=skip"]
    given += ["dataset.tuning=tuning", "dataset.held_out=held_out", "preset.tuning=4", "preset.held_out=4"]
    study = Study(plain(compose("sweep", [*given, f"output={tmp_path}"])), Tracker("none", tmp_path))
    said = f"1 rows of {tmp_path} left out: row 1 has 9 answers, not 10"
    assert study.notes == [f"tuning: {said}", f"held_out: {said}"]
