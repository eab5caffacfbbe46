"""RabbitMQ in memory, on a clock that jumps: hours pass in milliseconds and every run is the same.

It stands in for `open_connection`, the one place where the broker layer opens a socket.  Everything
above that is the real thing: lanes, batched acks, publisher, outbox, the supervised session, the walk
through parked messages, and the stages.  What it keeps of RabbitMQ is what these rely on, and
`tests/broker_contract.py` holds it to that beside a real one: exchanges, bindings and alternate
exchanges as the topology has them, confirms, mandatory, acks, prefetch, return of what is unacked with
a delivery count, the delivery limit, expiry at the head of a queue, and dead-lettering.

Each step that another process could see (a publish, its confirm, an ack) is announced to `at` before
and after it is done, so that a test can stop the world there.
"""

import asyncio
import heapq
import selectors
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeVar

import orjson
import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import (
    AMQPError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionClosed,
    DeliveryError,
    PublishError,
)
from pamqp.body import ContentBody
from pamqp.commands import Basic, Queue
from pamqp.frame import FrameTypes, unmarshal
from pamqp.header import ContentHeader

from service.broker import connection, opening
from service.broker.connection import Broker
from service.broker.consumer import Lane
from service.broker.frames import Answers, FrameTransport, Received, register
from service.broker.opening import Address
from service.broker.outbox import Outbox
from service.broker.publisher import Publisher
from service.broker.topology import Binding, Exchange, Topology, topology
from service.broker.topology import Queue as WantedQueue
from service.broker.wire import properties
from service.budget import Budget
from service.core.delivery import Forbidden, Outcome
from service.core.subscription import Subscription, Target
from service.deliver import Deliverer
from service.dispatch import Dispatcher
from service.report import Reporter
from service.states import States
from service.subscriptions.snapshot import Snapshot
from service.webhook.formats import Content, render

EPOCH = 1_800_000_000.0
"""Unix seconds at which a fake clock begins."""

MAX_EVENT_BYTES = 4096

WANTED = topology("test", "events", ["#"])
NAMES = WANTED.names

FRAME_MAX = 131_072

Result = TypeVar("Result")


class FakeClock:
    """A clock that stands still until everybody waits, and then jumps to the next thing due."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return EPOCH + self.seconds

    def monotonic(self) -> float:
        return self.seconds


class _Jump(selectors.SelectSelector):
    """Waits for nothing: where a loop would sleep, its clock moves on."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits and nothing is due: that would last for ever"
        self._clock.seconds += max(timeout, 0.0)
        return []


class FakeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is a fake clock's; it has no sockets and no threads."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(_Jump(clock))
        self._fake = clock

    def time(self) -> float:
        return self._fake.seconds


def run(body: Coroutine[Any, Any, Result], clock: FakeClock) -> Result:
    """Run a coroutine to its end on a fake clock; nothing that it started outlives it, or fails unseen."""
    unseen: list[dict[str, Any]] = []
    try:
        with asyncio.Runner(loop_factory=lambda: FakeLoop(clock)) as runner:
            runner.get_loop().set_exception_handler(lambda _, told: unseen.append(told))
            return runner.run(body)
    finally:
        assert not unseen, unseen


class Verdict(Enum):
    """What becomes of a step."""

    GO = auto()
    NO = auto()
    """The broker says no: a nack."""
    NEVER = auto()
    """It is not done, or nobody is told that it was."""


At = Callable[[str, str], Awaitable[Verdict]]
"""Awaited at each step, with its name and the URL of whoever takes it."""


async def calmly(_step: str, _owner: str) -> Verdict:
    """Let every step go as it should."""
    return Verdict.GO


@dataclass(slots=True, eq=False)
class Stored:
    """A message in a queue; `number` is its place, `returns` how often it came back unsettled."""

    number: int
    body: bytes
    properties: Basic.Properties
    exchange: str
    routing_key: str
    returns: int = 0
    expires: float = float("inf")

    def __lt__(self, other: "Stored") -> bool:
        return self.number < other.number

    @property
    def seen(self) -> Basic.Properties:
        """Return the properties as a consumer sees them."""
        if self.returns == 0:
            return self.properties
        return with_headers(self.properties, {"x-delivery-count": self.returns})


class StoredQueue:
    """A quorum queue: what is ready, what consumers hold, and who they are."""

    def __init__(self, wanted: WantedQueue) -> None:
        self.name = wanted.name
        self.arguments = wanted.arguments
        self.ready: list[Stored] = []
        self.held: set[Stored] = set()
        self.consumers: deque[Consumer] = deque()
        self.timer: asyncio.TimerHandle | None = None

    @property
    def passing(self) -> bool:
        """Tell whether messages are meant to leave again without a person's doing."""
        return "x-dead-letter-exchange" in self.arguments

    def with_room(self) -> "Consumer | None":
        """Return the next consumer in turn that may be sent a message."""
        for _ in range(len(self.consumers)):
            self.consumers.rotate(-1)
            if self.consumers[-1].has_room:
                return self.consumers[-1]
        return None


@dataclass(slots=True, eq=False)
class Consumer:
    """Somebody to send a queue's messages to, at most `prefetch` unacked ones (0: any number)."""

    tag: str
    queue: StoredQueue
    channel: "FakeChannel"
    prefetch: int
    callback: Callable[[DeliveredMessage], Coroutine[Any, Any, Any]]
    holds: int = 0

    @property
    def has_room(self) -> bool:
        return self.prefetch == 0 or self.holds < self.prefetch


async def _nothing(_: DeliveredMessage) -> None:
    """Take a message that is sent to nobody."""


class FakeBroker:
    """Exchanges, queues and whoever is connected.

    `passing` counts the messages that are on their way; `on_rest` is called when there is none left,
    `on_returned` with the queue's name and the messages that a lost connection gave back.
    """

    def __init__(self, wanted: Topology | None = None, at: At = calmly) -> None:
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, StoredQueue] = {}
        self.bindings: dict[str, list[Binding]] = {}
        self.connections: list[FakeConnection] = []
        self.at = at
        self.passing = 0
        self.on_rest: Callable[[], None] = _ignore
        self.on_returned: Callable[[str, list[Stored]], None] = _ignore
        self.on_publish: Callable[[Basic.Properties], None] = _ignore
        self._numbers = count(1)
        if wanted is not None:
            self.declare(wanted)

    def declare(self, wanted: Topology) -> None:
        """Make what a topology asks for."""
        for exchange in (wanted.events, *wanted.exchanges):
            self.exchanges.setdefault(exchange.name, exchange)
        for queue in wanted.queues:
            self.queues.setdefault(queue.name, StoredQueue(queue))
        for binding in wanted.bindings:
            self.bindings.setdefault(binding.source, []).append(binding)

    async def open(self, url: str, _address: object, name: str) -> "FakeConnection":
        """Stand in for `open_connection`."""
        opened = FakeConnection(self, url, name)
        self.connections.append(opened)
        register(opened, opened.transport)  # type: ignore[arg-type]
        return opened

    def cut(self, url: str, which: str = "") -> None:
        """Break the connections of a URL whose names hold a word; messages that they held return."""
        for one in [c for c in self.connections if c.url == url and which in c.name]:
            one.end(ConnectionClosed(320, "cut"))

    def contents(self, name: str) -> list[Stored]:
        """Return what a queue holds, unacked messages included, in order."""
        queue = self.queues[name]
        return sorted([*queue.ready, *queue.held])

    def publish(
        self, exchange: str, key: str, body: bytes, properties: Basic.Properties
    ) -> list[str]:
        """Store a message in every queue that it is routed to, and return their names."""
        queues = list(self.route(exchange, key, properties.headers or {}))
        for queue in queues:
            self._store(queue, body, properties, exchange, key)
        return [queue.name for queue in queues]

    def route(self, exchange: str, key: str, headers: Mapping[str, Any]) -> Iterable[StoredQueue]:
        """Return the queues for a message; KeyError where the exchange does not exist."""
        if not exchange:
            return [self.queues[key]] if key in self.queues else []
        here = self.exchanges[exchange]
        bound = [b for b in self.bindings.get(exchange, ()) if _fits(here.kind, b, key, headers)]
        alternate = here.arguments.get("alternate-exchange")
        if not bound and isinstance(alternate, str):
            return self.route(alternate, key, headers)
        return {name: self.queues[name] for name in (b.destination for b in bound)}.values()

    def give_back(self, queue: StoredQueue, stored: Stored) -> None:
        """Put a message back to its place, or park it when it came back too often."""
        queue.held.discard(stored)
        stored.returns += 1
        limit = queue.arguments.get("x-delivery-limit")
        if isinstance(limit, int) and stored.returns > limit:
            self.dead_letter(queue, stored, "delivery_limit")
        else:
            heapq.heappush(queue.ready, stored)

    def gone(self, queue: StoredQueue) -> None:
        """Note that a message has left a queue."""
        if queue.passing:
            self.passing -= 1
            if self.passing == 0:
                self.on_rest()

    def pump(self, queue: StoredQueue) -> None:
        """Send consumers what they have room for."""
        while queue.ready and (consumer := queue.with_room()) is not None:
            stored = heapq.heappop(queue.ready)
            queue.held.add(stored)
            consumer.channel.send(consumer, stored)

    def _store(
        self,
        queue: StoredQueue,
        body: bytes,
        properties: Basic.Properties,
        exchange: str,
        key: str,
    ) -> None:
        stored = Stored(next(self._numbers), body, properties, exchange, key)
        ttl = queue.arguments.get("x-message-ttl")
        if isinstance(ttl, int):
            stored.expires = asyncio.get_running_loop().time() + ttl / 1000
        self.passing += queue.passing
        heapq.heappush(queue.ready, stored)
        self.pump(queue)
        self._arm(queue)

    def _arm(self, queue: StoredQueue) -> None:
        if queue.timer is None and queue.ready and queue.ready[0].expires != float("inf"):
            loop = asyncio.get_running_loop()
            queue.timer = loop.call_at(queue.ready[0].expires, self._expire, queue)

    def _expire(self, queue: StoredQueue) -> None:
        now, queue.timer = asyncio.get_running_loop().time() + 1e-6, None
        while queue.ready and queue.ready[0].expires <= now:
            self.dead_letter(queue, heapq.heappop(queue.ready), "expired")
        self._arm(queue)

    def dead_letter(self, queue: StoredQueue, stored: Stored, reason: str) -> None:
        """Move a message to where its queue's dead letters go, and mark it with the reason."""
        exchange = queue.arguments.get("x-dead-letter-exchange")
        assert isinstance(exchange, str), f"{queue.name} dropped a message: {reason}"
        death = {"queue": queue.name, "reason": reason, "count": 1, "exchange": stored.exchange}
        before: Any = (stored.properties.headers or {}).get("x-death") or []
        deaths = [death, *before]
        marked = with_headers(
            stored.properties, {"x-death": deaths, "x-first-death-reason": reason}
        )
        taken = self.publish(exchange, stored.routing_key, stored.body, marked)
        assert taken, f"a message is stuck in {queue.name}: nothing is bound to {exchange}"
        self.gone(queue)


class FakeReader:
    """What the broker layer uses of a `FrameReader`."""

    def __init__(self) -> None:
        self.sinks: dict[int, Callable[[Received], None]] = {}
        self.bounds: dict[int, int] = {}
        self.answers: dict[int, Answers] = {}

    def forget(self, *_: object) -> None: ...

    def forget_answers(self, channel: int, _: Answers) -> None:
        del self.answers[channel]


class FakeWriter:
    """The end of a connection where publishes are written: whole ones, one or many in one piece."""

    def __init__(self, connection: "FakeConnection") -> None:
        self._connection = connection
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: 0)

    def write(self, data: bytes) -> None:
        """Take in publishes, as the broker would read them."""
        read = self._frames(data)
        for number, method in read:
            _, header = next(read)
            assert isinstance(method, Basic.Publish)
            assert isinstance(header, ContentHeader)
            body = b""
            while len(body) < header.body_size:
                _, piece = next(read)
                assert isinstance(piece, ContentBody)
                body += piece.value
            [channel] = [one for one in self._connection.channels if one.number == number]
            channel.take(method, header.properties, body)

    async def drain(self) -> None: ...

    def _frames(self, data: bytes) -> Iterator[tuple[int, FrameTypes]]:
        while data:
            size, number, read = unmarshal(data)
            assert size <= FRAME_MAX
            yield number, read
            data = data[size:]


class FakeConnection:
    """What the broker layer uses of a connection."""

    server_properties: Mapping[str, Any] = {"version": "3.10.8"}

    def __init__(self, broker: FakeBroker, url: str, name: str) -> None:
        self.broker = broker
        self.url = url
        self.name = name
        self.channels: list[FakeChannel] = []
        self.connection_tune = SimpleNamespace(frame_max=FRAME_MAX)
        self.reader = FakeReader()
        self.transport = FrameTransport()
        self.transport.reader = self.reader  # type: ignore[assignment]
        self.transport.writer = FakeWriter(self)  # type: ignore[assignment]
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def channel(
        self,
        *,
        publisher_confirms: bool = True,
        on_return_raises: bool = False,
    ) -> "FakeChannel":
        self._require_open()
        channel = FakeChannel(self, on_return_raises=on_return_raises)
        self.channels.append(channel)
        return channel

    async def ready(self) -> None:
        self._require_open()

    async def close(self) -> None:
        self.end(None)

    def end(self, error: Exception | None) -> None:
        """Close with every channel; what they held goes back."""
        if self.closing.done():
            return
        self.broker.connections.remove(self)
        self.reader.sinks.clear()
        _close(self.closing, error)
        end_channels(self.channels, error)

    def _require_open(self) -> None:
        if self.closing.done():
            raise ConnectionClosed(320, "closed")


class FakeChannel:
    """What the broker layer uses of a channel."""

    def __init__(self, connection: FakeConnection, *, on_return_raises: bool) -> None:
        self.connection = connection
        self.number = len(connection.channels) + 1
        self.broker = connection.broker
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_consumer_cancel_callbacks: set[Callable[[Any], Any]] = set()
        self.unacked: dict[int, tuple[Consumer, Stored]] = {}
        self.unconfirmed: dict[asyncio.Future[Any], None] = {}
        self.consumers: dict[str, Consumer] = {}
        self._on_return_raises = on_return_raises
        self._prefetch = 0
        self._tags = count(1)
        self._published = count(1)
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    async def close(self) -> None:
        end_channels([self], None)

    async def basic_qos(self, *, prefetch_count: int) -> None:
        self._require_open()
        self._prefetch = prefetch_count

    async def basic_consume(
        self, queue: str, callback: Callable[[DeliveredMessage], Coroutine[Any, Any, Any]]
    ) -> Basic.ConsumeOk:
        self._require_open()
        source = self._queue(queue)
        tag = f"{id(self)}-{next(self._tags)}"
        self.consumers[tag] = consumer = Consumer(tag, source, self, self._prefetch, callback)
        source.consumers.append(consumer)
        self.broker.pump(source)
        return Basic.ConsumeOk(tag)

    async def basic_get(self, queue: str) -> DeliveredMessage:
        """Take the first message: a consumer that asks for this one alone."""
        self._require_open()
        source = self._queue(queue)
        if not source.ready:
            return DeliveredMessage(Basic.GetEmpty(), ContentHeader(), b"", self)  # type: ignore[arg-type]
        stored, tag = heapq.heappop(source.ready), next(self._tags)
        source.held.add(stored)
        self.unacked[tag] = (Consumer("", source, self, 1, _nothing, holds=1), stored)
        frame = Basic.GetOk(
            tag, stored.returns > 0, stored.exchange, stored.routing_key, len(source.ready)
        )
        header = ContentHeader(0, len(stored.body), stored.seen)
        return DeliveredMessage(frame, header, stored.body, self)  # type: ignore[arg-type]

    async def basic_cancel(self, consumer_tag: str) -> None:
        self._require_open()
        consumer = self.consumers.pop(consumer_tag)
        consumer.queue.consumers.remove(consumer)

    async def basic_publish(
        self,
        body: bytes,
        *,
        exchange: str = "",
        routing_key: str = "",
        properties: Basic.Properties | None = None,
        mandatory: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's own signature
    ) -> Basic.Ack:
        """Publish and wait for the confirm; a channel that ends cancels the wait, as the library does."""
        self._require_open()
        confirm = self._confirm()
        sent = through_the_wire(properties or Basic.Properties())
        answer = await self._store(exchange, routing_key, body, sent, mandatory=mandatory)
        if answer is Verdict.NO:
            raise DeliveryError(None, Basic.Nack())
        if answer is Verdict.GO:
            asyncio.get_running_loop().call_soon(_confirmed, confirm)
        async with asyncio.timeout(timeout):
            await confirm
        return Basic.Ack()

    def take(self, method: Basic.Publish, told: Basic.Properties, body: bytes) -> None:
        """Take in a publish that was written; what becomes of it is told to the channel's `Answers`."""
        tag = next(self._published)
        answering = asyncio.get_running_loop().create_task(self._answer(tag, method, told, body))
        self._calls.add(answering)
        answering.add_done_callback(self._calls.discard)

    async def _answer(
        self, tag: int, method: Basic.Publish, told: Basic.Properties, body: bytes
    ) -> None:
        sent = through_the_wire(told)
        try:
            answer = await self._store(
                method.exchange, method.routing_key, body, sent, mandatory=method.mandatory
            )
        except PublishError:
            self._tell(lambda answers: answers.returned(method.exchange))
            answer = Verdict.GO
        except AMQPError:
            return  # the channel has ended
        if answer is not Verdict.NEVER:
            taken = answer is Verdict.GO
            asyncio.get_running_loop().call_soon(
                self._tell, lambda answers: answers.settled(tag, multiple=False, taken=taken)
            )

    def _tell(self, what: Callable[[Answers], None]) -> None:
        answers = self.connection.reader.answers.get(self.number)
        if answers is not None and not self.is_closed:
            what(answers)

    async def _store(
        self, exchange: str, key: str, body: bytes, sent: Basic.Properties, *, mandatory: bool
    ) -> Verdict:
        """Store a message and return the answer to its publish."""
        verdict = await self._at("publish")
        if verdict is not Verdict.GO:
            return verdict
        self.broker.on_publish(sent)
        self._take_in(exchange, key, body, sent, mandatory=mandatory)
        stored = await self._at("publish.stored")
        return stored if stored is Verdict.GO else Verdict.NEVER

    async def basic_ack(
        self,
        delivery_tag: int,
        multiple: bool = False,  # noqa: FBT001, FBT002 - the library's own signature
        wait: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Ack; whether it arrived is never told."""
        self._require_open()
        if await self._at("ack") is not Verdict.GO:
            return
        for consumer, stored in self._settled(delivery_tag, multiple=multiple):
            consumer.queue.held.discard(stored)
            self.broker.gone(consumer.queue)
            self.broker.pump(consumer.queue)
        await self._at("ack.done")

    async def basic_reject(self, delivery_tag: int, *, requeue: bool, wait: bool = True) -> None:
        """Refuse a message for good; whether it arrived is never told."""
        self._require_open()
        assert not requeue, "what goes back is nacked here"
        if await self._at("reject") is not Verdict.GO:
            return
        for consumer, stored in self._settled(delivery_tag, multiple=False):
            consumer.queue.held.discard(stored)
            self.broker.dead_letter(consumer.queue, stored, "rejected")
            self.broker.pump(consumer.queue)
        await self._at("reject.done")

    async def basic_nack(
        self,
        delivery_tag: int,
        multiple: bool = False,  # noqa: FBT001, FBT002
        requeue: bool = True,  # noqa: FBT001, FBT002
        wait: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        self._require_open()
        assert requeue, "nothing here refuses a message for good"
        for consumer, stored in self._settled(delivery_tag, multiple=multiple):
            self.broker.give_back(consumer.queue, stored)
            self.broker.pump(consumer.queue)

    async def queue_declare(
        self,
        queue: str,
        *,
        passive: bool = False,
        durable: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> Queue.DeclareOk:
        self._require_open()
        if not passive and queue not in self.broker.queues:
            self.broker.queues[queue] = StoredQueue(WantedQueue(queue, dict(arguments or {})))
        found = self._queue(queue)
        return Queue.DeclareOk(queue, len(found.ready), len(found.consumers))

    async def queue_bind(
        self,
        queue: str,
        exchange: str,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._bind(Binding(exchange, queue, routing_key, arguments or {}))

    async def queue_unbind(self, queue: str, exchange: str, routing_key: str = "") -> None:
        self.broker.bindings[exchange].remove(Binding(exchange, queue, routing_key))

    async def exchange_declare(
        self,
        exchange: str,
        *,
        exchange_type: str = "direct",
        passive: bool = False,
        durable: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._require_open()
        if not passive:
            made = Exchange(exchange, exchange_type, dict(arguments or {}))
            self.broker.exchanges.setdefault(exchange, made)
        elif exchange not in self.broker.exchanges:
            raise self._refused(ChannelNotFoundEntity(f"no exchange {exchange!r}"))

    def send(self, consumer: Consumer, stored: Stored) -> None:
        """Send a message to the sink of the channel, or to its consumer; it arrives a little later."""
        tag = next(self._tags)
        consumer.holds += 1
        self.unacked[tag] = (consumer, stored)
        loop = asyncio.get_running_loop()
        if self.number in self.connection.reader.sinks:
            loop.call_soon(self._sink, tag, stored)
            return
        frame = Basic.Deliver(
            consumer.tag, tag, stored.returns > 0, stored.exchange, stored.routing_key
        )
        header = ContentHeader(0, len(stored.body), stored.seen)
        message: Any = DeliveredMessage(frame, header, stored.body, self)  # type: ignore[arg-type]
        call = loop.create_task(self._call(consumer, message))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _at(self, step: str) -> Verdict:
        verdict = await self.broker.at(step, self.connection.url)
        return Verdict.NEVER if self.is_closed else verdict

    def _sink(self, tag: int, stored: Stored) -> None:
        if self.is_closed:
            return
        reader, body = self.connection.reader, stored.body
        too_large = len(body) > reader.bounds.get(self.number, len(body))
        reader.sinks[self.number](
            Received(
                tag,
                stored.returns > 0,
                stored.exchange,
                stored.routing_key,
                stored.seen,
                b"" if too_large else body,
                len(body) if too_large else 0,
            )
        )

    async def _call(self, consumer: Consumer, message: DeliveredMessage) -> None:
        if not self.is_closed:
            await consumer.callback(message)

    def _bind(self, binding: Binding) -> None:
        self._require_open()
        there = self.broker.bindings.setdefault(binding.source, [])
        if binding not in there:
            there.append(binding)

    def _take_in(
        self, exchange: str, key: str, body: bytes, sent: Basic.Properties, *, mandatory: bool
    ) -> None:
        try:
            taken = self.broker.publish(exchange, key, body, sent)
        except KeyError:
            raise self._refused(ChannelNotFoundEntity(f"no exchange {exchange!r}")) from None
        if not taken and mandatory and self._on_return_raises:
            back = Basic.Return(312, "NO_ROUTE", exchange, key)
            returned = DeliveredMessage(back, ContentHeader(0, len(body), sent), body, self)  # type: ignore[arg-type]
            raise PublishError(returned, back)

    def _settled(self, tag: int, *, multiple: bool) -> list[tuple[Consumer, Stored]]:
        """Take out of `unacked` what an ack or a nack speaks of; an unknown tag ends the channel."""
        if tag not in self.unacked:
            raise self._refused(ChannelPreconditionFailed(f"unknown delivery tag {tag}"))
        tags = [one for one in self.unacked if one <= tag] if multiple else [tag]
        found = [self.unacked.pop(one) for one in tags]
        for consumer, _ in found:
            consumer.holds -= 1
        return found

    def _queue(self, name: str) -> StoredQueue:
        if name not in self.broker.queues:
            raise self._refused(ChannelNotFoundEntity(f"no queue {name!r}"))
        return self.broker.queues[name]

    def _confirm(self) -> "asyncio.Future[None]":
        confirm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unconfirmed[confirm] = None
        confirm.add_done_callback(lambda _: self.unconfirmed.pop(confirm, None))
        return confirm

    def _refused(self, error: Exception) -> Exception:
        end_channels([self], error)
        return error

    def _require_open(self) -> None:
        if self.is_closed:
            raise ChannelInvalidStateError("the channel is closed")


def end_channels(channels: Iterable[FakeChannel], error: Exception | None) -> None:
    """Close channels: confirms never come, consumers are gone, and what they held goes back."""
    ended = [channel for channel in channels if not channel.is_closed]
    for channel in ended:
        _close(channel.closing, error)
        for confirm in list(channel.unconfirmed):
            confirm.cancel()
        for consumer in channel.consumers.values():
            consumer.queue.consumers.remove(consumer)
    for channel in ended:
        returned: dict[StoredQueue, list[Stored]] = {}
        for consumer, stored in channel.unacked.values():
            returned.setdefault(consumer.queue, []).append(stored)
        channel.unacked.clear()
        for queue, messages in returned.items():
            channel.broker.on_returned(queue.name, messages)
            for stored in messages:
                channel.broker.give_back(queue, stored)
            channel.broker.pump(queue)


def through_the_wire(told: Basic.Properties) -> Basic.Properties:
    """Return properties as they arrive at the other end."""
    return properties(ContentHeader(0, 0, told).marshal()[12:])


def with_headers(told: Basic.Properties, more: Mapping[str, Any]) -> Basic.Properties:
    """Return a copy of properties with more headers."""
    copied = copy(told)
    copied.headers = {**(told.headers or {}), **more}
    return copied


def _fits(kind: str, binding: Binding, key: str, headers: Mapping[str, Any]) -> bool:
    if kind == "headers":
        wanted = dict(binding.arguments)
        assert wanted.pop("x-match") == "all"
        return wanted.items() <= headers.items()
    return kind == "fanout" or _topic_fits(binding.key, key)


@lru_cache(2**16)
def _topic_fits(pattern: str, key: str) -> bool:
    return _topic(tuple(pattern.split(".")), tuple(key.split(".")))


def _topic(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Tell whether words match the words of a topic pattern (AMQP 0-9-1, 3.1.3.3)."""
    match pattern:
        case ():
            return not words
        case ("#", *_):
            return _topic(pattern[1:], words) or (bool(words) and _topic(pattern, words[1:]))
        case (first, *_):
            return bool(words) and first in ("*", words[0]) and _topic(pattern[1:], words[1:])
        case _:
            raise AssertionError(pattern)


def _confirmed(confirm: "asyncio.Future[None]") -> None:
    if not confirm.done():
        confirm.set_result(None)


def _close(closing: "asyncio.Future[None]", error: Exception | None) -> None:
    if error is None:
        closing.set_result(None)
    else:
        closing.set_exception(error)
        closing.exception()  # whoever watches is told; nobody has to


def _ignore(*_: object) -> None:
    """Stand in until somebody wants to know."""


# A dispatcher over it, and what it delivers to.


@contextmanager
def standing_in(broker: FakeBroker) -> Iterator[None]:
    """Let whoever opens a connection open one to this broker."""
    with pytest.MonkeyPatch.context() as patch:
        for place in (connection, opening):
            patch.setattr(place, "open_connection", broker.open)
        # Looking for alarms each second would be most of what happens in an hour.
        patch.setattr(connection, "BLOCKED_POLL", 3600.0)
        patch.setattr(connection, "UNROUTED_POLL", 3600.0)
        yield


@dataclass(frozen=True, slots=True)
class Request:
    """What a target was sent; `at` in seconds of the fake clock, `event_id` as its body tells it."""

    at: float
    subscription_id: str
    url: str
    event_id: str
    webhook_id: str
    body: bytes
    outcome: Outcome

    @property
    def accepted(self) -> bool:
        status = getattr(self.outcome, "status", 0)
        return 200 <= status < 300


Answer = Callable[[str, str, int], Outcome]
"""What a target does, by its URL, the event's id, and how often it was sent the event (from 1)."""


class Receivers:
    """The targets: they outlive every dispatcher, and remember.  Event data must tell `event`."""

    def __init__(self, clock: FakeClock, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self._clock = clock
        self._counts: Counter[tuple[str, str]] = Counter()

    def take(self, subscription: Subscription, url: str, webhook_id: str, body: bytes) -> Outcome:
        """Take a request in, and return what its sender will observe."""
        event_id = orjson.loads(body)["data"]["event"]
        self._counts[url, event_id] += 1
        outcome = self.answer(url, event_id, self._counts[url, event_id])
        if not isinstance(outcome, Forbidden):
            now = self._clock.monotonic()
            told = Request(now, subscription.id, url, event_id, webhook_id, body, outcome)
            self.requests.append(told)
        return outcome


class Log:
    """A log that is only looked at for what must not be in it."""

    def __init__(self) -> None:
        self.faults: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        if event == "service.fault":
            self.faults.append(fields)

    debug = warning = error = info


class Meter:
    """Counts nothing."""

    def received(self, lane: str) -> None: ...

    def rejected(self, reason: str) -> None: ...

    def unmatched(self) -> None: ...

    def attempted(self, lane: str, outcome: str, seconds: float) -> None: ...

    def delivered(self, lane: str, outcome: str, seconds: float, age: float) -> None: ...

    def deferred(self, cause: str) -> None: ...

    def dead_lettered(self, reason: str) -> None: ...


class NoSchemas:
    """Every event's data is as it should be."""

    def check(self, event_type: str, data: object) -> None: ...


class World:
    """What outlives a dispatcher: time, broker, targets, and the subscriptions in force."""

    def __init__(
        self, subscriptions: Sequence[Subscription], answer: Answer, at: At = calmly
    ) -> None:
        self.clock = FakeClock()
        self.broker = FakeBroker(WANTED, at)
        self.receivers = Receivers(self.clock, answer)
        self.log = Log()
        self.at = at
        self.put_in_force(subscriptions)

    def put_in_force(self, subscriptions: Sequence[Subscription]) -> None:
        self.snapshot = Snapshot(subscriptions, version="", loaded_at=self.clock.now())

    def replace(self, old: Subscription, new: Subscription) -> None:
        """Put a changed subscription in force."""
        self.put_in_force([new if one is old else one for one in self.snapshot])


class Process:
    """One dispatcher: the real stages and the real broker layer, with nothing remembered.

    `prefetch` and `attempts` bound each lane, `slow` the attempts of targets known to be slow.
    """

    def __init__(
        self, world: World, url: str, *, prefetch: int = 100, attempts: int = 50, slow: int = 12
    ) -> None:
        self.world = world
        self.url = url
        self.states = States(1)
        clock, log, meter = world.clock, world.log, Meter()
        publisher = Publisher(10.0)
        outbox = Outbox(publisher, NAMES, clock)
        dispatcher = Dispatcher(
            Deliverer(self, outbox, self.states, clock, Reporter(log, meter)),
            outbox,
            lambda: world.snapshot,
            NoSchemas(),
            render,
            clock,
            log,
            meter,
            lambda queue: self.broker.doubt(queue),  # noqa: PLW0108 - it is made below
            intake=Budget("intake", attempts, slow),
            backlog=Budget("backlog", attempts, slow),
            max_event_bytes=MAX_EVENT_BYTES,
        )
        self.lanes = [
            Lane("intake", NAMES.intake, prefetch, dispatcher.on_event, log, MAX_EVENT_BYTES),
            Lane("backlog", NAMES.deliveries, prefetch, dispatcher.on_delivery, log),
        ]
        self.broker = Broker(
            Address([url]),
            Topology(NAMES, WANTED.events, [], [], []),
            self.lanes,
            publisher,
            log,
            clock,
            declare=True,
            on_waiting=_ignore,
        )
        self.running = asyncio.get_running_loop().create_task(self.broker.run())

    async def send(
        self,
        *,
        subscription: Subscription,
        target: Target,
        webhook_id: str,
        content: Content,
        timestamp: int,
        traceparent: str | None,
        tracestate: str | None,
    ) -> Outcome:
        """Stand in for the sender of webhooks."""
        await self.world.at("attempt", self.url)
        outcome = self.world.receivers.take(subscription, target.url, webhook_id, content.body)
        await self.world.at("attempt.taken", self.url)
        await asyncio.sleep(outcome.duration)
        return outcome

    @property
    def in_flight(self) -> int:
        """Return how many messages are worked on."""
        return sum(lane.in_flight for lane in self.lanes)

    async def drain(self) -> None:
        """End as at SIGTERM: take no more, finish what is under way, go."""
        await self.broker.stop_consuming()
        await asyncio.gather(*(lane.drained() for lane in self.lanes))
        self.running.cancel()
        await asyncio.wait([self.running])
