"""The protocol compare: every method at every place, paired with stock, resumed without a model, checked before one."""

from pathlib import Path
from typing import Any

import pytest
from tdrs.analysis import comparison, distance
from tdrs.sweeps import compare
from tdrs.sweeps.study import Cell, Study, Table, apply

from tdrs import backbones
from tdrs.configuration import choice, compose, plain, run
from tdrs.settings import SettingError
from tdrs.sweep import main_sweep
from tdrs.tracking import Tracker

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


def small(output: Path, axes: Any = AXES, methods: Any = METHODS) -> dict[str, Any]:
    config = plain(compose("sweep", ["search=compare", "study.name=small", f"output={output}"]))
    config["search"] |= {"axes": axes, "methods": methods}
    config["preset"] = {"held_out": 6}
    return config


def test_cases_are_all_combinations_stock_first_groups_before_keys() -> None:
    axes = {"dataset.gap": [1, 2], "dataset": ["a", "b"]}
    cases = list(compare.from_settings({"protocol": "compare", "axes": axes, "methods": METHODS}).cases())
    assert [(name, *place.values()) for name, place, _ in cases] == [
        ("stock", 1, "a"), ("sharper", 1, "a"), ("stock", 1, "b"), ("sharper", 1, "b"),
        ("stock", 2, "a"), ("sharper", 2, "a"), ("stock", 2, "b"), ("sharper", 2, "b"),
    ]  # fmt: skip
    assert cases[0][2] == {"dataset": "a", "intervention": "none", "dataset.gap": 1}
    assert list(cases[1][2]) == ["dataset", "intervention", "dataset.gap", "intervention.tau"]
    merged = list(compare.from_settings({"protocol": "compare", "axes": AXES}).places())
    assert len(merged) == 8
    assert merged[5] == {"dataset": "mini_scienceqa", "dataset.gap": 0, "dataset.blank": True}


def test_a_group_is_set_by_the_name_of_its_choice() -> None:
    config = plain(compose("sweep", []))
    found = apply(config, {"dataset": "mini_pope", "dataset.gap": 4})
    assert found["dataset"] == {**choice("dataset", "mini_pope"), "gap": 4}
    assert config["dataset"]["name"] == "mini_scienceqa"
    with pytest.raises(SettingError, match="backbone = 'lava': must be one of llava_1_5_7b"):
        apply(config, {"backbone": "lava"})


def test_a_finished_comparison_and_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Study(small(tmp_path), Tracker("mlflow", tmp_path)).run()
    assert isinstance(found, Table)
    assert [(cell.method, cell.place) for cell in found.cells] == [
        (name, place) for name, place, _ in compare.from_settings(small(tmp_path)["search"]).cases()
    ]
    assert len({cell.identity for cell in found.cells}) == 16
    assert all(cell.n == 6 for cell in found.cells)
    for stock, edited in zip(found.cells[::2], found.cells[1::2], strict=True):
        assert stock.difference is None
        assert edited.difference is not None
        assert edited.difference[0] == pytest.approx(edited.metrics["accuracy"] - stock.metrics["accuracy"])
    assert Table.read(tmp_path / "small" / "study.json") == found
    assert len(found.table()) == 1 + 8 * 3

    monkeypatch.setattr(backbones, "load", lambda settings: pytest.fail("loaded again"))
    again = Study(small(tmp_path), Tracker("mlflow", tmp_path))
    assert again.run() == found
    assert (again.evaluated, again.reused) == (0, 16)

    panels = distance.numbers(found)
    assert [(panel.backbone, panel.dataset) for panel in panels] == [
        ("mini_llava", "mini_pope"), ("mini_llava", "mini_scienceqa")
    ]  # fmt: skip
    measured = {(cell.method, *cell.place.values()): cell.metrics["accuracy"] for cell in found.cells}
    pope = panels[0]
    assert set(pope.lines) == {(m, p) for p in ("between", "before_image") for m in ("stock", "sharper")}
    assert all([point.gap for point in line] == [0, 9] for line in pope.lines.values())
    assert pope.lines["sharper", "before_image"][1].accuracy == measured["sharper", "mini_pope", 9, "before_image"]
    assert pope.blank == measured["stock", "mini_pope", 0, True]
    paths = distance.draw(panels, tmp_path)
    assert [path.name for path in paths] == ["distance.png", "distance.svg", "distance.md"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[2].read_text().count("| `mini_pope`") == 2
    assert f"{pope.lines['stock', 'between'][1].accuracy:.3f} [" in paths[2].read_text()


def test_a_comparison_at_one_distance_is_a_forest(tmp_path: Path) -> None:
    cells = []
    for place in ({"dataset": "a", "dataset.gap": 4}, {"dataset": "b", "dataset.gap": 4}):
        metrics = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
        cells.append(Cell("stock", place, "0", 9, metrics, None))
        for name, low in (("helps", 0.1), ("unclear", -0.1), ("hurts", -0.4)):
            cells.append(Cell(name, place, "1", 9, {"accuracy": 0.5 + low + 0.1}, (low + 0.1, low, low + 0.2)))
    panels = comparison.numbers(Table("t", {}, cells))
    assert [panel.place for panel in panels] == ["a, gap 4", "b, gap 4"]
    assert [row.method for row in panels[1].rows] == ["helps", "unclear", "hurts"]
    assert panels[0].rows[2][2:] == pytest.approx((-0.3, -0.4, -0.2))
    paths = comparison.draw(panels, tmp_path)
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
        ({"dataset.gap": [0], "intervention.tau": [-1.0]}, r"search = 'intervention.tau': no such setting"),
    ],
)
def test_bad_cells_are_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: Any, said: str
) -> None:
    monkeypatch.setattr(backbones, "load", lambda settings: pytest.fail("loaded"))
    with pytest.raises(SettingError, match=said):
        Study(small(tmp_path, axes), Tracker("none", tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_command_draws_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search=compare", "study.name=g", "preset=smoke", f"output={tmp_path}"]
    assert run("sweep", main_sweep, "", [*arguments, "++search.axes={dataset.gap: [0, 4]}"]) == 0
    printed = capsys.readouterr().out
    assert "tdrs.analysis.distance study=g" in printed
    assert (tmp_path / "g" / "distance.svg").exists()
