"""The log, with a bound on what flaps: some lines a minute about one thing, and a count of the rest.

Which kinds flap, and what counts as one thing, is the catalogue's (`Flapping`).  The law here: a count of
lines that were left out is never lost, and neither is the last word.  The latest line of a minute that had
too many is kept, and written when the minute is over; so that who goes by last words (an alert: is the
target out of the rotation?) is at most a minute behind.

Attempts do not come this way (`service.log.AttemptLines`).
"""

import asyncio
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, Final

from service.catalogue import CATALOGUE
from service.clock import Clock
from service.line_schema import LEFT_OUT, Flapping
from service.log import Log, is_told

MINUTE: Final = 60.0
TICK: Final = 5.0
"""Seconds between two looks for minutes that are over."""
MOST_THINGS: Final = 10_000
"""Things that are told apart within a minute; more share one bound."""

FLAPPING: Final[Mapping[str, Flapping]] = {
    event.name: event.flaps for event in CATALOGUE if event.flaps is not None
}


class _Minute:
    """What was written about one thing since `begun`, how much was not, and the last of that."""

    __slots__ = ("begun", "last", "left_out", "written")

    def __init__(self, now: float) -> None:
        self.begun = now
        self.written = 0
        self.left_out = 0
        self.last: tuple[str, str, dict[str, Any]] | None = None

    def is_over(self, now: float) -> bool:
        return now - self.begun >= MINUTE

    def begin(self, now: float) -> None:
        self.begun, self.written = now, 0

    def keep(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.left_out += 1
        self.last = level, event, fields

    def written_one(self) -> int:
        """Note that a line is written; returns how many were left out before it."""
        told, self.left_out = self.left_out, 0
        self.written += 1
        self.last = None
        return told


class BoundedLog:
    """A log to be given to everybody; `level` is the least that the log beneath writes.

    `counts` are the lines of each kind that flaps, written or not; `left_out` are those that were not
    written, as far as a line has told of them.
    """

    def __init__(self, log: Log, clock: Clock, level: str = "debug") -> None:
        self.counts: Counter[str] = Counter()
        self.left_out = 0
        self._log = log
        self._clock = clock
        self._told = {
            name for name in ("debug", "info", "warning", "error") if is_told(name, level)
        }
        self._minutes: dict[Hashable, _Minute] = {}

    def debug(self, event: str, **fields: Any) -> None:
        """Write a line of this level, if there is room for it; so do the other three."""
        self._tell("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:  # noqa: D102
        self._tell("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:  # noqa: D102
        self._tell("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:  # noqa: D102
        self._tell("error", event, fields)

    def tick(self) -> None:
        """Write the last word of every minute that is over and had too many."""
        now = self._clock.monotonic()
        for thing, minute in [*self._minutes.items()]:
            if not minute.is_over(now):
                continue
            if minute.last is None:
                del self._minutes[thing]
            else:
                minute.begin(now)
                self._write_last(minute)

    def flush(self) -> None:
        """Write every last word now: the process ends."""
        for minute in self._minutes.values():
            self._write_last(minute)
        self._minutes.clear()

    async def run(self) -> None:
        """Tick, for ever."""
        while True:
            await asyncio.sleep(TICK)
            self.tick()

    def _tell(self, level: str, event: str, fields: dict[str, Any]) -> None:
        flapping = FLAPPING.get(event)
        if flapping is None:
            getattr(self._log, level)(event, **fields)
            return
        self.counts[event] += 1
        if level not in self._told:
            return
        now = self._clock.monotonic()
        minute = self._minute(flapping, fields, now)
        if minute.is_over(now):
            minute.begin(now)
        if minute.written < flapping.lines:
            self._write(minute, level, event, fields)
        else:
            minute.keep(level, event, fields)

    def _minute(self, flapping: Flapping, fields: Mapping[str, Any], now: float) -> _Minute:
        thing = (flapping.about, *(fields[name] for name in flapping.key))
        if thing not in self._minutes and len(self._minutes) >= MOST_THINGS:
            thing = (flapping.about,)
        return self._minutes.setdefault(thing, _Minute(now))

    def _write_last(self, minute: _Minute) -> None:
        if minute.last is not None:
            level, event, fields = minute.last
            minute.left_out -= 1  # it is written after all
            self._write(minute, level, event, fields)

    def _write(self, minute: _Minute, level: str, event: str, fields: dict[str, Any]) -> None:
        left_out = minute.written_one()
        self.left_out += left_out
        told = {LEFT_OUT: left_out} if left_out else {}
        getattr(self._log, level)(event, **fields, **told)
