"""What the embedded twins share: they are generated from a seed, split by split, and belong to nobody's benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tdrs.benchmarks.benchmark import Accepts, Benchmark, Sample, Samples, anything
from tdrs.benchmarks.draw import by_image
from tdrs.settings import SettingError

MOST = 12  # questions about one image
SEEDS = {"train": 0, "tuning": 1, "held_out": 2}  # the first word of each split's seeds: they share no random number


@dataclass(frozen=True, kw_only=True)
class Embedded(Benchmark):
    """A twin: the columns, prompts and rules of a real set, over pictures drawn here."""

    sizes: ClassVar[dict[str, int]] = {"tuning": 1000, "held_out": 2000}

    def generate(self, split: str, count: int, style: str) -> Sequence[Sample]:
        """The first `count` samples."""
        raise NotImplementedError

    def load(self, split: str, limit: int | None, style: str, accepts: Accepts = anything) -> Samples:
        size = self.sizes[split]
        if limit is None:
            return Samples(self.generate(split, size, style))
        if limit > size:
            raise SettingError("limit", limit, f"mini_{self.real} has {size} samples in {split}")
        found: list[Sample] = []
        for some in by_image(self.generate(split, min(size, limit + MOST), style)).values():
            if len(found) + len(some) > limit:
                found = found or some[:limit]
                break
            found += some
        less = f"{len(found)} samples for a limit of {limit}: images are taken whole"
        return Samples(self.merged(found), [less] if len(found) < limit else [])
