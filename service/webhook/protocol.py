"""What an answer is read by: aiohttp's client protocol, with bounds on what a target may send.

`Observation` is the channel back: what happened on the wire, per attempt, without aiohttp's tracing,
which costs a quarter of a request.
"""

import asyncio
import re
from typing import Any

import aiohttp
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

# What one request may be answered with, before the target is held to be broken.  The sender stops far
# earlier where the answer is well-formed; these stop what a parser would swallow for ever.
_INTERIM_ANSWERS = 16
_ANSWER_BYTES = 2**20
_BODY_BYTES = 2**16  # with what frames its chunks: those of a byte each cost the most
BODY_KEPT = 2048  # bytes of an answer's body
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_SEAM = 2  # bytes of a head that may belong to its end, which comes with the next piece
_FAREWELL = 1.0  # seconds


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
