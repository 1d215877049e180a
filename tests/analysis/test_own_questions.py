"""Reports of a study about a user's own questions: F1 beside accuracy, with paired differences."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tdrs
from tdrs.analysis import evidence, report, tables
from tdrs.analysis.answer_bias import MATCHED
from tdrs.benchmarks import Record
from tdrs.records import Records
from tdrs.statistics import cluster_draws
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import Outcome
from tdrs.tracking import Tracker

from ..sweeps.pretend import configuration

METHODS = {"other": {"intervention": "temperature", "intervention.tau": 0.3}}


def made(folder: Path, **dataset: Any) -> Outcome:
    """A study about three questions on each of twelve pictures, of which some repeat."""
    rows = []
    for n in range(12):
        Image.new("RGB", (40, 40), (n * 20, 9, 9)).save(folder / f"{n}.png")
        for k in range(3):
            answer = {"yes_no": ("yes", "no")[(n + k) % 2], "any_of": "red"}[dataset["rule"]]
            about = {"question": f"Is it {k}?", "answer": answer, "category": f"#{n % 2}, 50 %"}
            rows.append({"image": f"{n}.png", **about})
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configuration(folder, "dataset=own", "search=compare", axes={"dataset.gap": [0]}, methods=METHODS)
    config["dataset"] |= {"source": str(folder / "q.jsonl"), "tuning_share": 0.3, **dataset}
    config["preset"] = {"tuning": 6, "held_out": None}
    return Study(config, Tracker("none", folder), command="python -m tdrs.sweep").run()


def f1(records: list[Record], drawn: list[int]) -> float:
    """F1 of records that are drawn so often, counted one by one."""
    right = yes = gold = 0
    for record, times in zip(records, drawn, strict=True):
        right += times * (record.answer == "yes" == record.gold)
        yes += times * (record.answer == "yes")
        gold += times * (record.gold == "yes")
    return 2 * right / (yes + gold)


def test_f1_and_its_paired_difference_are_those_of_the_records(tmp_path: Path, pretended: list[str]) -> None:
    outcome, records = made(tmp_path, rule="yes_no"), Records(tmp_path / "records")
    stock, other = evidence.compare_rows(outcome, records)
    before, after = (records.read(one.trial.cache_key).records for one in (stock, other))
    index, draws = cluster_draws([record.image_id for record in before])
    ones = [1] * len(before)
    sampled = [f1(after, list(draw[index])) - f1(before, list(draw[index])) for draw in draws]
    assert other.measures["F1"].value == pytest.approx(f1(after, ones))
    assert other.differences["F1"].value == pytest.approx(f1(after, ones) - f1(before, ones))
    assert other.differences["F1"][1:] == pytest.approx(np.quantile(sampled, [0.025, 0.975]))
    assert stock.differences == {}
    shown = [(row.name, row.measure) for row in tables.table_rows(outcome, [stock, other])]
    measures = ["accuracy", "F1", "balanced accuracy", "ROC area"]
    assert shown == [(name, measure) for name in ("stock", "other") for measure in measures]


def test_the_page_speaks_of_these_questions(tmp_path: Path, pretended: list[str]) -> None:
    made(tmp_path, rule="yes_no")
    study = tdrs.load_study("small", tmp_path)
    measures = ["accuracy", "F1", "balanced accuracy", "ROC area", MATCHED]
    assert list(study.compare("other")["measure"]) == measures
    written = report.write_report(report.study_report(study.outcome, study.records, study.folder, []), tmp_path)
    page = written[0].read_text()
    assert "On POPE" not in page
    assert "no row “answer bias, tuned”: the stock model was not measured on the tuning split" in page
    assert "“Reported” numbers" not in page
    assert "Also as table.md" in page
    assert "not verified: no score of mini_llava on own is known" in page


def test_other_rules_have_no_f1(tmp_path: Path, pretended: list[str]) -> None:
    outcome, records = made(tmp_path, rule="any_of"), Records(tmp_path / "records")
    assert [one.measures for one in evidence.compare_rows(outcome, records)] == [{}, {}]
