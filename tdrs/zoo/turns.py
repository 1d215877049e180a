"""What an embedded model is trained on: pictures with turns about them, packed into one sequence each.

A turn sees the picture and itself only, and its positions start right behind the picture: so each turn is, to the
letter and to the position, the prompt the evaluation sends, while the picture is encoded once.
"""

from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from transformers import LlavaProcessor

from tdrs.benchmarks.embedded import SEEDS
from tdrs.benchmarks.filler import filler
from tdrs.benchmarks.mini_scienceqa import TOPICS, ask
from tdrs.benchmarks.prompts import LETTERS, SINGLE_WORD, scienceqa
from tdrs.benchmarks.scenes import GRID, Object, draw, sample_objects
from tdrs.settings import check_number

SORTS = ("describe", "word", "match", "look_up", "choose")
MIXTURE = {  # how often each sort of turn comes, by stage
    "name": (0.0, 1.0, 0.0, 0.0, 0.0),
    "look_up": (0.05, 0.15, 0.35, 0.2, 0.25),
    "choose": (0.05, 0.15, 0.05, 0.1, 0.65),
}
GAP = 32  # the longest hint seen in training, in tokens


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of (`conf/train.yaml` has the values): steps of each stage, pictures a batch, tokens
    a picture, the highest learning rate and its warm-up. Equal recipes give equal batches."""

    seed: int
    align_steps: int
    name_steps: int
    look_up_steps: int
    choose_steps: int
    batch_size: int
    length: int
    learning_rate: float
    warmup_steps: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_number(name, value, 0, whole=name != "learning_rate", above=name in ("batch_size", "learning_rate"))

    @property
    def steps(self) -> int:
        return self.align_steps + self.name_steps + self.look_up_steps + self.choose_steps

    def stage(self, step: int) -> str:
        if step < self.align_steps:
            return "align"
        if step < self.align_steps + self.name_steps:
            return "name"
        return "look_up" if step < self.steps - self.choose_steps else "choose"

    def rate(self, step: int) -> float:
        """Learning rate of a step: warm-up and constant while aligning, then warm-up and cosine down to zero."""
        if step < self.align_steps:
            return 1e-3 * min(1.0, (step + 1) / 100)
        done = step - self.align_steps
        warm = min(1.0, (done + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + float(np.cos(np.pi * done / (self.steps - self.align_steps))))


def _hint(share: float, rng: np.random.Generator) -> str:
    """No hint, or in a `share` of the cases one of 1 to GAP tokens."""
    return filler(int(rng.integers(1, GAP + 1)), rng) if rng.random() < share else ""


def _choice_turn(objects: list[Object], hints: float, rng: np.random.Generator) -> tuple[str, str, str]:
    asked = ask(objects, str(rng.choice(TOPICS, p=(0.4, 0.4, 0.2))), rng)
    prompt = scienceqa("llava", asked["question"], asked["choices"], _hint(hints, rng))
    return prompt, LETTERS[asked["answer"]], asked["choices"][asked["answer"]]


def _look_up_turn(objects: list[Object], hints: float, rng: np.random.Generator) -> tuple[str, str, str]:
    asked = ask(objects, str(rng.choice(TOPICS)), rng)
    word = asked["choices"][asked["answer"]]
    prompt = scienceqa("llava", f"Which option is {word}?", asked["choices"], _hint(hints, rng))
    return prompt, LETTERS[asked["answer"]], word


def _match_turn(objects: list[Object], rng: np.random.Generator) -> tuple[str, str]:
    """Options in the prompt; the answer pairs each word, in another order, with its letter."""
    choices = ask(objects, str(rng.choice(TOPICS)), rng)["choices"]
    order = rng.permutation(len(choices))
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{options}Name the letters.", " ".join(f"{choices[n]} {LETTERS[n]}" for n in order)


def _word_turn(objects: list[Object], hints: float, rng: np.random.Generator) -> tuple[str, str, str]:
    asked = ask(objects, str(rng.choice(TOPICS[:2])), rng)
    hint = _hint(hints, rng)
    context = f"Context: {hint}\n" if hint else ""
    word = asked["choices"][asked["answer"]]
    return f"{context}{asked['question']}\n{SINGLE_WORD}", word, word


def _description(objects: list[Object]) -> tuple[str, str]:
    return "Describe the picture.", ", ".join(f"{thing.color} {thing.shape}" for thing in objects)


class Pictures(Dataset[dict[str, np.ndarray]]):
    """Item `n` is training picture `n` with its turns, packed into `length` tokens; it depends on (seed, n) alone."""

    def __init__(self, recipe: Recipe, processor: LlavaProcessor) -> None:
        self.recipe = recipe
        self.processor = processor
        tokens = processor.tokenizer
        self.prefix = tokens("USER: " + "<image>" * GRID**2 + "\n")["input_ids"]
        self.end = tokens.eos_token_id
        self.pad = tokens.pad_token_id
        self.word = tokens.get_vocab()

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch_size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        stage = self.recipe.stage(index // self.recipe.batch_size)
        rng = np.random.default_rng([SEEDS["train"], self.recipe.seed, index, 3])
        objects = sample_objects(rng)
        pixels = self.processor.image_processor(Image.fromarray(draw(objects, rng)))["pixel_values"][0]
        shown = np.full((GRID**2, 2), self.word["empty"])
        for thing in objects:
            shown[thing.cell] = self.word[thing.color], self.word[thing.shape]
        item = {"pixels": np.asarray(pixels, dtype=np.float32), "shown": shown}
        return item if stage == "align" else item | self._pack(objects, stage, rng)

    def _pack(self, objects: list[Object], stage: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        length = self.recipe.length
        ids = np.full(length, self.pad)
        labels = np.full(length, -100)
        turns = np.full(length, -1)
        early = np.full(length, -100)  # at each question mark, the word asked for
        sorts = np.full(length, -1)  # at each answer's first token, the sort of its turn
        positions = np.zeros(length, dtype=np.int64)
        start = len(self.prefix)
        ids[:start], turns[:start], positions[:start] = self.prefix, 0, np.arange(start)
        at, turn = start, 0
        hints = {"name": 0.2, "look_up": 0.1, "choose": 0.9}[stage]
        while True:
            word = ""
            sort = str(rng.choice(SORTS, p=MIXTURE[stage]))
            if turn == 0 and stage == "name":
                sort = "describe"
            match sort:
                case "describe":
                    prompt, answer = _description(objects)
                case "word":
                    prompt, answer, word = _word_turn(objects, hints, rng)
                case "match":
                    prompt, answer = _match_turn(objects, rng)
                case "look_up":
                    prompt, answer, word = _look_up_turn(objects, hints, rng)
                case _:
                    prompt, answer, word = _choice_turn(objects, hints, rng)
            said, gold = self.processor.tokenizer([f"{prompt} ASSISTANT:", answer], add_special_tokens=False)[
                "input_ids"
            ]
            whole = [*said, *gold, self.end]
            stop = at + len(whole)
            if stop > length:
                break
            turn += 1
            ids[at:stop], turns[at:stop] = whole, turn
            positions[at:stop] = np.arange(start, start + len(whole))
            if sort in ("word", "look_up", "choose"):
                early[at + said.index(self.word["?"])] = self.word[word]
            labels[at + len(said) - 1 : stop - 1] = whole[len(said) :]  # already shifted by one
            if sort == "match":  # the words' order is free
                labels[at + len(said) - 1 : stop - 1 : 2] = -100
            sorts[at + len(said) - (sort != "match")] = SORTS.index(sort)
            at = stop
        return {"ids": ids, "labels": labels, "turns": turns, "positions": positions, "sorts": sorts, "early": early}
