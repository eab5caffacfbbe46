"""The subscription: who wants which events, where they go, and under which policy.

Plain values, already validated: whatever reads them from a file (`service.subscriptions`) has turned
texts into seconds, checked names and read secrets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Balance(StrEnum):
    """How the next target is chosen."""

    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    WEIGHTED_RANDOM = "weighted_random"
    FAILOVER = "failover"


class Format(StrEnum):
    """What the body of the webhook request looks like."""

    STANDARD = "standard"
    CLOUDEVENTS_BINARY = "cloudevents-binary"
    CLOUDEVENTS_STRUCTURED = "cloudevents-structured"
    RAW = "raw"


class Scheme(StrEnum):
    """How a request is signed."""

    STANDARD = "standard"
    ED25519 = "ed25519"
    HUB_SHA256 = "hub-sha256"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Target:
    """One URL of a subscription.

    `weight` 0 drains the target: it is picked no more.  `max_in_flight` bounds its concurrent attempts
    in one process.  A `backup` serves only when no other target is eligible.
    """

    url: str
    weight: int = 1
    max_in_flight: int = 32
    backup: bool = False


@dataclass(frozen=True, slots=True)
class Signing:
    """The scheme and the key material; all `keys` sign, so that a secret can be rotated.

    A key is the decoded bytes: the HMAC key, or the 32-byte seed of an ed25519 private key.
    """

    scheme: Scheme = Scheme.STANDARD
    keys: tuple[bytes, ...] = field(default=(), repr=False)


STANDARD_SCHEDULE = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Standard Webhooks 1.0.0: seconds between the rounds, the first (immediate) round left out."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed round is followed by another.

    `schedule` and `max_age` in seconds, `jitter` as the share (0 to 1) by which a delay may differ either
    way, `permanent_statuses` are answers after which no retry makes sense.
    """

    schedule: tuple[float, ...] = STANDARD_SCHEDULE
    jitter: float = 0.2
    max_age: float = 432000.0
    permanent_statuses: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the CA to trust instead of the system's, and a client certificate."""

    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """Who wants which events, and how they are brought there.

    `timeout` (connect to last byte) and `connect_timeout` in seconds for one attempt, `rate_limit` in
    attempts per second or None.  A subscription that is not `enabled` defers its deliveries.
    """

    id: str
    event_types: tuple[str, ...]
    targets: tuple[Target, ...]
    description: str = ""
    enabled: bool = True
    tenant: str | None = None
    filter: str | None = None
    balance: Balance = Balance.WEIGHTED_ROUND_ROBIN
    format: Format = Format.STANDARD
    signing: Signing = Signing()
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 15.0
    connect_timeout: float = 5.0
    retry: RetryPolicy = RetryPolicy()
    rate_limit: float | None = None
    tls: TlsFiles = TlsFiles()
