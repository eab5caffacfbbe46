"""The pace of a target that throttles: how many attempts a second it takes, learned from its answers.

What a target took between the first two times at which it throttled is where its pace begins.  The pace grows
all the time, so that a limit that was lifted is found out; one that stands is overstepped now and then, which
costs a pause and a part of the pace.  It grows the slower the longer the pauses are, since they cost the more.
It grows slowly around the limit of before and the faster the longer that is past, as the window of TCP CUBIC
does (RFC 9438); as a factor, since a limit may be one a minute or a thousand a second.
"""

import math

GROWTH_AT_FIRST = 2.0
GROWTH = 10.0
"""Pauses, each as long as the target asked for, in which its pace grows by the factor e; by e⁴ in twice as many."""
LESS = 0.9
MUCH_LESS = 0.5
"""What is left of the pace when it was too much; the smaller where it was at once, after the pause before."""
PACE_MIN = 0.1
"""Attempts a second that are made in any case."""
_GROWN = 50.0


class Pace:
    """Attempts a second, and how many of them may be made now: bursts of one second's worth.

    `rate` in attempts a second and `pause` in seconds, as seen at `now` (monotonic seconds).
    """

    __slots__ = ("_checked_at", "_from", "_pause", "_rate", "_stretch", "_tokens")

    def __init__(self, rate: float, pause: float, now: float) -> None:
        self._stretch = GROWTH_AT_FIRST
        self._begin(rate, pause, now)

    def _begin(self, rate: float, pause: float, now: float) -> None:
        self._rate = max(rate, PACE_MIN)
        self._pause = max(pause, 1.0)
        self._from = self._checked_at = now + pause
        self._tokens = 0.0

    def overstepped(self, pause: float, now: float) -> None:
        """Take in that the target throttles again, and asks for so many seconds."""
        lasted = now - self._from > self._pause
        self._begin(self.rate(now) * (LESS if lasted else MUCH_LESS), pause, now)
        self._stretch = GROWTH

    def rate(self, now: float) -> float:
        """Return the attempts a second that are believed to be welcome."""
        pauses = max(0.0, now - self._from) / self._pause
        return self._rate * math.exp(min((pauses / self._stretch) ** 2, _GROWN))

    def allows(self, now: float) -> bool:
        """Tell whether an attempt may be made now."""
        self._fill(now)
        return self._tokens >= 1.0

    def is_idle(self, now: float) -> bool:
        """Tell whether more could be made than there are attempts to make."""
        self._fill(now)
        return self._tokens >= self._burst(now) - 1.0

    def _burst(self, now: float) -> float:
        return max(1.0, self.rate(now))

    def _fill(self, now: float) -> None:
        earned = max(0.0, now - self._checked_at) * self.rate(now)
        self._tokens = min(self._burst(now), self._tokens + earned)
        self._checked_at = max(now, self._checked_at)

    def take(self) -> None:
        """Note that an attempt is made, whether it was allowed or not."""
        self._tokens -= 1.0
