"""What an embedded model is trained on: pictures with turns about them, packed into one sequence each.

A turn sees the picture and itself only, and its positions start right behind the picture: so each turn is, to the
letter and to the position, the prompt the evaluation sends, while the picture is encoded once.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from transformers import LlavaProcessor

from tdrs.benchmarks import mini_gqa, mini_pope, mini_textvqa, prompts
from tdrs.benchmarks.embedded import SEEDS
from tdrs.benchmarks.filler import filler
from tdrs.benchmarks.mini_scienceqa import TOPICS, ask
from tdrs.benchmarks.pope import CATEGORIES
from tdrs.benchmarks.prompts import LETTERS, SINGLE_WORD, scienceqa
from tdrs.benchmarks.scenes import GRID, Object, draw, sample_objects
from tdrs.benchmarks.signs import Sign, draw_signs, sample_signs
from tdrs.settings import check_number

SORTS = ("describe", "word", "match", "look_up", "choose", "ask", "exist", "read")
MIXTURE = {  # how often each sort of turn about a picture of `objects` comes, by stage
    "name": (0.0, 1.0, 0.0, 0.0, 0.0),
    "look_up": (0.05, 0.15, 0.35, 0.2, 0.25),
    "choose": (0.05, 0.15, 0.05, 0.1, 0.65),
    "all": (0.02, 0.08, 0.05, 0.05, 0.8),
}
PICTURES = {"objects": 0.3, "crowd": 0.3, "kinds": 0.2, "signs": 0.2}  # of the stage `all`, whose twin each belongs to
HINTS = {"name": 0.2, "look_up": 0.1, "choose": 0.9, "all": 0.6}  # turns with a gap's text, by stage
GAP = 32  # the longest text seen in training, in tokens
BEFORE = 0.15  # of the pictures of the stage `all` have such a text in front of the image


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of (`conf/train.yaml` has the values): steps of each stage, pictures a batch, tokens
    a picture, the highest learning rate and its warm-up. Equal recipes give equal batches."""

    seed: int
    align_steps: int
    name_steps: int
    look_up_steps: int
    choose_steps: int
    all_steps: int
    batch_size: int
    length: int
    learning_rate: float
    warmup_steps: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_number(name, value, 0, whole=name != "learning_rate", above=name in ("batch_size", "learning_rate"))

    @property
    def steps(self) -> int:
        return self.align_steps + self.name_steps + self.look_up_steps + self.choose_steps + self.all_steps

    def stage(self, step: int) -> str:
        if step < self.align_steps:
            return "align"
        if step < self.align_steps + self.name_steps:
            return "name"
        if step < self.steps - self.all_steps - self.choose_steps:
            return "look_up"
        return "choose" if step < self.steps - self.all_steps else "all"

    def rate(self, step: int) -> float:
        """Learning rate of a step: a warm-up and a cosine down to zero while aligning, then again for the stages on one
        benchmark, then, from two thirds of the rate, for the stage on all of them."""
        last = self.steps - self.all_steps
        if step < self.align_steps:
            return 1e-3 * _wave(step, self.align_steps, 100)
        if step < last:
            return self.learning_rate * _wave(step - self.align_steps, last - self.align_steps, self.warmup_steps)
        return self.learning_rate * 2 / 3 * _wave(step - last, self.all_steps, self.warmup_steps)


def _wave(done: int, steps: int, warmup: int) -> float:
    """From 0 to 1 in `warmup` steps, and down to 0 over all `steps` as a cosine."""
    return min(1.0, (done + 1) / warmup) * 0.5 * (1 + float(np.cos(np.pi * done / steps)))


def _hint(share: float, rng: np.random.Generator) -> str:
    """No hint, or in a `share` of the cases one of 1 to GAP tokens."""
    return filler(int(rng.integers(1, GAP + 1)), rng) if rng.random() < share else ""


class Turn(NamedTuple):
    """A user's prompt and the answer; `word`: the word asked for, which the auxiliary loss reads halfway up."""

    sort: str
    prompt: str
    answer: str
    word: str = ""


def _choose(objects: list[Object], hints: float, rng: np.random.Generator) -> Turn:
    asked = ask(objects, str(rng.choice(TOPICS, p=(0.4, 0.4, 0.2))), rng)
    prompt = scienceqa("llava", asked["question"], asked["choices"], _hint(hints, rng))
    return Turn("choose", prompt, LETTERS[asked["answer"]], asked["choices"][asked["answer"]])


def _look_up(objects: list[Object], hints: float, rng: np.random.Generator) -> Turn:
    asked = ask(objects, str(rng.choice(TOPICS)), rng)
    word = asked["choices"][asked["answer"]]
    prompt = scienceqa("llava", f"Which option is {word}?", asked["choices"], _hint(hints, rng))
    return Turn("look_up", prompt, LETTERS[asked["answer"]], word)


def _match(objects: list[Object], rng: np.random.Generator) -> Turn:
    """Options in the prompt; the answer pairs each word, in another order, with its letter."""
    choices = ask(objects, str(rng.choice(TOPICS)), rng)["choices"]
    order = rng.permutation(len(choices))
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    return Turn("match", f"{options}Name the letters.", " ".join(f"{choices[n]} {LETTERS[n]}" for n in order))


def _word(objects: list[Object], hints: float, rng: np.random.Generator) -> Turn:
    asked = ask(objects, str(rng.choice(TOPICS[:2])), rng)
    hint = _hint(hints, rng)
    context = f"Context: {hint}\n" if hint else ""
    word = asked["choices"][asked["answer"]]
    return Turn("word", f"{context}{asked['question']}\n{SINGLE_WORD}", word, word)


def _exist(present: list[int], hints: float, rng: np.random.Generator) -> Turn:
    """Half of the questions are about what is there, half about what is not, in each of POPE's three ways."""
    chosen = [int(kind) for kind in rng.choice(present, mini_pope.ASKED, replace=False)]
    if rng.random() < 0.5:
        kind, answer = chosen[0], "yes"
    else:
        absent = mini_pope.negatives(str(rng.choice(CATEGORIES)), present, chosen, 0, rng)
        kind, answer = absent[int(rng.integers(len(absent)))], "no"
    prompt = prompts.pope("llava", mini_pope.question(kind), _hint(hints, rng))
    return Turn("exist", prompt, answer, answer)


class Scene:
    """A training picture: what is on it, and turns about it."""

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.kind = kind
        self.objects: list[Object] = []
        self.signs: list[Sign] = []
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

    @property
    def shown(self) -> dict[int, tuple[str, str]]:
        """The two words for what each cell shows: colour and shape, or a plate's colour and its character."""
        cells = {thing.cell: (thing.color, thing.shape) for thing in self.objects}
        return cells | {
            cell: (sign.color, character if cell == sign.cell else f"##{character}")
            for sign in self.signs
            for cell, character in zip(sign.cells, sign.text, strict=True)
        }

    def turn(self, stage: str, rng: np.random.Generator) -> Turn:
        hints = HINTS[stage]
        describe = Turn("describe", "Describe the picture.", self._description())
        if self.kind == "objects":
            match str(rng.choice(SORTS[:5], p=MIXTURE[stage])):
                case "describe":
                    return describe
                case "word":
                    return _word(self.objects, hints, rng)
                case "match":
                    return _match(self.objects, rng)
                case "look_up":
                    return _look_up(self.objects, hints, rng)
                case _:
                    return _choose(self.objects, hints, rng)
        if rng.random() < 0.05:
            return describe
        if self.kind == "crowd":
            question, answer = mini_gqa.ask(self.objects, rng)
            return Turn("ask", prompts.gqa("llava", question, _hint(hints, rng)), answer, answer)
        if self.kind == "kinds":
            return _exist(self.present, hints, rng)
        sign = self.signs[int(rng.integers(len(self.signs)))]
        prompt = prompts.textvqa("llava", mini_textvqa.ask(sign, rng), None, _hint(hints, rng))
        return Turn("read", prompt, sign.text, sign.text[0])

    def _description(self) -> str:
        things = [f"{thing.color} {thing.shape}" for thing in self.objects]
        return ", ".join([*things, *(f"{sign.color} {sign.text}" for sign in self.signs)])


class Pictures(Dataset[dict[str, np.ndarray]]):
    """Item `n` is training picture `n` with its turns, packed into `length` tokens; it depends on (seed, n) alone."""

    def __init__(self, recipe: Recipe, processor: LlavaProcessor) -> None:
        self.recipe = recipe
        self.processor = processor
        tokens = processor.tokenizer
        self.end = tokens.eos_token_id
        self.pad = tokens.pad_token_id
        self.ids = tokens.get_vocab()

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch_size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        stage = self.recipe.stage(index // self.recipe.batch_size)
        rng = np.random.default_rng([SEEDS["train"], self.recipe.seed, index, 3])
        kind = "objects"
        if stage in ("align", "all"):
            kind = str(rng.choice(list(PICTURES), p=list(PICTURES.values())))
        scene = Scene(kind, rng)
        pixels = self.processor.image_processor(Image.fromarray(scene.pixels))["pixel_values"][0]
        shown = np.full((GRID**2, 2), self.ids["empty"])
        for cell, words in scene.shown.items():
            shown[cell] = self.ids[words[0]], self.ids[words[1]]
        item = {"pixels": np.asarray(pixels, dtype=np.float32), "shown": shown}
        return item if stage == "align" else item | self._pack(scene, stage, rng)

    def _pack(self, scene: Scene, stage: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        length = self.recipe.length
        ids = np.full(length, self.pad)
        labels = np.full(length, -100)
        turns = np.full(length, -1)
        early = np.full(length, -100)  # at each question mark, the word asked for
        sorts = np.full(length, -1)  # at each answer's first token, the sort of its turn
        positions = np.zeros(length, dtype=np.int64)
        tokens = self.processor.tokenizer
        before = _hint(BEFORE if stage == "all" else 0.0, rng)
        before = f"Context: {before}\n" if before else ""
        prefix = tokens(f"USER: {before}" + "<image>" * GRID**2 + "\n")["input_ids"]
        start = len(prefix)
        ids[:start], turns[:start], positions[:start] = prefix, 0, np.arange(start)
        at, number = start, 0
        while True:
            if number == 0 and stage == "name":
                turn = Turn("describe", "Describe the picture.", scene._description())
            else:
                turn = scene.turn(stage, rng)
            said, gold = tokens([f"{turn.prompt} ASSISTANT:", turn.answer], add_special_tokens=False)["input_ids"]
            whole = [*said, *gold, self.end]
            stop = at + len(whole)
            if stop > length:
                break
            number += 1
            ids[at:stop], turns[at:stop] = whole, number
            positions[at:stop] = np.arange(start, start + len(whole))
            if turn.word:
                early[at + said.index(self.ids["?"])] = self.ids[turn.word]
            labels[at + len(said) - 1 : stop - 1] = whole[len(said) :]  # already shifted by one
            if turn.sort == "match":  # the words' order is free
                labels[at + len(said) - 1 : stop - 1 : 2] = -100
            sorts[at + len(said) - (turn.sort != "match")] = SORTS.index(turn.sort)
            at = stop
        return {"ids": ids, "labels": labels, "turns": turns, "positions": positions, "sorts": sorts, "early": early}
