"""The bare loops: what the same libraries cost without a dispatcher around them.

    python -m tests.bench.bare KIND AMQP_URL QUEUE HOOK_URL FAN_OUT IN_FLIGHT

consumes a queue, sends each message's body to the hook FAN_OUT times at once, and acks: no decoding, no
validation, no matching, no signature, no log line, no retry.  KIND is

    aio-pika   as a user would write it: aio_pika, one ack for each message
    aiormq     the library below it, acks in batches by prefix
    post       no broker: reads numbers from standard input, one a line, and sends as many requests

It prints a line once it consumes, and ends with SIGTERM.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import aio_pika
import aiohttp
import aiormq
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from aiormq.abc import AbstractChannel, DeliveredMessage

from tests.bench.processes import say

_FLUSH_EVERY = 0.004
_HEADERS = {"Content-Type": "application/json"}
_BODY = b'{"type":"order.created","timestamp":"2030-01-31T12:00:00Z","data":{"note":"%b"}}' % (
    b"x" * 400
)

Send = Callable[[bytes], Awaitable[None]]


class Sender:
    """Sends a body to the hook, as often as the fan-out says."""

    def __init__(self, session: aiohttp.ClientSession, url: str, fan_out: int) -> None:
        self._session = session
        self._url = url
        self._fan_out = fan_out

    async def post(self, body: bytes) -> None:
        """Send one request and read its answer."""
        async with self._session.post(self._url, data=body, headers=_HEADERS) as answer:
            await answer.read()

    async def fan_out(self, body: bytes) -> None:
        """Send a message to everybody."""
        if self._fan_out == 1:
            await self.post(body)
        else:
            await asyncio.gather(*(self.post(body) for _ in range(self._fan_out)))


@asynccontextmanager
async def with_aio_pika(url: str, name: str, prefetch: int, send: Send) -> AsyncIterator[None]:
    """Consume with aio_pika: a task and an ack for each message."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=prefetch)
        queue = await channel.get_queue(name)

        async def on_message(message: AbstractIncomingMessage) -> None:
            await send(message.body)
            await message.ack()

        await queue.consume(on_message)
        yield


class PrefixAcks:
    """Acks everything up to the first unfinished message, every few milliseconds."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._done: set[int] = set()
        self._acked = 0

    def done(self, tag: int) -> None:
        """Note a finished message; tags count from 1."""
        self._done.add(tag)

    async def run(self) -> None:
        """Ack until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_EVERY)
            last = self._acked
            while last + 1 in self._done:
                last += 1
                self._done.discard(last)
            if last > self._acked:
                self._acked = last
                await self._channel.basic_ack(last, multiple=True)


@asynccontextmanager
async def with_aiormq(url: str, name: str, prefetch: int, send: Send) -> AsyncIterator[None]:
    """Consume with aiormq alone, and ack by prefix."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.basic_qos(prefetch_count=prefetch)
    acks = PrefixAcks(channel)

    async def on_message(message: DeliveredMessage) -> None:
        await send(message.body)
        acks.done(message.delivery_tag or 0)

    await channel.basic_consume(name, on_message)
    flushing = asyncio.create_task(acks.run())
    try:
        yield
    finally:
        flushing.cancel()
        await connection.close()


class Posts:
    """Requests on demand, so many at once, without a broker."""

    def __init__(self, sender: Sender, in_flight: int) -> None:
        self._sender = sender
        self._in_flight = in_flight
        self._left = 0

    async def run(self) -> None:
        """Send as many requests as each line of standard input says, until it ends."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        async for line in reader:
            self._left = int(line)
            await asyncio.gather(*(self._work() for _ in range(self._in_flight)))

    async def _work(self) -> None:
        while self._left > 0:
            self._left -= 1
            await self._sender.post(_BODY)


@asynccontextmanager
async def on_demand(sender: Sender, in_flight: int) -> AsyncIterator[None]:
    """Send requests when told to."""
    working = asyncio.create_task(Posts(sender, in_flight).run())
    try:
        yield
    finally:
        working.cancel()


async def run(kind: str, url: str, queue: str, hook: str, fan_out: int, in_flight: int) -> None:
    """Run one of the loops until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sender = Sender(session, hook, fan_out)
        prefetch = max(1, in_flight // fan_out)
        loops: dict[str, Callable[[], AbstractAsyncContextManager[None]]] = {
            "aio-pika": lambda: with_aio_pika(url, queue, prefetch, sender.fan_out),
            "aiormq": lambda: with_aiormq(url, queue, prefetch, sender.fan_out),
            "post": lambda: on_demand(sender, in_flight),
        }
        async with loops[kind]():
            say("consumes")
            await stop.wait()


if __name__ == "__main__":
    _, _kind, _url, _queue, _hook, _fan_out, _in_flight = sys.argv
    with suppress(KeyboardInterrupt):
        uvloop.run(run(_kind, _url, _queue, _hook, int(_fan_out), int(_in_flight)))
