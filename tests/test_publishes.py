"""Publishes past the library: every one is answered once, whatever the broker or the network does."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from service.broker import publishes
from service.broker.frames import FrameReader, FrameTransport, register
from service.broker.publishes import BUFFERED, Alarm, Answer, PublishChannel
from service.broker.wire import Undecodable, body_frames, head_frames, properties, whole


def frames_of(data: bytes) -> list[tuple[int, Any]]:
    found = []
    while data:
        size, channel, one = frame.unmarshal(data)
        found.append((channel, one))
        data = data[size:]
    return found


@given(st.binary(max_size=300), st.integers(9, 200))
@settings(deadline=None)
def test_a_publish_is_whole_frames_of_the_size_that_the_broker_takes(body, largest):
    told = Basic.Properties(message_id="m", headers={"x": "y"})
    sent = head_frames(7, "events", "a.b", told, len(body))
    pieces = body_frames(7, body, largest)
    (_, method), (_, header), *bodies = frames_of(sent + b"".join(pieces))
    assert (method.exchange, method.routing_key, method.mandatory) == ("events", "a.b", True)
    assert (header.body_size, header.properties) == (len(body), told)
    assert b"".join(piece.value for _, piece in bodies) == body
    assert all(8 < len(piece) <= largest for piece in pieces)


short = st.text(max_size=60)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=30, alphabet=st.characters(max_codepoint=127)), inner)
    ),
    max_leaves=8,
)
messages = st.builds(
    Basic.Properties,
    content_type=short | st.none(),
    content_encoding=short | st.none(),
    headers=st.dictionaries(st.text(max_size=32), values) | st.none(),
    delivery_mode=st.sampled_from((None, 1, 2)),
    priority=st.integers(0, 255) | st.none(),
    correlation_id=short | st.none(),
    reply_to=short | st.none(),
    expiration=short | st.none(),
    message_id=short | st.none(),
    timestamp=st.none()
    | st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
        lambda at: at.replace(microsecond=0)
    ),
    message_type=short | st.none(),
    user_id=short | st.none(),
    app_id=short | st.none(),
)


@given(messages, st.integers(0, 2**40))
@settings(deadline=None)
def test_properties_are_written_so_that_the_library_reads_them_and_we_do(told, size):
    [_, (channel, header)] = frames_of(head_frames(7, "events", "a.b", told, size))
    assert (channel, header.body_size, values_of(header.properties)) == (7, size, values_of(told))
    theirs = frame.marshal(ContentHeader(body_size=size, properties=told), 7)
    ours = properties(theirs[7 + 12 : -1])
    assert not isinstance(ours.headers, Undecodable)
    assert values_of(ours) == values_of(told)


numbers = st.floats(allow_nan=False)


@given(numbers, st.text("ab", min_size=129, max_size=255))
@settings(deadline=None)
def test_numbers_and_names_are_written_whole_by_us_and_where_the_library_publishes(number, name):
    inner = [number, {name: number}]
    told = Basic.Properties(headers={name: number, name[:-1]: inner, "table": {name: inner}})
    [_, (_, header)] = frames_of(head_frames(7, "events", "a.b", told, 0))
    assert header.properties.headers == told.headers
    [(_, header)] = frames_of(frame.marshal(ContentHeader(body_size=0, properties=whole(told)), 7))
    assert header.properties.headers == told.headers


def values_of(told: Basic.Properties) -> dict[str, Any]:
    """An empty text, or an empty table, is as good as none."""
    return {name: getattr(told, name) or None for name in Basic.Properties.__slots__}


@pytest.mark.parametrize(
    "told",
    [
        Basic.Properties(message_id="x" * 256),
        Basic.Properties(headers={"k" * 256: "v"}),
        Basic.Properties(headers={"k": "\ud800"}),
        Basic.Properties(headers={"k": b"bytes"}),
        Basic.Properties(headers={"k": 2**63}),
    ],
    ids=["a long id", "a long name", "half a character", "bytes", "a large number"],
)
def test_what_a_message_cannot_carry_is_an_error(told):
    with pytest.raises((TypeError, ValueError)):
        head_frames(7, "events", "a.b", told, 0)


def test_a_body_is_one_frame_where_the_broker_takes_any_size():
    assert len(body_frames(1, b"x" * 1_000_000, 0)) == 1
    assert body_frames(1, b"", 0) == body_frames(1, b"", 4096) == []


class Wire:
    """A connection whose other end is a test: `sent` is what was written, `room` whether more can be."""

    def __init__(self) -> None:
        self.sent = b""
        self.waiting = 0
        self.room = asyncio.Event()
        self.room.set()
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: self.waiting)
        self.connection_tune = SimpleNamespace(frame_max=4096)
        self.stream = asyncio.StreamReader()
        self.library = FrameReader(self.stream)
        self.reading = asyncio.create_task(self.library.readexactly(1))
        told = FrameTransport()
        told.reader, told.writer = self.library, self  # type: ignore[assignment]
        register(self, told)  # type: ignore[arg-type]

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        await self.room.wait()

    async def answer(self, *frames: Any, channel: int = 1) -> None:
        self.stream.feed_data(b"".join(frame.marshal(one, channel) for one in frames))
        await turns()

    def published(self, channel: int = 1) -> int:
        return sum(
            isinstance(one, Basic.Publish) and number == channel
            for number, one in frames_of(self.sent)
        )


class Rig:
    def __init__(self, timeout: float = 60.0, gather: float = 0.0) -> None:
        self.wire = Wire()
        self.alarm = Alarm()
        self.failures: list[str] = []
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel: Any = SimpleNamespace(number=1, connection=self.wire, closing=self.closing)
        self.channel = PublishChannel(channel, timeout, self.alarm, self.failures.append, gather)

    def publish(self, count: int = 1, body: bytes = b"x") -> list["asyncio.Future[Answer]"]:
        return [self.channel.publish("x", "a.b", body, Basic.Properties()) for _ in range(count)]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def answers(publishes: list["asyncio.Future[Answer]"]) -> list[Answer | None]:
    return [one.result() if one.done() else None for one in publishes]


TAKEN, REFUSED, UNKNOWN = Answer.TAKEN, Answer.REFUSED, Answer.UNKNOWN


async def test_an_ack_answers_one_or_all_up_to_it():
    it = Rig()
    publishes = it.publish(5)
    await turns()
    await it.wire.answer(Basic.Ack(2))
    assert answers(publishes) == [None, TAKEN, None, None, None]
    await it.wire.answer(Basic.Ack(4, multiple=True))
    assert answers(publishes) == [TAKEN, TAKEN, TAKEN, TAKEN, None]
    await it.wire.answer(Basic.Nack(5))
    assert answers(publishes)[4] is REFUSED
    assert not it.failures


async def test_answers_come_in_any_order_and_an_unknown_one_is_nothing():
    it = Rig()
    publishes = it.publish(4)
    await turns()
    await it.wire.answer(Basic.Ack(3), Basic.Ack(3), Basic.Ack(99), Basic.Nack(2, multiple=True))
    assert answers(publishes) == [REFUSED, REFUSED, TAKEN, None]
    await it.wire.answer(Basic.Ack(99, multiple=True))
    assert answers(publishes)[3] is TAKEN


async def test_a_return_is_not_taken_for_the_ack_that_follows_it():
    it = Rig()
    publishes = it.publish(2)
    back = (Basic.Return(312, "NO_ROUTE", "x", "a.b"), ContentHeader(0, 3), ContentBody(b"abc"))
    await it.wire.answer(*back, Basic.Ack(2, multiple=True))
    assert answers(publishes) == [UNKNOWN, UNKNOWN]
    assert it.failures == ["'x' has no queue for a message: topology is missing"]
    assert answers(it.publish()) == [UNKNOWN]
    assert not it.wire.reading.done()  # the library saw nothing of it


async def test_a_closed_channel_answers_all():
    it = Rig()
    publishes = it.publish(2)
    await turns()
    it.closing.set_exception(ConnectionError("gone"))
    await turns()
    assert answers(publishes) == [UNKNOWN, UNKNOWN]
    assert answers(it.publish()) == [UNKNOWN]
    assert it.wire.published() == 2
    assert not it.wire.library.answers


async def test_what_there_is_no_room_for_waits_in_order_and_is_answered_when_the_channel_ends():
    it = Rig()
    half = b"x" * (BUFFERED // 2)
    it.wire.room.clear()
    publishes = it.publish(5, half)
    await turns()
    assert it.wire.published() == 2
    publishes += it.publish(1, half)
    await turns()
    assert it.wire.published() == 2
    it.wire.room.set()
    await turns()
    assert it.wire.published() == 6
    it.wire.room.clear()
    publishes += it.publish(4, half)
    publishes[-1].cancel()
    await turns()
    assert it.wire.published() == 8
    it.channel.end("told to")
    assert answers(publishes[:-1]) == [UNKNOWN] * 9
    await turns()
    assert it.wire.published() == 8


async def test_publishes_of_one_turn_of_the_loop_leave_in_one_write(monkeypatch):
    it = Rig()
    writes: list[bytes] = []
    monkeypatch.setattr(it.wire, "write", writes.append)
    it.publish(3)
    await turns()
    it.publish(2)
    await turns()
    assert [len(frames_of(data)) for data in writes] == [9, 6]


async def test_publishes_that_come_within_the_time_to_gather_leave_in_one_write(monkeypatch):
    it = Rig(gather=0.2)
    writes: list[bytes] = []
    written = asyncio.Event()

    def write(data: bytes) -> None:
        writes.append(data)
        written.set()

    monkeypatch.setattr(it.wire, "write", write)
    for _ in range(3):
        it.publish()
        await turns()
    assert not writes
    await asyncio.wait_for(written.wait(), 10)
    assert [len(frames_of(data)) for data in writes] == [9]


async def test_what_gathers_is_answered_and_never_sent_when_the_channel_ends():
    it = Rig()
    [publish] = it.publish()
    it.channel.end("over")
    assert answers([publish]) == [UNKNOWN]
    await turns()
    assert not it.wire.sent


async def test_a_connection_that_breaks_while_publishes_wait_for_room_answers_all(monkeypatch):
    it = Rig()

    async def broken() -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(it.wire, "drain", broken)
    it.wire.waiting = BUFFERED + 1
    publishes = it.publish(3)
    await turns()
    assert answers(publishes) == [UNKNOWN] * 3
    assert len(it.failures) == 1


async def test_a_publish_on_a_closed_connection_is_answered(monkeypatch):
    it = Rig()

    def closed(_: bytes) -> None:
        raise RuntimeError("the handler is closed")

    publishes = it.publish()
    await turns()
    monkeypatch.setattr(it.wire, "write", closed)
    publishes += it.publish(2)
    await turns()
    assert answers(publishes) == [UNKNOWN] * 3
    assert it.failures == ["a publish failed: RuntimeError the handler is closed"]


async def test_a_cancelled_publish_that_was_not_sent_never_is_and_takes_no_number():
    it = Rig()
    it.wire.room.clear()
    it.wire.waiting = BUFFERED + 1
    publishes = it.publish(3)
    publishes[1].cancel()
    it.wire.room.set()
    await turns()
    await it.wire.answer(Basic.Ack(2))
    assert answers([publishes[0], publishes[2]]) == [None, TAKEN]


async def test_what_is_not_answered_in_time_ends_the_channel():
    it = Rig(0.05)
    publishes = it.publish(2)
    await asyncio.wait(publishes, timeout=5)
    assert answers(publishes) == [UNKNOWN] * 2
    assert it.failures == ["a publish was not confirmed in time"]


async def test_nothing_is_late_while_the_broker_is_blocked():
    it = Rig(0.05)
    it.alarm.note(is_up=True)
    publishes = it.publish(2)
    done, _ = await asyncio.wait(publishes, timeout=0.3)
    assert not done
    it.alarm.note(is_up=False)
    await it.wire.answer(Basic.Ack(1))
    await asyncio.wait(publishes, timeout=5)
    assert answers(publishes) == [TAKEN, UNKNOWN]


async def test_what_was_published_before_an_alarm_has_its_whole_time_after_it(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(publishes, "_now", lambda: clock.now)
    it = Rig(60.0)
    waiting = it.publish()
    for clock.now, is_up in ((59.0, True), (119.0, False)):
        it.alarm.note(is_up=is_up)
    for clock.now, answer in ((120.0, None), (179.0, UNKNOWN)):
        it.channel._look()
        assert answers(waiting) == [answer]


def test_the_quiet_time_leaves_alarms_out(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(publishes, "_now", lambda: clock.now)
    alarm, told = Alarm(), []
    for clock.now, is_up in ((105.0, True), (107.0, True), (110.0, False), (111.0, False)):
        alarm.note(is_up=is_up)
        told.append(alarm.quiet_time())
    assert told == [105.0, 105.0, 105.0, 106.0]


async def test_a_publish_that_nobody_waits_for_any_longer_is_not_late():
    it = Rig(0.05)
    [publish] = it.publish()
    await turns()
    publish.cancel()
    await asyncio.sleep(0.2)
    assert not it.failures
    await it.wire.answer(Basic.Ack(1))
    assert publish.cancelled()


async def test_what_cannot_be_encoded_is_its_publishers_alone():
    it = Rig()
    [publish] = it.publish()
    with pytest.raises(Exception, match="exchange"):
        it.channel.publish("x" * 256, "", b"", Basic.Properties())
    await turns()
    await it.wire.answer(Basic.Ack(1))
    await asyncio.wait([publish], timeout=5)
    assert answers([publish]) == [TAKEN]
    assert not it.failures
