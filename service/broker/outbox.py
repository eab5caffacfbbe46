"""Where deliveries and events go that are not done with: ladder, backlog, dead letters, rejected.

Each method is True (a burial `DONE`) once the broker has confirmed, and False (`UNKNOWN`) when nobody knows: then
nothing may be acked.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, assert_never

from service.broker import codec
from service.broker.consumer import Message
from service.broker.publisher import Confirmed, Publisher, Refused, Unconfirmed
from service.broker.rejected import rejected_properties
from service.broker.topology import Names
from service.clock import Clock
from service.core import ladder
from service.core.delivery import Burial, Delivery, Reason
from service.errors import EventRejected

BURIAL_PATIENCE: Final = 2.0
"""Seconds for which the queue of dead letters may say no: what waits for it keeps publishes of others waiting."""


class Outbox:
    """Writes the dispatcher's own messages."""

    def __init__(self, publisher: Publisher, names: Names, clock: Clock) -> None:
        self._publisher = publisher
        self._names = names
        self._clock = clock

    async def put_off(self, delivery: Delivery, at: float) -> bool:
        """Bring a delivery to the backlog lane at `at` (Unix seconds), or up to a second later."""
        wait = at - self._clock.now()
        seconds = ladder.seconds_for(wait)
        # What one trip covers is not judged by the clock again, which may have been set meanwhile.
        not_before = at if wait > ladder.MAX_DELAY else 0.0
        if delivery.not_before != not_before:
            delivery = replace(delivery, not_before=not_before)
        exchange, way = self._names.route_in(seconds)
        published = await self._publisher.publish(
            exchange, "", delivery.event.data, codec.delivery_properties(delivery, way)
        )
        return isinstance(published, Confirmed)

    async def put_off_again(self, delivery: Delivery, message: Message) -> bool:
        """Bring a delivery to the backlog lane after the whole delay that its message was to take."""
        seconds = sum(2**level for level in ladder.levels(message.headers))
        return await self.put_off(delivery, max(delivery.not_before, self._clock.now() + seconds))

    async def split(self, delivery: Delivery, subscription_ids: Sequence[str]) -> bool:
        """Bring an event to the backlog lane now, for these subscriptions."""
        published = await self._publisher.publish(
            self._names.deliveries,
            "",
            delivery.event.data,
            codec.split_properties(delivery, subscription_ids),
        )
        return isinstance(published, Confirmed)

    async def bury(self, delivery: Delivery, reason: Reason, at: float) -> Burial:
        """Park a delivery as a dead letter."""
        published = await self._publisher.publish(
            self._names.dead,
            "",
            delivery.event.data,
            codec.dead_properties(delivery, reason, at),
            patience=BURIAL_PATIENCE,
        )
        match published:
            case Confirmed():
                return Burial.DONE
            case Refused():
                return Burial.REFUSED
            case Unconfirmed():
                return Burial.UNKNOWN
            case _:
                assert_never(published)

    async def reject(self, message: Message, rejection: EventRejected) -> bool:
        """Park a message that cannot be read, byte for byte, with the reason."""
        properties = rejected_properties(
            message.properties,
            message.routing_key,
            rejection,
            self._clock.now(),
            keep_state=self._names.is_in_backlog(message.exchange, message.routing_key),
        )
        published = await self._publisher.publish(
            self._names.rejected, "", message.body, properties
        )
        return isinstance(published, Confirmed)

    def gap(self, message: Message) -> str | None:
        """Return the queue of the delay ladder, if any, that a message has not waited in as it should have."""
        return self._names.gap(message.headers)

    def read(self, message: Message) -> list[Delivery]:
        """Return the deliveries of a message from the backlog lane.  Raises EventRejected."""
        return codec.read_deliveries(message.properties.headers, message.body)
