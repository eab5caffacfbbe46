"""Time as a collaborator: whoever needs to know the time is given a `Clock`."""

import time
from typing import Protocol


class Clock(Protocol):
    """What the shells and stages know of time."""

    def now(self) -> float:
        """Return wall-clock time in Unix seconds: for stamps that leave the process."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start that never jump: for durations and waits."""


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
