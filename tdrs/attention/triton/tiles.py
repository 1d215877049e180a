"""The sizes of tiles: fixed for a head size and a GPU, so that results do not depend on what ran before.

They were chosen by compiling: no register is spilled, and a program takes at most the shared memory of its GPU. Nothing
was timed.
"""

from typing import NamedTuple


class Tiles(NamedTuple):
    """Query rows and keys of a tile, warps of a program, and stages of its loop over keys."""

    rows: int
    keys: int
    warps: int
    stages: int


CHUNK = 64  # keys whose directions are summed together
INTERPRETED = Tiles(32, 32, 1, 1)


def tiles(wide: int, size: int, capability: tuple[int, int]) -> Tiles:
    """The tiles of |A|_min and of attention.

    Args:
        wide: the head size, rounded up to a power of 2.
        size: bytes of an element of queries and keys.
        capability: of the GPU.
    """
    hopper = capability[0] == 9
    if size == 4:
        return Tiles(32, 32, 4, 1) if wide > 64 else Tiles(64, 32, 4, 1)
    if hopper:
        return Tiles(64, 32, 4, 2) if wide > 128 else Tiles(128, 64, 8, 2)
    return Tiles(64, 32, 8, 1) if wide > 128 else Tiles(64, 32, 4, 2)
