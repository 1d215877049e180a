"""Scenes of coloured objects on a grid: the pictures of the embedded benchmarks.

A scene is a 4 x 4 grid of cells of 16 x 16 pixels. Some cells hold one object, which has a colour and a shape. In a
scene of `sample_objects`, no colour and no shape occurs twice, so "the circle" and "the red object" are unambiguous.
Size, offset inside the cell, colour and background vary at random, so no two pictures are equal. Shapes are computed
with numpy and without a drawing library, so the pixels are the same on every machine.
"""

from dataclasses import dataclass

import numpy as np

GRID = 4
CELL = 16
SIDE = GRID * CELL

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 60),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "bar", "moon")
_SUPERSAMPLING = 4
_SIZES = (5.5, 6.25, 7.0)  # half extent in pixels
_OFFSETS = (-1, 0, 1)  # pixels


@dataclass(frozen=True)
class Object:
    """One object: its colour, its shape and the cell (row-major index) it stands in."""

    color: str
    shape: str
    cell: int


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether the points (x, y), in units of the half extent with y downwards, lie inside the shape."""
    radius = np.hypot(x, y)
    match shape:
        case "circle":
            return radius < 1
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) < 0.88
        case "triangle":
            return (np.abs(x) < (y + 1) / 2) & (y < 1)
        case "diamond":
            return np.abs(x) + np.abs(y) < 1
        case "cross":
            return (np.minimum(np.abs(x), np.abs(y)) < 0.3) & (np.maximum(np.abs(x), np.abs(y)) < 1)
        case "ring":
            return (radius < 1) & (radius > 0.55)
        case "bar":
            return (np.abs(y) < 0.35) & (np.abs(x) < 1)
        case "moon":
            return (radius < 1) & (np.hypot(x - 0.55, y) > 0.8)
        case _:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")


def _coverage(shape: str, size: float, dx: int, dy: int) -> np.ndarray:
    """Share of each pixel of a cell that the shape covers, (CELL, CELL) in [0, 1]."""
    ticks = (np.arange(CELL * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING - CELL / 2
    x, y = np.meshgrid((ticks - dx) / size, (ticks - dy) / size)
    fine = _inside(shape, x, y).astype(np.float32)
    return fine.reshape(CELL, _SUPERSAMPLING, CELL, _SUPERSAMPLING).mean(axis=(1, 3))


_STAMPS = {
    (shape, size, dx, dy): _coverage(shape, size, dx, dy)
    for shape in SHAPES
    for size in _SIZES
    for dx in _OFFSETS
    for dy in _OFFSETS
}


def sample_objects(rng: np.random.Generator, low: int = 3, high: int = 5) -> list[Object]:
    """Between `low` and `high` objects in distinct cells, with distinct colours and distinct shapes, in cell order."""
    count = int(rng.integers(low, high + 1))
    cells = np.sort(rng.choice(GRID * GRID, count, replace=False))
    colors = rng.choice(list(COLORS), count, replace=False)
    shapes = rng.choice(SHAPES, count, replace=False)
    return [Object(str(c), str(s), int(cell)) for c, s, cell in zip(colors, shapes, cells, strict=True)]


def draw(objects: list[Object], rng: np.random.Generator) -> np.ndarray:
    """The scene as a (64, 64, 3) uint8 picture; `rng` jitters size, offset, colour and background."""
    background = 165 + rng.integers(-12, 13, 3)
    picture = np.broadcast_to(background.astype(np.float32), (SIDE, SIDE, 3)).copy()
    for thing in objects:
        stamp = _STAMPS[thing.shape, _SIZES[rng.integers(3)], _OFFSETS[rng.integers(3)], _OFFSETS[rng.integers(3)]]
        color = np.clip(np.asarray(COLORS[thing.color]) + rng.integers(-12, 13, 3), 0, 255).astype(np.float32)
        row, column = divmod(thing.cell, GRID)
        cell = picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        cell += stamp[..., None] * (color - cell)
    return np.rint(picture).astype(np.uint8)
