"""Every kept file of a study, damaged in every way: it is set aside and said, and the study ends as it would have."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdrs import checked_file
from tdrs.checked_file import ASIDE, Damaged
from tdrs.records import Records
from tdrs.study import main as study_command
from tdrs.sweeps.study import Study
from tdrs.sweeps.trial import Outcome
from tdrs.tracking import Tracker

from . import pretend
from .pretend import configuration
from .test_study import timeless

SPACE = {"intervention.tau": [0.5, 0.8, 1.0]}
OVERRIDES = ("search=grid", "intervention=temperature", "tracking=none")


def run(output: Path, name: str = "small", space: Any = SPACE) -> Outcome:
    config = configuration(output, *OVERRIDES, f"study.name={name}", space=space, controls={})
    return Study(config, Tracker("none", output)).run()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Outcome]]:
    """Two finished studies; of one evaluation only its batches and a failure are there."""
    output = tmp_path_factory.mktemp("kept") / "outputs"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretend.pretend(monkeypatch)
        outcome = run(output)
        run(output, "other", {"intervention.tau": [0.2, 0.3]})
        records = Records(output / "records")
        cache_key = outcome.trials[1].cache_key
        evaluation = records.read(cache_key)
        for path in records.path(cache_key).glob("*"):
            path.unlink()
        for start in (0, 4):
            records.append(cache_key, pretend.Batch(start, evaluation.records[start : start + 4], {}, 1e-4, 4))
        records.fail(cache_key, "RuntimeError: x", 1, "trace")
        yield output, outcome


def _rows(change: Callable[[pa.Table], pa.Table], path: Path) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def _swap(path: Path) -> None:
    """Two rows, two lines, or the two halves of the only line change places."""
    if path.suffix == ".parquet":
        _rows(lambda table: table.take([1, 0, *range(2, len(table))]), path)
        return
    lines = path.read_bytes().splitlines(keepends=True)
    half = len(lines[0]) // 2
    swapped = [lines[1], lines[0], *lines[2:]] if len(lines) > 1 else [lines[0][half:], lines[0][:half]]
    path.write_bytes(b"".join(swapped))


def _less(path: Path) -> None:
    """A row, a line, or the first value less."""
    if path.suffix == ".parquet":
        _rows(lambda table: table.slice(1), path)
        return
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]) if len(lines) > 1 else b"{" + lines[0].partition(b", ")[2])


def _flip(path: Path) -> None:
    """A score, or the first digit after the first quarter."""
    if path.suffix == ".parquet":

        def flip(table: pa.Table) -> pa.Table:
            scores = table.column("score").to_pylist()
            at = table.schema.get_field_index("score")
            return table.set_column(at, "score", pa.array([1 - scores[0], *scores[1:]], pa.float64()))

        _rows(flip, path)
        return
    content = bytearray(path.read_bytes())
    at = next(n for n in range(len(content) // 4, len(content)) if chr(content[n]).isdigit())
    content[at] = ord(str((int(chr(content[at])) + 1) % 10))
    path.write_bytes(bytes(content))


def _other(path: Path) -> None:
    """The same file of another record, or another study's."""
    others = sorted(p for p in path.parent.parent.glob(f"*/{path.name}") if p.parent != path.parent)
    studies = path.parents[2] / "studies" / "other"
    path.write_bytes((others[0] if others else studies / "trials.jsonl").read_bytes())


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: 2 * path.stat().st_size // 3]),
    "garbled": lambda path: path.write_bytes(path.read_bytes()[:40] + b"\xff\x80{[" + path.read_bytes()[45:]),
    "empty": lambda path: path.write_bytes(b""),
    "nul": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "of another": _other,
    "reordered": _swap,
    "a row less": _less,
    "a value flipped": _flip,
}
FILES = [
    "record/result.json", "record/samples.parquet", "record/config.yaml", "partial/batches.jsonl",
    "partial/failed.json", "study/config.yaml", "study/trials.jsonl", "study/study.json", "study/study.journal",
]  # fmt: skip
# What a kill leaves too, or whole lines in another order, or fewer: nothing wrong is in it, and nothing is said.
LINES = ("partial/batches.jsonl", "study/trials.jsonl", "study/study.journal")
QUIET = {(file, damage) for file in LINES for damage in ("cut", "empty", "reordered", "a row less")}


def _folder(output: Path, outcome: Outcome, place: str) -> Path:
    """A finished record's folder, the one with batches alone, or the study's."""
    number = {"record": 2, "partial": 1}.get(place, 0)
    return output / "records" / outcome.trials[number].cache_key if number else output / "studies" / "small"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_set_aside_and_measured_again(
    file: str,
    damage: str,
    kept: tuple[Path, Outcome],
    tmp_path: Path,
    pretended: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, outcome = tmp_path / "outputs", kept[1]
    shutil.copytree(kept[0], output)
    folders = {
        "record": output / "records" / outcome.trials[2].cache_key,
        "partial": output / "records" / outcome.trials[1].cache_key,
        "study": output / "studies" / "small",
    }
    place, name = file.split("/")
    path = folders[place] / name
    before = path.read_bytes()
    DAMAGES[damage](path)
    assert path.read_bytes() != before
    others = {p: p.read_bytes() for p in output.rglob("*") if p.is_file() and p.parent not in folders.values()}
    again = run(output)
    said = capsys.readouterr().err
    assert timeless(again) == timeless(outcome)
    assert {p: p.read_bytes() for p in others} == others  # nothing else is touched
    if (file, damage) not in QUIET and name != "study.json":  # which is written at each end
        assert name in said or "had other settings" in said
        assert [p for p in output.rglob("*") if ASIDE in p.name or p.name == "replaced"]
    if damage in ("nul", "a value flipped"):
        assert timeless(run(output)) == timeless(outcome)
        assert capsys.readouterr().err == ""  # it is whole again


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_not_shown(
    damage: str, kept: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "outputs"
    shutil.copytree(kept[0], output)
    DAMAGES[damage](output / "studies" / "small" / "study.json")
    assert study_command(["show", "small", f"output={output}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: study = 'small': study.json ")
    assert len(said.splitlines()) == 1


def test_metrics_are_those_of_the_rows(kept: tuple[Path, Outcome], tmp_path: Path) -> None:
    """Whoever writes a checksum over a wrong accuracy is not believed either."""
    shutil.copytree(kept[0] / "records", tmp_path / "records")
    records, cache_key = Records(tmp_path / "records"), kept[1].trials[2].cache_key
    path = records.path(cache_key) / "result.json"
    result = checked_file.read_json(path, cache_key)
    result["metrics"]["accuracy"] = 0.99
    checked_file.write_json(path, result, cache_key)
    assert not records.done(cache_key)
    with pytest.raises(Damaged, match=r"has accuracy 0\.99, its rows give"):
        records.read(cache_key)


def test_bad_records_of_others_stop_no_study(
    kept: tuple[Path, Outcome], tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The estimate of time looks at all records there are."""
    output = tmp_path / "outputs"
    shutil.copytree(kept[0], output)
    done = sorted(path.parent for path in output.glob("records/*/result.json"))
    for number, folder in enumerate(done):
        DAMAGES[list(DAMAGES)[number % 8]](folder / ("result.json", "config.yaml", "samples.parquet")[number % 3])
    (output / "records" / "notes.txt").write_text("mine")
    (output / "records" / ("c" * 16)).mkdir()
    config = configuration(output, *OVERRIDES, "study.name=third", space={"intervention.tau": [0.4]}, controls={})
    study = Study(config, Tracker("none", output))
    assert "trials asked for" in study.cost()
    assert study.run().rows[-1].status == "complete"


def test_a_lock_that_a_killed_leader_left_is_removed(
    kept: tuple[Path, Outcome], tmp_path: Path, pretended: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Optuna would wait 30 seconds for it, with four warnings."""
    output = tmp_path / "outputs"
    shutil.copytree(kept[0], output)
    (output / "studies" / "small" / "trials.jsonl").write_text("")
    lock = output / "studies" / "small" / "study.journal.lock"
    lock.symlink_to("study.journal")
    assert timeless(run(output)) == timeless(kept[1])
    assert not lock.is_symlink()
    assert "lock" not in capfd.readouterr().err


def test_a_journals_torn_line_is_cut(kept: tuple[Path, Outcome], tmp_path: Path, pretended: list[str]) -> None:
    output = tmp_path / "outputs"
    shutil.copytree(kept[0], output)
    path = output / "studies" / "small" / "study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole.splitlines()[0]) // 2])
    run(output)
    assert [json.loads(line) for line in path.read_bytes().splitlines()]
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_check_says_what_is_damaged_and_writes_nothing(
    file: str, damage: str, kept: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, outcome = tmp_path / "outputs", kept[1]
    shutil.copytree(kept[0], output)
    place, name = file.split("/")
    folder = _folder(output, outcome, place)
    DAMAGES[damage](folder / name)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for words in (["list"], ["show", "small"], ["show", "other"], ["best", "small"]):
        assert study_command([*words, f"output={output}"]) in (0, 2)
    capsys.readouterr()
    code = study_command(["check", f"output={output}"])
    said = capsys.readouterr().out
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    if (file, damage) in QUIET:
        return
    assert code == 1
    assert str(folder) in said
    assert "faults" in said or "1 fault" in said


@pytest.mark.parametrize("part", ["trials", "rows"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrics": {"accuracy": 0.0}}, "has other metrics of"),
        ({"metrics": {"new": 0.0}}, "has other metrics of"),
        ({"difference": [0.25, 0.125, 0.5]}, "has another difference of"),
        ({"difference": None}, "has another difference of"),
        ({"kl": 0.125}, "has another kl of"),
        ({"cache_key": "0" * 16}, "which is not kept whole"),
    ],
)
def test_a_result_that_contradicts_its_records_is_found(
    change: dict[str, Any],
    said: str,
    part: str,
    kept: tuple[Path, Outcome],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where its checksum is right."""
    shutil.copytree(kept[0], tmp_path / "outputs")
    path = tmp_path / "outputs" / "studies" / "small" / "study.json"
    values = json.loads(path.read_text())
    for trial in values[part]:
        if trial["name"] != "stock" and trial["status"] == "complete":
            changed = {key: {**trial[key], **new} if isinstance(new, dict) else new for key, new in change.items()}
            trial.update(changed)
    _reseal(path, **{part: values[part]})
    code = study_command(["check", f"output={tmp_path / 'outputs'}"])
    if part == "trials" and change in ({"difference": None}, {"cache_key": "0" * 16}):
        assert code == 0  # a tuning trial need not be compared, nor be kept
        return
    assert code == 1
    assert said in capsys.readouterr().out


def test_a_failed_stock_model_leaves_no_difference_to_check(
    kept: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(kept[0], tmp_path / "outputs")
    path = tmp_path / "outputs" / "studies" / "small" / "study.json"
    values = json.loads(path.read_text())
    for trial in [*values["trials"], *values["rows"]]:
        failed = {"status": "failed", "metrics": {}} if trial["name"] == "stock" else {}
        trial.update({"difference": None, **failed})
    _reseal(path, trials=values["trials"], rows=values["rows"])
    assert study_command(["check", f"output={tmp_path / 'outputs'}"]) == 0, capsys.readouterr().out


def test_check_of_what_is_whole(kept: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation that is not finished is no fault."""
    assert study_command(["check", f"output={kept[0]}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(": no faults")


def test_prune_removes_what_no_study_names(
    kept: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "outputs"
    shutil.copytree(kept[0], output)
    mine = {trial.cache_key for trial in [*kept[1].trials, *kept[1].rows]}
    everything = {path.name for path in (output / "records").iterdir()}
    assert study_command(["prune", f"output={output}"]) == 0
    assert "0 records that no study in" in capsys.readouterr().out
    shutil.rmtree(output / "studies" / "other")
    unused = everything - mine
    assert unused
    assert study_command(["prune", f"output={output}"]) == 0
    said = capsys.readouterr().out
    assert all(cache_key in said for cache_key in unused)
    assert "nothing was removed; to do it:  python -m tdrs.study prune" in said
    assert {path.name for path in (output / "records").iterdir()} == everything
    (output / "records" / "notes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (output / "records" / ("d" * 16)).symlink_to(tmp_path / "elsewhere")
    DAMAGES["nul"](output / "studies" / "small" / "trials.jsonl")
    assert study_command(["prune", f"output={output}", "--yes"]) == 2  # it is not known what that study needs
    shutil.copy(kept[0] / "studies" / "small" / "trials.jsonl", output / "studies" / "small")
    assert study_command(["prune", f"output={output}", "--yes"]) == 0
    assert {path.name for path in (output / "records").iterdir()} == mine | {"notes"}
    assert (tmp_path / "elsewhere").is_dir()


def _reseal(path: Path, **values: Any) -> None:
    """Change values and write the checksum anew, as another version, or somebody who knows how, would."""
    first, *others = path.read_bytes().splitlines(keepends=True)
    line = json.loads(first)
    key = line.pop("key")
    del line["sha256"]
    changed = {name: value for name, value in (line | values).items() if value is not ...}
    path.write_bytes((checked_file.seal(changed, key) + "\n").encode() + b"".join(others))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (
            "record/result.json",
            {"metrics": {"accuracy": 1, "accuracy_low": 1, "accuracy_high": 1, "margin": 1}},
        ),
        ("record/result.json", {"notes": ...}),
        ("record/result.json", {"files": {}}),
        ("record/result.json", {"metrics": []}),
        ("record/result.json", {"n": "8"}),
        ("partial/batches.jsonl", {"records": []}),
        ("partial/batches.jsonl", {"size": ...}),
        ("partial/batches.jsonl", {"start": "0"}),
        ("partial/batches.jsonl", {"start": 2}),
        ("partial/failed.json", {"time": "t"}),
        ("study/trials.jsonl", {"metrics": {"accuracy": 0.987}}),
        ("study/trials.jsonl", {"metrics": {"accuracy": "high"}}),
        ("study/trials.jsonl", {"settings": []}),
        ("study/trials.jsonl", {"new": 1}),
        ("study/trials.jsonl", {"cache_key": "../x"}),
        ("study/study.json", {"new": 1}),
        ("study/study.json", {"curves": ...}),
        ("study/study.json", {"rows": 3}),
    ],
)
def test_another_form_under_a_right_checksum_is_not_believed(
    file: str,
    values: dict[str, Any],
    kept: tuple[Path, Outcome],
    tmp_path: Path,
    pretended: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, outcome = tmp_path / "outputs", kept[1]
    shutil.copytree(kept[0], output)
    place, name = file.split("/")
    folder = _folder(output, outcome, place)
    _reseal(folder / name, **values)
    for words in (["check"], ["list"], ["show", "small"], ["best", "small"], ["export", "small"]):
        assert study_command([*words, f"output={output}"]) in (0, 1, 2)
    assert timeless(run(output)) == timeless(outcome)
    lines = checked_file.read_lines(output / "studies" / "small" / "trials.jsonl", outcome.key)[0]
    assert {line["cache_key"]: line["metrics"] for line in lines} == {
        trial.cache_key: trial.metrics for trial in [*outcome.trials, *outcome.rows]
    }
    assert study_command(["show", "small", f"output={output}"]) == 0


PLACES = [*FILES, "record/lease", "study/lock", "partial"]


@pytest.mark.parametrize(
    ("file", "what"),
    [
        *((file, what) for file in PLACES for what in ("link", "folder")),
        *((file, "dangling link") for file in ("study/trials.jsonl", "record/lease", "partial")),
    ],
)
def test_what_is_no_file_is_set_aside_and_its_target_left_alone(
    file: str, what: str, kept: tuple[Path, Outcome], tmp_path: Path, pretended: list[str]
) -> None:
    output, outcome = tmp_path / "outputs", kept[1]
    shutil.copytree(kept[0], output)
    place, _, name = file.partition("/")
    folder = _folder(output, outcome, place)
    path = folder / name if name else folder
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    (tmp_path / "elsewhere").mkdir()
    precious = tmp_path / "elsewhere" / "precious"
    precious.write_text("mine")
    if what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(precious if name else tmp_path / "elsewhere")
    else:
        path.symlink_to(tmp_path / "nowhere")
    for words in (["check"], ["list"], ["show", "small"]):
        assert study_command([*words, f"output={output}"]) in (0, 1, 2)
    assert timeless(run(output)) == timeless(outcome)
    assert precious.read_text() == "mine"
    assert [one.name for one in (tmp_path / "elsewhere").iterdir()] == ["precious"]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("what", ["dangling link", "file"])
def test_nothing_is_removed_where_studies_cannot_be_listed(
    what: str, kept: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "outputs"
    shutil.copytree(kept[0], output)
    shutil.rmtree(output / "studies")
    assert study_command(["prune", f"output={output}", "--yes"]) == 2
    (output / "studies").symlink_to(tmp_path / "not mounted") if what != "file" else (output / "studies").touch()
    before = sorted((output / "records").iterdir())
    for verb in ("prune", "check"):
        assert study_command([verb, f"output={output}", *(["--yes"] if verb == "prune" else [])]) == 2
    assert sorted((output / "records").iterdir()) == before
    assert len(capsys.readouterr().err.splitlines()) == 3
