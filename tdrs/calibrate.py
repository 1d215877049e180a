"""Choose the heads of single layers that a method edits, on the tuning split, and write the choice to a file.

    python -m tdrs.calibrate intervention=ad_hh dataset=mini_pope dataset.gap=256 file=heads.yaml
    python -m tdrs.evaluate intervention=ad_hh dataset=mini_pope dataset.gap=256 intervention.heads=heads.yaml

Every head of every layer gets a score (`tdrs/head_scores.py`); those with the highest scores are chosen. Held-out
images are never asked. The evaluations of `influence` are kept like those of `tdrs.evaluate`: a command that was
stopped continues when it is given again, and the same command gives the same file.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from tdrs import __version__, backbones, head_scores, interventions
from tdrs.attention.in_order import Together
from tdrs.backbones import Backbone
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.benchmarks import Record, Samples
from tdrs.commands import command, value
from tdrs.configuration import plain, run, typed
from tdrs.evaluation import Plan, complete, gib, plan, weights_of
from tdrs.head_scores import SCORES
from tdrs.heads_file import read_heads, write_heads
from tdrs.records import Records
from tdrs.settings import SettingError, check_choice, folder_named
from tdrs.stopping import Stop, stoppable

DEFAULTS = {
    "intervention": "ad_hh",
    "dataset": "mini_pope",
}  # those of conf/calibrate.yaml that evaluations do not have
SHARE = 0.02  # of all heads, if the number to choose is not given


def main_calibrate(config: DictConfig) -> None:
    """Score the heads of a configuration's model, and write and print the choice."""
    values = plain(config)
    score, stock = _score(values), plan(values | _asked({"name": "none"}))
    shape = stock.backbone.shape
    count = shape[0] * shape[1]
    keep = max(1, round(SHARE * count)) if values["keep"] is None else values["keep"]
    if keep > count:
        raise SettingError("keep", keep, f"must be from 1 to {count} in this model")
    path = folder_named("file", values["file"]) if values["file"] else None
    if path and path.exists():
        read_heads(path, "file")  # nothing but such a file is replaced
    samples = stock.load()
    path = path or _path(values, f"{score}-{keep}-{stock.cache_key(samples)[:8]}")
    with stoppable() as stop:
        scores, about = _scores(values, stock, samples, score, stop)
    named = head_scores.ranked(scores)
    heads = list(named)[:keep]
    given = {"name": stock.backbone.name, "weights": weights_of(stock.backbone), "layers": shape[0], "heads": shape[1]}
    found: dict[str, Any] = {"heads": heads, "score": score, "keep": keep, "backbone": given}
    found |= {"dataset": values["dataset"], "split": stock.split, "limit": stock.limit, "n": len(samples), **about}
    found |= {"samples": samples.content, "batch_size": stock.batch_size, "tdrs": __version__, "scores": named}
    write_heads(path, found)
    print("\n".join(_lines(found, path)))


def _score(values: Mapping[str, Any]) -> str:
    """The score that chooses: the given one, or the method's own."""
    method = interventions.from_settings(values["intervention"])
    own = "" if isinstance(method, Together) else method.head_score
    if values["score"] is None and not own:
        reason = f"must be given for {interventions.label(values['intervention'])}: {', '.join(SCORES)}"
        raise SettingError("score", None, reason)
    check_choice("score", values["score"] or own, SCORES)
    return str(values["score"] or own)


def _asked(intervention: Mapping[str, Any]) -> dict[str, Any]:
    """A method on the tuning split."""
    return {"intervention": dict(intervention), "split": "tuning"}


def _path(values: Mapping[str, Any], ending: str) -> Path:
    """Where a choice is written by default; the ending tells choices by other settings apart."""
    name = f"{values['backbone']['name']}-{values['dataset']['name']}-{ending}.yaml".replace("/", "-")
    return Path(values["output"]) / "heads" / name


def _scores(
    values: Mapping[str, Any], stock: Plan, samples: Samples, score: str, stop: Stop
) -> tuple[np.ndarray, dict[str, int]]:
    """The scores of all heads, and what else the file says of them."""
    output = Path(values["output"])
    shape, benchmark = stock.backbone.shape, stock.dataset
    features = EmbeddingStore(output / "features", gib(values["features_gib"]))
    load = cache(lambda: backbones.load(stock.backbone, features))
    if score != "influence":
        found = head_scores.attention_scores(load(), benchmark, samples, score, stock.batch_size, shape)
        return found, {}
    records = Records(output / "records")
    with tqdm(total=len(samples) * (1 + shape[0] * shape[1]), unit="sample", disable=None) as bar:

        def records_of(intervention: Mapping[str, Any]) -> list[Record]:
            return _measured(plan({**values, **_asked(intervention)}), samples, load, records, stop, bar.update)

        before = records_of({"name": "none"})
        wrong = head_scores.answers_of(before)
        found = head_scores.influence(before, head_scores.ablations(shape, records_of), shape)
    return found, {"wrong": int(wrong.sum()), "right": int((~wrong).sum())}


def _measured(
    planned: Plan,
    samples: Samples,
    load: Callable[[], Backbone],
    records: Records,
    stop: Stop,
    update: Callable[[int], object],
) -> list[Record]:
    """The records of an evaluation, measured now unless they are kept."""
    key = planned.cache_key(samples)

    def after(count: int) -> None:
        update(count)
        stop.check()

    with records.wait_for(key, stop):
        if records.done(key):
            update(len(samples))
        else:
            complete(planned, samples, load, records, key, after)
    return records.read(key).records


def _lines(found: Mapping[str, Any], path: Path) -> list[str]:
    """The choice as lines of text."""
    answers = f", {found['wrong']} wrong and {found['right']} right answers" if "wrong" in found else ""
    lines = [f"{found['score']} of {len(found['scores'])} heads, tuning split, n = {found['n']}{answers}"]
    lines += [f"  {head:8}{found['scores'][head]:+.6g}" for head in found["heads"]]
    weak = [head for head in found["heads"] if found["score"] == "influence" and found["scores"][head] <= 0]
    if weak:
        lines.append(f"{len(weak)} of the chosen heads have no influence above 0: {', '.join(weak)}")
    own = ("score", "keep", "file", "intervention.heads")
    given = [word for word in typed if word.partition("=")[0].lstrip("+") not in own]
    chosen = {word.partition("=")[0] for word in given}
    given = [f"{group}={choice}" for group, choice in DEFAULTS.items() if group not in chosen] + given
    given.append(f"intervention.heads={value(str(path.absolute()))}")
    return [*lines, f"heads:   {path}", f"use it:  {command('tdrs.evaluate', *given)}"]


USAGE = """
python -m tdrs.calibrate intervention=NAME [GROUP=CHOICE ...] [SETTING=VALUE ...]   (--cfg prints the configuration)

Groups and their choices:
"""

if __name__ == "__main__":
    sys.exit(run("calibrate", main_calibrate, USAGE))
