"""What lies in the queues at the end: every message is taken out and entered in the ledger."""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from aiormq.abc import AbstractConnection

from service.broker.frames import Received, consume
from service.broker.opening import Address, open_connection
from service.broker.topology import Names
from service.core import ladder
from tests.faults.ledger import REJECTED, Ledger, Place
from tests.faults.node import Node

IDLE: Final = 5.0
ACK_EVERY: Final = 500
"""A quorum queue has no more than 2,000 messages unacked at a consumer, however many it may."""
EMPTY_PASSES: Final = 2
PAUSE: Final = 0.4
"""Between two passes: a message on its way from one level to the next is in neither for a moment."""

_HELD: Final = """\
[begin
    {{ok, Held, _}} = ra:consistent_query(amqqueue:get_pid(Queue), fun rabbit_fifo:query_messages_total/1),
    {{Name, Held}}
end || Name <- [{names}],
       {{ok, Queue}} <- [rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, Name))]]."""
"""What asks the leader of each queue, one after the other, and waits for its answer.

`queue.declare` gives 0 for a leader that needs more than 250 ms (3.10), and never counts what has expired and
is not confirmed by the next queue yet; `list_queues` gives what it knew up to 5 s ago, and 0 after a start.
"""


class Remains:
    """The queues of a prefix."""

    def __init__(self, prefix: str) -> None:
        names = Names(prefix)
        # From the top of the ladder down, the way that messages go: none slips past who reads or counts.
        levels = [names.delay(level) for level in reversed(range(ladder.LEVELS))]
        self.busy = frozenset([names.deliveries, names.intake, *levels[-8:]])
        """What is empty once nothing is under way but what waits for hours."""
        self._places = {
            **dict.fromkeys([*levels, names.deliveries], Place.WAITING),
            names.intake: Place.WAITING,
            names.rejected: Place.REJECTED,
            names.dead: Place.DEAD,
            names.unrouted: Place.UNROUTED,
        }
        self._held = _HELD.format(names=", ".join(f'<<"{name}">>' for name in self._places))

    async def held(self, broker: Node) -> dict[str, int]:
        """Return how many messages each queue has that has any, whatever happens to them just now.

        Down the ladder as well: none is missed for its step from one level to the next.
        Raises PrivateBrokerError while one has no leader.
        """
        told = await asyncio.to_thread(broker.ctl, "eval", self._held)
        counts = re.findall(r'<<"([^"]+)">>,\s*(\d+)', told)
        return {queue: int(count) for queue, count in counts if count != "0"}

    async def take_all(self, broker: Node, ledger: Ledger) -> None:
        """Empty every queue into the ledger."""
        url = broker.url
        connection = await open_connection(url, Address([url]), "faults (reads what is left)")
        try:
            empty = 0
            while empty < EMPTY_PASSES:
                held = await self.held(broker)
                for queue, place in self._places.items():
                    if queue in held:
                        await self._take(connection, queue, held[queue], place, ledger)
                empty = 0 if held else empty + 1
                await asyncio.sleep(PAUSE)
        finally:
            await connection.close()

    async def delete(self, url: str, exchange: str) -> None:
        """Delete queues and exchanges."""
        connection = await open_connection(url, Address([url]), "faults (clears away)")
        try:
            channel = await connection.channel()
            for queue in self._places:
                await channel.queue_delete(queue)
                await channel.exchange_delete(queue)
            await channel.exchange_delete(exchange)
        finally:
            await connection.close()

    async def _take(
        self, connection: AbstractConnection, queue: str, count: int, place: Place, ledger: Ledger
    ) -> None:
        channel = await connection.channel()
        inbox: asyncio.Queue[Received] = asyncio.Queue()
        await consume(channel, queue, inbox.put_nowait, prefetch=0)
        taken, last = 0, 0
        # A message that expires meanwhile is counted and does not come: a later pass finds it.
        with suppress(TimeoutError):
            while taken < count:
                async with asyncio.timeout(IDLE):
                    message = await inbox.get()
                self._enter(place, message, ledger)
                taken, last = taken + 1, message.tag
                if taken % ACK_EVERY == 0:
                    await channel.basic_ack(last, multiple=True)
        if taken % ACK_EVERY:
            # One ack for many: of single ones the broker may hold some back when the channel closes.
            await channel.basic_ack(last, multiple=True)
        await channel.close()

    def _enter(self, place: Place, message: Received, ledger: Ledger) -> None:
        headers: Mapping[str, Any] = message.properties.headers or {}
        subscription_id = headers.get("subscription-id")
        if subscription_id is not None:
            ledger.see(place, (str(headers["event-id"]), str(subscription_id)))
        elif "x-rejected-reason" in headers:
            ledger.see(place, (str(headers.get("x-rejected-event-id")), REJECTED))
        else:
            # An event as its producer sent it: not looked at yet, or parked by the broker as poison.
            ledger.see_event(place, str(headers.get("ce-id")))
