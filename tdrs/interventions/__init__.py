"""Methods that edit attention logits, one a file; `METHODS` maps the names used in `conf/intervention` to them."""

from collections.abc import Mapping
from typing import Any

from tdrs.attention.core import Intervention
from tdrs.interventions.none import Stock
from tdrs.interventions.tdrs import TDRS
from tdrs.settings import build_named

METHODS: dict[str, type[Any]] = {"none": Stock, "tdrs": TDRS}


def from_settings(values: Mapping[str, Any]) -> Intervention:
    """The method that `values["name"]` names, with the other values as its settings.

    Raises:
        SettingError: unknown method, unknown setting, or a value out of range.
    """
    method: Intervention = build_named("intervention", METHODS, values)
    return method
