"""What the dispatcher relies on in a broker, as laws that RabbitMQ and the fake both have to keep.

Each law is a coroutine over a `Rig`.  The lower half speaks AMQP over a bare connection; the upper half
uses the broker layer (session, lanes, publisher, outbox, walks).  Nothing here knows which broker it
talks to, nor whether its clock is a real one.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiormq.exceptions import AMQPError, PublishError
from pamqp.commands import Basic

from service.broker import codec, opening, rejected
from service.broker.connection import Broker
from service.broker.consumer import Handler, Lane, Message
from service.broker.opening import Address
from service.broker.outbox import Outbox
from service.broker.parked import Parked, ParkedQueue, Place
from service.broker.publisher import Confirmed, Publisher, Unconfirmed
from service.broker.topology import POISON_LIMIT, Topology
from service.clock import Clock
from service.core import ladder
from service.core.delivery import Attempt, Burial, Delivery, Reason
from service.core.event import Event
from service.errors import EventRejected

PATIENCE = 20.0


class Silence:
    """A log that nobody reads."""

    def debug(self, event: str, **fields: Any) -> None: ...

    info = warning = error = debug


@dataclass(frozen=True, slots=True)
class Rig:
    """A broker whose topology is declared and whose queues are empty; `url` is where it is."""

    url: str
    wanted: Topology
    clock: Clock

    def queue(self, name: str) -> str:
        return f"{self.wanted.names.prefix}.{name}"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """Give a bare connection."""
        found = await opening.open_connection(self.url, Address([self.url]), "a test")
        try:
            yield found
        finally:
            await found.close()

    @asynccontextmanager
    async def channel(self, *, prefetch: int = 0) -> AsyncIterator[Any]:
        """Give a channel with confirms on a connection of its own."""
        async with self.connected() as found:
            channel = await found.channel(publisher_confirms=True, on_return_raises=True)
            await channel.basic_qos(prefetch_count=prefetch)
            yield channel

    async def ready(self, name: str) -> int:
        """Return how many messages wait in a queue, those that somebody holds left out."""
        async with self.channel() as channel:
            found = await channel.queue_declare(self.queue(name), passive=True)
            return int(found.message_count)

    async def until_ready(self, name: str, *messages: int) -> None:
        """Wait until so many do: RabbitMQ counts none of a quorum queue that is slow to answer."""

        async def reached() -> bool:
            return await self.ready(name) in messages

        await until(reached)

    async def put(self, name: str, *bodies: bytes) -> None:
        """Publish straight into a queue, confirmed."""
        async with self.channel() as channel:
            for body in bodies:
                await channel.basic_publish(
                    body, routing_key=self.queue(name), properties=durable(), mandatory=True
                )

    async def consume(self, channel: Any, name: str) -> tuple[list[Any], str]:
        """Return a list that grows as messages come, and the consumer's tag."""
        got: list[Any] = []

        async def take(message: Any) -> None:
            got.append(message)

        consuming = await channel.basic_consume(self.queue(name), take)
        return got, consuming.consumer_tag

    @asynccontextmanager
    async def layer(
        self, handler: Handler | None = None, *, queue: str = "intake", prefetch: int = 100
    ) -> AsyncIterator["Layer"]:
        """Give a running broker layer with one lane; without a handler it keeps and acks."""
        got: list[Message] = []

        async def keep(message: Message) -> None:
            got.append(message)
            message.ack()

        silence = Silence()
        lane = Lane("a lane", self.queue(queue), prefetch, handler or keep, silence)
        publisher = Publisher(10.0)
        broker = Broker(
            Address([self.url]),
            replace(self.wanted, exchanges=(), queues=(), bindings=()),
            [lane],
            publisher,
            silence,
            self.clock,
            declare=True,
            on_waiting=lambda _: None,
        )
        running = asyncio.create_task(broker.run())
        try:
            await until(lambda: broker.consuming)
            outbox = Outbox(publisher, self.wanted.names, self.clock)
            yield Layer(broker, lane, publisher, outbox, got)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Layer:
    """The broker layer with one lane; `got` is what it kept."""

    broker: Broker
    lane: Lane
    publisher: Publisher
    outbox: Outbox
    got: list[Message] = field(default_factory=list)

    def lose(self) -> None:
        """Lose the session, as at the first sign of trouble."""
        session = self.broker._session
        assert session is not None
        session.fail("a test")


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds, by the running loop's clock."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert loop.time() < deadline, "the condition did not come to hold in time"
        await asyncio.sleep(0.02)


async def longer_than(length: int, got: list[Any]) -> None:
    await until(lambda: len(got) > length)


Law = Callable[[Rig], Coroutine[Any, Any, None]]
CONTRACT: list[Law] = []


def law(function: Law) -> Law:
    CONTRACT.append(function)
    return function


def durable(**headers: Any) -> Basic.Properties:
    return Basic.Properties(delivery_mode=2, headers=headers)


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def bodies(messages: list[Any]) -> list[bytes]:
    return [message.body for message in messages]


def delivery(number: int = 1, subscription_id: str = "billing") -> Delivery:
    event = Event(
        f"event-{number:05}-of-16", "order.created", "shop", "2027-01-15T08:00:00Z", 1.8e9,
        b'{"total": 9007199254740993}', tenant="acme", extensions={"region": "r\u00fcgen"},
    )  # fmt: skip
    attempt = Attempt(1.8e9, "https://a.example/", 500, "status 500", 12, "oops")
    return Delivery(event, subscription_id, 1.8e9, 2, 1, 3, 1.8e9, 1.8e9, (attempt,))


# AMQP over a bare connection.


@law
async def a_confirmed_publish_is_in_its_queue(rig: Rig) -> None:
    await rig.put("dead", *numbered(3))
    await rig.until_ready("dead", 3)


@law
async def a_publish_that_no_queue_takes_is_returned(rig: Rig) -> None:
    async with rig.channel() as channel:
        with pytest.raises(PublishError):
            await channel.basic_publish(
                b"x", routing_key="nowhere", properties=durable(), mandatory=True
            )


@law
async def a_publish_to_an_exchange_that_is_missing_ends_its_channel(rig: Rig) -> None:
    async with rig.channel() as channel:
        with pytest.raises((AMQPError, asyncio.CancelledError)):
            await channel.basic_publish(b"x", exchange="missing", properties=durable())
        await until(lambda: channel.is_closed)


@law
async def what_no_binding_takes_goes_to_the_catch_all(rig: Rig) -> None:
    deliveries = rig.queue("deliveries")
    async with rig.channel() as channel:
        await channel.queue_unbind(deliveries, deliveries)
        try:
            await channel.basic_publish(b"x", exchange=rig.queue("delay.02"), mandatory=True)
        finally:
            await channel.queue_bind(deliveries, deliveries)
    await rig.until_ready("unrouted", 1)


@law
async def a_message_enters_the_levels_of_its_headers_and_passes_the_others(rig: Rig) -> None:
    ways = {
        "delay.16": ("delay.16", 1),
        "delay.15": ("delay.14", 1),
        "delay.14": ("delay.14", 2),
        "delay.13": ("deliveries", 1),
    }
    async with rig.channel() as channel:
        for exchange, (queue, count) in ways.items():
            await channel.basic_publish(
                b"x",
                exchange=rig.queue(exchange),
                properties=durable(**ladder.headers(2**16 + 2**14)),
                mandatory=True,
            )
            await rig.until_ready(queue, count)


@law
async def an_event_reaches_the_intake_whatever_its_routing_key(rig: Rig) -> None:
    async with rig.channel() as channel:
        for key in ("order.created", "order", "a.b.c.d"):
            await channel.basic_publish(
                b"x", exchange=rig.wanted.events.name, routing_key=key, mandatory=True
            )
    await rig.until_ready("intake", 3)


@law
async def messages_come_in_the_order_of_their_publishing(rig: Rig) -> None:
    await rig.put("intake", *numbered(50))
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 50)
    assert bodies(got) == numbered(50)
    assert not any(message.redelivered for message in got)


@law
async def an_acked_message_is_gone(rig: Rig) -> None:
    await rig.put("intake", *numbered(3))
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 3)
        await channel.basic_ack(got[1].delivery_tag)
    await rig.until_ready("intake", 2)


@law
async def one_message_is_got_with_the_count_of_the_rest_and_goes_back(rig: Rig) -> None:
    await rig.put("intake", *numbered(3))
    async with rig.channel() as channel:
        got = await channel.basic_get(rig.queue("intake"))
        assert (got.body, got.delivery.message_count) == (b"0", 2)
        await channel.basic_nack(got.delivery_tag, requeue=True)
    await rig.until_ready("intake", 3)
    async with rig.channel() as channel:
        again, _ = await rig.consume(channel, "intake")
        await until(lambda: len(again) == 3)
        assert isinstance((await channel.basic_get(rig.queue("intake"))).delivery, Basic.GetEmpty)
    assert bodies(again) == numbered(3)


@law
async def one_ack_settles_all_before_it(rig: Rig) -> None:
    await rig.put("intake", *numbered(5))
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 5)
        await channel.basic_ack(got[3].delivery_tag, multiple=True)
    await rig.until_ready("intake", 1)


@law
async def an_ack_of_what_is_settled_ends_the_channel(rig: Rig) -> None:
    await rig.put("intake", *numbered(2))
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 2)
        await channel.basic_ack(got[0].delivery_tag)
        with suppress(AMQPError, asyncio.CancelledError):  # some tell of it at once, some later
            await channel.basic_ack(got[0].delivery_tag)
        await until(lambda: channel.is_closed)
    await rig.until_ready("intake", 1)


@law
async def what_was_not_acked_comes_back_marked_when_its_connection_ends(rig: Rig) -> None:
    await rig.put("intake", *numbered(3))
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 3)
        await channel.basic_ack(got[0].delivery_tag)
    async with rig.channel() as channel:
        again, _ = await rig.consume(channel, "intake")
        await until(lambda: len(again) == 2)
    assert bodies(again) == [b"1", b"2"]
    assert all(message.redelivered for message in again)
    assert [m.header.properties.headers["x-delivery-count"] for m in again] == [1, 1]
    assert "x-delivery-count" not in (got[0].header.properties.headers or {})


@law
async def what_came_back_is_sent_before_what_is_new(rig: Rig) -> None:
    await rig.put("intake", *numbered(4))
    async with rig.channel(prefetch=2) as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 2)
    async with rig.channel() as channel:
        again, _ = await rig.consume(channel, "intake")
        await until(lambda: len(again) == 4)
    assert bodies(again) == numbered(4)


@law
async def a_requeued_message_comes_back_marked(rig: Rig) -> None:
    await rig.put("intake", b"x")
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 1)
        await channel.basic_nack(got[0].delivery_tag, requeue=True)
        await until(lambda: len(got) == 2)
    assert got[1].redelivered
    assert got[1].body == b"x"


@law
async def a_message_that_comes_back_too_often_is_parked_with_its_cause(rig: Rig) -> None:
    await rig.put("intake", b"poison")
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "intake")
        for seen in range(POISON_LIMIT + 1):
            await longer_than(seen, got)
            await channel.basic_nack(got[seen].delivery_tag, requeue=True)
        await rig.until_ready("rejected", 1)
        assert len(got) == POISON_LIMIT + 1
        parked, _ = await rig.consume(channel, "rejected")
        await until(lambda: parked)
    headers = parked[0].header.properties.headers
    assert headers["x-death"][0]["reason"] == "delivery_limit"
    assert parked[0].routing_key == got[0].routing_key


@law
async def a_message_that_is_refused_is_parked_with_its_cause(rig: Rig) -> None:
    await rig.put("intake", *numbered(2))
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 2)
        await channel.basic_reject(got[0].delivery_tag, requeue=False)
        await rig.until_ready("rejected", 1)
        parked, _ = await rig.consume(channel, "rejected")
        await until(lambda: parked)
    assert parked[0].body == b"0"
    assert parked[0].header.properties.headers["x-first-death-reason"] == "rejected"
    await rig.until_ready("intake", 1)


@law
async def nobody_holds_more_than_the_prefetch(rig: Rig) -> None:
    await rig.put("intake", *numbered(10))
    async with rig.channel(prefetch=3) as channel:
        got, _ = await rig.consume(channel, "intake")
        await until(lambda: len(got) == 3)
        await rig.until_ready("intake", 7)
        await channel.basic_ack(got[1].delivery_tag)
        await rig.until_ready("intake", 6)
        await until(lambda: len(got) == 4)


@law
async def two_consumers_share_a_queue(rig: Rig) -> None:
    async with rig.channel(prefetch=5) as first, rig.channel(prefetch=5) as second:
        one, _ = await rig.consume(first, "intake")
        two, _ = await rig.consume(second, "intake")
        await rig.put("intake", *numbered(10))
        await until(lambda: len(one) == len(two) == 5)
    assert sorted(bodies(one + two)) == numbered(10)


@law
async def a_cancelled_consumer_keeps_what_it_holds(rig: Rig) -> None:
    await rig.put("intake", *numbered(2))
    async with rig.channel(prefetch=1) as channel:
        got, tag = await rig.consume(channel, "intake")
        await until(lambda: got)
        await channel.basic_cancel(tag)
        await rig.until_ready("intake", 1)
        await channel.basic_ack(got[0].delivery_tag)
    await rig.until_ready("intake", 1)


@law
async def properties_arrive_as_they_were_sent(rig: Rig) -> None:
    sent = Basic.Properties(
        content_type="application/json", delivery_mode=2, message_id="m1", message_type="a.b",
        app_id="shop", headers={"text": "r\u00fcgen", "number": 7, "nested": {"yes": True}},
    )  # fmt: skip
    async with rig.channel() as channel:
        await channel.basic_publish(b"x", routing_key=rig.queue("dead"), properties=sent)
        got, _ = await rig.consume(channel, "dead")
        await until(lambda: got)
    seen = got[0].header.properties
    for name in Basic.Properties.attributes():
        assert (getattr(seen, name) or None) == (getattr(sent, name) or None), name


# The broker layer.


class Rejecting:
    """A handler that rejects every message, by the outbox that it is given; `done` tells what came of it."""

    outbox: Outbox

    def __init__(self) -> None:
        self.done: list[bool] = []

    async def __call__(self, message: Message) -> None:
        self.done.append(await self.outbox.reject(message, EventRejected("not_json", "no")))
        message.ack()


async def rejected_headers(rig: Rig, count: int) -> list[Any]:
    """Return the headers of the first `count` messages in the queue of rejected events."""
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "rejected")
        await until(lambda: len(got) >= count)
    return [message.header.properties.headers for message in got]


@law
async def a_publish_without_a_session_is_unconfirmed(rig: Rig) -> None:
    outbox = Outbox(Publisher(1.0), rig.wanted.names, rig.clock)
    assert not await outbox.put_off(delivery(), rig.clock.now())
    assert await outbox.bury(delivery(), Reason.GONE, rig.clock.now()) is Burial.UNKNOWN
    assert await rig.ready("dead") == await rig.ready("deliveries") == 0


@law
async def bodies_of_many_frames_arrive_whole_however_many_are_under_way(rig: Rig) -> None:
    sent = [bytes((number,)) * size for number, size in enumerate([0, 1, 131_064, 131_065] * 25)]
    async with rig.layer(queue="dead") as it:
        told = await asyncio.gather(
            *(it.publisher.publish(rig.queue("dead"), "", body, durable()) for body in sent)
        )
        assert told == [Confirmed()] * len(sent)
        await until(lambda: len(it.got) == len(sent))
    assert sorted(bodies(it.got)) == sorted(sent)


@law
async def a_publish_of_the_layer_that_is_returned_ends_the_session(rig: Rig) -> None:
    async with rig.layer() as it:
        lost = await it.publisher.publish("", "nowhere", b"x", durable())
        assert lost == Unconfirmed("'' has no queue for a message: topology is missing")
        await until(lambda: not it.broker.consuming)
        await until(lambda: it.broker.consuming)
        told = await it.publisher.publish(rig.queue("dead"), "", b"x", durable())
        assert told == Confirmed()


@law
async def a_delivery_put_off_until_now_is_in_the_backlog_as_it_was(rig: Rig) -> None:
    async with rig.layer(queue="deliveries") as it:
        assert await it.outbox.put_off(delivery(), rig.clock.now())
        await until(lambda: it.got)
        assert it.outbox.read(it.got[0]) == [replace(delivery(), not_before=0.0)]


@law
async def a_delivery_comes_back_neither_early_nor_late_and_with_its_state(rig: Rig) -> None:
    arrived: dict[str, float] = {}
    waited_in: dict[str, set[str]] = {}

    async def note(message: Message) -> None:
        [found] = codec.read_deliveries(message.headers, message.body)
        assert found == replace(delivery(subscription_id=found.subscription_id), not_before=0.0)
        waited_in[found.subscription_id] = {death["queue"] for death in message.headers["x-death"]}
        arrived[found.subscription_id] = rig.clock.monotonic()
        message.ack()

    async with rig.layer(note, queue="deliveries") as it:
        for delay in (3, 1, 2):
            asked = delivery(subscription_id=str(delay))
            arrived[f"asked {delay}"] = rig.clock.monotonic()
            assert await it.outbox.put_off(asked, rig.clock.now() + delay - 0.5)
        await until(lambda: len(arrived) == 6)
    for delay in (1, 2, 3):
        took = arrived[str(delay)] - arrived[f"asked {delay}"]
        assert took >= delay - 0.5
    zero, one = rig.queue("delay.00"), rig.queue("delay.01")
    assert waited_in == {"1": {zero}, "2": {one}, "3": {zero, one}}
    assert await rig.ready("unrouted") == 0


@law
async def a_split_event_is_in_the_backlog_for_each_subscription(rig: Rig) -> None:
    async with rig.layer(queue="deliveries") as it:
        assert await it.outbox.split(delivery(), ["one", "two"])
        await until(lambda: it.got)
        found = it.outbox.read(it.got[0])
    assert found == [delivery(subscription_id="one"), delivery(subscription_id="two")]


@law
async def a_dead_letter_keeps_its_delivery_and_its_reason(rig: Rig) -> None:
    async with rig.layer() as it:
        assert await it.outbox.bury(delivery(), Reason.EXHAUSTED, 1.8e9) is Burial.DONE
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "dead")
        await until(lambda: got)
    dead = codec.read_dead_letter(got[0].header.properties.headers, got[0].body)
    assert (dead.delivery, dead.reason, dead.at) == (delivery(), Reason.EXHAUSTED, 1.8e9)


@law
async def a_rejected_event_keeps_its_bytes_and_tells_its_reason(rig: Rig) -> None:
    rejection = EventRejected("not_json", "line 1, column 1")
    rejection.event_id = "e1"
    rejection.event_id = "e1"
    done: list[bool] = []

    async def reject(message: Message) -> None:
        done.append(await it.outbox.reject(message, rejection))
        message.ack()

    async with rig.layer(reject) as it:
        await rig.put("intake", b"\xffwhat?")
        await until(lambda: done == [True])
        await it.lane.drained()
    assert await rig.ready("intake") == 0
    async with rig.channel() as channel:
        got, _ = await rig.consume(channel, "rejected")
        await until(lambda: got)
    told = rejected.read_rejected(got[0].header.properties, got[0].routing_key, got[0].body)
    assert (told.reason, told.event_id, told.body) == ("not_json", "e1", b"\xffwhat?")


@law
async def a_delivery_that_is_rejected_keeps_its_state_whichever_way_it_came(rig: Rig) -> None:
    rejecting = Rejecting()
    async with rig.layer(rejecting, queue="deliveries") as it:
        rejecting.outbox = it.outbox
        assert await it.outbox.put_off(delivery(), rig.clock.now())
        assert await it.outbox.put_off(delivery(), rig.clock.now() + 0.5)
        async with rig.channel() as channel:  # as an operator's shovel does
            properties = codec.delivery_properties(delivery())
            await channel.basic_publish(
                b"{}", routing_key=rig.queue("deliveries"), properties=properties
            )
        await until(lambda: rejecting.done == [True] * 3)
        await it.lane.drained()
    assert [codec.STATE in told for told in await rejected_headers(rig, 3)] == [True] * 3


@law
async def an_event_that_is_rejected_keeps_no_state_whichever_way_it_came(rig: Rig) -> None:
    rejecting = Rejecting()
    intake = rig.queue("intake")
    async with rig.layer(rejecting) as it, rig.channel() as channel:
        rejecting.outbox = it.outbox
        for exchange, key in ((rig.wanted.events.name, "a.b"), (intake, ""), ("", intake)):
            forged = codec.delivery_properties(delivery())
            await channel.basic_publish(
                b"?", exchange=exchange, routing_key=key, properties=forged, mandatory=True
            )
        await until(lambda: rejecting.done == [True] * 3)
        await it.lane.drained()
    assert [codec.STATE in told for told in await rejected_headers(rig, 3)] == [False] * 3


@law
async def acks_of_a_lane_arrive_in_whatever_order_work_ends(rig: Rig) -> None:
    late: list[Message] = []
    done: list[bytes] = []

    async def handler(message: Message) -> None:
        if message.body in (b"0", b"7"):
            late.append(message)
        else:
            message.ack()
            done.append(message.body)

    async with rig.layer(handler, prefetch=10) as it:
        await rig.put("intake", *numbered(30))
        await until(lambda: len(late) + len(done) == 30)
        for message in late:
            message.ack()
        await it.lane.drained()
        assert it.broker.consuming
    assert await rig.ready("intake") == 0


@law
async def a_lost_session_gives_back_what_was_unsettled_and_settles_nothing_else(rig: Rig) -> None:
    seen: list[Message] = []

    async def handler(message: Message) -> None:
        seen.append(message)
        if message.redelivered:
            message.ack()

    async with rig.layer(handler) as it:
        await rig.put("intake", *numbered(3))
        await until(lambda: len(seen) == 3)
        it.lose()
        await until(lambda: len(seen) == 6)
        for message in seen[:3]:
            assert message.lost
            message.ack()
        await it.lane.drained()
        assert bodies(seen) == [*numbered(3), *numbered(3)]
        assert not any(message.lost for message in seen[3:])
        assert it.broker.consuming
    assert await rig.ready("intake") == 0


@law
async def a_lane_goes_on_over_another_channel_than_one_with_a_message_in_the_way(rig: Rig) -> None:
    seen: list[Message] = []
    go_on = asyncio.Event()

    async def handler(message: Message) -> None:
        seen.append(message)
        if len(seen) == 1:
            await go_on.wait()
        message.ack()

    async with rig.layer(handler) as it:
        for turn in range(30):
            await rig.put("intake", *(b"%d" % (300 * turn + number) for number in range(300)))
            await asyncio.sleep(0.1)  # on a fake clock nothing else takes time
            if seen[-1].settler is not seen[0].settler:
                break
        assert seen[-1].settler is not seen[0].settler
        assert not seen[0].lost
        first, second = it.lane._streams[:2]
        assert first.prefetch == 100
        assert second.prefetch <= 100 - first.settler.unfinished
        go_on.set()
        await until(lambda: seen[0].lost)  # the channel is closed, as nothing waits for it
        await rig.put("intake", b"the last")
        await until(lambda: seen[-1].body == b"the last")
        await it.lane.drained()
        assert it.broker.consuming
    assert len(bodies(seen)) == len(set(bodies(seen)))
    assert await rig.ready("intake") == 0


@law
async def publishes_go_on_when_the_session_is_back(rig: Rig) -> None:
    async with rig.layer() as it:
        it.lose()
        await until(lambda: it.broker._session is None)  # until then a confirm may still come
        lost = await it.publisher.publish(rig.queue("dead"), "", b"x", durable())
        assert isinstance(lost, Unconfirmed)
        await until(lambda: it.broker.consuming)
        told = await it.publisher.publish(rig.queue("dead"), "", b"x", durable())
        assert told == Confirmed()
    await rig.until_ready("dead", 1, 2)  # what was not confirmed may be there all the same


@law
async def a_handler_that_fails_gives_its_message_back(rig: Rig) -> None:
    seen: list[bool] = []

    async def handler(message: Message) -> None:
        seen.append(message.redelivered)
        if len(seen) == 1:
            raise ZeroDivisionError
        message.ack()

    async with rig.layer(handler):
        await rig.put("intake", b"x")
        await until(lambda: seen == [False, True])


@law
async def a_walk_moves_the_chosen_and_leaves_the_rest_in_order(rig: Rig) -> None:
    await rig.put("dead", *numbered(10))
    async with rig.connected() as found:
        walked = await ParkedQueue(found, rig.queue("dead")).work(
            lambda parked: int(parked.body) % 2 == 0,
            lambda parked: Place("", rig.queue("intake"), durable()),
            limit=None,
        )
    assert walked == 5
    await rig.until_ready("intake", 5)
    await rig.until_ready("dead", 5)
    async with rig.connected() as found:
        left: list[Parked] = []

        def keep(parked: Parked) -> bool:
            left.append(parked)
            return True

        await ParkedQueue(found, rig.queue("dead")).look(keep)
    assert bodies(left) == [b"1", b"3", b"5", b"7", b"9"]
