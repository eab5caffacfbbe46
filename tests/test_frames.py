"""Deliveries are taken off the stream: whole, in order, whatever the network does to the bytes."""

import asyncio
import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
from aiormq.connection import FrameReceiver
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import encode, frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from service.broker.frames import FrameReader, Received
from service.broker.wire import Undecodable, properties


def delivery(
    tag: int, body: bytes, told: Basic.Properties, channel: int = 1, part: int = 50
) -> bytes:
    method = Basic.Deliver("consumer", tag, tag % 2 == 0, "events", f"key.{tag}")
    parts = [body[at : at + part] for at in range(0, len(body), part)]
    frames: list[Any] = [method, ContentHeader(0, len(body), told), *map(ContentBody, parts)]
    return b"".join(frame.marshal(one, channel) for one in frames)


async def received(stream: bytes, cuts: list[int]) -> tuple[list[Received], list[Any]]:
    """Feed the stream cut into pieces; returns what the sink got and the frames the library got."""
    inner = asyncio.StreamReader()
    reader = FrameReader(inner)
    got: list[Received] = []
    reader.sinks[1] = got.append
    library = FrameReceiver(reader)  # type: ignore[arg-type]
    frames: list[Any] = []

    async def read() -> None:
        try:
            while True:
                frames.append((await library.get_frame())[1:])
        except Exception:  # noqa: BLE001 - the library's many words for the end of a stream
            return

    reading = asyncio.create_task(read())
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    for start, end in itertools.pairwise(places):
        inner.feed_data(stream[start:end])
        await asyncio.sleep(0)
    inner.feed_eof()
    await reading
    return got, frames


BODIES = st.lists(st.binary(max_size=200), min_size=1, max_size=6)


@given(BODIES, st.lists(st.integers(0, 5000), max_size=8))
@settings(deadline=None)
async def test_whatever_the_network_does_to_the_bytes_every_message_arrives_whole(bodies, cuts):
    stream = b""
    for tag, body in enumerate(bodies, 1):
        stream += delivery(tag, body, Basic.Properties(message_id=str(tag)))
        stream += Heartbeat().marshal()
    got, frames = await received(stream, cuts)
    assert [one.body for one in got] == bodies
    assert [one.tag for one in got] == list(range(1, len(bodies) + 1))
    assert [one.redelivered for one in got] == [tag % 2 == 0 for tag in range(1, len(bodies) + 1)]
    assert [one.routing_key for one in got] == [f"key.{tag}" for tag in range(1, len(bodies) + 1)]
    assert len(frames) == len(bodies)


async def test_channels_without_a_sink_are_the_librarys():
    stream = delivery(1, b"ours", Basic.Properties()) + delivery(
        2, b"theirs", Basic.Properties(), 2
    )
    got, frames = await received(stream, [])
    assert [one.body for one in got] == [b"ours"]
    assert [channel for channel, _ in frames] == [2, 2, 2]


async def test_deliveries_of_two_channels_may_interleave():
    inner = asyncio.StreamReader()
    reader = FrameReader(inner)
    got: list[Received] = []
    reader.sinks = {1: got.append, 2: got.append}
    one, two = (delivery(n, b"x" * 90, Basic.Properties(), channel=n) for n in (1, 2))
    first = frame.unmarshal(one)[0]
    inner.feed_data(one[:first] + two + one[first:] + Heartbeat().marshal())
    await FrameReceiver(reader).get_frame()  # type: ignore[arg-type]
    assert [delivered.tag for delivered in got] == [2, 1]


async def test_a_steady_stream_of_deliveries_does_not_look_like_a_dead_peer(monkeypatch):
    inner = asyncio.StreamReader()
    reader = FrameReader(inner)
    reader.sinks[1] = lambda _: None
    reader._shown -= 5.0
    inner.feed_data(delivery(1, b"x", Basic.Properties()))
    told = await FrameReceiver(reader).get_frame()  # type: ignore[arg-type]
    assert isinstance(told[2], Heartbeat)


VALUES = st.recursive(
    st.text(max_size=20)
    | st.integers(-(2**31), 2**31 - 1)
    | st.booleans()
    | st.binary(max_size=10).map(bytearray)
    | st.none()
    | st.integers(1, 4_000_000_000).map(lambda unix: datetime.fromtimestamp(unix, UTC)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
SHORT = st.text(max_size=40).filter(lambda text: len(text.encode()) < 256)


@given(
    st.dictionaries(SHORT, VALUES, max_size=6),
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": SHORT, "content_encoding": SHORT, "correlation_id": SHORT,
            "reply_to": SHORT, "expiration": SHORT, "message_id": SHORT, "message_type": SHORT,
            "user_id": SHORT, "app_id": SHORT, "delivery_mode": st.sampled_from([1, 2]),
            "priority": st.integers(0, 9),
            "timestamp": st.just(datetime(2026, 1, 1, tzinfo=UTC)),
        },
    ),
)  # fmt: skip
@settings(deadline=None)
def test_properties_are_decoded_as_the_library_decodes_them(headers, more):
    sent = Basic.Properties(headers=headers or None, **more)
    data = sent.marshal()
    theirs = ContentHeader()
    theirs.unmarshal(ContentHeader(0, 0, sent).marshal())
    ours = properties(data)
    for name in Basic.Properties.__slots__:
        # An empty text and none are the same on the wire.
        assert (getattr(ours, name) or None) == (getattr(theirs.properties, name) or None), name


@given(st.binary(max_size=300))
def test_whatever_bytes_stand_for_properties_something_comes_back(data):
    assert isinstance(properties(data), Basic.Properties)


@pytest.mark.parametrize(
    "table",
    [
        b"\x00\x00\x00\x08\x01a?\x00\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x03\x02\xff\xfe",
        b"\x00\x00\x00\x0b\x01aT\xff\xff\xff\xff\xff\xff\xff\xff",
        encode.field_table({"a": {"b": [1]}})[:-3],
    ],
)
def test_a_table_that_cannot_be_read_costs_one_message(table):
    told = properties(b"\x20\x00" + table)
    assert isinstance(told.headers, Undecodable)


def test_a_table_nested_without_end_costs_one_message():
    inner = b""
    for _ in range(20_000):
        inner = b"\x01aF" + len(inner).to_bytes(4, "big") + inner
    told = properties(b"\x20\x00" + len(inner).to_bytes(4, "big") + inner)
    assert isinstance(told.headers, Undecodable)
    assert "RecursionError" in told.headers.reason
