"""The delivery: the obligation to bring one event to one subscription; outcomes, decisions, `decide`.

Everything that can end or continue a delivery lives here.  An *outcome* is what one attempt observed;
a *decision* is what happens next.  Both are closed unions: callers match them and end in
`assert_never`.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from service.core.event import Event


class FailureKind(StrEnum):
    """Why an attempt got no complete answer."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    RESET = "reset"
    PROTOCOL = "protocol"


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
    target never saw the request, or not more than once, and one free repeat is due (RFC 9110, 9.2.2).
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
    SPLIT = "split"


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
