"""The event: an immutable record that something happened.

Whatever form a producer chose (`service.core.decode`), the rest of the program sees only this value.
The law here: `data` is the exact JSON text that will be sent, never a re-serialisation of it, so that
every attempt carries the same bytes and numbers keep their precision.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{16,256}")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, as a producer told it.

    `time` is RFC 3339 text as the producer wrote it and `time_unix` the same instant in Unix seconds.
    `data` is JSON text in UTF-8.  `extensions` are further CloudEvents attributes by lower-case name.
    `id_made` tells that the producer gave no id and the dispatcher made one.
    """

    id: str
    type: str
    source: str
    time: str
    time_unix: float
    data: bytes = field(repr=False)
    subject: str | None = None
    tenant: str | None = None
    data_content_type: str = "application/json"
    extensions: Mapping[str, str] = field(default_factory=dict)
    traceparent: str | None = None
    tracestate: str | None = None
    id_made: bool = False


def webhook_id(event: Event) -> str:
    """Return the idempotency key of an event: the same for every attempt, target and redrive.

    The event's own id where that is unique and safe by itself (16 to 256 characters of
    `A-Za-z0-9_-`); otherwise `evt_` and 40 hex digits of SHA-256 over source and id, because ids are
    unique only within their source (CloudEvents 1.0) and Standard Webhooks forbids a dot in an id.
    """
    if _SAFE_ID.fullmatch(event.id):
        return event.id
    digest = hashlib.sha256(f"{len(event.source)}:{event.source}:{event.id}".encode())
    return f"evt_{digest.hexdigest()[:40]}"


def trace_id(event: Event) -> str | None:
    """Return the 32 hex digits of the event's W3C trace id, if it carries a `traceparent`."""
    return event.traceparent[3:35] if event.traceparent else None
