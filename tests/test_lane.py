"""Lanes: when they change their channel, and that one which was told to stop begins nothing more."""

import asyncio
from typing import Any

import pytest
from pamqp.commands import Basic

from service.broker import consumer
from service.broker.consumer import Lane, Message
from service.broker.frames import Received
from tests.broker_contract import Silence, until


class Channel:
    """Notes what is cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.acked: list[int] = []

    async def basic_cancel(self, consumer_tag: str) -> None:
        self.cancelled.append(consumer_tag)

    async def basic_ack(self, tag: int, *, multiple: bool, wait: bool) -> None:
        self.acked.append(tag)


class Channels:
    """Gives out channels, and notes those that it gets back."""

    def __init__(self) -> None:
        self.given: list[Channel] = []
        self.let_gone: list[Channel] = []

    async def to_consume(self) -> Channel:
        self.given.append(Channel())
        return self.given[-1]

    async def let_go(self, channel: Channel) -> None:
        self.let_gone.append(channel)


def _message(tag: int) -> Received:
    return Received(tag, False, "events", "order.shipped", Basic.Properties(), b"{}")


async def test_a_lane_stopped_while_it_begins_to_consume_takes_nothing_and_cancels(monkeypatch):
    channels: Any = Channels()
    asked, answered = asyncio.Event(), asyncio.Event()
    given, taken = [], []

    async def consume(_channel, _queue, take, _prefetch, _largest):
        given.append(take)
        asked.set()
        await answered.wait()
        return "the consumer"

    async def handler(message):
        taken.append(message)

    monkeypatch.setattr(consumer, "consume", consume)
    lane = Lane("intake", "queue", 8, handler, Silence())
    beginning = asyncio.create_task(lane.consume(channels, pytest.fail))
    await asked.wait()
    await lane.stop()
    answered.set()
    given[0](_message(1))
    await beginning
    assert channels.given[0].cancelled == ["the consumer"]
    assert (lane.in_flight, taken) == (0, [])
    await lane.drained()
    await lane.consume(channels, pytest.fail)
    lane.begin()
    assert len(given) == 1


class Traffic:
    """A lane with a prefetch of 8 of which one ack alone is many, and what it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.channels: Any = Channels()
        self.prefetches: list[int] = []
        self._takes: list[Any] = []
        self._go_on: dict[int, asyncio.Event] = {}
        self._tags = 0
        self.messages: list[Message] = []
        monkeypatch.setattr(consumer, "consume", self._consume)
        monkeypatch.setattr(consumer, "MANY_ALONE", 1)
        monkeypatch.setattr(consumer, "LINGER", 0.0)
        monkeypatch.setattr(consumer, "CHANGE_WITHIN", 0.0)
        monkeypatch.setattr(consumer, "CHANGE_EVERY", 0.0)
        self.lane = Lane("intake", "queue", 8, self._handle, Silence())

    async def begin(self) -> "Traffic":
        await self.lane.consume(self.channels, pytest.fail)
        self.lane.begin()
        return self

    def come(self) -> int:
        """Let a message come over the newest channel, which hangs; returns its tag."""
        self._tags += 1
        self._go_on[self._tags] = asyncio.Event()
        self._takes[-1](_message(self._tags))
        return self._tags

    async def obstruct(self, channel: int) -> int:
        """Let a message be in the way of another's ack from one look to the next; returns its tag."""
        in_the_way = self.come()
        await self.lane.look()
        await self.end(self.come(), channel)
        await self.lane.look()
        return in_the_way

    async def end(self, tag: int, channel: int) -> None:
        """Let a message be finished, and wait for its ack."""
        self._go_on[tag].set()
        await until(lambda: tag in self.channels.given[channel].acked)

    async def _consume(self, _channel, _queue, take, prefetch, _largest) -> str:
        self._takes.append(take)
        self.prefetches.append(prefetch)
        return f"consumer {len(self._takes)}"

    async def _handle(self, message: Message) -> None:
        self.messages.append(message)
        await self._go_on[message.tag].wait()
        message.ack()


async def test_a_lane_takes_its_whole_prefetch_again_when_nothing_is_in_the_way(monkeypatch):
    it = await Traffic(monkeypatch).begin()
    in_the_way = [*(it.come() for _ in range(3)), await it.obstruct(0)]
    assert it.prefetches == [8, 4]
    assert it.channels.given[0].cancelled == ["consumer 1"]
    await it.lane.look()
    assert it.prefetches == [8, 4]
    for tag in in_the_way:
        await it.end(tag, 0)
    await until(lambda: it.channels.let_gone == it.channels.given[:1])
    await it.lane.look()
    assert it.prefetches == [8, 4, 8]


async def test_a_channel_stays_for_a_while_after_its_last_ack(monkeypatch):
    it = await Traffic(monkeypatch).begin()
    monkeypatch.setattr(consumer, "LINGER", 0.2)
    in_the_way = await it.obstruct(0)
    loop = asyncio.get_running_loop()
    ended = loop.time()
    await it.end(in_the_way, 0)
    await until(lambda: it.channels.let_gone)
    assert loop.time() - ended >= 0.2


async def test_a_lane_leaves_no_more_than_four_channels_behind(monkeypatch):
    it = Traffic(monkeypatch)
    monkeypatch.setattr(it.lane, "prefetch", 100)
    await it.begin()
    for turn in range(7):
        await it.obstruct(min(turn, 4))
    assert len(it.channels.given) == 1 + consumer.CHANNELS_LEFT


async def test_a_lane_changes_its_channel_for_many_acks_alone_only(monkeypatch):
    it = await Traffic(monkeypatch).begin()
    monkeypatch.setattr(consumer, "MANY_ALONE", 2)
    it.come()
    for _ in range(3):
        await it.end(it.come(), 0)
        await it.lane.look()
    assert len(it.channels.given) == 1


async def test_a_lane_keeps_its_channel_while_it_is_never_the_same_message_that_is_in_the_way(
    monkeypatch,
):
    it = await Traffic(monkeypatch).begin()
    in_the_way = it.come()
    for _ in range(3):
        await it.end(it.come(), 0)
        await it.lane.look()
        ended, in_the_way = in_the_way, it.come()
        await it.end(ended, 0)
    assert it.channels.given[0].acked == [2, 1, 4, 3, 6, 5]
    assert len(it.channels.given) == 1


async def test_a_lane_does_not_change_its_channel_again_soon(monkeypatch):
    it = await Traffic(monkeypatch).begin()
    monkeypatch.setattr(consumer, "CHANGE_EVERY", 0.5)
    loop = asyncio.get_running_loop()
    before = loop.time()
    await it.obstruct(0)
    it.come()
    while len(it.channels.given) == 2:
        await it.end(it.come(), 1)
        await it.lane.look()
    assert loop.time() - before >= 0.5


async def test_a_lane_that_is_stopped_while_it_changes_its_channel_begins_no_other(monkeypatch):
    it = await Traffic(monkeypatch).begin()
    it.come()
    await it.lane.look()
    await it.end(it.come(), 0)

    async def stop() -> Channel:
        await it.lane.stop()
        return Channel()

    monkeypatch.setattr(it.channels, "to_consume", stop)
    await it.lane.look()
    assert it.prefetches == [8]
    assert it.channels.given[0].cancelled == ["consumer 1"]


async def test_a_lane_whose_channels_are_gone_settles_nothing_on_any_of_them(monkeypatch):
    it = await Traffic(monkeypatch).begin()
    await it.obstruct(0)
    it.come()
    await until(lambda: len(it.messages) == 3)
    it.lane.abandon()
    assert all(message.lost for message in it.messages)
    await it.lane.cut_off()
    assert it.channels.let_gone == []


async def test_a_drain_sees_the_acks_of_every_channel_leave(monkeypatch):
    it = await Traffic(monkeypatch).begin()
    in_the_way = await it.obstruct(0)
    last = it.come()
    await it.lane.stop()
    for tag in (in_the_way, last):
        it._go_on[tag].set()
    await it.lane.drained()
    assert [channel.acked for channel in it.channels.given] == [[2, in_the_way], [last]]


async def test_what_is_not_in_the_way_is_worked_off_before_a_channel_is_changed(monkeypatch):
    it = await Traffic(monkeypatch).begin()
    monkeypatch.setattr(consumer, "CHANGE_WITHIN", 20.0)
    tags = [it.come() for _ in range(7)]
    await it.lane.look()
    await it.end(tags[-1], 0)
    looking = asyncio.create_task(it.lane.look())
    await until(lambda: it.channels.given[0].cancelled)
    assert it.prefetches == [8]
    for tag in tags[4:6]:
        await it.end(tag, 0)
    await looking
    assert it.prefetches == [8, 4]


@pytest.mark.parametrize(("acks", "waits"), [(31, False), (32, True)])
async def test_a_drain_gives_the_broker_time_for_many_acks_and_only_then(monkeypatch, acks, waits):
    monkeypatch.setattr(consumer, "CATCHES_UP", 60.0)
    it = await Traffic(monkeypatch).begin()
    for _ in range(acks):
        await it.end(it.come(), 0)
    drained = asyncio.create_task(it.lane.drained())
    await asyncio.wait([drained], timeout=0.5 if waits else 20.0)
    assert drained.done() is not waits
    drained.cancel()
