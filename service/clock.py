"""Time as a collaborator: whoever needs to know the time is given a `Clock`."""

import asyncio
import time
from typing import Final, Protocol

LOOK_EVERY: Final = 0.5
ASLEEP_AFTER: Final = 1.5
"""Seconds: a longer gap between two looks means that the process was stopped, as it looks every half second."""


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


class WakingClock:
    """The machine's clocks, but `monotonic` stands still while this process does.

    A process that is stopped, frozen with its machine, or waits for a core for seconds would take its own absence
    for slowness of every target that it had asked something.  `run` looks at the clock often enough for such a
    gap to be seen.
    """

    now = staticmethod(time.time)

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._asleep = 0.0

    def monotonic(self) -> float:
        """Return the seconds that this process has been awake, from an arbitrary start."""
        now = time.monotonic()
        gap, self._looked_at = now - self._looked_at, now
        if gap > ASLEEP_AFTER:
            self._asleep += gap - LOOK_EVERY
        return now - self._asleep

    async def run(self) -> None:
        """Look at the clock regularly, for ever."""
        while True:
            self.monotonic()
            await asyncio.sleep(LOOK_EVERY)
