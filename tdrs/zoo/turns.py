"""The training data of an embedded model: pictures with turns about them, packed into a few rows of tokens each.

A turn attends to the picture and to itself only, and its positions start directly after the picture. So each turn has
exactly the text and the positions of the evaluation's prompt, while the picture is encoded only once.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from tdrs.backbones.processors import user_turn
from tdrs.backbones.prompt_encoder import picture_place
from tdrs.benchmarks import mini_gqa, mini_pope, mini_textvqa, prompts
from tdrs.benchmarks.embedded import SEEDS
from tdrs.benchmarks.filler import filler
from tdrs.benchmarks.mini_scienceqa import TOPICS, ask
from tdrs.benchmarks.pope import CATEGORIES
from tdrs.benchmarks.prompts import LETTERS
from tdrs.benchmarks.scenes import CELL, COLORS, GRID, SHAPES, Object, draw, sample_objects
from tdrs.benchmarks.signs import DIGITS, GLYPHS, Sign, draw_signs, sample_signs
from tdrs.settings import check_number

SORTS = ("describe", "word", "match", "look_up", "choose", "ask", "exist", "read")
MIXTURE = {  # by stage: the share of each sort of turn about a picture of `objects`
    "skills": (0.0, 0.1, 0.45, 0.25, 0.2),
    "all": (0.02, 0.03, 0.1, 0.1, 0.75),
}
PICTURES = {  # by stage: the share of each kind of picture
    "align": {"catalogue": 1.0},
    "skills": {"objects": 0.6, "crowd": 0.2, "kinds": 0.1, "signs": 0.1},
    "all": {"objects": 0.35, "crowd": 0.3, "kinds": 0.15, "signs": 0.2},
}
HINTS = {"skills": 0.2, "all": 0.6}  # by stage: the share of turns with unrelated text
WORD = re.compile(r"\n|\w+|[^\w\s]")  # as the tokenizer splits
CHARACTERS = sorted(GLYPHS)
NOWHERE = GRID**2  # stands for the cell of an object that is not in the picture
BEFORE = 0.15  # the share of the pictures of the stage `all` with such a text in front of the image


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; `conf/train.yaml` has the values. Equal recipes give equal batches.

    Args:
        start: the folder of the model that this one starts from, or `embedded:NAME`: the whole model if it is of the
            same class, else its text decoder; `random` for random weights.
        gap: the longest unrelated text, in tokens.
        align_steps, skills_steps, all_steps: steps of the three stages.
        batch_size: how many pictures a batch has.
        rows: how many rows of tokens a picture has.
        length: how many tokens a row has.
        learning_rate: the highest learning rate of the two stages with the decoder.
        warmup_steps: the number of steps until it is reached.
    """

    seed: int
    start: str
    gap: int
    align_steps: int
    skills_steps: int
    all_steps: int
    batch_size: int
    rows: int
    length: int
    learning_rate: float
    warmup_steps: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "start":
                above = name in ("gap", "batch_size", "rows", "length", "learning_rate")
                check_number(name, value, 0, whole=name != "learning_rate", above=above)

    @property
    def steps(self) -> int:
        return self.align_steps + self.skills_steps + self.all_steps

    def stage(self, step: int) -> str:
        if step < self.align_steps:
            return "align"
        return "skills" if step < self.align_steps + self.skills_steps else "all"

    def rate(self, step: int) -> float:
        """The learning rate of a step: warm-up and cosine decay to zero for `align`, and again for the other stages."""
        if step < self.align_steps:
            return 1e-3 * _wave(step, self.align_steps, 100)
        return self.learning_rate * _wave(step - self.align_steps, self.steps - self.align_steps, self.warmup_steps)


def _wave(done: int, steps: int, warmup: int) -> float:
    """From 0 to 1 in `warmup` steps, and down to 0 over all `steps` as a cosine."""
    return min(1.0, (done + 1) / warmup) * 0.5 * (1 + float(np.cos(np.pi * done / steps)))


class Hints(NamedTuple):
    """How often a turn has unrelated text, and the length of the longest, in tokens."""

    share: float
    longest: int

    def text(self, rng: np.random.Generator) -> str:
        """In a `share` of the cases a text of 1 to `longest` tokens, else ""."""
        return filler(int(rng.integers(1, self.longest + 1)), rng) if rng.random() < self.share else ""


class Turn(NamedTuple):
    """A user's prompt and the answer. `word` is the word asked for, which an auxiliary loss reads halfway up."""

    sort: str
    prompt: str
    answer: str
    word: str = ""


def _choose(objects: list[Object], style: str, hints: Hints, rng: np.random.Generator) -> Turn:
    asked = ask(objects, str(rng.choice(TOPICS, p=(0.4, 0.4, 0.2))), rng)
    prompt = prompts.scienceqa(style, asked["question"], asked["choices"], hints.text(rng))
    return Turn("choose", prompt, LETTERS[asked["answer"]], asked["choices"][asked["answer"]])


def _look_up(objects: list[Object], style: str, hints: Hints, rng: np.random.Generator) -> Turn:
    asked = ask(objects, str(rng.choice(TOPICS)), rng)
    word = asked["choices"][asked["answer"]]
    prompt = prompts.scienceqa(style, f"Which option is {word}?", asked["choices"], hints.text(rng))
    return Turn("look_up", prompt, LETTERS[asked["answer"]], word)


def _match(objects: list[Object], rng: np.random.Generator) -> Turn:
    """Options in the prompt; the answer pairs each word, in another order, with its letter."""
    choices = ask(objects, str(rng.choice(TOPICS)), rng)["choices"]
    order = rng.permutation(len(choices))
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    return Turn("match", f"{options}Name the letters.", " ".join(f"{choices[n]} {LETTERS[n]}" for n in order))


def _word(objects: list[Object], style: str, hints: Hints, rng: np.random.Generator) -> Turn:
    asked = ask(objects, str(rng.choice(TOPICS[:2])), rng)
    word = asked["choices"][asked["answer"]]
    return Turn("word", prompts.gqa(style, asked["question"], hints.text(rng)), word, word)


def _exist(present: list[int], style: str, hints: Hints, rng: np.random.Generator) -> Turn:
    """Half of the questions are about a present object, half about an absent one, chosen in POPE's three ways."""
    chosen = [int(kind) for kind in rng.choice(present, mini_pope.ASKED, replace=False)]
    if rng.random() < 0.5:
        kind, answer = chosen[0], "yes"
    else:
        absent = mini_pope.negatives(str(rng.choice(CATEGORIES)), present, chosen, 0, rng)
        kind, answer = absent[int(rng.integers(len(absent)))], "no"
    prompt = prompts.pope(style, mini_pope.question(kind), hints.text(rng))
    return Turn("exist", prompt, answer, answer)


class Scene:
    """A training picture: what is on it, and turns about it."""

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.kind = kind
        self.objects: list[Object] = []
        self.signs: list[Sign] = []
        if kind == "catalogue":
            self._catalogue(rng)
            return
        if kind == "signs":
            self.signs = sample_signs(rng)
            self.pixels = draw_signs(self.signs, rng)
            return
        if kind == "kinds":
            self.present = mini_pope.sample_kinds(rng)
            cells = np.sort(rng.choice(GRID * GRID, len(self.present), replace=False))
            names = [mini_pope.KINDS[n] for n in self.present]
            self.objects = [Object(*name, int(cell)) for name, cell in zip(names, cells, strict=True)]
        else:
            self.objects = mini_gqa.sample_crowd(rng) if kind == "crowd" else sample_objects(rng)
        self.pixels = draw(self.objects, rng)

    def _catalogue(self, rng: np.random.Generator) -> None:
        """A picture with an object or a sign in nearly every cell, so that each cell teaches a patch."""
        cell = 0
        while cell < GRID**2:
            kind, color = rng.random(), str(rng.choice(list(COLORS)))
            if kind < 0.45:
                self.objects.append(Object(color, str(rng.choice(SHAPES)), cell))
            elif kind < 0.9:
                first = CHARACTERS[rng.integers(len(CHARACTERS))]
                more = rng.random() < 0.6 and cell % GRID + 1 < GRID
                self.signs.append(Sign(color, first + (DIGITS[rng.integers(10)] if more else ""), cell))
                cell += more
            cell += 1
        self.pixels = draw(self.objects, rng)
        plates = draw_signs(self.signs, rng)
        for row, column in (divmod(cell, GRID) for sign in self.signs for cell in sign.cells):
            part = slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)
            self.pixels[part] = plates[part]

    @property
    def shown(self) -> dict[int, tuple[str, str]]:
        """The two words for what each cell shows: colour and shape, or a plate's colour and its character."""
        cells = {thing.cell: (thing.color, thing.shape) for thing in self.objects}
        return cells | {
            cell: (sign.color, character if cell == sign.cell else f"##{character}")
            for sign in self.signs
            for cell, character in zip(sign.cells, sign.text, strict=True)
        }

    def turn(self, stage: str, style: str, hints: Hints, rng: np.random.Generator) -> Turn:
        """A turn about the picture.

        Args:
            style: the style of the prompt; see `tdrs.benchmarks.prompts`.
            hints: how often the turn has unrelated text, and of what length.
        """
        describe = Turn("describe", "Describe the picture.", self._description())
        if self.kind == "objects":
            match str(rng.choice(SORTS[:5], p=MIXTURE[stage])):
                case "describe":
                    return describe
                case "word":
                    return _word(self.objects, style, hints, rng)
                case "match":
                    return _match(self.objects, rng)
                case "look_up":
                    return _look_up(self.objects, style, hints, rng)
                case _:
                    return _choose(self.objects, style, hints, rng)
        if rng.random() < 0.05:
            return describe
        if self.kind == "crowd":
            question, answer = mini_gqa.ask(self.objects, rng)
            return Turn("ask", prompts.gqa(style, question, hints.text(rng)), answer, answer)
        if self.kind == "kinds":
            return _exist(self.present, style, hints, rng)
        sign = self.signs[int(rng.integers(len(self.signs)))]
        prompt = prompts.textvqa(style, mini_textvqa.ask(sign, rng), None, hints.text(rng))
        return Turn("read", prompt, sign.text, sign.text[0])

    def places(self, prompt: Sequence[str]) -> dict[int, int]:
        """The cells of the objects and signs that a prompt names ("circle", "red object", "red sign").

        A cell is found by the number of the name's last word in the prompt. It is `NOWHERE` if the picture has no such
        object. A name that fits several objects is left out.
        """
        found = {}
        for at, (before, word) in enumerate(pairwise(prompt), start=1):
            color = before if before in COLORS else None
            if word in SHAPES and (color or before == "the"):
                cells = [o.cell for o in self.objects if o.shape == word and color in (None, o.color)]
            elif word == "object" and color:
                cells = [o.cell for o in self.objects if o.color == color]
            elif word == "sign" and color:
                cells = [sign.cell for sign in self.signs if sign.color == color]
            else:
                continue
            if len(cells) < 2:
                found[at] = cells[0] if cells else NOWHERE
        return found

    def _description(self) -> str:
        things = [f"{thing.color} {thing.shape}" for thing in self.objects]
        return ", ".join([*things, *(f"{sign.color} {sign.text}" for sign in self.signs)])


class Pictures(Dataset[dict[str, torch.Tensor]]):
    """Item n is training picture n with its turns. It depends only on the recipe and n.

    An item has the processor's pixels. In the stages with the decoder it also has, for R rows of L tokens:

    - `ids`, the tokens, and `positions`, axes × R × L;
    - `turns`, the number of each token's turn: 0 for tokens that all turns see, -1 for padding;
    - `labels`, the next token of an answer;
    - `words`: at a question mark the word asked for, at an option its letter;
    - `chosen`: before the letter of an answer, the word of that option;
    - `places`: at the name of an object, its cell;
    - `sorts`: at the first token of an answer, the sort of its turn.

    The last five are -100 at all other tokens.
    """

    def __init__(self, recipe: Recipe, processor: Any, style: str, axes: int) -> None:
        self.recipe = recipe
        self.processor = processor
        self.style = style
        self.axes = axes
        tokens = processor.tokenizer
        self.end = tokens.eos_token_id
        self.pad = tokens.pad_token_id
        self.ids = tokens.get_vocab()
        self._known: dict[str, list[int]] = {}
        whole, plain = (processor.apply_chat_template([user_turn("!", n)], add_generation_prompt=True) for n in (1, 0))
        self._before, after = whole.split("!")
        self._place = picture_place(whole, plain)
        self._suffix = tokens(after, add_special_tokens=False)["input_ids"]

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        stage = self.recipe.stage(index // self.recipe.batch_size)
        rng = np.random.default_rng([SEEDS["train"], self.recipe.seed, index, 3])
        kinds = PICTURES[stage]
        scene = Scene(str(rng.choice(list(kinds), p=list(kinds.values()))), rng)
        before = Hints(BEFORE if stage == "all" else 0.0, self.recipe.gap).text(rng)
        in_front = f"Context: {before}\n" if before else ""
        text = f"{self._before[: self._place]}{in_front}{self._before[self._place :]}"
        inputs = self.processor(text=[text], images=[Image.fromarray(scene.pixels)], return_tensors="np")
        shown = np.full((GRID**2, 2), self.ids["empty"])
        for cell, words in scene.shown.items():
            shown[cell] = self.ids[words[0]], self.ids[words[1]]
        item = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
        item |= {"shown": shown}
        if stage != "align":
            # the text stands in one place, as in the evaluation
            hints = Hints(0.0 if before else HINTS[stage], self.recipe.gap)
            item |= self._rows(scene, stage, hints, list(inputs["input_ids"][0]), rng)
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in item.items()}

    def _positions(self, prefix: list[int]) -> np.ndarray:
        """The positions of the tokens up to the question, (axes, P): 0, 1, …, or M-RoPE's time, row and column."""
        if self.axes == 1:
            return np.arange(len(prefix))[None]
        first = prefix.index(self.ids[self.processor.image_token])
        row, column = np.divmod(np.arange(GRID**2), GRID)
        image = first + np.stack([np.zeros_like(row), row, column])
        text = np.arange(len(prefix) - first - GRID**2)
        return np.concatenate([np.tile(np.arange(first), (3, 1)), image, np.tile(first + GRID + text, (3, 1))], axis=1)

    def _encode(self, text: str) -> list[int]:
        """The tokenizer's ids, cached word by word: turns have few different words, and the tokenizer is slow."""
        ids: list[int] = []
        for word in WORD.findall(text):
            if word not in self._known:
                self._known[word] = self.processor.tokenizer(word, add_special_tokens=False)["input_ids"]
            ids += self._known[word]
        return ids

    def _rows(
        self, scene: Scene, stage: str, hints: Hints, prefix: list[int], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        shape = self.recipe.rows, self.recipe.length
        blank = {
            "ids": self.pad,
            "turns": -1,
            "labels": -100,
            "words": -100,
            "places": -100,
            "chosen": -100,
            "sorts": -100,
        }
        rows = {name: np.full(shape, value) for name, value in blank.items()}
        positions = np.zeros((self.axes, *shape), dtype=np.int64)
        start = len(prefix)
        own = self._positions(prefix)
        following = int(own.max()) + 1
        waiting: Turn | None = None
        for row in range(shape[0]):
            rows["ids"][row, :start], rows["turns"][row, :start], positions[:, row, :start] = prefix, 0, own
            at, number = start, 0
            while True:
                turn = waiting or scene.turn(stage, self.style, hints, rng)
                said = self._encode(turn.prompt) + self._suffix
                gold = self._encode(turn.answer)
                stop = at + len(said) + len(gold) + 1
                # a turn that does not fit begins the next row: else long turns would be too rare
                waiting = turn if stop > shape[1] and number else None
                if stop > shape[1]:
                    break
                number += 1
                rows["ids"][row, at:stop] = [*said, *gold, self.end]
                rows["turns"][row, at:stop] = number
                positions[:, row, at:stop] = np.arange(following, following + stop - at)
                answer = at + len(said) - 1  # labels are already shifted by one
                rows["labels"][row, answer : stop - 1] = [*gold, self.end]
                if turn.sort == "match":  # the order of the words does not matter
                    rows["labels"][row, answer : stop - 1 : 2] = -100
                rows["sorts"][row, answer + (turn.sort == "match")] = SORTS.index(turn.sort)
                words = WORD.findall(turn.prompt)
                if turn.word:
                    rows["words"][row, at + said.index(self.ids["?"])] = self.ids[turn.word]
                if turn.sort in ("choose", "look_up"):
                    rows["chosen"][row, answer] = self.ids[turn.word]
                for place, word in enumerate(words[2:], start=2):
                    if words[place - 1] == "." and words[place - 2] in LETTERS[:5] and word in (*COLORS, *SHAPES):
                        rows["words"][row, at + place] = self.ids[words[place - 2]]
                for place, cell in scene.places(words).items():
                    rows["places"][row, at + place] = cell
                at = stop
        return rows | {"positions": positions}


def collate(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch: pixels one after the other, rows of all pictures below each other."""
    joined = {"pixel_values": 0, "image_grid_thw": 0, "positions": 1}
    batch = {}
    for name in items[0]:
        parts = [item[name] for item in items]
        batch[name] = torch.stack(parts) if name == "shown" else torch.cat(parts, dim=joined.get(name, 0))
    return batch
