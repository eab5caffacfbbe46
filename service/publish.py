"""For producers: publish an event, and know that the broker has it.

    async with Publisher("amqp://127.0.0.1/", source="/shop") as publisher:
        await publisher.publish("order.created", {"order_id": "ord_1042"}, subject="ord_1042")

The law here: `publish` returns once the broker has confirmed that every queue which wants the event
holds it, and raises in every other case, within its deadline.  Where nobody knows (the connection died
before the confirm), the error says so; publishing again with the same id and source is then right.
"""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from pamqp.commands import Basic
from pamqp.common import FieldTable

from service.broker.opening import TROUBLE, Address, broker_errors, open_first
from service.core.decode import Incoming
from service.core.encode import DEFAULT_MAX_BYTES, encode
from service.errors import BrokerError, TopologyError

DEFAULT_SOURCE: Final = "/webhook-dispatcher/publish"
_PERSISTENT: Final = 2
_CLOSE_TIMEOUT: Final = 3.0
_DROP_TIMEOUT: Final = 0.2
_RENEW_EVERY: Final = 1.0
"""Seconds between two channels that are opened because a queue refused an event."""


class Publisher:
    """A connection that publishes events, opened again by itself when it was lost.

    `urls` are tried in turn; `ca_file` is the authority to trust for `amqps`; `timeout` in seconds
    bounds each publish and each connect.  The exchange must exist, unless `declare` is set: then a
    missing one is declared as a durable topic exchange.  Any number of publishes may run at once.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        exchange: str = "events",
        *,
        source: str = DEFAULT_SOURCE,
        declare: bool = False,
        timeout: float = 30.0,
        ca_file: Path | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._address = Address([urls] if isinstance(urls, str) else list(urls), ca_file)
        self._exchange = exchange
        self._source = source
        self._declare = declare
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._opening = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._opened = 0.0
        self._refused = False
        self._publishing: set[asyncio.Future[Any]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._ready()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def publish(
        self,
        event_type: str,
        data: Any,
        *,
        id: str | None = None,  # noqa: A002 - the attribute's name
        source: str | None = None,
        time: datetime | None = None,
        subject: str | None = None,
        tenant: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        extensions: Mapping[str, str] | None = None,
    ) -> str:
        """Publish an event, wait for the broker's confirm, and return the event's id.

        `data` is any JSON value, or `bytes` of JSON text, sent as they are.  Without an `id` one is
        made, without a `time` it is now.  Raises EventRejected for an event that the dispatcher
        would reject by its type, id, attributes, size or JSON (event schemas only it knows),
        TopologyError where the exchange is missing or no queue is bound for the type, and BrokerError
        where there was no confirm.
        """
        event_id = str(uuid.uuid4()) if id is None else id
        message = encode(
            event_type,
            data,
            event_id=event_id,
            source=source or self._source,
            time=time or datetime.now(UTC),
            subject=subject,
            tenant=tenant,
            traceparent=traceparent,
            tracestate=tracestate,
            extensions=extensions,
            max_bytes=self._max_bytes,
        )
        await self._send(await self._ready(), message)
        return event_id

    async def close(self) -> None:
        """Close the connection, politely if the broker still answers."""
        await self._close(_CLOSE_TIMEOUT)

    async def _close(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds the farewell alone
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(*TROUBLE):
                async with asyncio.timeout(timeout):
                    await connection.close()

    async def _send(self, channel: AbstractChannel, message: Incoming) -> None:
        # In a task of its own: the library cancels a publish whose connection dies, and that must
        # not pass for a cancellation of the caller.
        publishing = asyncio.create_task(
            channel.basic_publish(
                message.body,
                exchange=self._exchange,
                routing_key=message.routing_key,
                properties=_properties(message),
                mandatory=True,
            )
        )
        self._publishing.add(publishing)
        publishing.add_done_callback(self._publishing.discard)
        try:
            done, _ = await asyncio.wait([publishing], timeout=self._timeout)
        finally:
            publishing.cancel()
        if done:
            self._judge(publishing, channel, message)
            return
        await self._close(_DROP_TIMEOUT)
        raise BrokerError(
            f"no confirm within {self._timeout:g} s (the broker hangs, or an alarm blocks publishers):"
            f" {_unknown(message)}"
        )

    def _judge(
        self, publishing: "asyncio.Task[Any]", channel: AbstractChannel, message: Incoming
    ) -> None:
        """Return where the broker has the event, raise what else became of it."""
        if publishing.cancelled():
            raise BrokerError(f"the connection closed before the confirm: {_unknown(message)}")
        match publishing.exception():
            case None:
                return
            case PublishError():
                raise TopologyError(
                    f"no queue is bound to the exchange {self._exchange!r} for {message.routing_key!r}:"
                    " the event was not kept; start the dispatcher, or check its bindings"
                )
            case DeliveryError():
                self._refused = self._refused or channel is self._channel
                raise BrokerError("a queue refused the event (it is full or cannot be written now)")
            case ChannelNotFoundEntity():
                raise self._missing()
            case ChannelAccessRefused() as error:
                raise BrokerError(
                    f"the broker refuses the event ({error}): its user needs the right to write to"
                    f" the exchange {self._exchange!r}"
                ) from error
            case error:
                raise BrokerError(
                    f"publishing failed ({_text(error)}): {_unknown(message)}"
                ) from error

    async def _ready(self) -> AbstractChannel:
        """Return the channel, of a new connection where there is none or it was lost."""
        async with self._opening:
            if self._connection is None or self._channel is None or self._channel.is_closed:
                await self.close()
                self._channel = await self._open()
            elif self._refused and _now() - self._opened > _RENEW_EVERY:
                self._channel = await self._another(self._connection, self._channel)
            else:
                return self._channel
            self._opened, self._refused = _now(), False
            return self._channel

    async def _another(
        self, connection: AbstractConnection, refused: AbstractChannel
    ) -> AbstractChannel:
        """Return another channel; the one that refused is closed once nothing is under way on it.

        RabbitMQ 3.10 refuses whatever comes over a channel whose first publish found a quorum queue
        without its leader, also long after another node leads it, until the old leader is back.
        """
        under_way = set(self._publishing)
        try:
            # The connection is an old one: that it dies meanwhile must not pass for a cancellation.
            with broker_errors():
                async with asyncio.timeout(self._timeout):
                    channel = await _new_channel(connection)
        except BrokerError:
            await self.close()
            raise
        closing = asyncio.create_task(_close_after(refused, under_way))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return channel

    async def _open(self) -> AbstractChannel:
        self._connection = connection = await open_first(
            self._address, "webhook-dispatcher (producer)", self._timeout
        )
        try:
            with broker_errors():  # a broker of another kind makes the library raise anything
                async with asyncio.timeout(self._timeout):
                    await self._find_exchange(connection)
                    return await _new_channel(connection)
        except BrokerError as error:
            await self.close()
            if isinstance(error, TopologyError):
                raise
            raise BrokerError(f"the broker gave no channel: {error}") from error

    async def _find_exchange(self, connection: AbstractConnection) -> None:
        """Make sure that the exchange is there, of whatever type: an existing one is taken as it is."""
        try:
            probe = await connection.channel()
            await probe.exchange_declare(self._exchange, passive=True)
            await probe.close()
        except ChannelNotFoundEntity:
            if not self._declare:
                raise self._missing() from None
            await self._declare_exchange(connection)

    async def _declare_exchange(self, connection: AbstractConnection) -> None:
        try:
            channel = await connection.channel()
            await channel.exchange_declare(self._exchange, exchange_type="topic", durable=True)
            await channel.close()
        except (ChannelAccessRefused, ChannelPreconditionFailed) as error:
            raise TopologyError(
                f"the exchange {self._exchange!r} cannot be declared: {_text(error)}"
            ) from None

    def _missing(self) -> TopologyError:
        return TopologyError(
            f"the exchange {self._exchange!r} does not exist: start the dispatcher, which declares it"
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _new_channel(connection: AbstractConnection) -> AbstractChannel:
    return await connection.channel(publisher_confirms=True, on_return_raises=True)


async def _close_after(channel: AbstractChannel, publishing: set["asyncio.Future[Any]"]) -> None:
    if publishing:
        await asyncio.wait(publishing)
    # Nobody waits for this: a close that was given up would be written twice.
    with suppress(BrokerError), broker_errors():
        await channel.close()


def _properties(message: Incoming) -> Basic.Properties:
    # The library matches confirms by `message_id`: with the event's id there, two publishes of one
    # event at the same time would swap their results.
    headers: FieldTable = {name: str(value) for name, value in message.headers.items()}
    return Basic.Properties(
        content_type=message.content_type,
        headers=headers,
        delivery_mode=_PERSISTENT,
        message_id=uuid.uuid4().hex,
        message_type=message.routing_key,
    )


def _unknown(message: Incoming) -> str:
    return (
        "the event may have been taken or not: publish it again with the same id,"
        f" {message.headers['ce-id']}"
    )


def _text(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(": ")
