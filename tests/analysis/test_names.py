"""Methods, series and labels of any name: every page, table and figure is made, and shows them as they are."""

import csv
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from mlflow.tracking import MlflowClient

from tdrs import escape
from tdrs.analysis import comparison, distance, report, sensitivity, summary
from tdrs.sweeps.study import Study
from tdrs.tracking import Tracker
from tests.sweeps.pretend import configuration

NAMES = [
    "a|b", "a.b", r"$\foo{$", "a\nb", "<script>alert(1)</script>", "_hidden", "`x` *y* [z](u)", "~^\\{}&%_#$<>\"'",
    "é λ 中文", "x" * 300, "--> ```", "</svg>",
]  # fmt: skip


def cells(markdown: str) -> list[list[str]]:
    """The tables' rows of a Markdown source, as a reader sees them."""
    rows: list[list[str]] = []
    inside = False
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open", "th_close", "td_close"):
            inside = token.type.endswith("open")
        elif token.type == "inline" and inside:
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


def study(output: Path, tracking: str, *gaps: int) -> Study:
    methods = {
        name: {"intervention": "temperature", "intervention.tau": 0.5 + 0.03 * n} for n, name in enumerate(NAMES)
    }
    config = configuration(output, "search=compare", axes={"dataset.gap": list(gaps)}, methods=methods)
    config["study"]["name"] = "a | b <i> $x$ `"
    return Study(config, Tracker(tracking, output), command="python -m tdrs.sweep 'a ``` b'")


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_methods_of_any_name(tmp_path: Path, pretended: list[str]) -> None:
    made = study(tmp_path, "mlflow", 3)
    outcome = made.run()
    assert not made.log.runs.tracker.down
    page, written = report.report_study(outcome, made.records, made.folder)
    made.attach(summary.description(outcome, made.records))
    paths = {path.name: path for path in written}
    shown = ["stock", *map(escape.one_line, NAMES)]

    for path, at in ((paths["table.md"], 0), (paths["report.md"], 0), (made.folder / "comparison.md", 1)):
        rows = cells(path.read_text())
        assert {len(row) for row in rows} == {5 if at else 8}
        assert [row[at] for row in rows[1:]] == shown, path
    text = paths["report.md"].read_text()
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    assert not [token for token in tokens if token.type == "html_block"]
    assert [token.content.strip() for token in tokens if token.type == "fence"][1] == outcome.command
    title = tokens[1].children or []
    assert "".join(child.content for child in title) == outcome.name

    with paths["table.csv"].open(newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["stock", *NAMES]
    rows_ = [
        line for line in paths["table.tex"].read_text().splitlines() if line.endswith(r"\\") and "multi" not in line
    ]
    assert len(rows_) == 1 + len(shown)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 7 for line in rows_)

    page_ = paths["report.html"].read_text()
    assert "<script>" not in page_
    assert page_.count("</svg>") == page_.count("<svg") == len(page.figures)
    assert "&lt;script&gt;" in page_

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == outcome.name]
    (parent,) = [
        run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in run.data.tags
    ]
    values = [value for name, value in parent.data.metrics.items() if name.endswith(".accuracy")]
    assert sorted(values) == sorted(row.score for row in outcome.rows)
    said = MarkdownIt().parse(parent.data.tags["mlflow.note.content"])
    assert [token.type for token in said if token.type != "inline" and "paragraph" not in token.type] == ["fence"] * 2


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_more_methods_than_colours_against_distance(tmp_path: Path, pretended: list[str]) -> None:
    panels = distance.distance_curves(study(tmp_path, "none", 3, 9).run())
    paths = distance.write_distance(panels, tmp_path)
    assert [row[0] for row in cells(paths[-1].read_text())[1:]] == [
        "mini_scienceqa", *(f"mini_scienceqa, {escape.one_line(name)}" for name in NAMES)
    ]  # fmt: skip
    assert len(distance._legend(panels, ["stock", *NAMES])) >= 1 + len(NAMES)


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_series_and_labels_of_any_name(tmp_path: Path, pretended: list[str]) -> None:
    series = {name: {"intervention.gain": "logits", "intervention.dc.weight": 1 + n} for n, name in enumerate(NAMES)}
    step = {"key": "intervention.re.weight", "label": r"$\foo{$ (a_b)", "paper": 1, "values": [0, 0.5, 1]}
    config = configuration(tmp_path, series=series, steps=[step], controls={}, start={})
    outcome = Study(config, Tracker("none", tmp_path)).run()
    lines = sensitivity.sensitivity_curves(outcome)
    assert [one.name for one in lines[0].settings[0].series] == NAMES
    assert all(path.exists() for path in sensitivity.write_sensitivity(lines, tmp_path))


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_places_of_any_name(tmp_path: Path) -> None:
    row = comparison.RowDifference("x", 0.5, 0.1, 0.0, 0.2, False)
    panels = [comparison.ConditionDifferences(name, 9, (0.4, 0.3, 0.5), [row]) for name in NAMES]
    paths = comparison.write_comparison(panels, tmp_path, r"WARNING $\foo{$")
    assert [cell[0] for cell in cells(paths[-1].read_text())[1::2]] == [escape.one_line(name) for name in NAMES]
