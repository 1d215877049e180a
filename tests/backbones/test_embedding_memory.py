"""Embeddings in memory: bounded, and of use also where not all have room."""

from pathlib import Path

import pytest
import torch

from tdrs.backbones import embedding_memory
from tdrs.backbones.embedding_memory import EmbeddingMemory, machine_memory

SIZE = 16 * 4  # bytes of `of`


def of(number: int) -> torch.Tensor:
    return torch.full((4, 4), float(number))


def trial(memory: EmbeddingMemory, pictures: range) -> int:
    """Ask for pictures in order, as a trial does. Returns how many were there."""
    hits = 0
    for number in pictures:
        found = memory.get(str(number))
        if found is None:
            memory.put(str(number), of(number))
        else:
            assert torch.equal(found, of(number))
            hits += 1
    assert memory._bytes == sum(kept.nbytes for kept, _ in memory._kept.values()) <= memory._limit
    return hits


def test_all_have_room() -> None:
    memory = EmbeddingMemory(8 * SIZE)
    assert [trial(memory, range(8)) for _ in range(3)] == [0, 8, 8]


def test_as_many_as_have_room_are_found_in_every_trial() -> None:
    memory = EmbeddingMemory(4 * SIZE + 3)
    assert [trial(memory, range(12)) for _ in range(5)] == [0, 4, 4, 4, 4]


def test_pictures_that_are_not_asked_for_any_more_give_way() -> None:
    memory = EmbeddingMemory(4 * SIZE)
    trial(memory, range(4))
    hits = [trial(memory, range(10, 14)) for _ in range(12)]
    assert hits[0] == 0
    assert hits[-1] == 4


def test_what_has_no_room_is_not_kept() -> None:
    memory = EmbeddingMemory(SIZE - 1)
    memory.put("0", of(0))
    assert memory.get("0") is None
    nothing = EmbeddingMemory(0)
    nothing.put("0", of(0))
    assert nothing.get("0") is None


def test_locked_memory_counts_as_the_power_of_two_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", none_left)
    memory = EmbeddingMemory(300, locked=True)
    for name in "ab":  # 36 floats are 144 bytes, which take 256
        memory.put(name, torch.ones(6, 6))
    assert torch.equal(memory.get("a"), torch.ones(6, 6))  # kept all the same, without a lock
    assert memory.get("b") is None


def test_a_container_has_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine_memory()
    assert whole > 1 << 28
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "some").write_text("123456789\n")
    monkeypatch.setattr(embedding_memory, "CGROUPS", (str(tmp_path / "max"), str(tmp_path / "none")))
    assert machine_memory() >= whole
    monkeypatch.setattr(embedding_memory, "CGROUPS", (str(tmp_path / "some"),))
    assert machine_memory() == 123456789
