"""Every command that is printed, advised or documented runs when it is pasted into a shell."""

import contextlib
import html
import importlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from tdrs import commands, doctor, speed, study
from tdrs.analysis import report
from tdrs.backbones import convert_internvl2
from tdrs.configuration import compose, folder, plain, run, with_settings
from tdrs.doctor import main_doctor
from tdrs.evaluate_command import main_evaluate
from tdrs.evaluation import plan
from tdrs.settings import SettingError
from tdrs.sweep import main_sweep
from tdrs.sweeps import protocol
from tdrs.sweeps.folder import read_outcome
from tdrs.zoo import train
from tests.docs.page import MADE

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


NAMES = ["it's #1, $x [y] é = {z}", "-a=b"]
SPACE = "++search.space={intervention.gain: [logits, weights]}"
CHANGED = ["intervention.layers=[0,1]", "attention.execution=reference", "backbone.name='my model, 1'", "batch_size=4"]
CONFIGURED = {
    "tdrs.sweep": ("sweep", main_sweep),
    "tdrs.evaluate": ("evaluate", main_evaluate),
    "tdrs.doctor": ("doctor", main_doctor),
}


def words_of(line: str) -> list[str]:
    """A command's words as bash reads them."""
    echo = f"python() {{ printf '%s\\0' \"$@\"; }}; {line}"
    said = subprocess.run(["bash", "-c", echo], check=True, capture_output=True, text=True).stdout
    return said.split("\0")[:-1]


def printed(text: str) -> list[str]:
    return [line[line.index("python -m") :] for line in text.splitlines() if "python -m" in line]


def paste(line: str) -> int:
    """Run a printed command in this process; returns its exit code."""
    dash, module, *words = words_of(line)
    assert dash == "-m"
    if module in CONFIGURED:
        entry, function = CONFIGURED[module]
        return run(entry, function, "", words)
    if module == "tdrs.study":
        return study.main(words)
    if module == "mlflow":
        assert words[:3] == ["ui", "--host", "127.0.0.1"]
        MlflowClient(words[-1]).search_experiments()
        return 0
    assert module == "tdrs.analysis.report"
    return report.main(words)


@pytest.mark.parametrize("name", NAMES)
def test_printed_commands_run_when_pasted(
    name: str,
    tmp_path: Path,
    pretended: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In another folder, too."""
    monkeypatch.chdir(tmp_path)
    output = f"my {name}"
    given = [f"study.name={commands.value(name)}", f"output={commands.value(output)}", SPACE, "search=grid", *CHANGED]
    assert run("sweep", main_sweep, "", [*given, "search.controls={}", "preset=smoke"]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / output / "studies" / name
    page = printed((folder / "report.md").read_text())
    assert len(page) == 3
    assert all(paste(line) == 0 for line in page)  # as it was typed, where it was typed
    assert page[0] in html.unescape((folder / "report.html").read_text())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [words_of(line)[1] for line in printed(said)] == ["tdrs.analysis.report", "tdrs.study", "mlflow"]
    assert all(paste(line) == 0 for line in printed(said))
    (best,) = [row for row in read_outcome(folder).rows if row.budget]
    capsys.readouterr()
    assert paste(commands.study_command("best", name, tmp_path / output)) == 0
    (line,) = printed(capsys.readouterr().out)
    assert paste(line) == 0
    said = capsys.readouterr().out
    assert f"records: {tmp_path / output / 'records' / best.cache_key}\n" in said
    assert "found done" in said
    assert [paste(line) for line in printed(said)] == [0]
    assert paste(commands.study_command("delete", name, tmp_path / output)) == 0
    (line,) = printed(capsys.readouterr().out)
    assert paste(line) == 0
    assert not folder.exists()
    line, gc = (line.partition("until:  ")[2] for line in capsys.readouterr().out.splitlines() if "until:" in line)
    store = f"sqlite:///{tmp_path}/{output}/mlflow.db"
    assert words_of(gc)[1:] == ["mlflow", "gc", "--backend-store-uri", store, "--tracking-uri", store]
    subprocess.run(["bash", "-c", line], check=True)
    assert not list((tmp_path / output / "trash").iterdir())
    assert paste(commands.command("tdrs.study", "list", f"output={tmp_path / output}")) == 0
    (line,) = printed(capsys.readouterr().out)
    assert plain(compose("sweep", words_of(line)[2:]))["output"] == str(tmp_path / output)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_could_not_be_logged_is_logged_by_the_printed_command(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    down = ["output='my res'", "tracking.uri=http://127.0.0.1:9"]
    assert run("sweep", main_sweep, "", [*down, "study.name='a b'", "search=grid", SPACE, "preset=smoke"]) == 0
    assert run("evaluate", main_evaluate, "", [*down, "limit=4"]) == 0
    said = capsys.readouterr().out
    again = [line for line in printed(said) if "analysis" not in line and " show " not in line]
    first, second = again[0], again[-1]
    assert paste(f"{first} tracking.uri=sqlite:///{tmp_path}/other.db") == 0
    assert paste(f"{second} tracking.uri=sqlite:///{tmp_path}/other.db") == 0
    found = MlflowClient(f"sqlite:///{tmp_path}/other.db").search_experiments()
    assert {"a b", "evaluate"} <= {experiment.name for experiment in found}


def test_what_is_said_to_come_next_has_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the doctor, of training, of converting."""
    monkeypatch.setattr(doctor, "examine", lambda values: [])
    typed = ["dataset=mini_pope", "backbone.source='/my model, #1'", "samples=5", "search=grid", "dataset.gap=7"]
    assert run("doctor", main_doctor, "", typed) == 0
    _, module, *words = words_of(*printed(capsys.readouterr().out))
    assert (module, words) == ("tdrs.sweep", [*(word for word in typed if word != "samples=5"), "study.name=mine"])
    compose("sweep", words)
    monkeypatch.setattr(train, "train", lambda *_: tmp_path / "it's a model")
    monkeypatch.setattr(train.cards, "measure", lambda name, model, longest: {})
    monkeypatch.setattr(train.cards, "write", lambda *_: None)
    monkeypatch.setattr(convert_internvl2, "convert", lambda source, target, tokenizer: target.mkdir())
    assert run("train", train.main_train, "", []) == 0
    assert convert_internvl2.main(["/a=b", str(tmp_path / "my, model")]) == 0
    for line, name in zip(printed(capsys.readouterr().out), ("it's a model", "my, model"), strict=True):
        _, module, *words = words_of(line)
        entry = module.removeprefix("tdrs.")
        assert plain(compose(entry, words))["backbone"]["source"] == str(tmp_path / name)


@pytest.mark.parametrize("name", ["data", "dataset.gap", "a, b"])
def test_an_advised_override_runs(name: str) -> None:
    """An axis that another one contradicts; the advice takes the first one away."""
    axes = {name: [{"dataset.gap": 0}], "text": [{"dataset.gap": 0}]}
    typed = ["search=grid", SPACE, f"search.axes={commands.value(axes)}"]
    search = plain(compose("sweep", typed))["search"]
    with pytest.raises(SettingError) as error:
        protocol.from_settings(search)
    (advised,) = shlex.split(str(error.value).rpartition("take one away: ")[2])
    search = plain(compose("sweep", [*typed, advised]))["search"]
    assert list(protocol.from_settings(search).axes) == ["text"]


def test_options_and_words_of_a_command() -> None:
    assert commands.parse(["a", "k=1", "k=x=y", "--yes"]) == (["a", "--yes"], {"k": "x=y"})
    assert commands.parse(["a=b", "k=1"], ("k",)) == (["a=b"], {"k": "1"})


ROOT = Path(__file__).parents[1]
DOCUMENTED = [
    *sorted(ROOT.glob("*.md")), ROOT / "Makefile", *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(folder().rglob("*.yaml")),
    *(path for part in ("tdrs", "sweeps", "analysis") for path in sorted((ROOT / part).rglob("*.py"))),
    *sorted((ROOT / "tdrs").rglob("README.md")),
]  # fmt: skip


def documented() -> list[tuple[str, str]]:
    """Every command on a line of its own, and what experiments say of a real model; by file.

    Commands about what a page makes are run by tests/docs.
    """
    found = []
    for path in DOCUMENTED:
        text = re.sub(r"\\\n#? *", "", path.read_text())
        for line in text.splitlines():
            before = r"" if path.suffix == ".md" else r"(?:#? {4,}|#     |\t\$\(BIN\)/)"
            match = re.match(rf"{before}\s*(python -m .*)", line)
            said = match[1].partition("#")[0] if match else ""
            made = "NAME" in said or MADE.search(said)
            if match and not made and "[" not in match[1].partition("=")[0]:
                found.append((path.name, match[1]))
        match = re.search(r"^# (?:On (?:a|the) real models?|Weights on disk): (.*)", text, re.MULTILINE)
        if match:
            own = "" if "+experiment" in match[1] else f"+experiment={path.stem} "
            found.append((path.name, f"python -m tdrs.sweep {own}{match[1]}"))
    return found


@pytest.mark.parametrize(("path", "line"), documented(), ids=lambda text: text[:60])
def test_documented_commands_are_accepted(path: str, line: str) -> None:
    words = shlex.split(line, comments=True)[2:]
    module, words = words[0].removeprefix("tdrs."), [word for word in words[1:] if "…" not in word and word[:2] != "--"]
    if "dataset=lmms_eval" in words:
        pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    bare, rest = commands.parse(words)
    named = dict.fromkeys(bare, "") | rest
    if module in ("sweep", "evaluate", "doctor"):
        config = plain(compose(module, words))
        conditions: list[dict[str, Any]] = [{}]
        if module == "sweep":
            conditions = protocol.conditions(protocol.from_settings(config["search"]).axes)
        for condition in conditions:
            with contextlib.suppress(Missing):
                planned({"split": "held_out", "limit": None, **with_settings(config, condition)})
    elif module in ("zoo.train", "analysis.gallery", "calibrate"):
        compose(module.rpartition(".")[2], words)
    elif module == "study":
        assert words[0] in study.VERBS
    elif module == "speed":
        assert set(named) - {words[0]} <= set(speed.VERBS[words[0]][1])
    elif module.startswith("analysis."):
        assert set(named) <= {"study", "table", "output", "measure", "gain", "sample", "objective"}
        importlib.import_module(module)
    else:
        assert module in (
            "tests.sweeps.crash",
            "pytest",
            "pip",
            "backbones.convert_gguf",
            "backbones.convert_internvl2",
        ), line


class Missing(Exception):
    """Weights that are not here; documents show the place of an adapter as /path/to. Or a file that a command makes."""


def planned(config: dict[str, Any]) -> None:
    try:
        plan(config)
    except SettingError as error:
        made = error.name == "intervention.heads" and error.value == "heads.yaml"  # by the command before it
        if made or error.name == "backbone.source" or str(error.value).startswith("/path/to/"):
            raise Missing from error
        raise
