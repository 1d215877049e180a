"""What matters in a search: on objectives whose truth is known, and in every case where nothing can be said."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdrs import plot
from tdrs.analysis import importance, report, search_importance, surrogate
from tdrs.analysis.importance_figures import draw_importance
from tdrs.analysis.search_importance import Importance
from tdrs.analysis.search_points import CHOSEN, search_points
from tdrs.analysis.search_scores import Scores, scores_of
from tdrs.analysis.study_results import StudyResults, load_study
from tdrs.analysis.surrogate import number_at, unit
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.sweeps.race import sequence
from tdrs.sweeps.space import Range
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import FAILED, PRUNED, STOCK, Outcome, Settings, Trial
from tdrs.tracking import Tracker
from tests.sweeps import pretend as pretended_studies
from tests.sweeps.pretend import configuration, pretend

GAIN, SD, WEIGHT = "intervention.gain", "intervention.sd", "intervention.dc.weight"
SPACE: dict[str, Any] = {
    GAIN: ["logits", "weights"],
    SD: [True, False],
    WEIGHT: {"low": 0.01, "high": 10, "log": True, "off_at": 0},
}
Objective = Callable[[Settings, float], float]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer trees and resamples, so that all tests take seconds."""
    for module, values in (
        (search_importance, {"RESAMPLES": 4, "SHUFFLES": 4, "TREES": 16, "RESAMPLE_TREES": 8, "LEVELS": 4, "FINE": 8}),
        (surrogate, {"REPEATS": 2, "TREES": 16, "BACKGROUND": 32}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


@pytest.fixture
def _unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, and not written."""
    monkeypatch.setattr(
        importance, "save", lambda _, folder, name, __: [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    )


def measured(settings: Settings, value: float, number: int, **given: Any) -> Trial:
    metrics = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "margin": value}
    values = {"name": "search", "split": "tuning", "condition": {}, "n": 8, "metrics": metrics}
    return Trial(**({**values, "settings": settings, "cache_key": f"{number:016x}"} | given))


def drawn(objective: Objective, number: int = 48, seed: int = 0) -> list[Trial]:
    """Trials at random points of the space; an objective gets the settings, and noise of variance one."""
    rng = np.random.default_rng(seed)
    given = Range(**SPACE[WEIGHT])
    trials = []
    for at in range(number):
        settings = {GAIN: str(rng.choice(SPACE[GAIN])), SD: bool(rng.random() < 0.5)}
        settings[WEIGHT] = number_at(given, rng.random()) if rng.random() < 0.5 else 0
        trials.append(measured(settings, objective(settings, rng.normal()), at))
    return trials


def study(output: Path, trials: Sequence[Trial], **search: Any) -> Outcome:
    """An outcome whose first trial of each condition is the configured point, which a sampler did not draw."""
    given = {"space": SPACE, "sampler": "qmc", "objective": "margin", "controls": {}} | search
    config = configuration(output, "search=sampled", **given)
    first = {GAIN: "logits", SD: True, WEIGHT: 1}
    axes = given.get("axes") or {"": [""]}
    ((key, values),) = axes.items()
    all_trials: list[Trial] = []
    for value in values:
        condition = {key: value} if key else {}
        all_trials.append(measured({}, 0.1, 9999, name=STOCK, condition=condition))
        all_trials.append(measured(first, 0.0, 9998, condition=condition))
        all_trials += [trial for trial in trials if trial.condition == condition]
    return Outcome("small", "sampled", config, all_trials, [], key="k")


def found(output: Path, trials: Sequence[Trial], **search: Any) -> Importance:
    (one,) = search_importance.importance(study(output, trials, **search), Records(output / "records"))
    return one


def of(one: Importance, name: str) -> tuple[float, float]:
    """fANOVA and PED-ANOVA of a parameter."""
    (parameter,) = [p for p in one.parameters if p.name == name]
    return parameter.fanova.value, parameter.ped.value


def test_numbers_and_places_are_inverse() -> None:
    for given in (Range(0.01, 10, log=True), Range(-2, 3), Range(1, 9, whole=True)):
        for place in (0.0, 0.25, 1.0):
            assert unit(given, number_at(given, place)) == pytest.approx(place)


def test_one_setting_matters_alone(tmp_path: Path) -> None:
    one = found(tmp_path, drawn(lambda s, noise: (s[GAIN] == "weights") + 0.02 * noise))
    assert one.parameters[0].name == GAIN
    fanova, ped = of(one, GAIN)
    assert fanova > 0.8 > one.fanova_floor
    assert ped == max(p.ped.value for p in one.parameters)
    assert all(p.fanova.value < one.fanova_floor for p in one.parameters[1:])
    assert one.r2 is not None
    assert one.r2.value > 0.9
    assert one.warnings == ()
    assert one.sobol[0].first.value == pytest.approx(one.sobol[0].total.value, abs=0.1)
    assert one.sobol[0].first.value > 0.9
    assert all(pair.share.value < 0.05 for pair in one.pairs)
    gain = one.plateaus[0]
    assert (gain.best, gain.kept, gain.plateau) == ("weights", ["weights"], "weights")
    assert one.plateaus[1].plateau == "everywhere"
    assert max(abs(change.value) for change in one.plateaus[2].changes) < 0.1
    assert all(p.fanova.low <= p.fanova.value <= p.fanova.high for p in one.parameters)


def test_resamples_in_which_all_points_are_equal_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One point of 48 is better, and half of the resamples lack it: there no setting explains anything."""
    monkeypatch.setattr(search_importance, "RESAMPLES", 12)
    shares, seen = search_importance._shares, []

    def note(*given: Any) -> Any:
        seen.append(shares(*given))
        return seen[-1]

    monkeypatch.setattr(search_importance, "_shares", note)
    trials = drawn(lambda *_: 0.0)
    trials[7] = measured(trials[7].settings, 1.0, 7)
    one = found(tmp_path, trials)
    resampled = [fanova for fanova, _ in seen[1:13]]
    assert len(seen) == 1 + 12 + search_importance.SHUFFLES
    assert 1 <= sum(set(fanova.values()) == {0.0} for fanova in resampled) <= 11
    (weight,) = [p.fanova for p in one.parameters if p.name == WEIGHT]
    spread = np.std([fanova[WEIGHT] for fanova in resampled], ddof=1)
    assert weight.low == pytest.approx(max(0, weight.value - 1.96 * spread), abs=1e-3)


@pytest.mark.usefixtures("_unsaved")
def test_two_settings_interact(tmp_path: Path) -> None:
    one = found(tmp_path, drawn(lambda s, noise: ((s[GAIN] == "weights") != s[SD]) + 0.02 * noise, 64))
    names = {one.parts[one.pairs[0].first].key, one.parts[one.pairs[0].second].key}
    assert names == {GAIN, SD}
    assert one.pairs[0].share.value > max(0.6, one.pair_floor, 3 * one.pairs[1].share.value)
    assert max(of(one, GAIN)[0], of(one, SD)[0]) < 0.3
    assert one.sobol[0].total.value > 0.6 > one.sobol[0].first.value
    text = importance.importance_markdown(importance.importance_sections([one], tmp_path))
    assert "gain and sd interact: " in text


@pytest.mark.usefixtures("_unsaved")
def test_nothing_matters(tmp_path: Path) -> None:
    one = found(tmp_path, drawn(lambda _, noise: noise))
    assert one.r2 is not None
    assert one.r2.value < search_importance.BELIEVABLE
    (warning,) = one.warnings
    assert f"{one.r2.value:.2f}, below 0.5" in warning
    assert one.sobol == ()
    assert sum(p.fanova.value > one.fanova_floor for p in one.parameters) <= 1
    text = importance.importance_markdown(importance.importance_sections([one], tmp_path))
    assert "Sobol indices are not computed: R² is below 0.5." in text
    assert "nan" not in text


def test_the_number_of_a_switch_that_is_off_has_no_importance(tmp_path: Path) -> None:
    one = found(tmp_path, drawn(lambda s, noise: (s[WEIGHT] == 0) + 0.02 * noise, 64))
    assert one.parameters[0].name == f"{WEIGHT}.on"
    assert of(one, f"{WEIGHT}.on")[0] > 0.8
    assert of(one, WEIGHT)[0] < 0.1  # with the lowest number while off, it would share the switch's importance
    weight = next(index for index in one.sobol if index.key == WEIGHT)
    assert weight.first.value > 0.9  # switch and number are one setting here
    plateau = next(p for p in one.plateaus if p.key == WEIGHT)
    assert (plateau.best, plateau.plateau) == (0, "off")


def test_a_number_may_move_until_a_loss_is_shown(tmp_path: Path) -> None:
    given = Range(**SPACE[WEIGHT])

    def objective(settings: Settings, noise: float) -> float:
        return 0.0 if settings[WEIGHT] == 0 else 1 + 0.01 * noise - 4 * (unit(given, settings[WEIGHT]) > 0.5)

    one = found(tmp_path, drawn(objective, 80))
    plateau = one.plateaus[2]
    middle = math.sqrt(given.low * given.high)
    assert plateau.kept
    assert max(plateau.kept) < 2 * middle
    assert 0 not in plateau.kept
    assert of(one, WEIGHT)[0] > 0.3


@pytest.mark.usefixtures("_unsaved")
def test_what_is_left_out_is_counted_and_said(tmp_path: Path) -> None:
    trials = drawn(lambda s, noise: s[SD] + 0.1 * noise, 30)
    twin = measured(trials[0].settings, trials[0].metrics["margin"], 0)
    early = measured(trials[1].settings, 5.0, 500, status=PRUNED, expected=7.0)
    broken = measured(trials[2].settings, 0.0, 501, status=FAILED, metrics={}, reason="no memory")
    no_value = measured(trials[3].settings, math.nan, 502)
    outside = measured({**trials[3].settings, SD: "x"}, 3.0, 503)
    elsewhere = measured(trials[3].settings, 9.0, 504, split="held_out")
    outcome = study(tmp_path, [*trials, twin, early, broken, no_value, outside, elsewhere])
    (points,) = search_points(outcome)
    assert [trial.cache_key for trial in points.drawn] == [trial.cache_key for trial in trials]
    assert sorted(points.left_out.values()) == [1] * 6
    assert len(points.history) == 36
    assert points.stock == 0.1
    one = found(tmp_path, outcome.trials[2:])
    (section,) = importance.importance_sections([one], tmp_path)
    (line,) = [line for line in section.notes if "counted" in line]
    assert line.startswith("30 of 36 trials are counted; left out: 1 were given in search.start; 1 edit as an earlier")
    assert "1 ended early" in line
    assert any("1 trials that ended early are left out, and they are the bad ones" in text for text in one.warnings)


def test_points_of_tpe_are_of_the_region_it_looked_at(tmp_path: Path) -> None:
    one = found(tmp_path, drawn(lambda s, noise: s[SD] + 0.01 * noise, 24), sampler="tpe")
    assert one.warnings[0].startswith("Points were chosen by TPE: importance is of the region it looked at")
    assert one.points.left_out == {}  # the given point is as biased as all others
    assert one.sobol == ()


def constant(*_: object) -> float:
    return 0.25


@pytest.mark.usefixtures("_unsaved")
@pytest.mark.parametrize(
    ("trials", "space", "said"),
    [
        ([], SPACE, "0 of 1 trials are counted; left out: 1 were given in search.start. No importance"),
        (drawn(constant, 1), SPACE, "1 of 2 trials are counted"),
        (drawn(lambda s, noise: noise, 19), SPACE, "it needs at least 20 for 3 settings"),
        (drawn(constant, 20), SPACE, "All 20 points have the same margin: no setting changes it."),
        (drawn(constant, 20), {SD: [True]}, "has one value for each setting, so there is nothing to compare"),
        (
            drawn(lambda s, noise: noise, 12),
            SPACE | {f"intervention.{name}": [True, False] for name in "abcdefghijkl"},
            "0 of 13 trials are counted; left out: 13 lie outside the space. No importance",
        ),
    ],
)
def test_where_nothing_can_be_said_one_sentence_says_why(
    tmp_path: Path, trials: list[Trial], space: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdrs.analysis.search_points._given", lambda *_: 1)
    one = found(tmp_path, trials, space=space)
    assert said in one.stopped
    (section,) = importance.importance_sections([one], tmp_path)
    assert section.warnings == [one.stopped]
    assert section.rows == []
    assert "nan" not in importance.importance_markdown([section])
    with pytest.raises(SettingError, match="small"):
        draw_importance([one], study="small")


def test_fewer_points_than_settings(tmp_path: Path) -> None:
    space = SPACE | {f"intervention.x{n}": [True, False] for n in range(24)}
    trials = [
        measured(trial.settings | {f"intervention.x{n}": True for n in range(24)}, float(number), number)
        for number, trial in enumerate(drawn(constant, 26))
    ]
    outcome = study(tmp_path, trials)
    outcome.config["search"] |= {"space": space, "sampler": "tpe"}
    (one,) = search_importance.importance(outcome, Records(tmp_path / "records"))
    assert "it needs at least 28 for 27 settings" in one.stopped


@pytest.mark.usefixtures("_unsaved")
def test_each_condition_has_its_own_analysis(tmp_path: Path) -> None:
    first = drawn(lambda s, noise: s[SD] + 0.01 * noise, 24)
    second = drawn(lambda s, noise: (s[GAIN] == "weights") + 0.01 * noise, 24, seed=1)
    trials = [
        Trial(**{**trial.__dict__, "condition": {"dataset.gap": gap}})
        for gap, some in ((3, first), (9, second))
        for trial in some
    ]
    outcome = study(tmp_path, trials, axes={"dataset.gap": [3, 9, 12]})
    three = search_importance.importance(outcome, Records(tmp_path / "records"))
    assert [one.parameters[0].name if one.parameters else "" for one in three] == [SD, GAIN, ""]
    assert "0 of 1 trials" in three[2].stopped
    written = importance.write_importance(three, tmp_path)
    text = written[0].read_text()
    assert [text.count(f"### mini_llava, mini_scienceqa, gap {gap}\n") for gap in (3, 9, 12)] == [1, 1, 1]
    assert {"importance_1.svg", "importance_2.svg", "importance_history_3.svg"} <= {path.name for path in written}
    results = StudyResults(outcome, Records(tmp_path / "records"), tmp_path)
    assert len(plot.importance(results).axes) == 6  # two conditions, with Sobol indices; of the third nothing is said
    with pytest.raises(SettingError, match="axes"):
        draw_importance(three, axes=draw_importance(three).axes[:1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """A study of random points with records."""
    output = tmp_path_factory.mktemp("importance")
    given = {"space": SPACE, "sampler": "random", "objective": "margin", "trials": 44, "controls": {}}
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch)
        Study(configuration(output, "search=sampled", **given), Tracker("none", output), command="a command").run()
    return load_study("small", output)


def test_images_are_resampled_from_the_records(finished: StudyResults) -> None:
    (points,) = search_points(finished.outcome)
    scores = scores_of(points.measured, "margin", finished.records)
    assert not isinstance(scores, str)
    assert scores.means == pytest.approx(scores.drawn(np.ones(scores.images)))
    assert scores.means == pytest.approx([t.metrics["margin"] for t in points.measured])
    (one,) = search_importance.importance(finished.outcome, finished.records)
    assert any("and of the images" in line for line in one.notes)
    assert all(plateau.seen is not None and plateau.best in plateau.seen for plateau in one.plateaus)
    (unread,) = search_importance.importance(finished.outcome, Records(finished.folder / "nowhere"))
    assert any("not of the images, because records of a point are missing" in line for line in unread.notes)
    assert {plateau.seen_values for plateau in unread.plateaus} == {"not known"}
    assert len(search_points(finished.outcome, "accuracy")) == 1
    with pytest.raises(SettingError, match="objective"):
        search_points(finished.outcome, "speed")


def test_the_command_and_the_report_show_what_matters(
    finished: StudyResults, capsys: pytest.CaptureFixture[str], pretended: list[str]
) -> None:
    output = finished.folder.parents[1]
    assert importance.main(["study=small", f"output={output}"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(path.exists() for path in written)
    assert report.main(["study=small", f"output={output}"]) == 0
    page = (finished.folder / "report.html").read_text()
    assert page.count("What matters</h2>") == 1
    assert page.count("<figcaption>Importance of each setting</figcaption>") == 1
    assert "cross-validation" in page
    text = (finished.folder / "report.md").read_text()
    own = (finished.folder / "importance.md").read_bytes()
    assert own.decode().strip() in text

    # another objective has files of its own: the report links to those of the study's
    picture = (finished.folder / "importance.png").read_bytes()
    capsys.readouterr()
    assert importance.main(["study=small", f"output={output}", "objective=accuracy"]) == 0
    others = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert {"importance_accuracy.md", "importance_accuracy.svg", "importance_accuracy_slices.svg"} <= set(others)
    assert all(name.startswith("importance_accuracy") for name in others)
    assert (finished.folder / "importance.md").read_bytes() == own
    assert (finished.folder / "importance.png").read_bytes() == picture
    for wrong in ("", "acuracy"):
        assert importance.main(["study=small", f"output={output}", f"objective={wrong}"]) == 2
        assert f"objective = '{wrong}': must be one of accuracy, margin" in capsys.readouterr().err


@pytest.mark.usefixtures("_unsaved")
def test_points_of_both_splits_are_counted_once(tmp_path: Path, pretended: list[str]) -> None:
    given = {"space": SPACE, "trials": 44, "controls": {}, "start": [{WEIGHT: 0.5}]}
    config = configuration(tmp_path, "search=points", **given)
    outcome = Study(config, Tracker("none", tmp_path), command="x").run()
    (one,) = search_importance.importance(outcome, Records(tmp_path / "records"))
    assert one.points.objective == "accuracy"
    assert len(one.points.history) == 45
    assert one.points.left_out["were given in search.start"] == 1
    assert len(one.points.drawn) + sum(one.points.left_out.values()) == 45
    assert one.parameters


def test_a_study_without_a_space_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pretended: list[str]
) -> None:
    methods = {"sharper": {"intervention": "temperature", "intervention.tau": 0.5}}
    Study(
        configuration(tmp_path, "search=compare", methods=methods, axes={"dataset.gap": [3]}),
        Tracker("none", tmp_path),
        command="x",
    ).run()
    capsys.readouterr()
    assert importance.main(["study=small", f"output={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()
    reason = "has no search space: its protocol is compare, and must be one of sampled, points, raced"
    assert said == [f"error: study = 'small': {reason}"]
    assert importance.main(["study=small", f"output={tmp_path}", "objective=speed"]) == 2


def test_points_that_saw_few_samples_are_compared_without_the_effects_of_samples() -> None:
    """Scores that are sums of the two effects: every mean over all samples is found, also from the easy first ones."""
    rng = np.random.default_rng(0)
    effects, points = np.sort(rng.random(24))[::-1], np.array([0.1, 0.5, -0.2, 0.3])
    whole = points[:, None] + effects
    values, weights, images = whole.copy(), np.tile([1.0, 2.0, 1.0], 8), np.repeat(np.arange(8), 3)
    for number, seen in enumerate((3, 6, 24, 12)):
        values[number, seen:] = np.nan
    scores = Scores(values, weights, images)
    assert scores.means == pytest.approx(np.average(whole, axis=1, weights=weights), abs=1e-6)
    later = np.array([0, 0, 1, 2, 0, 1, 0, 0.0])  # images that the first two did not see: they keep their means
    assert scores.drawn(later)[:2] == pytest.approx(scores.means[:2])
    assert scores.drawn(later) - scores.drawn(later)[2] == pytest.approx(points - points[2], abs=1e-6)
    paired = scores.differences(2, np.stack([later, np.ones(8)], axis=1))
    assert paired[:, 1] == pytest.approx(points - points[2])
    assert paired[:, 0] == pytest.approx([0, 0, 0, 0.5])
    assert Scores(whole, weights, images).drawn(later) == pytest.approx(
        np.average(whole, axis=1, weights=weights * later[images])
    )


def test_sample_effects_are_found_where_one_point_alone_saw_most_samples() -> None:
    rng = np.random.default_rng(0)
    points, effects = rng.normal(0, 0.1, 30), np.linspace(1, 0, 640)
    whole = points[:, None] + effects
    values = whole.copy()
    values[1:, 16:] = np.nan
    scores = Scores(values, np.ones(640), np.arange(640))
    assert scores.means == pytest.approx(whole.mean(axis=1), abs=1e-6)


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """A race in which SD makes some answers right, and nothing else matters."""
    output = tmp_path_factory.mktemp("raced")
    space = SPACE | {"intervention.re.weight": {"low": 0.01, "high": 5, "log": True, "off_at": 0}}
    config = configuration(output, "search=raced", space=space, samples=3000, controls={})
    config |= {"preset": {"tuning": 96, "held_out": 8}}
    own = pretended_studies.margin
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch)
        patch.setattr(
            pretended_studies, "margin", lambda method, sample: own(method, sample) + 2 * getattr(method, "sd", False)
        )
        Study(config, Tracker("none", output), command="a command").run()
    return load_study("small", output)


def test_a_race_says_what_matters_by_the_points_that_it_measured_in_order(raced: StudyResults) -> None:
    (points,) = search_points(raced.outcome)
    known = [trial.settings for trial in points.trials]
    order = sequence(points.space, 0)
    drawn = [order.index(trial.settings) for trial in points.drawn]
    assert len(drawn) >= 20
    assert points.left_out[CHOSEN] >= 2  # the configured point and others
    assert len(drawn) + sum(points.left_out.values()) == len(known)
    # of those before the last one, only points that edit as another one are missing
    missing = [settings for settings in order[: max(drawn)] if settings not in known]
    assert all(points.space.params(one)[f"{WEIGHT}.on"] is False for one in missing)  # type: ignore[index]
    assert {trial.n for trial in points.drawn} > {16}
    assert points.best.settings == raced.outcome.rows[2].settings
    assert points._replace(left_out={}).counted.endswith("trials are counted: all are different.")  # not complete

    (one,) = search_importance.importance(raced.outcome, raced.records)
    assert one.parameters[0].name == SD
    assert one.parameters[0].fanova.value > one.fanova_floor
    assert any(f"{len(drawn)} of {len(known)} trials are counted" in line for line in one.notes)
    assert any("saw 16 to" in line for line in one.notes)
    assert all(plateau.seen is not None and plateau.best in plateau.seen for plateau in one.plateaus)
    scores = scores_of(points.measured, "accuracy", raced.records)
    assert not isinstance(scores, str)
    whole = {trial.cache_key: trial.metrics["accuracy"] for trial in points.complete}
    assert whole
    assert all(one.points.estimates[key] == pytest.approx(value, abs=1e-6) for key, value in whole.items())
    assert all(0 <= value <= 1 for value in one.points.estimates.values())


@pytest.mark.usefixtures("_unsaved")
def test_of_a_race_without_records_nothing_is_said(raced: StudyResults) -> None:
    (one,) = search_importance.importance(raced.outcome, Records(raced.folder / "nowhere"))
    assert one.stopped == "Points saw different samples, and cannot be compared: records of a point are missing."
    (section,) = importance.importance_sections([one], raced.folder)
    assert section.warnings == [one.stopped]
    shown = [value for _, value in one.points.history if math.isfinite(value)]
    assert len(shown) == len(one.points.complete)  # others saw other samples
