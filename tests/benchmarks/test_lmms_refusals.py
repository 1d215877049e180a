"""Tasks of lmms-eval with odd definitions: what cannot be asked or scored is one line, and intervals are by image."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdrs import benchmarks
from tdrs.benchmarks import lmms_definition, lmms_task
from tdrs.benchmarks.benchmark import Benchmark
from tdrs.benchmarks.lmms_eval import RESAMPLES, bootstrap
from tdrs.benchmarks.lmms_request import LONGEST, length_of
from tdrs.settings import SettingError
from tdrs.statistics import cluster_draws
from tests.benchmarks import lmms_rows

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

TASK = {
    "dataset_path": "x/y",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_visual": "!function utils.visual",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
    "generation_kwargs": {"max_new_tokens": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CODE = """
def visual(doc): return [doc['image']]
def nothing(doc): return []
def system(doc): return [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': doc['question']}]
def video(doc): return [{'role': 'user', 'content': [{'type': 'video', 'url': 'x'}]}]
def five(doc, said): return {'m': 5.0}
def none(doc, said): return {'m': None}
def word(doc, said): return {'m': 'abc'}
def mixed(doc, said): return {'m': {1, 'a'}}
def made(doc, said): return {'m': object()}
def other(doc, said): return {'z': 1.0}
def fails(doc, said): raise KeyError('nothing')
def gives(doc, said): return None
def right(doc, said): return {'m': float(said[0] == doc['answer']), 'z': None}
def filed(values, args): return 1
"""
M = [{"metric": "m", "aggregation": "mean", "higher_is_better": True}]
Make = Callable[..., Benchmark]
quiet_library = lmms_rows.quiet_library


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"question": f"q{n}?", "answer": "ABCD"[n % 4], "image": lmms_rows.draw(n // 2), "category": "xy"[n % 2]}
        for n in range(8)
    ]
    text = dict.fromkeys(("question", "answer", "category"), lmms_rows.TEXT)
    path = tmp_path_factory.mktemp("source") / "test-0.parquet"
    lmms_rows.write(rows, {**text, "image": lmms_rows.PICTURE}, path)
    return path


def forget() -> None:
    lmms_definition.definition.cache_clear()
    lmms_task.open_task.cache_clear()


@pytest.fixture
def task(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a task from changes of `TASK`; None leaves an entry out."""
    file = tmp_path / "odd.yaml"
    monkeypatch.setattr(lmms_definition, "task_files", lambda: {"odd": file})
    (tmp_path / "utils.py").write_text(CODE)

    def make(changed: Mapping[str, Any], **settings: Any) -> Benchmark:
        forget()
        lines = {"task": "odd", **TASK, **changed}
        written = {
            name: value if isinstance(value, str) and value.startswith("!") else json.dumps(value)
            for name, value in lines.items()
            if value is not None
        }
        file.write_text("".join(f"{name}: {value}\n" for name, value in written.items()))
        given = {"name": "lmms_eval", "task": "odd", "source": str(source), "tuning_share": 0, **settings}
        return benchmarks.from_settings(given)

    yield make
    forget()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"class": "!function utils.visual"}, "task = 'odd': is a class of Python, not a file"),
    (
        {"output_type": "loglikelihood"},
        "task = 'odd': is of type loglikelihood; those of type generate",
    ),
    (
        {"output_type": "generate_until_multi_round"},
        "task = 'odd': is of type generate_until_multi_round; tho",
    ),
    ({"dataset_kwargs": {"video": True}}, "task = 'odd': is about videos"),
    ({"dataset_kwargs": {"From_YouTube": True}}, "task = 'odd': is about videos"),
    ({"doc_to_visual": None}, "task = 'odd': has no pictures"),
    ({"repeats": 3}, "task = 'odd': asks each question 3 times; greedy answers would be the same"),
    ({"full_docs": True}, "task = 'odd': scores an answer by all rows"),
    ({"metric_list": [{**M[0], "metric": "none_such"}]}, "task = 'odd': cannot be loaded by lmms-eval ("),
    ({"include": "nothing.yaml"}, "task = 'odd': cannot be loaded by lmms-eval ("),
    ({"process_docs": "!function utils.none_such"}, "task = 'odd': cannot be loaded by lmms-eval ("),
    (
        {"metric_list": [{**TASK["metric_list"][0], "higher_is_better": False}]},  # type: ignore[index]
        "metric = '': a lower exact_match is better; it cannot be tuned on",
    ),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=str)
def test_a_task_that_cannot_be_asked_is_named(task: Make, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        task(changed)
    assert str(error.value).startswith(f"dataset.{message}")


def test_a_task_that_writes_a_file_or_asks_a_judge_is_named(task: Make, tmp_path: Path) -> None:
    filed = "!function utils.five\nmetric_list:\n  - {metric: m, aggregation: !function utils.filed}"
    with pytest.raises(SettingError, match=r"^dataset.task = 'odd': has no score: it writes a file for a server$"):
        task({"metric_list": None, "process_results": filed})
    (tmp_path / "utils.py").write_text("API_KEY = ''\n" + CODE)
    judged = r"^dataset.task = 'odd': may ask a model behind an API for its scores \(API_KEY\); no such task is run$"
    with pytest.raises(SettingError, match=judged):
        task({"process_results": "!function utils.five", "metric_list": M})


def test_settings_are_those_that_the_task_has(task: Make) -> None:
    with pytest.raises(SettingError, match=r"^dataset.metric = 'none': must be one of exact_match$"):
        task({}, metric="none")
    with pytest.raises(SettingError, match=r"^dataset.model = 'none': the task has the same prompt for all models$"):
        task({}, model="none")
    with pytest.raises(SettingError, match=r"^dataset.model = 'none': must be one of qwen_vl$"):
        task({"lmms_eval_specific_kwargs": {"qwen_vl": {}}}, model="none")
    with pytest.raises(SettingError, match=r"^dataset.task = 'odder': must be one of the 1 tasks of lmms-eval"):
        task({}, task="odder")


SCORES: list[tuple[dict[str, Any], str]] = [
    ({"process_results": "!function utils.five"}, "metric = 'm': its value for row 0, 5, is no score from 0 to 1"),
    ({"process_results": "!function utils.none"}, "metric = 'm': its value for row 0, nan, is no score from 0 to 1"),
    ({"process_results": "!function utils.word"}, "metric = 'm': its value for row 0, nan, is no score from 0 to 1"),
    ({"process_results": "!function utils.mixed"}, "task = 'odd': row 0 has '<' not supported"),
    ({"process_results": "!function utils.made"}, "task = 'odd': row 0 has 'object' object is not iterable"),
    ({"process_results": "!function utils.other"}, "metric = '': row 0 has none of the metrics but ['z']"),
    (
        {"process_results": "!function utils.fails"},
        "task = 'odd': row 0 has values on which process_results fails (",
    ),
    ({"process_results": "!function utils.gives"}, "task = 'odd': row 0 has 'NoneType' object is not iterable"),
    ({"doc_to_visual": "!function utils.nothing"}, "source = SOURCE: 8 unusable of 8 rows: row 0 has no picture"),
    (
        {"doc_to_messages": "!function utils.system"},
        "source = SOURCE: 8 unusable of 8 rows: row 0 has turns of [",
    ),
    (
        {"doc_to_messages": "!function utils.video"},
        "source = SOURCE: 8 unusable of 8 rows: row 0 has a part of",
    ),
    ({"test_split": None}, "source = SOURCE: cannot be used by the task odd (AssertionError: "),
    (
        {"generation_kwargs": {"max_new_tokens": "many"}},
        "task = 'odd': has max_new_tokens = 'many': must be a",
    ),
]


@pytest.mark.parametrize(("changed", "message"), SCORES, ids=str)
def test_what_cannot_be_scored_is_named_before_a_model_is_loaded(
    task: Make, source: Path, changed: dict[str, Any], message: str
) -> None:
    metrics = {"metric_list": M} if "process_results" in changed else {}
    benchmark = task({**metrics, **changed})
    with pytest.raises(SettingError) as error:
        benchmarks.load(benchmark, "held_out")
    assert str(error.value).startswith(f"dataset.{message.replace('SOURCE', repr(str(source)))}")


def test_what_the_answers_lack_is_noted(task: Make) -> None:
    more = {"max_new_tokens": 8, "until": ["\n"], "temperature": 0.7, "num_beams": 3, "do_sample": True}
    samples = benchmarks.load(task({"generation_kwargs": more, "num_fewshot": 2}), "held_out")
    assert samples.notes[1:] == [
        "the task asks for temperature=0.7, num_beams=3; the answers here are greedy",
        "the task's 2 examples are left out, as in lmms-eval's chat format",
    ]


def test_an_answer_ends_at_until_and_each_filter_has_its_metrics(task: Make) -> None:
    named = {"a": [{"function": "take_first"}], "b": [{"function": "lowercase"}, {"function": "take_first"}]}
    filters = [{"name": name, "filter": some} for name, some in named.items()]
    benchmark = task({"filter_list": filters, "generation_kwargs": {"until": ["\n", "."]}})
    samples = benchmarks.load(benchmark, "held_out")
    assert {sample.longest for sample in samples} == {LONGEST}
    records = [benchmark.score(f"{sample.gold}.\nX", sample) for sample in samples]
    assert benchmark.metrics(records) == {"accuracy": 1.0, "exact_match,a": 1.0, "exact_match,b": 0.0}


def test_a_metric_without_numbers_is_nan_with_a_note(task: Make) -> None:
    metrics = [*M, {"metric": "z", "aggregation": "mean", "higher_is_better": True}]
    benchmark = task({"process_results": "!function utils.right", "metric_list": metrics})
    samples = benchmarks.load(benchmark, "held_out")
    records = [benchmark.score(sample.gold, sample) for sample in samples]
    assert benchmark.metrics(records)["m"] == 1.0
    assert np.isnan(benchmark.metrics(records)["z"])
    assert np.isnan(benchmark.intervals(records)["z"]).all()
    assert benchmark.notes(records)[0].startswith("z cannot be computed: ")


def pairs(values: list[dict[str, Any]]) -> float:
    """The share of pictures about which all questions are answered, as MME's: put together by an id."""
    found: dict[str, list[float]] = {}
    for value in values:
        found.setdefault(value["question_id"], []).append(value["score"])
    return float(np.mean([min(scores) for scores in found.values()]))


def valid(values: list[dict[str, Any]]) -> float:
    """The mean over categories of the valid scores."""
    parts: dict[int, list[float]] = {}
    for value in values:
        parts.setdefault(value["category_id"], []).append(value["score"] * value["valid"])
    return float(np.mean([np.mean(scores) for scores in parts.values()]))


def test_a_bootstrap_draws_images_and_keeps_their_questions_together() -> None:
    rng = np.random.default_rng(0)
    images = [f"i{n // 2}" for n in range(24)]
    items = [
        {
            "question_id": f"e/{n // 2}",
            "score": float(rng.random() < 0.7),
            "valid": bool(n % 5),
            "category_id": n // 2 % 3,
        }
        for n in range(24)
    ]
    index, draws = cluster_draws(images, resamples=RESAMPLES)
    score = [pairs(items[2 * n : 2 * n + 2]) for n in range(12)]  # in the order of the names
    order = sorted(range(12), key=lambda n: f"i{n}")
    by_hand = draws @ np.array([score[n] for n in order]) / 12
    found = bootstrap(pairs, items, images)
    assert found == pytest.approx((np.mean(score), *np.quantile(by_hand, [0.025, 0.975])))
    drawn = [[items[n] for n in range(24) for _ in range(draw[index[n]])] for draw in draws]
    ends = np.quantile([valid(some) for some in drawn], [0.025, 0.975])
    assert bootstrap(valid, items, images) == pytest.approx((valid(items), *ends))


@pytest.mark.parametrize("given", ["many", -1, 0, 1.5, True])
def test_the_longest_answer_is_a_whole_number(given: Any) -> None:
    assert length_of({}) == LONGEST
    with pytest.raises(SettingError, match=r"max_new_tokens = .*: must be a whole number of at least 1"):
        length_of({"max_new_tokens": given})
