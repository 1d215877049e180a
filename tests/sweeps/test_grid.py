"""The protocol grid: every cell there once, failed ones shown, the best one reported on the held-out split."""

from pathlib import Path
from typing import Any

import pytest

from tdrs import evaluation as evaluation_module
from tdrs.analysis import summary
from tdrs.settings import SettingError
from tdrs.sweeps.storage import load_optuna
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import FAILED
from tdrs.tracking import Tracker

from . import pretend
from .pretend import configuration

SPACE = {"intervention.gain": ["logits", "weights"], "intervention.dc.w_min": [1, 3, 10]}


def small(output: Path, space: Any = SPACE, **search: Any) -> dict[str, Any]:
    return configuration(output, "search=grid", **({"space": space, "controls": {}} | search))


def test_every_cell_is_there_in_order(tmp_path: Path, pretended: list[str]) -> None:
    found = Study(small(tmp_path), Tracker("none", tmp_path)).run()
    assert [trial.name for trial in found.trials] == ["stock"] + 6 * ["cell"]
    assert [trial.settings for trial in found.trials[1:]] == [
        {"intervention.gain": gain, "intervention.dc.w_min": w} for gain in ("logits", "weights") for w in (1, 3, 10)
    ]
    stock, *cells = found.trials
    assert all(cell.difference[0] == pytest.approx(cell.score - stock.score) for cell in cells)
    best = max(cells, key=lambda cell: cell.score)
    assert [row.name for row in found.rows] == ["stock", "as configured", "best of 6"]
    assert found.rows[2].settings == best.settings
    assert found.rows[2].budget == 6
    table = "\n".join(summary.table(found))
    assert table.count("gain=logits") == 3 + found.rows[2].settings["intervention.gain"].count("no")
    trials = load_optuna(tmp_path / "studies" / "small", "small").get_trials()
    assert [trial.params for trial in trials] == [{}, *(cell.settings for cell in cells)]


def test_failed_cells_are_tried_again_and_shown(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Any] = []

    def maybe(backbone: Any, benchmark: Any, samples: Any, method: Any, *others: Any) -> Any:
        if (method.effective.get("dc") or {}).get("w_min") == 10:
            attempts.append(method)
            raise RuntimeError("no")
        return pretend.run_batches(backbone, benchmark, samples, method, *others)

    monkeypatch.setattr(evaluation_module, "run_batches", maybe)
    found = Study(small(tmp_path), Tracker("none", tmp_path)).run()
    assert len(attempts) == 4
    assert [trial.status == FAILED for trial in found.trials] == [False, False, False, True, False, False, True]
    assert "\n".join(summary.table(found)).count("failed: RuntimeError: no") == 2
    assert found.rows[2].settings["intervention.dc.w_min"] != 10


def test_each_condition_has_a_stock_model_a_best_cell_and_controls(tmp_path: Path, pretended: list[str]) -> None:
    given = {"axes": {"dataset.gap": [0, 7]}, "controls": {"sharper": {"intervention": "temperature"}}}
    found = Study(small(tmp_path, {"intervention.dc.w_min": [1, 3]}, **given), Tracker("none", tmp_path)).run()
    assert [(trial.name, trial.condition) for trial in found.trials] == [
        (name, {"dataset.gap": gap}) for gap in (0, 7) for name in ("stock", "cell", "cell")
    ]
    rows = ["stock", "as configured", "best of 2", "sharper"]
    assert [(row.name, row.condition) for row in found.rows] == [(n, {"dataset.gap": g}) for g in (0, 7) for n in rows]
    for gap in (0, 7):
        cells = [trial for trial in found.trials if trial.name == "cell" and trial.condition["dataset.gap"] == gap]
        (best,) = [row for row in found.rows if row.budget and row.condition["dataset.gap"] == gap]
        assert best.settings == max(cells, key=lambda cell: cell.score).settings
        (stock,) = [row for row in found.rows if row.name == "stock" and row.condition["dataset.gap"] == gap]
        assert best.difference[0] == pytest.approx(best.score - stock.score)
    assert "dataset.gap=7 dc.w_min=3" in "\n".join(summary.table(found))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"intervention.dc.w_min": {"low": 1, "high": 3}}, "search.space.intervention.dc.w_min = .*: must be a list"),
        ({"intervention.dc.w_min": [1, 0]}, "intervention.dc.w_min = 0.0: must be a finite number above 0"),
        ({"intervention.gain": ["logits", "both"]}, "intervention.gain = 'both': must be one of logits, weights"),
        ({"intervention.gian": ["logits"]}, "search = 'intervention.gian': no such setting"),
        ({}, "search.space = {}: must name at least one setting"),
        ({"dataset.gap": [0, 256]}, r"search.space.dataset.gap = \[0, 256\]: changes the samples or what answers them"),
        ({"batch_size": [1, 2]}, r"search.space.batch_size = .*: changes the samples .* it belongs to search.axes"),
        ({"intervention.dc.w_min": [1, 3, 1.0]}, r"search.space.intervention.dc.w_min = .*: has 1.0 twice"),
        ({"intervention": ["none"]}, "search = 'cell': every point of its space is the stock model"),
        ({"intervention": ["temperature"], "intervention.tau": [1.0]}, "search = 'cell': every point of its space is"),
    ],
)
def test_bad_cells_are_named_before_anything_is_written(tmp_path: Path, space: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Study(small(tmp_path, space), Tracker("none", tmp_path))
    assert not list(tmp_path.iterdir())
