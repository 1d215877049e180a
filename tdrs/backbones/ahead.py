"""Preparation of the next batch, in a thread, while the model answers this one.

The thread opens pictures, runs the processor and reads stored features, on the CPU alone. It works only while the
model generates: then nothing else uses the tokenizer, which two threads must not share. What it has made is taken once
by the code that would make it. What is not there, because it failed or there was no room, that code makes as ever. So a
batch gets the same numbers with the thread and without, and an error is raised where and as it would be.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from tdrs.spans import PREPARING, span

ROOM = 1 << 30  # bytes that wait to be taken, approximately
Work = tuple[Hashable, Callable[[], Any]]  # a name, and what makes the thing


class Ahead:
    """What was made ahead, by name."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def take(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """The thing of a name, which was made ahead or is made now."""
        found = self._made.pop(name, None)
        return make() if found is None else found

    @contextmanager
    def beside(self, work: Iterable[Work]) -> Iterator[None]:
        """A `with` block beside which a thread finds and does work, in order. At the end the block waits for it.

        If the block is left by an error, the thread stops after the thing that it is at. What was made for an earlier
        block and not taken is let go, unless it is part of this work, too.
        """
        before, self._made = self._made, {}
        if work == ():
            yield
            return
        stop = threading.Event()
        # a daemon, so that it cannot keep a process alive that is interrupted twice
        thread = threading.Thread(target=self._make, args=(work, before, stop), name="next batch", daemon=True)
        thread.start()
        try:
            yield
            with span(PREPARING):
                thread.join()
        except BaseException:  # Ctrl-C, too
            stop.set()
            thread.join()
            raise

    def _make(self, work: Iterable[Work], before: dict[Hashable, Any], stop: threading.Event) -> None:
        used = 0
        with suppress(Exception):  # it is raised when its batch asks for it
            for name, make in work:
                if stop.is_set() or used > ROOM:
                    return
                made = before[name] if name in before else make()
                if made is not None:
                    self._made[name] = made
                    used += _bytes(made)


def _bytes(made: Any) -> int:
    """The bytes of a tensor, or of the tensors of a batch."""
    tensors = [made] if isinstance(made, torch.Tensor) else made.values()
    return sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor))
