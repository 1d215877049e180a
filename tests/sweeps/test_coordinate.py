"""The protocol of Figure 3: order, what is fixed when, ties, and a checked search space."""

import pytest
from tdrs.sweeps import coordinate
from tdrs.sweeps.coordinate import Curve, Point, Step

from tdrs.configuration import compose, plain
from tdrs.settings import SettingError

DC_W, DC, RE_W, RE = (f"intervention.{name}" for name in ("dc.w_min", "dc.weight", "re.w_min", "re.weight"))


def search() -> coordinate.Coordinate:
    return coordinate.from_settings(plain(compose("sweep", []))["search"])


def test_the_default_space_is_the_issues() -> None:
    """The paper's values are among all lists; w_min runs over decades."""
    found = search()
    assert [step.key for step in found.steps] == [DC_W, DC, RE_W, RE]
    assert [step.paper for step in found.steps] == [3, 1, 2, 0.8]
    for series in ("logits", "weights"):
        assert all(step.paper in step.values_for(series) for step in found.steps)
        assert found.steps[0].values_for(series) == [1, 2, 3, 10, 1e3, 1e5]
    assert found.trials == 48


def test_each_step_starts_from_the_best_of_the_earlier_ones() -> None:
    asked: list[dict[str, object]] = []

    def measure(series: str, settings: dict[str, object]) -> dict[str, float]:
        asked.append(settings)
        score = -abs(settings[DC_W] - 10) - abs(settings[DC] - 0.3) - abs(settings[RE] - 0.1)
        return {"accuracy": score}

    curves = coordinate.run(search(), measure)
    assert len(asked) == 48
    first = asked[:24]
    assert all(s["intervention.gain"] == "logits" for s in first)
    assert all(s[RE] == 0 for s in first[:12])  # reRD is off until its turn
    assert all(s[DC] == 1 for s in first[:6])
    assert all(s[DC_W] == 10 for s in first[6:])
    assert all(s[DC] == 0.3 and s[RE] == 0.8 for s in first[12:18])
    assert coordinate.best_settings(curves, "logits") == {
        DC_W: 10, DC: 0.3, RE_W: 2, RE: 0.1, "intervention.gain": "logits"
    }  # fmt: skip


def test_ties_go_to_the_papers_value_then_to_its_neighbour() -> None:
    step = Step("k", "k", paper=3, values=[1, 2, 3, 10])

    def best(scores: list[float]) -> float:
        points = [Point(v, {}, {"accuracy": s}) for v, s in zip([1, 2, 3, 10], scores, strict=True)]
        return Curve("s", step, points).best.value

    assert best([0.5, 0.5, 0.5, 0.5]) == 3
    assert best([0.6, 0.5, 0.5, 0.6]) == 10
    assert best([0.6, 0.5, 0.5, 0.5]) == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.protocol=grid", "search.protocol = 'grid': must be coordinate"),
        ("search.steps.0.paper=4", r"search.steps\[0\].values = .*: must contain the paper's 4"),
        ("search.steps.0.lable=x", r"search.steps\[0\].lable = 'x': unknown setting"),
        ("search.steps=[]", "search.steps = None: must not be empty"),
    ],
)
def test_bad_search_spaces_are_named(override: str, said: str) -> None:
    values = plain(compose("sweep", []))["search"]
    key, _, value = override.removeprefix("search.").partition("=")
    *path, last = key.split(".")
    node = values
    for part in path:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = {"4": 4, "[]": []}.get(value, value)
    with pytest.raises(SettingError, match=said):
        coordinate.from_settings(values)
