"""Decoding: three forms, strict JSON, and nothing but an event or a rejection for any input."""

import base64
import dataclasses
import decimal
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pika  # type: ignore[import-untyped]
import pytest
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import example, given
from hypothesis import strategies as st

from service.core.decode import MAX_DEPTH, Decoded, Incoming, decode, parse_json
from service.core.encode import encode
from service.core.event import Event
from service.errors import EventRejected

NOW = 1_893_456_000.25
ENVELOPE: dict[str, Any] = {
    "specversion": "1.0",
    "id": "evt-1",
    "source": "/shop",
    "type": "order.created",
}
AT = datetime(2030, 1, 31, tzinfo=UTC)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def read(incoming: Incoming, max_bytes: int = 262144) -> Decoded:
    return decode(incoming, max_bytes=max_bytes, now=NOW, make_id=lambda: "made")


def plain(body: bytes = b"{}", **properties: Any) -> Event:
    named: dict[str, Any] = {"routing_key": "order.created"} | properties
    return read(Incoming(body, **named)).event


def structured(content_type: str = "application/cloudevents+json", **members: Any) -> Decoded:
    return read(Incoming(json.dumps(ENVELOPE | members).encode(), content_type))


def binary(
    body: bytes = b"{}", prefix: str = "ce-", content_type: str | None = None, **attributes: Any
) -> Decoded:
    headers = {f"{prefix}{name}": value for name, value in (ENVELOPE | attributes).items()}
    return read(Incoming(body, content_type, headers))


def rejection(make: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(EventRejected) as caught:
        make()
    assert len(caught.value.detail) < 400
    return caught.value.reason, caught.value.detail


# --- plain -----------------------------------------------------------------------------------------


def test_a_plain_event_takes_everything_from_properties() -> None:
    event = plain(
        b' {"a": 1.10}\n',
        content_type="text/plain",
        headers={
            "tenant": "acme",
            "subject": b"order 1",
            "traceparent": TRACE,
            "tracestate": "a=b",
        },
        message_id="id-1",
        timestamp=datetime(2030, 1, 31, 12, tzinfo=UTC),
        type="order.changed",
        app_id="shop",
    )
    assert event == Event(
        id="id-1",
        type="order.changed",
        source="shop",
        time="2030-01-31T12:00:00Z",
        time_unix=1896091200.0,
        data=b' {"a": 1.10}\n',
        subject="order 1",
        tenant="acme",
        traceparent=TRACE,
        tracestate="a=b",
    )


def test_a_plain_event_without_properties_gets_an_id_a_time_and_a_source() -> None:
    event = plain(b"[1]", message_id="")
    assert (event.id, event.id_made) == ("made", True)
    assert (event.time, event.time_unix) == ("2030-01-01T00:00:00.250000Z", NOW)
    assert event.type == "order.created"
    assert event.source == "urn:event-type:order.created"
    assert event.subject is event.tenant is None


def test_a_plain_event_published_by_pika_is_read() -> None:
    properties = pika.BasicProperties(
        message_id="id-1",
        timestamp=1896091200,
        app_id="shop",
        headers={"tenant": "acme", "n": 2**40, "x": decimal.Decimal("1.5")},
    )
    encoded = b"".join(properties.encode())
    seen = pika.BasicProperties()
    seen.decode(encoded)
    event = plain(
        message_id=seen.message_id,
        timestamp=datetime.fromtimestamp(seen.timestamp, UTC),
        app_id=seen.app_id,
        headers=seen.headers,
    )
    assert (event.id, event.source, event.tenant) == ("id-1", "shop", "acme")
    assert event.time == "2030-01-31T12:00:00Z"


def test_an_empty_plain_body_is_no_json() -> None:
    assert rejection(lambda: plain(b"")) == ("not_json", "empty body")


@pytest.mark.parametrize(
    "value", [{"a": 1}, [1], 1.5, decimal.Decimal(1), b"\xff", "a\nb", "é" * 257]
)
def test_a_tenant_that_is_no_text_is_refused(value: object) -> None:
    assert rejection(lambda: plain(headers={"tenant": value}))[0] == "invalid_envelope"


@pytest.mark.parametrize("field", ["message_id", "app_id"])
@pytest.mark.parametrize("text", ["a\r\nx: y", "a\x00", "\x7f", "\x85", "\ud800", "x" * 1025])
def test_names_that_would_break_a_header_or_a_log_are_refused(field: str, text: str) -> None:
    assert rejection(lambda: plain(b"{}", **{field: text}))[0] == "invalid_envelope"


# --- types and times -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "ping",
        "order.created",
        "com.github.pull-request.opened",
        "com.example/orders:v1",
        "Microsoft.Storage.BlobCreated",
        "a_b.C~+@1",
        "x" * 255,
    ],
)
def test_ordinary_event_types_are_taken(name: str) -> None:
    assert plain(type=name).type == structured(type=name).event.type == name
    assert binary(type=name).event.type == name


@pytest.mark.parametrize(
    "name",
    [".", "a..b", ".a", "a.", "a.*", "#", "a b", "a\n", "ä", "a\x00", "a,b", '"', "x" * 256],
)
def test_other_event_types_are_refused(name: str) -> None:
    for make in (
        lambda: plain(type=name),
        lambda: structured(type=name),
        lambda: binary(type=name),
    ):
        assert rejection(make)[0] == "invalid_type"


def test_a_plain_event_without_any_type_is_refused() -> None:
    assert rejection(lambda: plain(routing_key=""))[0] == "invalid_type"


@pytest.mark.parametrize(
    "text", ["2030-01-31T12:00:00.5+01:00", "2030-01-31t12:00:00z", "2016-12-31T23:59:60Z"]
)
def test_a_time_stays_as_its_producer_wrote_it(text: str) -> None:
    assert structured(time=text).event.time == binary(time=text).event.time == text


@pytest.mark.parametrize("text", ["", "yesterday", "2030-01-31", "2030-02-30T00:00:00Z"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    assert rejection(lambda: structured(time=text))[0] == "invalid_envelope"
    assert rejection(lambda: binary(time=text))[0] == "invalid_envelope"


@pytest.mark.parametrize("value", [1896091200000, datetime(2030, 1, 31, 12, tzinfo=UTC)])
def test_a_native_time_of_amqp_is_read(value: object) -> None:
    event = binary(time=value).event
    assert (event.time, event.time_unix) == ("2030-01-31T12:00:00Z", 1896091200.0)


@pytest.mark.parametrize("value", [2**62, -(2**62), 10**30])
def test_a_native_time_out_of_range_is_refused(value: int) -> None:
    assert rejection(lambda: binary(time=value))[0] == "invalid_envelope"


# --- CloudEvents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents+json",
        "application/cloudevents+json; charset=utf-8",
        "Application/CloudEvents+JSON;charset=UTF-8",
    ],
)
def test_a_structured_event_is_known_by_its_content_type(content_type: str) -> None:
    decoded = structured(content_type, data={"a": 1}, tenant="acme", partitionkey="p", retries=3)
    event = decoded.event
    assert (event.id, event.source, event.type) == ("evt-1", "/shop", "order.created")
    assert event.tenant == "acme"
    assert event.extensions == {"partitionkey": "p", "retries": "3"}
    assert decoded.data == {"a": 1}
    assert event.data == b'{"a": 1}'


@pytest.mark.parametrize("prefix", ["ce-", "CE-", "Ce-", "cloudEvents_", "cloudEvents:"])
def test_a_binary_event_is_known_by_its_headers(prefix: str) -> None:
    decoded = binary(b'{"a": 1.0}', prefix, subject=b"s", flag=True, count=7)
    assert decoded.event.subject == "s"
    assert decoded.event.extensions == {"flag": "true", "count": "7"}
    assert decoded.event.data == b'{"a": 1.0}'


def test_structured_comes_before_binary_and_binary_before_plain() -> None:
    headers = {f"ce-{name}": value for name, value in (ENVELOPE | {"id": "binary"}).items()}
    body = json.dumps(ENVELOPE | {"id": "structured"}).encode()
    first = Incoming(body, "application/cloudevents+json", headers, "key", "plain")
    second = dataclasses.replace(first, content_type="application/json")
    third = dataclasses.replace(second, headers={})
    assert [read(message).event.id for message in (first, second, third)] == [
        "structured",
        "binary",
        "plain",
    ]


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_required_attribute_must_be_there(name: str, value: Any) -> None:
    attributes: dict[str, Any] = {name: value}
    for make in (lambda: structured(**attributes), lambda: binary(**attributes)):
        reason, detail = rejection(make)
        assert reason == "invalid_envelope"
        assert name in detail


@pytest.mark.parametrize(
    "members",
    [
        {"specversion": "0.3"},
        {"specversion": 1.0},
        {"id": 5},
        {"Upper": "x"},
        {"under_score": "x"},
        {"data_x": "x"},
        {"ext": {"a": 1}},
        {"ext": 1.5},
        {"ext": "a\nb"},
        {"ext": "x" * 2049},
        {f"e{number}": "" for number in range(64)},
        {f"e{number}": "x" * 2000 for number in range(5)},
        {"data": 1, "data_base64": "MQ=="},
        {"data_base64": "%%%"},
        {"data_base64": 5},
        {"data_base64": "é"},
    ],
)
def test_an_envelope_against_the_specification_is_refused(members: dict[str, Any]) -> None:
    assert rejection(lambda: structured(**members))[0] == "invalid_envelope"


@pytest.mark.parametrize("document", [b"[]", b"null", b'"x"', b"1"])
def test_a_structured_event_is_an_object(document: bytes) -> None:
    incoming = Incoming(document, "application/cloudevents+json")
    assert rejection(lambda: read(incoming))[0] == "invalid_envelope"


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents-batch+json", "application/cloudevents+avro"]
)
def test_batches_and_other_formats_are_refused_as_such(content_type: str) -> None:
    reason, detail = rejection(lambda: structured(content_type))
    assert (reason, "not supported" in detail) == ("invalid_envelope", True)


@pytest.mark.parametrize(
    "more",
    [
        {"cloudEvents_subject": "x"},
        {"ce-ID": "x"},
        {"ce-data": "x"},
        {"ce-": "x"},
        {"ce-a.b": "x"},
        {"ce-ext": 1.5},
        {"ce-ext": b"\xff"},
        {"ce-ext": {}},
    ],
)
def test_headers_against_the_binding_are_refused(more: dict[str, Any]) -> None:
    headers = {f"ce-{name}": value for name, value in ENVELOPE.items()} | more
    assert rejection(lambda: read(Incoming(b"{}", headers=headers)))[0] == "invalid_envelope"


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/json", "application/x+JSON; a=b"]
)
def test_json_by_any_of_its_names_is_json(content_type: str) -> None:
    assert binary(content_type=content_type).event.data_content_type == content_type
    assert structured(datacontenttype=content_type, data=1).event.data_content_type == content_type


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "json", "x", "a/jsonp"])
def test_data_of_another_type_is_not_json(content_type: str) -> None:
    for make in (
        lambda: binary(content_type=content_type),
        lambda: structured(datacontenttype=content_type, data="<a/>"),
        lambda: structured(datacontenttype=content_type, data_base64="MQ=="),
    ):
        assert rejection(make)[0] == "not_json"


def test_a_content_type_may_be_a_header() -> None:
    headers = {f"ce-{name}": value for name, value in ENVELOPE.items()}
    incoming = Incoming(b"<a/>", headers=headers | {"content-type": "application/xml"})
    assert rejection(lambda: read(incoming))[0] == "not_json"


def test_an_event_without_data_has_null() -> None:
    for decoded in (
        structured(),
        structured(datacontenttype="text/plain"),
        structured(data=None),
        structured(data_base64=None),
        binary(b""),
        binary(b"", content_type="text/plain"),
    ):
        assert (decoded.event.data, decoded.data) == (b"null", None)
        assert decoded.event.data_content_type == "application/json"


def test_base64_data_is_json_inside() -> None:
    text = b'{"n": 123456789012345678901234567890}'
    decoded = structured(data_base64=base64.b64encode(text).decode())
    assert decoded.event.data == text
    bad = base64.b64encode(b'{"a":1,"a":2}').decode()
    assert rejection(lambda: structured(data_base64=bad))[0] == "not_json"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.just("data"),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(JSON, st.booleans(), st.sampled_from([None, 1]), st.integers(0, 4))
@example({"data": '"data": }'}, True, None, 0)
def test_structured_data_keeps_its_exact_bytes(
    value: Any,
    escaped: bool,  # noqa: FBT001 - given, not called
    indent: int | None,
    place: int,
) -> None:
    text = json.dumps(value, ensure_ascii=escaped, indent=indent)
    members = [f"{json.dumps(name)} :{json.dumps(member)}" for name, member in ENVELOPE.items()]
    members.insert(place, f'"d\\u0061ta" :\t{text} ')
    body = (" {" + " ,\n".join(members) + "} \n").encode()
    decoded = read(Incoming(body, "application/cloudevents+json"))
    assert decoded.event.data == text.encode()


@pytest.mark.parametrize("data", [{"n": 1, "s": "é: \u2028"}, [1, 2], 7, None])
def test_events_of_the_cloudevents_sdk_are_read(data: Any) -> None:
    attributes = {
        "id": "evt-1",
        "source": "/shop",
        "type": "order.created",
        "time": datetime(2030, 1, 31, 12, tzinfo=UTC),
        "datacontenttype": "application/json",
        "subject": "é 1",
        "tenant": "acme",
        "traceparent": TRACE,
    }
    event = CloudEvent(attributes, data)
    by_headers = rabbitmq.to_binary(event, JSONFormat())
    as_document = rabbitmq.to_structured(event, JSONFormat())
    by_properties = amqp.to_binary(event, JSONFormat())
    incoming = [
        Incoming(by_headers.body, by_headers.content_type, by_headers.headers),
        Incoming(as_document.body, as_document.content_type, as_document.headers),
        Incoming(
            by_properties.application_data,
            by_properties.properties["content-type"],
            by_properties.application_properties,
        ),
    ]
    for message in incoming:
        decoded = read(message)
        assert decoded.data == data
        assert decoded.event.time_unix == 1896091200.0
        assert (decoded.event.tenant, decoded.event.subject) == ("acme", "é 1")
        assert decoded.event.traceparent == TRACE
        assert decoded.event.extensions == {}


# --- trace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [TRACE, TRACE.encode(), "01" + TRACE[2:], "01" + TRACE[2:] + "-x"]
)
def test_a_valid_trace_is_kept(value: str | bytes) -> None:
    text = value if isinstance(value, str) else value.decode()
    assert plain(headers={"traceparent": value}).traceparent == text


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        TRACE.upper(),
        "ff" + TRACE[2:],
        TRACE + "-x",
        TRACE[:-1],
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        b"\xff",
        5,
        None,
        {"a": 1},
    ],
)
def test_an_invalid_trace_is_ignored_and_never_a_reason_to_reject(value: object) -> None:
    headers = {"traceparent": value, "tracestate": "a=b"}
    event = plain(headers=headers)
    assert event.traceparent is event.tracestate is None
    assert binary(traceparent=value, tracestate=value).event.traceparent is None
    if not isinstance(value, bytes):
        assert structured(traceparent=value, tracestate=[1]).event.traceparent is None


def test_the_trace_of_the_message_comes_before_that_of_the_event() -> None:
    other = TRACE.replace("4bf9", "aaaa")
    body = json.dumps(ENVELOPE | {"traceparent": other}).encode()
    incoming = Incoming(body, "application/cloudevents+json", {"traceparent": TRACE})
    assert read(incoming).event.traceparent == TRACE
    assert read(dataclasses.replace(incoming, headers={})).event.traceparent == other


def test_an_unusable_trace_state_is_dropped_alone() -> None:
    event = plain(headers={"traceparent": TRACE, "tracestate": "a=b\r\n" * 200})
    assert (event.traceparent, event.tracestate) == (TRACE, None)


# --- size and JSON ---------------------------------------------------------------------------------


def test_size_is_looked_at_first_and_the_limit_is_inclusive() -> None:
    assert read(Incoming(b"[1]", routing_key="a"), max_bytes=3).data == [1]
    reason, detail = rejection(lambda: read(Incoming(b"\xff" * 4), max_bytes=3))
    assert reason == "too_large"
    assert "4 bytes" in detail
    assert "limit is 3" in detail


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"\xff", "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{\n "a": NaN}', "line 2, column 7"),
        (b"-Infinity", "line 1"),
        (b"1e400", "infinity"),
        (b"{} x", "after document"),
        (b"{'a':1}", "line 1, column 2"),
        (b'{"a":1,}', "trailing comma"),
        (b'"\\ud800"', "surrogate"),
        (b'"a\nb"', "control character"),
        (b" ", "empty"),
        (b"\x00", "line 1"),
        ("{}".encode("utf-16"), "UTF-8"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_its_place(body: bytes, hint: str) -> None:
    reason, detail = rejection(lambda: plain(body))
    assert reason == "not_json"
    assert hint in detail


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 1024, 1025, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_what_is_nested_too_deep_is_refused(levels: int, opening: bytes, closing: bytes) -> None:
    body = opening * levels + b"1" + closing * levels
    incoming = Incoming(body, routing_key="a")
    refused = rejection(lambda: read(incoming, max_bytes=len(body)))
    assert refused == ("not_json", "nested deeper than 254 levels")


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a:":', b"}")])
def test_what_is_nested_to_the_limit_is_taken(opening: bytes, closing: bytes) -> None:
    body = opening * MAX_DEPTH + b'"\\\\u003a"' + closing * MAX_DEPTH
    assert orjson.dumps(read(Incoming(body, routing_key="a")).data) == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":1,"id":2}',
        b'{"id":1,"\\u0069d":2}',
        b'[{"a":{"id":":","b":1,"id":":"}}]',
        b'{"id":"\\u003a","id":2}',
        b'{"id":"\\\\u003a","id":2}',
        b'{"id":"\\\\\\u003A","x":":","id":"::"}',
    ],
)
def test_a_duplicate_key_is_refused_by_name(body: bytes) -> None:
    assert rejection(lambda: plain(body)) == (
        "not_json",
        "the key 'id' is there twice in one object",
    )


@pytest.mark.parametrize("key", ["alice@example.com", "4111 1111", "\u2028\n", ""])
def test_a_key_that_may_be_data_is_not_told(key: str) -> None:
    text = json.dumps(key)
    assert rejection(lambda: plain(f"{{{text}:1,{text}:2}}".encode()))[1] == (
        "a key is there twice in one object"
    )


def test_a_key_in_a_message_is_bounded() -> None:
    key = json.dumps("x" * 10_000)
    detail = rejection(lambda: plain(f"{{{key}:1,{key}:2}}".encode()))[1]
    assert len(detail) < 200


class TwiceError(Exception):
    """A duplicate key, found the slow way."""


def has_duplicates(text: str) -> bool:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise TwiceError
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=distinct)
    except TwiceError:
        return True
    return False


STRINGS = st.lists(
    st.sampled_from(
        ["a", "b", ":", "\\u003a", "\\u003A", "\\\\u003a", "\\\\", "\\u0061", "\\u003c", "{", ","]
    ),
    max_size=3,
).map(lambda parts: f'"{"".join(parts)}"')
DOCUMENTS = st.recursive(
    STRINGS | st.sampled_from(["1", "1.50", "null", "true"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{' ,'.join(items)}]")
        | st.lists(st.tuples(STRINGS, inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key} : {value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=12,
)


@given(DOCUMENTS)
def test_duplicates_are_found_as_the_slow_search_finds_them(text: str) -> None:
    try:
        value = parse_json(text.encode())
    except EventRejected as error:
        assert "twice" in error.detail  # noqa: PT017
        assert has_duplicates(text)
    else:
        assert not has_duplicates(text)
        assert value == json.loads(text)


def test_numbers_beyond_64_bits_keep_their_digits() -> None:
    body = b'{"n":123456789012345678901234567890,"f":0.10000000000000000000000001}'
    decoded = read(Incoming(body, routing_key="a"))
    assert decoded.event.data == body
    assert decoded.data == {"n": 1.2345678901234568e29, "f": 0.1}


# --- anything --------------------------------------------------------------------------------------

AMQP = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats()
    | st.decimals()
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC))
    | st.text(max_size=30)
    | st.binary(max_size=30)
    | st.binary(max_size=10).map(bytearray)
    | st.sampled_from([TRACE, "1.0", "order.created", "application/json", "2030-01-31T12:00:00Z"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = ("id", "source", "type", "specversion", "time", "subject", "tenant", "datacontenttype")
NAME = st.sampled_from([*NAMES, "traceparent", "tracestate", "data", "data_base64"]) | st.text(
    max_size=5
)
HEADER = (
    st.tuples(st.sampled_from(["", "ce-", "cloudEvents_", "cloudEvents:"]), NAME).map("".join)
    | st.sampled_from(["content-type", "x-death"])
    | st.text(max_size=8)
)
BODY = (
    st.binary(max_size=60)
    | DOCUMENTS.map(str.encode)
    | st.dictionaries(NAME, JSON, max_size=8).map(lambda value: json.dumps(value).encode())
    | st.dictionaries(NAME, JSON, max_size=4).map(
        lambda value: json.dumps(ENVELOPE | value).encode()
    )
)
TEXT = st.none() | st.text(max_size=20)
MESSAGES = st.builds(
    Incoming,
    body=BODY,
    content_type=TEXT | st.just("application/cloudevents+json"),
    headers=st.dictionaries(HEADER, AMQP, max_size=4)
    | st.dictionaries(HEADER, AMQP, max_size=4).map(
        lambda more: {f"ce-{name}": value for name, value in ENVELOPE.items()} | more
    ),
    routing_key=st.text(max_size=10) | st.just("order.created"),
    message_id=TEXT,
    timestamp=st.none() | st.datetimes() | st.datetimes(timezones=st.just(UTC)),
    type=TEXT,
    app_id=TEXT,
)


@given(MESSAGES)
def test_any_message_is_an_event_or_a_rejection(incoming: Incoming) -> None:
    try:
        decoded = read(incoming)
    except EventRejected as error:
        assert error.reason in {"not_json", "invalid_envelope", "invalid_type", "too_large"}  # noqa: PT017
        assert len(error.detail) < 400  # noqa: PT017
        return
    event = decoded.event
    assert orjson.loads(event.data) == decoded.data
    texts = [
        event.id,
        event.source,
        event.type,
        event.time,
        event.subject or "",
        event.tenant or "",
    ]
    for text in (*texts, *event.extensions, *event.extensions.values()):
        text.encode()
        assert not any(ord(char) < 0x20 or ord(char) == 0x7F for char in text)
    assert all((event.id, event.source, event.type, event.time))


# --- encode ----------------------------------------------------------------------------------------


def encoded(data: Any = None, event_type: str = "order.created", **attributes: Any) -> Incoming:
    named: dict[str, Any] = {"event_id": "evt-1", "source": "/shop", "time": AT} | attributes
    return encode(event_type, data, **named)


@given(JSON)
def test_what_is_encoded_is_decoded(value: Any) -> None:
    message = encoded(
        value,
        subject="s",
        tenant="acme",
        traceparent=TRACE,
        tracestate="a=b",
        extensions={"x": "1"},
    )
    event = read(message).event
    assert json.loads(event.data) == value
    assert (event.id, event.source, event.type) == ("evt-1", "/shop", "order.created")
    assert (event.subject, event.tenant, event.extensions) == ("s", "acme", {"x": "1"})
    assert (event.traceparent, event.tracestate) == (TRACE, "a=b")
    assert event.time == "2030-01-31T00:00:00Z"
    assert message.routing_key == "order.created"


def test_bytes_are_json_text_and_stay_as_they_are() -> None:
    assert read(encoded(b'{ "n": 1.10 }')).event.data == b'{ "n": 1.10 }'
    assert rejection(lambda: encoded(b"{"))[0] == "not_json"
    assert rejection(lambda: encoded(b""))[0] == "not_json"


def test_data_that_json_lacks_is_refused() -> None:
    circular: list[Any] = []
    circular.append(circular)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (float("nan"), {1, 2}, object(), "\ud800", circular, {1: 1, "1": 2}, deep):
        assert rejection(lambda value=value: encoded(value))[0] == "not_json"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"event_type": "a b"}, "invalid_type"),
        ({"event_type": ""}, "invalid_envelope"),
        ({"event_id": ""}, "invalid_envelope"),
        ({"event_id": "a\n"}, "invalid_envelope"),
        ({"extensions": {"A_b": "x"}}, "invalid_envelope"),
        ({"traceparent": "x"}, "invalid_envelope"),
        ({"tracestate": "a=b"}, "invalid_envelope"),
        ({"max_bytes": 3}, "too_large"),
    ],
)
def test_what_would_be_rejected_is_refused_to_its_producer(
    attributes: dict[str, Any], reason: str
) -> None:
    assert rejection(lambda: encoded("data", **attributes))[0] == reason
