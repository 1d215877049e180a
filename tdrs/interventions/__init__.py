"""Methods that edit attention logits, one a file; `METHODS` maps the names used in `conf/intervention` to them."""

from collections.abc import Mapping
from typing import Any

from tdrs.attention.core import Intervention
from tdrs.interventions.none import Stock
from tdrs.interventions.tdrs import TDRS
from tdrs.settings import SettingError, build, check_choice

METHODS: dict[str, type[Any]] = {"none": Stock, "tdrs": TDRS}


def from_settings(values: Mapping[str, Any]) -> Intervention:
    """The method that `values["name"]` names, with the other values as its settings.

    Raises:
        SettingError: unknown method, unknown setting, or a value out of range.
    """
    settings = dict(values)
    name = settings.pop("name", None)
    try:
        check_choice("name", name, list(METHODS))
        method: Intervention = build(METHODS[str(name)], settings)
    except SettingError as error:
        raise error.under("intervention") from None
    return method
