"""As much of an HTTP/1.1 server as the receivers of the measurements need; it costs little."""

import asyncio
import re
import signal
from abc import abstractmethod
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)
_SENT_AT = re.compile(rb'"sent_at": ?([0-9.]+)')


class Connection(asyncio.Protocol):
    """A kept-alive connection; what is made of it answers its requests."""

    def __init__(self) -> None:
        self._buffer = b""
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Have every whole request answered."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self.answer(head, body)

    @abstractmethod
    def answer(self, head: bytes, body: bytes) -> None:
        """Answer a request: its head without the last line break, and its body."""


def response(status: int, body: bytes = b"", headers: bytes = b"") -> bytes:
    """Return a response; `headers` are whole lines."""
    told = b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n%b\r\n" % (status, len(body), headers)
    return told + body


def webhook_id(head: bytes) -> bytes:
    """Return the `webhook-id` of a request, empty where there is none."""
    found = _ID.search(head)
    return found[1] if found else b""


def sent_at(body: bytes) -> float | None:
    """Return when the event of a body was published, in seconds since the epoch."""
    found = _SENT_AT.search(body)
    return float(found[1]) if found else None


def stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
