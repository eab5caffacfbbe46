"""What a webhook request says: one event, rendered in the format of a subscription.

The law: rendering is a pure function, so every attempt carries the same bytes, and `event.data` goes
out verbatim, never parsed and written again.

Formats: Standard Webhooks 1.0.0; CloudEvents 1.0.2 in its HTTP binary and JSON structured modes; raw.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import assert_never
from urllib.parse import quote

import orjson

from service.core.event import Event
from service.core.subscription import Format

_JSON = "application/json"
_CLOUDEVENT = "application/cloudevents+json"
_CONTENT_TYPE = re.compile(r"[!-~]+/[!-~]+(; ?[ -~]+)?", re.ASCII)
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]+", re.ASCII)
_OWN_NAMES = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data", "tenant"}
) | {"data_base64"}
# HTTP protocol binding 1.0.2, 3.1.3.2: printable ASCII stays, but for space, double quote and percent.
_UNENCODED = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


@dataclass(frozen=True, slots=True)
class Content:
    """The body of a webhook request, its content type, and the headers that belong to its format."""

    body: bytes = field(repr=False)
    content_type: str = _JSON
    headers: tuple[tuple[str, str], ...] = ()


def render(event: Event, form: Format) -> Content:
    """Render `event`; the same bytes each time.

    CloudEvents attributes whose names the specification does not allow, and those without a value,
    are left out.
    """
    match form:
        case Format.STANDARD:
            return Content(_standard(event))
        case Format.CLOUDEVENTS_BINARY:
            return Content(event.data, _data_type(event), tuple(_headers(event)))
        case Format.CLOUDEVENTS_STRUCTURED:
            return Content(_structured(event), _CLOUDEVENT)
        case Format.RAW:
            return Content(event.data, _data_type(event))
    assert_never(form)


def _standard(event: Event) -> bytes:
    return b'{"type":%b,"timestamp":%b,"data":%b}' % (
        orjson.dumps(event.type),
        orjson.dumps(event.time),
        event.data,
    )


def _headers(event: Event) -> Iterator[tuple[str, str]]:
    for name, value in _attributes(event):
        yield f"ce-{name}", quote(value, safe=_UNENCODED)


def _structured(event: Event) -> bytes:
    attributes = dict(_attributes(event))
    attributes["datacontenttype"] = _data_type(event)
    return b'%b,"data":%b}' % (orjson.dumps(attributes)[:-1], event.data)


def _attributes(event: Event) -> Iterator[tuple[str, str]]:
    """Yield the CloudEvents context attributes but for the type of the data, in a fixed order."""
    yield "specversion", "1.0"
    yield "id", event.id
    yield "source", event.source
    yield "type", event.type
    yield "time", event.time
    optional = {"subject": event.subject, "tenant": event.tenant}
    yield from ((name, value) for name, value in optional.items() if value)
    for name, value in sorted(event.extensions.items()):
        if value and name not in _OWN_NAMES and _ATTRIBUTE_NAME.fullmatch(name):
            yield name, value


def _data_type(event: Event) -> str:
    """Return the content type of the data, or JSON's where the producer's cannot be a header."""
    given = event.data_content_type
    return given if _CONTENT_TYPE.fullmatch(given) else _JSON
