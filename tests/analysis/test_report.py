"""From stored records to evidence, tables and the page: right numbers, right words, nothing from the network."""

import base64
import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from tdrs import backbones, published
from tdrs import evaluation as evaluation_module
from tdrs.analysis import distance, evidence, report, summary, tables
from tdrs.analysis.changed_answers import _thumbnail
from tdrs.benchmarks import mini_textvqa, pope
from tdrs.benchmarks.benchmark import Passage, Picture, PictureSet, Sample
from tdrs.configuration import compose, plain
from tdrs.records import Records
from tdrs.statistics import holm, mcnemar, sign_flip
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import FAILED, Outcome
from tdrs.tracking import Tracker

from ..sweeps import pretend
from ..sweeps.pretend import configuration

METHODS = {
    "same": {"intervention": "temperature", "intervention.tau": 1.0},
    "other": {"intervention": "temperature", "intervention.tau": 0.3},
    "tuned": {"intervention": "temperature", "tune": {"intervention.tau": {"low": 0.2, "high": 0.9}}},
}


def made(output: Path, datasets: Any = ("mini_scienceqa", "mini_pope")) -> Outcome:
    config = configuration(output, "search=compare", axes={"dataset": list(datasets)}, methods=METHODS, budget=3)
    config["preset"] = {"tuning": 8, "held_out": 40}
    return Study(config, Tracker("none", output), command="python -m tdrs.sweep +experiment=mine").run()


def test_thumbnails_show_all_pictures_of_a_sample() -> None:
    parts = [Picture.of(Image.new("RGB", size, "red")) for size in ((40, 30), (400, 200))]
    one, several = parts[0], PictureSet.of_parts(lambda: parts)
    sizes = []
    for picture in (one, several):
        address = _thumbnail(Sample("0", "", picture, "?", "?", "yes"))
        sizes.append(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size)
    assert sizes == [(40, 30), (40 + 4 + 160, 80)]
    assert _thumbnail(Sample("0", "", Passage.of_text("a text"), "?", "?", "yes")) == ""


def test_evidence_is_what_the_tests_say_of_the_records(tmp_path: Path, pretended: list[str]) -> None:
    outcome, records = made(tmp_path), Records(tmp_path / "records")
    found = evidence.compare_rows(outcome, records)
    assert [one.trial.name for one in found] == ["stock", "same", "other", "tuned"] * 2
    raw = []
    for one in found:
        stock = next(o for o in found if o.condition == one.condition)
        before, after = (records.read(o.trial.cache_key).records for o in (stock, one))
        if one.difference is None:
            assert one is stock
            continue
        first, second = ([r.score for r in part] for part in (before, after))
        assert one.discordant == mcnemar(first, second)
        assert one.difference.value == pytest.approx(one.accuracy.value - stock.accuracy.value)
        weights, images = [r.weight for r in before], [r.image_id for r in before]
        assert one.p == sign_flip(first, second, images, weights)
        raw.append(one.p)
        if "pope" in one.condition:
            assert one.measures["F1"] == pope.intervals(after)["f1"]
            assert one.differences["F1"] == pope.difference(before, after)
        else:
            assert one.measures == {}
    assert [one.p_holm for one in found if one.difference] == pytest.approx(holm(raw))
    same = found[1]
    assert same.discordant == (0, 0, 1.0)
    assert same.sentence == "no difference shown: +0.0 [+0.0, +0.0], n = 40; could have shown 15.0"


def _one(low: float, high: float, p: float) -> evidence.Evidence:
    from tdrs.statistics import Interval
    from tdrs.sweeps.trial import Trial

    nothing = Interval(0.5, 0.4, 0.6)
    trial = Trial("x", "held_out", {}, {}, "0", 2000)
    middle = Interval((low + high) / 2, low, high)
    return evidence.Evidence(trial, "", nothing, middle, None, p, p, 0.021, {}, {})


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (-0.019, 0.011, 0.7, "no difference shown: -0.4 [-1.9, +1.1], n = 2000; could have shown 2.1"),
        (0.01, 0.03, 0.2, "no difference shown after correction: +2.0 [+1.0, +3.0], n = 2000; could have shown 2.1"),
        (0.01, 0.03, 0.0121, "better: +2.0 [+1.0, +3.0], n = 2000, p = .012"),
        (-0.03, -0.01, 0.00001, "worse: -2.0 [-3.0, -1.0], n = 2000, p < .001"),
    ],
)
def test_sentences_are_made_from_the_numbers(low: float, high: float, p: float, said: str) -> None:
    assert _one(low, high, p).sentence == said


def test_tables_in_three_forms(tmp_path: Path, pretended: list[str]) -> None:
    outcome = made(tmp_path)
    lines = tables.table_rows(outcome, evidence.compare_rows(outcome, Records(tmp_path / "records")))
    assert [line.measure for line in lines] == ["accuracy"] * 4 + ["accuracy", *pope.MEASURES] * 4
    paths = tables.write_tables(lines, tmp_path)
    with paths[2].open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [line.value[0] for line in lines]
    assert [row["tuning_trials"] for row in rows[:4]] == ["0", "0", "0", "3"]
    markdown = paths[0].read_text()
    assert markdown.count("| tuned |") == 2 + len(pope.MEASURES)
    assert f"| stock | accuracy | {lines[0].value[0]:.1f} [" in markdown
    latex = paths[1].read_text()
    assert latex.count(r"\multicolumn{8}{l}") == 2
    for line in latex.splitlines():
        if "&" in line:
            assert line.replace(r"\&", "").count("&") == 7


def test_the_papers_numbers_stand_beside_rows_at_its_settings(tmp_path: Path, pretended: list[str]) -> None:
    config = configuration(tmp_path, "search=compare", axes={"dataset": ["mini_scienceqa", "mini_pope", "mini_gqa"]})
    config["search"]["methods"] = {
        "+ SD": {"intervention.dc": None, "intervention.re": None},
        "+ SD + DC, logits": {"intervention.re": None},
        "by another name": {"intervention.gain": "weights", "intervention.re.weight": {"pope": 1, "other": 0.8}},
        "T-DRS": {"intervention.re.weight": 0.5},
        "T-DRS, tuned": {"tune": {"intervention.dc.weight": [1, 2]}},
    }
    config["search"]["budget"] = 2
    outcome = Study(config, Tracker("none", tmp_path)).run()
    lines = tables.table_rows(outcome, evidence.compare_rows(outcome, Records(tmp_path / "records")))
    said = [line.reported for line in lines if line.measure in ("accuracy", "F1")]
    assert said[:6] == [67.9, 68.1, 68.8, 69.2, None, None]
    assert said[6:18] == [None, 85.7, None, 85.8, None, 86.0, None, 86.1, None, None, None, None]
    assert said[18:] == [62.0, None, None, 63.1, None, None]
    assert {line.model for line in lines if line.reported} == {"LLaVA-1.5-7B"}


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (["backbone=llava_1_5_7b", "dataset=scienceqa"], (69.2, "LLaVA-1.5-7B")),
        (["backbone=llava_1_5_7b", "dataset=scienceqa", "intervention=none"], (67.9, "LLaVA-1.5-7B")),
        (["backbone=llava_1_5_7b", "dataset=scienceqa", "intervention.gain=weights"], (69.2, "LLaVA-1.5-7B")),
        (["backbone=llava_1_5_7b", "dataset=scienceqa", "intervention.sd_form=full"], None),
        (["backbone=llava_1_5_7b", "dataset=scienceqa", "intervention.layers=[0]"], None),
        (["backbone=llava_1_5_7b", "dataset=scienceqa", "dataset.gap=256"], None),
        (["backbone=llava_1_5_7b", "dataset=scienceqa", "dataset.blank=true"], None),
        (["backbone=llava_1_5_7b", "dataset=scienceqa", "backbone.system=null"], None),
        (["backbone=llava_1_5_7b", "dataset=scienceqa", "backbone.source=me/other"], None),
        (["backbone=llava_1_5_7b", "dataset=pope"], None),  # λ_re is 1 there
        (["backbone=llava_1_5_7b", "dataset=pope", "intervention.re.weight=1"], (86.1, "LLaVA-1.5-7B")),
        (["backbone=llava_1_5_7b", "dataset=mini_gqa"], None),
        (["backbone=mini_llava", "dataset=mini_gqa", "dataset.gap=256"], (63.1, "LLaVA-1.5-7B")),
        (["backbone=mini_llava", "dataset=mini_gqa", "dataset.rule=official"], None),
        (["backbone=mini_llava", "dataset=mini_gqa", "intervention=temperature"], None),
        (["backbone=internvl2_5_8b_mpo", "dataset=scienceqa"], None),
    ],
)
def test_the_papers_numbers_go_by_settings(given: list[str], value: tuple[float, str] | None) -> None:
    assert published.reported(plain(compose("evaluate", ["intervention=tdrs", *given]))) == value


def test_a_place_says_what_a_data_set_brings(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    outcome = Outcome("small", "compare", config, [], [])
    for condition, said in (
        ({}, "mini_llava, mini_scienceqa, gap 4"),
        ({"dataset": "mini_scienceqa"}, "mini_llava, mini_scienceqa, gap 256"),
        ({"dataset": "mini_pope"}, "mini_llava, mini_pope"),
        ({"dataset.gap": 0}, "mini_llava, mini_scienceqa, gap 0"),
        (
            {"dataset": "mini_scienceqa", "dataset.filler": "before_image", "batch_size": 3},
            "mini_llava, mini_scienceqa, gap 256, filler before_image, batch_size 3",
        ),
        ({"dataset": "mini_pope", "dataset.blank": True}, "mini_llava, mini_pope, blank True"),
    ):
        assert evidence.condition_name(outcome, condition) == said


def test_the_curves_over_distance_hold_only_like_points(tmp_path: Path, pretended: list[str]) -> None:
    """Another rule or batch size is another panel; a data set's own distance counts; blank pictures without text."""
    axes = {
        "dataset": ["mini_scienceqa", "mini_gqa"],
        "text": [{"batch_size": 4}, {"dataset.gap": 0}, {"dataset.gap": 8, "dataset.filler": "before_image"}],
        "dataset.blank": [True, False],
        "dataset.seed": [0, 1],
    }
    config = configuration(tmp_path, "search=compare", axes=axes, methods={"same": METHODS["same"]})
    outcome = Study(config, Tracker("none", tmp_path)).run()
    panels = {(panel.backbone, panel.dataset): panel for panel in distance.distance_curves(outcome)}
    names = [
        "mini_scienceqa, batch_size 4, seed 0", "mini_scienceqa, batch_size 4, seed 1",
        "mini_scienceqa, seed 0", "mini_scienceqa, seed 1",
        "mini_gqa, batch_size 4, seed 0", "mini_gqa, batch_size 4, seed 1",
        "mini_gqa, seed 0", "mini_gqa, seed 1",
    ]  # fmt: skip
    assert sorted(panels) == sorted(("mini_llava", name) for name in names)
    scores = {str(row.condition | {"row": row.name}): row.score for row in outcome.rows}
    for (_, name), panel in panels.items():
        condition = {"dataset": name.split(",")[0]}
        seed = int(name[-1])
        own = 256 if "scienceqa" in name else 0
        line = {key: [(p.gap, p.accuracy) for p in points] for key, points in panel.lines.items()}
        text: dict[str, Any]
        if "batch_size" in name:
            text = {"batch_size": 4}
            assert line["stock", "between"] == [
                (own, scores[str(condition | text | {"dataset.blank": False, "dataset.seed": seed, "row": "stock"})])
            ]
            blank = scores[str(condition | text | {"dataset.blank": True, "dataset.seed": seed, "row": "stock"})]
            assert panel.blank == blank if own == 0 else math.isnan(panel.blank)
        else:
            assert [gap for gap, _ in line["same", "before_image"]] == [0, 8]
            text = {"dataset.gap": 0, "dataset.blank": True, "dataset.seed": seed, "row": "stock"}
            assert panel.blank == scores[str(condition | text)]
    assert distance.write_distance(list(panels.values()), tmp_path)[0].exists()


def test_f1_goes_by_the_rule_of_its_place(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the answers say neither yes nor no: `official` takes these for no, `lmms_eval` leaves them out."""
    axes = {"dataset": ["mini_pope"], "dataset.rule": ["official", "lmms_eval"]}
    config = configuration(tmp_path, "search=compare", axes=axes, methods={"other": METHODS["other"]})
    config["preset"] = {"tuning": 8, "held_out": 60}
    outcome = Study(config, Tracker("none", tmp_path)).run()
    records = Records(tmp_path / "records")
    found = evidence.compare_rows(outcome, records)
    seen = set()
    for one in found:
        rule = one.trial.condition["dataset.rule"]
        assert one.measures["F1"] == pope.intervals(records.read(one.trial.cache_key).records, rule)["f1"]
        seen.add((one.trial.name, one.measures["F1"].value))
        if one.difference:
            stock = next(o for o in found if o.trial.name == "stock" and o.trial.condition == one.trial.condition)
            before, after = (records.read(o.trial.cache_key).records for o in (stock, one))
            assert one.differences["F1"] == pope.difference(before, after, rule)
    assert len(seen) == 4  # the rules differ on these answers


def test_the_page(tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = made(tmp_path)
    monkeypatch.setattr(backbones, "load", lambda *a: pytest.fail("loaded a model"))
    assert report.main(["study=small", f"output={tmp_path}"]) == 0
    folder = tmp_path / "studies" / "small"
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    elsewhere = r"""(src|href)=["'](?!data:|samples\.html["'#])"""
    assert not re.search(elsewhere, page.split("<svg")[0])
    first = (
        "Reported on the held-out split, n = 40 a row. Settings of 2 rows, marked as tuned, were chosen on the tuning"
    )
    for written in (page, text):
        assert first in written
        assert "tuned (tuned on 3 trials)" in written
        assert "python -m tdrs.sweep +experiment=mine" in written
        assert outcome.environment["torch"] in written
        assert "no difference shown: +0.0 [+0.0, +0.0], n = 40; could have shown 15.0" in written
    assert page.index(first) < page.index("Findings")
    found = evidence.compare_rows(outcome, Records(tmp_path / "records"))
    (other,) = [one for one in found if one.trial.name == "other" and "scienceqa" in one.condition]
    assert other.discordant is not None
    assert f"other: {other.discordant.gained} gained, {other.discordant.lost} lost" in page
    assert page.count("data:image/png;base64,") >= min(3, other.discordant.gained)
    assert page.count("<svg") == 1


def test_a_page_where_everything_was_given_and_one_row_failed(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def maybe(backbone: Any, benchmark: Any, samples: Any, method: Any, *others: Any) -> Any:
        if getattr(method, "tau", 0) == 0.3:
            raise RuntimeError("no <b>")
        return pretend.run_batches(backbone, benchmark, samples, method, *others)

    monkeypatch.setattr(evaluation_module, "run_batches", maybe)
    given = {"axes": {"dataset.gap": [0, 5]}, "methods": {k: METHODS[k] for k in ("same", "other")}}
    outcome = Study(configuration(tmp_path, "search=compare", **given), Tracker("none", tmp_path)).run()
    assert {row.status for row in outcome.rows if row.name == "other"} == {FAILED}
    page = report.study_report(
        outcome, Records(tmp_path / "records"), tmp_path, report.write_figures(outcome, tmp_path)
    )
    assert (
        page.split
        == "Reported on the held-out split, n = 8 a row. No setting was chosen on any split: all were given beforehand."
    )
    written = report.write_report(page, tmp_path)[0].read_text()
    assert "no &lt;b&gt;" in written


def test_a_result_tuned_on_the_reported_split_is_marked_everywhere(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both splits of a set that has one: its rows are the same."""
    mini_textvqa.dataset("held_out", 12).to_parquet(tmp_path / "rows.parquet")
    given = ["search=compare", "dataset=textvqa", f"dataset.source={tmp_path}/rows.parquet", "dataset.rows=null"]
    config = configuration(tmp_path, *given, axes={"dataset.gap": [2]}, methods={"tuned": METHODS["tuned"]}, budget=2)
    config["tracking"] = {"name": "mlflow", "uri": None}
    study = Study(config, Tracker("mlflow", tmp_path))
    outcome = study.run()
    warning = "TUNED ON THE REPORTED SPLIT: 8 held-out samples are also in the tuning split"
    assert outcome.overlap == 8
    assert summary.table(outcome)[0] == warning
    study.attach(summary.description(outcome, study.records))
    folder = study.folder
    assert report.main(["study=small", f"output={tmp_path}"]) == 0
    for name in ("report.html", "report.md", "table.md", "table.tex", "table.csv", "comparison.svg"):
        assert warning.split(":")[0] in (folder / name).read_text(), name
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.data.tags["mlflow.note.content"].startswith(warning)


def test_splits_that_share_nothing_are_not_marked(tmp_path: Path, pretended: list[str]) -> None:
    outcome = made(tmp_path)
    assert outcome.overlap == 0
    assert outcome.warning == ""


@pytest.mark.parametrize("dataset", ["mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"])
def test_blank_pictures_are_told_apart(dataset: str, tmp_path: Path, pretended: list[str]) -> None:
    """All have the same pixels, and twins ask a few questions again and again."""
    config = configuration(tmp_path, "search=compare", f"dataset={dataset}", "dataset.blank=true", "dataset.gap=0")
    config["preset"] = {"tuning": 200, "held_out": 200}
    config["search"] |= {"axes": {"batch_size": [100]}, "methods": {"tuned": METHODS["tuned"]}, "budget": 1}
    assert Study(config, Tracker("none", tmp_path)).run().overlap == 0


def test_a_stock_score_far_from_the_published_one_is_said_at_the_top(tmp_path: Path, pretended: list[str]) -> None:
    """Pretended answers are right half of the time; the card says 1.000 at 32 tokens, and nothing at 4."""
    for gap in (4, 32):
        output = tmp_path / str(gap)
        config = configuration(output, "search=compare", axes={"dataset.gap": [gap]}, methods=METHODS, budget=3)
        study = Study(config, Tracker("none", output))
        outcome = study.run()
        page = report.study_report(outcome, study.records, study.folder)
        assert len(page.off) == (gap == 32)
        assert page.verified[0].endswith(f"published score at {int(gap == 32)} of 1 conditions")
        if gap == 4:
            said = (
                "mini_llava, mini_scienceqa, gap 4: not verified: the card of mini_llava has no score at this distance"
            )
            assert page.verified[1] == said
    page = report.study_report(outcome, study.records, study.folder)
    (line,) = page.off
    stock = 100 * outcome.rows[0].metrics["accuracy"]
    assert line.startswith("mini_llava, mini_scienceqa, gap 32: the stock model's accuracy, ")
    assert "95 % interval [" in line
    assert "n = 8" in line
    assert f"{stock:.1f} %, is {stock - 100:+.1f} points off the published 100.0 % (the card of mini_llava)" in line
    written = {path.name: path.read_text() for path in report.write_report(page, study.folder)}
    assert written["report.md"].split("\n\n")[2] == f"**{line}**"
    assert written["report.md"].split("\n\n")[3] == f"{page.verified[0]}:"
    assert written["report.md"].split("\n\n")[4] == f"- {page.verified[1]}"
    assert written["report.html"].index("points off the published") < written["report.html"].index("<h2>")
