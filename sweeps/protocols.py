"""The protocols by the names that `search.protocol` has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import compare, coordinate, grid, sampled
from .engine import Engine
from .search import Search
from .trials import Outcome


@dataclass(frozen=True)
class Protocol:
    """A protocol: its checked settings from plain ones, and its run."""

    from_settings: Callable[[Mapping[str, Any]], Search]
    run: Callable[[Any, Engine, str], Outcome]


PROTOCOLS = {
    "coordinate": Protocol(coordinate.from_settings, coordinate.run),
    "grid": Protocol(grid.from_settings, grid.run),
    "sampled": Protocol(sampled.from_settings, sampled.run),
    "compare": Protocol(compare.from_settings, compare.run),
}
