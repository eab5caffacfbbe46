"""The topology as data: every exchange, queue and binding that the dispatcher needs.

The law here: every exchange that a message can be dead-lettered to, or published to, has the catch-all
exchange behind it, the levels of the ladder by way of the levels below, because a dead letter that finds no
queue would stay pending for ever (and 32 of them stop a queue's dead-lettering), and a publish with a missing
binding would be lost.

Sources: RabbitMQ's documentation on quorum queues, dead letter exchanges and alternate exchanges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    AMQPChannelError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
)
from pamqp.common import FieldValue

from service.core import ladder
from service.errors import TopologyError

POISON_LIMIT = 200
"""Deliveries of one message before the broker parks it: a message that kills its reader ends there.

Every lost connection counts for every message that was in flight, so it must not be small.
"""

PEEK_LIMIT = 1_000_000_000
"""People look into dead letters by taking and returning, which counts as deliveries from 4.0 on."""

Arguments = Mapping[str, FieldValue]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: str
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue."""

    name: str
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Binding:
    """From an exchange to a queue."""

    source: str
    destination: str
    key: str = ""
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Names:
    """Every name that the dispatcher owns, from its prefix."""

    prefix: str

    @property
    def intake(self) -> str:
        """Return the queue of events, and the exchange through which rejected ones come back."""
        return f"{self.prefix}.intake"

    @property
    def deliveries(self) -> str:
        """Return the backlog lane's queue, and the exchange where the delay ladder ends."""
        return f"{self.prefix}.deliveries"

    @property
    def dead(self) -> str:
        """Return the dead letters' queue and exchange."""
        return f"{self.prefix}.dead"

    @property
    def rejected(self) -> str:
        """Return the rejected events' queue and exchange."""
        return f"{self.prefix}.rejected"

    @property
    def unrouted(self) -> str:
        """Return the catch-all queue and exchange."""
        return f"{self.prefix}.unrouted"

    def delay(self, level: int) -> str:
        """Return a level's queue and exchange."""
        return f"{self.prefix}.delay.{level:02}"

    def route_in(self, seconds: int) -> tuple[str, dict[str, str]]:
        """Return exchange and headers that bring a delivery to the backlog lane after a delay."""
        if seconds == 0:
            return self.deliveries, {}
        return self.delay(ladder.entry_level(seconds)), ladder.headers(seconds)

    def is_in_backlog(self, exchange: str, routing_key: str) -> bool:
        """Tell whether a message that came over this exchange lies in the backlog lane's queue.

        The events exchange may have a name that begins with the prefix.  What an operator moved came over the
        default exchange, by the queue's name.
        """
        if exchange == "":
            return routing_key == self.deliveries
        return exchange == self.deliveries or exchange in map(self.delay, range(ladder.LEVELS))

    def gap(self, headers: Mapping[str, Any]) -> str | None:
        """Return a queue of the ladder that a message, by its headers, has not waited in as it should have.

        The broker writes down in which queues a message has expired (`x-death`; RabbitMQ's documentation on dead
        letter exchanges).  Where one is gone, or its binding, the message passes on at once.
        """
        asked = ladder.levels(headers)
        if not asked:
            return None
        deaths = headers.get("x-death")
        deaths = deaths if isinstance(deaths, list) else []
        waited_in = {death.get("queue") for death in deaths if isinstance(death, dict)}
        return next((name for name in map(self.delay, asked) if name not in waited_in), None)

    def below(self, level: int) -> str:
        """Return the exchange that a message goes to from a level."""
        return self.delay(level - 1) if level else self.deliveries


@dataclass(frozen=True, slots=True)
class Topology:
    """What must exist; `events` is the team's own exchange, taken as it is where it exists."""

    names: Names
    events: Exchange
    exchanges: Sequence[Exchange]
    queues: Sequence[Queue]
    bindings: Sequence[Binding]


def topology(prefix: str, events_exchange: str, bindings: Sequence[str]) -> Topology:
    """Return the topology for a prefix, an events exchange and the intake's routing-key patterns."""
    names = Names(prefix)
    caught: Arguments = {"alternate-exchange": names.unrouted}
    levels = range(ladder.LEVELS)
    exchanges = [
        Exchange(names.unrouted, "fanout"),
        *(
            Exchange(name, "fanout", caught)
            for name in (names.intake, names.dead, names.rejected, names.deliveries)
        ),
        *(
            Exchange(names.delay(level), "headers", {"alternate-exchange": names.below(level)})
            for level in levels
        ),
    ]
    queues = [
        _kept(names.unrouted),
        _kept(names.dead),
        _kept(names.rejected),
        _worked(names.intake, names),
        _worked(names.deliveries, names),
        *(_level_queue(level, names) for level in levels),
    ]
    return Topology(
        names,
        Exchange(events_exchange, "topic"),
        exchanges,
        queues,
        [*_own_bindings(names), *(Binding(events_exchange, names.intake, key) for key in bindings)],
    )


def _kept(name: str) -> Queue:
    return Queue(name, {"x-queue-type": "quorum", "x-delivery-limit": PEEK_LIMIT})


def _worked(name: str, names: Names) -> Queue:
    return Queue(
        name,
        {
            "x-queue-type": "quorum",
            "x-delivery-limit": POISON_LIMIT,
            "x-dead-letter-exchange": names.rejected,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def _level_queue(level: int, names: Names) -> Queue:
    return Queue(
        names.delay(level),
        {
            "x-queue-type": "quorum",
            "x-message-ttl": 1000 * 2**level,
            "x-dead-letter-exchange": names.below(level),
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def _own_bindings(names: Names) -> list[Binding]:
    plain = (names.unrouted, names.intake, names.dead, names.rejected, names.deliveries)
    enters = (
        Binding(
            names.delay(level),
            names.delay(level),
            arguments={"x-match": "all", ladder.header(level): ladder.ENTERS},
        )
        for level in range(ladder.LEVELS)
    )
    return [*(Binding(name, name) for name in plain), *enters]


async def declare(connection: AbstractConnection, wanted: Topology) -> None:
    """Declare everything; raises TopologyError where something exists with other arguments."""
    missing = [] if await _exists(connection, wanted.events.name) else [wanted.events]
    channel = await connection.channel()
    name = ""
    try:
        for exchange in (*missing, *wanted.exchanges):
            name = exchange.name
            await _declare_exchange(channel, exchange)
        for queue in wanted.queues:
            name = queue.name
            await channel.queue_declare(name, durable=True, arguments=dict(queue.arguments))
        for binding in wanted.bindings:
            name = binding.destination
            await _bind(channel, binding)
    except AMQPChannelError as error:
        raise _refused(name, error) from error
    await channel.close()


async def check(connection: AbstractConnection, wanted: Topology) -> None:
    """Check that exchanges and queues exist, declaring nothing; raises TopologyError for the first that does not.

    Arguments and bindings cannot be seen over AMQP 0-9-1.
    """
    for exchange in (wanted.events, *wanted.exchanges):
        if not await _exists(connection, exchange.name):
            raise TopologyError(
                f"exchange {exchange.name!r} does not exist: declare it, or set DISPATCHER_DECLARE_TOPOLOGY=true"
            )
    channel = await connection.channel()
    for queue in wanted.queues:
        try:
            await channel.queue_declare(queue.name, passive=True)
        except AMQPChannelError as error:
            raise TopologyError(
                f"queue {queue.name!r} cannot be used ({_text(error)}): declare it, or set"
                " DISPATCHER_DECLARE_TOPOLOGY=true"
            ) from error
    await channel.close()


async def check_writing(connection: AbstractConnection, wanted: Topology) -> None:
    """Check that we may publish to what is ours to publish to; raises TopologyError for the first that we may not.

    A publish that is refused ends its channel, and everything that is under way comes again, each time.  What is
    published within a transaction that is rolled back goes nowhere (AMQP 0-9-1, class `tx`).  Does not end while an
    alarm is up, and leaves the connection useless until it is over.
    """
    of_others = (wanted.names.unrouted, wanted.names.intake)  # the broker's, and people's
    ours = [one.name for one in wanted.exchanges if one.name not in of_others]
    if not ours:
        return
    channel = await connection.channel(publisher_confirms=False)
    try:
        await channel.tx_select()
        try:
            for name in ours:  # none is answered: a broker that is far away is asked as well
                await channel.basic_publish(b"", exchange=name)
            await channel.tx_rollback()
        except ChannelInvalidStateError:  # refused while the others were being written
            await channel.closing
    except AMQPChannelError as error:
        raise _refused(_named_in(error, ours), error) from error
    await channel.close()


def _named_in(error: AMQPChannelError, names: Sequence[str]) -> str:
    """Return which of the exchanges the broker's error is about."""
    return next((name for name in names if f"'{name}'" in _text(error)), "a publish")


async def _exists(connection: AbstractConnection, exchange: str) -> bool:
    channel = await connection.channel()
    try:
        await channel.exchange_declare(exchange, passive=True)
    except ChannelNotFoundEntity:
        return False
    except AMQPChannelError as error:
        raise _refused(exchange, error) from error
    await channel.close()
    return True


async def _declare_exchange(channel: AbstractChannel, exchange: Exchange) -> None:
    await channel.exchange_declare(
        exchange.name, exchange_type=exchange.kind, durable=True, arguments=dict(exchange.arguments)
    )


async def _bind(channel: AbstractChannel, binding: Binding) -> None:
    await channel.queue_bind(
        binding.destination, binding.source, binding.key, arguments=dict(binding.arguments)
    )


def _refused(name: str, error: AMQPChannelError) -> TopologyError:
    return TopologyError(f"the broker refuses {name!r}: {_text(error)}")


def _text(error: Exception) -> str:
    return str(error).replace("\n", " ")
