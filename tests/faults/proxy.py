"""A TCP proxy between AMQP clients and a broker that does what networks do, at the frame that it is told.

It reads the frames that it passes on, so that a fault can be placed: in the middle of one, right after a
confirm, instead of an ack.  A link is one connection; it knows whether it consumes or publishes.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from pamqp import commands, frame
from pamqp.base import Frame

HEADER: Final = 7
METHOD: Final = 1
PROTOCOL_HEADER: Final = 8

BASIC: Final = 60
CONFIRM_SELECT: Final = (85, 10)
CONSUME: Final = (BASIC, 20)
CONSUME_OK: Final = (BASIC, 21)
CANCEL_OK: Final = (BASIC, 31)
PUBLISH: Final = (BASIC, 40)
DELIVER: Final = (BASIC, 60)
ACK: Final = (BASIC, 80)

Method = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame on its way: `method` is (0, 0) for one that holds none."""

    raw: bytes
    channel: int
    method: Method


Watch = Callable[["Link", Seen, bool], bool]
"""Told of each frame, and whether it goes to the broker; False swallows it."""


class Link:
    """One client's connection, and the one to the broker behind it."""

    def __init__(self, proxy: "Proxy", client: asyncio.StreamWriter, broker: asyncio.StreamWriter):
        self._proxy = proxy
        self._client = client
        self._broker = broker
        self.consumer_tags: dict[int, str] = {}
        self.publishing_channel = 0
        self.silent = False
        self._budget: int | None = None
        self._then_silent = False

    @property
    def consumes(self) -> bool:
        return bool(self.consumer_tags)

    @property
    def publishes(self) -> bool:
        return self.publishing_channel > 0

    def cut(self, *, reset: bool = True) -> None:
        """End both connections now: by a reset, or by an end of the stream."""
        for writer in (self._client, self._broker):
            if reset:
                endpoint = writer.get_extra_info("socket")
                with suppress(OSError):
                    endpoint.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                writer.transport.abort()
            else:
                writer.close()

    def cut_after(self, size: int) -> None:
        """Cut once so many more bytes have passed, in the middle of whatever they are."""
        self._budget, self._then_silent = size, False

    def freeze_after(self, size: int) -> None:
        """Swallow everything once so many more bytes have passed."""
        self._budget, self._then_silent = size, True

    def freeze(self) -> None:
        """Swallow everything from now on, in both directions, and say nothing."""
        self.silent = True

    def tell_broker(self, channel: int, command: Frame) -> None:
        """Put a frame in between those of the client."""
        self._broker.write(frame.marshal(command, channel))

    def tell_client(self, channel: int, command: Frame) -> None:
        """Put a frame in between those of the broker."""
        self._client.write(frame.marshal(command, channel))

    async def pump(self, reader: asyncio.StreamReader, *, to_broker: bool) -> None:
        """Pass frames on until one side ends."""
        writer = self._broker if to_broker else self._client
        if to_broker:
            await self._pass(writer, await reader.readexactly(PROTOCOL_HEADER))
        while True:
            seen = await _read(reader)
            self._note(seen, to_broker=to_broker)
            if self._proxy.watch(self, seen, to_broker):
                await self._pass(writer, seen.raw)

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self._budget is not None:
            data, self._budget = data[: self._budget], self._budget - len(data)
        await self._proxy.wait(len(data))
        if self.silent:
            return
        writer.write(data)
        await writer.drain()
        if self._budget is not None and self._budget <= 0:
            if not self._then_silent:
                raise ConnectionAbortedError
            self.silent = True

    def _note(self, seen: Seen, *, to_broker: bool) -> None:
        if seen.method == CONSUME_OK and not to_broker:
            _, _, command = frame.unmarshal(seen.raw)
            if isinstance(command, commands.Basic.ConsumeOk):
                self.consumer_tags[seen.channel] = command.consumer_tag or ""
        elif seen.method == CANCEL_OK and not to_broker:
            self.consumer_tags.pop(seen.channel, None)
        elif seen.method == CONFIRM_SELECT and to_broker:
            self.publishing_channel = seen.channel


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = await reader.readexactly(HEADER)
    kind, channel, size = struct.unpack(">BHI", head)
    rest = await reader.readexactly(size + 1)
    method = struct.unpack(">HH", rest[:4]) if kind == METHOD else (0, 0)
    return Seen(head + rest, channel, method)


def _pass_all(_link: Link, _seen: Seen, _to_broker: bool) -> bool:  # noqa: FBT001
    return True


class Proxy:
    """Listens on a port of its own and passes on to the broker's; an async context manager."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.links: list[Link] = []
        self.watch: Watch = _pass_all
        self.refuses = False
        """New connections are closed at once."""
        self.swallows = False
        """New connections are taken, and nothing comes of them."""
        self.budgets: list[int] = []
        """How many bytes each of the next new connections passes before it is cut."""
        self.freezes = False
        """Freeze those instead of cutting them."""
        self.latency = 0.0
        self.bytes_per_second = float("inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        """Return the URL of the broker through this proxy."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2**22)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def reset(self) -> None:
        """Be an ordinary proxy again."""
        self.watch = _pass_all
        self.refuses = self.swallows = self.freezes = False
        self.budgets.clear()
        self.latency, self.bytes_per_second = 0.0, float("inf")

    def consuming(self) -> Link | None:
        """Return a living link that consumes."""
        return next((link for link in self.links if link.consumes and not link.silent), None)

    def publishing(self) -> Link | None:
        """Return a living link that publishes with confirms, and does not consume."""
        alive = (link for link in self.links if not link.consumes and not link.silent)
        return next((link for link in alive if link.publishes), None)

    async def wait(self, size: int) -> None:
        """Take the time that so many bytes take."""
        delay = self.latency + size / self.bytes_per_second
        if delay > 0:
            await asyncio.sleep(delay)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(
            ConnectionError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):
            await self._serve(reader, writer)
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            return
        if self.swallows:
            while await reader.read(65_536):
                pass
            return
        there_reader, there_writer = await asyncio.open_connection(
            "127.0.0.1", self._to, limit=2**22
        )
        link = Link(self, writer, there_writer)
        if self.budgets:
            end_after = link.freeze_after if self.freezes else link.cut_after
            end_after(self.budgets.pop(0))
        self.links.append(link)
        pumps = [
            asyncio.create_task(link.pump(reader, to_broker=True)),
            asyncio.create_task(link.pump(there_reader, to_broker=False)),
        ]
        try:
            await self._until_over(link, pumps)
        finally:
            self.links.remove(link)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            there_writer.transport.abort()

    @staticmethod
    async def _until_over(link: Link, pumps: list["asyncio.Task[None]"]) -> None:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        if link.silent:
            # The end of one side is swallowed like everything else.
            await asyncio.wait(pumps)
