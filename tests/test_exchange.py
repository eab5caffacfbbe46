"""An answer is what its bytes say, however they are cut into pieces."""

import asyncio
import errno
import ssl
from collections.abc import Iterable
from typing import Any, cast

import aiohttp
import pytest

from service.webhook.exchange import Answer, exchange
from service.webhook.protocol import Observation, WatchedProtocol


class Wire(asyncio.Transport):
    """A transport that brings the pieces of an answer as soon as there is a request.

    An exception among them is why the connection is lost.
    """

    def __init__(self, protocol: WatchedProtocol, pieces: Iterable[bytes | OSError]) -> None:
        super().__init__()
        self._protocol = protocol
        self._pieces = pieces
        self._closing = False

    def write(self, data: Any) -> None:
        for piece in self._pieces:
            if isinstance(piece, OSError):
                self._protocol.connection_lost(piece)
            elif not self._closing:
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

    def __init__(self, *pieces: bytes | OSError) -> None:
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


BROKEN = [ConnectionResetError(errno.ECONNRESET, "reset"), ssl.SSLError(1, "bad record mac")]


@pytest.mark.parametrize("reason", BROKEN)
@pytest.mark.parametrize("head", [b"200 OK\r\n\r\n", b"500 No\r\nContent-Length: 9\r\n\r\n"])
async def test_a_body_in_which_the_connection_breaks_is_not_whole(
    head: bytes, reason: OSError
) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await ask(Held(b"HTTP/1.1 ", head, b"body", reason))


@pytest.mark.parametrize("reason", BROKEN)
async def test_an_answer_that_was_whole_before_the_connection_broke_counts(reason: OSError) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    assert await ask(Held(whole, reason)) == Answer(200, None, b"ok")


@pytest.mark.parametrize(
    "more", ["", "H", "HTTP/1.1 200 OK\r\nX: y", "HTTP/1.1 200 OK\r\nX: y\r\n\r\n"]
)
@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
    ids=["no body", "body", "chunks"],
)
async def test_a_connection_is_kept_only_if_nothing_comes_after_the_answer(
    answer: str, more: str
) -> None:
    both = (answer + more).encode()
    for pieces in ([both], [both[:-1], both[-1:]], [answer.encode(), more.encode()]):
        connection = Held(*filter(None, pieces))
        assert (await ask(connection)).status in {200, 204}
        assert connection.kept == (not more), pieces
