"""From an AMQP message to an event: three forms in, one value out.

The forms, in the order they are recognised (the first that fits decides):

1. CloudEvents structured: content type `application/cloudevents+json`; the body is the whole event.
2. CloudEvents binary: attributes are headers `ce-…` (Knative's RabbitMQ binding), `cloudEvents_…` or
   `cloudEvents:…` (the AMQP 1.0 binding); the body is the data.
3. Plain: the body is the data, everything else comes from AMQP properties.

The law here: for any input whatever, an event comes back or `EventRejected` is raised, and nothing
else.  What is let through is safe to sign, to send as a header and to log: no control characters,
bounded lengths, JSON that every parser reads alike (RFC 8259 and, of RFC 7493, no duplicate keys).
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import orjson

from service.core.event import Event
from service.core.units import parse_rfc3339, render_rfc3339
from service.errors import EventRejected

MAX_DEPTH: Final = 254
"""Levels of nesting that orjson writes as well as reads; data that cannot be written is refused."""

MAX_ATTRIBUTES: Final = 64
MAX_ENVELOPE: Final = 8192
"""Characters of all attributes together: they travel in AMQP and HTTP headers, which have limits."""

MAX_TYPE: Final = 255
"""Characters of an event type: it is a routing key, of which AMQP 0-9-1 carries 255 bytes."""

_MAX_LENGTH: Final = {"id": 1024, "source": 1024, "subject": 1024, "tenant": 256}
_MAX_EXTENSION: Final = 2048
_REQUIRED: Final = ("specversion", "id", "source", "type")
_TEXT_ONLY: Final = (*_REQUIRED, "subject", "time", "datacontenttype", "dataschema")
_NOT_EXTENSIONS: Final = frozenset((*_REQUIRED, "subject", "time", "datacontenttype", "tenant"))
_DATA: Final = frozenset(("data", "data_base64"))
_PREFIXES: Final = ("ce-", "cloudevents_", "cloudevents:")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,100}")
_WORD = r"[A-Za-z0-9_/:+~@-]+"
_TYPE = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    r"(?P<more>-[ -~]{0,200})?"
)
_TRACESTATE = re.compile(r"[ -~]{1,512}")
_BLANK = re.compile(r"[ \t\r\n]*")
_SKIP = json.JSONDecoder(parse_int=str, parse_float=str)


@dataclass(frozen=True, slots=True)
class Incoming:
    """What an AMQP message carries: body, headers of any AMQP type, and the properties that count."""

    body: bytes = field(repr=False)
    content_type: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)
    routing_key: str = ""
    message_id: str | None = None
    timestamp: datetime | None = None
    type: str | None = None
    app_id: str | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """The event, and its data parsed once, for schemas and filters.

    In `data`, integers beyond 64 bits are floats; `event.data` keeps every digit.
    """

    event: Event
    data: object = field(repr=False)


def decode(
    incoming: Incoming, *, max_bytes: int, now: float, make_id: Callable[[], str]
) -> Decoded:
    """Read the event out of a message.

    `now` (Unix seconds) is the time of an event that tells none, `make_id` names one without an id.
    Raises EventRejected with `too_large`, `not_json`, `invalid_envelope` or `invalid_type`.
    """
    if len(incoming.body) > max_bytes:
        raise EventRejected(
            "too_large", f"the body has {len(incoming.body)} bytes, the limit is {max_bytes}"
        )
    media_type = _media_type(incoming.content_type or "")
    if media_type.startswith("application/cloudevents"):
        return _structured(incoming, media_type, now)
    headers = _prefixed(incoming.headers)
    if headers:
        return _binary(incoming, headers, now)
    return _plain(incoming, now, make_id)


def parse_json(text: bytes) -> object:
    """Return the value of strict JSON text.

    Raises EventRejected `not_json` for anything that is not exactly one JSON value in UTF-8 without a
    byte order mark, for numbers beyond a double, for deeper nesting than `MAX_DEPTH`, and for
    duplicate keys, which parsers read differently (RFC 8259, section 4).
    """
    try:
        value = orjson.loads(text)
        written = orjson.dumps(value)
    except orjson.JSONDecodeError as error:
        if "depth" in error.msg or "recursion" in error.msg.lower():
            raise _too_deep() from None
        where = f"line {error.lineno}, column {error.colno}"
        raise EventRejected("not_json", f"{error.msg.partition(': line')[0]} at {where}") from None
    except orjson.JSONEncodeError:
        raise _too_deep() from None
    # Every member has one colon outside of strings, and strings keep theirs: with as many colons
    # after the round trip as before (an escaped one is a colon, too), no member was dropped.  An
    # escaped backslash before `u003a` looks like one; the exact search sorts that out.
    if _colons(text) != written.count(b":"):
        _refuse_duplicates(text)
    return value


def _colons(text: bytes) -> int:
    plain = text.count(b":")
    if b"\\u003" not in text:
        return plain
    return plain + text.count(b"\\u003a") + text.count(b"\\u003A")


def _refuse_duplicates(text: bytes) -> None:
    """Search valid JSON text for a duplicate key, exactly and some ten times slower than orjson."""
    try:
        json.loads(text.decode(), object_pairs_hook=_distinct, parse_int=str, parse_float=str)
    except RecursionError:
        raise _too_deep() from None


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            which = f"the key {_shown(key)}" if key.isidentifier() else "a key"  # it may be data
            raise EventRejected("not_json", f"{which} is there twice in one object")
        seen.add(key)


def _too_deep() -> EventRejected:
    return EventRejected("not_json", f"nested deeper than {MAX_DEPTH} levels")


def _structured(incoming: Incoming, media_type: str, now: float) -> Decoded:
    """Read the CloudEvents JSON format: attributes and data are members of one object."""
    if media_type != "application/cloudevents+json":
        raise _invalid(f"{_shown(media_type)} is not supported: send one event as +json")
    document = parse_json(incoming.body)
    if not isinstance(document, dict):
        raise _invalid("the CloudEvent is not a JSON object")
    members = {name: value for name, value in document.items() if name not in _DATA}
    for name in _TEXT_ONLY:
        if not isinstance(members.get(name), str | None):
            raise _invalid(f"{name} is not a string")
    attributes = _attributes(members)
    text, data = _structured_data(incoming.body, document, attributes)
    return Decoded(_cloud_event(incoming, members, attributes, text, now), data)


def _structured_data(
    body: bytes, document: dict[str, Any], attributes: dict[str, str]
) -> tuple[bytes, object]:
    """Return the exact JSON text of an event's data, and its value; no data is `null`."""
    if not document.keys() & _DATA:
        attributes.pop("datacontenttype", None)
        return b"null", None
    _require_json(attributes.get("datacontenttype"))
    encoded = document.get("data_base64")
    if encoded is None:
        if "data" not in document:
            return b"null", None
        last = next(reversed(document)) == "data"
        return _member(body.decode(), "data", last=last).encode(), document["data"]
    if "data" in document:
        raise _invalid("data and data_base64 exclude each other")
    try:
        text = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError):
        raise _invalid("data_base64 is not base64 text") from None
    return text, parse_json(text)


def _member(text: str, name: str, *, last: bool) -> str:
    """Return the text of a member of a JSON object that is valid and has the member once."""
    at = _BLANK.match(text).end() + 1  # type: ignore[union-attr]  # a blank may be empty
    while True:
        key, at = _SKIP.raw_decode(text, _after_blank(text, at))
        start = _after_blank(text, _after_blank(text, at) + 1)
        if key == name:
            end = text.rindex("}") if last else _value_end(text, start)
            return text[start:end].rstrip(" \t\r\n")
        _, end = _SKIP.raw_decode(text, start)
        at = _after_blank(text, end) + 1


def _value_end(text: str, start: int) -> int:
    """Return where what follows a value begins, as orjson, the fastest reader of one, complains of it."""
    try:
        orjson.loads(text[start:])
    except orjson.JSONDecodeError as error:
        return start + error.pos
    return len(text)


def _after_blank(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]  # a blank may be empty


def _prefixed(headers: Mapping[str, object]) -> dict[str, object]:
    """Return the headers that are CloudEvents attributes, by attribute name; empty where none is."""
    found: dict[str, object] = {}
    prefixes = set()
    for header, value in headers.items():
        split = _split_header(header)
        if split is None:
            continue
        prefix, name = split
        if name in found:
            raise _invalid(f"the attribute {_shown(name)} is there twice")
        prefixes.add(prefix)
        found[name] = value
    if len(prefixes) > 1:
        raise _invalid(f"headers mix the prefixes {' and '.join(sorted(prefixes))}")
    return found


@lru_cache(maxsize=1024)
def _split_header(header: str) -> tuple[str, str] | None:
    """Return prefix and attribute name of a header that is an attribute."""
    lowered = header.lower()
    for prefix in _PREFIXES:
        if lowered.startswith(prefix):
            return prefix, lowered.removeprefix(prefix)
    return None


def _binary(incoming: Incoming, headers: dict[str, object], now: float) -> Decoded:
    """Read attributes from headers and data from the body."""
    if "data" in headers:
        raise _invalid("data is no attribute: it stands in the body")
    # The media type belongs into the property; producers that reuse HTTP code leave it a header.
    declared = incoming.content_type or incoming.headers.get("content-type")
    if declared:
        headers["datacontenttype"] = declared
    attributes = _attributes(headers)
    if not incoming.body:
        attributes.pop("datacontenttype", None)
        return Decoded(_cloud_event(incoming, headers, attributes, b"null", now), None)
    _require_json(attributes.get("datacontenttype"))
    data = parse_json(incoming.body)
    return Decoded(_cloud_event(incoming, headers, attributes, incoming.body, now), data)


def _attributes(raw: Mapping[str, object]) -> dict[str, str]:
    """Return the attributes as checked text, without those that are unset and without the trace."""
    if len(raw) > MAX_ATTRIBUTES:
        raise _invalid(f"there are more than {MAX_ATTRIBUTES} attributes")
    attributes = {}
    for name, value in raw.items():
        if not _ATTRIBUTE_NAME.fullmatch(name):
            raise _invalid(f"{_shown(name)} is no attribute name: use a-z and 0-9")
        if name in {"traceparent", "tracestate"}:
            continue  # an unusable trace is ignored, never a reason to reject
        text = _text(name, value)
        if text is not None:
            attributes[name] = text
    size = sum(map(len, attributes)) + sum(map(len, attributes.values()))
    if size > MAX_ENVELOPE:
        raise _invalid(f"the attributes have {size} characters, the limit is {MAX_ENVELOPE}")
    return attributes


def _text(name: str, value: object) -> str | None:
    """Return the canonical text of an attribute (CloudEvents 1.0, type system), None where unset."""
    if type(value) is str:  # nearly always
        return _checked(name, value)
    match value:
        case None:
            return None
        case str():
            text = value
        case bytes() | bytearray():
            text = _utf8(name, value)
        case bool():
            text = "true" if value else "false"
        case int() if name == "time":
            text = _milliseconds(value)
        case int():
            text = str(value)
        case datetime():
            text = _rendered(name, value)
        case _:
            raise _invalid(
                f"{name} is a {type(value).__name__}, not text, integer, boolean or time"
            )
    return _checked(name, text)


def _utf8(name: str, value: bytes | bytearray) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _invalid(f"{name} is not UTF-8") from None


def _milliseconds(value: int) -> str:
    """Return the text of a time in the AMQP 1.0 binding's native type: milliseconds since 1970."""
    try:
        return _rendered("time", _EPOCH + timedelta(milliseconds=value))
    except OverflowError:
        raise _invalid("time is out of range: an integer is milliseconds since 1970") from None


def _rendered(name: str, value: datetime) -> str:
    try:
        return render_rfc3339(value)
    except ValueError as error:
        raise _invalid(f"{name}: {error}") from None


def _checked(name: str, text: str) -> str:
    if name == "type":
        return text  # `_event_type` is stricter, and has a reason of its own
    limit = _MAX_LENGTH.get(name, _MAX_EXTENSION)
    if len(text) > limit:
        raise _invalid(f"{name} has {len(text)} characters, the limit is {limit}")
    if not (text.isascii() and text.isprintable()) and _UNSAFE.search(text):
        raise _invalid(f"{name} holds a control character")
    return text


def _cloud_event(
    incoming: Incoming,
    raw: Mapping[str, object],
    attributes: Mapping[str, str],
    data: bytes,
    now: float,
) -> Event:
    """Build the event of either CloudEvents form; `raw` still holds the trace."""
    for name in _REQUIRED:
        if not attributes.get(name):
            raise _invalid(f"the required attribute {name} is missing")
    if attributes["specversion"] != "1.0":
        raise _invalid(f"specversion {_shown(attributes['specversion'])} is not 1.0")
    time, time_unix = _time(attributes.get("time"), now)
    traceparent, tracestate = _trace(incoming.headers, raw)
    return Event(
        id=attributes["id"],
        type=_event_type(attributes["type"]),
        source=attributes["source"],
        time=time,
        time_unix=time_unix,
        data=data,
        subject=attributes.get("subject") or None,
        tenant=attributes.get("tenant") or None,
        data_content_type=attributes.get("datacontenttype") or "application/json",
        extensions={k: v for k, v in attributes.items() if k not in _NOT_EXTENSIONS},
        traceparent=traceparent,
        tracestate=tracestate,
    )


def _plain(incoming: Incoming, now: float, make_id: Callable[[], str]) -> Decoded:
    """Read data from the body and everything else from AMQP properties.

    A producer without an `app_id` gets its event type as a source: ids are unique only within their
    source, and two unnamed producers that count from 1 must not end in one idempotency key.
    """
    event_type = _event_type(incoming.type or incoming.routing_key)
    headers = incoming.headers
    stamp = _rendered("timestamp", incoming.timestamp) if incoming.timestamp else None
    time, time_unix = _time(stamp, now)
    traceparent, tracestate = _trace(headers, {})
    if not incoming.body:
        raise EventRejected("not_json", "empty body")
    data = parse_json(incoming.body)
    event = Event(
        id=_text("id", incoming.message_id) or make_id(),
        type=event_type,
        source=_text("source", incoming.app_id) or f"urn:event-type:{event_type}",
        time=time,
        time_unix=time_unix,
        data=incoming.body,
        subject=_text("subject", headers.get("subject")) or None,
        tenant=_text("tenant", headers.get("tenant")) or None,
        traceparent=traceparent,
        tracestate=tracestate,
        id_made=not incoming.message_id,
    )
    return Decoded(event, data)


def _event_type(text: str) -> str:
    """Return a type that is one: words joined by dots, usable as a routing key and in a header.

    Wider than Standard Webhooks' `[a-zA-Z0-9_.]`, because types of CloudEvents have dashes, slashes
    and colons; `*` and `#` are left out, because they are wildcards in patterns.
    """
    if not text:
        raise EventRejected("invalid_type", "there is no type: set the routing key or `type`")
    if len(text) > MAX_TYPE:
        raise EventRejected("invalid_type", f"the type has more than {MAX_TYPE} characters")
    if not _TYPE.fullmatch(text):
        raise EventRejected(
            "invalid_type", f"{_shown(text)}: use words of A-Z a-z 0-9 _ - / : + ~ @ joined by dots"
        )
    return text


def _time(text: str | None, now: float) -> tuple[str, float]:
    """Return a time as its producer wrote it (or now, in UTC), and in Unix seconds."""
    if text is None:
        return render_rfc3339(datetime.fromtimestamp(now, UTC)), now
    try:
        return text, parse_rfc3339(text)
    except ValueError as error:
        raise _invalid(f"time {error}") from None


def _trace(*places: Mapping[str, object]) -> tuple[str | None, str | None]:
    """Return `traceparent` and `tracestate` of the first place with a valid parent (W3C, level 1).

    An invalid one is ignored, as W3C asks for; so is the state without its parent.
    """
    for place in places:
        if "traceparent" not in place:
            continue
        parent = _ascii(place["traceparent"])
        match = _TRACEPARENT.fullmatch(parent)
        if match and not (match["version"] == "00" and match["more"]):
            state = _ascii(place.get("tracestate"))
            return parent, state if _TRACESTATE.fullmatch(state) else None
    return None, None


def _ascii(value: object) -> str:
    """Return text or bytes of ASCII as text, and everything else as nothing."""
    if isinstance(value, bytes | bytearray):
        value = value.decode("ascii", "replace")
    return value.strip() if isinstance(value, str) else ""


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _require_json(content_type: str | None) -> None:
    """Refuse data that its producer declares to be something else than JSON."""
    if not content_type:
        return
    subtype = _media_type(content_type).partition("/")[2]
    if subtype != "json" and not subtype.endswith("+json"):
        raise EventRejected("not_json", f"datacontenttype {_shown(content_type)} is not JSON")


def _invalid(detail: str) -> EventRejected:
    return EventRejected("invalid_envelope", detail)


def _shown(text: str) -> str:
    """Return a name from outside as a message may quote it: bounded, escaped."""
    return ascii(text if len(text) <= 80 else f"{text[:80]}…")
