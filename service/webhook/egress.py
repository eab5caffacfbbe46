"""The sockets of webhook requests: where they may go, and what they saw of an attempt.

`EgressConnector` asks the egress rules about every address at every connect, whether it came from DNS
or was written in the URL, so a name that resolves to somewhere else the next time gains nothing.
`Observation` is the channel back: what happened on the wire, per attempt, without aiohttp's tracing,
which costs a quarter of a request.
"""

import asyncio
import errno
import re
import socket
import ssl
import threading
from collections import Counter
from contextlib import suppress
from contextvars import ContextVar
from functools import cached_property, partial
from typing import Any, cast

import aiohttp
from aiohttp import StreamReader
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from service.core.address import EgressRules

_DNS_TTL = 10  # seconds for which an answer is used again
_DNS_CACHED_NAMES = 10_000
_DNS_LOOKUPS = 256  # at once, so that dead name servers of some do not hold up the names of all
_KEEP_ALIVE = (
    15.0  # seconds; less than the usual limits of servers, so that few connections go stale
)
# What one request may be answered with, before the target is held to be broken.  The sender stops far
# earlier where the answer is well-formed; these stop what a parser would swallow for ever.
_INTERIM_ANSWERS = 16
_ANSWER_BYTES = 2**20
_BODY_BYTES = 2**16  # with what frames its chunks: those of a byte each cost the most
BODY_KEPT = 2048  # bytes of an answer's body
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_SEAM = 2  # bytes of a head that may belong to its end, which comes with the next piece
_ADDRESSES = 8  # of a family: a name may have thousands, each worth a connect
_CONNECTS = 2 * _ADDRESSES  # of an attempt
_FAREWELL = 1.0  # seconds
_SEVERAL = "Multiple exceptions: "  # of aiohappyeyeballs
_NUMBER = re.compile(r"\[Errno (\d+)\]")
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})


class Observation:
    """What the sockets saw of one attempt; written by them, read by the sender."""

    __slots__ = (
        "answering", "connected", "connects", "forbidden", "garbled", "permitted", "protocol", "reused", "status",
    )  # fmt: skip

    def __init__(self) -> None:
        self.forbidden: list[str] = []
        """Why addresses were refused."""
        self.permitted = False
        """An address was allowed, and a connect begun."""
        self.connects = 0
        """How many connects were begun."""
        self.connected = False
        """A connection was there, with TLS if that is spoken."""
        self.reused = False
        """It had carried another request before."""
        self.answering = False
        """At least one byte came back."""
        self.garbled: str | None = None
        """Why what came back is held to be no HTTP answer."""
        self.status: int | None = None
        """The answer's, once its head has come."""
        self.protocol: WatchedProtocol | None = None

    def finish(self) -> None:
        """Take leave of the connection: whatever it brings before its next request is not an answer."""
        protocol, self.protocol = self.protocol, None
        if protocol is not None and protocol.observation is self:
            protocol.observation = None


observation: ContextVar[Observation] = ContextVar("observation")
"""The attempt that the current task (and the tasks it starts to connect) works for."""


class WatchedProtocol(ResponseHandler):
    """aiohttp's client protocol, which also tells what it saw and bounds what it takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.observation: Observation | None = None
        self.requests = 0
        self._interim = 0
        self._heads = 0
        self._seam = b""
        self._received = 0
        self._body: StreamReader | None = None
        self._body_received = 0
        self.is_cut_short = False
        """Whether the answer's body was longer than what is taken of one."""

    def serve(self, attempt: Observation) -> None:
        """Carry one more request."""
        attempt.connected = True
        attempt.reused = self.requests > 0
        attempt.protocol = self
        self.observation = attempt
        self.requests += 1
        self._interim = 0
        self._heads = 0
        self._seam = b""
        self._received = 0
        self._body = None
        self._body_received = 0
        self.is_cut_short = False

    def close(self) -> None:
        """Close the connection, with little time for the peer's part of it.

        uvloop's TLS would wait for that for 30 s.
        """
        transport = self.transport
        super().close()
        if transport is not None and transport.get_extra_info("sslcontext") is not None:
            self._loop.call_later(_FAREWELL, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Pass on an answer; close the connection when bytes come that nobody asked for.

        Otherwise they would be taken for the answer to the next request.
        """
        if self.observation is not None:
            self.observation.answering = True
            self._received += len(data)
            if self._received > _ANSWER_BYTES:
                self._give_up(f"more than {_ANSWER_BYTES} bytes before its end")
                return
        elif self.requests:
            self.close()
            return
        # The parser fails at what does not belong to an answer, and forgets what it has read in the same piece.
        # So each head goes alone: a 204 with a body, for one, is a 204.
        while self._body is None and self._heads <= _INTERIM_ANSWERS:
            seen = self._seam + data
            head = _END_OF_HEAD.search(seen)
            self._seam = seen[-_SEAM:] if head is None else b""
            end = len(data) if head is None else head.end() - len(seen) + len(data)
            if end == len(data):
                super().data_received(data)
                return
            self._heads += 1
            super().data_received(data[:end])
            data = data[end:]
            if self.transport is None or self.transport.is_closing():
                return
        self._receive_body(data)

    def _receive_body(self, data: bytes) -> None:
        """Pass on an answer's body to the limit, and beyond it until there is what is kept of one.

        The answer counts without the rest.
        """
        room = max(0, _BODY_BYTES - self._body_received)
        self._body_received += len(data)
        if room:
            super().data_received(data[:room])
            data = data[room:]
        if not data or self.transport is None or self.transport.is_closing():
            return
        body = self._body
        if body is None or not (body.is_eof() or body.total_bytes >= BODY_KEPT):
            super().data_received(data)
            return
        self.is_cut_short = True
        if not body.is_eof():
            body.feed_eof()

    def has_ended_clean(self) -> bool:
        """Tell whether nothing came after the end of the answer, which must have been read."""
        if self.should_close or self._parser is None:
            return False
        try:  # The parser returns, or fails at, what it holds the start of.
            return self._parser.feed_eof() is None
        except Exception:  # noqa: BLE001 - it fails at half a head in many ways
            return False

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Count interim answers, an endless row of which would otherwise keep the whole process busy."""
        if data[0].code < 200:
            self._interim += 1
            if self._interim > _INTERIM_ANSWERS:
                self._give_up(f"more than {_INTERIM_ANSWERS} interim answers")
                return
        else:
            self._body = data[1]
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Take note of an answer that cannot be read."""
        if isinstance(exc, HttpProcessingError):
            if self.observation is not None:
                self.observation.garbled = self.observation.garbled or _without_quotes(exc.message)
            if self._body is not None and not self._body.is_eof():
                self._body.set_exception(aiohttp.ClientPayloadError("garbage in the body"))
        super().set_exception(exc, *([] if exc_cause is None else [exc_cause]))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Break off the body that is not at its end where the connection broke.

        aiohttp takes any loss for the end of a body without a length.
        """
        if exc is not None and self._body is not None and not self._body.is_eof():
            self._body.set_exception(aiohttp.ClientPayloadError("connection lost in the body"))
        super().connection_lost(exc)
        self._body = None  # it holds this protocol in turn

    def _give_up(self, message: str) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.set_exception(HttpProcessingError(message=message))
            self.transport.abort()


def _without_quotes(message: str) -> str:
    """Return what a parser found wrong without the bytes: they may be an echo of the request, secrets included.

    It quotes them in lines of their own, or at the end of the only line.
    """
    first, *quoted = message.strip().split("\n")
    return (first if quoted else re.split("[:'\"]", first)[0]).strip(": ") or "garbage"


class Door(ClientRequest):
    """Where connections to a target begin: for aiohttp's connector it is the request to come.

    None is ever sent by it.
    """

    @cached_property
    def connection_key(self) -> ConnectionKey:
        """Return what connections are pooled by: worked out once, not at each request."""
        return super().connection_key


class EgressConnector(aiohttp.TCPConnector):
    """A pool of connections that lead only where the rules allow.

    There is no limit on connections: those that wait for one would count it against their target; the
    bound is each target's `max_in_flight`.  With `rules` None the addresses are not judged: for use
    behind `proxy`, whose address is all that is seen, and is the operator's own choice.
    """

    def __init__(
        self, rules: EgressRules | None, tls: ssl.SSLContext, proxy: URL | None = None
    ) -> None:
        super().__init__(
            limit=0,
            ssl=tls,
            resolver=ThreadResolver(),
            ttl_dns_cache=_DNS_TTL,
            dns_cache_max_size=_DNS_CACHED_NAMES,
            keepalive_timeout=_KEEP_ALIVE,
            socket_factory=partial(_permitted_socket, rules),
        )
        self._factory: Any = partial(WatchedProtocol, self._loop)
        self._proxy = proxy
        self._leaving: list[asyncio.Future[None]] = []

    def door(self, url: URL, tls: ssl.SSLContext | bool) -> Door:  # noqa: FBT001 - aiohttp's way
        """Return where connections to `url` begin, as `reach` wants to be told; it may be kept."""
        # Certificates have no dot at the end, which aiohttp knows without a proxy only.
        name = None if self._proxy is None else (url.raw_host or "").rstrip(".")
        return Door(
            "POST", url, loop=self._loop, ssl=tls, proxy=self._proxy, server_hostname=name or None
        )

    def _update_proxy_auth_header_and_build_proxy_req(self, req: ClientRequest) -> ClientRequest:
        """Speak to the proxy with the default context: a subscription's certificates are for its targets."""
        to_proxy = super()._update_proxy_auth_header_and_build_proxy_req(req)
        to_proxy._ssl = True  # noqa: SLF001 - aiohttp gives it those of `req`, and has no setting for it
        return to_proxy

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: list[Any], **options: Any
    ) -> Any:
        """Connect to one of `addr_infos`; after a failure leave those in it that are worth another connect.

        aiohttp tries all but the first again until none is left, whether it was the connects that failed or
        the handshake at one that succeeded.
        """
        factory, *others = args
        made = []

        def make() -> Any:
            made.append(factory())
            return made[0]

        try:
            return await super()._wrap_create_connection(
                make, *others, addr_infos=addr_infos, **options
            )
        except (aiohttp.ClientConnectorError, TimeoutError):
            left = _CONNECTS - observation.get().connects if made else 0
            del addr_infos[max(left, 0) :]
            raise

    async def reach(
        self,
        door: Door,
        connecting: aiohttp.ClientTimeout,
        attempt: Observation,
    ) -> Connection:
        """Return a connection from the pool, or a new one; tell `attempt` which.

        Of `connecting` its `connect` counts.  Raises aiohttp's `ClientError`, `OSError`, `TimeoutError`.
        """
        token = observation.set(attempt)
        try:
            try:
                return await self._take(door, connecting, attempt)
            except OSError as error:
                if not _NO_DESCRIPTOR & os_errors(error):
                    raise
            await self._drop_all_idle()
            return await self._take(door, connecting, attempt)
        finally:
            observation.reset(token)

    async def _take(
        self, door: Door, connecting: aiohttp.ClientTimeout, attempt: Observation
    ) -> Connection:
        while True:
            connection = await self.connect(door, [], connecting)
            protocol = cast("WatchedProtocol", connection.protocol)
            if len(protocol) == 0:
                protocol.serve(attempt)
                return connection
            connection.close()  # an answer lies there before the question

    async def _drop_all_idle(self) -> None:
        """Close all connections that lie in the pool; return when their descriptors are free again."""
        idle = [protocol for kept in self._conns.values() for protocol, _ in kept]
        self._conns.clear()
        self._leaving = [left for one in idle if (left := one.closed)] or self._leaving
        for protocol in idle:
            protocol.abort()
        if self._leaving:
            await asyncio.wait(self._leaving)

    def drop_idle(self, door: Door) -> None:
        """Close the connections that lie in the pool for a door."""
        for protocol, _ in self._conns.pop(door.connection_key, ()):
            protocol.close()


def os_errors(error: BaseException) -> set[int]:
    """Return the numbers of the operating system's errors that `error` was raised from, itself included.

    Where the addresses of a name fail in different ways, aiohappyeyeballs leaves them in its text alone.
    """
    found = set()
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            if cause.errno is not None:
                found.add(cause.errno)
            elif str(cause).startswith(_SEVERAL):
                found.update(map(int, _NUMBER.findall(str(cause))))
        cause = cause.__cause__
    return found


def _permitted_socket(rules: EgressRules | None, address: tuple[Any, ...]) -> socket.socket:
    """Make a socket for an `addrinfo` tuple where the rules allow its address.

    aiohttp understands only an `OSError` with a number here, and loses its text on the way.
    """
    family, kind, protocol, _, (ip, port, *_) = address
    attempt = observation.get()
    reason = None if rules is None else rules.check(ip, port)
    if reason is not None:
        attempt.forbidden.append(reason)
        raise OSError(errno.EACCES, reason)
    attempt.permitted = True
    attempt.connects += 1
    return socket.socket(family, kind, protocol)


class ThreadResolver(AbstractResolver):
    """The system's resolver, each lookup in a thread of its own.

    The shared pools (four threads in uvloop, a few in asyncio) would let some names whose servers do
    not answer hold up all others.  The threads are daemons: a hanging lookup does not delay the exit.
    """

    def __init__(self) -> None:
        self._lookups = asyncio.Semaphore(_DNS_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`; raises `OSError` where there is none."""
        async with self._lookups:
            loop = asyncio.get_running_loop()
            found: asyncio.Future[list[ResolveResult]] = loop.create_future()
            lookup = threading.Thread(
                target=_look_up, args=(loop, found, host, port, family), daemon=True
            )
            try:
                lookup.start()
            except RuntimeError as error:
                raise OSError(errno.ENOMEM, "no thread to be had") from error
            return await found

    async def close(self) -> None:
        """Leave running lookups to end by themselves."""


def _look_up(
    loop: asyncio.AbstractEventLoop,
    found: "asyncio.Future[list[ResolveResult]]",
    host: str,
    port: int,
    family: socket.AddressFamily,
) -> None:
    try:
        rows = socket.getaddrinfo(
            host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        tell = partial(_settle, found, [_resolved(host, row) for row in _few(rows)], None)
    except (OSError, UnicodeError) as error:
        tell = partial(_settle, found, [], error)
    with suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(tell)


def _few(rows: list[Any]) -> list[Any]:
    """Return the first rows of each address family."""
    few, seen = [], Counter[int]()
    for row in rows:
        family = row[0]
        seen[family] += 1
        if seen[family] <= _ADDRESSES:
            few.append(row)
    return few


def _settle(
    found: "asyncio.Future[list[ResolveResult]]",
    addresses: list[ResolveResult],
    error: Exception | None,
) -> None:
    if found.done():
        return
    if error is not None:
        found.set_exception(error if isinstance(error, OSError) else OSError(str(error)))
    else:
        found.set_result(addresses)


def _resolved(name: str, row: tuple[Any, ...]) -> ResolveResult:
    family, _, protocol, _, address = row
    scope = address[3] if family == socket.AF_INET6 else 0
    return ResolveResult(
        hostname=name,
        host=f"{address[0]}%{scope}" if scope else address[0],
        port=address[1],
        family=family,
        proto=protocol,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
