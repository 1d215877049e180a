"""T-DRS for the fused kernels: the choices that are made when they are compiled.

`tdrs_tile.py` has the functions of Triton.
"""

import math
from enum import IntFlag, auto
from typing import TYPE_CHECKING

from tdrs.attention.fused import FusedEdit, functions_in

if TYPE_CHECKING:
    from tdrs.interventions.tdrs import TDRS


class Flag(IntFlag):
    """What the functions compute. NORMED: scale is sem_pos divided by a norm of the row. SIGMA: σ_re is a number."""

    SD = auto()
    FULL = auto()
    DC = auto()
    DC_ABSOLUTE = auto()
    RE = auto()
    RE_ABSOLUTE = auto()
    SIGMA = auto()
    WEIGHTS = auto()
    NORMED = auto()
    ONE_PLUS = auto()
    TEXT_TO_IMAGE = auto()
    CROSS_MODAL = auto()
    OF_WEIGHTS = auto()


def fused_edit(method: "TDRS") -> FusedEdit:
    """T-DRS with these readings, for the fused kernels."""
    dc = method.dc if method.dc is not None and method.dc.weight > 0 else None
    re = method.re if method.re is not None and method.re.weight > 0 else None
    stages = dc is not None or re is not None
    counted = [f"{name}.w_min" for name, stage in (("dc", dc), ("re", re)) if stage and stage.w_min_as == "multiple"]
    choices = {
        Flag.SD: method.sd,
        Flag.FULL: method.sd and method.sd_form == "full",
        Flag.DC: dc is not None,
        Flag.DC_ABSOLUTE: dc is not None and dc.w_min_as == "absolute",
        Flag.RE: re is not None,
        Flag.RE_ABSOLUTE: re is not None and re.w_min_as == "absolute",
        Flag.SIGMA: re is not None and method.sigma_re != "tied",
        Flag.WEIGHTS: stages and method.gain == "weights",
        Flag.NORMED: stages and method.scale in ("mean", "max"),
        Flag.ONE_PLUS: stages and method.scale == "one_plus",
        Flag.TEXT_TO_IMAGE: method.pairs == "text_to_image",
        Flag.CROSS_MODAL: method.pairs == "cross_modal",
        Flag.OF_WEIGHTS: bool(counted) and method.a_min_of == "weights",
    }
    flags = Flag(0)
    for flag, chosen in choices.items():
        flags |= flag if chosen else Flag(0)
    sigma = 1.0 if isinstance(method.sigma_re, str) else float(method.sigma_re)
    return FusedEdit(
        functions=functions_in("tdrs.interventions.tdrs_tile", "FUNCTIONS"),
        flags=int(flags),
        numbers=(
            dc.w_min if dc else 1.0,
            math.log2(dc.weight) if dc else 0.0,
            re.w_min if re else 1.0,
            math.log2(re.weight) if re else 0.0,
            0.5 / sigma**2,
        ),
        cosine=method.features if method.sd or flags & (Flag.NORMED | Flag.ONE_PLUS) else "",
        norm=method.scale if flags & Flag.NORMED else "",
        smallest=method.a_min_per if counted else "",
        weights=bool(flags & Flag.OF_WEIGHTS),
        by_row=stages and method.stats_scope == "row",
        positions=stages and method.distance == "position",
        factor=bool(flags & Flag.WEIGHTS),
        roles=method.pairs != "all",
        heavy=bool(flags & Flag.SIGMA) or method.pairs != "all" or method.distance == "position",
        counted=("clamped", tuple(counted)),
    )
