"""The broker layer on a real RabbitMQ: topology, lanes, acks, publishing, the ladder, reconnects."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import pika  # type: ignore[import-untyped]
import pytest
from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from pamqp import commands
from pamqp.common import FieldValue
from yarl import URL

from service import publish as producer
from service.broker import connection as supervised
from service.broker import publisher as publishing
from service.broker import topology
from service.broker.connection import Broker, Session
from service.broker.consumer import Handler, Lane, Message
from service.broker.opening import Address, open_connection
from service.broker.publisher import Confirmed, Publisher, Unconfirmed
from service.clock import SystemClock
from service.errors import ConfigurationError, TopologyError
from tests.faults.proxy import CANCEL_OK, Link, Method, Proxy, Seen

CHANNEL_CLOSE, CHANNEL_CLOSE_OK = (20, 40), (20, 41)


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    info = warning = error = debug

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.lines if name == event]


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until a condition holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        await asyncio.sleep(0.02)


@dataclass
class Rig:
    """A broker with one lane on the intake queue."""

    wanted: topology.Topology
    broker: Broker
    lane: Lane
    publisher: Publisher
    log: Lines
    running: "asyncio.Task[None]"
    got: list[Message] = field(default_factory=list)


@asynccontextmanager
async def rig(
    amqp_url: str,
    prefix: str,
    events_exchange: str,
    handler: Handler | None = None,
    *,
    prefetch: int = 100,
    declare: bool = True,
    queue: str = "intake",
    publish_timeout: float = 10.0,
    beside: tuple[str, ...] = (),
) -> AsyncIterator[Rig]:
    got: list[Message] = []

    async def keep(message: Message) -> None:
        got.append(message)
        message.ack()

    wanted = topology.topology(prefix, events_exchange, ["#"])
    log = Lines()
    lane = Lane("intake", f"{prefix}.{queue}", prefetch, handler or keep, log)
    publisher = Publisher(publish_timeout)
    broker = Broker(
        Address([amqp_url]),
        wanted,
        [lane, *(Lane(name, f"{prefix}.{name}", prefetch, keep, log) for name in beside)],
        publisher,
        log,
        SystemClock(),
        declare=declare,
        on_waiting=lambda _: None,
    )
    running = asyncio.create_task(broker.run())
    try:
        yield Rig(wanted, broker, lane, publisher, log, running, got)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def raw(amqp_url: str) -> AsyncIterator[AbstractConnection]:
    connection = await open_connection(amqp_url, Address([amqp_url]), "test")
    try:
        yield connection
    finally:
        await connection.close()


async def send(amqp_url: str, exchange: str, *bodies: bytes, key: str = "a.b") -> None:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange)
        for body in bodies:
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await target.publish(message, key)


async def depth(amqp_url: str, queue: str) -> int:
    async with raw(amqp_url) as connection:
        channel = await connection.channel()
        return (await channel.queue_declare(queue, passive=True)).message_count or 0


async def depth_is(amqp_url: str, queue: str, count: int) -> bool:
    return await depth(amqp_url, queue) == count


async def is_empty(amqp_url: str, queue: str) -> bool:
    """Tell whether no message waits in a queue, whose depth may be said to be 0 while the broker is busy."""
    async with raw(amqp_url) as connection:
        channel = await connection.channel()
        found = await channel.basic_get(queue)
        return isinstance(found.delivery, commands.Basic.GetEmpty)


def numbered(count: int) -> list[bytes]:
    return [str(n).encode() for n in range(count)]


async def test_declaring_twice_is_the_same_as_once(amqp_url, prefix, events_exchange):
    wanted = topology.topology(prefix, events_exchange, ["order.#", "payment.*"])
    async with raw(amqp_url) as connection:
        await topology.declare(connection, wanted)
        await topology.declare(connection, wanted)
        await topology.check(connection, wanted)


async def test_a_missing_queue_is_named(amqp_url, prefix, events_exchange):
    wanted = topology.topology(prefix, events_exchange, ["#"])
    async with raw(amqp_url) as connection:
        with pytest.raises(TopologyError, match=events_exchange):
            await topology.check(connection, wanted)
        await topology.declare(connection, wanted)
        channel = await connection.channel()
        await channel.queue_delete(f"{prefix}.dead")
        with pytest.raises(TopologyError, match=f"{prefix}.dead"):
            await topology.check(connection, wanted)


async def test_a_queue_with_other_arguments_is_named(amqp_url, prefix, events_exchange):
    wanted = topology.topology(prefix, events_exchange, ["#"])
    async with raw(amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_declare(
            f"{prefix}.dead", durable=True, arguments={"x-queue-type": "classic"}
        )
        with pytest.raises(TopologyError, match=f"{prefix}.dead"):
            await topology.declare(connection, wanted)


async def test_an_events_exchange_of_another_type_is_taken_as_it_is(
    amqp_url, prefix, events_exchange
):
    async with raw(amqp_url) as connection:
        channel = await connection.channel()
        await channel.exchange_declare(events_exchange, exchange_type="fanout", durable=False)
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        await send(amqp_url, events_exchange, b"1")
        await until(lambda: it.got)


async def test_messages_come_in_order_and_every_ack_arrives(amqp_url, prefix, events_exchange):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        await send(amqp_url, events_exchange, *numbered(500))
        await until(lambda: len(it.got) == 500)
        assert [message.body for message in it.got] == numbered(500)
        await it.lane.drained()
    assert await is_empty(amqp_url, f"{prefix}.intake")


async def test_an_unfinished_message_does_not_hold_up_the_acks_behind_it(
    amqp_url, prefix, events_exchange
):
    done: list[bytes] = []

    async def handler(message: Message) -> None:
        if message.body == b"0":
            return
        done.append(message.body)
        message.ack()

    async with rig(amqp_url, prefix, events_exchange, handler, prefetch=10) as it:
        await until(lambda: it.broker.consuming)
        await send(amqp_url, events_exchange, *numbered(200))
        await until(lambda: len(done) == 199)
        await it.lane.drained()
    await until(lambda: depth_is(amqp_url, f"{prefix}.intake", 1))


async def test_no_more_than_the_prefetch_is_ever_in_flight(amqp_url, prefix, events_exchange):
    gate = asyncio.Event()
    in_flight: list[int] = []

    async def handler(message: Message) -> None:
        in_flight.append(it.lane.in_flight)
        await gate.wait()
        message.ack()

    async with rig(amqp_url, prefix, events_exchange, handler, prefetch=7) as it:
        await until(lambda: it.broker.consuming)
        await send(amqp_url, events_exchange, *numbered(30))
        await until(lambda: len(in_flight) == 7)
        await until(lambda: depth_is(amqp_url, f"{prefix}.intake", 23))
        gate.set()
        await until(lambda: len(in_flight) == 30)
    assert max(in_flight) == 7


async def test_a_handler_that_raises_gives_its_message_back(amqp_url, prefix, events_exchange):
    seen: list[bool] = []

    async def handler(message: Message) -> None:
        seen.append(message.redelivered)
        if len(seen) == 1:
            raise ZeroDivisionError
        message.ack()

    async with rig(amqp_url, prefix, events_exchange, handler) as it:
        await until(lambda: it.broker.consuming)
        await send(amqp_url, events_exchange, b"1")
        await until(lambda: seen == [False, True])
        assert it.log.of("service.fault")[0]["error"].startswith("ZeroDivisionError")


async def test_a_message_that_is_never_settled_ends_as_poison(
    amqp_url, prefix, events_exchange, monkeypatch
):
    monkeypatch.setattr(topology, "POISON_LIMIT", 3)

    async def handler(message: Message) -> None:
        await message.settler.requeue(message.tag)

    async with rig(amqp_url, prefix, events_exchange, handler) as it:
        await until(lambda: it.broker.consuming)
        await send(amqp_url, events_exchange, b"poison")
        await until(lambda: depth_is(amqp_url, f"{prefix}.rejected", 1))


async def test_a_publish_is_confirmed(amqp_url, prefix, events_exchange):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        result = await it.publisher.publish(f"{prefix}.dead", "", b"x", properties())
        assert result == Confirmed()
    await until(lambda: depth_is(amqp_url, f"{prefix}.dead", 1))


def properties(number: int = 0) -> Any:
    return aio_pika.Message(
        b"", message_id=f"m{number}-{time.time_ns()}", delivery_mode=2
    ).properties


async def test_a_publish_without_a_session_is_unconfirmed():
    result = await Publisher(1.0).publish("x", "", b"x", properties())
    assert isinstance(result, Unconfirmed)


async def test_many_publishes_at_once_are_all_confirmed(amqp_url, prefix, events_exchange):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        results = await asyncio.gather(
            *(it.publisher.publish(f"{prefix}.dead", "", b"x", properties(n)) for n in range(1000))
        )
        assert set(map(type, results)) == {Confirmed}
    await until(lambda: depth_is(amqp_url, f"{prefix}.dead", 1000))


async def test_a_queue_that_is_full_costs_a_channel_and_no_session(
    amqp_url, prefix, events_exchange, monkeypatch
):
    monkeypatch.setattr(publishing, "CHANGE_EVERY", 0.5)
    full = f"{prefix}.full"
    arguments: dict[str, FieldValue] = {
        "x-queue-type": "quorum",
        "x-max-length": 1,
        "x-overflow": "reject-publish",
    }
    async with rig(amqp_url, prefix, events_exchange) as it, raw(amqp_url) as connection:
        await until(lambda: it.broker.consuming)
        channel = await connection.channel()
        await channel.queue_declare(full, durable=True, arguments=arguments)
        try:
            first = it.publisher._channel
            assert first is not None

            async def fill() -> None:  # it is full when it says so
                while it.publisher._channel is first:
                    await it.publisher.publish("", full, b"x", properties())

            refused = asyncio.create_task(fill())
            await until(lambda: it.publisher._channel is not first)
            assert not refused.done()
            await until(lambda: first.channel.is_closed)
            await channel.queue_purge(full)
            await refused
        finally:
            await channel.queue_delete(full)
        assert it.broker.consuming
    assert not it.log.of("broker.disconnected")


async def test_what_finds_no_queue_goes_to_the_unrouted_one(amqp_url, prefix, events_exchange):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        async with raw(amqp_url) as connection:
            channel = await connection.channel()
            await channel.queue_unbind(f"{prefix}.dead", f"{prefix}.dead", "")
        await it.publisher.publish(f"{prefix}.dead", "", b"x", properties())
    await until(lambda: depth_is(amqp_url, f"{prefix}.unrouted", 1))


async def test_a_missing_exchange_is_made_again(amqp_url, prefix, events_exchange):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        async with raw(amqp_url) as connection:
            channel = await connection.channel()
            await channel.exchange_delete(f"{prefix}.dead")
        result = await it.publisher.publish(f"{prefix}.dead", "", b"x", properties())
        assert isinstance(result, Unconfirmed)

        async def again() -> bool:
            done = await it.publisher.publish(f"{prefix}.dead", "", b"x", properties())
            return isinstance(done, Confirmed)

        await until(again)


@pytest.mark.parametrize("seconds", [0, 1, 2, 3])
async def test_a_delayed_message_arrives_when_its_time_is_up(
    amqp_url, prefix, events_exchange, seconds
):
    arrived: list[float] = []
    waited_in: list[str] = []

    async def handler(message: Message) -> None:
        arrived.append(time.monotonic())
        waited_in.extend(death["queue"] for death in message.headers.get("x-death", []))
        message.ack()

    async with rig(amqp_url, prefix, events_exchange, handler, queue="deliveries") as it:
        await until(lambda: it.broker.consuming)
        exchange, way = it.wanted.names.route_in(seconds)
        told = properties()
        told.headers = {**(told.headers or {}), **way}
        started = time.monotonic()
        await it.publisher.publish(exchange, "", b"x", told)
        await until(lambda: arrived)
        assert arrived[0] - started >= seconds
    levels = [level for level in range(2) if seconds >> level & 1]
    assert sorted(waited_in) == [f"{prefix}.delay.{level:02}" for level in levels]
    assert await is_empty(amqp_url, f"{prefix}.unrouted")


async def test_a_deleted_queue_is_made_again_and_consumed(
    amqp_url, prefix, events_exchange, monkeypatch
):
    monkeypatch.setattr(topology, "_worked", a_plain_queue)
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        async with raw(amqp_url) as connection:
            channel = await connection.channel()
            await channel.queue_delete(f"{prefix}.intake")
        await until(lambda: it.log.of("broker.disconnected"))
        await until(lambda: it.broker.consuming)
        await send(amqp_url, events_exchange, b"1")
        await until(lambda: it.got)


@pytest.mark.parametrize("what", ["its queue", "the team's exchange"])
async def test_what_nobody_consumes_or_publishes_to_is_missed_as_well(
    amqp_url, prefix, events_exchange, monkeypatch, what
):
    monkeypatch.setattr(
        topology, "_level_queue", lambda level, names: a_plain_queue(names.delay(level))
    )
    monkeypatch.setattr("service.broker.connection.UNROUTED_POLL", 0.2)
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        async with raw(amqp_url) as connection:
            channel = await connection.channel()
            if what == "its queue":
                await channel.queue_delete(f"{prefix}.delay.04")
            else:
                await channel.exchange_delete(events_exchange)
        await until(lambda: it.log.of("broker.disconnected"))
        await until(lambda: it.broker.consuming)
        async with raw(amqp_url) as connection:
            channel = await connection.channel()
            await channel.queue_declare(f"{prefix}.delay.04", passive=True)
        await send(amqp_url, events_exchange, b"1")
        await until(lambda: it.got)


def a_plain_queue(name: str, _: object = None) -> topology.Queue:
    """Return a queue that may be deleted as soon as it is made.

    RabbitMQ 3.10 does not survive that of one that dead-letters at least once (see `Leftovers`).
    """
    return topology.Queue(name, {"x-queue-type": "quorum"})


async def test_a_gap_in_the_ladder_costs_a_session_once_and_not_every_few_seconds(
    amqp_url, prefix, events_exchange, monkeypatch
):
    monkeypatch.setattr(supervised, "STEADY", 0.0)
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        assert it.broker.doubt("a.delay.04")
        await until(lambda: it.log.of("broker.disconnected"))
        assert "had not waited in 'a.delay.04'" in it.log.of("broker.disconnected")[0]["error"]
        await until(lambda: it.broker.consuming)
        assert not it.broker.doubt("a.delay.04")
        monkeypatch.setattr(supervised, "DOUBT_EVERY", 0.0)
        assert it.broker.doubt("a.delay.04")


async def test_nothing_is_worked_on_before_every_lane_consumes(amqp_url, prefix, events_exchange):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
    await send(amqp_url, events_exchange, b"1")
    async with rig(amqp_url, prefix, events_exchange, beside=("no-such-queue",)) as it:
        await until(lambda: len(it.log.of("broker.disconnected")) == 3)
        assert not it.got
        async with raw(amqp_url) as connection:
            channel = await connection.channel()
            await channel.queue_declare(f"{prefix}.no-such-queue", auto_delete=True)
            await until(lambda: it.got, 20)


async def test_a_right_to_write_that_is_missing_is_told_before_anything_is_worked_on(
    node, amqp_url, prefix, events_exchange
):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
    await send(amqp_url, events_exchange, b"1")
    user, users = f"user-{prefix}", "rabbit_auth_backend_internal"
    write = rf"^(?!{prefix}\\.dead$).*"
    add = f'add_user(<<"{user}">>, <<"secret">>, <<"test">>)'
    allow = f'set_permissions(<<"{user}">>, <<"/">>, <<"">>, <<"{write}">>, <<".*">>, <<"test">>)'
    await asyncio.to_thread(node.ctl, "eval", f"{users}:{add}, {users}:{allow}.")
    url = str(URL(amqp_url).with_user(user).with_password("secret"))
    async with rig(url, prefix, events_exchange, declare=False) as it:
        await until(lambda: len(it.log.of("broker.disconnected")) == 2)
        assert all(
            f"refuses '{prefix}.dead': ACCESS_REFUSED" in line["error"]
            for line in it.log.of("broker.disconnected")
        )
        assert not it.got
    assert await is_empty(amqp_url, f"{prefix}.delay.00")


async def test_rights_to_write_are_checked_in_a_few_round_trips(amqp_url, prefix, events_exchange):
    wanted = topology.topology(prefix, events_exchange, ["#"])
    answers: list[Method] = []

    def count(_: Link, seen: Seen, to_broker: bool) -> bool:  # noqa: FBT001
        if not to_broker:
            answers.append(seen.method)
        return True

    async with raw(amqp_url) as connection:
        await topology.declare(connection, wanted)
    async with Proxy(URL(amqp_url).port or 5672) as proxy, raw(proxy.url) as connection:
        proxy.watch = count
        await topology.check_writing(connection, wanted)
    assert (
        len(answers) == 5
    )  # to channel.open, tx.select, tx.rollback, channel.close, connection.close


async def test_an_exchange_that_refuses_is_named_also_while_the_others_are_being_written(
    amqp_url, prefix, events_exchange, monkeypatch
):
    wanted = topology.topology(prefix, events_exchange, ["#"])
    usual = Channel.basic_publish

    async def slowly(channel: Channel, *what: Any, exchange: str, **more: Any) -> Any:
        if exchange == f"{prefix}.delay.00":
            await until(lambda: channel.is_closed)
        return await usual(channel, *what, exchange=exchange, **more)

    async with raw(amqp_url) as connection:
        await topology.declare(connection, wanted)
        monkeypatch.setattr(Channel, "basic_publish", slowly)
        await (await connection.channel()).exchange_delete(f"{prefix}.rejected")
        with pytest.raises(TopologyError, match=f"refuses '{prefix}.rejected': NOT_FOUND"):
            await topology.check_writing(connection, wanted)


async def test_a_drain_goes_on_though_the_broker_is_late_to_say_that_it_sends_no_more(
    amqp_url, prefix, events_exchange, monkeypatch
):
    monkeypatch.setattr(supervised, "CLOSE_TIMEOUT", 0.1)
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(message: Message) -> None:
        begun.set()
        await may_end.wait()
        message.ack()

    async with Proxy(URL(amqp_url).port or 5672) as proxy:
        proxy.watch = lambda _, seen, __: seen.method != CANCEL_OK
        async with rig(proxy.url, prefix, events_exchange, slowly) as it:
            await until(lambda: it.broker.consuming)
            await send(amqp_url, events_exchange, b"1")
            await begun.wait()
            await it.broker.stop_consuming()
            may_end.set()
            await it.lane.drained()
            assert not it.log.of("broker.disconnected")
    assert await is_empty(amqp_url, f"{prefix}.intake")


@pytest.mark.parametrize("by", ["the dispatcher", "a producer"])
async def test_a_channel_whose_close_is_answered_late_is_closed_once(amqp_url, monkeypatch, by):
    monkeypatch.setattr(supervised, "CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(producer, "_CLOSE_TIMEOUT", 0.1)
    closes: list[int] = []
    answers: list[Link] = []

    def hold_back(link: Link, seen: Seen, _: bool) -> bool:  # noqa: FBT001
        closes.extend([seen.channel] * (seen.method == CHANNEL_CLOSE))
        if seen.method == CHANNEL_CLOSE_OK and not answers:
            answers.append(link)
            return False
        return True

    async with Proxy(URL(amqp_url).port or 5672) as proxy, raw(proxy.url) as connection:
        proxy.watch = hold_back
        session = Session(connection, connection)
        channel = await session.to_consume()
        closing = asyncio.create_task(
            session.let_go(channel)
            if by == "the dispatcher"
            else producer._close_after(channel, set())
        )
        await asyncio.wait([closing], timeout=0.5)
        await connection.channel()  # whatever was written before has passed now
        assert closes == [channel.number]
        answers[0].tell_client(channel.number, commands.Channel.CloseOk())
        await until(lambda: channel.is_closed)
        await closing
        await connection.channel()
        assert session.lost.done() == (by == "a producer")  # it is told of those that it let go


async def test_a_broker_with_small_frames_is_refused_with_what_to_do(
    amqp_url, prefix, events_exchange, monkeypatch
):
    monkeypatch.setattr(supervised, "FRAME_LEAST", 1_000_000)
    async with rig(amqp_url, prefix, events_exchange) as it:
        (line, *_) = await until(lambda: it.log.of("broker.disconnected"))
    assert "no frames of more than 131072 bytes: set its frame_max to 1000000" in line["error"]


@pytest.mark.parametrize(("steady", "failures"), [(5.0, [1, 2, 3]), (0.0, [1, 1, 1])])
async def test_sessions_that_end_soon_come_more_and_more_rarely(
    amqp_url, prefix, events_exchange, monkeypatch, steady, failures
):
    monkeypatch.setattr(supervised, "STEADY", steady)
    told: list[int] = []
    async with rig(amqp_url, prefix, events_exchange) as it:
        while len(told) < 3:
            session = await until(lambda: it.broker.consuming and it.broker._session)
            session.fail("told to")
            await until(lambda: len(it.log.of("broker.disconnected")) == len(told) + 1)
            told.append(it.broker._failures)
    assert told == failures


def test_an_outage_of_days_has_pauses_as_any_other():
    assert [supervised._ceiling(failures) for failures in (1, 2, 5, 100_000)] == [1, 2, 15, 15]


async def test_a_broker_that_was_away_for_days_is_connected_to_again(
    amqp_url, prefix, events_exchange, monkeypatch
):
    monkeypatch.setattr(supervised, "BACKOFF_MAX", 0.3)
    async with rig(amqp_url, prefix, events_exchange) as it:
        session = await until(lambda: it.broker.consuming and it.broker._session)
        it.broker._failures = 100_000
        session.fail("told to")
        await until(lambda: it.broker.consuming and it.broker._session is not session)


# Rights are checked by a publish, and whoever publishes is not read from while an alarm is up.
async def test_a_dispatcher_that_starts_while_an_alarm_is_up_consumes(
    node, amqp_url, prefix, events_exchange
):
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.000001")
    try:
        async with rig(amqp_url, prefix, events_exchange) as it:
            await until(lambda: it.broker.consuming)
            assert not it.log.of("broker.disconnected")
    finally:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")


# Nothing that is published shows that this one is gone: it is where the delay ladder ends.
async def test_a_deleted_exchange_is_noticed_and_made_again(
    amqp_url, prefix, events_exchange, monkeypatch
):
    monkeypatch.setattr("service.broker.connection.UNROUTED_POLL", 0.2)
    async with rig(amqp_url, prefix, events_exchange, queue="deliveries") as it:
        await until(lambda: it.broker.consuming)
        async with raw(amqp_url) as connection:
            channel = await connection.channel()
            await channel.exchange_delete(f"{prefix}.deliveries")
        await until(lambda: it.log.of("broker.disconnected"))
        assert f"no exchange '{prefix}.deliveries'" in it.log.of("broker.disconnected")[0]["error"]
        await until(lambda: it.broker.consuming)
        await it.publisher.publish(f"{prefix}.deliveries", "", b"x", properties())
        await until(lambda: it.got)


async def test_the_broker_may_die_and_come_back(node, amqp_url, prefix, events_exchange):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        await asyncio.to_thread(node.flush)  # else RabbitMQ forgets queues, and refuses others
        await asyncio.to_thread(node.kill)
        await until(lambda: not it.broker.consuming)
        assert isinstance(
            await it.publisher.publish(f"{prefix}.dead", "", b"x", properties()), Unconfirmed
        )
        await asyncio.to_thread(node.start)
        await until(lambda: it.broker.consuming, 60)
        await send(amqp_url, events_exchange, b"1")
        await until(lambda: it.got)


@pytest.mark.parametrize(
    "trouble",
    [
        asyncio.CancelledError(),
        ConfigurationError("the CA file is gone"),
        ZeroDivisionError("a fault of a library"),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
@pytest.mark.parametrize("where", ["open_connection", "_watch_blocked"])
async def test_nothing_about_the_broker_ends_the_supervisor(
    amqp_url, prefix, events_exchange, monkeypatch, trouble, where
):
    place = supervised if where == "open_connection" else Broker
    usual = getattr(place, where)
    met: list[BaseException] = []

    async def fails_once(*arguments: Any) -> Any:
        if not met:
            met.append(trouble)
            raise trouble
        return await usual(*arguments)

    monkeypatch.setattr(place, where, fails_once)
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.log.of("broker.disconnected"))
        await until(lambda: it.broker.consuming)
        await send(amqp_url, events_exchange, b"1")
        await until(lambda: it.got)


async def test_a_supervisor_that_is_cancelled_ends_even_while_it_closes(
    amqp_url, prefix, events_exchange, monkeypatch
):
    closing = asyncio.Event()

    async def never(*_: Any) -> None:
        closing.set()
        await asyncio.get_running_loop().create_future()

    async with rig(amqp_url, prefix, events_exchange) as it:
        session = await until(lambda: it.broker.consuming and it.broker._session)
        monkeypatch.setattr(supervised, "close_connection", never)
        session.fail("told to")
        await closing.wait()
        it.running.cancel()
        await asyncio.wait([it.running], timeout=5)
        assert it.running.cancelled()
        monkeypatch.undo()
        await session.close()


async def test_a_second_url_is_tried_when_the_first_does_not_answer(
    amqp_url, prefix, events_exchange
):
    async with rig(amqp_url, prefix, events_exchange) as it:
        it.broker._address.urls = ["amqp://guest:secret-word@127.0.0.1:1/", amqp_url]
        await until(lambda: it.broker.consuming)
        assert "secret-word" not in str(it.log.lines)


@pytest.mark.parametrize(
    "hostile",
    [
        {"timestamp": 2**63 - 1},
        {"timestamp": 2**64 - 1},
        {"headers": {"nested": None}},
    ],
)
async def test_properties_that_cannot_be_decoded_cost_one_message_only(
    amqp_url, prefix, events_exchange, hostile
):
    async with rig(amqp_url, prefix, events_exchange) as it:
        await until(lambda: it.broker.consuming)
        connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
        channel = connection.channel()
        channel.basic_publish(events_exchange, "a", b"1", pika.BasicProperties(**hostile))
        channel.basic_publish(events_exchange, "a", b"2", pika.BasicProperties())
        connection.close()
        await until(lambda: len(it.got) == 2)
        assert not it.log.of("broker.disconnected")
