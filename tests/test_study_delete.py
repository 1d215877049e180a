"""Deleting a study: into a trash folder, never more than its own, and nothing where that is not known."""

import json
import shutil
from pathlib import Path

import pytest

from tdrs import checked_file
from tdrs.analysis import tables
from tdrs.lease import lock
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.study import main
from tdrs.sweeps.folder import TRIALS
from tdrs.sweeps.trial import Outcome, Trial

from .test_study import made


def change(output: Path, name: str, **values: object) -> None:
    """Change the first trial in a study's file."""
    path = output / "studies" / name / TRIALS
    first, *others = path.read_text().splitlines()
    line = json.loads(first)
    key = line.pop("key")
    del line["sha256"]
    path.write_text("\n".join([checked_file.seal({**line, **values}, key), *others, ""]))


def everything(output: Path) -> set[Path]:
    return {path.relative_to(output) for path in output.rglob("*") if path.name not in ("lock", "lease")}


def delete(output: Path, name: str = "small") -> int:
    return main(["delete", name, f"output={output}", "--yes"])


def used(found: Outcome) -> set[str]:
    return {trial.cache_key for trial in [*found.trials, *found.rows]}


def kept(output: Path) -> set[str]:
    return {path.name for path in (output / "records").iterdir()}


def test_what_is_deleted_can_be_put_back(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, tracking="none")
    before = everything(tmp_path)
    assert delete(tmp_path) == 0
    (trash,) = (tmp_path / "trash").iterdir()
    assert trash.name.startswith("small-2")
    shutil.move(trash / "study", tmp_path / "studies" / "small")
    for path in (trash / "records").iterdir():
        shutil.move(path, tmp_path / "records")
    shutil.rmtree(tmp_path / "trash")
    assert before <= everything(tmp_path)
    assert main(["show", "small", f"output={tmp_path}"]) == 0


def test_a_cache_key_of_another_form_deletes_nothing(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "outputs"
    (tmp_path / "victim").mkdir()
    made(output, tracking="none")
    for cache_key in ("../../victim", "", "/", ".", "0123456789abcdeg", "0123456789abcdef0", None, 7):
        change(output, "small", cache_key=cache_key)
        before = everything(tmp_path)
        assert delete(output) == 2
        assert "line 1 of" in (said := capsys.readouterr().err)
        assert said.count("\n") == 1
        assert everything(tmp_path) == before
        with pytest.raises(SettingError):
            Trial.of({"cache_key": cache_key, "clamped": {}})
        assert main(["list", f"output={output}"]) == 0
        assert "line 1 of" in capsys.readouterr().out


def test_a_record_that_a_changed_line_names_is_kept(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial's line under a right checksum names an evaluation with other metrics, which no study uses."""
    found = made(tmp_path, tracking="none")
    unused = sorted(used(made(tmp_path, "other", tracking="none", gap=4)) - used(found))[0]
    shutil.rmtree(tmp_path / "studies" / "other")
    change(tmp_path, "small", cache_key=unused)
    assert delete(tmp_path) == 0
    assert f"{unused} is kept: it has other metrics" in capsys.readouterr().out
    assert unused in kept(tmp_path)


@pytest.mark.parametrize("cache_key", ["../x", "", "/x", "a/b", ".", "A" * 99])
def test_records_stay_in_their_folder(cache_key: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cache_key = "):
        Records(tmp_path).path(cache_key)


def test_another_study_keeps_its_evaluations_whatever_it_lacks(tmp_path: Path, pretended: list[str]) -> None:
    made(tmp_path / "whole", tracking="none")
    other = made(tmp_path / "whole", "other", tracking="none")
    for number, gone in enumerate([TRIALS, "config.yaml", "study.json", "study.journal", f"{TRIALS} study.json"] * 2):
        output = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", output)
        for name in gone.split():
            path = output / "studies" / "other" / name
            path.write_text("") if number < 5 else path.unlink()
        if number in (1, 2, 4):  # an emptied file: which evaluations that study needs is not known for sure
            assert delete(output) == 2
            continue
        assert delete(output) == 0
        tuning = {trial.cache_key for trial in other.trials}  # all that the journal has
        assert (tuning if " " in gone else used(other)) <= kept(output)


def test_what_was_replaced_in_another_study_counts(tmp_path: Path, pretended: list[str]) -> None:
    first = made(tmp_path, "other", tracking="none")
    made(tmp_path, "other", tracking="none", gap=9)
    made(tmp_path, tracking="none")
    (tmp_path / "studies" / "other" / "config.yaml").unlink()
    assert delete(tmp_path) == 0
    assert used(first) <= kept(tmp_path)


def test_a_study_that_cannot_be_read_stops_it(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of it, or all of it, as on a disk that is not mounted; or it is running, and may come to need more."""
    made(tmp_path, tracking="none")
    other = tmp_path / "studies" / "other"
    other.mkdir()
    before = kept(tmp_path)
    (other / TRIALS).symlink_to("nowhere")
    assert delete(tmp_path) == 2
    assert "which evaluations this study needs is not known" in capsys.readouterr().err
    shutil.rmtree(other)
    other.symlink_to("/nowhere")
    assert delete(tmp_path) == 2
    assert "which evaluations this study needs is not known" in capsys.readouterr().err
    other.unlink()
    held = lock(other / "lock")
    assert held
    assert delete(tmp_path) == 2
    assert "study = 'other': is running" in capsys.readouterr().err
    held.close()
    assert kept(tmp_path) == before
    assert delete(tmp_path) == 0
    assert not kept(tmp_path)


def test_a_store_that_cannot_be_reached_stops_it(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, tracking="none")
    before = everything(tmp_path)
    assert main(["delete", "small", f"output={tmp_path}", "--yes", "tracking.uri=http://127.0.0.1:9"]) == 2
    assert "tracking.uri = 'http://127.0.0.1:9': cannot be reached" in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_no_link_is_followed(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "outputs"
    found = made(output, tracking="none")
    for path, name in (
        (output / "records" / found.rows[0].cache_key, "record"),
        (output / "studies" / "small", "study"),
    ):
        shutil.move(path, tmp_path / name)
        path.symlink_to(tmp_path / name)
    assert delete(output) == 2
    assert "is a link to" in capsys.readouterr().err
    (output / "studies" / "small").unlink()
    shutil.move(tmp_path / "study", output / "studies" / "small")
    assert delete(output) == 0
    assert (tmp_path / "record" / "result.json").exists()
    assert not kept(output)


def test_a_name_that_leads_elsewhere_is_refused(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "outputs"
    made(output, tracking="none")
    shutil.copytree(output / "studies" / "small", output / "victim")
    before = everything(tmp_path)
    for name in ("../victim", "..", ".", "", "/victim", "a/b"):
        for verb in ("show", "best", "export", "sync", "delete"):
            assert main([verb, f"study={name}", f"output={output}", "--yes"]) == 2
            assert f"study = {name!r}: must be the name of one folder" in capsys.readouterr().err
        assert tables.main([f"study={name}", f"output={output}"]) == 2
        assert f"study = {name!r}: must be the name of one folder" in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_a_damaged_study_is_one_line(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, tracking="none")
    damages = [("config.yaml", "a: ["), ("config.yaml", "3"), (TRIALS, "{}\n"), (TRIALS, "nonsense\n")]
    for text in ("", "[]", "{}", '{"trials": [{"cache_key": "../x", "clamped": {}}], "rows": [], "curves": []}'):
        (tmp_path / "studies" / "small" / "study.json").write_text(text)
        for verb in ("show", "best"):
            assert main([verb, "small", f"output={tmp_path}"]) == 2
            assert "study.json is no whole record" in (said := capsys.readouterr().err)
            assert said.count("\n") == 1
    for name, text in damages:
        path = tmp_path / "studies" / "small" / name
        whole = path.read_text()
        path.write_text(text)
        for verb in ("show", "best", "export", "sync", "delete"):
            assert main([verb, "small", f"output={tmp_path}", "--yes"]) == 2
            assert capsys.readouterr().err.count("\n") == 1
        assert main(["list", f"output={tmp_path}"]) == 0
        path.write_text(whole)
