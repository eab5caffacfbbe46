"""Subscribers of which some fall sick when told to: `python -m tests.bench.ward SUBSCRIBERS`.

Each listens on a port of its own.  The program prints a line of JSON, the port of control and those of the
subscribers, and ends with SIGTERM.  Control is HTTP:

    GET  /count        how many deliveries all subscribers took
    GET  /arrivals     [subscriber, sent_at, arrived_at] of each that was taken; forgets them
    GET  /doubled      how many were taken that had been taken before
    GET  /HOW/N        the first N subscribers are sick in that way from now on, the others are well

A sick one takes nothing (`hang`: it answers after 30 s, `refuse`: nobody listens, `fail`: it answers 500),
or little: `slow` answers after 5 s, and `throttle` takes five a second and answers the rest 429 with
`Retry-After: 2`.
"""

import asyncio
import sys
import time
from contextlib import suppress
from typing import Final

import orjson

from tests.bench.processes import say
from tests.bench.small_http import Connection, response, sent_at, stop_signal, webhook_id

WELL: Final = "well"
HANG_SECONDS: Final = 30.0
SLOW_SECONDS: Final = 5.0
THROTTLED_RATE: Final = 5.0
RETRY_AFTER: Final = 2


class Journal:
    """What all subscribers took."""

    def __init__(self) -> None:
        self.taken = 0
        self.doubled = 0
        self.arrivals: list[tuple[int, float, float]] = []
        self._seen: set[tuple[int, bytes]] = set()

    def note(self, subscriber: int, head: bytes, body: bytes, at: float) -> None:
        """Note a delivery that was answered with 200."""
        self.taken += 1
        which = (subscriber, webhook_id(head))
        self.doubled += which in self._seen
        self._seen.add(which)
        sent = sent_at(body)
        if sent is not None:
            self.arrivals.append((subscriber, sent, at))


class Subscriber:
    """One of them: its port, its connections, and how it is."""

    def __init__(self, number: int, journal: Journal) -> None:
        self.number = number
        self.how = WELL
        self.port = 0
        self.connections: set[asyncio.WriteTransport] = set()
        self._journal = journal
        self._server: asyncio.Server | None = None
        self._tokens = THROTTLED_RATE
        self._filled_at = 0.0

    async def listen(self) -> None:
        """Listen, on the same port as before."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                lambda: Visit(self), "127.0.0.1", self.port, backlog=4096, reuse_address=True
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def fall(self, how: str) -> None:
        """Be in this way from now on."""
        self.how = how
        if how != "refuse":
            await self.listen()
        elif self._server is not None:
            self._server.close()
            self._server = None
            for connection in list(self.connections):
                connection.abort()

    def answer(self, head: bytes, body: bytes, write: asyncio.WriteTransport) -> None:
        """Answer a request, now or later."""
        match self.how:
            case "fail":
                write.write(response(500))
            case "throttle" if not self._may_pass():
                write.write(response(429, headers=b"Retry-After: %d\r\n" % RETRY_AFTER))
            case "hang" | "slow":
                seconds = HANG_SECONDS if self.how == "hang" else SLOW_SECONDS
                loop = asyncio.get_running_loop()
                loop.call_later(seconds, self._take, head, body, write, time.time())
            case _:
                self._take(head, body, write, time.time())

    def _take(self, head: bytes, body: bytes, write: asyncio.WriteTransport, at: float) -> None:
        if not write.is_closing():
            self._journal.note(self.number, head, body, at)
            write.write(response(200))

    def _may_pass(self) -> bool:
        now = time.monotonic()
        earned = (now - self._filled_at) * THROTTLED_RATE
        self._tokens, self._filled_at = min(self._tokens + earned, THROTTLED_RATE), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Visit(Connection):
    """A connection that a subscriber answers."""

    def __init__(self, subscriber: Subscriber) -> None:
        super().__init__()
        self._subscriber = subscriber

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have the subscriber know it."""
        super().connection_made(transport)
        self._subscriber.connections.add(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Have the subscriber forget it."""
        self._subscriber.connections.discard(self.transport)

    def answer(self, head: bytes, body: bytes) -> None:
        """Leave it to the subscriber, which may take its time."""
        self._subscriber.answer(head, body, self.transport)


class Control:
    """Answers the program that measures."""

    def __init__(self, subscribers: list[Subscriber], journal: Journal) -> None:
        self._subscribers = subscribers
        self._journal = journal

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(response(200, await self._told(head.split(b" ", 2)[1].decode())))
                await writer.drain()
        writer.close()

    async def _told(self, path: str) -> bytes:
        journal = self._journal
        match path.strip("/").split("/"):
            case ["count"]:
                return b"%d" % journal.taken
            case ["doubled"]:
                return b"%d" % journal.doubled
            case ["arrivals"]:
                arrivals, journal.arrivals = journal.arrivals, []
                return orjson.dumps(arrivals)
            case [how, number]:
                for subscriber in self._subscribers:
                    await subscriber.fall(how if subscriber.number < int(number) else WELL)
        return b""


async def serve(count: int) -> None:
    """Listen until SIGTERM or SIGINT."""
    stop, journal = stop_signal(), Journal()
    subscribers = [Subscriber(number, journal) for number in range(count)]
    for subscriber in subscribers:
        await subscriber.listen()
    control = await asyncio.start_server(Control(subscribers, journal).serve, "127.0.0.1", 0)
    ports = [subscriber.port for subscriber in subscribers]
    say(orjson.dumps([control.sockets[0].getsockname()[1], *ports]).decode())
    await stop.wait()


if __name__ == "__main__":
    import uvloop

    with suppress(KeyboardInterrupt):
        uvloop.run(serve(int(sys.argv[1])))
