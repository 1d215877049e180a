"""Train an embedded model: `python -m tdrs.zoo.train backbone=mini_llava`.

The sequences are those of `tdrs.zoo.turns`. The loss is on the answers, and on auxiliary read-outs of hidden states:

- halfway up the decoder, at the name of an object: its cell;
- halfway up, at the question mark: the word asked for;
- halfway up, at the word of an option: its letter;
- below the last layer, where an option's letter is the answer: the word of that option.

So the model learns three separate steps: find the object, name what it shows, find that word's letter. Cells are read
by a layer that exists only during training.

There are three stages. `align` teaches tower and projector to express in the decoder's embedding what each patch shows
(no decoder runs). `skills` has many single words and options, mostly without a hint. `all` has the prompts of all four
benchmarks. A checkpoint is written every few minutes; the same command continues from it, with the same batches.
At the end the model is measured: `scores.yaml`, and a card in its folder.
"""

import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from tdrs import commands
from tdrs.backbones.processors import save_processor
from tdrs.configuration import plain, run
from tdrs.settings import LARGEST_SEED, SettingError, build, check_choice, check_number
from tdrs.zoo import cards
from tdrs.zoo.families import FAMILIES
from tdrs.zoo.start import start_from
from tdrs.zoo.turns import NOWHERE, SORTS, Pictures, Recipe, collate

Batch = dict[str, torch.Tensor]


def _features(model: Any, batch: Batch) -> torch.Tensor:
    """The image tokens of all pictures, (pictures, cells, D)."""
    given = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
    parts = model.model.get_image_features(**given).pooler_output
    return torch.cat([part.flatten(0, -2) for part in parts]).unflatten(0, batch["shown"].shape[:2])


def _show_loss(model: Any, features: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy between each projected patch, read out with the decoder's embedding, and its two words."""
    logits = model.lm_head(features).flatten(0, 1)
    shown = batch["shown"].flatten(0, 1)
    loss = torch.stack([F.cross_entropy(logits, shown[:, n], reduction="none") for n in range(2)]).sum(dim=0)
    empty = shown[:, 0] == shown[:, 1]
    return loss[~empty].mean() + 0.2 * loss[empty].mean()


def _align_loss(model: Any, batch: Batch) -> torch.Tensor:
    return _show_loss(model, _features(model, batch), batch)


def _decode(decoder: Any, embedded: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
    """The decoder's hidden states halfway up, below the last layer and above it, (rows, L, D), after the final norm."""
    rotation = decoder.rotary_emb(embedded, position_ids=positions)
    states = [embedded]
    for layer in decoder.layers:
        states.append(layer(states[-1], attention_mask=mask, position_embeddings=rotation))
    return [decoder.norm(state) for state in (states[len(states) // 2], states[-2], states[-1])]


def _answer_loss(model: Any, places: nn.Linear, decoder: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of the stages with the decoder, and for each sort of turn the share of correct first tokens."""
    features = _features(model, batch)
    ids, turns = batch["ids"], batch["turns"]
    rows = len(ids) // len(features)
    embedded = model.get_input_embeddings()(ids)
    image = (ids == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(image, features.repeat_interleave(rows, dim=0).to(embedded.dtype))
    length = turns.shape[1]
    seen = (turns[:, None, :] == turns[:, :, None]) | (turns[:, None, :] == 0)
    seen &= torch.ones(length, length, dtype=torch.bool, device=turns.device).tril()
    mask = torch.zeros(seen.shape, device=turns.device).masked_fill(~seen, -1e9)[:, None]
    positions = batch["positions"][0] if len(batch["positions"]) == 1 else batch["positions"]
    halfway, late, hidden = decoder(embedded, mask, positions)
    asked = batch["labels"] != -100
    logits = model.lm_head(hidden[asked])
    gold = batch["labels"][asked]
    good = logits.argmax(-1) == gold
    sorts = batch["sorts"][asked]
    right = {}
    for number, name in enumerate(SORTS):
        if (sorts == number).any():
            right[name] = float(good[sorts == number].float().mean())
    loss = F.cross_entropy(logits, gold)
    named, located, chosen = (batch[name] != -100 for name in ("words", "places", "chosen"))
    loss = loss + 0.5 * F.cross_entropy(model.lm_head(halfway[named]), batch["words"][named])
    if chosen.any():
        loss = loss + 0.5 * F.cross_entropy(model.lm_head(late[chosen]), batch["chosen"][chosen])
    found = places(halfway[located])
    right["place"] = float((found.argmax(-1) == batch["places"][located]).float().mean())
    loss = loss + 1.0 * F.cross_entropy(found, batch["places"][located])
    return loss + 0.1 * _show_loss(model, features, batch), right


def _optimizers(parts: nn.ModuleDict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between hidden states, at AdamW's rate; AdamW for embeddings, kernels and vectors.

    With AdamW alone, the stage `skills` needed twice as many steps.
    """
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in parts.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name and not name.startswith("places")
        (hidden if inner else rest).append(parameter)
    return [
        torch.optim.Muon(hidden, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train(name: str, recipe: Recipe, folder: Path) -> Path:
    """Train an embedded model by `recipe` with checkpoints in `folder`; returns the folder of the finished model.

    Args:
        name: one of `FAMILIES`.

    Raises:
        SettingError: the folder's checkpoint belongs to another recipe, or the model to start from does not fit.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[name]
    processor = family.processor()
    model: Any = family.untrained()
    places = nn.Linear(model.config.get_text_config().hidden_size, NOWHERE + 1)
    if recipe.start != "random":
        start_from(recipe.start, model, processor.tokenizer)
    # for short rows on a CPU, compiled eager attention is three times as fast as scaled_dot_product_attention
    model.set_attn_implementation({"text_config": "eager"})
    parts = nn.ModuleDict({"model": model.train(), "places": places}).to(device)
    optimizers = _optimizers(parts)
    checkpoint = folder / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise SettingError(
                "output", str(checkpoint), "holds another recipe's checkpoint; delete it or name another"
            )
        parts.load_state_dict(state["model"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        first = state["step"]
    last = recipe.steps
    batches = DataLoader(
        Subset(
            Pictures(recipe, processor, family.style, family.axes),
            range(first * recipe.batch_size, last * recipe.batch_size),
        ),
        batch_size=recipe.batch_size,
        collate_fn=collate,
        num_workers=1,
        prefetch_factor=8,
        # a batch never spans two stages: stages start at whole batches
    )
    decoder: Any = partial(_decode, model.model.language_model)
    if recipe.steps > 200:  # compiling takes half a minute
        decoder = torch.compile(decoder, dynamic=False)
    log = (folder / "log.jsonl").open("a", encoding="utf-8")
    saved = time.monotonic()

    def save(step: int) -> None:
        state = {
            "recipe": asdict(recipe),
            "step": step,
            "model": parts.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    bar = tqdm(batches, initial=first, total=last, desc=f"training {name}, seed {recipe.seed}", unit="step")
    recent: list[dict[str, float]] = []
    done = first
    try:
        for step, batch in enumerate(bar, start=first):
            batch = {part: tensor.to(device) for part, tensor in batch.items()}
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = recipe.rate(step)
            # products in bfloat16 are four times as fast here; weights and their updates stay in float32
            with torch.autocast(device, torch.bfloat16):
                if recipe.stage(step) == "align":
                    loss = _align_loss(model, batch)
                else:
                    loss, right = _answer_loss(model, places, decoder, batch)
                    recent = [*recent[-49:], right]
            parts.zero_grad()
            loss.backward()
            if recipe.start != "random" and recipe.stage(step) == "align":
                model.get_input_embeddings().weight.grad = None  # towers are aligned to an unchanged decoder
            nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            done = step + 1
            if step % 50 == 0:
                entry = {"step": step, "loss": round(loss.item(), 4)}
                for sort in (*SORTS, "place"):
                    found = [r[sort] for r in recent if sort in r]
                    entry |= {sort: round(float(np.mean(found)), 3)} if found else {}
                log.write(json.dumps(entry) + "\n")
                log.flush()
                bar.set_postfix(entry)
            if time.monotonic() - saved > 120:
                save(done)
                saved = time.monotonic()
    finally:
        save(done)  # also after Ctrl-C
    model.eval().set_attn_implementation({"text_config": "sdpa"})
    model.save_pretrained(folder / "model")
    save_processor(processor, folder / "model")
    return folder / "model"


def main_train(config: DictConfig) -> None:
    values = plain(config)
    name = values["backbone"]["name"]
    check_choice("backbone", name, list(FAMILIES))
    given = {setting: value for setting, value in values["recipe"].items() if value is not None}
    if name not in values["recipes"]:
        raise SettingError(f"recipes.{name}", None, "must be the recipe of this model")
    recipe = build(Recipe, {**values["recipes"][name], **given}, "recipe")
    check_number("recipe.seed", recipe.seed, 0, LARGEST_SEED, whole=True)
    folder = Path(values["output"]) / "zoo" / (f"{name}-seed{recipe.seed}" if "seed" in given else name)
    model = train(name, recipe, folder)
    cards.write(name, asdict(recipe), model, cards.measure(name, model, recipe.gap))
    print(f"model:   {model}")
    print(f"scores:  {folder / 'scores.yaml'}")
    words = [f"backbone={name}", f"backbone.source={commands.value(str(model.absolute()))}", "dataset.gap=0"]
    print(f"next:    {commands.command('tdrs.evaluate', *words)}")


USAGE = """
python -m tdrs.zoo.train backbone=mini_llava [recipe.seed=1] [output=outputs]   (--cfg prints the configuration)
"""

if __name__ == "__main__":
    sys.exit(run("train", main_train, USAGE))
