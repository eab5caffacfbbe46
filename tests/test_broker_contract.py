"""One contract for two brokers: what the fake promises to the tests, a real RabbitMQ does."""

import asyncio
import uuid
from collections.abc import Iterator

import pika  # type: ignore[import-untyped]
import pytest

from service.broker import opening, topology
from service.broker.opening import Address
from service.broker.topology import Topology
from service.clock import SystemClock
from tests.broker_contract import CONTRACT, Law, Rig
from tests.fake_broker import WANTED, FakeBroker, FakeClock, run, standing_in

_LEVELS = tuple(f"delay.{level:02}" for level in (0, 1, 2, 14, 16))
_USED = ("intake", "deliveries", "dead", "rejected", "unrouted", *_LEVELS)


@pytest.fixture(scope="module")
def declared(broker, leftovers) -> Iterator[Topology]:
    """A topology on the real broker that all laws share: declaring one takes longer than a law."""
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    wanted = topology.topology(prefix, f"{prefix}.events", ["#"])

    async def declare() -> None:
        found = await opening.open_connection(broker.url, Address([broker.url]), "a test")
        await topology.declare(found, wanted)
        await found.close()

    asyncio.run(declare())
    yield wanted
    names = [exchange.name for exchange in (wanted.events, *wanted.exchanges)]
    leftovers.add([queue.name for queue in wanted.queues], names)


@pytest.fixture
def empty(broker, declared: Topology) -> Topology:
    bare = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = bare.channel()
    for name in _USED:
        channel.queue_purge(f"{declared.names.prefix}.{name}")
    bare.close()
    return declared


@pytest.mark.parametrize("law", CONTRACT, ids=lambda law: law.__name__)
def test_rabbitmq_keeps_the_contract(law: Law, broker, empty: Topology):
    asyncio.run(law(Rig(broker.url, empty, SystemClock())))


@pytest.mark.parametrize("law", CONTRACT, ids=lambda law: law.__name__)
def test_the_fake_keeps_the_contract(law: Law):
    clock = FakeClock()
    with standing_in(FakeBroker(WANTED)):
        run(law(Rig("amqp://fake/", WANTED, clock)), clock)
