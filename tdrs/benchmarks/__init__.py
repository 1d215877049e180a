"""Benchmarks: where samples come from, how they are asked, how answers are scored.

`DATASETS` maps the names used in `conf/dataset` to their settings; each of them can `load` a split.
"""

from collections.abc import Mapping
from typing import Any

from tdrs.benchmarks.mini_scienceqa import MiniScienceQA
from tdrs.benchmarks.scienceqa import Sample, ScienceQA
from tdrs.settings import SettingError, build_named, check_choice

DATASETS: dict[str, type[Any]] = {"mini_scienceqa": MiniScienceQA, "scienceqa": ScienceQA}
SPLITS = ("tuning", "held_out")


def from_settings(values: Mapping[str, Any]) -> ScienceQA | MiniScienceQA:
    """The benchmark that `values["name"]` names, with the other values as its settings.

    Raises:
        SettingError: unknown benchmark, unknown setting, or a value out of range.
    """
    dataset: ScienceQA | MiniScienceQA = build_named("dataset", DATASETS, values)
    return dataset


def load(dataset: ScienceQA | MiniScienceQA, split: str, limit: int | None, limit_name: str = "limit") -> list[Sample]:
    """The first `limit` samples (all of them for None) of the `tuning` or `held_out` split.

    Raises:
        SettingError: the source or a column is missing, a row has no image, or fewer rows exist than asked for.
    """
    check_choice("split", split, SPLITS)
    try:
        return dataset.load(split, limit)
    except SettingError as error:
        if error.name == "limit":
            raise SettingError(limit_name, error.value, error.allowed) from None
        raise error.under("dataset") from None
