"""tdrs: does this inference-time edit of a vision-language model's attention help, and how sure are we?"""

import tdrs.entry_point  # noqa: F401 - before torch: it chooses how the threads of a command wait

# isort: split
from tdrs.attention.intervene import intervene
from tdrs.attention.method import Method
from tdrs.interventions.key_bias import KeyBias
from tdrs.interventions.middle_layers import MiddleLayers
from tdrs.interventions.none import Stock
from tdrs.interventions.pai import PAI
from tdrs.interventions.tdrs import DC, RE, TDRS
from tdrs.interventions.temperature import Temperature
from tdrs.interventions.vaf import VAF

__all__ = [
    "DC",
    "PAI",
    "RE",
    "TDRS",
    "VAF",
    "KeyBias",
    "Method",
    "MiddleLayers",
    "Stock",
    "Temperature",
    "intervene",
]
__version__ = "0.6.0"
