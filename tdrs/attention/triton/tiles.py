"""The sizes of tiles: fixed for a head size and a GPU, so that results do not depend on what ran before.

They were chosen by compiling: with 16 bits no register is spilled at head sizes up to 128, and a program takes at most
the shared memory of its GPU. Nothing was timed.
"""

from typing import NamedTuple


class Tiles(NamedTuple):
    """Query rows and keys of a tile, warps of a program, and stages of its loop over keys."""

    rows: int
    keys: int
    warps: int
    stages: int


CHUNK = 64  # keys whose directions are summed together
SPLIT = 128  # keys of a part of a decoded row
INTERPRETED = Tiles(32, 32, 1, 1)


def tiles(wide: int, size: int, capability: tuple[int, int], heavy: bool = False) -> Tiles:
    """The tiles of |A|_min and of attention.

    Args:
        wide: the head size, rounded up to a power of 2.
        size: bytes of an element of queries and keys.
        capability: of the GPU.
        heavy: see `FusedEdit`.
    """
    roomy = capability in ((8, 0), (8, 7)) or capability[0] in (9, 10)  # more than 99 KiB of shared memory a program
    if size == 4:
        return Tiles(32, 16, 4, 2) if wide <= 128 else Tiles(16, 16, 4, 2 if roomy else 1)
    if wide > 128:
        return Tiles(64, 32, 4, 2) if roomy else Tiles(32, 16, 4, 2)
    # 8 warps of 16 rows each: with fewer rows than that, warps would compute the same
    keys = 64 if capability[0] == 9 else 32
    return Tiles(128, keys // 2 if heavy else keys, 8, 2)


def row_tiles(wide: int, size: int, group: int) -> Tiles:
    """The tiles of a decoded row, whose rows are the query heads that share a key head. They fit all GPUs.

    Args:
        wide, size: as in `tiles`.
        group: how many query heads share a key head.
    """
    rows = max(16, 1 << (group - 1).bit_length())  # a product takes 16, at least
    keys = max(16, min(SPLIT, 4096 // wide))
    return Tiles(rows, keys, 4, 2) if size < 4 else Tiles(rows, keys, 8, 2 if wide <= 128 else 1)
