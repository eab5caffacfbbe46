"""A lane that was told to stop begins nothing more, whatever the broker still sends."""

import asyncio
from typing import Any

import pytest
from pamqp.commands import Basic

from service.broker import consumer
from service.broker.consumer import Lane
from service.broker.deliveries import Delivered
from tests.broker_contract import Silence


class Channel:
    """Notes what is cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def basic_cancel(self, consumer_tag: str) -> None:
        self.cancelled.append(consumer_tag)


class Channels:
    """Gives out one."""

    def __init__(self) -> None:
        self.one = Channel()

    async def to_consume(self) -> Channel:
        return self.one


def _message(tag: int) -> Delivered:
    return Delivered(tag, False, "events", "order.shipped", Basic.Properties(), b"{}")


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
    assert channels.one.cancelled == ["the consumer"]
    assert (lane.in_flight, taken) == (0, [])
    await lane.drained()
    await lane.consume(channels, pytest.fail)
    assert len(given) == 1
