"""Stage: a message → its deliveries.  Decode, validate, match; then each delivery through its round.

The law here: a message is acked only when everything it owes is durable.  What is not acked comes
again; so a crash at any instant may double a delivery and never loses one.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from service.budget import Budget
from service.clock import Clock
from service.core.decode import Incoming, decode
from service.core.delivery import Delivery
from service.core.event import Event
from service.core.subscription import Subscription
from service.deliver import Deliverer
from service.errors import EventRejected
from service.faults import tell_fault
from service.log import Log
from service.prepared import Prepared, Render

SPLIT_ABOVE = 256
"""An event that more subscriptions want than this is split into messages of as many each."""


GAP_PAUSE = 1.0
"""Seconds before a delivery that came back too early goes up the delay ladder again."""


class Message(Protocol):
    """A message on a lane."""

    body: bytes
    routing_key: str

    @property
    def headers(self) -> Mapping[str, Any]:
        """Return the AMQP headers."""

    @property
    def incoming(self) -> Incoming:
        """Return what an event is read from.  Raises EventRejected where it cannot be."""

    @property
    def lost(self) -> bool:
        """Tell whether the message will come again."""

    @property
    def left_out(self) -> int:
        """Return the size of a body that was too large to be taken in, in bytes; else 0."""

    def ack(self) -> None:
        """Settle."""

    @property
    def may_be_turned_away(self) -> bool:
        """Tell whether the broker can park the message."""

    async def turn_away(self) -> None:
        """Settle: the broker parks the message among the rejected."""


class Snapshot(Protocol):
    """The subscriptions in force."""

    def match(self, event: Event, data: object) -> Sequence[Subscription]:
        """Return the subscriptions that want an event."""

    def get(self, subscription_id: str) -> Subscription | None:
        """Return a subscription by its id."""


class Schemas(Protocol):
    """What event data must look like."""

    def check(self, event_type: str, data: object) -> None:
        """Raise EventRejected where the data breaks its type's schema."""


class Outbox(Protocol):
    """Where messages go that are not delivered from here; True once the broker has confirmed."""

    async def reject(self, message: Any, rejection: EventRejected) -> bool:
        """Park a message that cannot be read."""

    async def put_off_again(self, delivery: Delivery, message: Any) -> bool:
        """Bring back a delivery whose message came before its time, when that has passed."""

    async def split(self, delivery: Delivery, subscription_ids: Sequence[str]) -> bool:
        """Hand an event on for some of its subscriptions."""

    def gap(self, message: Any) -> str | None:
        """Return where a message from the backlog lane should have waited and has not."""

    def read(self, message: Any) -> list[Delivery]:
        """Return the deliveries of a message from the backlog lane.  Raises EventRejected."""


class Meter(Protocol):
    """Counts what happens."""

    def received(self, lane: str) -> None: ...  # noqa: D102

    def rejected(self, reason: str) -> None: ...  # noqa: D102

    def unmatched(self) -> None: ...  # noqa: D102


class Dispatcher:
    """Handles the messages of both lanes."""

    def __init__(
        self,
        deliverer: Deliverer,
        outbox: Outbox,
        snapshot: Callable[[], Snapshot],
        schemas: Schemas,
        render: Render,
        clock: Clock,
        log: Log,
        meter: Meter,
        doubt: Callable[[str], bool],
        *,
        intake: Budget,
        backlog: Budget,
        max_event_bytes: int,
    ) -> None:
        self._deliverer = deliverer
        self._outbox = outbox
        self._snapshot = snapshot
        self._schemas = schemas
        self._render = render
        self._clock = clock
        self._log = log
        self._meter = meter
        self._doubt = doubt
        self._intake = intake
        self._backlog = backlog
        self._max_event_bytes = max_event_bytes

    async def on_event(self, message: Message) -> None:
        """Handle a message of the intake lane: an event, or something that is none."""
        self._meter.received("intake")
        if message.left_out:
            await self._turn_away(message)
            return
        await self._intake.admission()
        if message.lost:
            self._intake.admit_next()
            return
        try:
            event, wanting = self._read(message)
        except EventRejected as rejection:
            self._intake.admit_next()
            await self._reject(message, rejection)
            return
        if 0 < len(wanting) <= SPLIT_ABOVE:
            await self._run(message, self._first_rounds(event, wanting), self._intake)
            return
        self._intake.admit_next()
        if wanting:
            await self._split(message, event, wanting)
        else:
            self._note_unmatched(event)
            message.ack()

    async def on_delivery(self, message: Message) -> None:
        """Handle a message of the backlog lane: one delivery, or one event for several subscriptions."""
        self._meter.received("backlog")
        try:
            deliveries = self._outbox.read(message)
        except EventRejected as rejection:
            await self._reject(message, rejection)
            return
        gap = self._outbox.gap(message)
        if gap is not None:
            await self._put_off_again(message, deliveries, gap)
            return
        snapshot = self._snapshot()
        work = [(delivery, snapshot.get(delivery.subscription_id)) for delivery in deliveries]
        await self._run(message, work, self._backlog)

    async def _put_off_again(
        self, message: Message, deliveries: Sequence[Delivery], gap: str
    ) -> None:
        """Put off what came back before its time, because a queue of the delay ladder is gone.

        Its rounds would otherwise all be spent within a second.  A moment later: it may come back at once again.
        """
        await asyncio.sleep(GAP_PAUSE)
        if message.lost or self._doubt(gap):
            return
        again = (self._outbox.put_off_again(delivery, message) for delivery in deliveries)
        if all(await asyncio.gather(*again)):
            message.ack()

    def _read(self, message: Message) -> tuple[Event, Sequence[Subscription]]:
        """Return the event and who wants it; its parsed data, which may be large, ends here."""
        decoded = decode(
            message.incoming,
            max_bytes=self._max_event_bytes,
            now=self._clock.now(),
            make_id=_make_id,
        )
        event = decoded.event
        try:
            self._schemas.check(event.type, decoded.data)
        except EventRejected as rejection:
            rejection.event_id, rejection.event_type = event.id, event.type
            raise
        return event, self._snapshot().match(event, decoded.data)

    def _first_rounds(
        self, event: Event, wanting: Sequence[Subscription]
    ) -> list[tuple[Delivery, Subscription | None]]:
        now = self._clock.now()
        return [
            (Delivery(event=event, subscription_id=subscription.id, created_at=now), subscription)
            for subscription in wanting
        ]

    async def _run(
        self,
        message: Message,
        work: Sequence[tuple[Delivery, Subscription | None]],
        budget: Budget,
    ) -> None:
        budget.admit(len(work))
        try:
            durable = await self._carry(message, work, budget)
        finally:
            budget.dismiss(len(work))
        if durable:
            message.ack()

    async def _carry(
        self,
        message: Message,
        work: Sequence[tuple[Delivery, Subscription | None]],
        budget: Budget,
    ) -> bool:
        """Run all rounds at once; True when everything owed is durable."""
        prepared = Prepared(work[0][0].event, self._render)
        if len(work) == 1:
            delivery, subscription = work[0]
            return await self._deliverer.carry(delivery, subscription, prepared, budget, message)
        rounds = (
            self._carry_beside(delivery, subscription, prepared, budget, message)
            for delivery, subscription in work
        )
        return all(await asyncio.gather(*rounds))

    async def _carry_beside(
        self,
        delivery: Delivery,
        subscription: Subscription | None,
        prepared: Prepared,
        budget: Budget,
        message: Message,
    ) -> bool:
        """Run one of several rounds; a fault of ours in it is no reason to run the others once more.

        Its delivery is put off and comes back alone, as often as the broker bears with a message.
        """
        try:
            return await self._deliverer.carry(delivery, subscription, prepared, budget, message)
        except Exception as error:  # noqa: BLE001 - nobody knows what a fault is
            tell_fault(
                self._log, f"{budget.lane} lane", error, subscription_id=delivery.subscription_id
            )
            return not message.lost and await self._deliverer.carry_later(delivery)

    async def _split(self, message: Message, event: Event, wanting: Sequence[Subscription]) -> None:
        delivery = Delivery(event=event, subscription_id="", created_at=self._clock.now())
        ids = [subscription.id for subscription in wanting]
        chunks = [ids[start : start + SPLIT_ABOVE] for start in range(0, len(ids), SPLIT_ABOVE)]
        confirmed = await asyncio.gather(*(self._outbox.split(delivery, chunk) for chunk in chunks))
        if all(confirmed):
            message.ack()

    async def _reject(self, message: Message, rejection: EventRejected) -> None:
        rejection.event_id = rejection.event_id or _given_id(message)
        if not await self._outbox.reject(message, rejection):
            return
        message.ack()
        self._note_rejected(message, rejection)

    async def _turn_away(self, message: Message) -> None:
        """Let the broker park a message whose body was too large to be taken in."""
        size = f"the body has {message.left_out} bytes, the limit is {self._max_event_bytes}"
        rejection = EventRejected("too_large", size)
        rejection.event_id = _given_id(message)
        if not message.may_be_turned_away:
            rejection.detail += (
                ", and RabbitMQ cannot park it with such an x-death header: left out"
            )
            await self._reject(message, rejection)
            return
        await message.turn_away()
        if not message.lost:
            self._note_rejected(message, rejection)

    def _note_rejected(self, message: Message, rejection: EventRejected) -> None:
        self._meter.rejected(rejection.reason)
        self._log.error(
            "event.rejected",
            reason=rejection.reason,
            detail=rejection.detail,
            routing_key=message.routing_key,
            event_id=rejection.event_id,
            event_type=rejection.event_type,
            app_id=_producer(message),
        )

    def _note_unmatched(self, event: Event) -> None:
        self._meter.unmatched()
        told: dict[str, Any] = {"event_id": event.id, "event_type": event.type}
        if event.tenant is not None:
            told["tenant"] = event.tenant
        if event.id_made:
            told["id_made"] = True
        self._log.debug("event.unmatched", **told)


def _make_id() -> str:
    return f"made-{uuid.uuid4().hex}"


def _given_id(message: Message) -> str | None:
    """Return the id that an unreadable event seems to have, for people to find it by."""
    try:
        incoming = message.incoming
    except EventRejected:
        return None
    told = incoming.headers.get("ce-id", incoming.message_id)
    return told[:256] if isinstance(told, str) else None


def _producer(message: Message) -> str | None:
    """Return the name that the producer gives itself, where it can be read."""
    try:
        return message.incoming.app_id
    except EventRejected:
        return None
