"""An event made ready once for all its deliveries: idempotency key, trace context, rendered bodies.

`members` is what every attempt's log line says of the event, as JSON members without braces: rendered
once, because at a fan-out of a hundred the lines cost as much as the signatures.
"""

from collections.abc import Callable
from typing import Any

import orjson

from service.core.event import Event, trace_id, webhook_id
from service.core.subscription import Format

Render = Callable[[Event, Format], Any]
"""Turns an event into what is sent; the same bytes every time."""


def _members(event: Event, key: str) -> bytes:
    told: dict[str, Any] = {"event_id": event.id, "event_type": event.type, "webhook_id": key}
    if event.tenant is not None:
        told["tenant"] = event.tenant
    if event.id_made:
        told["id_made"] = True
    return orjson.dumps(told)[1:-1]


class Prepared:
    """An event with what its deliveries share."""

    __slots__ = ("_contents", "_flags", "_render", "event", "members", "trace", "webhook_id")

    def __init__(self, event: Event, render: Render) -> None:
        self.event = event
        self.webhook_id = webhook_id(event)
        self.trace = trace_id(event)
        self._flags = event.traceparent[53:55] if event.traceparent else ""
        self.members = _members(event, self.webhook_id)
        self._render = render
        self._contents: dict[Format, Any] = {}

    def content(self, form: Format) -> Any:
        """Return the body and its headers in a format."""
        content = self._contents.get(form)
        if content is None:
            content = self._contents[form] = self._render(self.event, form)
        return content

    def traceparent(self, span: str | None) -> str | None:
        """Return the W3C header of an attempt with this span id, None for an event without a trace."""
        return None if span is None else f"00-{self.trace}-{span}-{self._flags}"
