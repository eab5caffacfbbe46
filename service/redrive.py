"""Dead letters and rejected events for people: which ones are meant, how they look, back to work.

A redriven delivery starts again with its first round, keeps its history, and carries the same
`webhook-id`, so that a receiver that had taken it after all can drop it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson

from service.broker import codec
from service.broker.parked import Parked, Place, Stays
from service.broker.rejected import (
    can_be_restored,
    has_state,
    read_rejected,
    restored_properties,
)
from service.broker.topology import Names
from service.core.delivery import Attempt
from service.core.event import webhook_id
from service.core.matching import MatchIndex
from service.core.subscription import Subscription
from service.errors import EventRejected
from service.log import rfc3339

DATA_SHOWN = 65_536
MAX_KEY = 255
"""Bytes of a routing key (AMQP 0-9-1)."""

UNREADABLE = "unreadable"
"""The reason of a message in the dead-letter queue that the dispatcher did not write."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which parked messages are meant; None means any.  `since` and `until` in Unix seconds."""

    subscription: str | None = None
    event_type: str | None = None
    reason: str | None = None
    since: float | None = None
    until: float | None = None
    event_id: str | None = None

    def fits(self, told: dict[str, Any], at: float | None) -> bool:
        """Tell whether a message is meant; `at` is when it was parked."""
        return (
            self.subscription in (None, told.get("subscription_id"))
            and self._type_fits(told.get("event_type"))
            and self.reason in (None, told["reason"])
            and self.event_id in (None, told.get("event_id"))
            and (self.since is None or (at is not None and at >= self.since))
            and (self.until is None or (at is not None and at < self.until))
        )

    def _type_fits(self, event_type: str | None) -> bool:
        if self.event_type is None:
            return True
        pattern = Subscription(id="wanted", event_types=(self.event_type,), targets=())
        return event_type is not None and bool(MatchIndex((pattern,)).match(event_type))


Tell = Callable[[Parked, bool], tuple[dict[str, Any], float | None]]
"""Returns what is known of a parked message (with everything, if asked) and when it was parked."""


def tell_dead_letter(parked: Parked, everything: bool) -> tuple[dict[str, Any], float | None]:  # noqa: FBT001 - one call site each
    """Return a dead letter as it is listed; with `everything`, its history and data too."""
    try:
        dead = codec.read_dead_letter(parked.properties.headers, parked.body)
    except EventRejected as rejection:
        return {"reason": UNREADABLE, "detail": rejection.detail}, None
    delivery, last = dead.delivery, dead.delivery.history[-1:]
    told: dict[str, Any] = {
        "event_id": delivery.event.id,
        "event_type": delivery.event.type,
        "subscription_id": delivery.subscription_id,
        "reason": dead.reason.value,
        "attempts": delivery.attempts,
        "first_attempt_at": _maybe_time(delivery.first_attempt_at),
        "dead_lettered_at": rfc3339(dead.at),
        "last_status": last[0].status if last else None,
        "last_error": last[0].error if last else None,
    }
    if everything:
        told |= {
            "webhook_id": webhook_id(delivery.event),
            "source": delivery.event.source,
            "subject": delivery.event.subject,
            "tenant": delivery.event.tenant,
            "time": delivery.event.time,
            "history": [_told_attempt(attempt) for attempt in delivery.history],
            **_shown("data", parked.body),
        }
    return told, dead.at


def tell_rejected(parked: Parked, everything: bool) -> tuple[dict[str, Any], float | None]:  # noqa: FBT001
    """Return a rejected event as it is listed; with `everything`, its properties and body too."""
    rejected = read_rejected(parked.properties, parked.routing_key, parked.body)
    told: dict[str, Any] = {
        "event_id": rejected.event_id,
        "event_type": parked.properties.message_type or rejected.routing_key,
        "reason": rejected.reason,
        "detail": rejected.detail,
        "rejected_at": rejected.rejected_at,
        "routing_key": rejected.routing_key,
        "bytes": len(parked.body),
    }
    if everything:
        told |= {
            "content_type": parked.properties.content_type,
            "app_id": parked.properties.app_id,
            "headers": {
                name: str(value) for name, value in (parked.properties.headers or {}).items()
            },
            **_shown("body", parked.body),
        }
    return told, _unix(rejected.rejected_at)


def redrive_dead_letter(names: Names, now: float) -> Callable[[Parked], Place]:
    """Return where a dead letter goes: to the backlog lane, as a delivery at its beginning."""

    def route(parked: Parked) -> Place:
        dead = codec.read_dead_letter(parked.properties.headers, parked.body)
        fresh = replace(dead.delivery, created_at=now, round=1, deferrals=0, not_before=0.0)
        return Place(names.deliveries, "", codec.delivery_properties(fresh))

    return route


def redrive_rejected(names: Names) -> Callable[[Parked], Place | Stays]:
    """Return where a rejected event goes: to the intake, as it first came; a delivery to its lane."""

    def route(parked: Parked) -> Place | Stays:
        if not can_be_restored(parked.properties):
            return Stays()
        properties = restored_properties(parked.properties)
        if has_state(parked.properties.headers or {}):
            return Place(names.deliveries, "", properties)
        rejected = read_rejected(parked.properties, parked.routing_key, parked.body)
        # A key that is no text grows beyond what AMQP carries when it is written as text.
        fits = len(rejected.routing_key.encode()) <= MAX_KEY
        return Place(names.intake, rejected.routing_key if fits else "", properties)

    return route


def _told_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": rfc3339(attempt.at),
        "target": attempt.target,
        "status": attempt.status,
        "error": attempt.error,
        "duration_ms": attempt.duration_ms,
        "response_body_start": attempt.body_start,
    }


def _shown(name: str, body: bytes) -> dict[str, Any]:
    """Return JSON as it is, anything else as text and why: of what is long, the start."""
    if len(body) > DATA_SHOWN:
        why = f"it has {len(body)} bytes, of which these are the first {DATA_SHOWN}"
    else:
        try:
            data = orjson.loads(body)
            orjson.dumps([[data]])  # it reads what is nested deeper than it writes
        except orjson.JSONDecodeError:
            why = "it is no JSON"
        except orjson.JSONEncodeError:
            why = "it is nested too deep to be written as JSON again"
        else:
            return {name: data}
    text = body[:DATA_SHOWN].decode(errors="backslashreplace")
    return {name: text, f"{name}_as_text": why}


def _maybe_time(unix: float | None) -> str | None:
    return None if unix is None else rfc3339(unix)


def _unix(text: str | None) -> float | None:
    try:
        return None if text is None else datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
