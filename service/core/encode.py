"""From an event to an AMQP message: the inverse of `decode`, for producers.

The form is CloudEvents binary with `ce-` headers: the body is the data and nothing else, so that its
bytes reach the receiver as they are, and the AMQP `message_id` stays free to name the publish.  The law
here: whatever `encode` returns, `decode` accepts; what would be rejected is refused to its producer.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from service.core.decode import Incoming, decode
from service.core.units import render_rfc3339
from service.errors import EventRejected

DEFAULT_MAX_BYTES: Final = 262144


def encode(
    event_type: str,
    data: Any,
    *,
    event_id: str,
    source: str,
    time: datetime,
    subject: str | None = None,
    tenant: str | None = None,
    traceparent: str | None = None,
    tracestate: str | None = None,
    extensions: Mapping[str, str] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Incoming:
    """Return the message of an event, as the dispatcher will get it; its routing key is the type.

    `data` is any JSON value, or `bytes` of JSON text that are sent as they are; `extensions` are
    further CloudEvents attributes.  Raises EventRejected for what the dispatcher would reject.
    """
    attributes = {
        **(extensions or {}),
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": event_type,
        "time": _rendered(time),
        "subject": subject,
        "tenant": tenant,
    }
    headers: dict[str, object] = {
        f"ce-{name}": value for name, value in attributes.items() if value is not None
    }
    trace = {"traceparent": traceparent, "tracestate": tracestate}
    headers |= {name: value for name, value in trace.items() if value is not None}
    message = Incoming(
        body=_json_text(data),
        content_type="application/json",
        headers=headers,
        routing_key=event_type,
    )
    read = decode(message, max_bytes=max_bytes, now=0.0, make_id=str).event
    if (read.traceparent, read.tracestate) != (traceparent, tracestate):
        raise EventRejected("invalid_envelope", "traceparent or tracestate breaks W3C's grammar")
    return message


def _json_text(data: Any) -> bytes:
    """Return compact JSON text; integers keep every digit, whatever JSON lacks is refused."""
    if isinstance(data, bytes):
        # An empty body would pass for data that is null; a producer means that by `None`.
        if not data:
            raise EventRejected(
                "not_json", "the data is empty: JSON text has at least one character"
            )
        return data
    try:
        text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return text.encode()
    except (TypeError, ValueError) as error:
        raise EventRejected("not_json", f"the data is no JSON value: {error}") from None
    except RecursionError:
        raise EventRejected("not_json", "the data is nested too deep") from None


def _rendered(time: datetime) -> str:
    try:
        return render_rfc3339(time)
    except ValueError as error:
        raise EventRejected("invalid_envelope", str(error)) from None
