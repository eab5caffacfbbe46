"""The wire form of a rejected event: its own, as far as it can be kept, and why it was rejected.

Two park such messages.  The dispatcher writes headers of its own and takes off the broker's; the broker writes
`x-death` and nothing of ours.  So it shows which of the two it was, and what a producer wrote into headers of
those names is told from what we did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pamqp.commands import Basic
from pamqp.common import FieldTable, FieldValue

from service.broker.codec import STATE, SUBSCRIPTIONS, new_id
from service.broker.wire import UNDECODABLE, Undecodable, packed_table
from service.core import ladder
from service.errors import EventRejected
from service.log import rfc3339

REASON = "x-rejected-reason"
DETAIL = "x-rejected-detail"
REJECTED_AT = "x-rejected-at"
REJECTED_ID = "x-rejected-event-id"
ROUTING_KEY = "x-rejected-routing-key"
MESSAGE_ID = "x-rejected-message-id"
POISON = "poison"
EXPIRED = "expired"

BACKLOG = ".deliveries"
"""How the name of the one queue ends whose messages have a state that the dispatcher wrote."""

_OURS = (
    *(STATE, SUBSCRIPTIONS, REASON, DETAIL, REJECTED_AT, REJECTED_ID, ROUTING_KEY, MESSAGE_ID),
    UNDECODABLE,
)
_BROKERS = frozenset(
    (
        *("x-death", "x-delivery-count", "x-acquired-count"),
        *("x-first-death-queue", "x-first-death-reason", "x-first-death-exchange"),
        *("x-last-death-queue", "x-last-death-reason", "x-last-death-exchange"),
        *("CC", "BCC"),
    )
)
"""Headers that RabbitMQ writes, and those by which it would send a copy elsewhere."""
_HEADER_ROOM = 64 * 1024
_AGAIN_ROOM = 120 * 1024
"""Bytes of a parked message's headers that can be written again: what goes with them fits into the frame too."""
_DEPTH = 100
_DETAIL_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected message as it lies in the queue."""

    reason: str
    detail: str
    rejected_at: str | None
    event_id: str | None
    routing_key: str
    body: bytes


def rejected_properties(
    original: Basic.Properties,
    routing_key: str,
    rejection: EventRejected,
    at: float,
    *,
    keep_state: bool = False,
) -> Basic.Properties:
    """Return the properties of a rejected event: its own, as far as they can be kept, and why.

    `keep_state` for a delivery of ours that cannot be read; a producer's header of that name is dropped.
    """
    headers: dict[str, FieldValue] = {
        REASON: rejection.reason,
        DETAIL: rejection.detail[:_DETAIL_KEPT],
        REJECTED_AT: rfc3339(at),
        ROUTING_KEY: routing_key,
    }
    if rejection.event_id:
        headers[REJECTED_ID] = rejection.event_id[:_DETAIL_KEPT]
    if isinstance(original.headers, Undecodable):
        headers[UNDECODABLE] = original.headers.reason
    dropped = _OURS[2:] if keep_state else _OURS
    return _with_own_id(original, headers, dropped=dropped, room=_HEADER_ROOM)


def can_be_written_again(original: Basic.Properties) -> bool:
    """Tell whether a parked message can be published with all of its headers: none may be lost on the way."""
    headers = original.headers or {}
    return not isinstance(headers, Undecodable) and _fits(headers, _AGAIN_ROOM)


def can_be_restored(original: Basic.Properties) -> bool:
    """Tell whether a parked message can go back to work as what it was.

    One whose properties could not be decoded has lost its id, its tenant and whatever else they said: without them
    it would be another event.
    """
    headers = original.headers or {}
    was_undecodable = UNDECODABLE in headers and not _came_by_broker(headers)
    return can_be_written_again(original) and not was_undecodable


def restored_properties(original: Basic.Properties) -> Basic.Properties:
    """Return the properties with which a rejected message goes back to work: those it first had."""
    headers = original.headers or {}
    # A delivery comes back at once, whatever delay it once took.
    dropped = (*_OURS[2:], *ladder.HEADERS) if has_state(headers) else _OURS
    restored = _carried_over(original, {}, dropped=dropped, room=_AGAIN_ROOM)
    message_id = None if _came_by_broker(headers) else headers.get(MESSAGE_ID)
    if isinstance(message_id, str):
        restored.message_id = message_id
    return restored


def parked_again(original: Basic.Properties, routing_key: str, body: bytes) -> Basic.Properties:
    """Return the properties with which a parked message goes back to the tail of its own queue.

    What the broker's own headers tell of a message that it parked itself is written down as ours.
    """
    theirs = original.headers or {}
    if not _came_by_broker(theirs):
        return _with_own_id(original, {}, dropped=(), room=_AGAIN_ROOM)
    told = read_rejected(original, routing_key, body)
    headers: dict[str, FieldValue] = {
        REASON: told.reason,
        DETAIL: told.detail,
        ROUTING_KEY: routing_key,
    }
    if told.rejected_at:
        headers[REJECTED_AT] = told.rejected_at
    dropped = _OURS[2:] if has_state(theirs) else _OURS
    return _with_own_id(original, headers, dropped=dropped, room=_AGAIN_ROOM)


def _came_by_broker(headers: FieldTable) -> bool:
    """Tell whether the broker itself parked a message, so that what it tells of us may be a producer's word.

    The dispatcher takes the broker's headers off whatever it parks.
    """
    return "x-death" in headers


def has_state(headers: FieldTable) -> bool:
    """Tell whether a rejected message carries the state of a delivery, and one that the dispatcher wrote.

    A producer can write such a header as well: that of an event which the broker parks is not to be believed.
    """
    if STATE not in headers or not _came_by_broker(headers):
        return STATE in headers
    latest = _latest_death(headers)
    return str(latest.get("queue")).endswith(BACKLOG)


def _with_own_id(
    original: Basic.Properties, headers: dict[str, FieldValue], *, dropped: Sequence[str], room: int
) -> Basic.Properties:
    """Return properties with a message id of their own; the original's is kept in a header."""
    theirs = original.headers or {}
    if original.message_id and (MESSAGE_ID not in theirs or MESSAGE_ID in dropped):
        headers[MESSAGE_ID] = original.message_id
    kept = _carried_over(original, headers, dropped=dropped, room=room)
    kept.message_id = new_id()
    return kept


def read_rejected(properties: Basic.Properties, routing_key: str, body: bytes) -> Rejected:
    """Return a rejected event; one that the broker itself parked is `too_large` or `poison`."""
    headers = properties.headers or {}
    if _came_by_broker(headers) or REASON not in headers:
        reason, detail = _parked_by_broker(headers, body)
        at, given = _death_time(headers), properties.message_id
        return Rejected(reason, detail, at, given, routing_key, body)
    event_id = headers.get(REJECTED_ID, headers.get(MESSAGE_ID, properties.message_id))
    return Rejected(
        _text(headers.get(REASON), ""),
        _text(headers.get(DETAIL), ""),
        _text(headers.get(REJECTED_AT), "") or None,
        event_id if isinstance(event_id, str) else None,
        _text(headers.get(ROUTING_KEY), routing_key),
        body,
    )


def _text(value: FieldValue, default: str) -> str:
    return value if isinstance(value, str) else default


def _parked_by_broker(headers: FieldTable, body: bytes) -> tuple[str, str]:
    """Return reason and detail of what the broker parked, from its latest reason to do so."""
    match _latest_death(headers).get("reason"):
        case "rejected":
            return "too_large", f"the body has {len(body)} bytes"
        case None:
            return POISON, "put here by neither the dispatcher nor the broker"
        case "expired":
            return (
                EXPIRED,
                "its producer gave it an expiration, and it had passed before it was read",
            )
        case _:
            return (
                POISON,
                "delivered again and again without being settled, and parked by the broker",
            )


def _death_time(headers: FieldTable) -> str | None:
    time = _latest_death(headers).get("time")
    return rfc3339(time.timestamp()) if isinstance(time, datetime) else None


def _latest_death(headers: FieldTable) -> FieldTable:
    """Return why and where the broker dead-lettered a message last; it writes that in front of the others."""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return latest if isinstance(latest, dict) else {}


def _carried_over(
    original: Basic.Properties, ours: dict[str, FieldValue], *, dropped: Sequence[str], room: int
) -> Basic.Properties:
    theirs = {
        name: value
        for name, value in (original.headers or {}).items()
        if name not in dropped and name not in _BROKERS
    }
    if not _fits(theirs, room):
        theirs = {}
        if DETAIL in ours:
            ours[DETAIL] = _text(ours[DETAIL], "") + " (its headers could not be kept)"
    return Basic.Properties(
        content_type=original.content_type,
        content_encoding=original.content_encoding,
        headers=theirs | ours,
        delivery_mode=2,
        correlation_id=original.correlation_id,
        message_id=original.message_id or new_id(),
        timestamp=original.timestamp,
        message_type=original.message_type,
        app_id=original.app_id,
    )


def _fits(headers: FieldTable, room: int) -> bool:
    try:
        return not _is_deeper(headers, _DEPTH) and len(packed_table(headers)) <= room
    except (TypeError, ValueError, OverflowError, RecursionError, AttributeError):
        return False


def _is_deeper(value: FieldValue, levels: int) -> bool:
    """Tell whether tables and arrays lie in each other more than so many times."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(one, levels - 1) for one in inner)
