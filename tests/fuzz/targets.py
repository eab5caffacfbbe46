"""What is fuzzed: functions from any bytes to nothing, which raise where a law is broken.

Each is a decoder's own law and a little more: what was let through must be fit for what comes next.
`SEEDS` are inputs that reach far, for a fuzzer to start from; without a fuzzer the tests beside this file
run the same functions.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import orjson
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from service.broker import codec, rejected
from service.broker.wire import properties
from service.core.decode import Decoded, Incoming, decode, parse_json
from service.core.delivery import Attempt, Delivery, expires
from service.core.event import Event, trace_id, webhook_id
from service.core.retry_after import retry_after
from service.core.subscription import Format, RetryPolicy
from service.errors import EventRejected
from service.webhook.formats import render

NOW = 1_893_456_000.25
FRAME = 131_072 - 8
"""Bytes of the largest content header that a broker takes with its usual limit."""
REASONS = frozenset(("not_json", "invalid_envelope", "invalid_type", "too_large"))

_HEADERS = (
    "ce-id", "ce-type", "ce-source", "ce-specversion", "ce-time", "ce-subject", "ce-tenant", "ce-data",
    "ce-datacontenttype", "ce-extra", "CE-ID", "cloudEvents:id", "cloudEvents_type", "tenant", "subject",
    "traceparent", "tracestate", "content-type", "x-death", "x-delivery", "x-rejected-message-id",
)  # fmt: skip
_CONTENT_TYPES = (
    None,
    "application/json",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "text/plain; charset=x",
)


class Dice:
    """Values drawn from bytes, as long as there are any."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, size: int) -> bytes:
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def number(self) -> int:
        return (self.take(1) or b"\0")[0]

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "replace")

    def of(self, choices: Any) -> Any:
        return choices[self.number() % len(choices)]

    def maybe_text(self) -> str | None:
        return self.text() if self.number() % 2 else None

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def json(self) -> Any:
        """Return something that JSON can hold."""
        whole = int.from_bytes(self.take(8), "big", signed=True)
        text = self.text()
        return self.of((None, True, whole, whole * 1e290, text, {text: text}, [text], []))

    def value(self, depth: int = 3) -> Any:
        """Return something that an AMQP header can hold."""
        whole = int.from_bytes(self.take(8), "big", signed=True)
        text = self.text()
        plain = (None, text, bytearray(text.encode()), whole, bool(whole), 1.5, _days(whole))
        if not depth or self.number() % 2:
            return self.of(plain)
        inner = [self.value(depth - 1) for _ in range(self.number() % 4)]
        return inner if whole % 2 else {f"{text}{number}": one for number, one in enumerate(inner)}


def _days(number: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=abs(number) % 2_932_896)


def fuzz_decode(data: bytes) -> None:
    """Any message becomes an event that can be sent, stored and read again, or is rejected by name."""
    dice = Dice(data)
    incoming = Incoming(
        content_type=dice.of(_CONTENT_TYPES),
        routing_key=dice.text(),
        message_id=dice.maybe_text(),
        type=dice.maybe_text(),
        app_id=dice.maybe_text(),
        timestamp=dice.of((None, datetime(2030, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC))),
        headers={dice.of(_HEADERS): dice.value() for _ in range(dice.number() % 12)},
        body=dice.rest(),
    )  # fmt: skip
    try:
        decoded = decode(incoming, max_bytes=2**18, now=NOW, make_id=lambda: "made")
    except EventRejected as rejection:
        _can_be_rejected(incoming, rejection)
    else:
        _can_be_carried(decoded)


def _can_be_rejected(incoming: Incoming, rejection: EventRejected) -> None:
    assert rejection.reason in REASONS
    assert len(rejection.detail) < 1024
    original = Basic.Properties(headers=dict(incoming.headers))  # type: ignore[arg-type]
    original.message_id = incoming.message_id
    _fits_a_frame(rejected.rejected_properties(original, "a.b", rejection, NOW))


def _can_be_carried(decoded: Decoded) -> None:
    event = decoded.event
    orjson.loads(event.data)
    assert webhook_id(event).isascii()
    assert math.isfinite(event.time_unix)
    _has_a_trace_or_none(event)
    for form in Format:
        content = render(event, form)
        content.content_type.encode("ascii")
        for name, value in content.headers:
            assert f"{name}{value}".isprintable()
            f"{name}{value}".encode("latin-1")
    delivery = Delivery(event=event, subscription_id="s", created_at=NOW)
    written = codec.delivery_properties(delivery)
    _fits_a_frame(written)
    assert codec.read_deliveries(written.headers, event.data) == [delivery]


def _has_a_trace_or_none(event: Event) -> None:
    trace = trace_id(event)
    assert trace is None or (len(trace) == 32 and int(trace, 16))


def _fits_a_frame(told: Basic.Properties) -> None:
    header = ContentHeader(0, 0, told).marshal()
    assert len(header) <= FRAME
    assert properties(header[12:]).headers is not None


def fuzz_deliveries(data: bytes) -> None:
    """Any delivery message is rejected, or is one that goes through its round and is written again."""
    dice = Dice(data)
    headers: dict[str, Any] = {}
    if dice.number() % 4 == 1:
        headers[codec.SUBSCRIPTIONS] = dice.value()
    body = dice.take(dice.number())
    if dice.number() % 2:
        headers[codec.STATE] = orjson.dumps(_changed(dice)).decode()
    else:
        headers[codec.STATE] = dice.rest()
    try:
        deliveries = codec.read_deliveries(headers, body)
    except EventRejected:
        return
    for delivery in deliveries:
        _goes_on(delivery)


def _changed(dice: Dice) -> dict[str, Any]:
    """Return a delivery's state with some of its values replaced by others."""
    state: dict[str, Any] = orjson.loads(str((_STATE.headers or {})[codec.STATE]))
    first = state["history"]
    for _ in range(dice.number() % 4):
        place = dice.of((state, state["event"], *state["history"]))
        place[dice.of(sorted(place))] = dice.json()
        if not isinstance(state["event"], dict) or state["history"] is not first:
            break
    return state


def _goes_on(delivery: Delivery) -> None:
    event = delivery.event
    assert isinstance(expires(delivery, RetryPolicy(), NOW), bool)
    assert math.isfinite(delivery.not_before + delivery.created_at + event.time_unix)
    assert delivery.round + delivery.attempts + delivery.deferrals >= 0
    assert webhook_id(event)
    assert event.type.encode()
    _has_a_trace_or_none(event)
    for form in Format:
        render(event, form)
    written = codec.delivery_properties(delivery)
    assert codec.read_deliveries(written.headers, event.data) == [delivery]


def fuzz_json(data: bytes) -> None:
    """What is taken for JSON, every parser takes, and reads alike."""
    try:
        value = parse_json(data)
    except EventRejected:
        return
    again = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_never)
    assert _shape(again) == _shape(value)
    orjson.dumps(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    assert len(read) == len(pairs), "a key twice"
    return read


def _never(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _shape(value: object) -> object:
    """Return a value with its numbers as floats, since integers beyond 64 bits are read as such."""
    match value:
        case bool():
            return value
        case int() | float():
            return float(value)
        case dict():
            return {name: _shape(inner) for name, inner in value.items()}
        case list():
            return [_shape(inner) for inner in value]
        case _:
            return value


def fuzz_retry_after(data: bytes) -> None:
    """Whatever a receiver writes is a finite time that is not negative, or nothing."""
    seconds = retry_after(data.decode("utf-8", "surrogateescape"), NOW)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


def fuzz_properties(data: bytes) -> None:
    """Any content header is read, or noted as unreadable, in a time that its size bounds."""
    started = time.process_time()
    read = properties(data)
    assert time.process_time() - started < 0.5
    if codec.STATE not in (read.headers or {}):
        parked = rejected.rejected_properties(read, "a.b", EventRejected("x", "y"), NOW)
        _fits_a_frame(parked)


Target = Callable[[bytes], None]
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "decode": fuzz_decode,
        "deliveries": fuzz_deliveries,
        "json": fuzz_json,
        "retry_after": fuzz_retry_after,
        "properties": fuzz_properties,
    }
)

_EVENT = Event("an-id-of-16-chars", "a.b", "/s", "2030-01-01T00:00:00Z", NOW, b"{}")
_TRIED = (Attempt(NOW, "https://a.example/", 500, "status 500", 12, "oops"),)
_STATE = codec.delivery_properties(
    Delivery(event=_EVENT, subscription_id="s", created_at=NOW, attempts=1, history=_TRIED)
)
_CLOUD = (
    b'{"specversion":"1.0","id":"1","source":"/s","type":"a.b","time":"2030-01-01T00:00:00Z",'
    b'"subject":"x","data":{"a":[1,2.5,"\\u003a"]}}'
)


def _header(number: int, text: bytes) -> bytes:
    """Return what `Dice` reads as one of its headers with this text."""
    return bytes([number, *bytes(8), len(text), *text, 1, 1])


SEEDS: Mapping[str, tuple[bytes, ...]] = MappingProxyType(
    {
        "decode": (
            b"\x01\x03a.b\x00\x00\x00\x00\x00" + b'{"a": 1}',
            b"\x01\x03a.b\x00\x00\x00\x08\x00" + b'{"a": 1}',
            b"\x02\x03a.b\x00\x00\x00\x00\x00" + _CLOUD,
            b"\x00\x03a.b\x01\x02id\x01\x03c.d\x01\x03app\x01\x04"
            + _header(0, b"1") + _header(1, b"a.b") + _header(2, b"/s") + _header(3, b"1.0") + b"[]",
        ),
        "deliveries": (
            b"\x00\x02{}\x00" + str((_STATE.headers or {})[codec.STATE]).encode(),
            b"\x00\x02{}\x01\x01\x00\x07" + bytes(7) + b"\x03\x00\x02",
            b'\x00\x02{}UUUEUUUU:{\x00\x00d_mad{\x02\x00e":\xfffa_l',
        ),
        "json": (b'{"a": [1, -2.5e3, "\\u00e9\\u003a", {"b": null, "c": true}]}', b'"\\ud83d\\ude00"'),
        "retry_after": (
            b"120",
            b"Fri, 31 Dec 2029 23:59:59 GMT",
            b"Friday, 31-Dec-29 23:59:59 GMT",
            b"Fri Dec 31 23:59:59 2029",
        ),
        "properties": (ContentHeader(0, 2, _STATE).marshal()[12:], b"\x20\x00\x00\x00\x00\x04\x01aV"),
    }
)  # fmt: skip
