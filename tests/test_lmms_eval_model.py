"""tdrs as a model of lmms-eval: its evaluator gets what our own evaluation of the same rows gives."""

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from tdrs import benchmarks
from tdrs.backbones import Backbone
from tdrs.benchmarks import mini_pope
from tdrs.evaluation import evaluate
from tdrs.interventions.tdrs import TDRS
from tdrs.settings import SettingError
from tests.benchmarks.lmms_rows import PICTURE, TEXT, draw, evaluated, quiet_library, write  # noqa: F401 - a fixture

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

ROOT = Path(__file__).parents[1]


def test_lmms_eval_finds_the_model_by_the_entry_point() -> None:
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    group = "lmms_eval.models"
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][group]
    registry = ModelRegistryV2()
    for name, value in named.items():
        registry.register_manifest(EntryPoint(name, value, group).load()())
    assert not registry.get_model_class("tdrs").is_simple
    assert registry.get_model_class("tdrs", force_simple=True).is_simple


def model_of(arguments: str, simple: bool = False) -> Any:
    """The model that a command names."""
    from tdrs.lmms_eval_model import ChatModel, SimpleModel

    return (SimpleModel if simple else ChatModel).create_from_arg_string(arguments, {"batch_size": "8"})


def test_its_evaluator_gets_what_our_evaluation_gives(mini_llava: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "data" / "test-0.parquet"
    file.parent.mkdir()
    mini_pope.dataset("held_out", 3).to_parquet(file)
    theirs = evaluated(model_of("backbone=mini_llava,intervention=tdrs"), "pope", file)
    benchmark = benchmarks.from_settings({"name": "lmms_eval", "task": "pope", "source": str(file), "tuning_share": 0})
    ours = evaluate(mini_llava, benchmark, benchmarks.load(benchmark, "held_out"), TDRS(), batch_size=8)
    said = {sample["doc_id"]: sample["filtered_resps"][0] for sample in theirs["samples"]["copy"]}
    assert [said[int(record.id)] for record in ours.records] == [record.prediction for record in ours.records]
    assert len(ours.records) == 54
    assert 0 < ours.metrics["accuracy"] < 1
    printed = theirs["results"]["copy"]
    for name in ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio"):
        assert printed[f"{name},none"] == ours.metrics[name], name


def test_rated_answers_are_those_of_our_evaluation(mini_llava: Backbone, tmp_path: Path) -> None:
    choices = {"choice_a": "red", "choice_b": "blue", "choice_c": "green", "choice_d": "a dark yellow"}
    rows = [
        {"image": [draw(n)], "question": f"What is {n}?", "answer": "ABCD"[n % 4], "data_type": "image"} | choices
        for n in range(6)
    ]
    features = {"image": datasets.List(PICTURE), "question": TEXT, "answer": TEXT, "data_type": TEXT}
    write(rows, {**features, **dict.fromkeys(choices, TEXT)}, tmp_path / "test-0.parquet")
    theirs = evaluated(model_of("backbone=mini_llava", simple=True), "seedbench_ppl", tmp_path / "test-0.parquet")
    settings = {"name": "lmms_eval", "task": "seedbench_ppl", "source": str(tmp_path), "tuning_share": 0}
    benchmark = benchmarks.from_settings(settings)
    ours = evaluate(mini_llava, benchmark, benchmarks.load(benchmark, "held_out"), TDRS(sd=False, dc=None, re=None), 8)
    for record, sample in zip(ours.records, theirs["samples"]["copy"], strict=True):
        losses = [loss for loss, _ in json.loads(record.prediction)]
        assert losses == pytest.approx([loss for loss, _ in sample["filtered_resps"]], abs=1e-4)
        assert record.answer == list(choices.values())[losses.index(min(losses))]
    assert theirs["results"]["copy"]["acc,none"] == ours.metrics["acc"] == ours.metrics["accuracy"]


def test_several_pictures_of_a_request(mini_llava: Backbone, tmp_path: Path) -> None:
    """Its evaluator gets what ours gives; all pictures stand in front of the text."""
    choices = {f"choice_{letter}": f"is {letter}" for letter in "abcd"}
    rows = [
        {"image": [draw(n), draw(n + 1)][: 1 + n % 2], "question": f"Are {n} the same?", "answer": "ABCD"[n % 4]}
        | {"data_type": "image", "question_id": str(n), **choices}
        for n in range(6)
    ]
    features = {
        "image": datasets.List(PICTURE),
        "question": TEXT,
        "answer": TEXT,
        "data_type": TEXT,
        "question_id": TEXT,
    }
    write(rows, {**features, **dict.fromkeys(choices, TEXT)}, tmp_path / "test-0.parquet")
    theirs = evaluated(model_of("backbone=mini_llava,intervention=tdrs"), "seedbench", tmp_path / "test-0.parquet")
    settings = {"name": "lmms_eval", "task": "seedbench", "source": str(tmp_path), "tuning_share": 0}
    benchmark = benchmarks.from_settings(settings)
    samples = benchmarks.load(benchmark, "held_out")
    assert [len(sample.images) for sample in samples] == [1, 2] * 3
    assert samples[1].images[1].getpixel((0, 0)) == draw(2).getpixel((0, 0))
    ours = evaluate(mini_llava, benchmark, samples, TDRS(), batch_size=8)
    said = {sample["doc_id"]: sample["resps"][0][0] for sample in theirs["samples"]["copy"]}
    assert [said[int(record.id)] for record in ours.records] == [record.prediction for record in ours.records]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"backbone": "mini_llava", "intervention": "tdrs", "gian": "weights"}, "intervention.gian"),
        ({"backbone": "mini_lava"}, "backbone"),
        ({"intervention": "tdrs", "gain": "large"}, "intervention.gain"),
        ({"backbone.dtype": "int4"}, "backbone.dtype"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], named: str) -> None:
    from tdrs.lmms_eval_model import planned

    with pytest.raises(SettingError, match=rf"^{named} = "):
        planned(arguments)


def test_a_bad_argument_of_the_command_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from tdrs.lmms_eval_model import ChatModel

    with pytest.raises(SystemExit) as end:
        ChatModel.create_from_arg_string("backbone=mini_llava,intervention=tdrs,gain=large", {"batch_size": 1})
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: intervention.gain = 'large': must be one of ")


def test_a_batch_size_and_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tdrs.lmms_eval_model import ChatModel, planned

    for given in ("auto", "-1", "1.5"):
        with pytest.raises(SettingError, match=rf"^batch_size = '{given}': must be a whole number of at least 1$"):
            planned({}, given)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match=r"^WORLD_SIZE = '2': must be 1; backbone.device=spread uses all GPUs$"):
        ChatModel(backbone="mini_llava")


def request(generation: dict[str, Any], messages: Any) -> Any:
    arguments = ("Is it?", lambda row: messages, generation, 0, "odd", "test")
    return SimpleNamespace(args=arguments, task_name="odd", doc_id=0)


TURN = [{"role": "user", "content": [{"type": "image", "url": draw(1)}, {"type": "text", "text": "Is it?"}]}]
REFUSED: list[tuple[dict[str, Any], Any, str]] = [
    ({"temperature": 0.7}, TURN, "gen_kwargs = 'temperature=0.7': answers are greedy, such as with --gen_kwargs temp"),
    ({"num_beams": 4}, TURN, "gen_kwargs = 'num_beams=4': answers are greedy, such as with --gen_kwargs temperature=0"),
    ({"max_new_tokens": "many"}, TURN, "max_new_tokens = 'many': must be a whole number of at least 1"),
    ({}, [*TURN, *TURN], "tasks = 'odd': row 0 has turns of ['user', 'user'], not one turn of the user"),
    ({}, [{"role": "user", "content": "Is it?"}], "tasks = 'odd': row 0 has no picture"),
]


@pytest.fixture(scope="module")
def chat() -> Any:
    found = model_of("backbone=mini_llava")
    found._ends = False
    found.task_dict["odd"] = {"test": [{}]}
    return found


@pytest.mark.parametrize(("generation", "messages", "message"), REFUSED, ids=[one[2] for one in REFUSED])
def test_a_request_that_cannot_be_asked_is_named(
    chat: Any, generation: dict[str, Any], messages: Any, message: str
) -> None:
    with pytest.raises(SettingError) as error:
        chat.generate_until([request(generation, messages)])
    assert str(error.value).startswith(message)
    chat._ends = True
    with pytest.raises(SystemExit) as end:
        chat.generate_until([request(generation, messages)])
    chat._ends = False
    assert end.value.code == 2


def test_several_rounds_are_refused(chat: Any) -> None:
    with pytest.raises(SettingError, match=r"^tasks = 'odd': asks several rounds; only single questions can be asked$"):
        chat.generate_until_multi_round([request({}, TURN)])
