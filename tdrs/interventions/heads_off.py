"""Heads switched off: the output of the chosen heads is 0.

    O'_hi = 0           h a chosen head of a layer, i every query row

This is the zero ablation by which T. Yang et al. find hallucination heads (see `ad_hh.py` and `tdrs/head_scores.py`).
Read in their code (TianyunYoung/Hallucination-Attribution, newer_models/intervention_decoding.py), which has it as a
simple method for newer models, too.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import Block
from tdrs.attention.method import Method


@dataclass(frozen=True, kw_only=True)
class HeadsOff(Method):
    """Set the output of heads to 0.

    Args:
        heads: the heads, such as [L3H1, L5H0]. The default, all heads, leaves a model without attention.
    """

    def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
        return torch.zeros_like(weights)
