"""The protocol that compares named methods, side by side with the stock model, on the held-out split.

Every combination of the axes' values is a place: a backbone, a data set, a distance. At each place the stock model is
measured, then every method, on the same samples. Nothing is chosen, so nothing is tuned.

An axis is a list of values of the configuration key it is named after (`backbone` and `dataset` take the names of their
groups), or of mappings, each of which sets several keys at once. A method is a mapping of keys, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from tdrs.settings import SettingError, build

Settings = dict[str, Any]  # dotted configuration key → value
STOCK = "stock"


@dataclass(frozen=True)
class Compare:
    """A checked `search` group.

    Args:
        axes: the places; the first axis changes slowest.
        methods: settings of each method by its name. None is the stock model alone.
    """

    protocol: str
    axes: dict  # type: ignore[type-arg]
    methods: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def places(self) -> Iterator[Settings]:
        """Every combination of the axes' values."""
        parts = [
            [value if isinstance(value, Mapping) else {key: value} for value in axis] for key, axis in self.axes.items()
        ]
        for combination in product(*parts):
            yield {key: value for part in combination for key, value in part.items()}

    def cases(self) -> Iterator[tuple[str, Settings, Settings]]:
        """Of every evaluation its method's name, its place and its settings; at each place the stock model is first."""
        for place in self.places():
            for name, settings in {STOCK: {"intervention": "none"}, **self.methods}.items():
                groups_first = sorted({**place, **settings}.items(), key=lambda item: "." in item[0])
                yield name, place, dict(groups_first)


def from_settings(values: Mapping[str, Any]) -> Compare:
    """The protocol out of the `search` group.

    Raises:
        SettingError: a name is unknown, an axis is empty or no list, or a method is no mapping.
    """
    try:
        search = build(Compare, values)
        for name, axis in search.axes.items():
            if not isinstance(axis, list) or not axis:
                raise SettingError(f"axes.{name}", axis, "must be a list of at least one value")
        if not search.axes:
            raise SettingError("axes", None, "must not be empty")
        for name, settings in search.methods.items():
            if not isinstance(settings, Mapping) or name == STOCK:
                raise SettingError(f"methods.{name}", settings, "must be settings of another name than stock")
    except SettingError as error:
        raise error.under("search") from None
    return search
