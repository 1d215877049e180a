"""Every command that is printed, advised or documented runs when it is pasted into a shell."""

import shlex

from hypothesis import given, settings
from hypothesis import strategies as st

from tdrs import commands
from tdrs.configuration import compose, plain

AWKWARD = [
    "a b", "it's", 'say "x"', "a,b", "[x]", "{x: y}", "$HOME", "${HOME}", r"\${HOME}", r"a\\${x}", "${", "a=b", "#1",
    "null", "True", "1e3", "1", "", " a ", "\\", "\\'", "a\\\\'b", "ablation étude 中", "-x", "x\ny", "a\tb", "~x",
    "C:\\data\\x", "100%", "a:b", "${oc.env:HOME}", "nan", "choice(1,2)", "?", "???", "a/b", "embedded:x", "`ls`", "!!",
]  # fmt: skip


def test_a_text_passes_both_grammars() -> None:
    """As the value of a setting, whatever it looks like."""
    given = {f"text{number}": text for number, text in enumerate(AWKWARD)}
    words = shlex.split(commands.command("tdrs.evaluate", *(f"+{k}={commands.value(v)}" for k, v in given.items())))
    assert words[:3] == ["python", "-m", "tdrs.evaluate"]
    found = plain(compose("evaluate", words[3:]))
    assert {name: found[name] for name in given} == given


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))


@settings(max_examples=20, deadline=None)
@given(st.recursive(SCALARS, lambda some: st.lists(some, max_size=3), max_leaves=4))
def test_a_value_is_read_back(given: object) -> None:
    found = plain(compose("evaluate", [f"split={commands.value(given)}"]))["split"]
    assert found == given
    assert type(found) is type(given)


def test_changes_make_the_given_of_the_usual() -> None:
    usual = plain(compose("evaluate", ["intervention=tdrs"]))["intervention"]
    changed = {**usual, "dc": None, "re": {"w_min": 1e-7}, "layers": [0, 1], "scale": "1e3", "more": {"a, b": "null"}}
    del changed["sd"]
    words = commands.changes("intervention", changed, usual)
    assert plain(compose("evaluate", ["intervention=tdrs", *words]))["intervention"] == changed
    assert commands.changes("intervention", usual, usual) == []
