"""Benchmarks: where samples come from, how they are asked, and how answers are scored.

`DATASETS` maps the names in `conf/dataset` to classes. Each one loads a split (`load`), scores a prediction (`score`)
and computes metrics from records (`metrics`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tdrs.benchmarks.benchmark import SPLITS, Accepts, Benchmark, Record, Sample, Samples, anything
from tdrs.benchmarks.gqa import GQA
from tdrs.benchmarks.lmms_eval import LmmsEval
from tdrs.benchmarks.mini_gqa import MiniGQA
from tdrs.benchmarks.mini_pope import MiniPOPE
from tdrs.benchmarks.mini_scienceqa import MiniScienceQA
from tdrs.benchmarks.mini_textvqa import MiniTextVQA
from tdrs.benchmarks.own import Own
from tdrs.benchmarks.pope import POPE
from tdrs.benchmarks.scienceqa import ScienceQA
from tdrs.benchmarks.text import Text
from tdrs.benchmarks.textvqa import TextVQA
from tdrs.settings import SettingError, build_named, check_choice

__all__ = ["DATASETS", "SPLITS", "Benchmark", "Record", "Sample", "Samples", "from_settings", "load"]

DATASETS: dict[str, type[Benchmark]] = {
    "mini_scienceqa": MiniScienceQA,
    "mini_gqa": MiniGQA,
    "mini_textvqa": MiniTextVQA,
    "mini_pope": MiniPOPE,
    "scienceqa": ScienceQA,
    "gqa": GQA,
    "textvqa": TextVQA,
    "pope": POPE,
    "lmms_eval": LmmsEval,
    "own": Own,
    "text": Text,
}


def from_settings(values: Mapping[str, Any]) -> Benchmark:
    """The benchmark that `values["name"]` names, with the other values as its settings.

    Raises:
        SettingError: unknown benchmark, unknown setting, or a value out of range.
    """
    return build_named("dataset", DATASETS, values)


def load(
    dataset: Benchmark,
    split: str,
    limit: int | None = None,
    style: str = "llava",
    limit_name: str = "limit",
    accepts: Accepts = anything,
) -> Samples:
    """Load the `tuning` or `held_out` split in the order of its rows, or with a limit a fair draw of it.

    A draw has whole images and at most `limit` samples; if the first image has more questions, it has the first ones of
    them. A smaller draw is the beginning of a larger one. It depends on the rows alone; see `draw.py`.

    Args:
        style: the prompt style of the model; the data set's own `prompt` has priority.
        limit_name: the setting that errors about the limit name.
        accepts: says why the model cannot take a prompt's pictures of these sizes; "" if it can.

    Raises:
        SettingError: the source or a column is missing, a row is unusable, or an embedded split has fewer samples.
    """
    check_choice("split", split, SPLITS)
    try:
        samples = dataset.load(split, limit, style if dataset.prompt == "backbone" else dataset.prompt, accepts)
    except SettingError as error:
        if error.name == "limit":
            raise SettingError(limit_name, error.value, error.allowed) from None
        raise error.under("dataset") from None
    if dataset.blank:
        samples[:] = [replace(sample, picture=sample.picture.blank()) for sample in samples]
    return samples
