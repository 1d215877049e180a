"""The protocol compare: every method at every condition, paired with stock, tuned in its space, checked first."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdrs import backbones
from tdrs.analysis import comparison, distance, summary
from tdrs.configuration import choice, compose, plain, run, with_settings
from tdrs.results import check_same_samples
from tdrs.settings import SettingError
from tdrs.sweep import main_sweep
from tdrs.sweeps import protocol
from tdrs.sweeps.folder import read_outcome
from tdrs.sweeps.protocol import MethodRow, conditions
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import FAILED, Outcome, Request, Trial
from tdrs.tracking import Tracker

from .pretend import configuration

AXES = {
    "dataset": ["mini_pope", "mini_scienceqa"],
    "text": [
        {"dataset.gap": 0},
        {"dataset.gap": 0, "dataset.blank": True},
        {"dataset.gap": 9, "dataset.filler": "between"},
        {"dataset.gap": 9, "dataset.filler": "before_image"},
    ],
}
METHODS = {"sharper": {"intervention": "temperature", "intervention.tau": 0.3}}


def small(output: Path, axes: Any = AXES, methods: Any = METHODS, **search: Any) -> dict[str, Any]:
    return configuration(output, "search=compare", axes=axes, methods=methods, **search)


def test_places_are_all_combinations() -> None:
    assert conditions({"dataset.gap": [1, 2], "dataset": ["a", "b"]}) == [
        {"dataset.gap": gap, "dataset": name} for gap in (1, 2) for name in "ab"
    ]
    merged = conditions(AXES)
    assert len(merged) == 8
    assert merged[5] == {"dataset": "mini_scienceqa", "dataset.gap": 0, "dataset.blank": True}
    assert conditions({}) == [{}]


def test_groups_are_set_before_keys() -> None:
    request = Request(
        "x", "tuning", {"intervention.tau": 1, "intervention": "temperature"}, {"dataset.gap": 1, "dataset": "a"}
    )
    assert list(request.merged) == ["dataset", "intervention", "dataset.gap", "intervention.tau"]


def test_a_group_is_set_by_the_name_of_its_choice() -> None:
    config = plain(compose("sweep", []))
    found = with_settings(config, {"dataset": "mini_pope", "dataset.gap": 4})
    assert found["dataset"] == {**choice("dataset", "mini_pope"), "gap": 4}
    assert config["dataset"]["name"] == "mini_scienceqa"
    with pytest.raises(SettingError, match="backbone = 'lava': must be one of gemma3_4b, hf, idefics3_8b, internvl2"):
        with_settings(config, {"backbone": "lava"})


def test_a_value_may_differ_between_benchmarks() -> None:
    row = MethodRow.of("m", {"intervention.re.weight": {"pope": 1, "other": 0.8}}, "methods")
    assert row.at({"dataset": "mini_pope"}, "gqa").settings == {"intervention.re.weight": 1}
    assert row.at({}, "pope").settings == {"intervention.re.weight": 1}
    assert row.at({"dataset": "mini_gqa"}, "pope").settings == {"intervention.re.weight": 0.8}


def test_a_finished_comparison_and_its_figure(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Study(small(tmp_path), Tracker("none", tmp_path)).run()
    assert [(row.name, row.condition) for row in found.rows] == [
        (name, condition) for condition in conditions(AXES) for name in ("stock", "sharper")
    ]
    assert found.trials == []
    assert len({row.cache_key for row in found.rows}) == 16
    assert all(row.n == 8 for row in found.rows)
    for stock, edited in zip(found.rows[::2], found.rows[1::2], strict=True):
        assert stock.difference is None
        assert edited.difference is not None
        assert edited.difference[0] == pytest.approx(edited.score - stock.score)
    assert read_outcome(tmp_path / "studies" / "small") == found
    assert len(summary.table(found)) == 2 + 8 * 3

    panels = distance.distance_curves(found)
    assert [(panel.backbone, panel.dataset) for panel in panels] == [
        ("mini_llava", "mini_pope"), ("mini_llava", "mini_scienceqa")
    ]  # fmt: skip
    measured = {(row.name, *row.condition.values()): row.score for row in found.rows}
    pope = panels[0]
    assert set(pope.lines) == {(m, p) for p in ("between", "before_image") for m in ("stock", "sharper")}
    assert all([point.gap for point in line] == [0, 9] for line in pope.lines.values())
    assert pope.lines["sharper", "before_image"][1].accuracy == measured["sharper", "mini_pope", 9, "before_image"]
    assert pope.blank == measured["stock", "mini_pope", 0, True]
    paths = distance.write_distance(panels, tmp_path)
    assert [path.name for path in paths] == ["distance.png", "distance.svg", "distance.md"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[2].read_text().count("| `mini_pope`") == 2
    assert f"{pope.lines['stock', 'between'][1].accuracy:.3f} [" in paths[2].read_text()


def test_a_method_with_a_space_is_tuned_at_each_place(tmp_path: Path, pretended: list[str]) -> None:
    methods = {
        "default": {"intervention": "temperature"},
        "tuned": {"intervention": "temperature", "tune": {"intervention.tau": [0.3, 0.4, 0.5, 0.6, 0.7]}},
    }
    found = Study(small(tmp_path, {"dataset.gap": [0, 5]}, methods, budget=4), Tracker("none", tmp_path)).run()
    assert len(found.trials) == 8
    assert {trial.split for trial in found.trials} == {"tuning"}
    for gap in (0, 5):
        trials = [trial for trial in found.trials if trial.condition["dataset.gap"] == gap]
        assert trials[0].settings["intervention.tau"] == 0.5  # its own default first
        (row,) = [row for row in found.rows if row.name == "tuned" and row.condition["dataset.gap"] == gap]
        assert row.budget == 4
        assert row.settings == max(trials, key=lambda trial: trial.score).settings
    assert "tuned rows: settings chosen on the tuning split, n = 8" in "\n".join(summary.table(found))


def test_a_comparison_at_one_distance_is_a_forest(tmp_path: Path) -> None:
    rows = []
    for condition in ({"dataset": "mini_gqa", "dataset.gap": 4}, {"dataset": "mini_pope", "dataset.gap": 4}):
        metrics = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
        rows.append(Trial("stock", "held_out", condition, {}, "0", 9, metrics))
        for name, low in (("helps", 0.1), ("unclear", -0.1), ("hurts", -0.4)):
            difference = low + 0.1, low, low + 0.2
            given = {"accuracy": 0.5 + low + 0.1}
            rows.append(Trial(name, "held_out", condition, {}, "1", 9, given, difference=difference))
        rows.append(Trial("broken", "held_out", condition, {}, "2", 9, status=FAILED, reason="no"))
    panels = comparison.paired_differences(
        Outcome("t", "compare", {"backbone": {"name": "m"}, "dataset": {"name": "d"}}, [], rows)
    )
    assert [panel.condition for panel in panels] == ["m, mini_gqa, gap 4", "m, mini_pope, gap 4"]
    assert [row.method for row in panels[1].rows] == ["helps", "unclear", "hurts"]
    assert panels[0].rows[2][2:5] == pytest.approx((-0.3, -0.4, -0.2))
    paths = comparison.write_comparison(panels, tmp_path)
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert "| | hurts | 9 | 0.200 | -0.300 [-0.400, -0.200] |" in paths[2].read_text()


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"dataset.gap": [0, -3]}, r"dataset.gap = -3: must be a whole number from 0 to 2048"),
        ({"dataset.gapp": [0]}, r"search = 'dataset.gapp': no such setting"),
        ({"dataset": ["mini_vqa"]}, r"dataset = 'mini_vqa': must be one of"),
        ({"dataset.gap": 4}, r"search.axes.dataset.gap = 4: must be a list of at least one value"),
        ({}, r"search.axes = None: must not be empty"),
        (
            {"dataset": ["mini_pope"], "data": [{"dataset": "mini_gqa", "dataset.gap": 4}]},
            r"search.axes.data = .*: sets dataset, as axes.dataset does; take one away",
        ),
        ({"dataset.gap": [0], "intervention.tau": [-1.0]}, r"search = 'intervention.tau': no such setting"),
        ({"preset.held_out": [4, 8]}, r"search.axes.preset.held_out = .*: preset.held_out does not change what is"),
        ({"tracking.uri": ["a"]}, r"search.axes.tracking.uri = .*: tracking.uri does not change what is measured"),
        ({"data": [{"output": "a"}]}, r"search.axes.data = .*: output does not change what is measured"),
        ({"dataset.name": ["mini_gqa"]}, r"search.axes.dataset.name = .*: .* use the key dataset"),
        ({"dataset.gap": [256, 256]}, r"search.axes.dataset.gap = \[256, 256\]: 256 and 256 measure the same"),
        ({"batch_size": [4, 4]}, r"search.axes.batch_size = \[4, 4\]: 4 and 4 measure the same; take one away"),
        ({"dataset.gap": [0], "dataset.filler": ["between", "before_image"]}, "'between' and 'before_image' measure"),
        ({"backbone.device": ["auto", "cpu"]}, "'auto' and 'cpu' measure the same"),
    ],
)
def test_bad_places_are_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: Any, said: str
) -> None:
    monkeypatch.setattr(backbones, "load", lambda *a: pytest.fail("loaded"))
    with pytest.raises(SettingError, match=said):
        Study(small(tmp_path, axes), Tracker("none", tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"intervention": "temperature", "tune": {"intervention.tau": [0.5, -1]}}, "intervention.tau = -1.0: must be"),
        ({"intervention": "temperature", "tune": {"intervention.tua": [1]}}, "search = 'intervention.tua': no such"),
        ({"intervention": "temperature", "tune": {}}, "search.methods.m.tune = {}: must name at least one setting"),
        ({"intervention.re.weight": {"pope": 1}}, r"search.methods.m.intervention.re.weight = .*: must have a value"),
        (3, "search.methods.m = 3: must be settings of another name than stock"),
        (
            {"intervention": "none", "dataset.gap": 0},
            r"search.methods.m.dataset.gap = 0: changes the samples or what answers them, so it belongs to search.axes",
        ),
        ({"backbone": {"pope": "mini_internvl", "other": "mini_llava"}}, "search.methods.m.backbone = .*: changes the"),
        (
            {"intervention": "temperature", "tune": {"dataset.seed": [0, 1]}},
            "search.methods.m.tune.dataset.seed = .*: ch",
        ),
        (
            {"intervention": "temperature", "tune": {"intervention.tau": [0.5, 0.5]}},
            "tune.intervention.tau = .*: has 0.5 t",
        ),
    ],
)
def test_bad_methods_are_named(tmp_path: Path, method: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Study(small(tmp_path, {"dataset.gap": [0]}, {"m": method}), Tracker("none", tmp_path))
    with pytest.raises(SettingError, match=r"search\.budget = 0"):
        protocol.from_settings({"protocol": "compare", "axes": AXES, "budget": 0})


def test_only_records_of_the_same_samples_are_paired(tmp_path: Path, pretended: list[str]) -> None:
    """Whatever a protocol asks: another content of the samples, or records in another order, are refused."""
    study = Study(small(tmp_path, {"dataset.gap": [0, 4]}), Tracker("none", tmp_path))
    stock, edited, far, _ = study.run().rows
    assert study.results.difference(stock, edited) == pytest.approx(edited.difference)
    with pytest.raises(SettingError, match=r"stock = .*: cannot be compared .* its samples have another content"):
        study.results.difference(stock, far)
    records = study.results.records(stock)
    with pytest.raises(SettingError, match=f"m = '{records[1].id}': cannot be paired with the stock model's"):
        check_same_samples(records, records[::-1][-2:-1] + records[1:], "m")
    with pytest.raises(SettingError, match="m = 7: records cannot be paired with 8 of the stock model"):
        check_same_samples(records, records[:-1], "m")
    with pytest.raises(SettingError, match="cannot be paired with the stock model's"):
        check_same_samples(records, [replace(record, weight=2.0) for record in records], "m")


def test_an_axis_may_set_a_key_in_some_of_its_values_only(tmp_path: Path, pretended: list[str]) -> None:
    axes = {"text": [{"dataset.gap": 0}, {"dataset.gap": 9, "dataset.filler": "between"}]}
    assert len(Study(small(tmp_path, axes), Tracker("none", tmp_path)).run().rows) == 4


def test_the_command_draws_the_figure(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search=compare", "study.name=g", "preset=smoke", "tracking=none", f"output={tmp_path}"]
    assert run("sweep", main_sweep, "", [*arguments, "++search.axes={dataset.gap: [0, 4]}"]) == 0
    printed = capsys.readouterr().out
    assert "tdrs.analysis.report study=g" in printed
    assert (tmp_path / "studies" / "g" / "distance.svg").exists()
