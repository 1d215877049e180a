"""Train an embedded model: `python -m tdrs.zoo.train backbone=mini_llava`.

Sequences are those of `tdrs.zoo.turns`. Loss is on the answers, and, lightly, on the word asked for, read out halfway
up the decoder at the question mark: naming that word and finding its letter are then learned as two steps.

Five stages: `align` teaches the projector to say in the decoder's own words what each patch shows (no decoder runs);
`name` asks for single words and descriptions; `look_up` adds multiple choice, mostly without a hint, and beside it the
bare half of that skill ("Which option is red?", words paired with their letters); `choose` has hints of up to `GAP`
tokens in most prompts; `all` has the pictures and prompts of all four benchmarks.
A checkpoint every few minutes; run the command again and it goes on, with the same batches.
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
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from tdrs.configuration import plain, run
from tdrs.settings import SettingError, build, check_choice
from tdrs.zoo import mini_llava
from tdrs.zoo.turns import SORTS, Pictures, Recipe


def _align_loss(model: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each projected patch, read out by the decoder's own embedding, with its colour and shape."""
    return _show_loss(model, torch.stack(list(model.model.get_image_features(batch["pixels"]).pooler_output)), batch)


def _show_loss(
    model: LlavaForConditionalGeneration, features: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    logits = model.lm_head(features).flatten(0, 1)
    shown = batch["shown"].flatten(0, 1)
    loss = F.cross_entropy(logits, shown[:, 0], reduction="none") + F.cross_entropy(
        logits, shown[:, 1], reduction="none"
    )
    empty = shown[:, 0] == shown[:, 1]
    return loss[~empty].mean() + 0.2 * loss[empty].mean()


def _decode(
    decoder: Any, embedded: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder's last hidden states, and those halfway up, both (B, L, D) behind the final norm."""
    rotation = decoder.rotary_emb(embedded, position_ids=positions)
    states = [embedded]
    for layer in decoder.layers:
        states.append(layer(states[-1], attention_mask=mask, position_embeddings=rotation))
    return decoder.norm(states[-1]), decoder.norm(states[len(states) // 2])


def _answer_loss(
    model: LlavaForConditionalGeneration, decoder: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy on the answers' tokens, and for each sort of turn the share of first tokens that are right."""
    shown = torch.stack(list(model.model.get_image_features(batch["pixels"]).pooler_output))
    features = shown.flatten(0, 1)
    embedded = model.get_input_embeddings()(batch["ids"])
    image = (batch["ids"] == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(image, features.to(embedded.dtype))
    turns = batch["turns"]
    seen = (turns[:, None, :] == turns[:, :, None]) | (turns[:, None, :] == 0)
    length = turns.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=turns.device).tril()
    mask = (seen & causal)[:, None]
    hidden, halfway = decoder(embedded, mask, batch["positions"])
    asked = batch["labels"] != -100
    logits = model.lm_head(hidden[asked])
    gold = batch["labels"][asked]
    good = logits.argmax(-1) == gold
    sorts = batch["sorts"][asked]
    known_sorts = {name: sorts == number for number, name in enumerate(SORTS)}
    right = {name: float(good[here].float().mean()) for name, here in known_sorts.items() if here.any()}
    loss = F.cross_entropy(logits, gold)
    known = batch["early"] != -100
    loss = loss + 0.3 * F.cross_entropy(model.lm_head(halfway[known]), batch["early"][known])
    return loss + 0.1 * _show_loss(model, shown, batch), right


def train(recipe: Recipe, folder: Path) -> Path:
    """Train `mini_llava` by `recipe` with checkpoints in `folder`; returns the folder of the finished model.

    Raises:
        SettingError: the folder's checkpoint belongs to another recipe.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    processor = mini_llava.processor()
    model = mini_llava.untrained()
    torch.nn.Module.to(model.train(), device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    checkpoint = folder / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise SettingError(
                "output", str(checkpoint), "holds another recipe's checkpoint; delete it or name another"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    last = recipe.steps
    batches = DataLoader(
        Subset(Pictures(recipe, processor), range(first * recipe.batch_size, last * recipe.batch_size)),
        batch_size=recipe.batch_size,
        num_workers=1,
        prefetch_factor=8,
        # a batch never spans two stages, whose items differ: stages start at whole batches
    )
    decoder: Any = partial(_decode, model.model.language_model)
    if recipe.steps > 200:  # compiling takes half a minute and saves an eighth of each step
        decoder = torch.compile(decoder, dynamic=False)
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
    done = first
    try:
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
            done = step + 1
            if step % 50 == 0:
                entry = {"step": step, "loss": round(loss.item(), 4)}
                for name in SORTS:
                    found = [r[name] for r in recent if name in r]
                    entry |= {name: round(float(np.mean(found)), 3)} if found else {}
                log.write(json.dumps(entry) + "\n")
                log.flush()
                bar.set_postfix(entry)
            if time.monotonic() - saved > 120:
                save(done)
                saved = time.monotonic()
    finally:
        save(done)  # also after Ctrl-C
    model.eval().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


def main_train(config: DictConfig) -> None:
    values = plain(config)
    check_choice("backbone", values["backbone"], ["mini_llava"])
    recipe = build(Recipe, values["recipe"], "recipe")
    folder = Path(values["output"]) / "zoo" / f"{values['backbone']}-seed{recipe.seed}"
    model = train(recipe, folder)
    print(f"model:   {model}")
    print(f"next:    python -m tdrs.evaluate backbone={values['backbone']} backbone.source={model}")


USAGE = """
python -m tdrs.zoo.train backbone=mini_llava [recipe.seed=1] [output=outputs]   (--cfg prints the configuration)
"""

if __name__ == "__main__":
    sys.exit(run("train", main_train, USAGE))
