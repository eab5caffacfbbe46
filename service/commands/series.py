"""Attempts over time: counts and durations in slots of equal length.  Pure.

Bounded: at most `SLOTS` slots are kept.  They begin as seconds, and twice as long ones take their place
whenever the time from the first to the last attempt needs more: an hour is seen in steps of 8 s, a
year in steps of 18 h.  The time is that of the lines, which may come in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from service.commands.histogram import Histogram

SLOTS: Final = 512


@dataclass(slots=True)
class Slot:
    """What happened in a stretch of time."""

    attempts: int = 0
    failed: int = 0
    durations: Histogram = field(default_factory=Histogram)

    def merge(self, other: "Slot") -> None:
        """Add another's counts to this one's."""
        self.attempts += other.attempts
        self.failed += other.failed
        self.durations.merge(other.durations)


@dataclass(frozen=True, slots=True)
class Columns:
    """The series, put into no more columns than there is room for; None where nothing happened.

    `first` and `last` are the Unix seconds of the first and the last attempt; `seconds` is the length of
    a column.
    """

    first: int
    last: int
    seconds: int
    slots: list[Slot | None]


class Series:
    """Slots of `seconds` each, numbered from the Unix epoch."""

    def __init__(self) -> None:
        self.seconds = 1
        self._slots: dict[int, Slot] = {}
        self._first = self._last = 0

    def add(self, second: int, milliseconds: float, *, succeeded: bool) -> None:
        """Count an attempt of this Unix second."""
        slot = self._slots.get(second // self.seconds) or self._open(second)
        slot.attempts += 1
        slot.failed += not succeeded
        slot.durations.add(milliseconds)
        # Within a slot the ends still move.
        if second > self._last:
            self._last = second
        elif second < self._first:
            self._first = second

    def columns(self, room: int) -> Columns | None:
        """Return the whole of the time in at most `room` (2 or more) columns; None before any attempt."""
        if not self._slots:
            return None
        count = self._last // self.seconds - self._first // self.seconds + 1
        seconds = self.seconds * -(-count // room)
        while self._last // seconds - self._first // seconds >= room:
            seconds += (
                self.seconds
            )  # columns begin at multiples of their length: one was cut in two
        merged = dict(_merged(self._slots, seconds // self.seconds))
        whole = range(self._first // seconds, self._last // seconds + 1)
        return Columns(self._first, self._last, seconds, [merged.get(place) for place in whole])

    def _open(self, second: int) -> Slot:
        if not self._slots:
            self._first = self._last = second
        first, last = min(self._first, second), max(self._last, second)
        while last // self.seconds - first // self.seconds >= SLOTS:
            self.seconds *= 2
            self._slots = dict(_merged(self._slots, 2))
        return self._slots.setdefault(second // self.seconds, Slot())


def _merged(slots: dict[int, Slot], together: int) -> Iterator[tuple[int, Slot]]:
    """Yield slots that each stand for so many neighbours."""
    merged: dict[int, Slot] = {}
    for place, slot in slots.items():
        merged.setdefault(place // together, Slot()).merge(slot)
    yield from merged.items()
