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
import time
from contextlib import suppress

import orjson

from tests.bench.processes import say
from tests.bench.small_http import Connection, response, sent_at, stop_signal, webhook_id


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
                return response(200, b"%d" % self._taken)
            case [b"GET", b"/delays"]:
                delays, self._delays = self._delays, []
                return response(200, orjson.dumps(delays))
            case [b"POST", b"/once"] if not self._is_second(head):
                return response(404)
            case [b"POST", b"/arrivals"]:
                self._note(body)
        self._taken += 1
        return response(200)

    def _is_second(self, head: bytes) -> bool:
        name = webhook_id(head)
        if name in self._failed:
            return True
        self._failed.add(name)
        return False

    def _note(self, body: bytes) -> None:
        sent = sent_at(body)
        if sent is not None:
            self._delays.append(time.time() - sent)


class Visit(Connection):
    """A connection that the board answers."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    def answer(self, head: bytes, body: bytes) -> None:
        """Answer at once."""
        self.transport.write(self._board.answer(head, body))


async def serve() -> None:
    """Listen until SIGTERM or SIGINT."""
    loop, stop, board = asyncio.get_running_loop(), stop_signal(), Board()
    server = await loop.create_server(lambda: Visit(board), "127.0.0.1", 0, backlog=4096)
    say(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()


if __name__ == "__main__":
    import uvloop

    with suppress(KeyboardInterrupt):
        uvloop.run(serve())
