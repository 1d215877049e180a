"""Files with a checksum: whole or not there, flushed before they have their name, told from all else."""

import json
import os
from pathlib import Path

import pytest

from tdrs import checked_file
from tdrs.checked_file import Damaged


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    flush, move = os.fsync, Path.replace

    def flushed(file: int) -> None:
        order.append("flush")
        flush(file)

    def moved(path: Path, new: Path) -> Path:
        order.append("name")
        return move(path, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", moved)
    checked_file.write_json(tmp_path / "x.json", {"a": 1}, "mine")
    assert order == ["flush", "name", "flush"]  # content, name, the folder's list of names
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    checked_file.append_line(tmp_path / "lines", "{}")
    assert order[3:] == ["flush"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "x.json"
    checked_file.write_json(path, {"a": 1}, "mine")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checked_file.write_json(path, {"a": 2}, "mine")
    with pytest.raises(OSError, match="No space"):
        checked_file.append_line(path, "{}")
    assert checked_file.read_json(path, "mine") == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 50, b"{", b"[]", b"null", b'"text"', b"{}", b'{"a": 1}', b'{"a": 1, "sha256": "x", "key": "mine"}',
        b"\xff\xfe", b"[" * 100_000, b'{"sha256": null, "key": null}', b"NaN", b'{"sha256": [], "key": "mine"}',
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"^x\.json "):
        checked_file.read_json(path, "mine")
    path.unlink()
    path.mkdir()
    with pytest.raises(Damaged, match=r"^x\.json cannot be read"):
        checked_file.read_json(path, "mine")


def test_every_byte_counts(tmp_path: Path) -> None:
    """Any other byte anywhere is damage, or reads as the same values."""
    path = tmp_path / "x.json"
    values = {"a": [1.5, float("inf"), None, "é"], "b": {"c": True}}
    checked_file.write_json(path, values, "mine")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            assert checked_file.read_json(path, "mine") == values
        except Damaged:
            continue
    path.write_bytes(whole)
    with pytest.raises(Damaged, match=r"x\.json belongs to mine"):
        checked_file.read_json(path, "yours")


def test_yaml_is_for_people_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    checked_file.write_yaml(path, {"a": {"b": "é"}, "c": None})
    assert path.read_text(encoding="utf-8").splitlines()[1:] == ["a:", "  b: é", "c: null"]
    assert checked_file.read_yaml(path) == {"a": {"b": "é"}, "c": None}
    path.write_text(path.read_text(encoding="utf-8").replace("é", "e"), encoding="utf-8")
    with pytest.raises(Damaged, match="another content"):
        checked_file.read_yaml(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lines")
    assert checked_file.read_lines(tmp_path / "lines", "mine") == ([], ["lines is no file"])


def test_good_lines_are_kept_and_a_torn_one_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert checked_file.read_lines(path, "mine") == ([], [])
    for number in range(3):
        checked_file.append_line(path, checked_file.seal({"n": number}, "mine"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + lines[0][:20])
    assert checked_file.read_lines(path, "mine") == ([{"n": 0}, {"n": 1}, {"n": 2}], [])
    path.write_bytes(lines[0] + lines[1].replace(b"1", b"7", 1) + lines[2])
    found, faults = checked_file.read_lines(path, "mine")
    assert found == [{"n": 0}, {"n": 2}]
    assert faults == ["lines, line 2, has another content than its checksum says"]
    assert checked_file.keep_lines(path, found, "mine").name == "lines.damaged-1"
    assert checked_file.read_lines(path, "mine") == (found, [])
    assert json.loads((tmp_path / "lines.damaged-1").read_bytes().splitlines()[1])["n"] == 7
