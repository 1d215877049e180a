"""Attention weights while a model reads its prompt, with an edit or without; two figures are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tdrs import backbones
from tdrs.attention import core
from tdrs.attention.block import Block
from tdrs.attention.call import Call
from tdrs.backbones import Backbone
from tdrs.benchmarks import Sample
from tdrs.configuration import with_settings
from tdrs.evaluation import plan
from tdrs.interventions import Method
from tdrs.settings import SettingError
from tdrs.sweeps.trial import STOCK_SETTINGS, Outcome, Request


@dataclass(frozen=True, kw_only=True)
class Unedited(Method):
    """The stock model's attention, computed by the core so that its weights can be recorded."""

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        return block.logits


@torch.inference_mode()
def record_weights(backbone: Backbone, samples: Sequence[Sample], method: Method) -> list[tuple[Call, torch.Tensor]]:
    """Read the samples' prompts once; return each decoder layer's call and weights, (B, H, Q, K), on the CPU."""
    recorded: list[tuple[Call, torch.Tensor]] = []
    with backbone.intervene(method) as session:
        execute = session.execute

        def record(call: Call, intervention: Any) -> torch.Tensor:
            recorded.append((call, core.weights(call, intervention).cpu()))
            return execute(call, intervention)

        session.execute = record
        backbone.model(**backbone.model_inputs(samples), use_cache=False)
    return recorded


def first_condition(outcome: Outcome, count: int) -> tuple[Backbone, Sequence[Sample]]:
    """Load the backbone of a study's first condition, and the first samples that the study reports there.

    Raises:
        SettingError: there are fewer samples; or the model, the data or the versions differ from those of the study's
            records.
    """
    config, row = outcome.config, outcome.rows[0]
    values = with_settings(config, Request("", "", STOCK_SETTINGS, row.condition).merged)
    planned = plan({**values, "split": "held_out", "limit": config["preset"]["held_out"]})
    samples = planned.load()
    if planned.cache_key(samples) != row.cache_key:
        allowed = "its model, data or versions are no longer those of its records; run the study again"
        raise SettingError("study", outcome.name, allowed)
    if count > len(samples):
        raise SettingError("sample", count - 1, f"must be below {len(samples)}, the number of the study's samples")
    return backbones.load(planned.backbone), samples[:count]
