"""The pace of long work in a thread: it rests again and again, so that the event loop runs meanwhile.

Only one thread at a time runs Python.  The loop gives way at each of its system calls, and would wait for
its turn after every one: measured here, a thread that never rests left it half of its throughput or less,
and one that rests left it nearly all.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_WORK = 0.002
_REST = 0.001
_T = TypeVar("_T")

Step = Callable[[], None]
"""Called between small pieces of work."""


def hurry() -> None:
    """Never rest: for work that nothing waits for."""


class Pace:
    """A `Step` that rests for a millisecond whenever two have gone by."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._until = 0.0

    def __call__(self) -> None:
        """Rest, if it is time to."""
        if time.monotonic() >= self._until:
            self._sleep(_REST)
            self._until = time.monotonic() + _WORK


def each(items: Iterable[_T], step: Step) -> Iterator[_T]:
    """Yield the items, with a step before each."""
    for item in items:
        step()
        yield item
