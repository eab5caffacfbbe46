"""The wire form of a delivery and of a dead letter.

The body of a delivery message is the event's data, byte for byte.  Everything else is in headers:
`x-delivery` holds the state as JSON (the law), the rest repeats a part of it for people with a broker's
console.  Headers stay far below a frame (128 KiB), because a larger one makes the broker hang up.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any, Final

import orjson
from pamqp.commands import Basic
from pamqp.common import FieldValue

from service.core.delivery import Attempt, Delivery, Reason
from service.core.event import Event
from service.errors import EventRejected
from service.log import rfc3339

STATE = "x-delivery"
SUBSCRIPTIONS = "x-subscriptions"
_STATE_ROOM = 96 * 1024
"""Bytes of a state that is read: more than any event's attributes with ten attempts come to, less than a frame."""
_ID_ROOM = 1024
"""Characters of an id or a type, each of which stands in a header of its own as well."""
_BODY_START_KEPT = 256


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A dead letter as it lies in the queue; `at` in Unix seconds."""

    delivery: Delivery
    reason: Reason
    at: float


def delivery_properties(
    delivery: Delivery, way: Mapping[str, str] = MappingProxyType({})
) -> Basic.Properties:
    """Return the properties of a message that carries one delivery; `way` are the ladder's headers."""
    return _properties({**_told(delivery), STATE: _state_text(delivery), **way})


def split_properties(delivery: Delivery, subscription_ids: Sequence[str]) -> Basic.Properties:
    """Return the properties of a message that carries one event for many subscriptions."""
    return _properties({STATE: _state_text(delivery), SUBSCRIPTIONS: ",".join(subscription_ids)})


def dead_properties(delivery: Delivery, reason: Reason, at: float) -> Basic.Properties:
    """Return the properties of a dead letter."""
    state = _state(delivery) | {"reason": reason.value, "dead_lettered_at": at}
    told = _told(delivery) | {"reason": reason.value, "dead-lettered-at": rfc3339(at)}
    return _properties(told | {STATE: orjson.dumps(state).decode()})


def read_deliveries(headers: Mapping[str, Any] | None, body: bytes) -> list[Delivery]:
    """Return the deliveries of a message from the backlog lane: one, or one for each of a split.

    Raises EventRejected (`invalid_envelope`) for a message that the dispatcher did not write.
    """
    try:
        told = headers or {}
        state = orjson.loads(_within_bounds(told[STATE]))
        ids = (
            str(told[SUBSCRIPTIONS]).split(",")
            if SUBSCRIPTIONS in told
            else [state["subscription_id"]]
        )
        event = _event(state["event"], body)
        return [_delivery(state, event, subscription_id) for subscription_id in ids]
    except (KeyError, TypeError, ValueError) as error:
        raise EventRejected(
            "invalid_envelope", f"no delivery of this dispatcher: {type(error).__name__} {error}"
        ) from error


def _within_bounds(state: str) -> str:
    """Return the state; raises ValueError for one that would not fit into a frame when it is published again."""
    if len(state) > _STATE_ROOM // 4 and len(str(state).encode()) > _STATE_ROOM:
        raise ValueError(f"the state has more than {_STATE_ROOM} bytes")
    return state


def read_dead_letter(headers: Mapping[str, Any] | None, body: bytes) -> DeadLettered:
    """Return a dead letter; raises EventRejected for a message that the dispatcher did not write."""
    delivery = read_deliveries(headers, body)[0]
    try:
        state = orjson.loads((headers or {})[STATE])
        at = _checked(state, {"dead_lettered_at": _TIME})["dead_lettered_at"]
        return DeadLettered(delivery, Reason(state["reason"]), at)
    except (KeyError, TypeError, ValueError) as error:
        raise EventRejected("invalid_envelope", f"no dead letter: {error}") from error


def new_id() -> str:
    """Return a message id; two publishes in flight with one would swap their confirms in the library."""
    return f"{random.getrandbits(128):032x}"  # it need not be a secret, and takes a quarter of a UUID's time


def _properties(headers: dict[str, FieldValue]) -> Basic.Properties:
    return Basic.Properties(
        content_type="application/json",
        delivery_mode=2,
        message_id=new_id(),
        headers=headers,
    )


def _told(delivery: Delivery) -> dict[str, FieldValue]:
    return {
        "event-id": delivery.event.id,
        "event-type": delivery.event.type,
        "subscription-id": delivery.subscription_id,
        "round": delivery.round,
    }


def _state_text(delivery: Delivery) -> str:
    return orjson.dumps(_state(delivery)).decode()


def _state(delivery: Delivery) -> dict[str, Any]:
    event = delivery.event
    return {
        "event": {
            "id": event.id,
            "type": event.type,
            "source": event.source,
            "time": event.time,
            "time_unix": event.time_unix,
            "subject": event.subject,
            "tenant": event.tenant,
            "data_content_type": event.data_content_type,
            "extensions": dict(event.extensions),
            "traceparent": event.traceparent,
            "tracestate": event.tracestate,
            "id_made": event.id_made,
        },
        "subscription_id": delivery.subscription_id,
        "created_at": delivery.created_at,
        "round": delivery.round,
        "attempts": delivery.attempts,
        "deferrals": delivery.deferrals,
        "first_attempt_at": delivery.first_attempt_at,
        "not_before": delivery.not_before,
        "history": [_attempt(attempt) for attempt in delivery.history],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": attempt.at,
        "target": attempt.target,
        "status": attempt.status,
        "error": attempt.error,
        "duration_ms": attempt.duration_ms,
        "body_start": attempt.body_start[:_BODY_START_KEPT],
    }


_TEXT, _MAYBE_TEXT = (str,), (str, NoneType)
_TIME, _MAYBE_TIME = (int, float), (int, float, NoneType)
_COUNT = (int,)
_EVENT: Final = {
    "id": _TEXT, "type": _TEXT, "source": _TEXT, "time": _TEXT, "time_unix": _TIME,
    "subject": _MAYBE_TEXT, "tenant": _MAYBE_TEXT, "data_content_type": _TEXT, "extensions": (dict,),
    "traceparent": _MAYBE_TEXT, "tracestate": _MAYBE_TEXT, "id_made": (bool,),
}  # fmt: skip
_DELIVERY: Final = {
    "created_at": _TIME, "round": _COUNT, "attempts": _COUNT, "deferrals": _COUNT,
    "first_attempt_at": _MAYBE_TIME, "not_before": _TIME,
}  # fmt: skip
_ATTEMPT: Final = {
    "at": _TIME, "target": _TEXT, "status": (int, NoneType), "error": _MAYBE_TEXT,
    "duration_ms": _COUNT, "body_start": _TEXT,
}  # fmt: skip
_LATEST: Final = 253_402_300_799.0
"""The last second of the year 9999, in Unix seconds: times beyond it cannot be written in a line."""
_LATEST_EVENT: Final = _LATEST + 86_400.0
"""The same for the time that a producer gives, which is kept as text: with an offset it lies up to a day later."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[ -~]*)?")


def _checked(state: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Return the named values, and no others: a newer version may have written more.

    Raises KeyError, TypeError or ValueError where one is not what we write.
    """
    found = {}
    for name, allowed in kinds.items():
        value = found[name] = state[name]
        kind = type(value)
        if kind not in allowed:
            raise TypeError(f"{name} is a {kind.__name__}")
        first, last = (-_LATEST_EVENT, _LATEST_EVENT) if name == "time_unix" else (0, _LATEST)
        if (kind is float or kind is int) and not first <= value <= last:
            raise ValueError(f"{name} is out of range")
    return found


def _event(state: Mapping[str, Any], body: bytes) -> Event:
    told = _checked(state, _EVENT)
    if not all(isinstance(value, str) for value in told["extensions"].values()):
        raise TypeError("an extension is no text")
    if told["traceparent"] is not None and not _TRACEPARENT.fullmatch(told["traceparent"]):
        raise ValueError("traceparent is none")
    return Event(data=body, **told)


def _delivery(state: Mapping[str, Any], event: Event, subscription_id: str) -> Delivery:
    if not isinstance(subscription_id, str):
        raise TypeError("subscription_id is no text")
    if not event.id or not event.type:
        raise ValueError("the event has no id or no type")
    if len(subscription_id) > _ID_ROOM or len(event.id) > _ID_ROOM or len(event.type) > _ID_ROOM:
        raise ValueError(f"an id or the type has more than {_ID_ROOM} characters")
    history = tuple(Attempt(**_checked(attempt, _ATTEMPT)) for attempt in state["history"])
    told = _checked(state, _DELIVERY)
    return Delivery(event=event, subscription_id=subscription_id, history=history, **told)
