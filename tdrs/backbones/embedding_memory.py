"""Image embeddings in the machine's memory, for the next trial of a study, which sees the same pictures.

Reading a file and checking it takes milliseconds a picture. On a GPU that is a part of each batch in which the model
waits. There, memory is page-locked, so the copy to the device does not wait either.
"""

import os
from contextlib import suppress
from pathlib import Path

import torch

SHARE = 16  # one process keeps at most one in so many bytes of the machine's memory: eight workers take half
STALE = 8  # a picture gives way if so many times as many as are kept were asked for since it was
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's bound


def machine_memory() -> int:
    """The bytes of memory that the machine, or the container, has."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no bound
            found.append(int(Path(path).read_text(encoding="utf-8")))
    return min(found)


class EmbeddingMemory:
    """The embeddings of pictures, up to a number of bytes.

    Trials ask for the same pictures in the same order. If not all have room, those that were kept first stay: if the
    least recently used gave way, every picture would be gone when it is asked for again. A picture that is not asked
    for any more, as those of another split, gives way.

    Args:
        limit: in bytes.
        locked: whether memory is page-locked, for a GPU.
    """

    def __init__(self, limit: int, locked: bool = False) -> None:
        self._limit = limit
        self._locked = locked
        self._kept: dict[str, tuple[torch.Tensor, int]] = {}  # with the clock of their last use, the oldest first
        self._bytes = 0
        self._clock = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._kept

    def get(self, digest: str) -> torch.Tensor | None:
        """The embeddings of a picture, on the CPU; None if they are not kept. They must not be changed."""
        self._clock += 1
        if digest not in self._kept:
            return None
        found, _ = self._kept.pop(digest)
        self._kept[digest] = found, self._clock
        return found

    def put(self, digest: str, embeddings: torch.Tensor) -> None:
        """Keep the embeddings of a picture, if there is room."""
        size = self._size(embeddings)
        while self._bytes + size > self._limit:
            oldest = next(iter(self._kept), None)
            if oldest is None or self._clock - self._kept[oldest][1] < STALE * len(self._kept):
                return
            self._bytes -= self._size(self._kept.pop(oldest)[0])
        kept = embeddings.detach().cpu().contiguous()
        if self._locked:
            with suppress(RuntimeError):  # there may be too little memory that can be locked
                kept = kept.pin_memory()
        self._kept[digest] = kept, self._clock
        self._bytes += size

    def _size(self, embeddings: torch.Tensor) -> int:
        """The bytes that embeddings take; PyTorch locks a power of two."""
        return 1 << (embeddings.nbytes - 1).bit_length() if self._locked else embeddings.nbytes
