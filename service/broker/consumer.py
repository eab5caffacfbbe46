"""Lanes: messages in, acks out.

A lane consumes one queue and works on each message in a task of its own, which outlives the channel: an
HTTP request must not be cut off because a connection broke.

Acks are batched, but for those behind a message that stays unfinished: each of these costs the broker as
much as a batch does.  A lane that sees many of them goes on over another channel, and leaves the unfinished
message to the one that it came from.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from service.broker.frames import Received, consume
from service.broker.settler import CATCHES_UP, Settler
from service.broker.wire import Undecodable
from service.core.decode import Incoming
from service.errors import EventRejected
from service.faults import tell_fault
from service.log import Log

MANY_ALONE: Final = 100
"""Acks one by one since the lane last looked, from which on it changes its channel."""
NARROW: Final = 0.75
"""The share of what could be had, below which a channel's prefetch makes the lane change it as well.

What waits on other channels is taken off the prefetch of a new one, which cannot be changed afterwards.
"""
CHANGE_EVERY: Final = 5.0
"""Seconds between two changes because of a message in the way, at least: nothing comes in meanwhile.

Where many targets are slow the next such message is there at once.
"""
CHANGE_WITHIN: Final = 0.1
"""Seconds for what is not in the way to be worked off before the new channel's prefetch is set."""
LINGER: Final = 5.0
"""Seconds for which a channel stays after its last ack.

RabbitMQ holds acks back while it is behind with a quorum queue, and forgets them with their channel.
"""
CHANNELS_LEFT: Final = 4
"""Channels that wait for their unfinished messages, at most, for each lane."""


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
    def may_be_turned_away(self) -> bool:
        """Tell whether the broker can dead-letter the message.

        RabbitMQ's worker for that fails on an `x-death` that RabbitMQ did not write, and fails again when it is
        started anew, until no queue of the node dead-letters any more: the delay ladder stands still (3.10).
        """
        deaths = self.headers.get("x-death", [])
        if isinstance(self.headers, Undecodable):
            return False
        return not isinstance(deaths, list) or all(map(_is_a_death, deaths))

    @property
    def incoming(self) -> Incoming:
        """Return what an event is read from.

        Raises EventRejected `invalid_envelope` where the properties could not be decoded.
        """
        if isinstance(self.headers, Undecodable):
            reason = self.headers.reason
            raise EventRejected("invalid_envelope", f"properties cannot be decoded: {reason}")
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


def _is_a_death(told: object) -> bool:
    """Tell whether this is an entry of `x-death` such as RabbitMQ writes, in what it reads of one."""
    return (
        isinstance(told, dict)
        and isinstance(told.get("queue"), str)
        and isinstance(told.get("reason"), str)
        and type(told.get("count")) is int
    )


Handler = Callable[[Message], Awaitable[None]]


class Channels(Protocol):
    """The session that consumes, as far as it opens and closes channels for a lane."""

    async def to_consume(self) -> AbstractChannel:
        """Open a channel.  Raises what the library raises."""

    async def let_go(self, channel: AbstractChannel) -> None:
        """Close a channel, without an end of the session."""


@dataclass(slots=True, eq=False)
class _Stream:
    """What comes over one channel."""

    channel: AbstractChannel
    settler: Settler
    prefetch: int
    consumer_tag: str | None = None
    alone: int = 0
    """How many acks had gone one by one when the lane last looked."""
    oldest: int | None = None
    """Which message had been unfinished for longest then."""

    async def cancel(self) -> None:
        """Ask for no more messages."""
        tag, self.consumer_tag = self.consumer_tag, None
        if tag is not None:
            await self.channel.basic_cancel(tag)


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
        self._channels: Channels
        self._on_failure: Callable[[str], None]
        self._streams: list[_Stream] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._is_held = False
        self._changed_at = float("-inf")

    @property
    def in_flight(self) -> int:
        """Return how many messages are being worked on or wait for their turn."""
        return len(self._tasks) + len(self._waiting)

    async def consume(self, channels: Channels, on_failure: Callable[[str], None]) -> None:
        """Start to consume over channels of this session, unless the lane was stopped.

        What comes waits for `begin`: a session that cannot be completed would have the work done again by the next.
        """
        if not self._stopped:
            self._is_held = True
            self._channels, self._on_failure = channels, on_failure
            await self._consume(await channels.to_consume(), self.prefetch)

    def begin(self) -> None:
        """Begin to work on what comes."""
        self._is_held = False
        self._start_waiting()

    async def _consume(self, channel: AbstractChannel, prefetch: int) -> None:
        settler = Settler(channel, prefetch, self._on_failure)
        stream = _Stream(channel, settler, prefetch)
        self._streams.append(stream)
        stream.consumer_tag = await consume(
            channel,
            self.queue,
            lambda delivered: self._take(delivered, settler),
            prefetch,
            self._largest,
        )
        if self._stopped:  # meanwhile: there was nothing to cancel yet
            await stream.cancel()

    async def look(self) -> None:
        """Go on over another channel where an unfinished message is in the way of many acks.

        To be called a few times a second.  What was on its way over the old channel comes over the new one, marked
        as delivered again.  One target that hangs so costs the broker 7 % of a core, not 12, and an event 2.0 ms
        at the median, not 2.6 (2,750 events a second, two cores).
        """
        if self._stopped or not self._streams:
            return
        stream = self._streams[-1]
        is_narrow = stream.prefetch < NARROW * self._room
        if not is_narrow and not self._is_obstructed(stream):
            return
        left = sum(one.settler.unfinished for one in self._streams[:-1])
        if len(self._streams) <= CHANNELS_LEFT and left <= self.prefetch // 2:
            await self._change(stream, self.prefetch // 2 - left)

    def _is_obstructed(self, stream: _Stream) -> bool:
        """Tell whether one message has been in the way of many acks since the lane last looked."""
        settler, alone, oldest = stream.settler, stream.alone, stream.oldest
        stream.alone, stream.oldest = settler.alone, settler.oldest
        if oldest is None or oldest != settler.oldest or settler.alone - alone < MANY_ALONE:
            return False
        return asyncio.get_running_loop().time() >= self._changed_at + CHANGE_EVERY

    async def _change(self, stream: _Stream, unfinished: int) -> None:
        """Go on over another channel, once at most so many messages of this one are unfinished, or soon."""
        channel = await self._channels.to_consume()
        self._changed_at = asyncio.get_running_loop().time()
        await stream.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(CHANGE_WITHIN):
                await stream.settler.emptied(but=unfinished)
        if not self._stopped:
            await self._consume(channel, max(1, self._room))
        leaving = asyncio.get_running_loop().create_task(self._leave(stream))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    @property
    def _room(self) -> int:
        """Return how many messages more the lane may hold, of those that are not settled."""
        return self.prefetch - sum(stream.settler.unfinished for stream in self._streams)

    async def _leave(self, stream: _Stream) -> None:
        """Close a channel once all that came over it is settled."""
        await stream.settler.emptied()
        await asyncio.sleep(LINGER)
        self._streams.remove(stream)
        stream.settler.close()
        await self._channels.let_go(stream.channel)

    def abandon(self) -> None:
        """Forget the channels: they are gone, and what came over them will come again."""
        for leaving in self._leaving:
            leaving.cancel()
        for stream in self._streams:
            stream.settler.close()
        self._streams.clear()
        self._waiting.clear()

    async def stop(self) -> None:
        """Ask for no more messages, for good; what has begun goes on, what has not is left to others."""
        self._stopped = True
        self._waiting.clear()
        if self._streams:
            await self._streams[-1].cancel()

    async def drained(self) -> None:
        """Wait until nothing is in flight and every ack is sent, and for a moment where the broker may be behind."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        for stream in self._streams:
            await stream.settler.finish()
        if any(stream.settler.may_be_held_back(CATCHES_UP) for stream in self._streams):
            await asyncio.sleep(CATCHES_UP)

    async def cut_off(self) -> None:
        """Stop the work that is still under way; its messages stay unacked."""
        for task in self._tasks:
            task.cancel()
        await self.drained()

    def _take(self, delivered: Received, settler: Settler) -> None:
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
        if len(self._tasks) < self.prefetch and not self._is_held:
            self._start(message)
        else:
            self._waiting.append(message)

    def _start(self, message: Message) -> None:
        task = asyncio.get_running_loop().create_task(self._work(message))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self._waiting and len(self._tasks) < self.prefetch and not self._is_held:
            message = self._waiting.popleft()
            if not message.lost:
                self._start(message)

    async def _work(self, message: Message) -> None:
        try:
            await self._handler(message)
        except Exception as error:  # noqa: BLE001 - the last line of defence of a lane
            # Not settled: the broker gives it to somebody again, and parks it when that never ends.
            tell_fault(self._log, f"{self.name} lane", error)
            await self._give_back(message)

    async def _give_back(self, message: Message) -> None:
        await asyncio.sleep(1.0)  # a fault that repeats must not spin
        if not message.lost:
            await message.settler.requeue(message.tag)
