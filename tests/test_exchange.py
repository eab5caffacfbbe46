"""An answer is what its bytes say, however they are cut into pieces."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import pytest

from service.webhook.egress import Observation, WatchedProtocol
from service.webhook.exchange import Answer, exchange


class Wire(asyncio.Transport):
    """A transport that brings the pieces of an answer as soon as there is a request."""

    def __init__(self, protocol: WatchedProtocol, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._protocol = protocol
        self._pieces = pieces
        self._closing = False

    def write(self, data: Any) -> None:
        for piece in self._pieces:
            if not self._closing:
                self._protocol.data_received(piece)

    def close(self) -> None:
        self._closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0


class Held:
    """A connection that notes what becomes of it."""

    def __init__(self, *pieces: bytes) -> None:
        self.protocol = WatchedProtocol(asyncio.get_running_loop())
        self.protocol.connection_made(Wire(self.protocol, pieces))
        self.protocol.serve(Observation())
        self.kept = False

    def release(self) -> None:
        self.kept = not self.protocol.should_close

    def close(self) -> None:
        pass


async def ask(connection: Held) -> Answer:
    async with asyncio.timeout(5):
        return await exchange(cast("Any", connection), b"POST / HTTP/1.1\r\n\r\n", b"")


@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"HTTP/1.1 204 No Content", b"", 204),
        (b"HTTP/1.1 200 OK#Content-Length: 2", b"ok", 200),
        (b"HTTP/1.1 200 OK#Content-Length: 0", b"", 200),
        (b"HTTP/1.1 100 Continue##HTTP/1.1 200 OK#Content-Length: 2", b"ok", 200),
    ],
    ids=["no body", "body", "empty body", "interim"],
)
async def test_what_follows_a_whole_answer_does_not_count_wherever_the_answer_is_cut(
    head: bytes, body: bytes, status: int, end: bytes
) -> None:
    answer = (head + b"##").replace(b"#", end) + body + b"<html>garbage\r\n\r\n"
    whole = len(answer)
    single = [answer[at : at + 1] for at in range(whole)]
    for pieces in (single, *([answer[:cut], answer[cut:]] for cut in range(1, whole))):
        connection = Held(*pieces)
        assert await ask(connection) == Answer(status, None, body), pieces
        assert not connection.kept
