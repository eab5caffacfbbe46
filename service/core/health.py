"""Passive health of a target, as one process sees it.

Everything that affects whether a target may be tried lives here.  Learned from nginx (failures counted
from real traffic, no probes of our own), Envoy (consecutive failures, ejection time that grows) and
Finagle (one half-open probe at a time).  Time is an argument: `now` in monotonic seconds.

    healthy --5 failures in a row--> ejected --time is up--> probing --success--> healthy, ramping up
                                        ^                        |
                                        +-------- failure -------+

A target that throttles and takes something between its pauses is not ejected: it is given what it takes, at
a pace of its own (`pace.py`).  What else it refuses while a pause lasts tells nothing new.

The law: a target that answers again has its full weight within a minute, however long it was out, as
long as something for it comes by every few seconds and a probe fails within 20 s.  The longest window
and the ramp are 50 s.
"""

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit, urlunsplit

from service.core.delivery import Answered, DeferCause, Failed, FailureKind, Forbidden, Outcome
from service.core.pace import Pace
from service.core.subscription import Target

FAILURES_TO_EJECT = 5
EJECTION_BASE = 10.0
EJECTION_MAX = 25.0
EJECTION_JITTER = 0.2
PROBE_PAUSE = 5.0
RAMP = 20.0
RAMP_START = 10
FULL_WEIGHT = 100
SLOW_AFTER = 1.0
THROTTLE_MAX = 86400.0
THROTTLE_UNASKED = 1.0
"""Seconds that a target is left alone that answers 429 and does not say for how long, if it takes something else."""
PACE_SECONDS = 1.0
"""What was taken in less than that tells no pace."""
LATENCY_MIN = 0.005
"""Seconds: a target counts as no faster than that."""
_LATENCY_SMOOTHING = 0.2


class Change(StrEnum):
    """What an outcome did to a target's health; the log event of the same name tells it."""

    EJECTED = "target.ejected"
    RECOVERED = "target.recovered"
    THROTTLED = "target.throttled"
    GONE = "target.gone"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The target may not be tried before `until` (monotonic seconds; infinite when gone or drained)."""

    cause: DeferCause
    until: float


def is_health_failure(outcome: Outcome) -> bool:
    """Tell whether an outcome counts against the target.

    Transport errors, 5xx and 429 do, and any other failure by which the target asks for a pause.
    """
    match outcome:
        case Answered(status=status, retry_after=asked):
            return status >= 500 or status == 429 or (status >= 300 and bool(asked))
        case Failed():
            return not _is_ours(outcome)
        case Forbidden():
            return False


def _is_ours(outcome: Outcome) -> bool:
    """Tell whether an attempt failed for a lack of our own, or as its connection had been idle for too long.

    Neither tells anything of the target.
    """
    return isinstance(outcome, Failed) and (
        outcome.kind is FailureKind.LOCAL or outcome.stale_connection
    )


def _shown(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")
    ), parts.hostname or ""


class TargetState:
    """What a process knows of one target: rotation, health, load.

    `current` is the running value of smooth weighted round-robin; `latency` a moving average of whole
    attempts in seconds (None before the first); `pace` is there for one that throttles; `label` is the URL as logs may show it, without
    userinfo and query, and `host` its host.  `members` belongs to whoever writes log lines.
    """

    __slots__ = (
        "_next_start",
        "_starts",
        "_taken",
        "_throttles_from",
        "_was_taking",
        "current",
        "ejected_since",
        "ejected_until",
        "ejections",
        "failures",
        "gone",
        "host",
        "label",
        "latency",
        "members",
        "pace",
        "probe",
        "ramp_from",
        "target",
        "throttled_until",
    )

    def __init__(self, target: Target) -> None:
        self.target = target
        self.label, self.host = _shown(target.url)
        self.members = b""
        self.current = 0
        self.failures = 0
        self.ejections = 0
        self.ejected_since: float | None = None
        self.ejected_until: float | None = None
        self.probe: int | None = None
        self.ramp_from = float("-inf")
        self.throttled_until = 0.0
        self.gone = False
        self.latency: float | None = None
        self.pace: Pace | None = None
        self._throttles_from: float | None = None
        self._was_taking = False
        self._taken = 0
        self._starts: dict[int, float] = {}
        self._next_start = 0

    @property
    def in_flight(self) -> int:
        """Return how many attempts are under way."""
        return len(self._starts)

    def busy_for(self, now: float) -> float:
        """Return for how many seconds the oldest attempt under way has been unanswered."""
        return now - next(iter(self._starts.values())) if self._starts else 0.0

    @property
    def health(self) -> str:
        """Return one word for people: `healthy`, `ejected`, `probing` or `gone`."""
        if self.gone:
            return "gone"
        if self.ejected_until is None:
            return "healthy"
        return "ejected" if self.probe is None else "probing"

    def is_ejected(self, now: float) -> bool:
        """Tell whether the target is out of the rotation, and no probe of it is due."""
        return self.ejected_until is not None and now < self.ejected_until

    def ejected_for(self, now: float) -> float:
        """Return for how many seconds the target has been out of the rotation, probes included."""
        return 0.0 if self.ejected_since is None or self.gone else now - self.ejected_since

    def unavailable(self, now: float) -> Unavailable | None:
        """Return why the target may not be tried now, or None if it may."""
        if self.gone or self.target.weight == 0:
            return Unavailable(DeferCause.PAUSED, float("inf"))
        if self.ejected_until is not None:
            # One that throttles as well is still ejected: a place in line would be taken again and again.
            until = max(self.ejected_until, self.throttled_until)
            if now < until:
                return Unavailable(DeferCause.EJECTED, until)
            if self.probe is not None:
                return Unavailable(DeferCause.EJECTED, now + EJECTION_BASE)
        return self._in_the_way(now)

    def _in_the_way(self, now: float) -> Unavailable | None:
        """Return what keeps an attempt from a target that is healthy, or may be."""
        if now < self.throttled_until:
            return Unavailable(DeferCause.THROTTLED, self.throttled_until)
        if len(self._starts) >= self.target.max_in_flight:
            return Unavailable(DeferCause.SATURATED, now)
        if self.pace is not None and not self._is_in_pace(self.pace, now):
            return Unavailable(DeferCause.THROTTLED, now)
        return None

    def known_pace(self, now: float) -> float | None:
        """Return the attempts a second that a target which throttles is given, None where that is no bound."""
        rate = None if self.pace is None else self.pace.rate(now)
        return rate if rate is not None and rate < self._fastest(now) else None

    def throttles_unmeasured(self, now: float) -> bool:
        """Tell whether the target has asked for a pause and what it takes is not known."""
        return now < self.throttled_until and self.known_pace(now) is None

    def _is_in_pace(self, pace: Pace, now: float) -> bool:
        if self.known_pace(now) is not None:
            return pace.allows(now)
        if pace.rate(now) >= self.target.max_in_flight / max(self.latency or 0.0, LATENCY_MIN):
            self.pace = None  # it has grown until it no longer matters, and not only while an answer is late
        return True

    def effective_weight(self, now: float) -> int:
        """Return the weight in hundredths: a recovered target ramps up from a tenth over 20 s."""
        since = now - self.ramp_from
        if since >= RAMP:
            return self.target.weight * FULL_WEIGHT
        return self.target.weight * max(int(FULL_WEIGHT * since / RAMP), RAMP_START)

    def is_slow(self, now: float) -> bool:
        """Tell whether the target answers slowly, or has left an attempt unanswered for long."""
        if self.latency is not None and self.latency > SLOW_AFTER:
            return True
        return self.busy_for(now) > SLOW_AFTER

    def capacity(self, now: float) -> float:
        """Return the attempts a second that the target can take, judged by its latency and its pace."""
        return self.known_pace(now) or self._fastest(now)

    def _fastest(self, now: float) -> float:
        seconds = max(self.latency or 0.0, self.busy_for(now), LATENCY_MIN)
        return self.target.max_in_flight / seconds

    def begin(self, now: float) -> int:
        """Note that an attempt starts; give the number back to `end`."""
        ticket = self._next_start
        self._next_start += 1
        self._starts[ticket] = now
        if self.ejected_until is not None:
            self.probe = ticket
        if self.pace is not None:
            self.pace.take()
        return ticket

    def abandon(self, ticket: int) -> None:
        """Note that an attempt was cut off by ourselves: it tells nothing about the target."""
        self._starts.pop(ticket, None)
        self._was_probe(ticket)

    def _was_probe(self, ticket: int) -> bool:
        if self.probe != ticket:
            return False
        self.probe = None
        return True

    def end(self, ticket: int, outcome: Outcome, now: float, jitter: float) -> Change | None:
        """Take in what an attempt observed; `jitter` lies in -1..1 and spreads ejection times."""
        started = self._starts.pop(ticket)
        was_probe = self._was_probe(ticket)
        if isinstance(outcome, Forbidden) or _is_ours(outcome):
            return None
        self._note_latency(now - started)
        if isinstance(outcome, Answered) and outcome.status == 410:
            self.gone = True
            return Change.GONE
        if self._is_told_already(outcome, now):
            return None
        change = self._throttle(outcome, now)
        if is_health_failure(outcome):
            probe_began = started if was_probe else None
            return self._count_failure(now, jitter, probe_began) or change
        return self._count_success(now) or change

    def _note_latency(self, seconds: float) -> None:
        if self.latency is None:
            self.latency = seconds
        else:
            self.latency += _LATENCY_SMOOTHING * (seconds - self.latency)

    def _is_told_already(self, outcome: Outcome, now: float) -> bool:
        """Tell whether this is one more refusal in the pause of a target that takes something between."""
        pause = self._pause(outcome, now)
        if not self._was_taking or now >= self.throttled_until or not pause:
            return False
        self.throttled_until = max(self.throttled_until, now + pause)
        return True

    def _pause(self, outcome: Outcome, now: float) -> float:
        """Return for how many seconds an answer has the target left alone."""
        if not isinstance(outcome, Answered) or 200 <= outcome.status < 300:
            return 0.0
        is_taking = self._taken > 0 or (self._was_taking and now < self.throttled_until)
        unasked = THROTTLE_UNASKED if outcome.status == 429 and is_taking else 0.0
        return min(outcome.retry_after or unasked, THROTTLE_MAX)

    def _throttle(self, outcome: Outcome, now: float) -> Change | None:
        pause = self._pause(outcome, now)
        if not pause:
            return None
        was_throttled = now < self.throttled_until
        self.throttled_until = max(self.throttled_until, now + pause)
        if was_throttled:
            return None
        self._learn_pace(pause, now)
        return Change.THROTTLED

    def _learn_pace(self, pause: float, now: float) -> None:
        """Begin with what was taken since it first throttled, and take some off each time from then on."""
        self._was_taking = self._taken > 0
        if self.pace is not None:
            self.pace.overstepped(pause, now)
        elif self._throttles_from is not None and self._was_taking:
            lasted = max(now - self._throttles_from, PACE_SECONDS)
            self.pace = Pace(self._taken / lasted, pause, now)
        self._throttles_from, self._taken = now, 0

    def _count_failure(self, now: float, jitter: float, probe_began: float | None) -> Change | None:
        self.failures += 1
        if self.ejected_until is not None and probe_began is None:
            return None  # it began before the ejection, which it must not lengthen
        if self.ejected_until is None and self.failures < FAILURES_TO_EJECT:
            return None
        self.ejections += 1
        # It takes nothing: what it takes when it is back may be something else.
        self.pace = self._throttles_from = None
        if self.ejected_since is None:
            self.ejected_since = now
        length = min(EJECTION_BASE * self.ejections, EJECTION_MAX) * (1 + EJECTION_JITTER * jitter)
        # A probe that hung for long has used up some of the next window, but not all of it.
        began = now if probe_began is None else probe_began
        self.ejected_until = max(began + length, now + PROBE_PAUSE)
        return Change.EJECTED

    def _count_success(self, now: float) -> Change | None:
        self.failures = 0
        self._taken += 1
        if self.ejected_until is None:
            self.ejections = self.ejections if now - self.ramp_from < RAMP else 0
            return None
        self.ejected_since = self.ejected_until = None
        self.ramp_from = now
        return Change.RECOVERED
