"""The speed command at its smallest size: its measurements add up, and its files can be read."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tdrs import side_by_side, speed
from tdrs.interventions import METHODS
from tdrs.spans import PARTS
from tdrs.speed import main, medians
from tdrs.study_speed import without_work

EDITS = {name for name, kind in METHODS.items() if kind().edits_attention}
ACTIVE = {name for name, kind in METHODS.items() if kind().active}


def test_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # its kernel is not what is tested
    for name, fewer in (("EVALUATED", 8), ("DECODED", 2)):
        monkeypatch.setattr(speed, name, fewer)
    assert main(["attention", "lengths=33,64", "rounds=1", f"output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "time as a ratio to SDPA" in printed
    assert "prefill" in printed
    found = json.loads((tmp_path / "benchmark" / "attention.json").read_text())
    ways = {row["way"] for row in found["attention"]}
    assert ways == {"SDPA", "eager", "tdrs, reference", "tdrs, blocked", "FlexAttention, no edit", *EDITS}
    for row in (row for row in found["attention"] if row["way"] != "FlexAttention, no edit"):
        stock = next(r for r in found["attention"] if (r["way"], r["length"]) == ("SDPA", row["length"]))
        assert row["ratio"] == pytest.approx(row["seconds"] / stock["seconds"])
        assert row["mib"] > 0
    assert {row["way"] for row in found["model"] if "decode" in row} == {"stock", *EDITS}
    assert {row["way"] for row in found["model"]} == {
        "stock",
        *(name for name, kind in METHODS.items() if kind().active),
    }
    assert (tmp_path / "benchmark" / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_sweep(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["experiment=sqa_ablation", "dataset=mini_pope", "preset=smoke"]
    assert main(["sweep", *options, f"output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "trials an hour" in printed
    assert "the model does not compute in" in printed
    assert "the GPU runs no kernel" not in printed
    found = json.loads((tmp_path / "benchmark" / "sweep_sqa_ablation_mini_pope.json").read_text())
    assert found["evaluations"] <= found["trials"]
    assert found["ratio"] == pytest.approx(found["loop_seconds"] / found["engine_seconds"])
    assert 0 < found["framework_share"] < 1
    saved = sum(found["saved_seconds"].values())
    measuring = found["engine_seconds"] * (1 - found["framework_share"])
    assert found["loop_seconds"] == pytest.approx(measuring + saved)  # nothing is counted twice, nothing left out
    assert set(found["division_seconds"]) == set(PARTS)
    assert found["no_forward_share"] == 1  # no model computes here
    assert found["no_kernel_share"] == {}
    assert len(found["samples_a_second"]) == 3
    assert all(rate > 0 for rate in found["samples_a_second"].values())
    assert (tmp_path / "benchmark" / "sweep_sqa_ablation_mini_pope.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark"}  # its study is gone


def test_time_without_a_kernel() -> None:
    assert without_work([(10, 20), (0, 4), (12, 15), (18, 24), (32, 40)]) == pytest.approx((6 + 8) / 40)
    assert without_work([(3, 3)]) == 0
    assert without_work([]) is None


def test_runs_take_turns() -> None:
    order: list[str] = []
    medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == list("abab" + "ab")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["speed"], "verb = 'speed': must be one of attention, sweep, neighbours"),
        (["attention", "lengths=0"], "lengths = '0': must be different whole numbers from 1 to 999999"),
        (["attention", "lengths=64,64"], "lengths = '64,64': must be different whole numbers from 1 to 999999"),
        (["attention", "rounds=2,3"], "rounds = '2,3': must be a whole number from 1 to 999999"),
        (["attention", "backbone=x"], "backbone = 'x': must be one of "),
        (["attention", "--foo"], "option = '--foo': must be lengths=…, rounds=…, backbone=…, output=…"),
        (["sweep", "lengths=3"], "option = 'lengths': must be one of experiment, backbone, dataset, preset, output"),
        (["sweep", "backbone=mini_lava"], "backbone = 'mini_lava': must be one of "),
        (["sweep", "experiment=nothing"], "experiment = 'nothing': must be one of distance"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*arguments, f"output={tmp_path}"]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[int, bool]] = []

    def seconds(count: int, variables: Mapping[str, str]) -> float:
        asked.append((count, bool(variables)))
        return 2.0 * count if variables else 1.0

    monkeypatch.setattr(side_by_side, "_side_by_side", seconds)
    assert main(["neighbours", "rounds=2", f"output={tmp_path}"]) == 0
    assert asked == [(1, False), (2, False), (1, True), (2, True)] * 2
    assert "by OpenMP's defaults  alone    2.0    two side by side    4.0" in capsys.readouterr().out
    assert json.loads((tmp_path / "benchmark" / "neighbours.json").read_text())["seconds"]
