"""T-DRS: P. Gao et al., "Remember Me: Bridging the Long-Range Gap in LVLMs with Three-Step Inference-Only Decay
Resilience Strategies", AAAI 2026, arXiv 2511.09868.

    A' = A + A_sd + A_dc + A_re                           before the softmax; d = |i − j|, d_max the largest visible d

    SD    sem_pos = (cos(q, k) + 1) / 2                   A_sd = sem_pos
          scale   = sem_pos, normalised over the row
    DC    σ0² = d_max² / (−2 ln w_dc)                     A_dc = λ_dc A r_dc
          r_dc  = exp(−½ (d / scale)² / σ0²)
    reRD  σ²  = d_max² / (−2 ln w_re)                     A_re = λ_re A r_re
          α   = −ln w_re / ln(1 + d_max² / (2 σ²))
          r_re  = (1 + d² / (2 (σ scale)²))^(−α)

w_dc and w_re are multiples of |A|_min, the smallest visible |A|: at scale = 1 both kernels fall to their w at d_max.
With t = (d / (d_max scale))² and c = −ln w, as computed here, r_dc = exp(−c t), r_re = (1 + c t)^(−α),
α = c / ln(1 + c).

What the paper leaves open is a setting of `TDRS`, called a reading; the class defaults are the formulas as printed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tdrs.attention.core import Block, Call
from tdrs.settings import SettingError, check_choice, check_number

GAINS = ("logits", "weights")
SD_FORMS = ("bias", "full")
FEATURES = ("pre_rope", "post_rope")
SCALES = ("mean", "max", "one_plus", "none")
SCOPES = ("call", "row")

LOGIT_FLOOR = 1e-6  # |A|_min is an extreme value near float32 rounding: floored before the multiple is taken
W_RANGE = (1e-12, 1 - 1e-6)  # a kernel's end point lies inside (0, 1); beyond it is clamped, and counted
SCALE_FLOOR = 1e-6


@dataclass(frozen=True)
class _Stage:
    w_min: float
    weight: float

    def __post_init__(self) -> None:
        check_number("w_min", self.w_min, 0, above=True)
        check_number("weight", self.weight, 0)


@dataclass(frozen=True)
class DC(_Stage):
    """Distance-aware control (stage 2).

    Args:
        w_min: the Gaussian's value at d_max, as a multiple of |A|_min; above 0. The paper: 3.
        weight: λ_dc, at least 0; 0 turns the stage off. The paper: 1.
    """

    w_min: float = 3.0
    weight: float = 1.0


@dataclass(frozen=True)
class RE(_Stage):
    """Re-reinforcement of the distant (stage 3).

    Args:
        w_min: the rational quadratic's value at d_max, as a multiple of |A|_min; above 0. The paper: 2.
        weight: λ_re, at least 0; 0 turns the stage off. The paper: 0.8 on ScienceQA-IMG, 1 on POPE.
    """

    w_min: float = 2.0
    weight: float = 0.8


@dataclass(frozen=True)
class Statistics:
    """What the kernels need of V: `smallest` = |A|_min, (B, H, R or 1, 1); `span` = d_max, (B or 1, 1, R or 1, 1)."""

    smallest: torch.Tensor
    span: torch.Tensor


def _layer_numbers(layers: str | Sequence[int]) -> tuple[int, ...]:
    """The layer numbers a list or a range such as "4-17" names; raises SettingError otherwise."""
    if isinstance(layers, str):
        ends = re.fullmatch(r"(\d+)-(\d+)", layers)
        numbers = tuple(range(int(ends[1]), int(ends[2]) + 1)) if ends else ()
    else:
        numbers = tuple(layers)
    if not numbers or not all(type(n) is int and n >= 0 for n in numbers):
        raise SettingError("layers", layers, "must be 'all', a list of layer numbers from 0, or a range like '4-17'")
    return numbers


@dataclass(frozen=True)
class TDRS:
    """The three stages and the readings.

    Args:
        sd: stage 1, the semantic residual, on or off.
        dc, re: stages 2 and 3; None is off.
        gain: `logits` multiplies A, as printed; `weights` gives the softmax weights the same gain:
            softmax(A + A_sd + log(1 + λ_dc r_dc + λ_re r_re)). They differ since A·r, unlike softmax(A), changes when
            a constant is added to A.
        sd_form: `bias`: A_sd = sem_pos; `full`: A_sd = A + sem_pos.
        features: the vectors of the cosine, before (`pre_rope`) or after (`post_rope`) rotation.
        scale: sem_pos over its mean over the row's visible keys (`mean`), or over its maximum (`max`);
            1 + sem_pos (`one_plus`); 1 (`none`). At least 1e-6.
        stats_scope: |A|_min and d_max over the whole map of this forward call, per sample (`call`), or over row i alone
            (`row`): then a row depends on its past only, and cached decoding equals the full forward pass.
        layers: the decoder layers that are edited: `all`, a list of numbers from 0, or a range, "4-17" (both included).

    Raises:
        SettingError: a value is not allowed.
    """

    sd: bool = True
    dc: DC | None = DC()
    re: RE | None = RE()
    gain: str = "logits"
    sd_form: str = "bias"
    features: str = "pre_rope"
    scale: str = "mean"
    stats_scope: str = "call"
    layers: str | Sequence[int] = "all"

    def __post_init__(self) -> None:
        check_choice("gain", self.gain, GAINS)
        check_choice("sd_form", self.sd_form, SD_FORMS)
        check_choice("features", self.features, FEATURES)
        check_choice("scale", self.scale, SCALES)
        check_choice("stats_scope", self.stats_scope, SCOPES)
        if self.layers != "all":
            object.__setattr__(self, "layers", _layer_numbers(self.layers))

    @property
    def _kernels(self) -> bool:
        """Whether DC or reRD adds anything; a stage of weight 0 is off."""
        return any(stage is not None and stage.weight > 0 for stage in (self.dc, self.re))

    @property
    def _similarity(self) -> bool:
        return self.sd or (self._kernels and self.scale != "none")

    @property
    def needs_rotation(self) -> bool:
        return self._similarity and self.features == "pre_rope"

    def active(self, layer: int) -> bool:
        return (self.sd or self._kernels) and (self.layers == "all" or layer in self.layers)

    def statistics(self, call: Call, whole: bool) -> Statistics | None:
        if self.stats_scope == "row" or not self._kernels:
            return None
        return Statistics(call.smallest_logit(whole), call.spans)

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        sem_pos = block.cosine(self.features).add_(1).mul_(0.5) if self._similarity else None
        gain = self._gain(block, sem_pos, statistics) if self._kernels else None
        logits = block.logits
        result = logits
        if gain is not None:
            result = logits.mul(gain.add_(1)) if self.gain == "logits" else logits + gain.log1p_()
        if self.sd and self.sd_form == "full":
            result = result + logits
        if self.sd:
            assert sem_pos is not None
            result = sem_pos.add_(result)
        return result

    def _gain(self, block: Block, sem_pos: torch.Tensor | None, statistics: object) -> torch.Tensor:
        """λ_dc r_dc + λ_re r_re of the block's pairs."""
        if isinstance(statistics, Statistics):
            smallest, span = statistics.smallest, statistics.span
        else:
            smallest, span = block.smallest_logit, block.call.row_spans[:, :, block.start : block.stop]
        t = (block.distance / span.clamp_min(1)).square()  # d_max = 0: d = 0 too, so t = 0 and r = 1
        if sem_pos is not None and self.scale != "none":
            t = t / self._scale(sem_pos, block).square_()
        terms = []
        if self.dc is not None and self.dc.weight > 0:
            c = self._decay("dc.w_min", self.dc.w_min, smallest, block)
            terms.append((t * -c).exp_().mul_(self.dc.weight))
        if self.re is not None and self.re.weight > 0:
            c = self._decay("re.w_min", self.re.w_min, smallest, block)
            alpha = c / torch.log1p(c)
            terms.append((t * c).log1p_().mul_(-alpha).exp_().mul_(self.re.weight))
        return terms[0] if len(terms) == 1 else terms[0].add_(terms[1])

    def _scale(self, sem_pos: torch.Tensor, block: Block) -> torch.Tensor:
        if self.scale == "one_plus":
            return sem_pos + 1
        if self.scale == "mean":
            norm = sem_pos.masked_fill(block.hidden, 0).sum(dim=-1, keepdim=True) / block.counts
        else:
            norm = sem_pos.masked_fill(block.hidden, 0).amax(dim=-1, keepdim=True)
        return (sem_pos / norm.clamp_min(SCALE_FLOOR)).clamp_min_(SCALE_FLOOR)

    def _decay(self, name: str, multiple: float, smallest: torch.Tensor, block: Block) -> torch.Tensor:
        """c = −ln w for w = multiple · |A|_min clamped into (0, 1); what was clamped is counted on the call."""
        w = multiple * smallest.clamp_min(LOGIT_FLOOR)
        inside = w.clamp(*W_RANGE)
        if block.start == 0 or self.stats_scope == "row":
            real = torch.isfinite(smallest)
            counts = torch.stack([((w != inside) & real).sum(), real.sum()])
            block.call.clamped.setdefault(name, []).append(counts)
        return -inside.log()
