"""Durations, counted in buckets that grow by 2 %: a percentile is within 1 % of the true one.  Pure.

Bounded: some 1,400 counts (11 KiB), however many durations there are.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import ceil, log
from operator import add
from typing import Final

_GROWTH: Final = 1.02
_SMALLEST_MS: Final = 0.001
_LARGEST_MS: Final = 1e9
_SCALE: Final = 1 / log(_GROWTH)
_OFFSET: Final = -log(_SMALLEST_MS) * _SCALE
_EMPTY: Final = array("Q", bytes(8 * (int(log(_LARGEST_MS) * _SCALE + _OFFSET) + 1)))


class Histogram:
    """Counts of durations in milliseconds."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        self.buckets = _EMPTY[:]

    def add(self, milliseconds: float) -> None:
        """Count a duration; out of range (a microsecond to eleven days) it counts as the nearest."""
        if not _SMALLEST_MS <= milliseconds <= _LARGEST_MS:
            milliseconds = min(max(milliseconds, _SMALLEST_MS), _LARGEST_MS)
        self.buckets[int(log(milliseconds) * _SCALE + _OFFSET)] += 1

    def merge(self, other: "Histogram") -> None:
        """Add another's counts to this one's."""
        self.buckets = array("Q", map(add, self.buckets, other.buckets))

    def percentiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return the durations that so much (0..1) of all do not exceed, within 1 %; None without any."""
        up_to = list(accumulate(self.buckets))
        if not up_to[-1]:
            return [None] * len(shares)
        return [_middle(bisect_left(up_to, ceil(share * up_to[-1]))) for share in shares]


def _middle(bucket: int) -> float:
    """Return the duration halfway, as ratios go, between the ends of the bucket."""
    return _SMALLEST_MS * _GROWTH**bucket * 2 * _GROWTH / (1 + _GROWTH)
