"""The supervised connection: always one session, or on the way to the next.

A session is two connections (one consumes, one publishes, because the broker stops reading from a
connection that publishes while an alarm is up) with one channel a lane and one for publishing.  Any
sign of trouble (a closed connection or channel, a cancelled consumer, a publish without a confirm) gives
the whole session up and builds another: simple, and every unacked message comes again.

The law here: nothing about the broker ends the process, and nothing waits for it without a bound.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from aiormq.abc import AbstractChannel, AbstractConnection
from yarl import URL

from service.broker import topology
from service.broker.consumer import Lane
from service.broker.opening import (
    CLOSE_TIMEOUT,
    OPEN_TIMEOUT,
    Address,
    broker_errors,
    close_connection,
    error_text,
    open_connection,
    wait_for_answer,
)
from service.broker.publisher import Publisher
from service.clock import Clock
from service.errors import BrokerError
from service.log import Log, rfc3339

BACKOFF_FIRST: Final = 0.5
BACKOFF_MAX: Final = 15.0
DOUBLINGS: Final = 10
"""Of the pause between two sessions, at most: it is at its longest before."""
STEADY: Final = 5.0
"""Seconds that a session has to last, so that the next has to wait no longer than after the first failure."""
DOUBT_EVERY: Final = 600.0
"""Least seconds between two sessions given up because of a gap in the delay ladder: a new one may not close it."""
FRAME_LEAST: Final = 131_072
RIGHTS_TIMEOUT: Final = 3.0
"""Seconds until the check of rights is taken for one that an alarm keeps from ending."""
BLOCKED_POLL: Final = 1.0
LANES_POLL: Final = 0.5
UNROUTED_POLL: Final = 30.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many messages lie in the queues that nobody consumes, and wait for people."""

    unrouted: int
    dead: int
    rejected: int


class Session:
    """Two open connections; `lost` is set with the reason at the first sign of trouble."""

    def __init__(self, consuming: AbstractConnection, publishing: AbstractConnection) -> None:
        self.consuming = consuming
        self.publishing = publishing
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._let_go: set[AbstractChannel] = set()
        for connection in (consuming, publishing):
            self.watch(connection)

    def fail(self, reason: str) -> None:
        """Give the session up."""
        if not self.lost.done():
            self.lost.set_result(reason)

    def watch(self, what: AbstractConnection | AbstractChannel) -> None:
        """Give the session up when this closes, unless it was let go."""

        def closed(future: "asyncio.Future[Any]") -> None:
            if what in self._let_go:
                self._let_go.discard(what)
            else:
                self.fail(_why(future))

        what.closing.add_done_callback(closed)

    async def channel(self, connection: AbstractConnection, *, confirms: bool) -> AbstractChannel:
        """Open a channel whose end is the session's end."""
        channel = await connection.channel(publisher_confirms=confirms, on_return_raises=True)
        self.watch(channel)
        return channel

    async def to_consume(self) -> AbstractChannel:
        """Open a channel for a lane."""
        channel = await self.channel(self.consuming, confirms=False)
        channel.on_consumer_cancel_callbacks.add(
            lambda _: self.fail("the broker cancelled a consumer: its queue is gone")
        )
        return channel

    async def to_publish(self) -> AbstractChannel:
        """Open a channel to publish over.  Raises BrokerError."""
        with broker_errors():
            async with asyncio.timeout(OPEN_TIMEOUT):
                return await self.channel(self.publishing, confirms=True)

    async def let_go(self, channel: AbstractChannel) -> None:
        """Close a channel that is needed no longer; its end is not the session's."""
        self._let_go.add(channel)
        await wait_for_answer(channel.close(), CLOSE_TIMEOUT)

    async def close(self) -> None:
        """Close both connections, politely if they still answer."""
        await asyncio.gather(close_connection(self.consuming), close_connection(self.publishing))


class Broker:
    """Keeps a session alive, feeds the lanes from it and the publisher with it."""

    def __init__(
        self,
        address: Address,
        wanted: topology.Topology,
        lanes: Sequence[Lane],
        publisher: Publisher,
        log: Log,
        clock: Clock,
        *,
        declare: bool,
        on_waiting: Callable[[Waiting], None],
    ) -> None:
        self._address = address
        self._wanted = wanted
        self._lanes = lanes
        self._publisher = publisher
        self._log = log
        self._clock = clock
        self._prepare: Callable[..., Awaitable[None]] = (
            topology.declare if declare else topology.check
        )
        self._on_waiting = on_waiting
        self._session: Session | None = None
        self._stopping = False
        self._failures = 0
        self._opened_at = float("inf")
        self._doubted_at = float("-inf")
        self._next_url = 0

    @property
    def consuming(self) -> bool:
        """Tell whether every lane consumes now."""
        return self._session is not None and not self._session.lost.done() and not self._stopping

    @property
    def blocked(self) -> bool:
        """Tell whether the broker refuses publishes now (an alarm)."""
        return self._publisher.blocked

    async def run(self) -> None:
        """Connect, consume, and do so again whenever the connection is lost; ends only by cancellation."""
        while True:
            reason = await self._one_session()
            lived = asyncio.get_running_loop().time() - self._opened_at
            # One that ends soon may have had the same reason as the one before: all that is under way comes again.
            self._failures = 1 if lived >= STEADY else self._failures + 1
            self._opened_at = float("inf")
            pause = random.uniform(BACKOFF_FIRST / 2, _ceiling(self._failures))  # noqa: S311 - spreads reconnects
            self._log.error(
                "broker.disconnected",
                error=reason,
                next_attempt_at=rfc3339(self._clock.now() + pause),
            )
            await asyncio.sleep(pause)

    async def stop_consuming(self) -> None:
        """Take no more messages, and go on publishing and acking."""
        self._stopping = True
        await asyncio.gather(*(wait_for_answer(one.stop(), CLOSE_TIMEOUT) for one in self._lanes))

    def doubt(self, queue: str) -> bool:
        """Give the session up, as the delay ladder has a gap: the next one declares it, or tells what is missing.

        Not one that is young: what comes early then has passed the gap before.  Nor another one soon: everything that
        is under way comes again.  Returns whether it did.
        """
        session, now = self._session, asyncio.get_running_loop().time()
        if session is None or now < max(self._opened_at + STEADY, self._doubted_at + DOUBT_EVERY):
            return False
        self._doubted_at = now
        session.fail(
            f"the delay ladder has a gap: a delivery came back that had not waited in {queue!r}"
        )
        return True

    async def _one_session(self) -> str:
        """Return why the session ended, or could not begin."""
        try:
            with broker_errors():
                self._session = await self._open()
                return await self._watched(self._session)
        except BrokerError as error:
            return str(error)
        finally:
            await self._end(self._session)

    async def _watched(self, session: Session) -> str:
        """Watch over a session; returns why it was lost."""
        watchers = [
            asyncio.create_task(self._guard(session, watch))
            for watch in (self._watch_blocked, self._watch_waiting, self._watch_lanes)
        ]
        try:
            return await asyncio.shield(session.lost)
        finally:
            for watcher in watchers:
                watcher.cancel()

    async def _end(self, session: Session | None) -> None:
        self._session = None
        self._publisher.abandon()
        for lane in self._lanes:
            lane.abandon()
        if session is not None:
            await session.close()

    async def _open(self) -> Session:
        url = self._address.urls[self._next_url % len(self._address.urls)]
        self._next_url += 1
        consuming = await open_connection(url, self._address, "webhook-dispatcher (consumes)")
        try:
            publishing = await open_connection(url, self._address, "webhook-dispatcher (publishes)")
        except BaseException:
            await close_connection(consuming)
            raise
        session = Session(consuming, publishing)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await self._begin(session, url)
        except BaseException:
            await session.close()
            raise
        self._next_url -= 1
        self._opened_at = asyncio.get_running_loop().time()
        self._log.info("broker.connected", **_peer(url, consuming))
        return session

    async def _begin(self, session: Session, url: str) -> None:
        _see_frames(session.publishing)
        await self._prepare(session.publishing, self._wanted)
        await self._check_writing(url)
        await self._publisher.use(session, session.fail)
        for lane in self._lanes:
            await lane.consume(session, session.fail)
        for lane in self._lanes:
            lane.begin()

    async def _check_writing(self, url: str) -> None:
        """Check our rights over a connection of its own, which an alarm may make useless.

        While one is up the broker reads nothing more from a connection that has published: then nobody can tell.
        """
        connection = await open_connection(url, self._address, "webhook-dispatcher (checks)")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(RIGHTS_TIMEOUT):
                    await topology.check_writing(connection, self._wanted)
        finally:
            await close_connection(connection)

    async def _guard(self, session: Session, watch: Callable[[Session], Awaitable[None]]) -> None:
        try:
            with broker_errors():
                await watch(session)
        except BrokerError as error:
            session.fail(str(error))

    async def _watch_blocked(self, session: Session) -> None:
        """Notice alarms: the library tells of them only by what `ready` waits for."""
        while True:
            try:
                async with asyncio.timeout(BLOCKED_POLL / 4):
                    await session.publishing.ready()
                blocked = False
            except TimeoutError:
                blocked = True
            if blocked != self._publisher.blocked:
                self._publisher.blocked = blocked
                self._log.warning("broker.blocked", blocked=blocked)
            await asyncio.sleep(BLOCKED_POLL)

    async def _watch_lanes(self, session: Session) -> None:
        while not session.lost.done():
            await asyncio.sleep(LANES_POLL)
            for lane in self._lanes:
                async with asyncio.timeout(OPEN_TIMEOUT):
                    await lane.look()

    async def _watch_waiting(self, session: Session) -> None:
        """Count what waits for people, and see that our exchanges are there.

        The catch-all queue must stay empty.  The broker parks by itself what was delivered too often; nothing else
        here would tell of it, nor of what was deleted: without an exchange the delay ladder, or every producer,
        stands still, and without a queue of the ladder delays are skipped.  That ends the session, and the next
        one declares it.  A passive declaration needs no permission at all.
        """
        names = self._wanted.names
        channel = await session.channel(session.consuming, confirms=False)
        while True:
            queues = (names.unrouted, names.dead, names.rejected)
            found = [await channel.queue_declare(name, passive=True) for name in queues]
            waiting = Waiting(*(one.message_count or 0 for one in found))
            self._on_waiting(waiting)
            if waiting.unrouted:
                self._log.error("broker.unrouted", queue=names.unrouted, messages=waiting.unrouted)
            for exchange in (self._wanted.events, *self._wanted.exchanges):
                await channel.exchange_declare(exchange.name, passive=True)
            for queue in self._wanted.queues:
                await channel.queue_declare(queue.name, passive=True)
            await asyncio.sleep(UNROUTED_POLL)


def _ceiling(failures: int) -> float:
    """Return the longest pause after so many failures in a row, in seconds."""
    # After an outage of two hours the power would be no float.
    return min(BACKOFF_FIRST * 2.0 ** min(failures, DOUBLINGS), BACKOFF_MAX)


def _see_frames(connection: AbstractConnection) -> None:
    """See that what a delivery carries beside its body fits a frame: none that does not could ever be put off."""
    largest = connection.connection_tune.frame_max
    if 0 < largest < FRAME_LEAST:
        raise BrokerError(
            f"the broker takes no frames of more than {largest} bytes: set its frame_max to {FRAME_LEAST}"
            " (the default) or more"
        )


def _why(closed: "asyncio.Future[Any]") -> str:
    if closed.cancelled():
        return "the connection was closed"
    error = closed.exception()
    return "the connection was closed" if error is None else error_text(error)


def _peer(url: str, connection: AbstractConnection) -> dict[str, Any]:
    parsed = URL(url)
    version = (connection.server_properties or {}).get("version")
    peer: dict[str, Any] = {"server.address": parsed.host or "", "server.port": parsed.port or 0}
    if isinstance(version, str):
        peer["broker_version"] = version
    return peer
