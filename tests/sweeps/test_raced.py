"""The protocol raced: few samples find the best point, the same ones after a stop and with any number of workers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdrs.records import Records
from tdrs.results import Batch
from tdrs.settings import SettingError
from tdrs.stopping import Stop
from tdrs.sweeps.arms import Values
from tdrs.sweeps.race import FINALISTS, Ask, Race
from tdrs.sweeps.space import Space
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import COMPLETE, PRUNED, Settings
from tdrs.tracking import Tracker

from .pretend import configuration

SPACE: dict[str, Any] = {
    "intervention.gain": ["logits", "weights"],
    "intervention.dc.weight": {"low": 0.01, "high": 5, "log": True, "off_at": 0},
    "intervention.re.weight": {"low": 0.01, "high": 5, "log": True, "off_at": 0},
}
IMAGES = [str(n // 2) for n in range(256)]
WEIGHTS = [1.0] * 256


class World:
    """Samples that an arm answers rightly with a chance that its settings decide: one number and one choice matter."""

    def __init__(self, seed: int) -> None:
        self.difficulty = np.random.default_rng(seed).random(len(IMAGES))

    @staticmethod
    def share(settings: Settings) -> float:
        weight = settings["intervention.dc.weight"]
        gain = 0.4 * np.exp(-((np.log(max(weight, 1e-3)) - np.log(0.3)) ** 2)) if weight else 0.0
        return 0.3 + float(gain) * (settings["intervention.gain"] == "weights")

    def values(self, settings: Settings, upto: int) -> Values:
        margins = (self.share(settings) - self.difficulty[:upto]) * 10
        return Values((margins > 0).astype(float), margins)


def race(seed: int, samples: int, **options: Any) -> tuple[Race, World]:
    world = World(seed)
    start = [{"intervention.gain": "logits", "intervention.dc.weight": 1.0, "intervention.re.weight": 0.8}]
    off = {"intervention.gain": "logits", "intervention.dc.weight": 0, "intervention.re.weight": 0}
    found = Race(
        Space.of(SPACE, "space"), IMAGES, WEIGHTS, world.values(off, 256), start, samples, seed=seed, **options
    )
    while asked := found.ask():
        found.tell(asked, [world.values(one.settings, one.upto) for one in asked])
    return found, world


@pytest.mark.parametrize("seed", range(2))
def test_few_samples_find_what_is_nearly_the_best(seed: int) -> None:
    samples = 12 * len(IMAGES)
    found, world = race(seed, samples)
    assert world.share(found.arms[found.chosen()].settings) > 0.66  # of at most 0.7, from 0.3
    assert found.spent <= samples  # enough for twelve whole arms
    assert len(found.arms) > 12
    assert [arm.seen for arm in found.arms].count(len(IMAGES)) == len(found.finalists)


def test_a_budget_below_one_arm_measures_the_first_point() -> None:
    found, _ = race(0, 1)
    assert [arm.seen for arm in found.arms] == [len(IMAGES)]
    assert found.chosen() == 0


def test_the_simplest_of_the_best_is_chosen() -> None:
    """The best of three whole arms changes two settings; one that changes none is as good, within an error, or not."""
    points: list[Settings] = [
        {"intervention.gain": "logits", "intervention.dc.weight": 1.0, "intervention.re.weight": 0.8},
        {"intervention.gain": "weights", "intervention.dc.weight": 0.1, "intervention.re.weight": 0.8},
    ]
    for wrong, chosen in ((range(0, 6, 2), 0), (range(0, 80, 2), 1)):
        found = Race(Space.of(SPACE, "space"), IMAGES, WEIGHTS, Values(np.zeros(256), np.zeros(256)), points, 2000)
        scores = np.ones((2, 256))
        scores[0, list(wrong)] = 0
        scores[1, 1:4] = 0  # on other images
        while asked := found.ask():
            found.tell(asked, [_of(scores, points, one) for one in asked])
        assert sorted(found.finalists) == [0, 1]
        assert found.chosen() == chosen


def _of(scores: np.ndarray, points: list[Settings], one: Ask) -> Values | None:
    if one.settings not in points:
        return None
    return Values(scores[points.index(one.settings), : one.upto], np.full(one.upto, np.nan))


def test_an_arm_has_the_luck_of_its_relative() -> None:
    """Three arms are right on the first images: two are copies, and the one that saw more says that it was luck."""
    weights = (0.1, 0.2, 0.3)
    points: list[Settings] = [
        {"intervention.gain": "logits", "intervention.dc.weight": one, "intervention.re.weight": 0.8} for one in weights
    ]
    found = Race(Space.of(SPACE, "space"), IMAGES, WEIGHTS, Values(np.zeros(256), np.zeros(256)), points, 4000)
    rng = np.random.default_rng(0)
    scores = (rng.random((3, 256)) < 0.5).astype(float)
    scores[0, :64] = rng.random(64) < 0.8
    scores[1] = scores[0]
    scores[1, ::40] = 1 - scores[1, ::40]
    scores[2, :64] = rng.permutation(scores[0, :64])
    for number, upto in enumerate((256, 64, 64)):
        found.tell([Ask(points[number], upto)], [_of(scores, points, Ask(points[number], upto))])
    means, variances, relatives, shares = found.known.relatives
    assert relatives.tolist()[:2] == [-1, 0]
    assert shares[2] < 0.1
    assert means[1] - means[0] == pytest.approx(scores[1, :64].mean() - scores[0, :64].mean())
    assert variances[0] < variances[1] < variances[2]
    assert shares[1] == pytest.approx(variances[0] / variances[1])  # the arm is its relative and a small difference
    assert means[2] > means[1] + 0.1
    noise = np.corrcoef(found.known.noise(rng, 2000).T)
    assert noise[0, 1] == pytest.approx(np.sqrt(shares[1]), abs=0.05)
    assert abs(noise[0, 2]) < 0.1


def test_one_of_a_family_goes_on_at_a_time() -> None:
    """Eight near copies are the best on the first images."""
    rng = np.random.default_rng(1)
    points: list[Settings] = [
        {"intervention.gain": gain, "intervention.dc.weight": weight, "intervention.re.weight": 0.8}
        for gain in ("logits", "weights")
        for weight in np.linspace(0.1, 0.8, 8).tolist()
    ]
    scores = (rng.random((16, 256)) < 0.45).astype(float)
    scores[8:] = scores[8]
    scores[8:, :64] = np.arange(64) % 3 > 0
    for number in range(8):  # copies differ in an answer that is equally often right
        scores[8 + number, number] = 1 - scores[8 + number, number]
    found = Race(Space.of(SPACE, "space"), IMAGES, WEIGHTS, Values(np.zeros(256), np.zeros(256)), points, 9000)
    asked = [Ask(point, 64) for point in points]
    found.tell(asked, [_of(scores, points, one) for one in asked])
    assert len(found.arms) == 16
    gone = [one.settings for one in found._going_on(10_000, exploring=True)]
    assert sum(one["intervention.gain"] == "weights" for one in gone) == 1
    assert len({found.known.family(number) for number in range(8, 16)}) == 1
    assert len({found.known.family(number) for number in range(8)}) == 8


@pytest.mark.parametrize("points", [2, None])
def test_points_that_edit_alike_are_one(points: int | None) -> None:
    def values(settings: Settings, upto: int) -> Values:
        return Values(np.arange(upto) % 2.0, np.full(upto, 1.0))

    space = Space.of(SPACE if points is None else {"intervention.gain": ["logits", "weights"]}, "space")
    found = Race(space, IMAGES, WEIGHTS, Values(np.zeros(256), np.zeros(256)), [], 2000)
    while asked := found.ask():
        found.tell(asked, [values(one.settings, one.upto) for one in asked])
    assert len(found.arms) == 1
    assert found.spent == 256


def test_weights_decide_what_is_best() -> None:
    """One point is right on the first half of the images, the other on the second half, which weighs more."""

    def values(settings: Settings, upto: int) -> Values:
        right = np.arange(256)[:upto] < 128
        right = right if settings["intervention.gain"] == "logits" else ~right
        return Values(right.astype(float), np.full(upto, np.nan))

    space = Space.of({"intervention.gain": ["logits", "weights"]}, "space")
    points: list[Settings] = [{"intervention.gain": gain} for gain in ("logits", "weights")]
    stock = Values(np.zeros(256), np.full(256, np.nan))
    for weights, best in (([1.0] * 128 + [1.5] * 128, 1), ([1.5] * 128 + [1.0] * 128, 0)):
        found = Race(space, IMAGES, weights, stock, points, 1024)
        while asked := found.ask():
            found.tell(asked, [values(one.settings, one.upto) for one in asked])
        assert [arm.seen for arm in found.arms] == [256, 256]
        assert found.chosen() == best


def test_it_ends_if_everything_fails() -> None:
    world = World(0)
    found = Race(
        Space.of(SPACE, "space"),
        IMAGES,
        WEIGHTS,
        world.values({"intervention.gain": "", "intervention.dc.weight": 0}, 256),
        [],
        1000,
    )
    rounds = 0
    while asked := found.ask():
        found.tell(asked, [None] * len(asked))
        rounds += 1
    assert rounds < 20
    assert found.arms == []


def test_what_failed_is_not_asked_for_again() -> None:
    """The first point fails on its second bundle, and another one is measured whole."""
    world = World(0)
    settings = {"intervention.gain": "weights", "intervention.dc.weight": 0.3, "intervention.re.weight": 0.8}
    off = {"intervention.gain": "logits", "intervention.dc.weight": 0, "intervention.re.weight": 0}
    found = Race(Space.of(SPACE, "space"), IMAGES, WEIGHTS, world.values(off, 256), [settings], 500)
    failed = 0
    while asked := found.ask():
        fails = [one.settings == settings and one.upto > 16 for one in asked]
        failed += sum(fails)
        values = [None if bad else world.values(one.settings, one.upto) for one, bad in zip(asked, fails, strict=True)]
        found.tell(asked, values)
    assert failed == 1
    assert found.arms[found.chosen()].settings != settings
    assert found.arms[found.chosen()].seen == 256


def test_soft_scores_grow_with_the_margin_and_keep_what_it_does_not_explain() -> None:
    values = Values(np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.3]), np.array([0.1, 9.0, -0.1, -9.0, -2.0, 1.0]))
    soft = values.soft
    assert 0.5 < soft[0] < soft[1] <= 1
    assert 0.5 > soft[2] > soft[3] >= 0
    assert soft[4] == 1  # an answer that the margin says is wrong
    assert soft[5] == 0.3  # no 0/1 score
    assert Values(np.array([1.0, 0.0]), np.array([np.nan, np.nan])).soft.tolist() == [1.0, 0.0]


def small(output: Path, **search: Any) -> dict[str, Any]:
    config = configuration(output, "search=raced", **({"space": SPACE, "samples": 1200, "controls": {}} | search))
    return config | {"preset": {"tuning": 96, "held_out": 8}}


def run(output: Path, **search: Any) -> Any:
    return Study(small(output, **search), Tracker("none", output)).run()


def told(outcome: Any) -> Any:
    return [(t.key, t.n, t.status, t.metrics, t.difference) for t in [*outcome.trials, *outcome.rows]]


def test_a_study_races_and_goes_on_after_a_stop(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "a")
    points = [trial for trial in whole.trials if trial.name == "search"]
    assert {trial.status for trial in points} == {COMPLETE, PRUNED}
    assert 1 <= sum(trial.status == COMPLETE for trial in points) <= FINALISTS
    assert {trial.n for trial in points} <= {16, 32, 64, 96}
    assert [row.name for row in whole.rows] == ["stock", "as configured", f"best of {len(points)}"]
    chosen = whole.rows[2].settings
    assert any(trial.settings == chosen and trial.status == COMPLETE for trial in points)

    stop, append, seen = Stop(), Records.append, [0]

    def count(self: Records, cache_key: str, batch: Batch, shard: str | None = None) -> None:
        append(self, cache_key, batch)
        seen[0] += 1
        stop.requested = seen[0] in (40, 150)

    monkeypatch.setattr(Records, "append", count)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Study(small(tmp_path / "b"), Tracker("none", tmp_path), stop).run()
        stop.requested = False
    found = Study(small(tmp_path / "b"), Tracker("none", tmp_path), stop).run()
    assert told(found) == told(whole)
    monkeypatch.undo()
    again = Study(small(tmp_path / "b"), Tracker("none", tmp_path))
    assert again.dry_run()[0].endswith("to run: 0")


def test_later_samples_of_a_finished_evaluation_are_not_looked_at(tmp_path: Path, pretended: list[str]) -> None:
    """The first point has been evaluated whole, which changes nothing in the race."""
    first = run(tmp_path / "a")
    config = small(tmp_path / "b") | {"search": {**small(tmp_path / "b")["search"], "samples": 1}}
    Study(config, Tracker("none", tmp_path)).run()
    second = run(tmp_path / "b")
    assert told(second) == told(first)


def test_a_dry_run_says_that_settings_come_later(tmp_path: Path, pretended: list[str]) -> None:
    lines = Study(small(tmp_path), Tracker("none", tmp_path)).dry_run()
    assert "later settings depend on earlier results" in lines[-1]
    assert not any((tmp_path / "records").glob("*"))


def test_points_that_fail_are_shown(tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tdrs import evaluation

    asked = evaluation.run_batches

    def some_fail(backbone: Any, benchmark: Any, samples: Any, method: Any, *rest: Any, **more: Any) -> Any:
        if getattr(method, "gain", "") == "weights":
            raise RuntimeError("the GPU fell off")
        return asked(backbone, benchmark, samples, method, *rest, **more)

    monkeypatch.setattr(evaluation, "run_batches", some_fail)
    found = run(tmp_path)
    assert found.rows[2].settings["intervention.gain"] == "logits"
    keys = {t.cache_key for t in found.failures if t.settings["intervention.gain"] == "weights"}
    assert {trial.cache_key for trial in found.failures} == keys  # without stages, both readings are one evaluation
    assert len({trial.key for trial in found.failures}) == len(found.failures) > 1
    assert found.rows[2].budget == sum(t.status in (COMPLETE, PRUNED) and t.name == "search" for t in found.trials)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"samples": 0}, "search.samples = 0"),
        ({"at_once": 1.5}, "search.at_once = 1.5"),
        ({"start": [{"intervention.sd": True}]}, "search.start.0. .*: must have keys of intervention.gain, "),
        (
            {"start": [{"intervention.dc.weight": 9}]},
            "weight = 9: lies outside the space: must be from 0.01 to 5, or 0",
        ),
        ({"start": [{"intervention.gain": "w"}]}, "gain = 'w': lies outside the space: must be one of logits, weights"),
        ({"objective": "margin"}, "search.objective = 'margin'"),
    ],
)
def test_bad_settings_are_named(search: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message):
        run(tmp_path, **search)
    assert list(tmp_path.iterdir()) == []


def asked_of_races(monkeypatch: pytest.MonkeyPatch) -> list[Ask]:
    """A list that will have all that races ask for."""
    asked: list[Ask] = []
    tell = Race.tell

    def note(self: Race, ask: Any, found: Any) -> None:
        asked.extend(ask)
        tell(self, ask, found)

    monkeypatch.setattr(Race, "tell", note)
    return asked


def test_points_of_an_earlier_study_are_known_and_cost_nothing(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {
        "intervention.gain": ["logits", "weights"],
        "intervention.dc.weight": [0.3, 1.0],
        "intervention.sd": [True, False],
    }
    preset = {"tuning": 96, "held_out": 8}
    grid = configuration(tmp_path, "search=grid", "study.name=first", space=space, controls={}) | {"preset": preset}
    Study(grid, Tracker("none", tmp_path)).run()
    asked = asked_of_races(monkeypatch)
    lists = {
        "intervention.gain": ["logits", "weights"],
        "intervention.dc.weight": [0.3, 1.0, 2.0],
        "intervention.sd": [True, False],
    }
    found = run(tmp_path, space=lists, after=["first"])
    known = [
        trial for trial in found.trials if trial.name == "search" and trial.settings["intervention.dc.weight"] != 2.0
    ]
    assert len(known) == 8
    assert {trial.status for trial in known} == {COMPLETE}
    assert {one.settings["intervention.dc.weight"] for one in asked} == {2.0}

    # points whose records are gone are not known, and are not measured again beside the budget
    for trial in known[1:]:
        shutil.rmtree(tmp_path / "records" / trial.cache_key)
    asked.clear()
    again = run(tmp_path, space=lists, after=["first"], seed=1)
    assert known[0].settings not in [one.settings for one in asked]
    measured = {repr(one.settings): one.upto for one in asked}
    assert len(measured) > 1
    assert sum(measured.values()) <= 1200
    assert [t.status for t in again.trials if t.settings == known[0].settings] == [COMPLETE]


def test_what_an_earlier_study_chose_begins(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was measured on other samples, so its points are not known."""
    first = configuration(
        tmp_path, "search=grid", "study.name=first", space={"intervention.dc.weight": [0.3, 0.7]}, controls={}
    )
    best = Study(first, Tracker("none", tmp_path)).run().rows[-1].settings
    asked = asked_of_races(monkeypatch)
    run(tmp_path, after=["first"])
    assert asked[1].settings["intervention.dc.weight"] == best["intervention.dc.weight"]


@pytest.mark.parametrize(("after", "message"), [
    (["nothing"], "search.after = 'nothing': is no finished study in"),
    ([3], r"search.after = \[3\]: must be a list of names of studies"),
])  # fmt: skip
def test_a_study_to_begin_with_must_be_there(tmp_path: Path, pretended: list[str], after: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Study(small(tmp_path, after=after))
    assert list(tmp_path.iterdir()) == []
