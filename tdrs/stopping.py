"""Stopping: the first Ctrl-C (or SIGTERM) lets the batch end and be kept, the second stops at once."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if somebody asked to stop."""
        if self.requested:
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this batch; once more stops at once", file=sys.stderr, flush=True)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """While it lasts, SIGINT and SIGTERM ask to stop; on leaving, the handlers are put back."""
    stop = Stop()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
