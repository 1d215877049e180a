"""Studies without a model: answers are a pure function of the sample and of the method's settings, at once."""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdrs import backbones
from tdrs import evaluation as evaluation_module
from tdrs.benchmarks import Benchmark, Sample
from tdrs.configuration import compose, plain
from tdrs.first_token import compact
from tdrs.interventions import Method
from tdrs.results import Batch


@dataclass
class Pretended:
    """A backbone that nobody asks."""

    settings: Any
    share_prefixes: bool = True
    next_token_only: bool = True
    tokens: Any = None


def margin(method: Method, sample: Sample) -> float:
    """From −3 to 3, the same for settings that edit alike."""
    text = json.dumps([method.effective, sample.id])
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 0xFFFFFF * 6 - 3


def run_batches(
    backbone: Any,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    intervention: Method,
    batch_size: int,
    execution: str = "auto",
    done: Sequence[Batch] = (),
    starts: Sequence[int] = (),
    batch_tokens: int | None = None,
) -> Iterator[Batch]:
    for first in sorted(set(starts) - {batch.start for batch in done}):
        records = []
        for sample in samples[first : first + batch_size]:
            value = margin(intervention, sample)
            answer = sample.gold if value > 0 else "?"
            token = compact(-np.logaddexp(0, [-value, value]))  # the gold answer's token, and all others as one
            records.append(replace(benchmark.score(answer, sample), margin=value, first_token=token))
        yield Batch(first, records, {}, 1e-4, batch_size)


def pretend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend from here on; the list has the name of each backbone that is loaded."""
    loaded: list[str] = []

    def load(settings: Any, features: Any = None) -> Any:
        loaded.append(settings.name)
        return Pretended(settings)

    monkeypatch.setattr(backbones, "load", load)
    monkeypatch.setattr(evaluation_module, "run_batches", run_batches)
    return loaded


@lru_cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Composed once for all tests, which takes a tenth of a second."""
    config: dict[str, Any] = plain(compose("sweep", ["study.name=small", "batch_size=4", "dataset.gap=4", *overrides]))
    return config


def configuration(output: Path, *overrides: str, **search: Any) -> dict[str, Any]:
    """A small study's configuration: 8 tuning and 8 held-out samples, batches of 4; `search` is added to the group."""
    config = {**copy.deepcopy(_composed(overrides)), "output": str(output)}
    config["preset"] = {"tuning": 8, "held_out": 8}
    config["search"] |= search
    return config
