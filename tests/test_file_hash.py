"""Whole files are hashed, and a remembered hash is never that of another content."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tdrs import file_hash as module
from tdrs.file_hash import file_hash


class Forgetful(dict[str, str]):
    """What another process knows: nothing."""

    def __setitem__(self, key: str, value: str) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files from 100 bytes on are remembered, in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "LARGE", 100)
    monkeypatch.setattr(module, "SETTLED", -1.0)
    monkeypatch.setattr(module, "_known", Forgetful())
    return tmp_path / "cache" / "tdrs" / "hashes"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_last_byte_counts(cache: Path, tmp_path: Path) -> None:
    for name, end in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).write_bytes(b"\0" * (3 << 20) + end)
    assert file_hash(tmp_path / "a") == sha(tmp_path / "a") != file_hash(tmp_path / "b") == sha(tmp_path / "b")


def test_a_hash_is_remembered_and_read_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 200)
    first = file_hash(path)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert file_hash(path) == first


def test_a_process_reads_a_small_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = tmp_path / "a", hashlib.file_digest
    read: list[Any] = []

    def counted(*given: Any) -> Any:
        read.append(given)
        return digest(*given)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    path.write_bytes(b"x")
    assert [file_hash(path), file_hash(path)] == [sha(path)] * 2
    assert len(read) == 2  # it has just changed
    monkeypatch.setattr(module, "SETTLED", -1.0)
    assert [file_hash(path), file_hash(path)] == [sha(path)] * 2
    assert len(read) == 3
    path.write_bytes(b"y")
    assert file_hash(path) == sha(path)


def test_a_file_that_is_replaced_at_its_size_and_time_is_noticed(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 200)
    os.utime(path, (1e9, 1e9))
    before = file_hash(path)
    path.write_bytes(b"y" * 200)
    os.utime(path, (1e9, 1e9))
    assert file_hash(path) == sha(path) != before
    other = tmp_path / "other"
    other.write_bytes(b"z" * 200)
    os.utime(other, (1e9, 1e9))
    other.replace(path)
    assert file_hash(path) == sha(path)


@pytest.mark.parametrize("damage", [b"", b"0" * 129, b"\xff\xfe\x00", b"short"])
def test_a_damaged_memory_is_not_believed(damage: bytes, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 200)
    file_hash(path)
    (kept,) = cache.iterdir()
    for content in (
        damage,
        kept.read_bytes().replace(kept.read_bytes()[:1], b"0" if kept.read_bytes()[:1] != b"0" else b"1", 1),
    ):
        kept.write_bytes(content)
        assert file_hash(path) == sha(path)


def test_without_a_home_or_with_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 100)
    monkeypatch.setattr(module, "SETTLED", -1.0)
    path = tmp_path / "a"
    path.write_bytes(b"x" * 200)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    assert file_hash(path) == sha(path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_hash(path) == sha(path)


def test_a_file_that_has_just_changed_is_not_remembered(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED", 60.0)
    (tmp_path / "a").write_bytes(b"x" * 200)
    file_hash(tmp_path / "a")
    assert not cache.exists()


def test_a_file_that_changed_before_a_long_reading_is_not_remembered(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it has settled is judged when its times are read, not when all of it is."""
    monkeypatch.setattr(module, "SETTLED", 2.0)
    (tmp_path / "a").write_bytes(b"x" * 200)
    now, digest = time.time(), hashlib.file_digest

    def slowly(*given: Any) -> Any:
        monkeypatch.setattr(time, "time", lambda: now + 60)
        return digest(*given)

    monkeypatch.setattr(hashlib, "file_digest", slowly)
    file_hash(tmp_path / "a")
    assert not cache.exists()
