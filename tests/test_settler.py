"""What has been settled one way is never settled another: no ack overtakes a message turned away."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from service.broker import settler as module
from service.broker.settler import ALONE_AFTER, FLUSH_AFTER, Settler
from tests.test_broker import until


class Channel:
    """Takes acks at once; lets a message be given back only when `room` is there.

    As a connection does whose queue of frames is full just then.
    """

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.frames: list[tuple[Any, ...]] = []

    async def basic_ack(self, tag: int, *, multiple: bool, wait: bool) -> None:
        self.frames.append(("ack", tag, multiple))

    async def basic_reject(self, tag: int, *, requeue: bool, wait: bool) -> None:
        await self.room.wait()
        self.frames.append(("reject", tag))

    async def basic_nack(self, tag: int, *, requeue: bool, wait: bool) -> None:
        await self.room.wait()
        self.frames.append(("nack", tag))


@pytest.mark.parametrize(("way", "frame"), [("turn_away", "reject"), ("requeue", "nack")])
async def test_no_ack_of_many_overtakes_a_message_given_back(way, frame):
    channel = Channel()
    settler = Settler(channel, 8, pytest.fail)  # type: ignore[arg-type]
    for tag in (1, 2, 3, 4):
        settler.opened(tag)
    settler.ack(1)
    settler.ack(3)
    settler.ack(4)
    giving_back = asyncio.create_task(getattr(settler, way)(2))
    await until(lambda: ("ack", 4, False) in channel.frames)
    assert not giving_back.done()
    assert channel.frames[0] == ("ack", 1, False)
    assert not [
        tag for kind, tag, *many in channel.frames if kind == "ack" and tag > 1 and any(many)
    ]
    channel.room.set()
    await giving_back
    assert channel.frames[-1] == (frame, 2)


async def test_acks_go_on_by_prefix_once_a_message_was_given_back():
    channel = Channel()
    channel.room.set()
    settler = Settler(channel, 8, pytest.fail)  # type: ignore[arg-type]
    for tag in (1, 2, 3):
        settler.opened(tag)
    await settler.turn_away(1)
    settler.ack(2)
    settler.ack(3)
    await settler.finish()
    assert channel.frames == [("reject", 1), ("ack", 3, True)]


async def test_nothing_is_sent_on_a_channel_that_is_gone():
    channel = Channel()
    channel.room.set()
    settler = Settler(channel, 8, pytest.fail)  # type: ignore[arg-type]
    settler.opened(1)
    settler.close()
    settler.ack(1)
    await settler.turn_away(1)
    await settler.requeue(1)
    assert channel.frames == []


async def test_a_channel_is_empty_when_the_last_message_is_settled_and_its_ack_sent():
    channel = Channel()
    settler = Settler(channel, 8, pytest.fail)  # type: ignore[arg-type]
    for tag in (1, 2):
        settler.opened(tag)
    emptied = asyncio.create_task(settler.emptied())
    settler.ack(2)
    await until(lambda: channel.frames == [("ack", 2, False)])
    assert settler.alone == 1
    assert not emptied.done()
    settler.ack(1)
    await emptied
    assert channel.frames[1:] == [("ack", 1, False)]


async def test_acks_behind_a_message_wait_for_it_and_go_with_it(monkeypatch):
    monkeypatch.setattr(module, "ALONE_AFTER", 60.0)
    channel = Channel()
    settler = Settler(channel, 400, pytest.fail)  # type: ignore[arg-type]
    for tag in range(1, 101):
        settler.opened(tag)
    for tag in range(2, 101):
        settler.ack(tag)
    await asyncio.sleep(3 * FLUSH_AFTER)
    settler.ack(1)
    await until(lambda: channel.frames)
    assert (channel.frames, settler.alone) == ([("ack", 100, True)], 0)


async def test_acks_behind_a_message_go_alone_when_it_takes_longer():
    channel = Channel()
    settler = Settler(channel, 400, pytest.fail)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    for tag in (1, 2, 3):
        settler.opened(tag)
    began = loop.time()
    settler.ack(2)
    settler.ack(3)
    await until(lambda: len(channel.frames) == 2)
    assert loop.time() - began >= ALONE_AFTER
    assert channel.frames == [("ack", 2, False), ("ack", 3, False)]


async def test_a_quarter_of_what_is_free_may_wait_behind_a_message(monkeypatch):
    monkeypatch.setattr(module, "ALONE_AFTER", 60.0)
    channel = Channel()
    settler = Settler(channel, 10, pytest.fail)  # type: ignore[arg-type]
    for tag in (1, 2, 3, 4):
        settler.opened(tag)
    settler.ack(2)
    settler.ack(3)
    await asyncio.sleep(5 * FLUSH_AFTER)
    assert channel.frames == []
    settler.ack(4)
    await until(lambda: len(channel.frames) == 3)
    assert channel.frames == [("ack", tag, False) for tag in (2, 3, 4)]


@pytest.mark.parametrize(("acks", "may_be"), [(31, False), (32, True), (100, True)])
async def test_many_acks_in_a_moment_may_be_held_back_by_the_broker_for_that_moment(
    monkeypatch, acks, may_be
):
    channel = Channel()
    settler = Settler(channel, 400, pytest.fail)  # type: ignore[arg-type]
    for tag in range(1, acks + 1):
        settler.opened(tag)
        settler.ack(tag)
        await settler.finish()
    assert len(channel.frames) == acks
    assert settler.may_be_held_back(within=10.0) is may_be
    later = asyncio.get_running_loop().time() + 11.0
    monkeypatch.setattr(settler, "_loop", SimpleNamespace(time=lambda: later))
    assert not settler.may_be_held_back(within=10.0)


async def test_what_waits_behind_a_message_is_acked_at_the_end(monkeypatch):
    monkeypatch.setattr(module, "ALONE_AFTER", 60.0)
    channel = Channel()
    settler = Settler(channel, 400, pytest.fail)  # type: ignore[arg-type]
    for tag in (1, 2):
        settler.opened(tag)
    settler.ack(2)
    await settler.finish()
    assert channel.frames == [("ack", 2, False)]


async def test_a_channel_that_is_gone_is_not_waited_for():
    settler = Settler(Channel(), 8, pytest.fail)  # type: ignore[arg-type]
    settler.opened(1)
    emptied = asyncio.create_task(settler.emptied())
    await asyncio.sleep(0)
    settler.close()
    await emptied
