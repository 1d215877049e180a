"""What the embedded twins share. Their samples are generated from a seed; they are not samples of the real sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from PIL import Image

from tdrs.benchmarks.benchmark import Accepts, Benchmark, Picture, Sample, Samples, anything
from tdrs.benchmarks.draw import by_image
from tdrs.settings import SettingError

MOST = 12  # questions about one image
SEEDS = {"train": 0, "tuning": 1, "held_out": 2}  # begins each split's seeds: splits are independent


@dataclass(frozen=True, kw_only=True)
class Embedded(Benchmark):
    """A twin: the columns, prompts and rules of a real set, with pictures that are drawn here."""

    sizes: ClassVar[dict[str, int]] = {"tuning": 1000, "held_out": 2000}
    rows_per_image: ClassVar[int]

    def rows(self, split: str, count: int) -> Sequence[dict[str, Any]]:
        """The rows of the first `count` samples, in the columns of the real set (`image` as a uint8 array)."""
        raise NotImplementedError

    def generate(self, split: str, count: int, style: str) -> Sequence[Sample]:
        """The first `count` samples of a split."""
        return _samples(self, split, count, style)

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


@lru_cache(maxsize=32)
def _samples(settings: Embedded, split: str, count: int, style: str) -> list[Sample]:
    made: list[Sample] = []
    for number, row in enumerate(settings.rows(split, count)):
        image, turn = divmod(number, settings.rows_per_image)
        if turn == 0:
            picture, name = Picture.of(Image.fromarray(row["image"])), f"{split}-{image}"
        made.append(settings.sample(row, number, picture, name, style, settings.context(split, name)))
    return made
