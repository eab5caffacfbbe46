"""Producers that mean harm: what they send ends rejected or delivered, and the next event arrives.

The messages are written as bytes over a bare socket, because every AMQP library refuses to send most of
them.  A real broker takes them, a real process reads them.  What the broker itself refuses never gets as
far as us, and is none of our business.
"""

import asyncio
import itertools
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import pamqp.frame
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pamqp.base import Frame
from pamqp.commands import Basic, Channel, Confirm, Connection, Queue

from tests.dispatcher import Dispatcher, Station, station, subscription
from tests.receivers import Recorder

PROPERTIES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id",
    "reply_to", "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip
LARGEST_HEADERS = 131_072 - 8 - 14 - 4
"""Bytes of a header table that fill a frame of the usual limit: less frame, header and the length."""


def short(text: bytes | str) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return bytes([len(raw)]) + raw


def long(text: bytes | str) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def table(*entries: tuple[bytes | str, bytes]) -> bytes:
    """Return a field table; each entry is a key and a value with its kind before it."""
    return long(b"".join(short(key) + value for key, value in entries))


def text(value: bytes | str) -> bytes:
    return b"S" + long(value)


def nested(depth: int, kind: bytes = b"F") -> bytes:
    """Return a value that holds itself so many times."""
    value = b"V"
    for _ in range(depth):
        value = kind + (table(("k", value)) if kind == b"F" else long(value))
    return value


@dataclass(frozen=True)
class Raw:
    """A message as bytes: the properties are in their wire form already."""

    body: bytes = b"{}"
    key: bytes = b"thing.made"
    properties: dict[str, bytes] = field(default_factory=dict)
    exchange: str | None = None

    def frames(self, exchange: str, limit: int) -> Iterator[bytes]:
        publish = struct.pack(">HHH", 60, 40, 0) + short(self.exchange or exchange)
        yield _frame(1, publish + short(self.key) + b"\0")
        flags = sum(1 << (15 - PROPERTIES.index(name)) for name in self.properties)
        written = b"".join(self.properties[n] for n in PROPERTIES if n in self.properties)
        yield _frame(2, struct.pack(">HHQH", 60, 0, len(self.body), flags) + written)
        for start in range(0, len(self.body), limit - 8):
            yield _frame(3, self.body[start : start + limit - 8])


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


class Wire:
    """A producer on a bare socket: one channel with confirms."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port or 5672), timeout=20)
        self._buffer = b""
        self._socket.sendall(b"AMQP\0\0\x09\x01")
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        self._hear(Connection.Start)
        self._say(Connection.StartOk({}, "PLAIN", f"\0{user}\0{password}", "en_US"), 0)
        self._hear(Connection.Tune)
        self._say(Connection.TuneOk(2047, 131_072, 0), 0)
        self._say(Connection.Open(unquote(parts.path[1:]) or "/"), 0)
        self._hear(Connection.OpenOk)
        self._say(Channel.Open())
        self._hear(Channel.OpenOk)
        self._say(Confirm.Select())
        self._hear(Confirm.SelectOk)

    def publish(self, message: Raw, exchange: str) -> bool:
        """Publish and wait; False where the broker refuses: the connection is of no more use then."""
        try:
            for frame in message.frames(exchange, 131_072):
                self._socket.sendall(frame)
            return isinstance(self._hear(Basic.Ack, Channel.Close, Connection.Close), Basic.Ack)
        except ConnectionError:
            return False

    def count(self, queue: str) -> int:
        """Return how many messages a queue holds."""
        self._say(Queue.Declare(queue=queue, passive=True))
        return int(getattr(self._hear(Queue.DeclareOk), "message_count", 0))

    def close(self) -> None:
        self._socket.close()

    def _say(self, frame: Frame, channel: int = 1) -> None:
        self._socket.sendall(pamqp.frame.marshal(frame, channel))

    def _hear(self, *kinds: type[Frame]) -> Frame:
        while True:
            while len(self._buffer) < 7 or len(self._buffer) < self._size() + 8:
                got = self._socket.recv(65_536)
                if not got:
                    raise ConnectionError("the broker hung up")
                self._buffer += got
            size = self._size() + 8
            _, _, heard = pamqp.frame.unmarshal(self._buffer[:size])
            self._buffer = self._buffer[size:]
            if isinstance(heard, kinds):
                return heard

    def _size(self) -> int:
        return int(struct.unpack_from(">I", self._buffer, 3)[0])


@contextmanager
def wire(url: str) -> Iterator[Wire]:
    it = Wire(url)
    try:
        yield it
    finally:
        it.close()


def send_all(it: Station, messages: list[Raw]) -> list[Raw]:
    """Publish what the broker takes, confirmed; returns that."""
    taken: list[Raw] = []
    left = iter(messages)
    while True:
        with wire(it.amqp_url) as producer:
            for message in left:
                if not producer.publish(message, it.exchange):
                    break
                taken.append(message)
            else:
                return taken
