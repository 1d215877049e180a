"""Methods, one per file. `METHODS` maps the names used in `conf/intervention` to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tdrs import heads_file
from tdrs.attention.in_order import Together
from tdrs.attention.method import Method
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
from tdrs.interventions.tdrs import TDRS
from tdrs.interventions.temperature import Temperature
from tdrs.interventions.vaf import VAF
from tdrs.interventions.var import VAR
from tdrs.interventions.vcd import VCD
from tdrs.settings import SettingError, build, build_named, check_choice

__all__ = ["METHODS", "TOGETHER", "Method", "from_settings", "label", "named", "together"]

TOGETHER = "together"  # the name of several methods in one run
METHODS: dict[str, type[Method]] = {
    "none": Stock,
    "tdrs": TDRS,
    "temperature": Temperature,
    "pai": PAI,
    "vaf": VAF,
    "middle_layers": MiddleLayers,
    "key_bias": KeyBias,
    "scaling_vis": ScalingVis,
    "adapt_vis": AdaptVis,
    "self_extend": SelfExtend,
    "position_interpolation": PositionInterpolation,
    "ntk": NTK,
    "ms_poe": MsPoE,
    "cca": CCA,
    "spin": SPIN,
    "ad_hh": ADHH,
    "heads_off": HeadsOff,
    "var": VAR,
    "vcd": VCD,
    "icd": ICD,
    "m3id": M3ID,
    "sid": SID,
}


def from_settings(values: Mapping[str, Any]) -> Method:
    """The method that `values["name"]` names, with the other values as its settings.

    `together` has `methods`, a list of names, and the settings of each under its name. `heads` may name a file of
    `tdrs.calibrate`, which is read.

    Raises:
        SettingError: the method or a setting is unknown, or a value is out of range.
    """
    if not isinstance(values, Mapping):
        raise SettingError("intervention", values, "must be a group of settings")
    if values.get("name") != TOGETHER:
        try:
            return build_named("intervention", METHODS, heads_file.resolved(values))
        except SettingError as error:
            raise error if error.name.startswith("intervention") else error.under("intervention") from None
    names = values.get("methods")
    others = {key: value for key, value in values.items() if key not in ("name", "methods")}
    if not isinstance(names, list | tuple) or len(names) < 2 or set(names) != set(others):
        raise SettingError("intervention", list(others), "must be a list of methods: intervention=[tdrs,temperature]")
    try:
        return Together(methods=tuple(_part(name, others[name]) for name in names))
    except SettingError as error:
        raise error if error.name.startswith("intervention") else error.under("intervention") from None


def _part(name: str, values: Any) -> Method:
    """One of several methods; its errors name it."""
    check_choice("intervention.methods", name, list(METHODS))
    if not isinstance(values, Mapping):
        raise SettingError(f"intervention.{name}", values, "must be a group of settings")
    settings = {key: value for key, value in values.items() if key != "name"}
    try:
        settings = heads_file.resolved(settings)
    except SettingError as error:
        raise error.under(f"intervention.{name}") from None
    return build(METHODS[name], settings, f"intervention.{name}")


def together(names: Sequence[str], settings: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of several methods in one run.

    Args:
        names: the methods in order.
        settings: gives the settings of a method.

    Raises:
        SettingError: a method is unknown, or is there twice.
    """
    for number, name in enumerate(names):
        check_choice("intervention", name, [name for name in METHODS if name != "none"])
        if name in names[:number]:
            raise SettingError("intervention", list(names), f"has {name} twice")
    return {"name": TOGETHER, "methods": list(names), **{name: dict(settings(name)) for name in names}}


def label(values: Mapping[str, Any]) -> str:
    """The name of the settings' method for people; `tdrs+temperature` for several."""
    return "+".join(values["methods"]) if values["name"] == TOGETHER else str(values["name"])


def settings_of(values: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The settings of each method that settings choose, by where they are; see `named`."""
    if values["name"] != TOGETHER:
        return {"intervention": values}
    return {f"intervention.{name}": values[name] for name in values["methods"]}


def named(values: Mapping[str, Any], method: Method) -> dict[str, Method]:
    """Each method that settings choose, by where its settings are: `intervention`, or `intervention.tdrs`, …"""
    if not isinstance(method, Together):
        return {"intervention": method}
    return {f"intervention.{name}": one for name, one in zip(values["methods"], method.methods, strict=True)}
