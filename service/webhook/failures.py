"""What went wrong in an attempt, as an outcome: every exception gets a kind and one short line.

The law: no text here comes from a URL, and what a target said is escaped and cut.
"""

import errno
import os
import socket
import ssl

import aiohttp

from service.core.delivery import Failed, FailureKind, Forbidden
from service.webhook.egress import os_errors
from service.webhook.protocol import Observation
from service.webhook.tls import TlsFilesError, describe

_DETAIL_LIMIT = 200  # characters
_CLOSED_EARLY = "connection closed while it was made"
_OUR_LACK = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
_NO_WAY = frozenset({errno.ENETUNREACH, errno.EAFNOSUPPORT})
_RESET_ERRORS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN})


def failure(
    error: Exception, seen: Observation, *, place: str, duration: float
) -> Failed | Forbidden:
    """Name the failure of an attempt at `place` (host and port).

    `seen` is what the sockets observed; `duration` in seconds.
    """
    if seen.forbidden and not seen.permitted:
        return Forbidden(one_line("; ".join(dict.fromkeys(seen.forbidden))), duration)
    kind, detail = _name(error, seen)
    # The target cannot have answered, and is not to blame for closing what lay idle.
    stale = seen.reused and not seen.answering and kind is FailureKind.RESET
    return Failed(kind, one_line(f"{place}: {detail}"), duration, stale_connection=stale)


def let_go(error: BaseException) -> None:
    """Let an exception go that is to be named, and those that led to it, from the frames that they passed.

    Frames hold the exception in turn, and with it connection, parser and buffers, until the collector comes by.
    """
    waiting: list[BaseException | None] = [error]
    seen = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            waiting += one.__cause__, one.__context__


def one_line(text: str, limit: int = _DETAIL_LIMIT) -> str:
    """Cut `text` to `limit` characters and escape what does not print."""
    text = text[:limit]
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
            for char in text
        )
    return text[:limit]


def _name(error: Exception, seen: Observation) -> tuple[FailureKind, str]:
    if isinstance(error, TimeoutError):
        return FailureKind.TIMEOUT, _timeout(seen)
    if isinstance(error, TlsFilesError):
        return FailureKind.LOCAL, str(error)
    if (lack := _lack(error)) is not None:
        return FailureKind.LOCAL, f"no connection: {os.strerror(lack)}"
    if refusal := _refusal(error):
        return FailureKind.TLS, describe(refusal)
    if seen.garbled is not None:
        return FailureKind.PROTOCOL, f"not an HTTP answer: {seen.garbled}"
    return _connected(error, seen) if seen.connected else _unconnected(error)


def _refusal(error: BaseException) -> ssl.SSLError | None:
    """Return the error of TLS that `error` was raised from, if that was the reason.

    aiohttp's own errors of TLS are `ssl.SSLError`s too, but empty ones.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, aiohttp.ClientError):
            return cause
        cause = cause.__cause__
    return None


def _lack(error: BaseException) -> int | None:
    """Return the number of the error where our own machine was short of something, if that was it."""
    found = os_errors(error)
    lacks = found & _OUR_LACK
    if found - lacks - _NO_WAY:
        # Without IPv6 there is no address to reach one of a name's from; what became of the others counts.
        lacks -= {errno.EADDRNOTAVAIL}
    return next(iter(lacks), None)


def _connected(error: Exception, seen: Observation) -> tuple[FailureKind, str]:
    if isinstance(error, aiohttp.ClientPayloadError):
        return FailureKind.RESET, "connection closed half way through the answer's body"
    if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        where = "half way through the answer" if seen.answering else "before an answer"
        return FailureKind.RESET, f"connection closed {where}"
    return FailureKind.PROTOCOL, _unknown(error)


def _unconnected(error: Exception) -> tuple[FailureKind, str]:
    match error:
        case aiohttp.ClientConnectorDNSError():
            named = FailureKind.DNS, f"name does not resolve: {_os_text(error.os_error)}"
        case aiohttp.ClientHttpProxyError():
            named = FailureKind.CONNECT, f"the proxy answered {error.status}"
        case aiohttp.ClientResponseError():  # before there is a connection only a proxy answers
            named = FailureKind.PROTOCOL, "what the proxy answered is no HTTP"
        case aiohttp.ClientProxyConnectionError():
            named = FailureKind.CONNECT, f"no connection to the proxy: {_os_text(error.os_error)}"
        case aiohttp.ClientConnectorError():
            named = _connect(error.os_error)
        case aiohttp.ClientConnectionError() | OSError():
            named = FailureKind.RESET, _CLOSED_EARLY
        case _:
            named = FailureKind.PROTOCOL, _unknown(error)
    return named


def _connect(error: OSError) -> tuple[FailureKind, str]:
    if isinstance(error, ConnectionResetError) or error.errno in _RESET_ERRORS:
        return FailureKind.RESET, _CLOSED_EARLY
    return FailureKind.CONNECT, f"no connection: {_os_text(error)}"


def _timeout(seen: Observation) -> str:
    if not seen.connected:
        return "no connection in time"
    if seen.status is not None:
        return f"answer {seen.status} not complete in time"
    return "answer not complete in time" if seen.answering else "no answer in time"


def _os_text(error: OSError) -> str:
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)  # asyncio's own text repeats the address
    return error.strerror or str(error)


def _unknown(error: Exception) -> str:
    return f"unexpected {type(error).__name__}"
