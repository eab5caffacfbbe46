"""Producers that mean harm: what they send ends rejected or delivered, and the next event arrives.

The messages are written as bytes over a bare socket, because every AMQP library refuses to send most of
them.  A real broker takes them, a real process reads them.  What the broker itself refuses never gets as
far as us, and is none of our business.
"""

import asyncio
import itertools
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pamqp.frame
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pamqp.base import Frame
from pamqp.commands import Basic, Channel, Confirm, Connection, Queue

from service.broker.codec import delivery_properties
from service.core.delivery import Delivery
from service.core.event import Event
from tests.bench.processes import cpu_seconds
from tests.dispatcher import Dispatcher, Station, station, subscription
from tests.receivers import Recorder

PROPERTIES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id",
    "reply_to", "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip
LARGEST_HEADERS = 131_072 - 8 - 14 - 4
"""Bytes of a header table that fill a frame of the usual limit: less frame, header and the length."""


def short(text: bytes | str) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return bytes([len(raw)]) + raw


def long(text: bytes | str) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def table(*entries: tuple[bytes | str, bytes]) -> bytes:
    """Return a field table; each entry is a key and a value with its kind before it."""
    return long(b"".join(short(key) + value for key, value in entries))


def text(value: bytes | str) -> bytes:
    return b"S" + long(value)


def nested(depth: int, kind: bytes = b"F") -> bytes:
    """Return a value that holds itself so many times."""
    value = b"V"
    for _ in range(depth):
        value = kind + (table(("k", value)) if kind == b"F" else long(value))
    return value


@dataclass(frozen=True)
class Raw:
    """A message as bytes: the properties are in their wire form already."""

    body: bytes = b"{}"
    key: bytes = b"thing.made"
    properties: dict[str, bytes] = field(default_factory=dict)
    exchange: str | None = None

    def frames(self, exchange: str, limit: int) -> Iterator[bytes]:
        publish = struct.pack(">HHH", 60, 40, 0) + short(
            exchange if self.exchange is None else self.exchange
        )
        yield _frame(1, publish + short(self.key) + b"\0")
        flags = sum(1 << (15 - PROPERTIES.index(name)) for name in self.properties)
        written = b"".join(self.properties[n] for n in PROPERTIES if n in self.properties)
        yield _frame(2, struct.pack(">HHQH", 60, 0, len(self.body), flags) + written)
        for start in range(0, len(self.body), limit - 8):
            yield _frame(3, self.body[start : start + limit - 8])


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


class Wire:
    """A producer on a bare socket: one channel with confirms."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port or 5672), timeout=20)
        self._buffer = b""
        self._socket.sendall(b"AMQP\0\0\x09\x01")
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        self._hear(Connection.Start)
        self._say(Connection.StartOk({}, "PLAIN", f"\0{user}\0{password}", "en_US"), 0)
        self._hear(Connection.Tune)
        self._say(Connection.TuneOk(2047, 131_072, 0), 0)
        self._say(Connection.Open(unquote(parts.path[1:]) or "/"), 0)
        self._hear(Connection.OpenOk)
        self._say(Channel.Open())
        self._hear(Channel.OpenOk)
        self._say(Confirm.Select())
        self._hear(Confirm.SelectOk)

    def publish(self, message: Raw, exchange: str) -> bool:
        """Publish and wait; False where the broker refuses: the connection is of no more use then."""
        try:
            for frame in message.frames(exchange, 131_072):
                self._socket.sendall(frame)
            return isinstance(self._hear(Basic.Ack, Channel.Close, Connection.Close), Basic.Ack)
        except ConnectionError:
            return False

    def count(self, queue: str) -> int:
        """Return how many messages a queue holds."""
        self._say(Queue.Declare(queue=queue, passive=True))
        return int(getattr(self._hear(Queue.DeclareOk), "message_count", 0))

    def is_empty(self, queue: str) -> bool:
        """Tell whether no message waits in a queue; of no more use afterwards.

        The count of a busy broker may be 0 where messages wait.
        """
        self._say(Basic.Get(queue=queue))
        return isinstance(self._hear(Basic.GetOk, Basic.GetEmpty), Basic.GetEmpty)

    def close(self) -> None:
        self._socket.close()

    def _say(self, frame: Frame, channel: int = 1) -> None:
        self._socket.sendall(pamqp.frame.marshal(frame, channel))

    def _hear(self, *kinds: type[Frame]) -> Frame:
        while True:
            while len(self._buffer) < 7 or len(self._buffer) < self._size() + 8:
                got = self._socket.recv(65_536)
                if not got:
                    raise ConnectionError("the broker hung up")
                self._buffer += got
            size = self._size() + 8
            _, _, heard = pamqp.frame.unmarshal(self._buffer[:size])
            self._buffer = self._buffer[size:]
            if isinstance(heard, kinds):
                return heard

    def _size(self) -> int:
        return int(struct.unpack_from(">I", self._buffer, 3)[0])


@contextmanager
def wire(url: str) -> Iterator[Wire]:
    it = Wire(url)
    try:
        yield it
    finally:
        it.close()


def send_all(it: Station, messages: list[Raw]) -> list[Raw]:
    """Publish what the broker takes, confirmed; returns that."""
    taken: list[Raw] = []
    left = iter(messages)
    while True:
        with wire(it.amqp_url) as producer:
            for message in left:
                if not producer.publish(message, it.exchange):
                    break
                taken.append(message)
            else:
                return taken


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


class Watch:
    """A dispatcher and its receiver, and whether what was published has all ended."""

    def __init__(self, it: Station, dispatcher: Dispatcher, receiver: Recorder) -> None:
        self.it, self.dispatcher, self.receiver = it, dispatcher, receiver
        self.published = 0

    @property
    def ended(self) -> int:
        endings = ("event.rejected", "delivery.dead_lettered")
        return len(self.receiver.requests) + sum(len(self.dispatcher.of(one)) for one in endings)

    def go_through(self, messages: list[Raw], seconds: float = 20) -> list[Raw]:
        """Publish, and see everything end and a good event after it arrive; returns what was taken."""
        good = Raw(b'{"good": %d}' % time.monotonic_ns())
        taken = send_all(self.it, [*messages, good])
        assert taken[-1] is good
        self.published += len(taken)
        deadline = time.monotonic() + seconds
        while self.ended < self.published or not self.is_there(good):
            assert time.monotonic() < deadline, (self.ended, self.published, self.told())
            time.sleep(0.01)
        assert self.ended == self.published
        self.see_that_it_is_well()
        return taken[:-1]

    def is_there(self, message: Raw) -> bool:
        data = message.body
        return any(data in request.body for request in self.receiver.requests)

    def see_that_it_is_well(self) -> None:
        for sign in ("service.fault", "broker.disconnected", "broker.unrouted"):
            assert not self.dispatcher.of(sign), self.dispatcher.of(sign)

    def told(self) -> list[str]:
        return [line[:600] for line in self.dispatcher.raw[-8:]]

    def reasons(self) -> dict[str, str]:
        """Return the reason by the routing key of each rejected event."""
        return {
            line["routing_key"]: line["reason"] for line in self.dispatcher.of("event.rejected")
        }


@pytest.fixture
async def watch(it) -> AsyncIterator[Watch]:
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url))
        watch = Watch(it, dispatcher, receiver)
        yield watch
        if dispatcher._process.returncode is None:
            assert await dispatcher.stop() == 0
        assert dispatcher.stderr == ""


def headers(*entries: tuple[bytes | str, bytes]) -> dict[str, bytes]:
    return {"headers": table(*entries)}


CLOUD_EVENT = (
    ("ce-specversion", text("1.0")),
    ("ce-id", text("1")),
    ("ce-source", text("/s")),
    ("ce-type", text("a.b")),
)
ENDINGS: list[tuple[str, Raw]] = [
    ("invalid_envelope", Raw(properties=headers((b"\xff\xfe", b"V")))),
    ("invalid_envelope", Raw(properties={"timestamp": b"\xff" * 8})),
    ("invalid_envelope", Raw(properties=headers(("t", b"T" + b"\xff" * 8)))),
    ("invalid_envelope", Raw(properties={"message_id": short(b"\xc3\x28")})),
    ("invalid_envelope", Raw(properties={"content_type": short(b"\xff" * 255)})),
    ("invalid_envelope", Raw(properties=headers(("deep", nested(1_000))))),
    ("invalid_envelope", Raw(properties=headers(("deep", nested(2_000, b"A"))))),
    ("invalid_envelope", Raw(properties={"message_id": short(b"a\0b")})),
    ("invalid_envelope", Raw(properties={"app_id": short(b"a\r\nb: c")})),
    ("invalid_envelope", Raw(properties=headers(("tenant", b"l" + b"\x80" + b"\0" * 7), ("subject", b"F\0\0\0\0")))),
    ("invalid_envelope", Raw(properties=headers(*CLOUD_EVENT, ("CE-ID", text("2"))))),
    ("invalid_envelope", Raw(properties=headers(*CLOUD_EVENT, ("ce-x", b"F\0\0\0\0")))),
    ("invalid_envelope", Raw(properties=headers(*CLOUD_EVENT[:3]))),
    ("invalid_type", Raw(properties=headers(*CLOUD_EVENT[:3], ("ce-type", text("a..b"))))),
    ("invalid_type", Raw(properties={"type": short(b" ")})),
    ("invalid_type", Raw(properties={"type": short("\u202e.evil")})),
    ("not_json", Raw(b"")),
    ("not_json", Raw(b"\0" * 100_000)),
    ("not_json", Raw(b"[" * 200_000)),
    ("not_json", Raw(b'{"a":' * 40_000 + b"1" + b"}" * 40_000)),
    ("not_json", Raw(b'"\\ud800"')),
    ("not_json", Raw(b"1" * 200_000)),
    ("not_json", Raw(b"{}", properties={"content_encoding": short("gzip")} | headers(*CLOUD_EVENT, ("content-type", text("text/html"))))),
    ("too_large", Raw(b" " * 262_145)),
    ("too_large", Raw(b"x" * 10_000_000)),
    ("delivered", Raw(b"[" * 254 + b"]" * 254)),
    ("delivered", Raw(b'"' + b"x" * 262_142 + b'"')),
    ("delivered", Raw(properties=headers((b"k" * 255, b"V"), (b"k" * 254, b"V")))),
    ("delivered", Raw(properties=headers(("", text(b"\xff")), ("a", b"V"), ("a", b"t\x01")))),
    ("delivered", Raw(properties=headers(("n", b"d\x7f\xef" + b"\xff" * 6), ("m", b"D\xff\x80\0\0\0")))),
    ("delivered", Raw(properties=headers(("one", text("x" * (LARGEST_HEADERS - 9)))))),
    ("delivered", Raw(properties={"priority": b"\xff", "delivery_mode": b"\x01"})),
    ("delivered", Raw(properties={"expiration": short("600000")})),
    ("delivered", Raw(properties={"correlation_id": short(b"x" * 255), "reply_to": short(b"x" * 255), "cluster_id": short(b"x" * 255)})),
    ("delivered", Raw(properties={"timestamp": struct.pack(">Q", 2**32 * 1000)})),
    ("delivered", Raw(properties={"timestamp": b"\0" * 8})),
    ("delivered", Raw(properties=headers(("traceparent", text("00-" + "0" * 32)), ("tracestate", text("x\r\ny: z"))))),
    ("delivered", Raw(properties=headers(("CC", b"A" + long(text("thing.copied") * 200))))),
    ("delivered", Raw(properties=headers(("BCC", b"A" + long(text("#")))))),
    ("delivered", Raw(properties=headers(("x-delivery", text("{}")), ("x-subscriptions", text("a,b"))))),
    ("delivered", Raw(properties=headers(("x-death", b"A" + long(b"F" + table(("count", b"l" + b"\x7f" * 8), ("reason", text("expired")), ("queue", text("q")))))))),
    ("delivered", Raw(properties=headers(("x-delivery-count", b"l" + b"\x7f" * 8), ("x-first-death-queue", text("q"))))),
    ("delivered", Raw(properties=headers(("x-rejected-reason", text("poison")), ("x-undecodable", text("mine"))))),
    ("not_json", Raw(b"?", properties=headers(("x-rejected-reason", text("mine")), ("x-rejected-detail", b"V"), ("x-rejected-message-id", b"F\0\0\0\0"), ("x-rejected-at", text(b"\xff"))))),
    ("not_json", Raw(b"?", properties=headers(("x-match", text("all")), ("CC", b"A" + long(text("other")))))),
    ("not_json", Raw(b"?", properties=headers(("huge", text("x" * 100_000))))),
    ("not_json", Raw(b"?", properties={"message_id": short("x" * 255), "app_id": short("y" * 255)})),
    ("not_json", Raw(b"?", properties=headers(("d", b"d\x7f\xef" + b"\xff" * 6)))),
]  # fmt: skip


async def test_what_no_library_would_send_ends_by_its_name(watch):
    cases = [
        (name, replace(message, key=f"case.{number}".encode()))
        for number, (name, message) in enumerate(ENDINGS)
    ]
    taken = await asyncio.to_thread(watch.go_through, [message for _, message in cases])
    assert len(taken) == len(cases), "the broker refuses some of these"
    reasons = watch.reasons()
    told = [(message, reasons.get(message.key.decode(), "delivered")) for _, message in cases]
    assert told == [(message, name) for name, message in cases]
    expected = sorted(name for name, _ in cases if name != "delivered")
    rejected = await watch.it.until_parked("rejected", len(expected))
    assert sorted(line["reason"] for line in rejected) == expected


# Were each byte that is no UTF-8 read as a character of three bytes, the rejected copy would have a routing
# key that is too long to be published, and the session would be given up, again and again.
async def test_a_routing_key_that_is_no_text_costs_one_message_and_not_the_connection(watch):
    keys = [b"\xff\xfe", b"a.\xc3", b"\x80" * 255, b"ok\0"]
    taken = await asyncio.to_thread(watch.go_through, [Raw(key=key) for key in keys], 10)
    assert len(taken) == len(keys)
    assert set(watch.reasons().values()) == {"invalid_type"}


async def test_a_routing_key_of_any_text_is_a_type_or_is_rejected_as_none(watch):
    bad = [
        b"",
        b".",
        b"a..b",
        b"*",
        b"#.a",
        b"a b",
        "\u00e9".encode() * 127,
        b"\x7f",
        b"a" * 255 + b"",
    ]
    good = [b"a" * 255, b".".join([b"a"] * 128), b"-", b"/:+~@_"]
    bad.pop()
    await asyncio.to_thread(watch.go_through, [Raw(key=key) for key in [*bad, *good]])
    assert watch.reasons() == {key.decode(): "invalid_type" for key in bad}
    assert {request.json()["type"] for request in watch.receiver.requests} >= {
        key.decode() for key in good
    }


# The library copies the rest of a table at each of its fields, which would take seconds of the event loop
# for 128 KiB of fields; attempts at healthy targets would time out meanwhile.
async def test_headers_of_very_many_fields_do_not_hold_up_everybody_else(watch):
    fields = b"V" * (LARGEST_HEADERS - 11)
    many = [Raw(properties=headers(("many", b"A" + long(fields)))) for _ in range(8)]
    before = cpu_seconds(watch.dispatcher.pid)
    await asyncio.to_thread(watch.go_through, many, 60)
    assert cpu_seconds(watch.dispatcher.pid) - before < 2.0


async def test_ten_megabytes_a_message_do_not_add_up(watch):
    def resident() -> int:
        return int(Path(f"/proc/{watch.dispatcher.pid}/statm").read_text().split()[1]) * 4096

    await asyncio.to_thread(watch.go_through, [Raw(b" " * 10_000_000)] * 5)
    before = resident()
    for _ in range(3):
        await asyncio.to_thread(watch.go_through, [Raw(b" " * 10_000_000)] * 5)
    assert resident() - before < 60_000_000


ENTRY = (("queue", text("q")), ("reason", text("rejected")), ("count", b"l" + b"\0" * 7 + b"\1"))
DEATHS = {
    "numbers": b"b\1b\2",
    "a text": text("q"),
    "an empty entry": b"F" + table(),
    "a count that is a text": b"F" + table(*ENTRY[:2], ("count", text("1"))),
    "a queue that is a number": b"F" + table(("queue", b"b\1"), *ENTRY[1:]),
    "no reason": b"F" + table(ENTRY[0], ENTRY[2]),
    "one that is none": b"F" + table(*ENTRY) + b"V",
}


# RabbitMQ's worker for dead letters dies of these, again and again, and with it the delay ladder.
async def test_a_forged_history_of_a_large_event_stops_no_retries(it):
    answers = itertools.cycle([503, 200])
    async with Recorder(answer=lambda _: next(answers)) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["1s"], "jitter": 0})
        )
        large = [
            Raw(b" " * 300_000, name.encode(), headers(("x-death", b"A" + long(deaths))))
            for name, deaths in DEATHS.items()
        ]
        sound = Raw(
            b" " * 300_001, b"sound", headers(("x-death", b"A" + long(b"F" + table(*ENTRY))))
        )
        taken = await asyncio.to_thread(send_all, it, [*large, sound, Raw()])
        assert len(taken) == len(large) + 2
        await dispatcher.line("attempt.succeeded")
        await dispatcher.line("event.rejected", len(large) + 1)
        assert await dispatcher.stop() == 0
    parked = await it.until_parked("rejected", len(large) + 1)
    told = {line["routing_key"]: line for line in parked}
    assert {line["reason"] for line in told.values()} == {"too_large"}
    assert told.pop("sound")["bytes"] == 300_001
    assert told.keys() == DEATHS.keys()
    assert all("300000 bytes" in line["detail"] for line in told.values())


# An event that expires in the queue is not one that could not be settled.
async def test_an_event_that_its_producer_lets_expire_is_listed_as_expired(it):
    dispatcher = await it.dispatcher(subscription("s", "http://127.0.0.1:1/"))
    assert await dispatcher.stop() == 0
    await asyncio.to_thread(send_all, it, [Raw(b'{"n": 1}', properties={"expiration": short("0")})])
    [line] = await it.until_parked("rejected", 1)
    assert line["reason"] == "expired"
    assert "settled" not in line["detail"]


EVENT = Event("an-id-of-16-chars", "a.b", "/s", "2030-01-01T00:00:00Z", 1.9e9, b"{}")
WRITTEN = delivery_properties(Delivery(event=EVENT, subscription_id="s", created_at=time.time()))
STATE: dict[str, Any] = json.loads(str((WRITTEN.headers or {})["x-delivery"]))


def forged(state: object, body: bytes = b"{}", **more: bytes) -> Raw:
    """Return a message as if the dispatcher had put a delivery off; for a Station's backlog lane."""
    told = state if isinstance(state, bytes) else json.dumps(state).encode()
    written = headers(("x-delivery", text(told)), *more.items())
    return Raw(body, b"", written, exchange="")


def with_one_wrong(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the state with one value at a time replaced by one of another kind, or left out."""
    wrong: tuple[Any, ...] = (
        None,
        True,
        -1,
        1e300,
        "text",
        [],
        [[]],
        {},
        {"a": 1},
        "x\r\ny: z",
        2**63,
    )
    for name, other in itertools.product([name for name in state if name != "event"], wrong):
        yield state | {name: other}
    for name, other in itertools.product(state["event"], wrong):
        yield state | {"event": state["event"] | {name: other}}
    yield from ({k: v for k, v in state.items() if k != name} for name in state)


# What is read without a check fails somewhere later: 50 faults, a second apart.
async def test_forged_deliveries_end_and_never_as_a_fault(watch):
    lane = f"{watch.it.prefix}.deliveries".encode()
    lies = [forged(state) for state in with_one_wrong(STATE)]
    lies += [
        forged(b"{}"),
        forged(b"[]"),
        forged(b"\xff"),
        forged(b"[" * 50_000),
        forged(STATE, b"not json"),
        forged(STATE, **{"x-subscriptions": b"F\0\0\0\0"}),
        forged(STATE, **{"x-subscriptions": text("s,s,,nobody")}),
        Raw(b"{}", exchange=""),
    ]
    taken = await asyncio.to_thread(send_all, watch.it, [replace(lie, key=lane) for lie in lies])
    assert len(taken) == len(lies)
    with wire(watch.it.amqp_url) as broker:
        await watch.dispatcher.until(  # some may wait, with a time to come that is possible
            lambda: broker.count(lane.decode()) == 0 and watch.ended >= len(lies) - 8
        )
    assert await watch.dispatcher.stop() == 0
    watch.see_that_it_is_well()
    with wire(watch.it.amqp_url) as broker:
        assert broker.is_empty(lane.decode())
    assert len(watch.receiver.requests) <= len(lies)


SHORT = st.one_of(
    st.text(max_size=60).map(lambda told: told.encode(errors="replace")), st.binary(max_size=255)
).map(lambda raw: short(raw[:255]))
NAMES = st.sampled_from(
    ["ce-id", "ce-type", "ce-source", "ce-specversion", "ce-time", "cloudEvents:id", "tenant",
     "subject", "traceparent", "tracestate", "content-type", "x-death", "x-delivery",
     "x-rejected-reason", "x-rejected-message-id", "x-undecodable"],
).map(str.encode)  # fmt: skip
KEYS = st.one_of(NAMES, st.binary(max_size=40), st.text(max_size=40).map(str.encode))
TEXTS = st.one_of(
    st.sampled_from(["1.0", "a.b", "/s", "2030-01-01T00:00:00Z", "application/json", "", "\0"]),
    st.text(max_size=300),
    st.binary(max_size=300),
)
SCALARS = st.one_of(
    st.just(b"V"),
    TEXTS.map(text),
    st.binary(min_size=8, max_size=8).map(lambda raw: b"T" + raw),
    st.binary(min_size=8, max_size=8).map(lambda raw: b"l" + raw),
    st.binary(min_size=4, max_size=4).map(lambda raw: b"I" + raw),
    st.binary(min_size=1, max_size=1).map(lambda raw: b"t" + raw),
    st.binary(min_size=5, max_size=5).map(lambda raw: b"D" + raw),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda n: b"d" + struct.pack(">d", n)),
    st.binary(max_size=50).map(lambda raw: b"x" + long(raw)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda values: b"A" + long(b"".join(values))),
        st.lists(st.tuples(KEYS, inner), max_size=4).map(lambda entries: b"F" + table(*entries)),
    ),
    max_leaves=12,
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=50)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)
BODIES = st.one_of(JSON.map(lambda told: json.dumps(told).encode()), st.binary(max_size=200))
ROUTES = st.one_of(
    st.just(b"thing.made"), st.text(max_size=60).map(lambda told: told.encode(errors="replace"))
)
MESSAGES = st.builds(
    Raw,
    body=BODIES,
    key=ROUTES,
    properties=st.fixed_dictionaries(
        {},
        optional={
            "content_type": st.one_of(st.just(short("application/cloudevents+json")), SHORT),
            "content_encoding": SHORT,
            "headers": st.lists(st.tuples(KEYS, VALUES), max_size=8).map(lambda it: table(*it)),
            "delivery_mode": st.sampled_from([b"\1", b"\2"]),
            "priority": st.binary(min_size=1, max_size=1),
            "correlation_id": SHORT,
            "reply_to": SHORT,
            "message_id": SHORT,
            "timestamp": st.binary(min_size=8, max_size=8),
            "type": SHORT,
            "app_id": SHORT,
            "cluster_id": SHORT,
        },
    ),
)


async def test_whatever_is_published_is_delivered_or_rejected(watch):
    @settings(
        max_examples=8,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a real process does not get simpler by trying again
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(MESSAGES, min_size=15, max_size=30))
    def go_through(messages: list[Raw]) -> None:
        watch.go_through(messages)

    await asyncio.to_thread(go_through)
    assert watch.published > 100
    rejected = len(watch.dispatcher.of("event.rejected"))
    assert rejected > 20
    with wire(watch.it.amqp_url) as broker:
        queue = f"{watch.it.prefix}.rejected"
        await watch.dispatcher.until(lambda: broker.count(queue) == rejected)
    listed = await watch.it.command("rejected", "list", "--json")
    assert len([json.loads(line) for line in listed.strip("\n").split("\n")]) == rejected
