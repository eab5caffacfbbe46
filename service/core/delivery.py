"""The delivery: the obligation to bring one event to one subscription; outcomes, decisions, `decide`.

Everything that can end or continue a delivery lives here.  An *outcome* is what one attempt observed;
a *decision* is what happens next.  Both are closed unions: callers match them and end in
`assert_never`.
"""

from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto
from typing import assert_never

from service.core import ladder
from service.core.event import Event
from service.core.schedule import RETRY_AFTER_MAX, ejected_delay, retry_delay
from service.core.subscription import RetryPolicy


class FailureKind(StrEnum):
    """Why an attempt got no complete answer."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    RESET = "reset"
    PROTOCOL = "protocol"
    LOCAL = "local"
    """Our own machine lacks something: it tells nothing of the target.

    Descriptors, ports, memory, or certificate files that can be used.
    """


@dataclass(frozen=True, slots=True)
class Answered:
    """The target gave a whole HTTP answer, or as much of it as is read.

    `retry_after` in seconds from the answer, already parsed from either form of the header and not
    negative; `body_start` the first characters of the body; `duration` in seconds.
    """

    status: int
    duration: float
    retry_after: float | None = None
    body_start: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """No complete answer came.

    `stale_connection` tells that a reused keep-alive connection died before one byte came back: the
    target never saw the request, or not more than once, and one free repeat is due (RFC 9110, 9.2.2).  So it is
    where this process was stopped until the answer would have been too late.
    """

    kind: FailureKind
    detail: str
    duration: float
    stale_connection: bool = False


@dataclass(frozen=True, slots=True)
class Forbidden:
    """The egress rules forbid the address (or port, or scheme); nothing was sent."""

    detail: str
    duration: float = 0.0


Outcome = Answered | Failed | Forbidden


class Reason(StrEnum):
    """Why a delivery became a dead letter."""

    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    GONE = "gone"
    REFUSED = "refused"
    FORBIDDEN_ADDRESS = "forbidden_address"
    SUBSCRIPTION_REMOVED = "subscription_removed"


class DeferCause(StrEnum):
    """Why a delivery was put off without spending a round."""

    SATURATED = "saturated"
    SLOW = "slow"
    EJECTED = "ejected"
    THROTTLED = "throttled"
    RATE_LIMITED = "rate_limited"
    PAUSED = "paused"
    UNKNOWN = "unknown_subscription"
    LOCAL = "local"
    UNPARKED = "dead_letters_refused"


class Burial(Enum):
    """What became of a dead letter that was to be parked."""

    DONE = auto()
    """The broker has it, durably."""
    REFUSED = auto()
    """Its queue takes none now: it is full, or cannot be written."""
    UNKNOWN = auto()
    """Nobody knows, nor ever will."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One past attempt, as a dead letter's history keeps it; `at` in Unix seconds."""

    at: float
    target: str
    status: int | None
    error: str | None
    duration_ms: int
    body_start: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one subscription, and how far it has come.

    `round` counts from 1; `attempts` over all rounds; `created_at` is when the dispatcher first saw the
    event and `first_attempt_at` is None until there was one (both Unix seconds); `history` holds the
    last attempts, oldest first.
    """

    event: Event
    subscription_id: str
    created_at: float
    round: int = 1
    attempts: int = 0
    deferrals: int = 0
    first_attempt_at: float | None = None
    not_before: float = 0.0
    history: tuple[Attempt, ...] = field(default=())

    @property
    def trips(self) -> int:
        """How often it went round the broker: each time that it was put off, and all its retries as one."""
        return self.deferrals + (self.round > 1)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The target took it (2xx)."""


@dataclass(frozen=True, slots=True)
class Failover:
    """The next target, in the same round, now."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same target once more, now: its connection had died before the request got through."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A later round, at `at` (Unix seconds)."""

    at: float


@dataclass(frozen=True, slots=True)
class Defer:
    """Put off until `at` (Unix seconds) without spending a round."""

    at: float
    cause: DeferCause


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Parked for good, until a person redrives it."""

    reason: Reason


Decision = Delivered | Failover | Repeat | Retry | Defer | DeadLetter

PAYLOAD_AT_FAULT = frozenset({400, 413, 422})
HISTORY_KEPT = 10


@dataclass(frozen=True, slots=True)
class RoundSoFar:
    """What the present round has seen, the outcome under judgement included.

    `others` tells whether another target could be tried now; `all_gone` and `all_forbidden` speak of
    every target of the subscription; `repeated`, that no repeat is left, or no time for one; `retry_after` is
    the longest that any target asked for, in seconds.
    """

    others: bool = False
    all_gone: bool = False
    all_forbidden: bool = False
    repeated: bool = False
    retry_after: float = 0.0


def decide(
    delivery: Delivery,
    outcome: Outcome,
    seen: RoundSoFar,
    policy: RetryPolicy,
    now: float,
    jitter: float,
) -> Decision:
    """Say what happens next to a delivery.  Total: every outcome has a decision.

    `now` in Unix seconds, `jitter` in -1..1.
    """
    match outcome:
        case Answered(status=status) if 200 <= status < 300:
            return Delivered()
        case Answered(status=status) if status in policy.permanent_statuses:
            return DeadLetter(Reason.REFUSED)
        case Answered(status=status) if status in PAYLOAD_AT_FAULT:
            return _end_round(delivery, seen, policy, now, jitter)
        case Failed(stale_connection=True) if not seen.repeated:
            return Repeat()
        case Failed(kind=FailureKind.LOCAL):
            return Defer(now + ejected_delay(delivery.deferrals, 0.0, jitter), DeferCause.LOCAL)
        case Answered() | Failed() | Forbidden():
            return Failover() if seen.others else _end_round(delivery, seen, policy, now, jitter)
        case _:
            assert_never(outcome)


def _end_round(
    delivery: Delivery, seen: RoundSoFar, policy: RetryPolicy, now: float, jitter: float
) -> Decision:
    if seen.all_gone:
        return DeadLetter(Reason.GONE)
    if seen.all_forbidden:
        return DeadLetter(Reason.FORBIDDEN_ADDRESS)
    delay = retry_delay(policy, delivery.round, jitter)
    if delay is None:
        return DeadLetter(Reason.EXHAUSTED)
    at = now + max(delay, min(seen.retry_after, RETRY_AFTER_MAX))
    if expires(delivery, policy, at):
        return DeadLetter(Reason.EXPIRED)
    return Retry(at)


def expires(delivery: Delivery, policy: RetryPolicy, at: float) -> bool:
    """Tell whether the delivery is past its maximum age at `at` (Unix seconds)."""
    return at > delivery.created_at + policy.max_age


def in_time(delivery: Delivery, policy: RetryPolicy, now: float, at: float) -> float:
    """Return when a delivery that is to be put off until `at` comes back (all Unix seconds).

    Not after it has expired: once more before, by what the ladder may be late, as long as that is seconds away.
    """
    end = delivery.created_at + policy.max_age
    last_look = end - ladder.lateness(end - now)
    return min(at, last_look if last_look > now + ladder.lateness(0.0) else end)


def after_attempt(delivery: Delivery, attempt: Attempt) -> Delivery:
    """Return the delivery with one more attempt in its history (the last ten are kept)."""
    return replace(
        delivery,
        attempts=delivery.attempts + 1,
        first_attempt_at=attempt.at
        if delivery.first_attempt_at is None
        else delivery.first_attempt_at,
        history=(*delivery.history, attempt)[-HISTORY_KEPT:],
    )


def describe(outcome: Outcome) -> tuple[int | None, str | None]:
    """Return the status and a short error text of an outcome; no error text for a 2xx."""
    match outcome:
        case Answered(status=status):
            return status, None if 200 <= status < 300 else f"status {status}"
        case Failed(kind=kind, detail=detail):
            return None, f"{kind}: {detail}"
        case Forbidden(detail=detail):
            return None, f"forbidden: {detail}"
        case _:
            assert_never(outcome)
