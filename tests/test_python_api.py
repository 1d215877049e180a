"""The library as Python code uses it: the commands' numbers, figures that touch nothing else, clear errors."""

import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import tdrs
from tdrs import backbones, benchmarks, evaluation, study
from tdrs.analysis.answer_bias import MATCHED
from tdrs.analysis.comparison import paired_differences
from tdrs.analysis.evidence import compare_rows
from tdrs.attention.block import Block
from tdrs.backbones import Backbone
from tdrs.records import Records
from tdrs.settings import SettingError

from .sweeps import pretend

ROOT = Path(__file__).parent.parent
OVERRIDES = ["preset=smoke", "tracking=none", "batch_size=4"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretended study under two conditions."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        pretend.pretend(patch)
        with pytest.warns(UserWarning, match="points off the published"):
            tdrs.run_study("sensitivity", [*OVERRIDES, "search.axes.data=[{dataset: mini_scienceqa, dataset.gap: 32},"
                           "{dataset: mini_pope, dataset.gap: 4}]"], folder)  # fmt: skip
    return folder


@pytest.fixture
def results(output: Path) -> tdrs.StudyResults:
    return tdrs.load_study("sensitivity", output)


def test_importing_it_changes_nothing_and_loads_what_is_used() -> None:
    code = """
import sys, signal, torch
before = (torch.get_num_threads(), signal.getsignal(signal.SIGINT))
import tdrs
heavy = {"pandas", "matplotlib", "optuna", "mlflow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
for name in tdrs.__all__:
    getattr(tdrs, name)
import matplotlib, optuna
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams._get("backend") is matplotlib.rcsetup._auto_backend_sentinel
assert optuna.logging.get_verbosity() == optuna.logging.INFO
assert before == (torch.get_num_threads(), signal.getsignal(signal.SIGINT))
assert set(tdrs.__all__) <= set(dir(tdrs))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"})


def test_no_module_hides_the_function_evaluate() -> None:
    for path in [*(ROOT / "tdrs").rglob("*.py"), *(ROOT / "sweeps").glob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        code = path.read_text()
        assert not re.search(r"^\s*(from tdrs\.evaluate import|import tdrs\.evaluate\b)", code, re.MULTILINE), path
    assert callable(tdrs.evaluate)


def test_trials_are_the_exported_ones(results: tdrs.StudyResults, output: Path) -> None:
    trials = results.trials()
    assert study.main(["export", "sensitivity", f"output={output}"]) == 0
    with (results.folder / "export" / "trials.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["split"] == "held_out")
    assert len(trials) == len(rows) > 100
    for name in ("name", "split", "status", "reason"):
        assert list(trials[name]) == [row[name] for row in rows]
    for name in ("accuracy", "accuracy_low", "margin"):
        assert list(trials[name]) == [float(row[name]) for row in rows]
    assert set(trials["dataset"]) == {"mini_scienceqa", "mini_pope"}
    assert set(trials["dataset.gap"]) == {32, 4}
    assert trials["intervention.dc.w_min"].dtype == float
    assert trials["intervention.dc.w_min"].isna().any()  # the stock model has none
    held_out = trials[trials["split"] == "held_out"]
    assert list(held_out["difference"].dropna()) == [r.difference[0] for r in results.outcome.rows if r.difference]
    assert trials.attrs == {"study": "sensitivity", "study_key": results.outcome.key}


def test_samples_are_the_records(results: tdrs.StudyResults) -> None:
    samples, trials = results.samples(), results.trials()
    assert len(samples) == trials["n"].sum()
    last = samples[samples["trial"] == len(trials) - 1]
    records = results.records.read(trials["cache_key"].iloc[-1]).records
    assert list(last["id"]) == [record.id for record in records]
    assert list(last["score"]) == [record.score for record in records]
    assert set(last["dataset"]) == {"mini_pope"}
    weighted = samples.assign(w=samples["score"] * samples["weight"]).groupby("trial")[["w", "weight"]].sum()
    assert np.allclose(weighted["w"] / weighted["weight"], trials["accuracy"])


def test_comparisons_are_those_of_the_table(results: tdrs.StudyResults) -> None:
    frame = results.compare()
    with (results.folder / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["row"] != "stock"]
    assert len(rows) == len(frame)
    assert set(frame["measure"]) == {"accuracy", "F1", "balanced accuracy", "ROC area", MATCHED}
    for row, line in zip(rows, frame.to_dict("records"), strict=True):
        assert (row["condition"], row["row"], row["measure"]) == (line["condition"], line["method"], line["measure"])
        for name in ("value", "low", "high", "difference", "difference_low", "difference_high"):
            assert float(row[name]) == 100 * line[name], name
        if line["measure"] == "accuracy":
            assert row["verdict"] == line["verdict"]
            assert float(row["p_holm"]) == pytest.approx(line["p_holm"], abs=0, rel=0, nan_ok=True)
            assert (int(row["gained"]), int(row["lost"])) == (line["gained"], line["lost"])
    assert len(results.conditions) == 2
    one = results.compare("logits, tuned")
    assert list(one["condition"]) == [results.conditions[0], *5 * [results.conditions[1]]]
    pd.testing.assert_frame_equal(
        one, frame[frame["method"] == "logits, tuned"].reset_index(drop=True), check_dtype=False
    )


def test_any_row_is_a_baseline(results: tdrs.StudyResults) -> None:
    frame = results.compare("logits, tuned", baseline="logits, paper")
    rows = {(row.name, row.condition["dataset"]): row for row in results.outcome.rows}
    for line in frame[frame["measure"] == "accuracy"].to_dict("records"):
        difference = rows["logits, tuned", line["dataset"]].score - rows["logits, paper", line["dataset"]].score
        assert line["difference"] == pytest.approx(difference)
        assert line["comparisons"] == 2 * (len(results.rows) - 1)
        assert line["p"] <= line["p_holm"]
    back = results.compare("logits, paper", baseline="logits, tuned")
    assert list(back["difference"]) == pytest.approx(list(-frame["difference"]))


def test_a_row_that_failed_is_said(results: tdrs.StudyResults) -> None:
    rows = [replace(row, status="failed", reason="no", difference=None) if row.name == "logits, tuned" else row
            for row in results.outcome.rows]  # fmt: skip
    broken = tdrs.StudyResults(replace(results.outcome, rows=rows), results.records, results.folder)
    frame = broken.compare("logits, tuned")
    assert list(frame["verdict"]) == 2 * ["failed: no"]
    assert frame["difference"].isna().all()
    assert set(broken.compare(baseline="logits, tuned")["verdict"].dropna()) == {"its baseline was not measured"}


def test_a_warning_comes_with_every_number(results: tdrs.StudyResults) -> None:
    tuned = tdrs.StudyResults(replace(results.outcome, overlap=3), results.records, results.folder)
    with pytest.warns(UserWarning, match="TUNED ON THE REPORTED SPLIT"):
        tuned.compare()
    assert tuned.trials().attrs["warning"] == tuned.warning
    assert repr(tuned).splitlines()[1] == tuned.warning
    assert tdrs.plot.comparison(tuned).get_suptitle() == tuned.warning
    own = matplotlib.figure.Figure()
    tdrs.plot.comparison(tuned, axes=own.subplots(1, 2))
    assert own.axes[0].get_title().startswith(tuned.warning)


@pytest.mark.parametrize("name", ["sensitivity", "comparison", "distance"])
def test_figures_are_returned(name: str, results: tdrs.StudyResults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "load", lambda *a: pytest.fail("loaded a model"))
    before = {path: path.stat().st_mtime_ns for path in results.folder.rglob("*")}
    draw = getattr(tdrs.plot, name)
    figure = draw(results)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert {path: path.stat().st_mtime_ns for path in results.folder.rglob("*")} == before
    count = len(figure.axes)
    own = matplotlib.figure.Figure()
    FigureCanvasAgg(own)
    axes = own.subplots(1, count + 1)
    assert draw(results, axes=axes[:count]) is own
    assert own.get_suptitle() == ""
    assert all(axis.has_data() for axis in axes[:count])
    with pytest.raises(
        SettingError, match=f"axes = {count + 1}: must be as many Axes as the figure has panels, {count}"
    ):
        draw(results, axes=axes)
    if count > 1:
        with pytest.raises(SettingError, match=f"axes = {count}: must be different Axes of one figure"):
            draw(results, axes=[axes[0]] * count)
    with pytest.raises(SettingError, match="must be Axes of matplotlib"):
        draw(results, axes=["x"] * count)


def test_a_study_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: tdrs.StudyResults
) -> None:
    """A notebook's stop button sends SIGINT; then the cell is run again."""
    pretend.pretend(monkeypatch)
    asked = 0

    def stopped(*arguments: Any, **others: Any) -> Iterator[Any]:
        nonlocal asked
        for batch in pretend.run_batches(*arguments, **others):
            asked += 1
            if asked == 20:
                signal.raise_signal(signal.SIGINT)
            yield batch

    monkeypatch.setattr(evaluation, "run_batches", stopped)
    handler = signal.getsignal(signal.SIGINT)
    overrides = [*OVERRIDES, "dataset.gap=32"]
    with pytest.raises(KeyboardInterrupt, match="the same call continues"):
        tdrs.run_study("sqa_ablation", overrides, tmp_path)
    assert asked == 20
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(SettingError, match=r"study = 'sqa_ablation': .* has not finished"):
        tdrs.load_study("sqa_ablation", tmp_path)
    with pytest.warns(UserWarning, match="points off"):
        found = tdrs.run_study("sqa_ablation", overrides, tmp_path)
    assert repr(found) == repr(tdrs.load_study("sqa_ablation", tmp_path))
    mine, others = found.trials(), results.trials()
    others = others[others["dataset"] == "mini_scienceqa"]
    assert mine["accuracy"].tolist() == others["accuracy"].tolist()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda o: tdrs.run_study("sqa", output=o), "experiment = 'sqa': must be one of distance, figure3,"),
        (lambda o: tdrs.run_study("sqa_ablation", ["gap=3"], o), "gap = '3': no such setting"),
        (lambda o: tdrs.run_study("sqa_ablation", "preset=smoke", o), "overrides = 'preset=smoke': must be a list"),
        (lambda o: tdrs.run_study("sqa_ablation", ["dry_run=true"], o), "dry_run = True: is for the command"),
        (lambda o: tdrs.load_study("x", o), "study = 'x': must be a finished study: sensitivity"),
        (lambda o: tdrs.load_study("sensitivity", o).compare("tuned"), "method = 'tuned': must be one of stock, "),
        (lambda o: tdrs.load_study("sensitivity", o).compare("stock"), "method = 'stock': is the baseline"),
        (lambda o: tdrs.load_study(3, o), "study = 3: must be the name of one folder"),
        (lambda o: tdrs.load_study("sensitivity", None), "output = None: must be a folder"),
        (lambda o: tdrs.run_study("sqa_ablation", cast(Any, [3]), o), "overrides = [3]: must be a list of texts"),
        (lambda o: tdrs.load_study("sensitivity", o).compare(baseline="x"), "baseline = 'x': must be one of stock, "),
        (lambda o: tdrs.plot.attention(tdrs.load_study("sensitivity", o), gain="x"), "gain = 'x': must be one of "),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_says_what_is_allowed(call: Any, said: str, output: Path) -> None:
    with pytest.raises(SettingError) as error:
        call(output)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@dataclass(frozen=True, kw_only=True)
class Flatter(tdrs.Method):
    """A user's own method."""

    factor: float = 0.0

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits * self.factor


def test_a_loaded_model_is_evaluated_and_left_as_it_was(mini_llava: Backbone) -> None:
    model, processor = mini_llava.model, mini_llava.processor
    model.train()
    config = model.generation_config
    benchmark = benchmarks.from_settings({"name": "mini_pope", "gap": 3})
    stock = tdrs.evaluate(model, processor, benchmark, limit=20)
    own = tdrs.evaluate(model, processor, benchmark, Flatter(), limit=20, batch_size=8, max_new_tokens=16)
    assert model.training
    assert model.generation_config is config
    model.eval()
    asked = benchmark.asked_by("llava")
    samples = benchmarks.load(asked, "held_out", 20, "llava")
    for found, method, size in ((stock, tdrs.Stock(), 32), (own, Flatter(), 8)):
        expected = evaluation.evaluate(mini_llava, asked, samples, method, size)
        assert found.records == expected.records
        assert found.metrics == expected.metrics
        assert found.intervals["f1"] == asked.intervals(expected.records)["f1"]
        assert list(found.samples()["prediction"]) == [record.prediction for record in expected.records]
    with pytest.raises(SettingError, match=r"was asked with max_new_tokens = None, not 16"):
        own.compare(stock)
    own = replace(own, max_new_tokens=None)
    frame = own.compare(stock)
    assert list(frame["measure"]) == ["accuracy", "F1", "balanced accuracy", "ROC area"]
    assert frame["difference"][0] == pytest.approx(own.metrics["accuracy"] - stock.metrics["accuracy"])
    assert "n = " in repr(own)
    other = tdrs.evaluate(model, processor, benchmark, limit=8)
    with pytest.raises(SettingError, match="was asked other samples"):
        other.compare(stock)
    with pytest.raises(SettingError, match=r"baseline = 'stock': must be what tdrs.evaluate returned"):
        stock.compare("stock")


def test_each_part_of_a_loaded_model_keeps_its_mode(mini_llava: Backbone) -> None:
    model = mini_llava.model
    model.train()
    model.model.vision_tower.eval()
    before = [part.training for part in model.modules()]
    tdrs.evaluate(model, mini_llava.processor, "mini_pope", limit=2)
    assert [part.training for part in model.modules()] == before
    model.eval()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"benchmark": "vqa"}, "dataset = 'vqa': must be one of "),
        ({"split": "test"}, "split = 'test': must be one of tuning, held_out"),
        ({"limit": 0}, "limit = 0: must be"),
        ({"prompt_style": "x"}, "prompt_style = 'x': must be one of "),
        ({"processor": object()}, "processor = 'object': must be a processor of pictures and text"),
        ({"model": None}, "model = 'NoneType': must be a loaded model of transformers"),
        ({"benchmark": None}, "benchmark = 'NoneType': must be a name"),
        ({"method": {}}, "method = {}: must be a method with its settings"),
        ({"method": tdrs.TDRS}, "method = 'the class TDRS': must be a method with its settings"),
        ({"system": 3}, "system = 3: must be text"),
        ({"model": "text"}, "model = 'LlamaForCausalLM': must be a vision-language model"),
    ],
)
def test_what_cannot_be_evaluated(given: dict[str, Any], said: str, mini_llava: Backbone, llava_text: Any) -> None:
    arguments = {"model": mini_llava.model, "processor": mini_llava.processor, "benchmark": "mini_pope"} | given
    if arguments["model"] == "text":
        arguments |= {"model": llava_text, "prompt_style": "llava"}
    with pytest.raises(SettingError) as error:
        tdrs.evaluate(**arguments)
    assert str(error.value).startswith(said)


@pytest.fixture
def llava_text() -> Any:
    from .conftest import tiny_llama

    return tiny_llama()


def test_the_tables_rows_are_recomputed_alike(results: tdrs.StudyResults) -> None:
    """A difference that is computed from the records equals the one that the study stored."""
    for one in compare_rows(results.outcome, Records(results.folder.parents[1] / "records")):
        assert one.difference == (one.trial.difference and pytest.approx(one.trial.difference, abs=0))
    rows = [row for condition in paired_differences(results.outcome) for row in condition.rows]
    assert len(rows) == sum(row.difference is not None for row in results.outcome.rows)


def test_several_pictures_of_a_prompt(mini_llava: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for color in ("red", "blue"):
        Image.new("RGB", (48, 48), color).save(tmp_path / f"{color}.png")
    row = {"image": ["red.png", "blue.png"], "question": "Is there a circle?", "answer": "no"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    source = {"name": "own", "source": str(tmp_path), "rule": "yes_no", "tuning_share": 0}
    benchmark = benchmarks.from_settings(source)
    model, processor = mini_llava.model, mini_llava.processor
    assert len(tdrs.evaluate(model, processor, benchmark, tdrs.TDRS()).records) == 1
    monkeypatch.setattr(processor, "chat_template", "<image> ?")
    with pytest.raises(
        SettingError, match=r"2 images of 48 × 48 and 48 × 48 pixels \(the chat template has a place for"
    ):
        tdrs.evaluate(model, processor, benchmark)
