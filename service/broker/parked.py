"""Going through a queue of parked messages: dead letters and rejected events.

Looking holds messages and gives every one of them back, in place.  Working walks the queue once, over at
most as many messages as it held at the start: what matches is dealt with, what does not goes back to the
tail.  What could not be published again as it is, or is refused, stays where it lies.  The law here: a message is acked
only after its copy is confirmed; a crash, or a connection that is lost, doubles a chunk at worst.
"""

import asyncio
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import compress
from typing import Final

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity, DeliveryError
from pamqp.commands import Basic

from service.broker.frames import Received, consume
from service.broker.opening import Address, broker_errors, close_connection, open_first
from service.broker.rejected import can_be_written_again, parked_again
from service.broker.settler import CATCHES_UP
from service.broker.wire import whole
from service.errors import BrokerError

CHUNK: Final = 100
"""Messages that a walk holds at a time; a consumer that holds its prefetch is sent no more."""

WINDOW: Final = 65_535
"""Messages that a look holds with one consumer: the largest prefetch there is.

None at all would be no more: RabbitMQ takes it for 2,000 where the queue is a quorum queue.
"""

ANSWER: Final = 30.0
"""Seconds for each answer of the broker: nothing here waits for it without a bound."""

ALARM_LOOK: Final = 0.25
IDLE: Final = 10.0
"""Seconds without a message after which a walk ends: another process holds the rest, if the broker answers."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A message as it lies in the queue."""

    body: bytes
    properties: Basic.Properties
    routing_key: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message is published to: exchange, routing key, and its properties."""

    exchange: str
    routing_key: str
    properties: Basic.Properties


class Why(Enum):
    """Why a message is left where it lies."""

    LOSES = auto()
    """Published again it would lose headers, or it has lost them."""
    FULL = auto()
    """Its own queue takes no copy of it, and so it keeps its place."""
    REFUSED = auto()
    """A queue on its way refuses it."""


@dataclass(frozen=True, slots=True)
class Stays:
    """A message is left where it lies."""

    why: Why = Why.LOSES


Choose = Callable[[Parked], bool]
Route = Callable[[Parked], Place | Stays | None]
Left = Callable[[Parked, bool, Why], None]
"""Is told of each message that is left where it lies, whether it was a chosen one, and why."""


def _nobody(_: Parked, __: bool, ___: Why) -> None:  # noqa: FBT001
    """Tell nobody."""


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[AbstractConnection]:
    """Give an open connection.  Raises BrokerError, in words for a person."""
    connection = await open_first(address, "webhook-dispatcher (command)")
    try:
        yield connection
    finally:
        await close_connection(connection)


class ParkedQueue:
    """One queue of parked messages; needs an open connection."""

    def __init__(self, connection: AbstractConnection, name: str) -> None:
        self._connection = connection
        self._name = name

    async def look(self, visit: Callable[[Parked], bool]) -> int:
        """Show every message to `visit` until it returns False, and leave the queue as it was.

        Nothing is kept here: of a million messages the broker holds a list, and this process one.  Returns how many
        could not be shown, because others hold them.  Raises what `visit` raises, and BrokerError where the connection
        is lost on the way.
        """
        channel, left = await self._open(confirms=False)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        spent: asyncio.Future[None] = loop.create_future()
        window = 0

        def see(message: Received) -> None:
            nonlocal left, window
            if done.done():
                return
            left -= 1
            window -= 1
            if not window:
                spent.set_result(None)
            try:
                goes_on = visit(_parked(message))
            except Exception as error:  # noqa: BLE001 - the library's reader must not end by it
                done.set_exception(error)
                return
            if not goes_on or left == 0:
                done.set_result(None)

        try:
            while left and not done.done():
                if not window:  # a further consumer goes on where the one before may hold no more
                    spent, window = loop.create_future(), WINDOW
                    async with _in_time():
                        await consume(channel, self._name, see, prefetch=WINDOW)
                before = left
                await asyncio.wait(
                    [done, spent, channel.closing], timeout=IDLE, return_when=FIRST_COMPLETED
                )
                if left == before and not done.done():
                    await self._see_that_it_lives(channel, left)
                    break  # another process holds the rest
            if done.done():
                done.result()
                return 0
        finally:
            await _closed(channel)  # what is not acked goes back, each to its place
        return left

    async def work(
        self, chosen: Choose, route: Route, limit: int | None, left_alone: Left = _nobody
    ) -> int:
        """Deal with the chosen messages, at most `limit`, and return with how many it did.

        `route` says where each goes; None means that it is dropped.
        """
        channel, left = await self._open(confirms=True)
        closing, done, is_gapless = channel.closing, 0, True
        try:
            while left and done != limit:
                size = min(CHUNK, left) if limit is None else min(CHUNK, left, limit - done)
                chunk = [message async for message in self._take(channel, closing, size)]
                if not chunk:
                    break
                left -= len(chunk)
                moved = [
                    self._move(channel, message, chosen, route, left_alone) for message in chunk
                ]
                # All of them come to their end: one that fails must not leave others confirmed, unacked.
                ends = await asyncio.gather(*moved, return_exceptions=True)
                settled = [isinstance(end, bool) for end in ends]
                # After a short chunk messages may have come that nobody looked at: no ack may cover these.
                is_gapless = is_gapless and all(settled) and len(chunk) == size
                await self._ack(channel, compress(chunk, settled), together=is_gapless)
                for end in ends:
                    if isinstance(end, BaseException):
                        raise end
                    done += bool(end)
            await self._see_that_it_lives(channel, left)  # and so has had the last ack
        finally:
            if not is_gapless:
                await asyncio.sleep(CATCHES_UP)
            await _closed(channel)
        return done

    async def _ack(
        self, channel: AbstractChannel, messages: Iterable[Received], *, together: bool
    ) -> None:
        """Ack messages in one piece, or one by one because there is one before them that is not to be acked."""
        tags = [message.tag for message in messages]
        async with _in_time():
            if together:
                await channel.basic_ack(tags[-1], multiple=True, wait=False)
            else:
                for tag in tags:
                    await channel.basic_ack(tag, wait=False)

    def _tail(self, parked: Parked) -> Place | Stays:
        if not can_be_written_again(parked.properties):
            return Stays()
        # Through its own exchange: a person who may redrive needs no right to write to any queue.
        again = parked_again(parked.properties, parked.routing_key, parked.body)
        return Place(self._name, "", again)

    async def _move(
        self,
        channel: AbstractChannel,
        message: Received,
        chosen: Choose,
        route: Route,
        left_alone: Left,
    ) -> bool | None:
        """Bring a message to its place and tell whether it was a chosen one; None where it stays where it lies."""
        parked = _parked(message)
        matches = chosen(parked)
        place = route(parked) if matches else self._tail(parked)
        if isinstance(place, Place) and not await self._publish(channel, message.body, place):
            place = Stays(Why.REFUSED if matches else Why.FULL)
        if isinstance(place, Stays):
            left_alone(parked, matches, place.why)  # not acked, it goes back with the channel
            return None
        return matches

    async def _publish(self, channel: AbstractChannel, body: bytes, place: Place) -> bool:
        """Publish a message and tell whether the broker took it.  Raises BrokerError where it does not answer."""
        try:
            async with asyncio.timeout(ANSWER):
                await channel.basic_publish(
                    body,
                    exchange=place.exchange,
                    routing_key=place.routing_key,
                    properties=whole(place.properties),
                    mandatory=True,
                )
        except DeliveryError:
            return False
        except TimeoutError as error:
            raise BrokerError(await self._why_no_confirm()) from error
        return True

    async def _why_no_confirm(self) -> str:
        try:
            async with asyncio.timeout(ALARM_LOOK):
                await self._connection.ready()
        except TimeoutError:
            return (
                "the broker takes no messages now: an alarm is up (memory or disk space): mend that,"
                " and try again"
            )
        return f"no confirm from the broker within {ANSWER:g} s: try again"

    async def _see_that_it_lives(self, channel: AbstractChannel, left: int) -> None:
        """Tell silence from a connection that is lost: that raises BrokerError."""
        try:
            with broker_errors():
                async with asyncio.timeout(IDLE):
                    await channel.queue_declare(self._name, passive=True)
        except BrokerError as error:
            raise BrokerError(
                f"the connection to the broker was lost, {left} messages before the end: try again"
            ) from error

    async def _open(self, *, confirms: bool) -> tuple[AbstractChannel, int]:
        try:
            async with _in_time():
                channel = await self._connection.channel(
                    publisher_confirms=confirms, on_return_raises=True
                )
                found = await channel.queue_declare(self._name, passive=True)
                count = found.message_count or await self._count_by_taking(channel)
        except ChannelNotFoundEntity:
            raise BrokerError(
                f"queue {self._name!r} does not exist: check DISPATCHER_PREFIX; the dispatcher makes it"
                " when it first starts"
            ) from None
        return channel, count

    async def _count_by_taking(self, channel: AbstractChannel) -> int:
        """Count with the first message in hand, which goes back: to its place, or to the end where others went back.

        A count of 0 may mean that the queue's leader was slow to answer (RabbitMQ 3.10: for 250 ms).
        """
        found = (await channel.basic_get(self._name)).delivery
        if not isinstance(found, Basic.GetOk):
            return 0
        await channel.basic_nack(found.delivery_tag or 0, requeue=True)
        return 1 + (found.message_count or 0)

    async def _take(
        self, channel: AbstractChannel, closing: "asyncio.Future[None]", count: int
    ) -> AsyncIterator[Received]:
        """Give the next `count` messages, fewer when others hold some of them.

        With a prefetch of `count` the broker sends these and no other, so that the order stays.
        """
        if count == 0:
            return
        inbox: asyncio.Queue[Received | None] = asyncio.Queue()

        def wake(_: "asyncio.Future[None]") -> None:
            inbox.put_nowait(None)

        closing.add_done_callback(wake)
        async with _in_time():
            consumer_tag = await consume(channel, self._name, inbox.put_nowait, count)
        for number in range(count):
            message = None
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE):
                    message = await inbox.get()
            if message is None:
                await self._see_that_it_lives(channel, count - number)
                break
            yield message
        closing.remove_done_callback(wake)
        if not channel.is_closed:
            async with _in_time():
                await channel.basic_cancel(consumer_tag)


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Bound a wait for the broker's answer.  Raises BrokerError where none comes."""
    try:
        async with asyncio.timeout(ANSWER):
            yield
    except TimeoutError as error:
        raise BrokerError(f"no answer from the broker within {ANSWER:g} s: try again") from error


async def _closed(channel: AbstractChannel) -> None:
    """Close a channel as far as that can be had: with its connection it is gone anyway."""
    with suppress(BrokerError), broker_errors():
        async with asyncio.timeout(IDLE):
            await channel.close()


def _parked(message: Received) -> Parked:
    return Parked(message.body, message.properties, message.routing_key)
