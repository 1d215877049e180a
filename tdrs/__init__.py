"""tdrs: does this inference-time edit of a vision-language model's attention help, and how sure are we?

tdrs.intervene(model, method)                      # edit the attention of your own model
tdrs.evaluate(model, processor, benchmark, method) # ask it a benchmark
tdrs.run_study("sqa_ablation")                     # run a study; load_study reads a finished one
tdrs.plot.sensitivity(study)                       # draw a figure
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import tdrs.entry_point  # noqa: F401 - before torch: it chooses how the threads of a command wait

# isort: split
from tdrs.attention.in_order import Together
from tdrs.attention.intervene import intervene
from tdrs.attention.method import Method
from tdrs.attention.second_pass import SecondPass
from tdrs.interventions.ad_hh import ADHH
from tdrs.interventions.adapt_vis import AdaptVis
from tdrs.interventions.cca import CCA
from tdrs.interventions.heads_off import HeadsOff
from tdrs.interventions.icd import ICD
from tdrs.interventions.key_bias import KeyBias
from tdrs.interventions.m3id import M3ID
from tdrs.interventions.middle_layers import MiddleLayers
from tdrs.interventions.ms_poe import MsPoE
from tdrs.interventions.none import Stock
from tdrs.interventions.ntk import NTK
from tdrs.interventions.pai import PAI
from tdrs.interventions.position_interpolation import PositionInterpolation
from tdrs.interventions.scaling_vis import ScalingVis
from tdrs.interventions.self_extend import SelfExtend
from tdrs.interventions.sid import SID
from tdrs.interventions.spin import SPIN
from tdrs.interventions.tdrs import DC, RE, TDRS
from tdrs.interventions.temperature import Temperature
from tdrs.interventions.vaf import VAF
from tdrs.interventions.var import VAR
from tdrs.interventions.vcd import VCD

if TYPE_CHECKING:
    from tdrs import plot
    from tdrs.analysis.study_results import StudyResults, load_study
    from tdrs.model_evaluation import ModelEvaluation, evaluate
    from tdrs.study_run import run_study

__all__ = [
    "ADHH",
    "CCA",
    "DC",
    "ICD",
    "M3ID",
    "NTK",
    "PAI",
    "RE",
    "SID",
    "SPIN",
    "TDRS",
    "VAF",
    "VAR",
    "VCD",
    "AdaptVis",
    "HeadsOff",
    "KeyBias",
    "Method",
    "MiddleLayers",
    "ModelEvaluation",
    "MsPoE",
    "PositionInterpolation",
    "ScalingVis",
    "SecondPass",
    "SelfExtend",
    "Stock",
    "StudyResults",
    "Temperature",
    "Together",
    "evaluate",
    "intervene",
    "load_study",
    "plot",
    "run_study",
]
__version__ = "0.6.0"

# Loaded when they are first used: they need pandas, matplotlib, Optuna and MLflow.
_LAZY = {
    "ModelEvaluation": "tdrs.model_evaluation",
    "StudyResults": "tdrs.analysis.study_results",
    "evaluate": "tdrs.model_evaluation",
    "load_study": "tdrs.analysis.study_results",
    "plot": "tdrs.plot",
    "run_study": "tdrs.study_run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tdrs' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    found = module if name == "plot" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
