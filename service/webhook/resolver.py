"""The addresses of a target's name, without one name holding up another."""

import asyncio
import errno
import socket
import threading
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

_DNS_LOOKUPS = 256  # at once, so that dead name servers of some do not hold up the names of all
ADDRESSES = 8  # of a family: a name may have thousands, each worth a connect


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
        if seen[family] <= ADDRESSES:
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
