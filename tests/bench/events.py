"""What is published, and the confirmed publishing of it.

Every measurement sends the same kind of event: an order of two articles, some 400 bytes, as CloudEvents
binary, valid under its schema.  The tenant decides who wants it.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

import orjson
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import AMQPError
from pamqp.commands import Basic
from pamqp.common import FieldTable

from service.broker.connection import Address, open_connection
from service.broker.topology import Arguments
from service.core.encode import encode
from tests.bench.processes import MeasuringError

EVENT_TYPE: Final = "order.created"
_AT_ONCE: Final = 200


class Feed:
    """A connection that lays out events and sees to it that the broker has them."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel

    @property
    def broker_version(self) -> str:
        """Return the broker's product and version."""
        told = self._connection.server_properties or {}
        return f"{told.get('product')!s} {told.get('version')!s}"

    async def declare(self, queue: str, arguments: Arguments) -> None:
        """Declare a durable queue."""
        await self._channel.queue_declare(queue, durable=True, arguments=dict(arguments))

    async def delete(self, queues: Sequence[str], exchanges: Sequence[str]) -> None:
        """Delete what a measurement leaves behind; what is not there is no error."""
        for queue in queues:
            await self._channel.queue_delete(queue)
        for exchange in exchanges:
            await self._channel.exchange_delete(exchange)

    async def publish(self, exchange: str, routing_key: str, tenant: str) -> None:
        """Publish one event, made now, and wait for the broker's confirm."""
        body, properties = _message(tenant)
        try:
            await self._channel.basic_publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                properties=properties,
                mandatory=True,
            )
        except AMQPError as error:
            raise MeasuringError(f"the broker does not take events: {error}") from error

    async def fill(self, exchange: str, routing_key: str, tenant: str, count: int) -> None:
        """Publish many events, and wait until the broker has confirmed all of them."""
        for start in range(0, count, _AT_ONCE):
            number = min(_AT_ONCE, count - start)
            await asyncio.gather(
                *(self.publish(exchange, routing_key, tenant) for _ in range(number))
            )


@asynccontextmanager
async def feed(url: str) -> AsyncIterator[Feed]:
    """Connect to the broker."""
    connection = await open_connection(url, Address([url]), "bench (publishes)")
    try:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        yield Feed(connection, channel)
    finally:
        await connection.close()


def _message(tenant: str) -> tuple[bytes, Basic.Properties]:
    told = encode(
        EVENT_TYPE,
        orjson.dumps(_order()),
        event_id=str(uuid.uuid4()),
        source="/shop",
        time=datetime.now(UTC),
        tenant=tenant,
    )
    headers: FieldTable = {name: str(value) for name, value in told.headers.items()}
    return told.body, Basic.Properties(
        content_type=told.content_type,
        headers=headers,
        delivery_mode=2,
        message_id=uuid.uuid4().hex,
    )


def _order() -> dict[str, object]:
    return {
        "sent_at": time.time(),
        "order_id": "ord_1042",
        "customer_id": "cus_77",
        "currency": "EUR",
        "amount": 12900,
        "items": [
            {"sku": "KB-60-DE", "name": "Keyboard", "quantity": 1, "unit_amount": 8900},
            {"sku": "CB-2M", "name": "Cable, two metres", "quantity": 2, "unit_amount": 2000},
        ],
        "placed_at": "2030-01-31T12:00:00Z",
        "note": "Please leave it with the neighbours when nobody is at home, ring twice before.",
    }
