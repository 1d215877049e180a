"""Where the time of an evaluation goes.

Code names its part with `span`. Within `measured`, the seconds of each part add up; elsewhere a span does nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

PREPARING, FEATURES, TOWER, DECODER = "preparing", "stored features", "vision tower", "language model"
PARTS = (PREPARING, FEATURES, TOWER, DECODER)
FORWARD = (TOWER, DECODER)  # the parts in which the model computes


@dataclass
class Division:
    """How a time divides into parts. A span within another one counts for the inner part alone.

    Attributes:
        seconds: of each part.
        whole: seconds of all, with what belongs to no part; 0 until the measurement ends.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    whole: float = 0.0
    _open: list[str] = field(default_factory=list, repr=False)
    _since: float = field(default_factory=time.perf_counter, repr=False)
    _thread: int = field(default_factory=threading.get_ident, repr=False)

    @property
    def idle(self) -> float:
        """The share of the time in which the model does not compute."""
        return 1 - sum(self.seconds[part] for part in FORWARD) / self.whole if self.whole else 0.0

    def turn(self, part: str | None) -> None:
        """Begin a part, or end the one that began last if it is None."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
        if part is None:
            self._open.pop()
        else:
            self._open.append(part)


_measuring: Division | None = None


@contextmanager
def measured() -> Iterator[Division]:
    """A `with` block whose time is divided. Only the calling thread counts: others work beside it."""
    global _measuring
    before, begun = _measuring, time.perf_counter()
    _measuring = division = Division()
    try:
        yield division
    finally:
        division.whole = time.perf_counter() - begun
        _measuring = before


@contextmanager
def span(part: str) -> Iterator[None]:
    """A `with` block, or a decorated function, that belongs to a part of an evaluation, one of `PARTS`."""
    division = _measuring
    if division is None or division._thread != threading.get_ident():
        yield
        return
    division.turn(part)
    try:
        yield
    finally:
        division.turn(None)


def timed(run: Callable[[], object]) -> float:
    """Seconds of a run, until its device has finished."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
