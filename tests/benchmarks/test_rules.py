"""Tables of tricky answers for every scoring rule, and metrics with known values, empty classes and empty sets."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tdrs import benchmarks
from tdrs.benchmarks import gqa, pope, scienceqa, textvqa
from tdrs.benchmarks.benchmark import Picture, Record, Sample
from tdrs.benchmarks.evalai import CONTRACTIONS, process

SAMPLE = Sample("1", "i", Picture(lambda: b""), "q?", "q?", "B", options=("A", "B", "C"))


def score(name: str, said: str, sample: Sample, rule: str | None = None) -> Record:
    settings = {"name": name} if rule is None else {"name": name, "rule": rule}
    return benchmarks.from_settings(settings).score(said, sample)


@pytest.mark.parametrize(
    ("said", "llava", "lmms_eval"),
    [
        ("B", "B", "B"),
        ("b", "", "B"),
        ("B. a dog", "B", "B"),
        ("B.", "", "B"),
        ("b. a dog", "", ""),
        ("B.a dog", "", "B"),
        ("The answer is C.", "C", ""),
        ("I think. The answer is A. Sure.", "A", ""),
        ("The answer is A. The answer is B.", "", ""),
        ("The answer is A", "", ""),  # LLaVA's pattern wants a character behind the letter, and any one will do
        ("The answer is A, I think", "A", ""),
        ("The answer is B!", "B", ""),
        ("The answer is (A).", "", ""),
        ("B) dog", "", ""),
        ("AB", "", ""),
        ("", "", ""),
        ("a dog", "", ""),
        ("Z", "Z", "Z"),  # wrong all the same, where there are fewer choices
        ("É", "", ""),
    ],
)
def test_option_letters(said: str, llava: str, lmms_eval: str) -> None:
    assert scienceqa.letter_llava(said) == llava
    assert scienceqa.letter_lmms_eval(said) == lmms_eval


def test_a_letter_beyond_the_choices_is_wrong() -> None:
    record = score("scienceqa", "J", SAMPLE)
    assert (record.answer, record.score) == ("J", 0)
    assert score("scienceqa", " B\n", SAMPLE).score == 1
    assert score("scienceqa", "b", SAMPLE).score == 0
    assert score("scienceqa", "b", SAMPLE, "lmms_eval").score == 1


@pytest.mark.parametrize(
    ("said", "gold", "official", "llava", "lmms_eval"),
    [
        ("yes", "yes", 1, 1, 1),
        ("Yes", "yes", 0, 1, 1),
        ("Yes.", "yes", 0, 1, 1),
        (" yes... ", "yes", 0, 1, 1),
        ("yes. .", "yes", 0, 0, 0),
        ("t shirt", "t-shirt", 0, 0, 0),
        ("T-shirt!", "t-shirt", 0, 0, 1),
        ("", "yes", 0, 0, 0),
        ("yes, it is", "yes", 0, 0, 0),
    ],
)
def test_gqa_equality(said: str, gold: str, official: int, llava: int, lmms_eval: int) -> None:
    sample = replace(SAMPLE, gold=gold)
    found = [score("gqa", said, sample, rule).score for rule in ("official", "llava", "lmms_eval")]
    assert found == [official, llava, lmms_eval]


def test_gqa_says_what_the_official_rule_lost() -> None:
    sample = replace(SAMPLE, gold="yes")
    records = [score("gqa", said, sample, "official") for said in ("Yes.", "YES", "no", "yes")]
    (note,) = gqa.GQA(rule="official").notes(records)
    assert note.startswith("2 answers counted wrong though")
    assert gqa.GQA(rule="official").notes(records[2:]) == []


def test_defaults_read_the_raw_answers_of_real_models() -> None:
    """What LLaVA-1.5, InternVL2 and Qwen2.5-VL write, as their published scores count it."""
    named = {name: benchmarks.from_settings({"name": name}) for name in ("gqa", "mini_gqa", "scienceqa", "pope")}
    sample = replace(SAMPLE, gold="yes", options=(), categories=("random",))
    for said in ("Yes", "Yes.", "yes"):
        assert [named[name].score(said, sample).score for name in ("gqa", "mini_gqa", "pope")] == [1, 1, 1], said
    assert named["gqa"].score("Right", replace(sample, gold="right")).score == 1
    question = replace(SAMPLE, choices=("Georgia", "West Virginia", "Ohio"))
    for style, answers in {
        "llava": ("B", "B. West Virginia"),
        "internvl": ("B", "B.", "B. West Virginia", "West Virginia"),
        "vlmevalkit": ("B", "B.", "B. West Virginia", "The correct answer is B.", "**B. West Virginia**", "(B)"),
        "lmms_eval": ("B", "B.", "B. West Virginia"),
    }.items():
        asked = named["scienceqa"].asked_by(style)
        assert (asked.prompt, asked.rule) == (style, style)
        for said in answers:
            assert asked.score(said, question).score == 1, (style, said)
    assert named["scienceqa"].rule == "prompt"
    fixed = benchmarks.from_settings({"name": "scienceqa", "prompt": "llava", "rule": "lmms_eval"})
    assert fixed.asked_by("internvl") == fixed


@pytest.mark.parametrize(
    ("said", "internvl", "vlmevalkit"),
    [
        ("B", "B", "B"),
        ("b", "b", ""),  # InternVL's script takes any single character, which then equals no letter
        ("Because it is B.", "B", "B"),  # InternVL: the first character
        ("Ohio", "C", "C"),
        ("The state is Ohio", "C", "C"),
        ("it is georgia", "", "A"),
        ("Georgia or Ohio", "A", ""),
        ("A or B", "A", ""),
        ("A and Ohio", "A", "A"),
        ("I do not know", "", ""),
        ("E", "E", ""),
        ("", "", ""),
    ],
)
def test_option_letters_of_the_other_toolkits(said: str, internvl: str, vlmevalkit: str) -> None:
    choices = ("Georgia", "West Virginia", "Ohio")
    assert scienceqa.letter_internvl(said, choices) == internvl
    assert scienceqa.letter_vlmevalkit(said, choices) == vlmevalkit


@pytest.mark.parametrize(
    ("said", "official", "lmms_eval", "vlmevalkit"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("no", "no", "no", "no"),
        ("No, there is no cat.", "no", "", "no"),
        ("NO", "yes", "no", "no"),  # POPE's own script looks for "No", "not" and "no" only
        ("", "yes", "", ""),
        ("There isn't.", "yes", "", ""),
        ("There is not", "no", "", ""),
        ("Yes. There is no dog.", "yes", "", ""),  # the first sentence decides
        ("no,", "no", "", "no"),
        ("nothing", "yes", "", ""),
        ("yes and no", "no", "", ""),
        (" yes ", "yes", "yes", "yes"),
        ("No\nYes", "yes", "", ""),  # one word, as it splits on blanks alone
        ("**No**", "yes", "", ""),  # VLMEvalKit removes the marks of VQA's list, and splits at blanks
        ("No:", "yes", "", ""),
        ("'no'", "yes", "", ""),
        ("No.There is none", "no", "", ""),
        ("No-", "yes", "", "no"),
        ('"No"', "yes", "", "no"),
        ("(no)", "yes", "", "no"),
        ("yes/no", "yes", "", ""),
        ("1,000 no-cats", "yes", "", ""),  # a comma between digits: marks become nothing, so it is "nocats"
    ],
)
def test_pope_yes_and_no(said: str, official: str, lmms_eval: str, vlmevalkit: str) -> None:
    assert pope.answer_official(said) == official
    assert pope.answer_lmms_eval(said) == lmms_eval
    assert pope.answer_vlmevalkit(said) == vlmevalkit


@pytest.mark.parametrize(
    ("said", "processed"),
    [
        ("The Red Car", "red car"),
        ("a", ""),
        ("an", ""),
        ("two", "2"),
        ("None", "0"),
        ("zero", "0"),
        ("ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("yes, sir", "yes sir"),
        ("why?", "why"),
        ("dont", "don't"),
        ("Dont", "don't"),
        ("its", "its"),
        ("im", "im"),  # "Im" is in the map, but answers are lower case by then
        ("dog's bowl", "dog 's bowl"),
        ("let's", "let 's"),
        ("no.", "no"),
        ("3.5", "3.5"),
        ("v. 2.", "v 2"),
        ("www.site.com", "wwwsitecom"),
        (".5", ".5"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # one mark beside a blank deletes all of its kind
        ("a/b", "b"),  # the slash becomes a blank, and the article goes
        ("stop!", "stop"),
        ("stop !now!", "stop now"),
        ("<b> (c)", "b c"),  # "> " and " (" delete their kind, "<" and ")" become blanks
        ('he said "go"', "he said go"),
        ("one\ttwo\nthree", "1 2 3"),
        ("  spaced   out  ", "spaced out"),
        ("the", ""),
        ("", ""),
        ("." * 40, "." * 8),  # the first 32 full stops only
        ("`quoted`", "quoted"),
        ("back\\slash", "back slash"),
        ("under_score", "under score"),
        ("50%", "50%"),
        ("$5", "$5"),
        ("a@b.c", "bc"),  # the at sign becomes a blank, "a" an article, the full stop goes
        ("couldnt've", "couldn't've"),
        ("ten's", "10 's"),
    ],
)
def test_evalai_processor(said: str, processed: str) -> None:
    assert process(said) == processed


def test_contractions() -> None:
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["somebody'd"] == "somebodyd"  # as the server has it
    assert all(
        process(written) == meant
        for written, meant in CONTRACTIONS.items()
        if written.islower() and "'s" not in written
    )


@pytest.mark.parametrize(("matching", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_textvqa_score(matching: int, score: float) -> None:
    answers = ["Stop!"] * matching + [f"other {n}" for n in range(10 - matching)]
    assert textvqa.score_answer("stop", answers) == pytest.approx(score)


def test_textvqa_needs_ten_answers() -> None:
    with pytest.raises(ValueError, match="needs 10 answers, got 9"):
        textvqa.score_answer("x", ["x"] * 9)


def record(gold: str, answer: str, categories: str, **values: Any) -> Record:
    sample = replace(SAMPLE, gold=gold, categories=tuple(categories.split(",")))
    return replace(score("pope", answer, sample, "lmms_eval"), **values)  # its answer is what was said, or ""


def test_pope_metrics_of_known_counts() -> None:
    """Random: TP 2, FP 1, FN 1, TN 2. Popular: TP 2, FP 2, FN 1, TN 1."""
    shared = "random,popular"
    records = [record("yes", "yes", shared)] * 2 + [record("yes", "no", shared)]
    records += [record("no", "yes", "random")] + [record("no", "no", "random")] * 2
    records += [record("no", "yes", "popular")] * 2 + [record("no", "no", "popular")]
    found = pope.metrics(records)
    assert found["random.accuracy"] == pytest.approx(4 / 6)
    assert found["random.precision"] == pytest.approx(2 / 3)
    assert found["random.recall"] == pytest.approx(2 / 3)
    assert found["random.f1"] == pytest.approx(2 / 3)
    assert found["popular.f1"] == pytest.approx(4 / 7)
    assert found["popular.yes_ratio"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx((2 / 3 + 4 / 7) / 2)
    assert found["pooled.f1"] == pytest.approx(8 / 13)
    assert found["pooled.accuracy"] == pytest.approx(7 / 12)
    assert "adversarial.f1" not in found


def test_pope_metrics_where_a_class_is_empty() -> None:
    never = pope.metrics([record("yes", "no", "random"), record("no", "no", "random")])
    assert (never["precision"], never["recall"], never["f1"], never["yes_ratio"]) == (0, 0, 0, 0)
    negatives = pope.metrics([record("no", "no", "random")] * 2)
    assert negatives["accuracy"] == 1
    assert all(math.isnan(negatives[name]) for name in ("precision", "recall", "f1"))
    always = pope.metrics([record("no", "yes", "random")])
    assert (always["precision"], always["f1"], always["yes_ratio"]) == (0, 0, 1)
    assert all(math.isnan(value) for value in pope.metrics([]).values())


def test_an_unparsable_answer_is_wrong_and_not_a_yes() -> None:
    lost = score("pope", "maybe", replace(SAMPLE, gold="no", categories=("random",)), "vlmevalkit")
    assert lost.score == 0
    assert pope.metrics([lost], "vlmevalkit")["yes_ratio"] == 0


def test_lmms_eval_leaves_unparsable_positives_out_of_recall_and_f1() -> None:
    """TP 2, FP 1, FN 1, and two positives without a yes or no; its yes ratio is that of the gold answers."""
    records = [record("yes", "yes", "random")] * 2 + [record("yes", "no", "random")]
    records += [record("yes", "", "random")] * 2 + [record("no", "yes", "random"), record("no", "no", "random")]
    theirs, strict = pope.metrics(records, "lmms_eval"), pope.metrics(records, "vlmevalkit")
    assert theirs["recall"] == pytest.approx(2 / 3)
    assert theirs["f1"] == pytest.approx(2 / 3)
    assert strict["recall"] == pytest.approx(2 / 5)
    assert strict["f1"] == pytest.approx(4 / 8)
    assert theirs["precision"] == strict["precision"] == pytest.approx(2 / 3)
    assert theirs["accuracy"] == strict["accuracy"] == pytest.approx(3 / 7)
    assert theirs["yes_ratio"] == pytest.approx(5 / 7)
    assert strict["yes_ratio"] == pytest.approx(3 / 7)
    benchmark = benchmarks.from_settings({"name": "mini_pope", "rule": "lmms_eval"})
    assert benchmark.metrics(records)["f1"] == pytest.approx(2 / 3)
    assert benchmark.intervals(records)["f1"].value == pytest.approx(2 / 3)
    none = [record("yes", "", "random")]
    assert math.isnan(pope.metrics(none, "lmms_eval")["recall"])
    assert pope.difference(records, records, "lmms_eval").value == 0


@pytest.mark.parametrize("name", ["scienceqa", "gqa", "textvqa"])
def test_metrics_of_nothing_are_not_a_number(name: str) -> None:
    assert math.isnan(benchmarks.from_settings({"name": name}).metrics([])["accuracy"])


def test_merged_pairs_weigh_as_the_mean_of_the_categories() -> None:
    """Two categories of different size: the weighted mean over pairs is the mean of the two accuracies."""
    base = replace(SAMPLE, gold="yes", options=("yes", "no"))
    made = [replace(base, id="1", categories=(name,)) for name in ("popular", "random")]
    made += [replace(base, id=str(n), gold="no", categories=("random",)) for n in (2, 3)]
    made += [replace(base, id="4", gold="no", categories=("popular",))]
    unique = pope.merge(made)
    assert [one.categories for one in unique] == [("popular", "random"), ("random",), ("random",), ("popular",)]
    assert sum(one.weight for one in unique) == pytest.approx(4)
    records = [score("pope", said, one) for said, one in zip(("yes", "yes", "no", "no"), unique, strict=True)]
    weighted = sum(r.score * r.weight for r in records) / sum(r.weight for r in records)
    assert pope.metrics(records)["accuracy"] == pytest.approx(weighted) == pytest.approx((2 / 3 + 1) / 2)
