"""Tasks of lmms-eval as a data set: our records give what its own evaluator prints for the same answers."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tdrs import benchmarks
from tdrs.benchmarks.lmms_request import question_of
from tdrs.benchmarks.sources import BadRow
from tests.benchmarks import lmms_rows

quiet_library = lmms_rows.quiet_library
PICTURE = Image.new("RGB", (8, 8))
lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")


def stub(answers: Sequence[Any]) -> Any:
    """A model of lmms-eval that gives these answers to the rows in their order, and keeps what it was asked."""
    from lmms_eval.api.model import lmms

    class Stub(lmms):
        is_simple = False
        prompts: list[Any] = []  # noqa: RUF012

        def generate_until(self, requests: list[Any]) -> list[str]:
            given = [request.args for request in requests]
            self.prompts += [messages(self.task_dict[task][split][row]) for _, messages, _, row, task, split in given]
            return [answers[row] for _, _, _, row, _, _ in given]

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    return Stub()


def printed(name: str, folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The aggregates in the table of lmms-eval over the same files, by metric."""
    from lmms_eval.__main__ import parse_eval_args

    from tdrs.benchmarks.lmms_definition import definition

    config = definition(name).config.get("dataset_name")
    (file,) = [file for file in folder.rglob("*.parquet") if config is None or config in str(file)]
    images = next(folder.glob("testdev_balanced_images/*"), None)
    if images:  # GQA's function loads its pictures from the hub
        load = datasets.load_dataset

        def local(path: str, *names: str, **more: Any) -> Any:
            if path.endswith("/GQA"):
                return load("parquet", data_files={"testdev": str(images)}, split="testdev")
            return load(path, *names, **more)

        monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr(sys, "argv", ["lmms_eval", "--output_path", str(folder)])
    _, command = parse_eval_args()  # the defaults of its command
    results: dict[str, Any] = lmms_rows.evaluated(model, name, file, command)["results"]["copy"]
    return results


@pytest.mark.parametrize("name", lmms_rows.TASKS)
def test_records_give_what_its_evaluator_prints(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = lmms_rows.answers(name, tmp_path)
    benchmark = benchmarks.from_settings(
        {"name": "lmms_eval", "task": name, "source": str(tmp_path), "tuning_share": 0}
    )
    samples = benchmarks.load(benchmark, "held_out")
    records = [benchmark.score(answers[int(sample.id)], sample) for sample in samples]
    metrics = benchmark.metrics(records)
    model = stub(answers)
    theirs = printed(name, tmp_path, model, monkeypatch)
    compared = {
        key.partition(",")[0]: value
        for key, value in theirs.items()
        if "," in key and "stderr" not in key and value is not None
    }
    assert compared
    assert compared == {key: value for key, value in metrics.items() if key != "accuracy"}
    for sample, (turn,) in zip(samples, model.prompts, strict=True):
        image, text = turn["content"]
        assert text["text"] == sample.prompt
        assert np.array_equal(np.asarray(image["url"]), np.asarray(sample.image))
    assert len({record.score for record in records}) > 1


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["a", PICTURE, "b", PICTURE], "text between its 2 pictures, which must stand together"),
        ([PICTURE, PICTURE, "what is in <image 2>?"], "'<image 2>' in its text, which gives each of its 2 pictures"),
        (["a"], "no picture"),
        ([3], "a picture of type int"),
    ],
)
def test_a_question_that_cannot_be_asked(parts: list[Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        question_of(turn(parts))


def test_pictures_that_stand_together() -> None:
    before, prompt, images = question_of(turn(["Look: ", PICTURE, PICTURE, "what?"]))
    assert (before, prompt, images) == ("Look: ", "what?", (PICTURE, PICTURE))
    assert question_of(turn([PICTURE, "what is in <image 1>?"])).prompt == "what is in <image 1>?"


def turn(parts: list[Any]) -> list[Any]:
    """A turn of the user with texts and pictures."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part} for part in parts
    ]
    return [{"role": "user", "content": content}]
