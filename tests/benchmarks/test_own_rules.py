"""The rules for a user's own questions: which answers they need, what they find in a prediction, and its score."""

from pathlib import Path
from typing import Any

import pytest

from tdrs import benchmarks
from tdrs.settings import SettingError
from tests.benchmarks.own_rows import load, own, pictures, rows, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("own"))


CHOICES = {"choices": ["cat", "dog", "bird"]}


@pytest.mark.parametrize(
    ("answer", "answer_as", "gold"),
    [
        ("B", "auto", "B"),
        ("b", "letter", "B"),
        ("dog", "auto", "B"),
        ("dog", "text", "B"),
        (1, "index", "B"),
        (1, "number", "A"),
        ("3", "number", "C"),
        ("E", "auto", "names no choice; it must be a letter from A to C or the text of one choice"),
        ("horse", "text", "names no choice; it must be the text of one choice"),
        (3, "index", "a whole number from 0 to 2"),
        (0, "number", "a whole number from 1 to 3"),
        (1, "auto", "for numbers set answer_as"),
        (True, "index", "names no choice"),
    ],
)
def test_how_the_right_choice_is_named(folder: Path, answer: Any, answer_as: str, gold: str) -> None:
    source = write(folder, [{**row, **CHOICES, "answer": answer} for row in rows()], "choices.jsonl")
    values: dict[str, Any] = {"rule": "multiple_choice", "answer_as": answer_as}
    if len(gold) > 1:
        with pytest.raises(
            SettingError, match=rf"12 unusable .* row 0 \(line 1\) has answer {answer!r}, which .*{gold}"
        ):
            load(source, **values)
        return
    sample = load(source, **values)[0]
    assert sample.gold == gold
    assert "A. cat\nB. dog\nC. bird\n" in sample.prompt
    with pytest.raises(SettingError, match=r"dataset.rule = 'any_of': leaves the column choices unused"):
        load(source)


def test_a_letter_that_is_also_another_choice_is_refused(folder: Path) -> None:
    source = write(folder, [{**row, "choices": ["B", "A"], "answer": "A"} for row in rows()], "two.jsonl")
    with pytest.raises(SettingError, match=r"has answer 'A', which names two choices"):
        load(source, rule="multiple_choice")
    assert load(source, rule="multiple_choice", answer_as="text")[0].gold == "B"


SCORES: list[tuple[str, Any, str, float]] = [
    ("any_of", ["a fire truck", "engine"], "The fire-truck.", 1),
    ("any_of", ["engine"], "an engine room", 0),
    ("normalised", "Red", " red!", 1),
    ("normalised", "Red", "reddish", 0),
    ("exact", "Red", "Red\n", 1),
    ("exact", "Red", "red", 0),
    ("contains", ["cat", "kitten"], "It is a Kitten, I think.", 1),
    ("contains", "cat", "a category", 0),
    ("yes_no", "Yes", "yes, it is", 1),
    ("yes_no", "no", "No.", 1),
    ("yes_no", "no", "yes and no", 0),
    ("number", 1200, "about 1,200 people", 1),
    ("number", "-0.5", "-0.5", 1),
    ("number", 7, "17", 0),
    ("number", 7, "seven", 0),
    ("number", 19, "COVID-19", 1),
    ("number", 3, "between 3-5", 1),
    ("number", "\u22125", "it is \u22125", 1),
    ("number", 5, "\u22125", 0),
    ("number", -5, "x=-5", 1),
    ("number", 2, "Room E2", 1),
    ("number", 1200, "1,2000", 0),
    ("number", "2.5e3", "2500", 1),
    ("number", 0.5, "about .5 m", 1),
    ("number", 5, "\u0665", 1),
    ("number", 12345678901234567, "12345678901234567", 1),
    ("number", 12345678901234567, "12345678901300000", 0),
    ("exact", 12345678901234567, "12345678901234567", 1),
    ("any_of", 0.1, "0.1", 1),
    ("any_of", "-5", "5", 0),
    ("any_of", "-5", "\u22125 degrees", 0),
    ("any_of", "3.5", "3 5", 0),
    ("any_of", "1,200", "1200.", 1),
    ("any_of", "2020-01-05", "2020/01/05", 1),
    ("any_of", "caf\u00e9", "Cafe\u0301", 1),
    ("any_of", "it's", "it\u2019s", 1),
    ("any_of", "red", "\u201cRED\u201d", 1),
    ("any_of", "Stra\u00dfe", "STRASSE", 1),
    ("contains", "5", "it is 1.5 m", 0),
    ("contains", "5", "minus -5", 0),
    ("contains", "5", "It is 5.", 1),
    ("contains", "1200", "some 1,200 people", 1),
    ("yes_no", "yes", "Yes: there is", 1),
    ("yes_no", "yes", "**Yes**", 1),
    ("yes_no", "no", "No\u2014there is none", 1),
    ("yes_no", "no", "Nope", 0),
    ("yes_no", "yes", "ja", 0),
    ("yes_no", "yes", "eyes", 0),
    ("evalai", ["stop"] * 4 + ["go"] * 6, "Stop!", 1),
    ("evalai", ["stop"] * 1 + ["go"] * 9, "stop", 0.3),
]


CHOSEN: list[tuple[list[str], str, str]] = [
    (["cat", "dog"], "B", "B"),
    (["cat", "dog"], "b", "B"),
    (["cat", "dog"], "(B) dog", "B"),
    (["cat", "dog"], "The answer is **B**.", "B"),
    (["cat", "dog"], "A dog", "B"),
    (["cat", "dog"], "A dog is in the picture", "B"),
    (["cat", "dog"], "A. dog", "A"),
    (["cat", "dog"], "a cat and a dog", ""),
    (["cat", "dog"], "A or B", ""),
    (["cat", "dog"], "C", ""),
    (["cat", "dog"], "catfish", ""),
    (["male", "female"], "Female", "B"),
    (["5", "12", "20"], "15", ""),
    (["5", "12", "20"], "12.", "B"),
    (["1.5", "5"], "It is 1.5", "A"),
    (["Vitamin C", "Vitamin D", "iron", "zinc"], "vitamin D", "B"),
    (["red", "dark red"], "It is dark red", "B"),
    (["red", "dark red"], "Dark red or red", "B"),
    (["A", "B"], "b", "B"),
    ([f"x{n}" for n in range(26)], "I think it is x3", "D"),
]


@pytest.mark.parametrize(("choices", "said", "letter"), CHOSEN)
def test_which_choice_an_answer_names(folder: Path, choices: list[str], said: str, letter: str) -> None:
    source = write(folder, [{**row, "choices": choices, "answer": "A"} for row in rows()], "named.jsonl")
    benchmark = own(source, rule="multiple_choice", answer_as="letter")
    record = benchmark.score(said, benchmarks.load(benchmark, "held_out", 1)[0])
    assert (record.answer, record.score) == (letter, float(letter == "A"))


def test_a_number_that_could_be_a_text_or_a_place_is_refused(folder: Path) -> None:
    for answer in ("1", 1):
        source = write(folder, [{**row, "choices": ["3", "1", "2"], "answer": answer} for row in rows()], "place.jsonl")
        with pytest.raises(SettingError, match=r"which is the text of a choice, and could be its place; set answer_as"):
            load(source, rule="multiple_choice")
        given = {
            kind: load(source, rule="multiple_choice", answer_as=kind)[0].gold for kind in ("text", "index", "number")
        }
        assert given == {"text": "B", "index": "B", "number": "A"}
    source = write(folder, [{**row, "choices": ["10", "20"], "answer": 20} for row in rows()], "place.jsonl")
    assert load(source, rule="multiple_choice")[0].gold == "B"


@pytest.mark.parametrize(("rule", "answer", "said", "score"), SCORES)
def test_rules(folder: Path, rule: str, answer: Any, said: str, score: float) -> None:
    source = write(folder, rows(answer=answer), "rules.jsonl")
    benchmark = own(source, rule=rule)
    record = benchmark.score(said, benchmarks.load(benchmark, "held_out", 1)[0])
    assert record.score == pytest.approx(score)


def test_the_tolerance_is_a_share_of_the_right_number(folder: Path) -> None:
    source = write(folder, rows(answer=200), "number.jsonl")
    benchmark = own(source, rule="number", tolerance=0.05)
    sample = benchmarks.load(benchmark, "held_out", 1)[0]
    assert [benchmark.score(said, sample).score for said in ("190", "210.0", "189", "211", "")] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("rule", "answer", "message"),
    [
        ("number", "many", "answer 'many', not a number"),
        ("number", "5%", "answer '5%', not a number"),
        ("number", "3-5", "answer '3-5', not a number"),
        ("number", "1e400", "answer '1e400', too large a number"),
        ("number", 10**400, "answer '10+', too large a number"),
        ("any_of", float("inf"), "answer inf, not a finite number"),
        ("any_of", [1, float("nan")], "answer nan, not a finite number"),
        ("yes_no", "maybe", "answer 'maybe', not yes or no"),
        ("evalai", ["a"] * 9, "9 answer, and the rule evalai needs 10"),
        ("exact", ["a", "b"], "2 answer, and the rule exact needs one"),
    ],
)
def test_a_rule_says_which_answers_it_needs(folder: Path, rule: str, answer: Any, message: str) -> None:
    with pytest.raises(SettingError, match=rf"12 unusable of 12 rows: row 0 .* has {message}"):
        load(write(folder, rows(answer=answer), "needs.jsonl"), rule=rule)
