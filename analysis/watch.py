"""Attention weights as they are while a model reads its prompt, under an edit or none: what two figures are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tdrs import backbones
from tdrs.attention import core
from tdrs.attention.call import Block, Call
from tdrs.attention.intervene import intervene
from tdrs.backbones import Backbone
from tdrs.backbones.features import Features
from tdrs.benchmarks import Sample, Samples
from tdrs.configuration import with_settings
from tdrs.evaluate import gib, plan
from tdrs.interventions import Method


@dataclass(frozen=True, kw_only=True)
class Unedited(Method):
    """The stock model's attention, through the core so that it can be watched."""

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits


@torch.inference_mode()
def watch(backbone: Backbone, samples: Sequence[Sample], method: Method) -> list[tuple[Call, torch.Tensor]]:
    """Of each decoder layer the call of the prompt's pass and its weights, (B, H, Q, K), on the CPU."""
    found: list[tuple[Call, torch.Tensor]] = []
    with intervene(backbone.model, method) as session:
        execute = session.execute

        def record(call: Call, intervention: Any) -> torch.Tensor:
            found.append((call, core.weights(call, intervention).cpu()))
            return execute(call, intervention)

        session.execute = record
        backbone.model(**backbone.seen(samples), use_cache=False)
    return found


def subject(config: Mapping[str, Any], place: Mapping[str, Any], count: int) -> tuple[Backbone, Samples]:
    """The backbone and the first held-out samples of a study at a place."""
    values = with_settings(config, {**place, "intervention": "none"})
    planned = plan({**values, "split": "held_out", "limit": count})
    features = Features(Path(config["output"]) / "features", gib(config["features_gib"]))
    return backbones.load(planned.backbone, features), planned.load()
