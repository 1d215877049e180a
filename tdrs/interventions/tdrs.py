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

w_dc and w_re are multiples of |A|_min, the smallest visible |A|. At scale = 1 both kernels fall to their w at d_max.
The code uses t = (d / (d_max scale))², c = −ln w and b = d_max² / (2 σ²), where b = c as printed:
r_dc = exp(−c t), r_re = (1 + b t)^(−α), α = c / ln(1 + b).

Each choice that the paper leaves open is a setting of `TDRS`, called a reading. The class defaults are the formulas as
printed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from tdrs.attention.block import IMAGE, Block
from tdrs.attention.call import Call
from tdrs.attention.fused import FusedEdit
from tdrs.attention.method import Method
from tdrs.interventions.tdrs_fused import fused_edit
from tdrs.interventions.tdrs_loop import edited, served
from tdrs.settings import SettingError, check_choice, check_number

W_MIN_AS = ("multiple", "absolute")
GAINS = ("logits", "weights")
SD_FORMS = ("bias", "full")
FEATURES = ("pre_rope", "post_rope")
SCALES = ("mean", "max", "one_plus", "none")
A_MIN_OF = ("logits", "weights")
A_MIN_PER = ("head", "layer")
SCOPES = ("call", "row")
DISTANCES = ("index", "position")
PAIRS = ("all", "text_to_image", "cross_modal")

# The settings that the paper leaves open, and those that say where the method acts
READINGS = tuple(
    "gain sd_form features scale a_min_of a_min_per stats_scope sigma_re distance pairs layers heads phase".split()
)

LOGIT_FLOOR = 1e-6  # |A|_min is an extreme value near float32 rounding, so it is at least this before it is multiplied
W_RANGE = (1e-12, 1 - 1e-6)  # a kernel's end point must lie in (0, 1); outside it is clamped, and counted
SCALE_FLOOR = 1e-6
LOG2_E = 1 / math.log(2)
SIGMA_RANGE = (1e-3, 1e3)  # beyond it reRD's kernel no longer changes: a Gaussian above, a power of d below


@dataclass(frozen=True)
class _Stage:
    w_min: float
    weight: float
    w_min_as: str = "multiple"

    def __post_init__(self) -> None:
        check_choice("w_min_as", self.w_min_as, W_MIN_AS)
        check_number("w_min", self.w_min, 0, above=True)
        check_number("weight", self.weight, 0)
        if self.w_min_as == "absolute" and self.w_min >= 1:
            raise SettingError("w_min", self.w_min, "must be above 0 and below 1 with w_min_as=absolute")


@dataclass(frozen=True)
class DC(_Stage):
    """Distance-aware control (stage 2).

    Args:
        w_min: the Gaussian's value at d_max, as a multiple of |A|_min; above 0. The paper: 3.
        weight: λ_dc, at least 0; 0 turns the stage off. The paper: 1.
        w_min_as: `multiple` of |A|_min, the paper's; or `absolute`, w_min itself, below 1.
    """

    w_min: float = 3.0
    weight: float = 1.0


@dataclass(frozen=True)
class RE(_Stage):
    """Re-reinforcement of distant keys (stage 3).

    Args:
        w_min: the rational quadratic's value at d_max, as a multiple of |A|_min; above 0. The paper: 2.
        weight: λ_re, at least 0; 0 turns the stage off. The paper: 0.8 on ScienceQA-IMG, 1 on POPE.
        w_min_as: `multiple` of |A|_min, the paper's; or `absolute`, w_min itself, below 1.
    """

    w_min: float = 2.0
    weight: float = 0.8


@dataclass(frozen=True)
class Statistics:
    """What the kernels need to know about V.

    Attributes:
        smallest: |A|_min, (B, H or 1, R or 1, 1); None if no w_min is a multiple of it.
        span: d_max, (B or 1, 1, R or 1, 1).
    """

    smallest: torch.Tensor | None
    span: torch.Tensor


class Rows(NamedTuple):
    """What is constant along a row of a block. Arrays are (B or 1, H or 1, R or 1, 1).

    Attributes:
        least: the smallest scale times the norm of the row; None if the scale has no norm.
        dc: −c log2(e) (norm / d_max)²; None if the stage is off.
        re: b (norm / d_max)²; None if the stage is off.
        power: −α log2(e); None if the stage is off.
    """

    least: torch.Tensor | None
    dc: torch.Tensor | None
    re: torch.Tensor | None
    power: torch.Tensor | None


def _over(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor | None:
    """x, if a result of both may be written into its memory; None if shapes or gradients forbid it."""
    return x if x.shape == other.shape and not (x.requires_grad or other.requires_grad) else None


@dataclass(frozen=True, kw_only=True)
class TDRS(Method):
    """The three stages and the readings.

    Args:
        sd: whether stage 1, the semantic residual, is on.
        dc: stage 2; None turns it off.
        re: stage 3; None turns it off.
        gain: `logits`: multiply A, as printed. `weights`: multiply the softmax weights by the same gain:
            softmax(A + A_sd + log(1 + λ_dc r_dc + λ_re r_re)). The two differ, because A·r changes when a constant is
            added to A, and softmax(A) does not.
        sd_form: `bias`: A_sd = sem_pos; `full`: A_sd = A + sem_pos.
        features: the cosine uses vectors before (`pre_rope`) or after (`post_rope`) rotation.
        scale: `mean`: sem_pos divided by its mean over the row's visible keys; `max`: divided by its maximum;
            `one_plus`: 1 + sem_pos; `none`: 1. The scale is at least 1e-6.
        a_min_of: |A|_min is the smallest |A| of the visible `logits`, at least 1e-6, or the smallest softmax(A) of the
            visible `weights`, which is many orders of magnitude smaller.
        a_min_per: one |A|_min for each query `head`, or one for all heads of the `layer`.
        stats_scope: `call`: |A|_min and d_max over the whole map of this forward call, per sample. `row`: over row i
            alone; a row then depends only on its past, and cached decoding equals the full forward pass.
        sigma_re: σ of reRD as a share of d_max, 0.001 to 1000. `tied` is 1 / sqrt(−2 ln w_re), which equals σ0 of DC
            for the same w_min.
        distance: `index`: d counts tokens. `position`: d is the difference of the model's own position ids; the largest
            of the three if they have three axes (M-RoPE).
        pairs: where terms are added. `all`; `text_to_image`: text queries on image keys; `cross_modal`: also image
            queries on text keys. Statistics always run over all visible pairs.

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
    a_min_of: str = "logits"
    a_min_per: str = "head"
    stats_scope: str = "call"
    sigma_re: float | str = "tied"
    distance: str = "index"
    pairs: str = "all"

    advice: ClassVar[Mapping[str, str]] = {
        "rotation": "use features=post_rope",
        "pieces": "under stats_scope=call it does, under row it does not",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.sd, bool):
            raise SettingError("sd", self.sd, "must be true or false")
        for name, kind in (("dc", DC), ("re", RE)):
            stage = getattr(self, name)
            if stage is not None and not isinstance(stage, kind):
                raise SettingError(name, stage, f"must be tdrs.{kind.__name__}(…), or None, which turns the stage off")
        check_choice("gain", self.gain, GAINS)
        check_choice("sd_form", self.sd_form, SD_FORMS)
        check_choice("features", self.features, FEATURES)
        check_choice("scale", self.scale, SCALES)
        check_choice("a_min_of", self.a_min_of, A_MIN_OF)
        check_choice("a_min_per", self.a_min_per, A_MIN_PER)
        check_choice("stats_scope", self.stats_scope, SCOPES)
        check_choice("distance", self.distance, DISTANCES)
        check_choice("pairs", self.pairs, PAIRS)
        if self.sigma_re != "tied":
            low, high = SIGMA_RANGE
            try:
                check_number("sigma_re", self.sigma_re, low, high)
            except SettingError as error:
                allowed = f"must be 'tied' or a share of d_max, {low:g} to {high:g}"
                raise SettingError("sigma_re", self.sigma_re, allowed) from error

    @property
    def _stages(self) -> list[DC | RE]:
        """Those of DC and reRD that add anything; a stage of weight 0 is off."""
        return [stage for stage in (self.dc, self.re) if stage is not None and stage.weight > 0]

    @property
    def _similarity(self) -> bool:
        return self.sd or (bool(self._stages) and self.scale != "none")

    @property
    def needs(self) -> frozenset[str]:
        needs = {
            "rotation": self._similarity and self.features == "pre_rope",
            "positions": bool(self._stages) and self.distance == "position",
            "roles": self.pairs != "all",
        }
        return frozenset(name for name, needed in needs.items() if needed)

    @property
    def active(self) -> bool:
        return self.sd or bool(self._stages)

    @property
    def reads_whole_map(self) -> bool:
        return self.stats_scope == "call" and bool(self._stages)

    @property
    def fused(self) -> FusedEdit:
        return fused_edit(self)

    @property
    def effective(self) -> dict[str, Any]:
        values = super().effective
        if not values:
            return values
        on = {"dc": self.dc in self._stages, "re": self.re in self._stages}
        idle = {name for name, at_work in on.items() if not at_work}
        if not self._stages:
            idle |= {"gain", "scale", "stats_scope", "distance"}
        if not self._relative:
            idle |= {"a_min_of", "a_min_per"}
        if not on["re"]:
            idle |= {"sigma_re"}
        if not self.sd:
            idle |= {"sd_form"}
        if not self._similarity:
            idle |= {"features"}
        return {name: value for name, value in values.items() if name not in idle}

    def statistics(self, call: Call) -> Statistics | None:
        if not self.reads_whole_map:
            return None
        smallest = call.smallest(self._smallest) if self._relative else None
        return Statistics(smallest, call.largest(lambda block: block.span(self.distance)))

    @property
    def _relative(self) -> bool:
        return any(stage.w_min_as == "multiple" for stage in self._stages)

    def _smallest(self, block: Block) -> torch.Tensor:
        """|A|_min of each row, (B, H or 1, R, 1)."""
        smallest = block.smallest_logit if self.a_min_of == "logits" else block.smallest_weight
        return smallest if self.a_min_per == "head" else smallest.amin(dim=1, keepdim=True)

    def edit(self, block: Block, statistics: object) -> torch.Tensor:
        sem_pos = block.cosine(self.features, 0.5).add_(0.5) if self._similarity else None
        rows = self._rows(block, sem_pos, statistics) if self._stages else None
        logits = block.logits
        result = logits
        if rows is not None and sem_pos is not None and served(block, sem_pos):
            result = edited(self, block, sem_pos, rows)
        else:
            if rows is not None:  # A (1 + r) or A + log(1 + r), written into the memory of r
                gain = self._gain(block, sem_pos, rows)
                over = _over(gain, logits)
                if self.gain == "logits":
                    result = torch.addcmul(logits, logits, gain, out=over)
                else:
                    result = torch.add(logits, gain.log1p_(), out=over)
            if self.sd:
                assert sem_pos is not None
                result = sem_pos.add_(result)
                if self.sd_form == "full":
                    result = result.add_(logits)
        if self.pairs == "all":
            return result
        image_query, image_key = block.queries(IMAGE), block.keys_of(IMAGE)
        chosen = ~image_query & image_key if self.pairs == "text_to_image" else image_query ^ image_key
        return torch.where(chosen, result, logits)

    def _rows(self, block: Block, sem_pos: torch.Tensor | None, statistics: object) -> Rows:
        """What is constant along the rows of a block."""
        if isinstance(statistics, Statistics):
            smallest, span = statistics.smallest, statistics.span
        else:
            smallest, span = self._smallest(block) if self._relative else None, block.span(self.distance)
        unit = torch.where(span > 0, span, 1).reciprocal()  # if d_max = 0, then d = 0, t = 0 and r = 1
        least = None
        if sem_pos is not None and self.scale in ("mean", "max"):
            norm = block.mean_cosine(self.features) * 0.5 + 0.5 if self.scale == "mean" else block.row_max(sem_pos)
            norm = norm.clamp_min(SCALE_FLOOR)
            least, unit = norm * SCALE_FLOOR, unit * norm
        unit = unit.square()
        dc = re = power = None
        if self.dc is not None and self.dc.weight > 0:
            dc = -self._decay("dc.w_min", self.dc, smallest, block) * LOG2_E * unit
        if self.re is not None and self.re.weight > 0:
            c = self._decay("re.w_min", self.re, smallest, block)
            b = c if isinstance(self.sigma_re, str) else torch.full_like(c, 0.5 / self.sigma_re**2)
            re, power = b * unit, -c / torch.log1p(b) * LOG2_E
        return Rows(least, dc, re, power)

    def _gain(self, block: Block, sem_pos: torch.Tensor | None, rows: Rows) -> torch.Tensor:
        """λ_dc r_dc + λ_re r_re of the block's pairs, newly allocated.

        With t = (d / (d_max scale))² the kernels are exp(−c t) and (1 + b t)^(−α). Both are computed as powers of 2,
        which is faster. Factors that are constant along a row come last, because each pass over the pairs takes time.
        """
        t = block.distance(self.distance)
        if sem_pos is None or self.scale == "none":
            t = t.square()
        else:  # the scale of each pair times the norm of its row
            scale = sem_pos + 1 if rows.least is None else torch.maximum(sem_pos, rows.least)
            t = torch.div(t, scale, out=_over(scale, sem_pos)).square_()
        terms: list[torch.Tensor] = []
        if self.dc is not None and rows.dc is not None:
            terms.append((t * rows.dc).exp2_())
            if self.dc.weight != 1:
                terms[0].mul_(self.dc.weight)
        if self.re is not None and rows.re is not None and rows.power is not None:
            kernel = (t * rows.re).log1p_().mul_(rows.power).exp2_()
            if terms and terms[0].shape == kernel.shape:
                return terms[0].add_(kernel, alpha=self.re.weight)
            terms.append(kernel.mul_(self.re.weight))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def _decay(self, name: str, stage: DC | RE, smallest: torch.Tensor | None, block: Block) -> torch.Tensor:
        """c = −ln w for w = w_min or w_min · |A|_min, clamped into (0, 1). The tally counts clamped values."""
        if stage.w_min_as == "absolute":
            w, real = block.logits.new_full((1, 1, 1, 1), stage.w_min), None
        else:
            assert smallest is not None
            real = torch.isfinite(smallest)
            w = stage.w_min * (smallest.clamp_min(LOGIT_FLOOR) if self.a_min_of == "logits" else smallest)
        inside = w.clamp(*W_RANGE)
        if real is not None and (block.start == block.call.first_row or self.stats_scope == "row"):
            block.call.tally.add("clamped", name, w != inside, real)
        return -inside.log()
