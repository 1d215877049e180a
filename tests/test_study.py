"""The command that looks after studies: list, show, best, export, delete, sync; bad words are one line and code 2."""

import csv
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tdrs.analysis import summary
from tdrs.configuration import run
from tdrs.evaluate_command import main_evaluate
from tdrs.study import main
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import STOCK, Outcome
from tdrs.tracking import Tracker

from .sweeps.pretend import configuration

METHODS = {
    "sharper": {"intervention": "temperature"},
    "tuned": {"intervention": "temperature", "tune": {"intervention.tau": {"low": 0.2, "high": 0.9}}},
}


def made(output: Path, name: str = "small", tracking: str = "mlflow", gap: int = 3) -> Outcome:
    config = configuration(output, "search=compare", axes={"dataset.gap": [gap]}, methods=METHODS, budget=3)
    config["study"]["name"] = name
    config["tracking"] = {"name": tracking, "uri": None}
    return Study(config, Tracker(tracking, output)).run()


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_list_and_show(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no study in" in say(capsys, "list", f"output={tmp_path}")
    found = made(tmp_path)
    line = say(capsys, "list", f"output={tmp_path}").splitlines()[1]
    assert line.split()[:6] == ["small", "compare", "finished", "6", "0", "0"]
    shown = say(capsys, "show", "small", f"output={tmp_path}")
    assert all(trial.cache_key in shown for trial in [*found.trials, *found.rows])
    assert summary.table(found)[-1] in shown
    (tmp_path / "studies" / "small" / "study.json").unlink()
    assert "small: compare, stopped, 6 trials" in say(capsys, "show", "small", f"output={tmp_path}")


def test_best_is_a_command_that_finds_the_evaluation(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(tmp_path)
    printed = say(capsys, "best", "small", f"output={tmp_path}")
    (row,) = [row for row in found.rows if row.name == "tuned"]
    command = printed.splitlines()[1].split()
    assert command[:3] == ["python", "-m", "tdrs.evaluate"]
    assert f"intervention.tau={row.settings['intervention.tau']}" in command or row.settings["intervention.tau"] == 0.5
    assert run("evaluate", main_evaluate, "", [*command[3:], "tracking=none"]) == 0
    again = capsys.readouterr().out
    assert row.cache_key in again
    assert "found done" in again
    (tmp_path / "studies" / "small" / "study.json").unlink()
    assert "on the tuning split, so far" in say(capsys, "best", "small", f"output={tmp_path}")


def test_export(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = made(tmp_path)
    printed = say(capsys, "export", "small", f"output={tmp_path}")
    folder = tmp_path / "studies" / "small" / "export"
    assert str(folder / "trials.csv") in printed
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cache_key"] for row in rows] == [t.cache_key for t in [*found.trials, *found.rows]]
    assert len(rows) == 6
    assert {row["study_key"] for row in rows} == {found.key}
    assert pq.read_schema(folder / "samples.parquet").metadata[b"study_key"] == found.key.encode()
    assert float(rows[0]["accuracy"]) == found.trials[0].score
    assert {row["dataset.gap"] for row in rows} == {"3"}
    samples = pq.read_table(folder / "samples.parquet").to_pylist()
    assert len(samples) == 8 * len({row["cache_key"] for row in rows})


def test_an_export_says_what_it_lacks(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = made(tmp_path, tracking="none")
    say(capsys, "export", "small", f"output={tmp_path}")
    lost = {trial.cache_key for trial in [*found.trials, *found.rows]}
    for cache_key in lost:
        (tmp_path / "records" / cache_key / "samples.parquet").write_bytes(b"x")
    assert main(["export", "small", f"output={tmp_path}"]) == 1
    said = capsys.readouterr()
    assert {line.split(":")[0] for line in said.err.splitlines() if "not exported" in line} == lost
    assert "samples.parquet" not in said.out
    assert not (tmp_path / "studies" / "small" / "export" / "samples.parquet").exists()


def test_best_so_far_is_by_the_searchs_objective(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"intervention.tau": {"low": 0.2, "high": 1}}
    given = {"space": space, "objective": "margin", "trials": 12, "seed": 1, "controls": {}}
    config = configuration(tmp_path, "search=sampled", "intervention=temperature", "tracking=none", **given)
    found = Study(config, Tracker("none", tmp_path)).run()
    trials = [trial for trial in found.trials if trial.name != STOCK]
    best = max(trials, key=lambda trial: trial.metrics["margin"])
    assert best != max(trials, key=lambda trial: trial.score)  # as max does, the earliest among equals
    (tmp_path / "studies" / "small" / "study.json").unlink()
    assert f"intervention.tau={best.settings['intervention.tau']}" in say(capsys, "best", "small", f"output={tmp_path}")


def test_a_folder_that_is_not_there_has_no_sound_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["check", f"output={tmp_path}/none"]) == 2
    assert "must be the folder of kept studies; there is none" in capsys.readouterr().err
    assert main(["list", f"output={tmp_path}/file"]) == 2


def test_delete_keeps_what_other_studies_use(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path)
    other = made(tmp_path, "other")
    made(tmp_path, "far", gap=9)
    before = sorted(path.name for path in (tmp_path / "records").iterdir())
    printed = say(capsys, "delete", "far", f"output={tmp_path}")
    assert "nothing was deleted" in printed
    assert before == sorted(path.name for path in (tmp_path / "records").iterdir())
    printed = say(capsys, "delete", "far", f"output={tmp_path}", "--yes")
    assert "deleted, with 7 runs in MLflow" in printed
    assert "deleted" in say(capsys, "delete", "small", f"output={tmp_path}", "--yes")
    left = {path.name for path in (tmp_path / "records").iterdir()}
    assert left == {trial.cache_key for trial in [*other.trials, *other.rows]}
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["other"]


def test_delete_takes_what_was_replaced_under_the_name(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And keeps evaluations of a study that was replaced under another name."""
    first = made(tmp_path, gap=9)
    made(tmp_path)
    made(tmp_path, "other", gap=9)
    made(tmp_path, "other", gap=5)
    printed = say(capsys, "delete", "small", f"output={tmp_path}", "--yes")
    assert "with what 1 earlier runs under this name have left in" in printed
    assert "deleted, with 14 runs in MLflow" in printed
    left = {path.name for path in (tmp_path / "records").iterdir()}
    assert {trial.cache_key for trial in [*first.trials, *first.rows]} <= left
    say(capsys, "delete", "other", f"output={tmp_path}", "--yes")
    assert not list((tmp_path / "records").iterdir())


def test_sync_writes_what_is_missing(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, tracking="none")
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "studies" / "small" / "study.journal").unlink()
    printed = say(capsys, "sync", "small", f"output={tmp_path}")
    assert "6 trials of small are in Optuna and MLflow" in printed
    assert (tmp_path / "mlflow.db").exists()
    assert (tmp_path / "studies" / "small" / "study.journal").exists()
    shutil.rmtree(tmp_path / "mlartifacts")
    assert main(["sync", "small", f"output={tmp_path}", "tracking.uri=http://127.0.0.1:9"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "verb = 'lst': must be one of list, show, best, export, sync, dashboard, delete, check, prune"),
        (["show"], "study = '': show takes the name of one study"),
        (["show", "nothing"], "study = 'nothing': must be one of none yet in outputs"),
        (["list", "ouput=x"], "option = 'ouput': must be one of study, output, tracking.uri"),
    ],
)
def test_bad_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not list(tmp_path.iterdir())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "python -m tdrs.study list" in say(capsys, "--help")


@pytest.mark.parametrize(
    ("typed", "condition", "edit"),
    [
        ([], {"backbone.system": '1e3, it\'s "null": ${x}', "batch_size": 3, "backbone.revision": "0123"}, {}),
        (["backbone.name='true'"], {"attention.execution": "reference", "dataset.prompt": "internvl"}, {}),
        ([], {"backbone": "mini_internvl"}, {"intervention.layers": [0, 1], "intervention.heads": "0%-50%"}),
        ([], {"backbone": "mini_qwen2_5_vl", "dataset": "mini_textvqa"}, {"intervention.phase": "prefill"}),
        ([], {"dataset": "mini_pope", "dataset.blank": True, "dataset.filler": "before_image"}, {}),
    ],
)
def test_best_repeats_every_kind_of_setting(
    typed: list[str],
    condition: dict[str, object],
    edit: dict[str, object],
    tmp_path: Path,
    pretended: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = {"tuned": METHODS["tuned"] | edit}
    config = configuration(tmp_path, "search=compare", *typed, methods=methods, axes={"x": [condition]}, budget=3)
    config["tracking"] = {"name": "none", "uri": None}
    found = Study(config, Tracker("none", tmp_path)).run()
    printed = say(capsys, "best", "small", f"output={tmp_path}")
    (row,) = [row for row in found.rows if row.budget]
    words = shlex.split(printed.splitlines()[1])
    assert run("evaluate", main_evaluate, "", [*words[3:], "tracking=none"]) == 0
    again = capsys.readouterr().out
    assert row.cache_key in again
    assert "found done" in again
