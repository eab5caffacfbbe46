"""The regular line: what an operator wants to know of a process also when nothing else is written.

The law here: one line a minute whatever happens, and a last one at the end, with few fields of bounded
size.  Counts are those since the line before, so that they add up over time and over processes; what
cannot be counted so (how many lines were written, which a reader compares with those that arrived) is a
total since the start.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from service.clock import Clock
from service.log import Log

EVERY: Final = 60.0
"""Seconds between two lines."""


class Heartbeat:
    """Writes the line; `state` tells what is now, `counts` what has been counted since the start."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        state: Callable[[], Mapping[str, Any]],
        counts: Callable[[], Mapping[str, int]],
    ) -> None:
        self._log = log
        self._clock = clock
        self._state = state
        self._counts = counts
        self._before = counts()
        self._started = clock.monotonic()

    def beat(self) -> None:
        """Write the line."""
        before, now = self._before, self._counts()
        self._before = now
        self._log.info(
            "service.alive",
            pid=os.getpid(),
            uptime_s=round(self._clock.monotonic() - self._started),
            **self._state(),
            **{name: total - before[name] for name, total in now.items()},
        )

    async def run(self) -> None:
        """Write it again and again, for ever."""
        while True:
            await asyncio.sleep(EVERY)
            self.beat()
