"""When: the delay before a retry, and places in line for deliveries that are put off.

All times are seconds; `jitter` lies in -1..1 and `now` is whatever clock the caller keeps.
"""

from bisect import bisect_left, bisect_right
from typing import Final

from service.core import ladder
from service.core.subscription import RetryPolicy

SLOT_MIN = 1.0
SLOT_MAX = 600.0
EJECTED_BASE = 20.0
EJECTED_MAX = 900.0
RETURN_RATE = 250.0
"""Deliveries a second that come back for one subscription while its targets are out of the rotation.

Each of these trips costs the broker about as much as two events; what comes back all at once is in the way of
everybody.
"""
RETURN_RATE_OF_ALL = 400.0
"""The same for all subscriptions together, which share it."""
FEW_HOPS = 3
"""Levels of the ladder that such a delay is made of at the most: each costs RabbitMQ about half a publish.

Two would leave gaps of half a minute in which nothing of a small backlog is there to probe with.
"""
RETRY_AFTER_MAX = 86400.0

_ALL_DELAYS: Final = sorted({ladder.seconds_for(one) for one in range(1, int(2 * EJECTED_MAX) - 7)})
_DELAYS: Final = {
    True: [one for one in _ALL_DELAYS if one.bit_count() <= FEW_HOPS],
    False: _ALL_DELAYS,
}
"""Those that take few hops, and all."""
_A_MOMENT: Final = 0.01
"""Off a whole number of seconds: the ladder rounds up, and a float's error must not make it one more."""
_AT_ONCE: Final = 25.0
"""So many come back at one moment: some 10 ms of work."""
_GOLDEN: Final = (5**0.5 - 1) / 2


def retry_delay(policy: RetryPolicy, round_number: int, jitter: float) -> float | None:
    """Return the seconds to wait after round `round_number` (from 1), None when the schedule is spent."""
    if round_number > len(policy.schedule):
        return None
    return policy.schedule[round_number - 1] * (1 + policy.jitter * jitter)


def ejected_delay(deferrals: int, until_probe: float, jitter: float) -> float:
    """Return how long to put off, at the least, a delivery whose targets are all out of the rotation.

    Not before the next probe, and doubling from 20 s to 15 min with each deferral of the same delivery,
    so that a backlog of an hours-long outage costs the broker little.  The jitter adds up to as much
    again: what was put off at one moment comes back spread out, so that at any time something of a backlog is
    there to probe with.
    """
    doubled = min(EJECTED_BASE * 2.0 ** min(deferrals, 16), EJECTED_MAX)
    return max(until_probe, doubled) * (1 + abs(jitter))


def missed_delay(deferrals: int) -> float:
    """Return the seconds before another place in line is given to a delivery that has had so many.

    Its place was of no use, as the target took less than it had seemed to, or others came before; what is put off
    again and again soon costs the broker more than the delivery is worth.
    """
    return min(EJECTED_BASE * 2.0 ** (deferrals - 1), SLOT_MAX / 2) if deferrals else 0.0


class Returns:
    """The deliveries of one subscription that are to come back once its targets may be tried again.

    Each second has room for so many of them: neither the broker nor a target that is back is met by all at once,
    however fast they were put off.  Preferred are the delays that take few hops of the ladder.  Which
    seconds these lead to differs from second to second, so that hardly any stays unused.  `phase` (0..1) is which
    seconds a rate of less than one a second leaves out: it must differ from line to line.
    """

    __slots__ = ("_count", "_due", "_full", "_phase", "_second", "_tenth")

    def __init__(self, phase: float) -> None:
        self._phase = phase
        self._due: dict[int, int] = {}
        self._count = 0
        self._second = self._tenth = 0
        self._full: dict[bool, range] = {}

    def join(self, now: float, rate: float, soonest: float) -> float:
        """Return the seconds until one more delivery comes back, `soonest` or later; `rate` of them a second.

        A line too long for half an hour is spread over the second half of that.
        """
        self._forget(now)
        line = self._count / rate
        delay = None
        if line < 2 * EJECTED_MAX:
            delay = self._free(soonest, 2.0 * (soonest + line), rate, few_hops=True)
            delay = delay or self._free(soonest, 2.0 * EJECTED_MAX, rate, few_hops=False)
        if delay is None:
            late = [one for one in _DELAYS[True] if one >= max(soonest, EJECTED_MAX)]
            if not late:
                return soonest
            delay = min(late, key=lambda one: self._due.get(self._second + one, 0))
        second = self._second + delay
        self._due[second] = self._due.get(second, 0) + 1
        self._count += 1
        return delay - _A_MOMENT

    def is_empty(self, now: float) -> bool:
        """Tell whether all are back."""
        self._forget(now)
        return not self._due

    def _free(self, soonest: float, latest: float, rate: float, *, few_hops: bool) -> int | None:
        """Return the first delay that leads to a second with room; what is full is looked at once in a tenth."""
        delays = _DELAYS[few_hops]
        full = self._full.get(few_hops, range(0))
        begin = place = bisect_left(delays, soonest)
        if begin in full:
            begin, place = full.start, full.stop
        stop = bisect_right(delays, latest)
        while place < stop and not self._has_room(self._second + delays[place], rate):
            place += 1
        self._full[few_hops] = max(full, range(begin, place), key=len)
        return delays[place] if place < stop else None

    def _has_room(self, second: int, rate: float) -> bool:
        # What is put off in one part of a second comes back in the same part of another: each part has its share.
        rate = min(rate, max(_AT_ONCE, rate * (self._tenth + 1) / 10))
        # So many are a whole number, and `rate` on average: the broken rest goes to the seconds that the golden
        # ratio picks, which lie evenly for any share of them.
        room = int(rate) + ((second * _GOLDEN + self._phase) % 1.0 < rate % 1.0)
        return self._due.get(second, 0) < room

    def _forget(self, now: float) -> None:
        tenth = int(now % 1.0 * 10.0)
        if int(now) != self._second:
            self._second = int(now)
            self._due = {at: due for at, due in self._due.items() if at >= self._second}
            self._count = sum(self._due.values())
            self._full.clear()
        elif tenth != self._tenth:
            self._full.clear()
        self._tenth = tenth


class ReturnLines:
    """The lines of all subscriptions: how fast each may be, so that together they are not too fast.

    `replicas` share the rates.
    """

    __slots__ = ("_lines", "_looked_at", "_replicas")

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._lines: set[Returns] = set()
        self._looked_at = float("-inf")

    def rate(self, line: Returns, now: float) -> float:
        """Return how many deliveries a second may come back in a line that one more joins."""
        if now > self._looked_at + 1.0:
            self._lines = {one for one in self._lines if not one.is_empty(now)}
            self._looked_at = now
        self._lines.add(line)
        return min(RETURN_RATE, RETURN_RATE_OF_ALL / len(self._lines)) / self._replicas


class Line:
    """Places in line for a target that cannot take more now: one slot per delivery, in the future.

    A backlog so goes round the broker about once per delivery, instead of spinning.  A target that comes to
    take more, or less, has those places sooner, or later, that are given from then on.
    """

    __slots__ = ("_begin", "_next", "_rate")

    def __init__(self) -> None:
        self._begin = self._next = 0.0
        self._rate = 1.0

    def reserve(self, now: float, rate: float, not_before: float, draw: float) -> float:
        """Return the seconds until the next free slot after `not_before` (same clock as `now`).

        `rate` in deliveries a second; the slot lies 1 s to 10 min behind whichever is later.  A line
        longer than that is spread over the second half of the 10 min by `draw` (0..1).
        """
        start = max(now, not_before)
        places = max(0.0, self._next - max(now + SLOT_MIN, self._begin)) * self._rate
        self._begin, self._rate = start + SLOT_MIN, rate
        self._next = slot = self._begin + places / rate
        if slot > start + SLOT_MAX:
            return start + SLOT_MAX * (0.5 + 0.5 * draw) - now
        self._next = slot + 1.0 / rate
        return slot - now

    def is_taken(self, now: float) -> bool:
        """Tell whether there are places still to come that are taken."""
        return self._next > now


class TokenBucket:
    """A rate limit: `rate` attempts per second, bursts of up to one second's worth."""

    __slots__ = ("_filled_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.burst = max(1.0, rate)
        self._tokens = self.burst
        self._filled_at: float | None = None

    def take(self, now: float) -> bool:
        """Take one token; False when none is left."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def is_idle(self, now: float) -> bool:
        """Tell whether more could be taken than there is use for."""
        self._fill(now)
        return self._tokens >= self.burst - 1.0

    def _fill(self, now: float) -> None:
        if self._filled_at is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now

    def spend(self) -> None:
        """Take one token that must be had now; the next ones wait the longer."""
        self._tokens -= 1.0
