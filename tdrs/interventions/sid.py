"""SID: F. Huo et al., "Self-Introspective Decoding: Alleviating Hallucinations for Large Vision-Language Models", ICLR
2025, arXiv 2408.02032.

    ℓ* = (1 + α) ℓ − α ℓ′        ℓ′ the logits of a pass that sees only the image tokens with the least attention

In the second pass, the image tokens are ranked by the mean over the heads of the last row's weights in one layer. In
later layers, every row sees only the k lowest of them. The ranking is done again for each answer token.

Read in the authors' code (huofushuo/SID, modeling_llama.py, vcd_sample.py and pope_eval.py): layer 1 ranks and layers 2
to 31 of 32 are masked; k is 100 of the 576 image tokens of LLaVA-1.5; positions stay as they are; a second cache. The
command's α is 1; it is not passed on, so that the sampling function's own 0.5 acts. Sampling has the cutoff β 0.1, and
its greedy mode has none, `beta=0`. In the code, a masked token does not see itself. Here it does, which keeps its row
finite; no other row reads it.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, Block
from tdrs.attention.call import Call
from tdrs.attention.method import Method
from tdrs.attention.second_pass import SecondPass
from tdrs.attention.selection import Selection
from tdrs.interventions.contrast import Contrast
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class LeastAttended(Method):
    """The first edited layer ranks the image tokens; the later ones see only those with the least attention.

    Args:
        keep: the share of the image tokens that stay, at least one token.
    """

    keep: float

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    def statistics(self, call: Call) -> torch.Tensor | None:
        """Which keys are hidden, (B, 1, 1, K) boolean; None in the layer that ranks."""
        hidden: torch.Tensor | None = call.memory.get("hidden")
        if hidden is None:
            call.memory["hidden"] = self._hidden(call)
            return None
        missing = call.key.shape[2] - hidden.shape[3]  # a sliding window's cache has dropped old keys
        return torch.nn.functional.pad(hidden, (max(missing, 0), 0))[..., -call.key.shape[2] :].to(call.key.device)

    def _hidden(self, call: Call) -> torch.Tensor:
        rows, keys = call.query.shape[2], call.key.shape[2]
        block = Block(call, rows - 1, rows, keys)
        weights = block.hide(block.logits.clone(), -torch.inf).softmax(dim=-1).mean(dim=1, keepdim=True)
        image = block.keys_of(IMAGE)
        kept = (image.sum(dim=-1, keepdim=True) * self.keep).round().clamp_min(1)
        rank = weights.masked_fill(~image, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
        return image & (rank >= kept)

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        if not isinstance(statistics, torch.Tensor):
            return block.logits
        others = block.distance("index") > 0
        return block.logits.masked_fill(statistics[..., : block.keys] & others, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class SID(Contrast):
    """Move the answer away from the one that is based on the image tokens with the least attention.

    Args:
        keep: the share of the image tokens that the second pass keeps, above 0; at least one token. 1 is the stock
            model.
        layers: of the second pass: the first one ranks the image tokens, the later ones see only those that are kept.
            The default is that of the authors' code, layers 1 to 31 of 32, as a share of the depth.
    """

    keep: float = 100 / 576
    layers: Selection = "3%-100%"

    without_effect = ("heads", "phase")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("keep", self.keep, 0, 1, above=True)

    @property
    def active(self) -> bool:
        return self.keep < 1 and super().active

    @property
    def second_pass(self) -> SecondPass:
        attention = LeastAttended(keep=self.keep, layers=self.layers)
        return SecondPass(combine=self.contrast, attention=attention, plausibility=self.beta)
