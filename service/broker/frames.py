"""Deliveries, and the answers to publishes, are taken off the stream before the library sees them.

The library reads every frame with four awaits, decodes it attribute by attribute, passes it through two
queues and starts a task; for messages, three frames each, that is most of what consuming costs.  Its
supported way in is the transport: what is returned as the reader here keeps deliveries for itself (for
channels that have a sink), and what the broker says of publishes (for channels that ask for it), and hands
on everything else, byte for byte.

Wire format: AMQP 0-9-1, section 2.3.5 (frames).
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp.commands import Basic, Connection
from yarl import URL

from service.broker.wire import properties

READ_SIZE: Final = 262_144
QUIET: Final = 1.0
"""Seconds after which the library is shown a heartbeat, while deliveries keep it from seeing frames."""

_METHOD, _HEADER, _BODY = 1, 2, 3
_FRAME = struct.Struct(">BHI")
_DELIVER = struct.pack(">HH", 60, 60)
_ACK = struct.pack(">HH", 60, 80)
_NACK = struct.pack(">HH", 60, 120)
_RETURN = struct.pack(">HH", 60, 50)
_CHANNEL_0 = bytes(2)
_CLOSE = struct.pack(">HH", 10, 50)
_ANSWERS: Final = frozenset((_ACK, _NACK, _RETURN))
_TAG = struct.Struct(">QB")
_CONTENT = struct.Struct(">xxxxQ")
_END = 0xCE
_HEARTBEAT = bytes((8, 0, 0, 0, 0, 0, 0, _END))


@dataclass(slots=True)
class Received:
    """A message as the broker delivered it."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes
    left_out: int = 0
    """The size of a body that was larger than the channel's bound, in bytes; it was not kept."""


Sink = Callable[[Received], None]


class Answers(Protocol):
    """Is told what the broker says of the publishes of a channel."""

    def settled(self, tag: int, *, multiple: bool, taken: bool) -> None:
        """Take in an ack, or a nack; `multiple`: of all up to this tag."""

    def returned(self, exchange: str) -> None:
        """Take in that a message found no queue."""


class _Partial:
    """A delivery, or a returned message, of which some frames are still to come."""

    __slots__ = ("chunks", "left_out", "method", "missing", "properties", "sink")

    def __init__(self, method: tuple[int, bool, str, str], sink: Sink) -> None:
        self.method = method
        self.sink = sink
        self.properties: Basic.Properties | None = None
        self.missing = 0
        self.left_out = 0
        self.chunks: list[bytes] = []

    def whole(self) -> Received:
        tag, redelivered, exchange, routing_key = self.method
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        properties = self.properties or Basic.Properties()
        return Received(tag, redelivered, exchange, routing_key, properties, body, self.left_out)


class FrameReader:
    """A stream reader, as far as the library uses one, that keeps deliveries for the sinks."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._at = 0
        self._step = 0
        self._is_of_connection = False
        self._shown = self._loop.time()
        self._partial: dict[int, _Partial] = {}
        self.sinks: dict[int, Sink] = {}
        self.bounds: dict[int, int] = {}
        self.answers: dict[int, Answers] = {}
        self.farewell: Connection.Close | None = None
        """What the broker closed the connection with: the library does not tell while it opens one."""

    def forget(self, channel: int, sink: Sink) -> None:
        """Let go of a channel that is closed, unless its number has another sink by now."""
        if self.sinks.get(channel) is sink:
            del self.sinks[channel]
            self.bounds.pop(channel, None)
            self._partial.pop(channel, None)

    def forget_answers(self, channel: int, answers: Answers) -> None:
        """Let go of a channel that is closed, unless its number has other answers by now."""
        if self.answers.get(channel) is answers:
            del self.answers[channel]

    def at_eof(self) -> bool:
        """Tell whether nothing more will come."""
        return self._at >= len(self._buffer) and self._reader.at_eof()

    async def read(self, size: int = -1) -> bytes:
        """Return what there is."""
        rest, self._buffer, self._at = self._buffer[self._at :], b"", 0
        return rest or await self._reader.read(size)

    async def readexactly(self, size: int) -> bytes:
        """Return the next bytes that are not a delivery's.

        The library reads a frame in three: its first byte, the six that follow, and the rest.
        """
        if self._step == 0:
            await self._next_frame()
        self._step = (self._step + 1) % 3
        while len(self._buffer) - self._at < size:
            await self._more(size)
        start, self._at = self._at, self._at + size
        data = self._buffer[start : self._at]
        if self._step == 2:
            self._is_of_connection = data.startswith(_CHANNEL_0)
        elif self._step == 0 and self._is_of_connection and data.startswith(_CLOSE):
            self.farewell = Connection.Close()
            self.farewell.unmarshal(data[len(_CLOSE) :])
        return data

    async def _more(self, wanted: int = 1) -> None:
        chunk = await self._reader.read(READ_SIZE)
        if not chunk:
            raise asyncio.IncompleteReadError(self._buffer[self._at :], wanted)
        self._buffer = self._buffer[self._at :] + chunk if self._at < len(self._buffer) else chunk
        self._at = 0

    async def _next_frame(self) -> None:
        """Go on to the next frame that is not a delivery's."""
        while True:
            taken = self._take_deliveries()
            if taken is False:
                self._shown = self._loop.time()
                return
            if self._loop.time() - self._shown > QUIET and (self.sinks or self.answers):
                self._buffer, self._at = _HEARTBEAT + self._buffer[self._at :], 0
                self._shown = self._loop.time()
                return
            await self._more()

    def _take_deliveries(self) -> bool:
        """Take whole frames of deliveries; False when a frame of another kind is next."""
        while len(self._buffer) - self._at >= 7:
            kind, channel, size = _FRAME.unpack_from(self._buffer, self._at)
            ours = self._is_ours(kind, channel)
            if not ours:
                return ours is None
            payload = self._at + 7
            if len(self._buffer) - payload < size + 1:
                return True
            if self._buffer[payload + size] != _END:
                return False  # not a frame: the library says so
            self._take(kind, channel, payload, size)
            self._at = payload + size + 1
        return True

    def _is_ours(self, kind: int, channel: int) -> bool | None:
        """Tell whether the next frame is for a sink or an answer; None when too little of it is there."""
        if kind != _METHOD:
            return kind in {_HEADER, _BODY} and channel in self._partial
        if channel not in self.sinks and channel not in self.answers:
            return False
        start = self._at + 7
        if len(self._buffer) - start < 4:
            return None
        method = self._buffer[start : start + 4]
        if method == _DELIVER:
            return channel in self.sinks
        return method in _ANSWERS and channel in self.answers

    def _take(self, kind: int, channel: int, payload: int, size: int) -> None:
        if kind == _METHOD:
            kind_of_method = self._buffer[payload : payload + 4]
            if kind_of_method in _ANSWERS:
                self._take_answer(kind_of_method, channel, payload + 4)
            else:
                method = _deliver(self._buffer, payload + 4)
                self._partial[channel] = _Partial(method, self.sinks[channel])
            return
        partial = self._partial[channel]
        if kind == _HEADER:
            (partial.missing,) = _CONTENT.unpack_from(self._buffer, payload)
            partial.properties = properties(self._buffer[payload + 12 : payload + size])
            bound = self.bounds.get(channel)
            if bound is not None and partial.missing > bound:
                partial.left_out = partial.missing
        else:
            if not partial.left_out:
                partial.chunks.append(self._buffer[payload : payload + size])
            partial.missing -= size
        if partial.missing <= 0:
            del self._partial[channel]
            partial.sink(partial.whole())

    def _take_answer(self, method: bytes, channel: int, at: int) -> None:
        answers = self.answers[channel]
        if method == _RETURN:
            self._partial[channel] = _Partial((0, False, "", ""), _drop)  # the message follows
            answers.returned(_returned_from(self._buffer, at))
        else:
            tag, bits = _TAG.unpack_from(self._buffer, at)
            answers.settled(tag, multiple=bool(bits & 1), taken=method == _ACK)


def _deliver(buffer: bytes, at: int) -> tuple[int, bool, str, str]:
    """Return tag, redelivered, exchange and routing key of a `basic.deliver`."""
    at += 1 + buffer[at]  # the consumer tag
    tag, redelivered = _TAG.unpack_from(buffer, at)
    at += 9
    size = buffer[at]
    exchange = buffer[at + 1 : at + 1 + size].decode("utf-8", "replace")
    at += 1 + size
    size = buffer[at]
    return (
        tag,
        bool(redelivered),
        exchange,
        buffer[at + 1 : at + 1 + size].decode("utf-8", "replace"),
    )


def _drop(_: Received) -> None:
    """Take a message that was returned: whoever published it still has it."""


def _returned_from(buffer: bytes, at: int) -> str:
    """Return the exchange of a `basic.return`."""
    at += 2  # the reply code
    at += 1 + buffer[at]  # what it means, in words
    return buffer[at + 1 : at + 1 + buffer[at]].decode("utf-8", "replace")


class FrameTransport(TransportFactory):
    """Opens the library's own transport, puts a `FrameReader` between, and keeps hold of both ends."""

    def __init__(self) -> None:
        self.reader: FrameReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[Any, asyncio.StreamWriter]:
        """Connect; returns reader and writer."""
        inner = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, self.writer = await inner.create(url, **kwargs)
        self.reader = FrameReader(reader)
        return self.reader, self.writer


_streams: WeakKeyDictionary[AbstractConnection, tuple[FrameReader, asyncio.StreamWriter]] = (
    WeakKeyDictionary()
)


def register(connection: AbstractConnection, transport: FrameTransport) -> None:
    """Remember which streams a connection was opened with."""
    if transport.reader is not None and transport.writer is not None:
        _streams[connection] = transport.reader, transport.writer


def streams_of(connection: AbstractConnection) -> tuple[FrameReader, asyncio.StreamWriter]:
    """Return the streams of a connection that was opened with a `FrameTransport`.

    What is written is whole frames, in one piece: the library writes there as well.
    """
    return _streams[connection]


async def consume(
    channel: AbstractChannel, queue: str, sink: Sink, prefetch: int, largest: int | None = None
) -> str:
    """Let a queue's messages flow into `sink`, at most `prefetch` unacked (0: no bound).

    A body of more than `largest` bytes is left out, so that it never fills memory.  The connection must
    have been opened with a `FrameTransport`; a channel has one sink.  Returns the consumer tag, to
    cancel by.
    """
    await channel.basic_qos(prefetch_count=prefetch)
    (reader, _), number = streams_of(channel.connection), channel.number
    reader.sinks[number] = sink
    # The sink leads back to the connection: without this neither would ever be freed.
    channel.closing.add_done_callback(lambda _: reader.forget(number, sink))
    if largest is not None:
        reader.bounds[number] = largest
    consuming = await channel.basic_consume(queue, _never)
    return consuming.consumer_tag or ""


async def _never(_: DeliveredMessage) -> None:
    raise AssertionError("a delivery has passed the sink of its channel")
