"""What the embedded twins share: they are generated from a seed, split by split, and belong to nobody's benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tdrs.benchmarks.benchmark import Benchmark, Sample, Samples
from tdrs.settings import SettingError

SEEDS = {"train": 0, "tuning": 1, "held_out": 2}  # the first word of each split's seeds: they share no random number


@dataclass(frozen=True, kw_only=True)
class Embedded(Benchmark):
    """A twin: the columns, prompts and rules of a real set, over pictures drawn here."""

    sizes: ClassVar[dict[str, int]] = {"tuning": 1000, "held_out": 2000}

    def generate(self, split: str, count: int, style: str) -> Sequence[Sample]:
        """The first `count` samples."""
        raise NotImplementedError

    def load(self, split: str, limit: int | None, style: str) -> Samples:
        size = self.sizes[split]
        if limit is not None and limit > size:
            raise SettingError("limit", limit, f"mini_{self.real} has {size} samples in {split}")
        return Samples(self.generate(split, size if limit is None else limit, style))
