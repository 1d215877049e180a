"""The doctor on the embedded default: every finding, and what it says where something is wrong."""

from pathlib import Path
from typing import Any

import pytest

from tdrs import intervene
from tdrs.backbones import Backbone
from tdrs.benchmarks import scienceqa
from tdrs.benchmarks.benchmark import Rule
from tdrs.configuration import compose, plain, run
from tdrs.doctor import Finding, examine, main_doctor
from tdrs.interventions import tdrs_loop
from tdrs.interventions.temperature import Temperature
from tdrs.published import Comparison, Published, published
from tdrs.statistics import Interval

FINDINGS = ["files", "data", "model", "prompt", "tokens", "off", "cost", "features", "study", "score"]


def findings(output: Path, *overrides: str) -> dict[str, Finding]:
    given = ["samples=12", "batch_size=4", "preset=smoke", f"output={output}", *overrides]
    return {finding.what: finding for finding in examine(plain(compose("doctor", given)))}


def test_all_is_well_with_the_embedded_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["samples=12", "batch_size=4", "preset=smoke", "dataset.gap=32", f"output={tmp_path}"]
    assert run("doctor", main_doctor, "", words) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line[:1].strip()][:-1] == FINDINGS
    assert "<image>×16" in said
    assert "16 image tokens a prompt, 16 features a picture: equal" in said
    assert "equal bit for bit" in said
    assert "published: accuracy 1.000 (the card of mini_llava)" in said
    assert "8 tuning and 12 held-out samples" in said
    assert "all is as it should be" in said
    assert len(list((tmp_path / "records").iterdir())) == 1  # the stock evaluation, kept as any other is


def test_a_second_pass_has_its_cost(tmp_path: Path) -> None:
    lines = findings(tmp_path, "intervention=pai", "search=grid", "++search.space={intervention.gamma: [1.1, 2]}")[
        "cost"
    ].lines
    assert lines[1] == "PAI combines two forward passes: 8 rows at a time, and a cache of both"
    assert "each prompt read whole" in lines[2]
    words = ["intervention=vcd", "search=grid", "++search.space={intervention.noise_step: [300, 500]}"]
    assert "each also in 2 changed forms" in findings(tmp_path, *words)["features"].lines[0]


def test_a_missing_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tdrs_loop, "_edit", lambda: None)
    assert "faster with gcc or clang" in findings(tmp_path)["cost"].lines[-1]
    assert "gcc" not in str(findings(tmp_path, "attention.execution=blocked")["cost"].lines)


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seam that changes the stock model, a picture with a feature too few, a cache that is too small, a bad score."""
    look = Backbone.image_embeddings
    monkeypatch.setattr(Backbone, "image_embeddings", lambda self, picture: look(self, picture)[:15])
    monkeypatch.setattr(Backbone, "model_inputs", lambda self, samples, second=None: dict(self.inputs(samples)))
    monkeypatch.setattr("tdrs.backbones.backbone.read_common", lambda *_: None)
    monkeypatch.setattr(Backbone, "intervene", lambda self, *_: intervene(self.model, Temperature(tau=0.9)))
    monkeypatch.setitem(scienceqa.RULES, "llava", Rule(lambda prediction, sample: ""))
    found = findings(tmp_path, "dataset.gap=32", "features_gib=0.000001")
    assert [what for what, finding in found.items() if not finding.good] == ["tokens", "off", "features", "score"]
    assert "UNEQUAL" in found["tokens"].lines[0]
    assert "DIFFERENT" in found["off"].lines[0]
    assert "MORE than features_gib keeps" in found["features"].lines[1]
    assert "-100.0 points off" in found["score"].lines[1]


def test_a_score_inside_its_own_interval_is_no_alarm(tmp_path: Path) -> None:
    """12 samples at gap 256: some .4, whatever the card's 500 gave."""
    score = findings(tmp_path)["score"]
    assert score.good


@pytest.mark.parametrize(
    ("overrides", "value"),
    [
        (["dataset.gap=256"], 0.454),
        (["dataset.gap=256", "dataset.filler=before_image"], 0.742),
        (["dataset.gap=0", "dataset.blank=true"], 0.316),
        (["dataset.gap=100"], None),
        (["dataset.gap=0", "dataset.seed=1"], None),
        (["dataset.gap=0", "dataset.prompt=internvl"], None),
        (["backbone=mini_qwen2_5_vl", "dataset=mini_gqa", "dataset.gap=16"], 0.904),
        (["backbone=llava_1_5_7b", "dataset=scienceqa"], 0.679),
        (["backbone=qwen2_5_vl_7b", "dataset=pope"], 0.864),
        (["backbone=qwen2_5_vl_7b", "dataset=pope", "dataset.gap=8"], None),
        (["backbone=llava_1_5_7b"], None),
        (["backbone=internvl2_8b", "dataset=textvqa"], 0.774),  # the paper's 79.1 is InternVL2.5's
        (["backbone=llava_1_5_7b", "dataset=gqa", "dataset.rule=official"], None),
        (["backbone=llava_1_5_7b", "dataset=gqa", "backbone.system=null"], None),
        (["backbone=llava_1_5_7b", "dataset=gqa", "backbone.image.do_pad=false"], None),
        (["backbone=llava_1_5_7b", "dataset=gqa", "backbone.source=embedded:mini_llava"], None),
        (["backbone=llava_1_5_7b", "dataset=gqa", "backbone.source=llava-hf/llava-1.5-13b-hf"], None),
        (["backbone=internvl2_8b", "dataset=gqa", "backbone.source=OpenGVLab/InternVL2_5-8B-MPO-hf"], None),
        (["backbone=internvl2_5_8b_mpo", "dataset=gqa"], None),
        (["dataset=mini_textvqa", "dataset.ocr_tokens=true"], None),
    ],
)
def test_published_scores(overrides: list[str], value: float | None) -> None:
    config: dict[str, Any] = plain(compose("evaluate", overrides))
    known = published(config["backbone"], config["dataset"])
    if value is None:
        assert isinstance(known, str)
        assert len(known) > 10
        return
    assert not isinstance(known, str)
    assert known.value == pytest.approx(value)
    assert known.metric == ("F1" if config["dataset"]["name"] == "pope" else "accuracy")


def test_a_stock_score_is_off_where_chance_does_not_explain_it() -> None:
    """More than 3 points away, and the published score outside of the interval, however few samples there are."""
    known = Published(0.62, "accuracy", "the paper's LLaVA-1.5-7B")
    for low, value, high, n, far, off in (
        (0.0, 0.01, 0.03, 200, True, True),  # plain equality on capital letters
        (0.50, 0.57, 0.64, 200, True, False),
        (0.56, 0.57, 0.58, 12578, True, True),
        (0.59, 0.60, 0.61, 12578, False, False),
        (0.3, 0.61, 0.9, 8, False, False),
    ):
        found = Comparison(known, Interval(value, low, high), n)
        assert (found.far, found.off) == (far, off)
        assert (
            f"is {100 * (value - 0.62):+.1f} points off the published 62.0 % (the paper's LLaVA-1.5-7B)"
            in found.sentence
        )
        assert f"[{100 * (low - 0.62):+.1f}, {100 * (high - 0.62):+.1f}], n = {n}" in found.sentence
        assert found.sentence.endswith("too few samples to tell") == (far and not off)


def test_the_commands_own_settings_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", main_doctor, "", ["samples=0"]) == 2
    assert "samples = 0: must be a whole number of at least 1" in capsys.readouterr().err
    assert run("doctor", main_doctor, "", ["backbone=llava_1_5_7b"]) == 2
    assert "hf download llava-hf/llava-1.5-7b-hf" in capsys.readouterr().err
