"""Methods, one per file. `METHODS` maps the names used in `conf/intervention` to them."""

from collections.abc import Mapping
from typing import Any

from tdrs.attention.method import Method
from tdrs.interventions.icd import ICD
from tdrs.interventions.key_bias import KeyBias
from tdrs.interventions.m3id import M3ID
from tdrs.interventions.middle_layers import MiddleLayers
from tdrs.interventions.none import Stock
from tdrs.interventions.pai import PAI
from tdrs.interventions.sid import SID
from tdrs.interventions.tdrs import TDRS
from tdrs.interventions.temperature import Temperature
from tdrs.interventions.vaf import VAF
from tdrs.interventions.vcd import VCD
from tdrs.settings import build_named

__all__ = ["METHODS", "Method", "from_settings"]

METHODS: dict[str, type[Method]] = {
    "none": Stock,
    "tdrs": TDRS,
    "temperature": Temperature,
    "pai": PAI,
    "vaf": VAF,
    "middle_layers": MiddleLayers,
    "key_bias": KeyBias,
    "vcd": VCD,
    "icd": ICD,
    "m3id": M3ID,
    "sid": SID,
}


def from_settings(values: Mapping[str, Any]) -> Method:
    """The method that `values["name"]` names, with the other values as its settings.

    Raises:
        SettingError: the method or a setting is unknown, or a value is out of range.
    """
    return build_named("intervention", METHODS, values)
