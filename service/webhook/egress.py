"""The sockets of webhook requests: where they may go.

`EgressConnector` asks the egress rules about every address at every connect, whether it came from DNS
or was written in the URL, so a name that resolves to somewhere else the next time gains nothing.
"""

import asyncio
import errno
import re
import socket
import ssl
from contextvars import ContextVar
from functools import cached_property, partial
from typing import Any, cast

import aiohttp
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection
from yarl import URL

from service.core.address import EgressRules
from service.webhook.protocol import Observation, WatchedProtocol
from service.webhook.resolver import ADDRESSES, ThreadResolver

_DNS_TTL = 10  # seconds for which an answer is used again
_DNS_CACHED_NAMES = 10_000
_KEEP_ALIVE = (
    15.0  # seconds; less than the usual limits of servers, so that few connections go stale
)
_CONNECTS = 2 * ADDRESSES  # of an attempt
_SEVERAL = "Multiple exceptions: "  # of aiohappyeyeballs
_NUMBER = re.compile(r"\[Errno (\d+)\]")
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})


observation: ContextVar[Observation] = ContextVar("observation")
"""The attempt that the current task (and the tasks it starts to connect) works for."""


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
