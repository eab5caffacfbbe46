"""A publisher that is told no: it tries again, over another channel, and loses sight of nothing."""

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from pamqp.commands import Basic

from service.broker import publisher, publishes
from service.broker.publisher import GATHER, Confirmed, Publisher, Refused, Unconfirmed
from service.broker.publishes import PublishChannel
from service.errors import BrokerError
from tests.test_broker import until
from tests.test_publishes import Wire, turns


class Session:
    """Channels on one wire, numbered from 1; `full` opens no more."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.opened = 0
        self.gone: list[int] = []
        self.failures: list[str] = []
        self.full = False

    async def to_publish(self) -> Any:
        await asyncio.sleep(0)
        if self.full:
            raise BrokerError("too many channels")
        self.opened += 1
        closing = asyncio.get_running_loop().create_future()
        return SimpleNamespace(number=self.opened, connection=self.wire, closing=closing)

    async def let_go(self, channel: Any) -> None:
        self.gone.append(channel.number)
        channel.closing.set_result(None)

    async def publisher(self, patience: float = 60.0) -> Publisher:
        it = Publisher(patience, gather=0.0)
        await it.use(self, self.failures.append)
        return it


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(publisher, "NACK_PAUSE", 0.01)


def sent_over_the_second(session: Session, count: int) -> bool:
    return session.wire.published(channel=2) == count


async def refused_beside_a_slow_one(
    session: Session, it: Publisher
) -> "tuple[asyncio.Task[Any], asyncio.Task[Any]]":
    """Return a publish that goes over the second channel now, and one without an answer on the first."""
    refused, slow = publishing(it), publishing(it)
    await turns()
    await session.wire.answer(Basic.Nack(1))
    await until(partial(sent_over_the_second, session, 1))
    return refused, slow


def publishing(it: Publisher) -> "asyncio.Task[Any]":
    return asyncio.create_task(it.publish("x", "", b"x", Basic.Properties()))


async def test_what_was_refused_goes_over_another_channel_and_the_old_one_is_closed_when_all_is_answered():
    session = Session()
    it = await session.publisher()
    refused, slow = await refused_beside_a_slow_one(session, it)
    assert not session.gone
    await session.wire.answer(Basic.Ack(1), channel=2)
    assert await refused == Confirmed()
    await session.wire.answer(Basic.Ack(2))
    assert await slow == Confirmed()
    await until(lambda: session.gone == [1])
    after = publishing(it)
    await turns()
    await session.wire.answer(Basic.Ack(2), channel=2)
    assert await after == Confirmed()
    assert not session.failures


async def test_the_channel_is_not_changed_at_every_no():
    session = Session()
    it = await session.publisher()
    refused = publishing(it)
    await turns()
    await session.wire.answer(Basic.Nack(1))
    for number in range(1, 6):
        await until(partial(sent_over_the_second, session, number))
        await session.wire.answer(Basic.Nack(number) if number < 5 else Basic.Ack(5), channel=2)
    assert await refused == Confirmed()
    assert session.opened == 2


async def test_whoever_is_refused_at_once_with_others_changes_the_channel_once():
    session = Session()
    it = await session.publisher()
    refused = [publishing(it) for _ in range(20)]
    await turns()
    await session.wire.answer(Basic.Nack(20, multiple=True))
    await until(partial(sent_over_the_second, session, 20))
    await session.wire.answer(Basic.Ack(20, multiple=True), channel=2)
    assert await asyncio.gather(*refused) == [Confirmed()] * 20
    assert session.opened == 2


async def test_where_no_channel_can_be_opened_the_session_is_given_up():
    session = Session()
    it = await session.publisher()
    refused, slow = publishing(it), publishing(it)
    await turns()
    session.full = True
    await session.wire.answer(Basic.Nack(1))
    reason = "no other channel could be opened: too many channels"
    assert await refused == await slow == Unconfirmed(reason)
    assert session.failures == [reason]


async def test_a_session_that_ends_takes_channels_with_it_that_wait_for_answers():
    session = Session()
    it = await session.publisher()
    refused, slow = await refused_beside_a_slow_one(session, it)
    it.abandon()
    assert await refused == await slow == Unconfirmed("the session was given up")
    assert await publishing(it) == Unconfirmed("not connected to the broker")
    assert not session.failures


async def test_what_is_refused_for_too_long_ends_the_session(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(publishes, "_now", lambda: clock.now)
    session = Session()
    it = await session.publisher(patience=60.0)
    refused = publishing(it)
    await turns()
    clock.now = 59.0
    await session.wire.answer(Basic.Nack(1))
    await until(partial(sent_over_the_second, session, 1))
    clock.now = 61.0
    await session.wire.answer(Basic.Nack(1), channel=2)
    assert await refused == Unconfirmed("'x' took no message for too long")
    assert session.failures == ["'x' took no message for too long"]


async def test_who_has_patience_for_less_is_told_of_the_refusal_and_ends_nothing(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(publishes, "_now", lambda: clock.now)
    session = Session()
    it = await session.publisher()
    refused = asyncio.create_task(it.publish("x", "", b"x", Basic.Properties(), patience=5.0))
    await turns()
    clock.now = 4.0
    await session.wire.answer(Basic.Nack(1))
    await until(partial(sent_over_the_second, session, 1))
    clock.now = 6.0
    await session.wire.answer(Basic.Nack(1), channel=2)
    assert await refused == Refused()
    assert not session.failures


async def test_what_a_dispatcher_publishes_gathers_on_every_channel(monkeypatch):
    gathered: list[float] = []

    class Channel(PublishChannel):
        def __init__(self, *told: Any) -> None:
            super().__init__(*told)
            gathered.append(self._gather)
            self._gather = 0.0

    monkeypatch.setattr(publisher, "PublishChannel", Channel)
    session = Session()
    it = Publisher(60.0)
    await it.use(session, session.failures.append)
    refused, slow = await refused_beside_a_slow_one(session, it)
    assert gathered == [GATHER, GATHER]
    assert GATHER > 0
    await session.wire.answer(Basic.Ack(1), channel=2)
    await session.wire.answer(Basic.Ack(2))
    assert [await refused, await slow] == [Confirmed(), Confirmed()]


async def test_no_channel_is_opened_while_an_alarm_is_up_and_what_it_takes_does_not_count(
    monkeypatch,
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(publishes, "_now", lambda: clock.now)
    session = Session()
    it = await session.publisher(patience=60.0)
    refused = publishing(it)
    await turns()
    it.blocked, clock.now = True, 600.0
    await session.wire.answer(Basic.Nack(1))
    await until(lambda: session.wire.published() == 2)
    assert session.opened == 1
    it.blocked = False
    await session.wire.answer(Basic.Nack(2))
    await until(partial(sent_over_the_second, session, 1))
    await session.wire.answer(Basic.Ack(1), channel=2)
    assert await refused == Confirmed()
    assert not session.failures
