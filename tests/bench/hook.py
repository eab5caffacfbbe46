"""A small receiver that does what a configuration of nginx cannot: `python -m tests.bench.hook`.

It listens on a free port of the loopback interface, prints the port, and ends with SIGTERM.

    POST /hook      200
    POST /once      404 to the first request with a `webhook-id`, 200 to the others: a failure that does
                    not count against the health of the target
    POST /arrivals  200, and notes how long ago the `sent_at` of the body was
    GET  /count     how many requests were answered with 200, as text
    GET  /delays    the seconds that /arrivals noted, as JSON, and forgets them
"""

import asyncio
import re
import signal
import time
from contextlib import suppress
from typing import cast

import orjson

from tests.bench.processes import say

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)
_SENT_AT = re.compile(rb'"sent_at": ?([0-9.]+)')


class Board:
    """What all connections have seen."""

    def __init__(self) -> None:
        self._taken = 0
        self._delays: list[float] = []
        self._failed: set[bytes] = set()

    def answer(self, head: bytes, body: bytes) -> bytes:
        """Return the response to a request."""
        match head.split(b" ", 2)[:2]:
            case [b"GET", b"/count"]:
                return _response(200, b"%d" % self._taken)
            case [b"GET", b"/delays"]:
                delays, self._delays = self._delays, []
                return _response(200, orjson.dumps(delays))
            case [b"POST", b"/once"] if not self._is_second(head):
                return _response(404)
            case [b"POST", b"/arrivals"]:
                self._note(body)
        self._taken += 1
        return _response(200)

    def _is_second(self, head: bytes) -> bool:
        found = _ID.search(head)
        name = found[1] if found else b""
        if name in self._failed:
            return True
        self._failed.add(name)
        return False

    def _note(self, body: bytes) -> None:
        sent = _SENT_AT.search(body)
        if sent:
            self._delays.append(time.time() - float(sent[1]))


class Connection(asyncio.Protocol):
    """HTTP/1.1 with kept-alive connections, as far as it is needed here."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._buffer = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer every whole request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(self._board.answer(head, body))


def _response(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


async def serve() -> None:
    """Listen until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    board = Board()
    server = await loop.create_server(lambda: Connection(board), "127.0.0.1", 0, backlog=4096)
    say(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()


if __name__ == "__main__":
    import uvloop

    with suppress(KeyboardInterrupt):
        uvloop.run(serve())
