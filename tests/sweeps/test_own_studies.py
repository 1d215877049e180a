"""Studies of a user's own questions about pictures and about passages, and what the commands say of them afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tdrs import study as study_command
from tdrs.analysis import distance, report
from tdrs.sweeps.folder import read_outcome
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker
from tests.benchmarks.test_text import language_model

from .pretend import configuration

METHODS = {"sharper": {"intervention": "temperature", "intervention.tau": 0.3}}
TEXT = [{"dataset.gap": 0}, {"dataset.gap": 9}, {"dataset.gap": 9, "dataset.filler": "before_image"}]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pictures(folder: Path) -> list[dict[str, Any]]:
    """Questions about one picture, and about two."""
    for number in range(16):
        Image.new("RGB", (8, 8), (16 * number, 0, 99)).save(folder / f"{number}.png")
    one = [{"image": f"{n}.png", "question": f"Is it red, {n}?", "answer": "yes"} for n in range(8)]
    return one + [{**row, "image": [f"{n + 8}.png", f"{n}.png"], "answer": "no"} for n, row in enumerate(one)]


def run(output: Path, axes: Any, *overrides: str, tracking: str = "none") -> Study:
    config = configuration(output, "search=compare", *overrides, axes=axes, methods=METHODS)
    study = Study(config, Tracker(tracking, output))
    study.run()
    return study


def commands_find_no_fault(output: Path, capsys: pytest.CaptureFixture[str], *more: str) -> None:
    for words in (*(["show", "small"], ["export", "small"], ["check"], ["prune"]), *([verb, "small"] for verb in more)):
        assert study_command.main([*words, f"output={output}"]) == 0, words
    said = capsys.readouterr().out
    assert "no faults" in said
    assert "0 records that no study" in said


def test_of_pictures(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = pictures(tmp_path)
    source = write(tmp_path, rows)
    given = [f"dataset.source={source}", "dataset.rule=yes_no", "dataset.tuning_share=0"]
    output = tmp_path / "out"
    study = run(output, {"dataset.gap": [0]}, "dataset=own", *given, tracking="mlflow")
    commands_find_no_fault(output, capsys, "sync")

    def page() -> str:
        outcome = read_outcome(study.folder)
        (changed,) = report.study_report(outcome, study.records, study.folder).changed.values()
        return changed[0].shown[0].prompt

    whole = page()
    assert "[image]" in whole
    write(tmp_path, rows[::-1])  # another row has the number of each answer
    commands_find_no_fault(output, capsys)
    assert "[image]" not in page()


def test_of_passages(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    language_model(tmp_path / "model")
    rows = [{"passage": f"Bob was {n}.", "question": "Who was it?", "answer": f"Bob {n}"} for n in range(12)]
    model = ["backbone=language_model", f"backbone.source={tmp_path / 'model'}"]
    given = [f"dataset.source={write(tmp_path, rows)}", "dataset.tuning_share=0", "dataset.gap=0"]
    output = tmp_path / "out"
    study = run(output, {"text": TEXT}, *model, "dataset=text", *given)
    commands_find_no_fault(output, capsys)
    curves = distance.distance_curves(read_outcome(study.folder))
    assert [panel.media for panel in curves] == ["passage"]
    labels = [str(handle.get_label()) for handle in distance._legend(curves, ["stock", *METHODS])]
    assert labels[2:] == ["text between passage and question", "the same text before the passage"]
    text = distance.write_distance(curves, study.folder)[-1].read_text()
    assert "— the same text before the passage" in text
    assert "blank passages" in text
