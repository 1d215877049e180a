"""A whole small study: once each, reused by others, stopped and gone on with, failing in every way, always in order."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.tracking import MlflowClient

from tdrs import backbones, checked_file
from tdrs import evaluation as evaluation_module
from tdrs.analysis import report_lines, sensitivity, summary
from tdrs.benchmarks import mini_textvqa
from tdrs.configuration import compose, plain, run, with_settings
from tdrs.environment import environment
from tdrs.records import Records
from tdrs.results import Batch
from tdrs.settings import SettingError
from tdrs.stopping import Stop
from tdrs.sweep import main_sweep
from tdrs.sweeps.folder import read_outcome, read_trials
from tdrs.sweeps.sinks import sync
from tdrs.sweeps.storage import load_optuna
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import FAILED, Outcome
from tdrs.tracking import Tracker

from . import pretend
from .pretend import configuration


def small(output: Path) -> dict[str, Any]:
    """Two values a step, both series, a control of two trials."""
    config = configuration(output, budget=2)
    for step in config["search"]["steps"]:
        paper = step["paper"] if not isinstance(step["paper"], dict) else step["paper"]["other"]
        step["values"] = [paper, paper * 2]
    return config


def study(output: Path, config: dict[str, Any] | None = None, tracking: str = "mlflow", stop: Any = None) -> Study:
    return Study(config or small(output), Tracker(tracking, output), stop)


def runs(output: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("small").experiment_id]))


def children(output: Path) -> list[Any]:
    return [run for run in runs(output) if "mlflow.parentRunId" in run.data.tags]


def parents(output: Path) -> list[Any]:
    return [run for run in runs(output) if "mlflow.parentRunId" not in run.data.tags]


def logged(output: Path) -> set[Any]:
    return {
        (
            run.data.tags["key"],
            run.info.status,
            tuple(sorted(run.data.params.items())),
            tuple(sorted(run.data.metrics.items())),
        )
        for run in children(output)
    }


def in_optuna(output: Path) -> list[Any]:
    return load_optuna(output / "studies" / "small", "small").get_trials()


def timeless(outcome: Outcome) -> Any:
    """What must be equal between two runs of a study."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: strip(v)
                for k, v in value.items()
                if k not in ("seconds", "finished", "output", "tracking", "command")
            }
        return [strip(item) for item in value] if isinstance(value, list | tuple) else value

    return strip(json.loads(json.dumps(outcome, default=vars)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A study nobody touched, to be read only."""
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretend.pretend(monkeypatch)
        made = study(output)
        outcome = made.run()
        made.attach(summary.description(outcome, made.records))
    return output, outcome


@pytest.fixture
def own(tmp_path: Path, pretended: list[str]) -> tuple[Path, Outcome]:
    """A finished study of the test's own."""
    return tmp_path, study(tmp_path).run()


def test_a_finished_study(finished: tuple[Path, Outcome]) -> None:
    output, outcome = finished
    assert [row.name for row in outcome.rows] == [
        "stock", "logits, paper", "logits, tuned", "weights, paper", "weights, tuned", "temperature, tuned"
    ]  # fmt: skip
    assert outcome.rows[0].difference is None
    for row in outcome.rows[1:]:
        assert row.difference is not None
        assert row.difference[0] == pytest.approx(row.score - outcome.rows[0].score)
        assert row.difference[1] <= row.difference[0] <= row.difference[2]
    assert read_outcome(output / "studies" / "small") == outcome
    everything = [*outcome.trials, *outcome.rows]
    assert len(outcome.trials) == 1 + 16 + 2
    kept = [json.loads(line) for line in (output / "studies" / "small" / "trials.jsonl").read_text().splitlines()]
    keys = list(dict.fromkeys(trial.key for trial in everything))
    assert list(read_trials(output / "studies" / "small", outcome.key)) == keys
    assert len(kept) == len(keys)


def test_optuna_has_the_trials_of_the_tuning_split_in_order(finished: tuple[Path, Outcome]) -> None:
    output, outcome = finished
    trials = in_optuna(output)
    assert {trial.state for trial in trials} == {optuna.trial.TrialState.COMPLETE}
    keys = list(dict.fromkeys(trial.key for trial in outcome.trials))
    assert [trial.user_attrs["key"] for trial in trials] == keys
    swept = [trial for trial in trials if trial.user_attrs["name"] == "logits"]
    assert all(set(t.params) >= {"intervention.dc.w_min", "intervention.gain"} for t in swept)
    scores = {trial.key: trial.score for trial in outcome.trials}
    assert all(trial.value == scores[trial.user_attrs["key"]] for trial in trials)


def test_mlflow_has_a_child_a_trial(finished: tuple[Path, Outcome]) -> None:
    output, outcome = finished
    (parent,) = parents(output)
    assert parent.info.status == "FINISHED"
    lines = parent.data.tags["mlflow.note.content"].splitlines()
    assert lines[0].startswith("5 rows beside the stock model on the held-out split, 3 of them tuned")
    assert lines[1].startswith("highest: ")
    assert lines[2].startswith("lowest: ")
    assert lines[3].startswith("Weights, prompts and rules were checked against a published score at 0 of 1 conditions")
    assert parent.data.metrics["held_out.logits.tuned.accuracy"] == outcome.rows[2].score
    assert {"commit", "device", "backbone", "dataset", "method", "reading.gain"} <= set(parent.data.tags)
    found = children(output)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in found)
    assert {run.data.tags["key"] for run in found} == {trial.key for trial in [*outcome.trials, *outcome.rows]}
    assert len({run.data.tags["key"] for run in found}) == len(found)
    tuned = [run for run in found if run.data.tags["series"] == "logits" and run.data.tags["split"] == "tuning"]
    (used,) = tuned[0].inputs.dataset_inputs
    assert (used.dataset.name, used.tags[0].value) == ("mini_scienceqa", "tuning")
    assert tuned[0].data.tags["reading.gain"] == "logits"
    assert set(tuned[0].data.params) == {
        "intervention.dc.w_min", "intervention.dc.weight", "intervention.re.w_min", "intervention.re.weight",
        "intervention.gain",
    }  # fmt: skip
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    history = client.get_metric_history(tuned[0].info.run_id, "running_accuracy")
    assert [(m.step) for m in history] == list(range(1, 9))
    assert history[-1].value == tuned[0].data.metrics["tuning.accuracy"]
    assert {a.path for a in client.list_artifacts(tuned[0].info.run_id)} == {
        "samples.parquet", "result.json", "config.yaml"
    }  # fmt: skip


def test_the_second_run_measures_nothing_and_writes_nothing_twice(
    own: tuple[Path, Outcome], pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, outcome = own
    before, trials = logged(output), len(in_optuna(output))
    pretended.clear()
    monkeypatch.setattr(evaluation_module, "run_batches", lambda *a: pytest.fail("measured again"))
    again = study(output)
    assert again.run() == outcome
    assert again.progress.evaluated == 0
    assert pretended == []
    assert logged(output) == before
    assert len(in_optuna(output)) == trials
    assert len(parents(output)) == 1


def test_settings_that_edit_alike_run_once(finished: tuple[Path, Outcome]) -> None:
    """reRD at weight 0 has no w_min; but every trial is there."""
    output, outcome = finished
    everything = [*outcome.trials, *outcome.rows]
    folders = [path.parent.name for path in (output / "records").glob("*/result.json")]
    assert {trial.cache_key for trial in everything} == set(folders)
    assert len(folders) < len({trial.key for trial in everything})


def test_another_protocol_reuses_what_was_measured(own: tuple[Path, Outcome], pretended: list[str]) -> None:
    output, outcome = own
    pretended.clear()
    config = configuration(output, "search=compare", "study.name=other")
    config["search"] |= {"axes": {"backbone": ["mini_llava"]}, "methods": {"logits": {"intervention.gain": "logits"}}}
    other = study(output, config)
    rows = other.run().rows
    assert other.progress.evaluated == 0
    assert pretended == []
    assert [row.metrics for row in rows] == [row.metrics for row in outcome.rows[:2]]


def test_a_stop_keeps_the_batch_and_the_study_goes_on(
    finished: tuple[Path, Outcome], pretended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, seen = Stop(), []
    append = Records.append

    def count(self: Records, cache_key: str, batch: Batch, shard: str | None = None) -> None:
        append(self, cache_key, batch)
        seen.append(cache_key)
        stop.requested = len(seen) == 5

    monkeypatch.setattr(Records, "append", count)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, stop=stop).run()
    assert len(Records(tmp_path / "records").batches(seen[-1])) == 1
    assert parents(tmp_path)[0].info.status == "KILLED"
    assert {run.info.status for run in children(tmp_path)} == {"FINISHED"}
    stop.requested = False
    resumed = study(tmp_path).run()
    assert seen.count(seen[4]) == 2  # its two batches, the first of them not again
    assert timeless(resumed) == timeless(finished[1])
    assert logged(tmp_path) == logged(finished[0])
    assert len(in_optuna(tmp_path)) == len(in_optuna(finished[0]))


def failing(monkeypatch: pytest.MonkeyPatch, times: int, error: Callable[[], Exception]) -> None:
    """Trials with dc.w_min = 6 fail so often."""
    left = [times]

    def maybe(backbone: Any, benchmark: Any, samples: Any, method: Any, *others: Any) -> Any:
        dc = method.effective.get("dc") or {}
        if dc.get("w_min") == 6 and left[0]:
            left[0] -= 1
            raise error()
        return pretend.run_batches(backbone, benchmark, samples, method, *others)

    monkeypatch.setattr(evaluation_module, "run_batches", maybe)


def test_a_trial_that_fails_once_is_tried_again(
    finished: tuple[Path, Outcome],
    pretended: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(monkeypatch, 1, lambda: RuntimeError("the GPU fell off"))
    outcome = study(tmp_path).run()
    assert "attempt 1 of 2: RuntimeError: the GPU fell off" in capsys.readouterr().err
    assert timeless(outcome) == timeless(finished[1])
    assert logged(tmp_path) == logged(finished[0])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda: RuntimeError("the GPU fell off"), "RuntimeError: the GPU fell off"),
        (lambda: FloatingPointError("NaN in the logits of samples 0 to 3"), "FloatingPointError: NaN in the logits of"),
        (lambda: OSError(28, "No space left on device"), "OSError: .* No space left on device"),
    ],
)
def test_a_trial_that_fails_says_why_and_the_study_goes_on(
    finished: tuple[Path, Outcome],
    pretended: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Any,
    reason: str,
) -> None:
    import re

    failing(monkeypatch, 100, error)
    outcome = study(tmp_path).run()
    failed = outcome.failures
    assert failed
    assert {trial.settings["intervention.dc.w_min"] for trial in failed} == {6.0}
    assert all(re.match(reason, trial.reason) for trial in failed)
    assert outcome.curves[0].chosen == 3
    whole = {trial.key: trial.score for trial in finished[1].trials}
    assert all(trial.score == whole.get(trial.key, trial.score) for trial in outcome.trials if trial.status != FAILED)
    by_status = [run for run in children(tmp_path) if run.info.status == "FAILED"]
    assert {run.data.tags["key"] for run in by_status} == {trial.key for trial in failed}
    assert all(re.match(reason, run.data.tags["error"]) for run in by_status)
    assert parents(tmp_path)[0].info.status == "FINISHED"
    states = {trial.state.name for trial in in_optuna(tmp_path)}
    assert states == {"COMPLETE", "FAIL"}
    sensitivity.write_sensitivity(sensitivity.sensitivity_curves(outcome), tmp_path)

    monkeypatch.setattr(evaluation_module, "run_batches", pretend.run_batches)  # mended
    again = study(tmp_path)
    assert timeless(again.run()) == timeless(finished[1])
    assert logged(tmp_path) == logged(finished[0])


def test_when_the_stock_model_fails_there_are_no_differences(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_stock(backbone: Any, benchmark: Any, samples: Any, method: Any, *others: Any) -> Any:
        if not method.active:
            raise RuntimeError("no")
        return pretend.run_batches(backbone, benchmark, samples, method, *others)

    monkeypatch.setattr(evaluation_module, "run_batches", no_stock)
    outcome = study(tmp_path, tracking="none").run()
    assert all(row.difference is None for row in outcome.rows)
    assert "failed: RuntimeError: no" in "\n".join(summary.table(outcome))


def test_tracking_that_is_down_stops_nothing_and_is_made_up_for(
    finished: tuple[Path, Outcome], pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker("mlflow", tmp_path, "http://127.0.0.1:9")
    outcome = Study(small(tmp_path), tracker).run()
    assert timeless(outcome) == timeless(finished[1])
    assert tracker.down
    assert capsys.readouterr().err.count("tracking stopped") == 1
    sync_command = f"python -m tdrs.study sync small output={tmp_path}"
    assert tracker.next_steps("small")[0] == f"tracking was unavailable; when it answers again:  {sync_command}"
    assert tracker.next_steps("small")[1].endswith(f"{sync_command} tracking.uri=null")
    folder = tmp_path / "studies" / "small"
    store, records = Tracker("mlflow", tmp_path), Records(tmp_path / "records")
    assert sync(folder, store, records, summary.description) == len(children(finished[0]))
    assert logged(tmp_path) == logged(finished[0])
    assert parents(tmp_path)[0].info.status == "FINISHED"


def test_a_damaged_journal_is_made_again(own: tuple[Path, Outcome]) -> None:
    output, outcome = own
    path = output / "studies" / "small" / "study.journal"
    before = [(trial.number, trial.values, trial.params) for trial in in_optuna(output)]
    path.write_bytes(path.read_bytes()[:200] + b"\x00 torn\n" + path.read_bytes()[300:])
    assert study(output).run() == outcome
    assert [(trial.number, trial.values, trial.params) for trial in in_optuna(output)] == before


def test_other_settings_under_the_same_name_start_anew(
    own: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    """All files of the earlier study are kept in a folder of their own, and none is left beside the new one."""
    output, outcome = own
    folder = output / "studies" / "small"
    for name in ("decay.json", "attention.png", "report.md", "table.csv", "export/trials.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of the first study")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}
    capsys.readouterr()
    changed = small(output)
    changed["search"]["steps"] = changed["search"]["steps"][:2]
    changed["search"]["start"] = {}
    second = study(output, changed)
    found = second.run()
    assert len(found.trials) < len(outcome.trials)
    assert len(read_trials(folder, found.key)) == len({trial.key for trial in [*found.trials, *found.rows]})
    assert len(in_optuna(output)) == len(dict.fromkeys(trial.key for trial in found.trials))
    assert len(parents(output)) == 2
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "lock", "replaced", "study.json", "study.journal", "trials.jsonl"
    }  # fmt: skip
    place = folder / "replaced" / outcome.key
    said = f"small: an earlier study of this name had other settings; it is now in {place}"
    assert said in capsys.readouterr().err.splitlines()
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    assert (place / "export" / "trials.csv").exists()
    assert read_outcome(folder) == found
    assert found.key != outcome.key
    assert study(output).run() == outcome  # the first one again: all is found, and what was replaced stays
    assert sorted(path.name for path in (folder / "replaced").iterdir()) == sorted([outcome.key, found.key])
    assert study(output, changed).run() == found
    assert f"{outcome.key}-2" in {path.name for path in (folder / "replaced").iterdir()}


def test_a_result_of_another_study_is_not_read(own: tuple[Path, Outcome]) -> None:
    output, outcome = own
    folder = output / "studies" / "small"
    replace(outcome, key="0").save(folder / "study.json")
    with pytest.raises(SettingError, match=r"study = 'small': study.json belongs to 0; run the study again"):
        read_outcome(folder)


def test_trials_of_another_version_are_moved_away(
    own: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study's key stays, its evaluations have other cache keys: the trials are those of the last run alone."""
    output, outcome = own
    folder = output / "studies" / "small"
    before, runs_before = (folder / "trials.jsonl").read_text(), len(children(output))
    monkeypatch.setattr(evaluation_module, "__version__", "9.9.9")
    capsys.readouterr()
    found = study(output).run()
    assert found.key == outcome.key
    assert not {t.cache_key for t in found.trials} & {t.cache_key for t in outcome.trials}
    keys = list(dict.fromkeys(trial.key for trial in [*found.trials, *found.rows]))
    assert list(read_trials(folder, found.key)) == keys
    assert [t.user_attrs["key"] for t in in_optuna(output)] == list(dict.fromkeys(t.key for t in found.trials))
    assert {run.data.tags["key"] for run in children(output)} == set(keys)
    assert len(children(output)) == runs_before
    place = folder / "replaced" / found.key
    assert (place / "trials.jsonl").read_text() == before
    assert (place / "study.journal").exists()
    said = f"small: {len(keys)} trials that are no longer asked for are now in {place}"
    assert said in capsys.readouterr().err.splitlines()
    again = study(output)
    assert again.run() == found
    assert [path.name for path in (folder / "replaced").iterdir()] == [found.key]


def test_the_environment_is_the_one_that_measured(own: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    output, outcome = own
    elsewhere = {**environment(), "device": "another GPU"}
    monkeypatch.setattr("tdrs.sweeps.study.environment", lambda: elsewhere)
    monkeypatch.setattr(evaluation_module, "environment", lambda: elsewhere)
    found = study(output)
    assert found.run().environment == outcome.environment == environment()
    path = found.records.path(outcome.rows[1].cache_key) / "result.json"
    cache_key = path.parent.name
    result = checked_file.read_json(path, cache_key)
    checked_file.write_json(path, result | {"environment": elsewhere}, cache_key)
    count = len({trial.cache_key for trial in [*outcome.trials, *outcome.rows]})
    device = study(output).run().environment["device"]
    assert device == f"{environment()['device']} ({count - 1} evaluations), another GPU (1 evaluations)"
    lines = report_lines.elsewhere(outcome, found.records)
    (apart,) = [line for line in lines if "logits, paper and its stock model were measured apart" in line]
    assert f"device another GPU and {environment()['device']}" in apart


def test_bad_values_are_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "load", lambda *a: pytest.fail("loaded"))
    config = small(tmp_path)
    last = copy.deepcopy(config)
    last["search"]["steps"][3]["values"].append(-1.0)
    with pytest.raises(SettingError, match=r"intervention.re.weight = -1.0: must be a finite number of at least 0"):
        study(tmp_path, last, "none")
    off = copy.deepcopy(config)
    off["intervention"]["dc"] = None
    with pytest.raises(SettingError, match=r"search = 'intervention.dc.w_min': no such setting"):
        study(tmp_path, off, "none")
    many = copy.deepcopy(config)
    many["preset"]["held_out"] = 9999
    with pytest.raises(SettingError, match=r"preset.held_out = 9999: mini_scienceqa has 2000"):
        study(tmp_path, many, "none")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_lists_what_is_missing_and_writes_nothing(
    finished: tuple[Path, Outcome], pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["+experiment=sqa_ablation", "preset=smoke", "dry_run=true"]
    assert run("sweep", main_sweep, "", [*given, f"output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "n = 8     stock" in printed
    assert "no like evaluation is kept here" in printed
    assert not list(tmp_path.iterdir())
    output, _ = finished
    lines = study(output, tracking="none").dry_run()
    assert lines[0].endswith("to run: 0")
    assert len(lines) == 2  # nothing is missing; later settings depend …
    shorter = small(output)
    shorter["search"]["steps"][3]["values"].append(5.0)
    lines = study(output, shorter, "none").dry_run()
    assert any("re.weight=5" in line for line in lines)
    assert "minutes by like evaluations kept here" in lines[0]


def test_with_settings_sets_dotted_keys_on_a_copy() -> None:
    config = {"a": {"b": 1}}
    assert with_settings(config, {"a.b": 2}) == {"a": {"b": 2}}
    assert config == {"a": {"b": 1}}


def test_the_command_draws_the_figure(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["+experiment=sqa_ablation", "preset=smoke", "tracking=none", f"output={tmp_path}", "dataset.gap=2"]
    assert run("sweep", main_sweep, "", arguments) == 0
    folder = tmp_path / "studies" / "sqa_ablation"
    assert (folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "sensitivity.svg").read_text()[:2000]
    printed = capsys.readouterr().out
    assert "difference to stock, paired [95 %]" in printed
    assert "report: " in printed
    outcome = read_outcome(folder)
    (line,) = sensitivity.sensitivity_curves(outcome)
    assert [panel.paper for panel in line.settings] == [3, 1, 2, 0.8]
    assert [series.name for series in line.settings[0].series] == ["logits", "weights"]
    assert line.settings[1].series[0].values == [0, 0.01, 0.03, 0.1, 0.3, 1]
    assert line.stock[0] == outcome.trials[0].score
    (folder / "sensitivity.png").unlink()
    assert sensitivity.main(["study=sqa_ablation", f"output={tmp_path}"]) == 0
    assert (folder / "sensitivity.png").exists()
    assert sensitivity.main(["study=nothing", f"output={tmp_path}"]) == 2


def test_failures_end_with_code_1(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, 100, lambda: RuntimeError("no"))
    given = ["search=compare", "preset=smoke", "tracking=none", f"output={tmp_path}", "dataset.gap=2"]
    given += ["++search.axes={backbone: [mini_llava]}", "++search.methods={six: {intervention.dc.w_min: 6}}"]
    assert run("sweep", main_sweep, "", given) == 1
    printed = capsys.readouterr().out
    assert "failed:  six (held_out): RuntimeError: no" in printed
    assert "the same command tries them again" in printed


def test_rows_left_out_are_said(tmp_path: Path) -> None:
    for split in ("tuning", "held_out"):
        rows = mini_textvqa.dataset(split, 6)
        rows = rows.map(lambda row, number: {"answers": row["answers"][: 10 - (number == 1)]}, with_indices=True)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    given = ["dataset=textvqa", f"dataset.source={tmp_path}", "dataset.rows=null", "dataset.bad_rows=skip"]
    given += ["dataset.tuning=tuning", "dataset.held_out=held_out", "preset.tuning=5", "preset.held_out=5"]
    found = Study(plain(compose("sweep", [*given, f"output={tmp_path}"])), Tracker("none", tmp_path))
    said = f"1 rows of {tmp_path} left out: row 1 has 9 answers, not 10"
    assert found.jobs.notes == [f"tuning: {said}", f"held_out: {said}"]
