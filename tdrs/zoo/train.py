"""Train an embedded model: `python -m tdrs.zoo.train backbone=mini_llava`.

Every sequence is one picture and several turns about it. A turn sees the picture and itself only, and its positions
start right behind the picture: so each turn is, to the letter and to the position, the prompt the evaluation sends,
while the picture is encoded once. Loss is on the answers.

Four stages: `align` teaches the projector to say in the decoder's own words what each patch shows (no decoder runs);
`name` asks for single words and descriptions; `look_up` adds multiple choice, mostly without a hint, and beside it the
bare half of that skill ("Which option is red?", words paired with their letters); `choose` has hints of up to `GAP`
tokens in most prompts.
A checkpoint every few minutes; run the command again and it goes on, with the same batches.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tdrs.benchmarks.filler import filler
from tdrs.benchmarks.mini_scienceqa import SPLITS, TOPICS, ask
from tdrs.benchmarks.prompts import LETTERS, SINGLE_WORD, scienceqa_llava
from tdrs.benchmarks.scenes import GRID, Object, draw, sample_objects
from tdrs.zoo import mini_llava

SORTS = ("describe", "word", "match", "look_up", "choose")
MIXTURE = {  # how often each sort of turn comes, by stage
    "name": (0.0, 1.0, 0.0, 0.0, 0.0),
    "look_up": (0.05, 0.15, 0.35, 0.2, 0.25),
    "choose": (0.05, 0.15, 0.05, 0.1, 0.65),
}
GAP = 32  # the longest hint seen in training, in tokens


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of; equal recipes on equal machines give equal models."""

    seed: int = 0
    align_steps: int = 600
    name_steps: int = 400
    look_up_steps: int = 1000
    choose_steps: int = 6000
    batch_size: int = 24
    length: int = 304
    learning_rate: float = 1.5e-3
    warmup_steps: int = 300

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


def _choice_turn(objects: list[Object], hints: float, rng: np.random.Generator) -> tuple[str, str]:
    asked = ask(objects, str(rng.choice(TOPICS, p=(0.4, 0.4, 0.2))), rng)
    return scienceqa_llava(asked["question"], asked["choices"], _hint(hints, rng)), LETTERS[asked["answer"]]


def _look_up_turn(objects: list[Object], hints: float, rng: np.random.Generator) -> tuple[str, str]:
    asked = ask(objects, str(rng.choice(TOPICS)), rng)
    question = f"Which option is {asked['choices'][asked['answer']]}?"
    return scienceqa_llava(question, asked["choices"], _hint(hints, rng)), LETTERS[asked["answer"]]


def _match_turn(objects: list[Object], rng: np.random.Generator) -> tuple[str, str]:
    """Options in the prompt; the answer pairs each word, in another order, with its letter."""
    choices = ask(objects, str(rng.choice(TOPICS)), rng)["choices"]
    order = rng.permutation(len(choices))
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{options}Name the letters.", " ".join(f"{choices[n]} {LETTERS[n]}" for n in order)


def _word_turn(objects: list[Object], hints: float, rng: np.random.Generator) -> tuple[str, str]:
    asked = ask(objects, str(rng.choice(TOPICS[:2])), rng)
    hint = _hint(hints, rng)
    return f"{f'Context: {hint}' + chr(10) if hint else ''}{asked['question']}\n{SINGLE_WORD}", asked["choices"][
        asked["answer"]
    ]


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
        rng = np.random.default_rng([SPLITS["train"], self.recipe.seed, index, 3])
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
        sorts = np.full(length, -1)  # at each answer's first token, the sort of its turn
        positions = np.zeros(length, dtype=np.int64)
        start = len(self.prefix)
        ids[:start], turns[:start], positions[:start] = self.prefix, 0, np.arange(start)
        at, turn = start, 0
        hints = {"name": 0.2, "look_up": 0.1, "choose": 0.9}[stage]
        while True:
            sort = str(rng.choice(SORTS, p=MIXTURE[stage]))
            if turn == 0 and stage == "name":
                sort = "describe"
            match sort:
                case "describe":
                    prompt, answer = _description(objects)
                case "word":
                    prompt, answer = _word_turn(objects, hints, rng)
                case "match":
                    prompt, answer = _match_turn(objects, rng)
                case "look_up":
                    prompt, answer = _look_up_turn(objects, hints, rng)
                case _:
                    prompt, answer = _choice_turn(objects, hints, rng)
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
            labels[at + len(said) - 1 : stop - 1] = whole[len(said) :]  # already shifted by one
            if sort == "match":  # the words' order is free
                labels[at + len(said) - 1 : stop - 1 : 2] = -100
            sorts[at + len(said) - (sort != "match")] = SORTS.index(sort)
            at = stop
        return {"ids": ids, "labels": labels, "turns": turns, "positions": positions, "sorts": sorts}


def _align_loss(model: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each projected patch, read out by the decoder's own embedding, with its colour and shape."""
    features = torch.stack(list(model.model.get_image_features(batch["pixels"]).pooler_output))
    logits = model.lm_head(features).flatten(0, 1)
    shown = batch["shown"].flatten(0, 1)
    loss = F.cross_entropy(logits, shown[:, 0], reduction="none") + F.cross_entropy(
        logits, shown[:, 1], reduction="none"
    )
    empty = shown[:, 0] == shown[:, 1]
    return loss[~empty].mean() + 0.2 * loss[empty].mean()


def _answer_loss(
    model: LlavaForConditionalGeneration, decoder: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy on the answers' tokens, and for each sort of turn the share of first tokens that are right."""
    features = torch.cat(list(model.model.get_image_features(batch["pixels"]).pooler_output))
    embedded = model.get_input_embeddings()(batch["ids"])
    image = (batch["ids"] == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(image, features.to(embedded.dtype))
    turns = batch["turns"]
    seen = (turns[:, None, :] == turns[:, :, None]) | (turns[:, None, :] == 0)
    length = turns.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=turns.device).tril()
    mask = (seen & causal)[:, None]
    hidden = decoder(inputs_embeds=embedded, attention_mask=mask, position_ids=batch["positions"]).last_hidden_state
    asked = batch["labels"] != -100
    logits = model.lm_head(hidden[asked])
    gold = batch["labels"][asked]
    good = logits.argmax(-1) == gold
    sorts = batch["sorts"][asked]
    right = {name: float(good[sorts == number].float().mean()) for number, name in enumerate(SORTS)}
    return F.cross_entropy(logits, gold), right


def train(recipe: Recipe, folder: Path, until_step: int | None = None, device: str = "cpu") -> Path:
    """Train `mini_llava` by `recipe` with checkpoints in `folder`; returns the folder of the finished model.

    Args:
        until_step: stop there (a checkpoint is written), for training in pieces.
    """
    torch.manual_seed(recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    processor = mini_llava.processor()
    model = mini_llava.untrained()
    torch.nn.Module.to(model.train(), device)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    checkpoint = folder / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise ValueError(f"{checkpoint} belongs to another recipe; delete it or name another folder")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    last = min(recipe.steps, until_step or recipe.steps)
    batches = DataLoader(
        torch.utils.data.Subset(
            Pictures(recipe, processor), range(first * recipe.batch_size, last * recipe.batch_size)
        ),
        batch_size=recipe.batch_size,
        num_workers=1,
        prefetch_factor=8,
        # a batch never spans two stages, whose items differ: stages start at whole batches
    )
    decoder = torch.compile(model.model.language_model, dynamic=False)
    log = (folder / "log.jsonl").open("a")
    saved = time.monotonic()

    def save(step: int) -> None:
        state = {
            "recipe": asdict(recipe),
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    bar = tqdm(batches, initial=first, total=last, desc=f"training mini_llava, seed {recipe.seed}", unit="step")
    recent: list[dict[str, float]] = []
    for step, batch in enumerate(bar, start=first):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        if recipe.stage(step) == "align":
            loss = _align_loss(model, batch)
        else:
            # half precision in the products, a third faster here; weights and their updates stay in float32
            with torch.autocast(device, torch.bfloat16):
                loss, right = _answer_loss(model, decoder, batch)
            recent = [*recent[-49:], right]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            entry = {"step": step, "loss": round(loss.item(), 4)}
            entry |= {name: round(float(np.mean([r[name] for r in recent])), 3) for name in SORTS if recent}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            bar.set_postfix(entry)
        if time.monotonic() - saved > 120:
            save(step + 1)
            saved = time.monotonic()
    save(last)
    model.eval().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/zoo/mini_llava"))
    parser.add_argument("--until-step", type=int)
    parser.add_argument("--choose-steps", type=int, default=Recipe.choose_steps)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(train(replace(Recipe(), choose_steps=options.choose_steps), options.folder, options.until_step))


if __name__ == "__main__":
    main()
