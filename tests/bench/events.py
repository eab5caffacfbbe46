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
from functools import cache
from typing import Final, cast

from aiormq.abc import AbstractChannel, AbstractConnection
from pamqp.commands import Basic
from pamqp.common import FieldTable

from service.broker.opening import Address, open_connection
from service.broker.publishes import Alarm, Answer, PublishChannel
from service.broker.topology import Arguments
from service.core.decode import Incoming
from service.core.encode import encode
from tests.bench.processes import MeasuringError

EVENT_TYPE: Final = "order.created"
_AT_ONCE: Final = 200
_CONFIRM_TIMEOUT: Final = 30.0


class Feed:
    """A connection that lays out events and sees to it that the broker has them.

    It shares the machine with what is measured, so an event costs it as little as it can: no task, and no
    memory once the broker has confirmed it.
    """

    def __init__(
        self, connection: AbstractConnection, channel: AbstractChannel, publishing: AbstractChannel
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._publishes = PublishChannel(publishing, _CONFIRM_TIMEOUT, Alarm(), self._fail)
        self._failure = ""
        self._unconfirmed = 0
        self._fewer = asyncio.Event()

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

    def publish(self, exchange: str, routing_key: str, tenant: str) -> None:
        """Publish one event, made now; `confirmed` tells what became of it."""
        body, properties = _message(tenant)
        self._unconfirmed += 1
        answer = self._publishes.publish(exchange, routing_key, body, properties)
        answer.add_done_callback(self._note)

    async def confirmed(self, but: int = 0) -> None:
        """Wait until the broker has confirmed all that was published, `but` so many of them.

        Raises MeasuringError where it does not take them.
        """
        while self._unconfirmed > but and not self._failure:
            self._fewer.clear()
            await self._fewer.wait()
        if self._failure:
            raise MeasuringError(f"the broker does not take events: {self._failure}")

    async def fill(self, exchange: str, routing_key: str, tenant: str, count: int) -> None:
        """Publish many events, and wait until the broker has confirmed all of them."""
        for _ in range(count):
            self.publish(exchange, routing_key, tenant)
            await self.confirmed(but=_AT_ONCE)
        await self.confirmed()

    def _note(self, answer: "asyncio.Future[Answer]") -> None:
        self._unconfirmed -= 1
        if answer.result() is not Answer.TAKEN:
            self._fail(self._publishes.ended or "it refused one")
        self._fewer.set()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._fewer.set()


@asynccontextmanager
async def feed(url: str) -> AsyncIterator[Feed]:
    """Connect to the broker."""
    connection = await open_connection(url, Address([url]), "bench (publishes)")
    try:
        yield Feed(
            connection,
            await connection.channel(publisher_confirms=False),
            await connection.channel(publisher_confirms=True, on_return_raises=True),
        )
    finally:
        await connection.close()


def _message(tenant: str) -> tuple[bytes, Basic.Properties]:
    told = _prepared(tenant)
    number = str(uuid.uuid4())
    headers = {**told.headers, "ce-id": number}
    return b'{"sent_at":%.6f,%b' % (time.time(), told.body[1:]), Basic.Properties(
        content_type=told.content_type,
        headers=cast("FieldTable", headers),
        delivery_mode=2,
        message_id=number,
    )


@cache
def _prepared(tenant: str) -> Incoming:
    """Return what all events of a tenant have in common."""
    return encode(
        EVENT_TYPE, _order(), event_id="0", source="/shop", time=datetime.now(UTC), tenant=tenant
    )


def _order() -> dict[str, object]:
    return {
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
