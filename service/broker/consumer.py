"""Lanes: messages in, acks out.

A lane consumes one queue and works on each message in a task of its own, which outlives the channel: an
HTTP request must not be cut off because a connection broke.  The law here: a message is settled once, on
the channel it came from, and not at all when that channel is gone: the broker then delivers it again.

Acks are batched (`multiple` up to the first unfinished tag); what is finished beyond an unfinished
message is acked one by one, a few milliseconds later, so that one slow message never holds up the rest.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from service.broker.deliveries import Delivered, consume
from service.broker.wire import UNDECODABLE
from service.core.decode import Incoming
from service.errors import EventRejected
from service.log import Log

FLUSH_AFTER: Final = 0.004
FLUSH_COUNT: Final = 64


class Settler:
    """Acks the messages of one channel, in batches."""

    def __init__(self, channel: AbstractChannel, on_failure: Callable[[str], None]) -> None:
        self._channel = channel
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._stragglers: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self.closed = False

    def opened(self, tag: int) -> None:
        """Note a message in the order in which the broker sent it."""
        self._open.append(tag)

    def ack(self, tag: int) -> None:
        """Ack a message, soon."""
        if self.closed:
            return
        self._done.add(tag)
        if len(self._done) >= FLUSH_COUNT:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self._flush)

    async def requeue(self, tag: int) -> None:
        """Give a message back to the broker, now."""
        if self.closed:
            return
        await self._channel.basic_nack(tag, requeue=True, wait=False)
        self._settled(tag)

    async def turn_away(self, tag: int) -> None:
        """Let the broker dead-letter a message, now."""
        if self.closed:
            return
        await self._channel.basic_reject(tag, requeue=False, wait=False)
        self._settled(tag)

    async def finish(self) -> None:
        """Send every ack that is due, and see it leave this process."""
        while self._done and not self.closed:
            self._flush()
            if self._flushing is not None:
                await asyncio.wait([self._flushing])

    def _settled(self, tag: int) -> None:
        """Forget a message whose settling is on its way.

        Not before: while its frame waits for room, an ack of all up to a later tag could overtake it
        and would ack this message too.
        """
        if not self.closed:
            self._open.remove(tag)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushing is not None and not self._flushing.done():
            self._timer = self._loop.call_later(FLUSH_AFTER, self._flush)
            return
        acks = [*self._prefix(), *self._beyond()]
        if acks:
            self._flushing = self._loop.create_task(self._send(acks))
        if self._done and self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self._flush)

    def _prefix(self) -> list[tuple[int, bool]]:
        last, count = None, 0
        while self._open and self._open[0] in self._done:
            last = self._open.popleft()
            self._done.discard(last)
            self._stragglers.discard(last)
            count += 1
        return [] if last is None else [(last, count > 1)]

    def _beyond(self) -> list[tuple[int, bool]]:
        """Ack what was already waiting behind an unfinished message at the flush before this one."""
        late = self._stragglers & self._done
        self._done -= late
        self._stragglers = set(self._done)
        if late:
            self._open = deque(tag for tag in self._open if tag not in late)
        return [(tag, False) for tag in sorted(late)]

    async def _send(self, acks: list[tuple[int, bool]]) -> None:
        last = len(acks) - 1
        try:
            for place, (tag, multiple) in enumerate(acks):
                await self._channel.basic_ack(tag, multiple=multiple, wait=place == last)
        except asyncio.CancelledError:
            self._on_failure("the channel closed while acks were being sent")
        except Exception as error:  # noqa: BLE001 - the library raises bare exceptions on a dead channel
            self._on_failure(f"acks could not be sent: {type(error).__name__} {error}")


@dataclass(slots=True, eq=False)
class Message:
    """A message on a lane, to be settled exactly once."""

    body: bytes
    properties: Basic.Properties
    routing_key: str
    exchange: str
    redelivered: bool
    tag: int
    settler: Settler
    left_out: int = 0

    async def turn_away(self) -> None:
        """Settle: the broker parks the message among the rejected, at least once."""
        await self.settler.turn_away(self.tag)

    def ack(self) -> None:
        """Settle: everything owed is durable."""
        self.settler.ack(self.tag)

    @property
    def headers(self) -> Mapping[str, Any]:
        """Return the AMQP headers."""
        return self.properties.headers or {}

    @property
    def incoming(self) -> Incoming:
        """Return what an event is read from.

        Raises EventRejected `invalid_envelope` where the properties could not be decoded.
        """
        undecodable = self.headers.get(UNDECODABLE)
        if undecodable is not None:
            raise EventRejected("invalid_envelope", f"properties cannot be decoded: {undecodable}")
        told = self.properties
        return Incoming(
            body=self.body,
            content_type=told.content_type,
            headers=told.headers or {},
            routing_key=self.routing_key,
            message_id=told.message_id,
            timestamp=told.timestamp,
            type=told.message_type,
            app_id=told.app_id,
        )

    @property
    def lost(self) -> bool:
        """Tell whether the channel is gone: the broker will deliver the message again."""
        return self.settler.closed


Handler = Callable[[Message], Awaitable[None]]


class Lane:
    """One queue, consumed with a bound on what is in flight; survives the channels it is given.

    `handler` is awaited for each message in a task of its own and settles it; a body of more than
    `largest` bytes is left out of its message.
    """

    def __init__(
        self,
        name: str,
        queue: str,
        prefetch: int,
        handler: Handler,
        log: Log,
        largest: int | None = None,
    ) -> None:
        self.name = name
        self._largest = largest
        self.queue = queue
        self.prefetch = prefetch
        self._handler = handler
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: deque[Message] = deque()
        self._channel: AbstractChannel | None = None
        self._consumer_tag: str | None = None
        self._settler: Settler | None = None
        self._stopped = False

    @property
    def in_flight(self) -> int:
        """Return how many messages are being worked on or wait for their turn."""
        return len(self._tasks) + len(self._waiting)

    async def consume(self, channel: AbstractChannel, on_failure: Callable[[str], None]) -> None:
        """Start to consume on a fresh channel, unless the lane was stopped."""
        if self._stopped:
            return
        settler = Settler(channel, on_failure)
        self._channel, self._settler = channel, settler
        self._consumer_tag = await consume(
            channel,
            self.queue,
            lambda delivered: self._take(delivered, settler),
            self.prefetch,
            self._largest,
        )
        if self._stopped:  # meanwhile: there was nothing to cancel yet
            await self.stop()

    def abandon(self) -> None:
        """Forget the channel: it is gone, and what came over it will come again."""
        if self._settler is not None:
            self._settler.closed = True
        self._waiting.clear()
        self._channel = self._settler = self._consumer_tag = None

    async def stop(self) -> None:
        """Ask for no more messages, for good; what has begun goes on, what has not is left to others."""
        self._stopped = True
        self._waiting.clear()
        if self._channel is not None and self._consumer_tag is not None:
            await self._channel.basic_cancel(self._consumer_tag)
        self._consumer_tag = None

    async def drained(self) -> None:
        """Wait until nothing is in flight and every ack is sent."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._settler is not None:
            await self._settler.finish()

    async def cut_off(self) -> None:
        """Stop the work that is still under way; its messages stay unacked."""
        for task in self._tasks:
            task.cancel()
        await self.drained()

    def _take(self, delivered: Delivered, settler: Settler) -> None:
        message = Message(
            body=delivered.body,
            properties=delivered.properties,
            routing_key=delivered.routing_key,
            exchange=delivered.exchange,
            redelivered=delivered.redelivered,
            tag=delivered.tag,
            settler=settler,
            left_out=delivered.left_out,
        )
        settler.opened(message.tag)
        if self._stopped:  # left unsettled: others get it when this connection ends
            return
        # After a reconnect the work of the old channel may still be under way: the bound covers both.
        if len(self._tasks) < self.prefetch:
            self._start(message)
        else:
            self._waiting.append(message)

    def _start(self, message: Message) -> None:
        task = asyncio.get_running_loop().create_task(self._work(message))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        while self._waiting and len(self._tasks) < self.prefetch:
            message = self._waiting.popleft()
            if not message.lost:
                self._start(message)

    async def _work(self, message: Message) -> None:
        try:
            await self._handler(message)
        except Exception as error:  # noqa: BLE001 - the last line of defence of a lane
            # Not settled: the broker gives it to somebody again, and parks it when that never ends.
            self._log.error(
                "service.fault", where=f"{self.name} lane", error=f"{type(error).__name__}: {error}"
            )
            await self._give_back(message)

    async def _give_back(self, message: Message) -> None:
        await asyncio.sleep(1.0)  # a fault that repeats must not spin
        if not message.lost:
            await message.settler.requeue(message.tag)
