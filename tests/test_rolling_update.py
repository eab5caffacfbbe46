"""A rolling update as the cluster does it: the replacement is ready before the old replica is told to end."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from service.publish import Publisher
from tests.dispatcher import Dispatcher, Station, station, subscription
from tests.receivers import Answer, Recorder

RATE = 100
"""Events a second, spread evenly."""


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


class Load:
    """Publishes at a steady rate until it is told to stop, and knows what it published."""

    def __init__(self, it: Station) -> None:
        self._it = it
        self._over = asyncio.Event()
        self._published = asyncio.Condition()
        self.ids: list[str] = []

    async def run(self) -> None:
        async with Publisher(self._it.amqp_url, self._it.exchange) as publisher:
            started = time.monotonic()
            while not self._over.is_set():
                self.ids.append(await publisher.publish("order.shipped", {"n": len(self.ids)}))
                async with self._published:
                    self._published.notify_all()
                await asyncio.sleep(max(0.0, started + len(self.ids) / RATE - time.monotonic()))

    async def go_on(self, more: int) -> None:
        """Wait until so many more are published."""
        wanted = len(self.ids) + more
        async with self._published:
            await self._published.wait_for(lambda: len(self.ids) >= wanted)

    def stop(self) -> None:
        self._over.set()


async def _replace(it: Station, old: Dispatcher, **settings: str) -> Dispatcher:
    """Do what a Deployment does with maxSurge 1 and maxUnavailable 0, to one replica."""
    fresh = await it.new(**settings).start()
    assert await old.stop() == 0
    [stopped] = old.of("service.stopped")
    assert stopped["left"] == 0
    return fresh


async def test_two_replicas_are_replaced_under_load_without_loss_or_doubles(it):
    # Slow enough for several deliveries to be in flight at any moment.
    async with Recorder(answer=lambda _: Answer(delay=0.2)) as receiver:
        settings = {"INTAKE_PREFETCH": "64"}
        replicas = [await it.dispatcher(subscription("a", receiver.url), **settings)]
        replicas.append(await it.new(**settings).start())
        load = Load(it)
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            group.create_task(load.run())
            await load.go_on(RATE)
            for number, old in enumerate(replicas):
                replicas[number] = await _replace(it, old, **settings)
                await load.go_on(RATE)
            load.stop()
        await receiver.wait_for(len(load.ids), timeout=30)
        for replica in replicas:
            assert await replica.stop() == 0
    assert Counter(r.headers["webhook-id"] for r in receiver.requests) == Counter(load.ids)
    for replica in replicas:
        assert replica.of("attempt.succeeded"), "a replacement did no work"


async def test_a_replica_that_drains_is_not_ready_and_alive(it):
    answered = asyncio.Event()

    async def answer(_: object) -> Answer:
        await answered.wait()
        return Answer()

    async with Recorder(answer=answer) as receiver:
        dispatcher = await it.dispatcher(subscription("a", receiver.url))
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            await publisher.publish("order.shipped", {})
        await receiver.wait_for(1)
        ending = asyncio.create_task(dispatcher.stop())
        await dispatcher.line("service.draining")
        assert (await dispatcher.get("/readyz"))[0] == 503
        assert (await dispatcher.get("/livez"))[0] == 200
        answered.set()
        assert await ending == 0
    assert len(receiver.requests) == 1
    [stopped] = dispatcher.of("service.stopped")
    assert stopped["left"] == 0


async def test_a_replica_that_cannot_finish_in_time_ends_all_the_same_and_loses_nothing(it):
    unanswered = asyncio.Event()

    async def answer(_: object) -> Answer:
        if not unanswered.is_set():
            unanswered.set()
            await asyncio.Event().wait()
        return Answer()

    async with Recorder(answer=answer) as receiver:
        dispatcher = await it.dispatcher(subscription("a", receiver.url), DRAIN_TIMEOUT="500ms")
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            event_id = await publisher.publish("order.shipped", {})
        await unanswered.wait()
        started = time.monotonic()
        assert await dispatcher.stop() == 0
        assert time.monotonic() - started < 10
        [stopped] = dispatcher.of("service.stopped")
        assert stopped["left"] == 1
        await it.new().start()
        requests = await receiver.wait_for(2, timeout=20)
    assert {request.headers["webhook-id"] for request in requests} == {event_id}
