"""Receivers of webhooks to test against: one that records, and some that misbehave.

All listen on a free port of the loopback interface and are async context managers:

    async with Recorder(status=200) as receiver:
        ...  # send to receiver.url
        await receiver.wait_for(3, timeout=5)
        assert receiver.requests[0].json()["type"] == "order.created"

`Hostile(behaviour)` runs one of the coroutines below on each connection; `ConnectProxy` is a small
HTTP proxy.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from multidict import CIMultiDict

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Behaviour = Callable[[Reader, Writer], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Received:
    """One request: `at` in seconds of `time.monotonic`, `connection` counts from 1."""

    method: str
    path: str
    headers: CIMultiDict[str]
    body: bytes = field(repr=False)
    at: float
    connection: int

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a recorder says; `delay` in seconds before it, `close` ends the connection after it."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    close: bool = False

    def encode(self) -> bytes:
        """Return the answer as it goes over the wire."""
        lines = [f"HTTP/1.1 {self.status} Status", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


class Server:
    """A listening socket whose connections all end with it."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0):
        self._tls = tls
        self.host = host
        self.port = port
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        """The URL of this receiver, with its address as the host."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{self.host}:{self.port}/hook"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._connected, self.host, self.port, ssl=self._tls, limit=2**20
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await self.serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass  # the other side went away, or the test is over
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, TimeoutError, asyncio.CancelledError):
                await writer.wait_closed()

    async def serve(self, reader: Reader, writer: Writer) -> None:
        """Serve one connection."""
        raise NotImplementedError


class Recorder(Server):
    """Stores requests and answers them, over kept-alive connections.

    `answer` is a callable from `Received` to an `Answer` or a status, plain or async; without it every
    request is answered with `status`.
    """

    def __init__(
        self,
        status: int = 200,
        *,
        answer: Callable[[Received], Any] | None = None,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(tls, host, port)
        self.requests: list[Received] = []
        self._answer = answer or (lambda _: status)
        self._arrived = asyncio.Condition()

    async def wait_for(self, count: int, timeout: float = 20.0) -> list[Received]:  # noqa: ASYNC109
        """Return the requests as soon as there are `count`; raises `TimeoutError`."""
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def serve(self, reader: Reader, writer: Writer) -> None:
        connection = self.connections
        while True:
            request = await read_request(reader, connection)
            self.requests.append(request)
            async with self._arrived:
                self._arrived.notify_all()
            answer = self._answer(request)
            if isinstance(answer, Awaitable):
                answer = await answer
            if isinstance(answer, int):
                answer = Answer(answer)
            await asyncio.sleep(answer.delay)
            writer.write(answer.encode())
            await writer.drain()
            if answer.close:
                return


class Hostile(Server):
    """Does `behaviour` to each connection; a request is not read unless the behaviour does it."""

    def __init__(self, behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self._behaviour = behaviour

    async def serve(self, reader: Reader, writer: Writer) -> None:
        await self._behaviour(reader, writer)


async def read_request(reader: Reader, connection: int = 0) -> Received:
    """Read one request with a `Content-Length`."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines:
        name, value = line.split(": ", 1)
        headers.add(name, value)
    body = await reader.readexactly(int(headers.get("Content-Length", "0")))
    return Received(method, path, headers, body, time.monotonic(), connection)


def says(*parts: bytes) -> Behaviour:
    """Read a request, send `parts` one by one, and close."""

    async def behave(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()

    return behave


def resets(*parts: bytes) -> Behaviour:
    """Read a request, send `parts`, and reset the connection."""

    async def behave(reader: Reader, writer: Writer) -> None:
        await says(*parts)(reader, writer)
        writer.transport.abort()

    return behave


def drips(head: bytes, every: float = 0.05) -> Behaviour:
    """Read a request, send `head`, and then a byte every so many seconds, for ever."""

    async def behave(reader: Reader, writer: Writer) -> None:
        await says(head)(reader, writer)
        while True:
            await asyncio.sleep(every)
            writer.write(b"x")
            await writer.drain()

    return behave


def floods(head: bytes, chunk: bytes, times: int = 1_000_000) -> Behaviour:
    """Read a request, send `head`, and then `chunk` again and again."""

    async def behave(reader: Reader, writer: Writer) -> None:
        await says(head)(reader, writer)
        for _ in range(times):
            writer.write(chunk)
            await writer.drain()

    return behave


async def silent(reader: Reader, _writer: Writer) -> None:
    """Take the connection and what comes, and never say a word."""
    while await reader.read(65_536):
        pass


async def deaf(_reader: Reader, _writer: Writer) -> None:
    """Take the connection and read nothing."""
    await asyncio.Event().wait()


class ConnectProxy(Server):
    """An HTTP proxy: tunnels for CONNECT, one forwarded request a connection for all else.

    `seen` holds the requests made to the proxy itself; `refuse` is a status for all of them.
    `addresses` maps host names to addresses, as the proxy's own resolver.
    """

    def __init__(
        self,
        refuse: int | None = None,
        addresses: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(tls)
        self.seen: list[Received] = []
        self._refuse = refuse
        self._addresses = addresses or {}

    async def serve(self, reader: Reader, writer: Writer) -> None:
        request = await read_request(reader, self.connections)
        self.seen.append(request)
        if self._refuse is not None:
            writer.write(Answer(self._refuse).encode())
            await writer.drain()
            return
        tunnel = request.method == "CONNECT"
        url = urlsplit(f"//{request.path}" if tunnel else request.path)
        host = url.hostname or ""
        there_reader, there_writer = await asyncio.open_connection(
            self._addresses.get(host, host), url.port
        )
        if tunnel:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            there_writer.write(_forwarded(request, url.path))
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            there_writer.close()


def _forwarded(request: Received, path: str) -> bytes:
    lines = [f"{request.method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + request.body


async def _pump(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()
