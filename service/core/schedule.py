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

At most 254, as each second's count of them is a byte.

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
_FEW_HOP_DELAYS: Final = [one for one in _ALL_DELAYS if one.bit_count() <= FEW_HOPS]
_RING: Final = 2048
"""More seconds than the longest of these delays has."""
_FULL: Final = 0.95
"""The share of all places from which on no more are looked for: that takes longest where there are hardly any."""
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


def missed_delay(trips: int) -> float:
    """Return the seconds before another place in line is given to a delivery that has made so many trips.

    Its place was of no use, as the target took less than it had seemed to, or others came before; what is put off
    again and again soon costs the broker more than the delivery is worth.
    """
    return min(EJECTED_BASE * 3.0 ** (min(trips, 16) - 1), SLOT_MAX / 2) if trips else 0.0


class Returns:
    """The deliveries of one subscription that are to come back once its targets may be tried again.

    Each second has room for so many of them: neither the broker nor a target that is back is met by all at once,
    however fast they were put off.  Preferred are the delays that take few hops of the ladder.  Which
    seconds these lead to differs from second to second, so that hardly any stays unused.  `phase` (0..1) is which
    seconds a rate of less than one a second leaves out: it must differ from line to line.

    It takes 2 KiB while any are to come, however many.
    """

    __slots__ = ("_count", "_due", "_last", "_late", "_phase", "_second")

    def __init__(self, phase: float) -> None:
        self._phase = phase
        self._due = bytearray()  # how many come back in each second to come, in a ring
        self._count = 0
        self._second = 0
        self._last = 0
        self._late = 0

    def join(self, now: float, rate: float, soonest: float) -> float:
        """Return the seconds until one more delivery comes back, `soonest` or later; `rate` of them a second.

        What a line of half an hour leaves no room for is spread over the second half of that.
        """
        self._move_to(int(now))
        # What is put off in one part of a second comes back in the same part of another: each has its share.
        share = min(rate, max(_AT_ONCE, rate * (now % 1.0)))
        delay = None
        if self._count < _FULL * rate * _ALL_DELAYS[-1]:
            as_late = 2.0 * (soonest + self._count / rate)
            delay = self._first_with_room(_FEW_HOP_DELAYS, soonest, as_late, share)
            if delay is None:
                delay = self._first_with_room(_ALL_DELAYS, soonest, _ALL_DELAYS[-1], share)
        if delay is not None:
            self._due[(self._second + delay) % _RING] += 1
            self._count += 1
        else:
            first = bisect_left(_FEW_HOP_DELAYS, max(soonest, EJECTED_MAX))
            if first == len(_FEW_HOP_DELAYS):
                return soonest
            self._late += 1
            delay = _FEW_HOP_DELAYS[first + self._late % (len(_FEW_HOP_DELAYS) - first)]
        self._last = max(self._last, self._second + delay)
        return delay

    def let_go(self, now: float) -> bool:
        """Let go of what counts them, if all are back; tells whether they are."""
        if self._last >= now:
            return False
        self._due, self._count = bytearray(), 0
        return True

    def _first_with_room(
        self, delays: list[int], soonest: float, latest: float, rate: float
    ) -> int | None:
        """Return the first of these delays that leads to a second with room."""
        due, now, phase = self._due, self._second, self._phase
        # So many are a whole number, and `rate` on average: the broken rest goes to the seconds that the golden
        # ratio picks, which lie evenly for any share of them.
        room, rest = int(rate), rate % 1.0
        for delay in delays[bisect_left(delays, soonest) : bisect_right(delays, latest)]:
            taken = due[(now + delay) % _RING]
            if taken < room or (taken == room and ((now + delay) * _GOLDEN + phase) % 1.0 < rest):
                return delay
        return None

    def _move_to(self, second: int) -> None:
        """Forget those that are back."""
        if not self._due or second - self._second >= _RING:
            self._due, self._count = bytearray(_RING), 0
        else:
            for past in range(self._second, second):
                self._count -= self._due[past % _RING]
                self._due[past % _RING] = 0
        self._second = second


class ReturnLines:
    """The lines of all subscriptions: how fast each may be, so that together they are not too fast.

    `replicas` share the rates.
    """

    __slots__ = ("_lines", "_looked_at", "_replicas")

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._lines: set[Returns] = set()
        self._looked_at = float("-inf")

    def rate_with(self, line: Returns, now: float) -> float:
        """Count a line in, and return how many deliveries a second may come back in it."""
        if now > self._looked_at + 1.0:
            self._lines = {one for one in self._lines if not one.let_go(now)}
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

    __slots__ = ("_filled_at", "_tokens", "_unused", "burst", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.burst = max(1.0, rate)
        self._tokens = self.burst
        self._unused = (
            0.0  # of what was earned beyond the burst since the last one was taken, at most one
        )
        self._filled_at: float | None = None

    def take(self, now: float) -> bool:
        """Take one token; False when none is left."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self.spend()
        return True

    def is_idle(self, now: float) -> bool:
        """Tell whether more could be taken than there is use for: one by those in line, and one beside it."""
        self._fill(now)
        return self._tokens + self._unused >= max(self.burst - 1.0, 2.0)

    def _fill(self, now: float) -> None:
        if self._filled_at is not None:
            tokens = self._tokens + (now - self._filled_at) * self.rate
            self._tokens = min(self.burst, tokens)
            self._unused = min(1.0, self._unused + tokens - self._tokens)
        self._filled_at = now

    def spend(self) -> None:
        """Take one token that must be had now; the next ones wait the longer."""
        self._tokens -= 1.0
        self._unused = 0.0
