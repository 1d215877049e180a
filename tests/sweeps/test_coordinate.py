"""The protocol of Figure 3: order, what is fixed when, ties, rounds, conditions, and a checked search space."""

from pathlib import Path
from typing import Any

import pytest

from tdrs.configuration import compose, plain
from tdrs.settings import SettingError
from tdrs.sweeps import protocol
from tdrs.sweeps.coordinate import Coordinate, chosen
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import FAILED, Outcome, Request, Trial
from tdrs.tracking import Tracker

from .pretend import configuration

DC_W, DC, RE_W, RE = (f"intervention.{name}" for name in ("dc.w_min", "dc.weight", "re.w_min", "re.weight"))


def scored(r: Request) -> Trial:
    """A trial whose score is a formula of its settings."""
    s = {key: float(value) for key, value in r.settings.items() if key != "intervention.gain"}
    score = -abs(s.get(DC_W, 0) - 10) - abs(s.get(DC, 0) - 0.3) - abs(s.get(RE, 0) - 0.1)
    return Trial(r.name, r.split, r.condition, r.settings, "0", 9, {"accuracy": score})


def tuned(search: Coordinate, dataset: str, first: int = 0) -> tuple[Outcome, dict[str, Any], list[Request]]:
    """The steps of all series after so many trials: what they found, where they ended, what they asked."""
    outcome = Outcome("s", "coordinate", {}, [Trial("stock", "tuning", {}, {}, "0", 9)] * first, [])
    asked: list[Request] = []

    def answer(requests: list[Request]) -> list[Trial]:
        asked.extend(requests)
        return [scored(request) for request in requests]

    ends = protocol.run(search.tuned({}, dataset, outcome), answer)
    return outcome, ends, asked


def search(**changed: Any) -> Coordinate:
    found = protocol.from_settings(plain(compose("sweep", []))["search"] | changed)
    assert isinstance(found, Coordinate)
    return found


def test_the_default_space_is_the_issues() -> None:
    """The paper's values, which differ on POPE, are in all lists; w_min runs over decades."""
    found = search()
    assert [step.key for step in found.steps] == [DC_W, DC, RE_W, RE]
    assert [step.paper_for("mini_scienceqa") for step in found.steps] == [3, 1, 2, 0.8]
    assert [step.paper_for("pope") for step in found.steps] == [3, 1, 2, 1]
    for series in ("logits", "weights"):
        for dataset in ("scienceqa", "mini_pope"):
            assert all(step.paper_for(dataset) in step.values_for(series) for step in found.steps)
        assert found.steps[0].values_for(series) == [1, 2, 3, 10, 1e3, 1e5]


@pytest.mark.parametrize(("dataset", "paper"), [("mini_scienceqa", 0.8), ("pope", 1.0)])
def test_each_step_starts_from_the_best_of_the_earlier_ones(dataset: str, paper: float) -> None:
    outcome, ends, requests = tuned(search(), dataset, 5)
    asked = [r.settings for r in requests if r.name == "logits"]
    assert len(asked) == 25
    assert all(s["intervention.gain"] == "logits" for s in asked)
    assert all(s[RE] == 0 for s in asked[:12])  # reRD is off until its turn
    assert all(s[DC] == 1 for s in asked[:6])
    assert all(s[DC_W] == 10 for s in asked[6:])
    assert all(s[DC] == 0.3 and s[RE] == paper for s in asked[12:18])
    assert ends["logits"] == {DC_W: 10, DC: 0.3, RE_W: 2, RE: 0.1, "intervention.gain": "logits"}
    assert [curve.series for curve in outcome.curves[:2]] == ["logits", "weights"]
    assert min(number for curve in outcome.curves for number in curve.trials) == 5
    for curve in outcome.curves:
        mine = [outcome.trials[number] for number in curve.trials]
        assert [trial.settings[curve.key] for trial in mine] == curve.values
        assert {trial.name for trial in mine} == {curve.series}


def test_a_second_round_goes_on_from_the_first() -> None:
    outcome, _, requests = tuned(search(rounds=2), "mini_scienceqa")
    second = [curve for curve in outcome.curves if curve.round == 2]
    assert len(second) == 8
    first_step = [r.settings for r in requests if r.name == "logits"][25:31]
    assert all(s[DC] == 0.3 and s[RE] == 0.1 for s in first_step)  # all stages at work, none set back


def test_ties_go_to_the_papers_value_then_to_its_neighbour() -> None:
    def best(scores: list[float], *failed: int) -> float:
        trials = [
            Trial("s", "tuning", {}, {}, "0", 1, {"accuracy": s}, status=FAILED if n in failed else "complete")
            for n, s in enumerate(scores)
        ]
        return chosen([1, 2, 3, 10], trials, 3)

    assert best([0.5, 0.5, 0.5, 0.5]) == 3
    assert best([0.6, 0.5, 0.5, 0.6]) == 10
    assert best([0.6, 0.5, 0.5, 0.5]) == 1
    assert best([0.6, 0.5, 0.5, 0.5], 0) == 3
    assert best([0.6, 0.5, 0.5, 0.5], 0, 1, 2, 3) == 3


def test_conditions_have_curves_and_rows_of_their_own(tmp_path: Path, pretended: list[str]) -> None:
    axes = {"data": [{"dataset": "mini_scienceqa", "dataset.gap": 2}, {"dataset": "mini_pope", "dataset.gap": 3}]}
    found = Study(configuration(tmp_path, axes=axes, budget=2), Tracker("none", tmp_path)).run()
    assert [row.name for row in found.rows] == 2 * [
        "stock", "logits, paper", "logits, tuned", "weights, paper", "weights, tuned", "temperature, tuned"
    ]  # fmt: skip
    assert [row.condition["dataset"] for row in found.rows] == 6 * ["mini_scienceqa"] + 6 * ["mini_pope"]
    assert found.rows[1].settings[RE] == 0.8
    assert found.rows[7].settings[RE] == 1
    assert len(found.curves) == 16
    assert found.rows[2].budget == 25
    for curve in found.curves:
        assert all(found.trials[n].settings[curve.key] == v for n, v in zip(curve.trials, curve.values, strict=True))
        assert all(found.trials[n].condition == curve.condition for n in curve.trials)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("steps.0.lable", "x", r"search.steps\[0\].lable = 'x': unknown setting"),
        ("steps", [], "search.steps = None: must not be empty"),
        ("steps.3.paper", {"pope": 1}, r"search.steps\[3\].paper = .*: must have a value for `other`"),
        ("steps.2.set", {"x": "paper"}, r"search.steps\[2\].set.x = 'paper': no step has this key"),
        ("steps.1.values", {"logits": [1]}, r"search.steps\[1\].values = .*: lacks the series weights"),
        ("steps.1.values", {"logits": [1], "weights": [1, 1.0]}, r"search.steps\[1\].values = .*: has 1.0 twice"),
        ("steps.1.key", "dataset.gap", r"search.steps\[1\].dataset.gap = .*: changes the samples or what answers"),
        ("steps.2.set", {"dataset.gap": 0}, r"search.steps\[2\].set.dataset.gap = 0: changes the samples"),
        ("series.logits", {"dataset.gap": 0}, "search.series.logits.dataset.gap = 0: changes the samples"),
        ("start", {"batch_size": 8}, "search.start.batch_size = 8: changes the samples"),
        ("axes", {"preset.tuning": [8, 16]}, "search.axes.preset.tuning = .*: preset.tuning does not change what"),
        ("rounds", 0, "search.rounds = 0: must be a whole number of at least 1"),
        ("controls", {"stock": {}}, "search.controls.stock = {}: must be settings of another name than stock"),
    ],
)
def test_bad_search_spaces_are_named(key: str, value: Any, said: str) -> None:
    values = plain(compose("sweep", []))["search"]
    *path, last = key.split(".")
    node = values
    for part in path:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
    with pytest.raises(SettingError, match=said):
        protocol.from_settings(values)


def test_the_papers_value_must_be_among_the_values(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    config["search"]["steps"][0]["paper"] = 4
    with pytest.raises(
        SettingError, match=r"search.steps.intervention.dc.w_min.values = .*: must contain the paper's 4"
    ):
        Study(config, Tracker("none", tmp_path))
