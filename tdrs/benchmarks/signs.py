"""Signs: coloured plates with one or two characters, on the grid of `scenes`; the pictures of the embedded TextVQA.

The characters are the bitmaps below at twice their size, so no font is needed and the pixels are the same on every
machine. A, I and O are left out: EvalAI deletes an "a", and I and O look like 1 and 0.
"""

from dataclasses import dataclass

import numpy as np

from tdrs.benchmarks.scenes import CELL, COLORS, GRID, SIDE

_BANNERS = """
B     C     D     E     F     G     H     J     K     L     M
####. .###. ####. ##### ##### .###. #...# ..### #...# #.... #...#
#...# #...# #...# #.... #.... #...# #...# ...#. #..#. #.... ##.##
#...# #.... #...# #.... #.... #.... #...# ...#. #.#.. #.... #.#.#
####. #.... #...# ####. ####. #.### ##### ...#. ##... #.... #.#.#
#...# #.... #...# #.... #.... #...# #...# ...#. #.#.. #.... #...#
#...# #...# #...# #.... #.... #...# #...# #..#. #..#. #.... #...#
####. .###. ####. ##### #.... .###. #...# .##.. #...# ##### #...#

N     P     Q     R     S     T     U     V     W     X     Y     Z
#...# ####. .###. ####. .#### ##### #...# #...# #...# #...# #...# #####
##..# #...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....#
#.#.# #...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#.
#.#.# ####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#..
#..## #.... #.#.# #.#.. ....# ..#.. #...# #...# #.#.# .#.#. ..#.. .#...
#...# #.... #..#. #..#. ....# ..#.. #...# .#.#. ##.## #...# ..#.. #....
#...# #.... .##.# #...# ####. ..#.. .###. ..#.. #...# #...# ..#.. #####

0     1     2     3     4     5     6     7     8     9
.###. ..#.. .###. .###. ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# #...# ..##. #.... #.... ....# #...# #...#
#..## ..#.. ....# ....# .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ..##. #..#. ....# ####. ...#. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# ..#.. #...# ....#
.###. .###. ##### .###. ...#. .###. .###. ..#.. .###. .###.
"""
LIGHT = {"yellow", "orange", "white", "green"}  # plates that carry dark characters


def _glyphs() -> dict[str, np.ndarray]:
    glyphs = {}
    for banner in _BANNERS.strip().split("\n\n"):
        names, *lines = banner.splitlines()
        for place, name in enumerate(names.split()):
            glyphs[name] = np.array([[c == "#" for c in line.split()[place]] for line in lines])
    return glyphs


GLYPHS = _glyphs()
LETTERS = "".join(sorted(name for name in GLYPHS if name.isalpha()))
DIGITS = "0123456789"


@dataclass(frozen=True)
class Sign:
    """A plate with one cell for each character: its colour, its text and the cell of its first character."""

    color: str
    text: str
    cell: int

    @property
    def cells(self) -> range:
        return range(self.cell, self.cell + len(self.text))


def sample_signs(rng: np.random.Generator) -> list[Sign]:
    """2 to 4 signs, in cell order. Colours and texts are distinct, and no cell belongs to two signs.

    A third show a letter, a third a number of one or two digits, a third a letter and a digit.
    """
    signs: list[Sign] = []
    count = int(rng.integers(2, 5))
    colors = [str(color) for color in rng.choice(list(COLORS), count, replace=False)]
    while len(signs) < count:
        kind = rng.integers(3)
        letter, digits = LETTERS[rng.integers(len(LETTERS))], [DIGITS[n] for n in rng.integers(10, size=2)]
        text = [letter, "".join(digits[: int(rng.integers(1, 3))]), letter + digits[0]][kind]
        cell = int(rng.integers(GRID * GRID - len(text) + 1))
        fits = cell % GRID + len(text) <= GRID
        free = not {c for sign in signs for c in sign.cells} & set(range(cell, cell + len(text)))
        if fits and free and all(text != sign.text for sign in signs):
            signs.append(Sign(colors[len(signs)], text, cell))
    return sorted(signs, key=lambda sign: sign.cell)


def draw_signs(signs: list[Sign], rng: np.random.Generator) -> np.ndarray:
    """The picture, (64, 64, 3) uint8; `rng` varies colours and background, and moves characters by up to a pixel."""
    background = 165 + rng.integers(-12, 13, 3)
    picture = np.broadcast_to(background, (SIDE, SIDE, 3)).astype(np.int64)
    for sign in signs:
        plate = np.asarray(COLORS[sign.color]) + rng.integers(-12, 13, 3)
        ink = np.full(3, 15 if sign.color in LIGHT else 240)
        row, column = divmod(sign.cell, GRID)
        top, left = row * CELL, column * CELL
        picture[top : top + CELL, left : left + CELL * len(sign.text)] = plate
        for place, character in enumerate(sign.text):
            y, x = top + 1 + int(rng.integers(-1, 2)), left + CELL * place + 3 + int(rng.integers(-1, 2))
            dots = np.kron(GLYPHS[character], np.ones((2, 2), dtype=bool))
            picture[y : y + 14, x : x + 10][dots] = ink
    return np.clip(picture, 0, 255).astype(np.uint8)
