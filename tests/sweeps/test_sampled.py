"""The protocol sampled: points that depend on the seed alone, stages on and off, pruning by paired evidence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdrs import evaluation as evaluation_module
from tdrs.benchmarks import Record
from tdrs.records import Records
from tdrs.results import Batch
from tdrs.settings import SettingError
from tdrs.stopping import Stop
from tdrs.sweeps.sampled import STARTUP, should_prune
from tdrs.sweeps.storage import load_optuna
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import PRUNED
from tdrs.tracking import Tracker

from .pretend import configuration, run_batches

SPACE = {
    "intervention.gain": ["logits", "weights"],
    "intervention.dc.weight": {"low": 0.01, "high": 5, "log": True, "off_at": 0},
    "intervention.re.weight": {"low": 0.01, "high": 5, "log": True, "off_at": 0},
}


def small(output: Path, **search: Any) -> dict[str, Any]:
    return configuration(output, "search=sampled", **({"space": SPACE, "trials": 14, "controls": {}} | search))


def run(output: Path, **search: Any) -> Any:
    return Study(small(output, **search), Tracker("none", output)).run()


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random"])
def test_points_depend_on_the_seed_alone(sampler: str, tmp_path: Path, pretended: list[str]) -> None:
    first, second, other = (
        run(tmp_path / name, sampler=sampler, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    points = [[trial.settings for trial in found.trials[1:]] for found in (first, second, other)]
    assert points[0] == points[1] != points[2]
    assert points[0][0] == {"intervention.gain": "logits", "intervention.dc.weight": 1, "intervention.re.weight": 0.8}
    assert {p["intervention.dc.weight"] == 0 for p in points[0]} == {True, False}
    assert len(points[0]) == 14


def test_a_stopped_study_goes_on_with_the_same_points(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "a")
    stop, append = Stop(), Records.append
    seen: list[str] = []

    def count(self: Records, cache_key: str, batch: Batch, shard: str | None = None) -> None:
        append(self, cache_key, batch)
        seen.append(cache_key)
        stop.requested = len(seen) in (7, 16)

    monkeypatch.setattr(Records, "append", count)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Study(small(tmp_path / "b"), Tracker("none", tmp_path), stop).run()
        stop.requested = False
    found = Study(small(tmp_path / "b"), Tracker("none", tmp_path), stop).run()
    assert [(t.key, t.metrics) for t in found.trials] == [(t.key, t.metrics) for t in whole.trials]
    assert [(t.key, t.metrics, t.difference) for t in found.rows] == [
        (t.key, t.metrics, t.difference) for t in whole.rows
    ]
    trials = load_optuna(tmp_path / "b" / "studies" / "small", "small").get_trials()
    on = {"intervention.dc.weight.on", "intervention.re.weight.on"}
    assert all(set(trial.params) == {*SPACE, *on} for trial in trials[1:])  # the same ones in every trial
    assert [trial.value for trial in trials] == [t.metrics["accuracy"] for t in unique(whole.trials)]


def unique(trials: Any) -> Any:
    return list({trial.key: trial for trial in trials}.values())


def test_the_best_point_is_reported_beside_the_configured_one(tmp_path: Path, pretended: list[str]) -> None:
    found = run(tmp_path, start=[{"intervention.gain": "weights"}])
    points = found.trials[1:]
    assert points[1].settings["intervention.gain"] == "weights"
    assert points[1].settings["intervention.dc.weight"] == 1
    best = max(points, key=lambda trial: trial.score)
    assert [row.name for row in found.rows] == ["stock", "as configured", "best of 14"]
    assert found.rows[2].settings == best.settings
    assert found.rows[1].settings == {}


def records(margins: list[float], images: list[str] | None = None) -> list[Record]:
    """Records of images that have two questions each, or of those that are named."""
    names = images or [str(n // 2) for n in range(len(margins))]
    made = zip(margins, names, strict=True)
    return [Record(str(n), name, "", "", "", "", 0.0, margin, "", 1.0) for n, (margin, name) in enumerate(made)]


def ends(margins: list[float], incumbent: list[float], images: list[str] | None = None) -> float | None:
    """What `should_prune` says of margins beside an incumbent's, which may be more."""
    more = [f"later {n}" for n in range(len(incumbent) - len(margins))] if images else []
    return should_prune(records(incumbent, images and [*images, *more]), records(margins, images))


def test_little_chance_to_end_above_the_incumbent_ends_a_trial() -> None:
    """Worse on nearly all images, though by little beside their spread."""
    spread = [10.0 * ((7 * n) % 13) for n in range(2 * STARTUP)]
    incumbent = [*spread, 1000.0, 1000.0]
    worse = [value - 0.1 - 0.01 * (n // 2 % 3) for n, value in enumerate(spread)]
    assert ends(worse, incumbent) is not None
    assert ends(worse[:-2], incumbent) is None  # too early
    assert ends([value + 0.1 for value in spread], incumbent) is None
    assert ends([value + (0.1 if (n // 2) % 2 else -0.1) for n, value in enumerate(spread)], incumbent) is None


def test_what_the_whole_is_expected_to_be_makes_up_for_the_first_images() -> None:
    """They are easier than the others: the incumbent's mean is 3 on them and 1 on all."""
    incumbent = [3.0] * 2 * STARTUP + [0.0] * 4 * STARTUP
    margins = [2.0, 2.5] * STARTUP
    assert ends(margins, incumbent) == pytest.approx(1 - 0.75)


def test_the_fewer_images_are_left_the_less_it_takes() -> None:
    """The same deficit, with as many images to come as were seen, and with one."""
    deficit = [-1.0, -1.0, 0.9, 0.9] * STARTUP
    assert ends(deficit, [0.0] * 2 * len(deficit)) is None
    assert ends(deficit, [0.0] * (len(deficit) + 2)) is not None


def test_questions_about_one_image_are_one_value() -> None:
    """Worse on each of 20 questions of one image, better on the others: that is one image's evidence."""
    margins = [-1.0] * 20 + [0.1] * STARTUP
    incumbent = [0.0] * 2 * len(margins)
    others = [str(n) for n in range(STARTUP)]
    assert ends(margins, incumbent, [*["same"] * 20, *others]) is None
    assert ends(margins, incumbent, [*(f"one of {n}" for n in range(20)), *others]) is not None


def test_samples_are_paired_by_their_ids() -> None:
    """Batches may come in any order, where several machines bring them; samples of another set are refused."""
    spread = [10.0 * ((7 * n) % 13) for n in range(2 * STARTUP)]
    incumbent = records([*spread, 1000.0, 1000.0])
    worse = records([value - 0.1 - 0.01 * (n // 2 % 3) for n, value in enumerate(spread)])
    expected = should_prune(incumbent, worse)
    assert expected is not None
    assert should_prune(incumbent, worse[::-1]) == pytest.approx(expected)
    with pytest.raises(SettingError, match="records cannot be paired"):
        should_prune(incumbent, [replace(record, id=f"x{record.id}") for record in worse])


def test_each_condition_has_its_own_points(tmp_path: Path, pretended: list[str]) -> None:
    found = run(tmp_path, axes={"dataset.gap": [0, 4]}, trials=3)
    assert [(t.name, t.condition["dataset.gap"]) for t in found.trials] == [
        (name, gap) for gap in (0, 4) for name in ("stock", "search", "search", "search")
    ]
    for gap in (0, 4):
        points = [t for t in found.trials if t.name == "search" and t.condition["dataset.gap"] == gap]
        (row,) = [row for row in found.rows if row.name == "best of 3" and row.condition["dataset.gap"] == gap]
        assert row.settings == max(points, key=lambda trial: trial.score).settings


def test_pruned_trials_are_told_and_tagged_but_not_reported(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large λ_dc is made clearly worse; on all others the margins are as for the stock model."""

    def graded(backbone: Any, benchmark: Any, samples: Any, method: Any, *others: Any) -> Any:
        dc = method.effective.get("dc") or {"weight": 0.0}
        for batch in run_batches(backbone, benchmark, samples, method, *others):
            shifted = [replace(record, margin=5 - dc["weight"]) for record in batch.records]
            yield replace(batch, records=shifted)

    monkeypatch.setattr(evaluation_module, "run_batches", graded)
    config = small(tmp_path, objective="margin", prune=True, trials=12)
    config["preset"]["tuning"] = 160
    config["batch_size"] = 32
    study = Study(config, Tracker("mlflow", tmp_path))
    found = study.run()
    pruned = [trial for trial in found.trials if trial.status == PRUNED]
    assert pruned
    assert all(trial.n == 96 for trial in pruned)  # 3 batches: the first 20 images, of 4 questions each, and 4 more
    assert all(trial.reason == "after 96 of 160 samples" for trial in pruned)
    chosen = found.rows[2]
    assert chosen.name == "best of 12"
    assert chosen.settings not in [trial.settings for trial in pruned]
    trials = load_optuna(tmp_path / "studies" / "small", "small").get_trials()
    told = {trial.user_attrs["key"]: trial for trial in trials}
    for trial in pruned:
        assert told[trial.key].state.name == "COMPLETE"
        assert told[trial.key].user_attrs["pruned"]
        assert told[trial.key].value == trial.value("margin") == pytest.approx(trial.metrics["margin"])
    before = study.progress.evaluated
    again = Study(config, Tracker("mlflow", tmp_path))
    assert again.run() == found
    assert (before, again.progress.evaluated) == (before, 0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prune": True}, "search.prune = True: needs objective=margin"),
        ({"sampler": "cmaes"}, "search.sampler = 'cmaes': must be one of tpe, qmc, random"),
        ({"trials": 0}, "search.trials = 0: must be a whole number of at least 1"),
        ({"objective": "f1"}, "search.objective = 'f1': must be one of accuracy, margin"),
        ({"start": [{"intervention.tau": 1}]}, r"search.start\[0\] = .*: must have keys of intervention.gain"),
        ({"space": {"intervention.dc.weight": {"low": -1, "high": 1}}}, "intervention.dc.weight = -1.0: must be"),
        ({"space": {"dataset.gap": [0, 256]}}, r"search.space.dataset.gap = .*: changes the samples or what answers"),
        ({"space": {"dataset.gap": {"low": 0, "high": 256, "whole": True}}}, "search.space.dataset.gap = .*: changes"),
        ({"controls": {"m": {"dataset.gap": 0}}}, "search.controls.m.dataset.gap = 0: changes the samples"),
    ],
)
def test_bad_searches_are_named(tmp_path: Path, changed: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        run(tmp_path, **changed)
    assert not list(tmp_path.iterdir())
