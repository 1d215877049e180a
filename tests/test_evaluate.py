"""One evaluation on the embedded default, from the command line to its files and its run."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient

import tdrs
from tdrs import TDRS, Stock, benchmarks
from tdrs.attention.block import Block
from tdrs.backbones import Backbone
from tdrs.backbones.decoding import margin
from tdrs.benchmarks import Benchmark, Record, mini_gqa, mini_pope, mini_scienceqa, mini_textvqa
from tdrs.benchmarks.benchmark import mean_score
from tdrs.configuration import run
from tdrs.evaluate_command import main_evaluate
from tdrs.evaluation import evaluate, other_metrics, run_batches, summary
from tdrs.interventions import METHODS, Method
from tdrs.results import Batch, Evaluation


def test_files_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["intervention=tdrs", "limit=12", "batch_size=5", "dataset.gap=8", f"output={tmp_path}"]
    assert run("evaluate", main_evaluate, "", arguments) == 0
    (folder,) = (tmp_path / "records").iterdir()
    result = json.loads((folder / "result.json").read_text())
    metrics = result["metrics"]
    assert result["n"] == 12
    assert 0 <= metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"] <= 1
    records = pq.read_table(folder / "samples.parquet").to_pylist()
    assert list(records[0]) == [field.name for field in fields(Record)]
    assert metrics["accuracy"] == pytest.approx(sum(r["score"] for r in records) / 12)
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
    assert run("evaluate", main_evaluate, "", [*arguments, "backbone.name=another"]) == 0  # a name decides nothing
    assert "found done" in capsys.readouterr().out
    assert len(client.search_runs([logged.info.experiment_id])) == 1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_from_the_command_line(name: str, tmp_path: Path) -> None:
    arguments = [f"intervention={name}", "limit=3", "dataset.gap=8", "tracking=none", f"output={tmp_path}"]
    assert run("evaluate", main_evaluate, "", arguments) == 0
    assert len(list((tmp_path / "records").glob("*/result.json"))) == 1


def twin(gap: int = 0) -> Benchmark:
    return benchmarks.from_settings({"name": "mini_scienceqa", "gap": gap})


def test_stock_is_deterministic_and_right_answers_have_positive_margins(mini_llava: Backbone) -> None:
    samples = benchmarks.load(twin(), "held_out", 40)
    first = evaluate(mini_llava, twin(), samples, Stock(), batch_size=16)
    assert first.records == evaluate(mini_llava, twin(), samples, Stock(), batch_size=16).records
    assert all(len(record.prediction) == 1 for record in first.records)
    for record in first.records:
        assert record.score == (record.margin > 0)


def test_all_stages_off_gives_the_stock_records(mini_llava: Backbone) -> None:
    samples = benchmarks.load(twin(40), "held_out", 12)
    stock = evaluate(mini_llava, twin(40), samples, Stock())
    assert evaluate(mini_llava, twin(40), samples, TDRS(sd=False, dc=None, re=None)).records == stock.records
    edited = evaluate(mini_llava, twin(40), samples, TDRS())
    assert [r.margin for r in edited.records] != [r.margin for r in stock.records]


@pytest.mark.parametrize("name", ["mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"])
def test_every_twin_runs_and_is_read_back(name: str, tmp_path: Path, mini_llava: Backbone) -> None:
    benchmark = benchmarks.from_settings({"name": name, "gap": 4})
    made = evaluate(mini_llava, benchmark, benchmarks.load(benchmark, "tuning", 12)[:9], TDRS())
    assert len(made.records) == 9
    assert all(math.isfinite(record.margin) for record in made.records)
    assert made.metrics["accuracy"] == pytest.approx(mean_score(made.records))
    made.save(tmp_path / "e", {"a": 1})
    assert Evaluation.read(tmp_path / "e") == made


def test_before_the_image_the_text_is_as_long(mini_llava: Backbone) -> None:
    """The same tokens, in front of the image instead of behind it."""
    prompts = {}
    for place in ("between", "before_image"):
        benchmark = benchmarks.from_settings({"name": "mini_scienceqa", "gap": 30, "filler": place})
        prompts[place] = mini_llava.inputs(benchmarks.load(benchmark, "tuning", 4))["input_ids"]
    image = mini_llava.model.config.image_token_id
    for near, far in zip(prompts["before_image"], prompts["between"], strict=True):
        assert sorted(near.tolist()) == sorted(far.tolist())
        firsts = [row.tolist().index(image) for row in (near, far)]
        assert firsts[0] - firsts[1] == 30 + 3  # the words "Context", ":" and the end of the line


def test_margin_of_an_open_question_is_against_any_other_token(mini_llava: Backbone) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_gqa"})
    (sample,) = benchmarks.load(benchmark, "tuning", 1)
    logs = torch.full((len(mini_llava.processor.tokenizer),), -9.0)
    (gold,) = mini_llava.first_tokens("red")
    logs[gold], logs[gold + 1] = -1.0, -3.0
    assert margin(replace(sample, gold="red"), logs, mini_llava.first_tokens) == 2.0
    assert margin(replace(sample, gold="red", options=("red", "blue")), logs, mini_llava.first_tokens) == 8.0


def test_bad_input_ends_with_code_2_before_a_model_is_loaded(tmp_path: Path) -> None:
    """As a user meets it: a process, one line on standard error, nothing written."""
    done = subprocess.run(
        [sys.executable, "-m", "tdrs.evaluate", "intervention=tdrs", "intervention.re.weight=-1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: intervention.re.weight = -1.0: must be a finite number of at least 0\n"
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_cut_gives_the_same_records_bit_for_bit(mini_llava: Backbone) -> None:
    benchmark = twin(12)
    samples = benchmarks.load(benchmark, "tuning", 24)[:23]
    whole = list(run_batches(mini_llava, benchmark, samples, TDRS(), 8))
    assert [len(batch.records) for batch in whole] == [8, 8, 7]
    for done in (1, 2):
        rest = list(run_batches(mini_llava, benchmark, samples, TDRS(), 8, done=whole[:done]))
        assert [batch.records for batch in rest] == [batch.records for batch in whole[done:]]
        assert [batch.clamped for batch in rest] == [batch.clamped for batch in whole[done:]]
    made, again = (summary(benchmark, samples, batches, 8) for batches in (whole, whole[:1] + whole[1:]))
    assert made.clamped == again.clamped
    counts = [batch.clamped["dc.w_min"][1] for batch in whole]
    assert made.clamped["dc.w_min"][1] == sum(counts)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_asks_for_less_at_a_time(
    mini_llava: Backbone, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    answer, sizes = Backbone.answer, []

    def limited(self: Backbone, samples: Any, *asked: str) -> Any:
        sizes.append(len(samples))
        if len(samples) > 3:
            raise error
        return answer(self, samples, *asked)

    monkeypatch.setattr(Backbone, "answer", limited)
    samples = benchmarks.load(twin(), "tuning", 20)
    batches = list(run_batches(mini_llava, twin(), samples, TDRS(), 8))
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [batch.start for batch in batches] == [0, 8, 16]  # the plan is as it was
    found = summary(twin(), samples, batches, 8)
    assert "out of memory: batches of 8 were asked 2 samples at a time (set batch_size=2)" in found.notes
    sizes.clear()
    list(run_batches(mini_llava, twin(), samples, TDRS(), 8, done=batches[:2]))
    assert sizes == [2, 2]  # what was learned is kept
    monkeypatch.setattr(Backbone, "answer", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error), match=r"memory; with one sample at a time; .*backbone\.image.* take less"):
        list(run_batches(mini_llava, twin(), samples, TDRS(), 8))


def test_nan_in_the_logits_is_an_error_that_names_the_samples(mini_llava: Backbone) -> None:
    class Poison(tdrs.Method):
        """A method that breaks down."""

        def edit(self, block: Block, statistics: object) -> torch.Tensor:
            return block.logits * float("nan")

    samples = benchmarks.load(twin(), "tuning", 4)
    with pytest.raises(
        FloatingPointError, match=r"NaN in the logits of .* at answer token 1, in the batch of samples 0 to 1"
    ):
        list(run_batches(mini_llava, twin(), samples, Poison(), 2))


def test_nan_behind_the_first_token_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["dataset=mini_textvqa", "intervention=temperature", "intervention.tau=1e-39", "intervention.phase=decode"]
    assert run("evaluate", main_evaluate, "", [*given, "limit=8", "tracking=none", f"output={tmp_path}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: NaN in the logits of ")
    assert "at answer token 2, in the batch of samples 0 to 7" in said


def test_shards_make_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any order, one left to the command without a shard; the records are those of one run, bit for bit."""
    given = ["intervention=tdrs", "limit=24", "batch_size=5", "dataset.gap=8", "tracking=none"]
    assert run("evaluate", main_evaluate, "", [*given, f"output={tmp_path / 'one'}"]) == 0
    (one,) = (tmp_path / "one" / "records").iterdir()
    output = f"output={tmp_path / 'parts'}"
    assert run("evaluate", main_evaluate, "", [*given, output, "shard=3/3"]) == 0
    said = capsys.readouterr().out
    assert "shard 3/3: 9 samples kept; 9 of 24 are there" in said
    assert not list((tmp_path / "parts").glob("records/*/result.json"))
    assert run("evaluate", main_evaluate, "", [*given, output, "shard=1/3"]) == 0
    assert run("evaluate", main_evaluate, "", [*given, output]) == 0  # asks the second third alone
    (parts,) = (tmp_path / "parts" / "records").iterdir()
    assert parts.name == one.name
    assert Evaluation.read(parts).records == Evaluation.read(one).records
    assert sorted(path.name for path in parts.iterdir()) == sorted(path.name for path in one.iterdir())


def test_the_last_shard_makes_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["limit=12", "batch_size=5", "dataset.gap=8", "tracking=none", f"output={tmp_path}"]
    for shard in ("2/2", "1/2"):
        assert not list(tmp_path.glob("records/*/result.json"))
        assert run("evaluate", main_evaluate, "", [*given, f"shard={shard}"]) == 0
    assert "accuracy [95 % interval]" in capsys.readouterr().out
    for bad in ("0/2", "3/2", "2", "a/b"):
        assert run("evaluate", main_evaluate, "", [*given, f"shard={bad}"]) == 2
        assert "shard = " in capsys.readouterr().err


def unkind(name: str, folder: Path) -> dict[str, Any]:
    """A twin's held-out rows as files in the real set's schema, sorted by answer, kind of question and picture."""
    settings: dict[str, Any] = {"name": name, "source": str(folder / "rows.parquet"), "gap": 48}
    if name == "gqa":
        questions, images = mini_gqa.tables("held_out", 600)
        images.to_parquet(folder / "images.parquet")
        order = sorted(range(600), key=lambda n: (questions[n]["answer"], questions[n]["question"]))
        questions.select(order).to_parquet(folder / "rows.parquet")
        return settings | {"images": str(folder / "images.parquet")}
    if name == "pope":
        rows = mini_pope.dataset("held_out", 60)
        keys = [(r["category"], r["answer"], r["question"]) for r in rows.remove_columns("image")]
        settings |= {"tuning_share": 0}
    else:
        rows = {"scienceqa": mini_scienceqa, "textvqa": mini_textvqa}[name].dataset("held_out", 600)
        settings |= {"config": None}
        keys = [(str(r.get("answer", r.get("answers"))), r["question"]) for r in rows.remove_columns("image")]
    rows.select(sorted(range(len(rows)), key=keys.__getitem__)).to_parquet(folder / "rows.parquet")
    return settings


@pytest.mark.parametrize("name", ["scienceqa", "gqa", "textvqa", "pope"])
def test_a_limited_split_scores_as_the_whole_file(name: str, tmp_path: Path, mini_llava: Backbone) -> None:
    benchmark = benchmarks.from_settings(unkind(name, tmp_path))
    whole, some = (
        evaluate(mini_llava, benchmark, benchmarks.load(benchmark, "held_out", limit), Stock()) for limit in (None, 200)
    )
    assert 185 < len(some.records) <= 200 < len(whole.records)
    low, high = some.metrics["accuracy_low"], some.metrics["accuracy_high"]
    assert low <= whole.metrics["accuracy"] <= high
    assert high - low < 0.2


@dataclass(frozen=True, kw_only=True)
class Counting(Method):
    """Counts negative logits and edits nothing."""

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        block.call.tally.add("negative", "logits", block.logits < 0)
        return block.logits


def test_what_any_method_counts_is_a_metric_and_is_kept(mini_llava: Backbone, tmp_path: Path) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_gqa"})
    samples = benchmarks.load(benchmark, "tuning", 6)
    made = evaluate(mini_llava, benchmark, samples, Counting(), batch_size=3)
    count, of = made.diagnostics["negative"]["logits"]
    assert 0 < count < of
    assert made.metrics["negative_logits"] == count / of
    folder = tmp_path / "0123456789abcdef"
    folder.mkdir()
    made.save(folder, {})
    assert Evaluation.read(folder).diagnostics == made.diagnostics
    (first, _) = run_batches(mini_llava, benchmark, samples, Counting(), 3)
    assert Batch.of_line(json.loads(json.dumps(first.as_line()))).diagnostics == first.diagnostics


def test_an_evaluation_from_before_a_metric_is_still_believed() -> None:
    """Its rows have all that the metric needs, so it need not be measured again. A wrong metric is not believed."""
    benchmark = mini_pope.MiniPOPE()
    records = [benchmark.score(sample.gold, sample) for sample in benchmark.load("tuning", 12, "llava")]
    found = benchmark.metrics(records)
    older = {name: value for name, value in found.items() if "balanced_accuracy" not in name and "roc_area" not in name}
    assert len(older) < len(found)
    told = Evaluation(records, older, [], {}, 1.0, 1.0)
    assert other_metrics(benchmark, told) == ""
    wrong = Evaluation(records, {**older, "f1": 0.25}, [], {}, 1.0, 1.0)
    assert other_metrics(benchmark, wrong) == "has f1 0.25, its rows give 1"
