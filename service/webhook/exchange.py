"""One HTTP/1.1 exchange over a connection of aiohttp's pool: a request out, an answer in.

aiohttp connects, keeps the pool, speaks TLS and parses answers.  Its session, request and response
objects are left out: they do more work than all the rest of an attempt together (the figures are in the
README under Decisions), for cookies, redirects, tracing and charsets that no webhook needs.

The law: a connection goes back to the pool only when the request has left, the answer was read to its
end and nothing else came; in any other case it is closed.  What the target does not take of a request is
thrown away with it: a connection that is closed in order waits until everything has left, for ever if need be.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from aiohttp import ClientConnectionResetError, StreamReader
from aiohttp.connector import Connection
from aiohttp.http import StreamWriter

from service.webhook.protocol import BODY_KEPT, WatchedProtocol

_WHOLE_LIMIT = 2**20  # bytes of a body that go out in one piece; more would hold up the loop
_PIECE = 2**16
_LINE_LIMIT = 16_384  # bytes of one header of an answer; some send long security policies
_SWITCHING_PROTOCOLS = 101


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, its Retry-After header, and the start of its body."""

    status: int
    retry_after: str | None
    start: bytes


def head(request_line: str, headers: Iterable[tuple[str, str]]) -> str:
    """Return the start of a request's head, without the empty line; RFC 9112, sections 3 and 5.

    Raises `ValueError` for what would end a line early, without the value in its text.
    """
    lines = [request_line, *(f"{name}: {value}" for name, value in headers)]
    if any(char in line for line in lines for char in "\r\n\0"):
        raise ValueError("a header holds a line break or a NUL")
    return "\r\n".join([*lines, ""])


async def exchange(connection: Connection, head: bytes, body: bytes) -> Answer:
    """Send a request of `head` (with the empty line at its end) and `body`; return its answer.

    Settles the connection, whatever happens.  The deadline is the caller's.  Raises what aiohttp raises
    for a connection that breaks and an answer that cannot be read.
    """
    clean = False
    protocol = cast("WatchedProtocol", connection.protocol)
    transport = protocol.transport
    try:
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("the connection is closed already")
        protocol.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=_LINE_LIMIT,
            max_field_size=_LINE_LIMIT,
        )
        if len(body) <= _WHOLE_LIMIT:
            transport.write(head + body)
            answer, clean = await _answer(protocol)
        else:
            sending = asyncio.create_task(_in_pieces(protocol, head, body))
            try:
                answer, clean = await _answer(protocol)  # may come before the request has left
                clean = clean and sending.done()
            finally:
                sending.cancel()
        clean = clean and not transport.get_write_buffer_size() and protocol.has_ended_clean()
    finally:
        if clean:
            connection.release()
        else:
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()
            connection.close()
    return answer


async def _answer(protocol: WatchedProtocol) -> tuple[Answer, bool]:
    """Return the final answer, and whether it was read to its end."""
    while True:
        message, payload = await protocol.read()
        if not 100 <= message.code < 200 or message.code == _SWITCHING_PROTOCOLS:
            break
    if protocol.observation is not None:
        protocol.observation.status = message.code
    retry_after = message.headers.get("Retry-After")
    if message.code == _SWITCHING_PROTOCOLS:  # what follows is no body, and need never end
        return Answer(message.code, retry_after, b""), False
    start = await _read_start(payload)
    return Answer(message.code, retry_after, start), not protocol.is_cut_short


async def _read_start(payload: StreamReader) -> bytes:
    """Read the body to its end, which is there after what is taken of one, and return how it starts."""
    body = payload.read_nowait() if payload.is_eof() else await payload.read()
    return body[:BODY_KEPT]


async def _in_pieces(protocol: WatchedProtocol, head: bytes, body: bytes) -> None:
    """Write a large body as fast as it is taken; that it cannot be is seen where the answer is read."""
    writer = StreamWriter(protocol, asyncio.get_running_loop())
    view = memoryview(body)
    with suppress(OSError):
        await writer.write(head)
        for at in range(0, len(body), _PIECE):
            await writer.write(view[at : at + _PIECE])
            await writer.drain()
