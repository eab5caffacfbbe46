"""The addresses of a target's name, without one name holding up another."""

import asyncio
import socket
from collections import Counter
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from service.webhook.threads import in_own_thread

_DNS_LOOKUPS = 256  # at once, so that dead name servers of some do not hold up the names of all
ADDRESSES = 8  # of a family: a name may have thousands, each worth a connect


class ThreadResolver(AbstractResolver):
    """The system's resolver, each lookup in a thread of its own."""

    def __init__(self) -> None:
        self._lookups = asyncio.Semaphore(_DNS_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`; raises `OSError` where there is none."""
        async with self._lookups:
            return await in_own_thread(_look_up, host, port, family)

    async def close(self) -> None:
        """Leave running lookups to end by themselves."""


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    try:
        rows = socket.getaddrinfo(
            host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
    except UnicodeError as error:
        raise OSError(str(error)) from error
    return [_resolved(host, row) for row in _few(rows)]


def _few(rows: list[Any]) -> list[Any]:
    """Return the first rows of each address family."""
    few, seen = [], Counter[int]()
    for row in rows:
        family = row[0]
        seen[family] += 1
        if seen[family] <= ADDRESSES:
            few.append(row)
    return few


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
