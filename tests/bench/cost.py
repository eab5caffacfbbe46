"""The CPU time and throughput of a delivery: the dispatcher and the bare loops, in turns.

A turn: the process is held, events are laid out and confirmed, the clock of its CPU time is read, it is
let go, and the clock is read again when the receiver has answered every delivery.  So the producer costs
nothing in between, and nothing that is measured counts for itself.  Each turn begins with deliveries that
do not count: they open the connections, which are closed when nothing has used them for some seconds.
"""

import asyncio
import statistics
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from tests.bench.events import Feed
from tests.bench.plan import IN_FLIGHT, Plan
from tests.bench.processes import (
    MeasuringError,
    cpu_seconds,
    line_from,
    module_environ,
    pause,
    resume,
    started,
)
from tests.bench.receiver import Receiver
from tests.bench.station import Station

DISPATCHER: Final = "dispatcher"
AIO_PIKA: Final = "aio-pika"
AIORMQ: Final = "aiormq"
POST: Final = "post"
_SETTLE: Final = 0.05
_PATIENCE: Final = 30.0
_SLOWEST: Final = 0.005
_CONSUMERS_UP_TO: Final = 10
"""The fan-out up to which the loops that consume are measured."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A process that delivers what `lay_out(deliveries)` lays out for it."""

    name: str
    process: Process
    lay_out: Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn cost: CPU seconds, and seconds from the start to the last arrival."""

    deliveries: int
    cpu: float
    elapsed: float

    @property
    def cpu_each(self) -> float:
        """Return the CPU time of one delivery in microseconds."""
        return 1e6 * self.cpu / self.deliveries

    @property
    def rate(self) -> float:
        """Return deliveries a second."""
        return self.deliveries / self.elapsed


@dataclass(frozen=True, slots=True)
class BareConsumer:
    """A bare loop, and the queue that it consumes."""

    kind: str
    process: Process
    queue: str
    feed: Feed

    def publish(self) -> None:
        """Publish one event for it."""
        self.feed.publish("", self.queue, "bare")

    def contender(self, fan_out: int) -> Contender:
        """Return it as one that takes part in turns."""

        async def lay_out(deliveries: int) -> None:
            await self.feed.fill("", self.queue, "bare", deliveries // fan_out)

        return Contender(self.kind, self.process, lay_out)


Turns = Mapping[str, Sequence[Turn]]


def median_cpu(turns: Sequence[Turn]) -> float:
    """Return the median CPU time of a delivery in microseconds."""
    return statistics.median(turn.cpu_each for turn in turns)


def median_rate(turns: Sequence[Turn]) -> float:
    """Return the median of deliveries a second."""
    return statistics.median(turn.rate for turn in turns)


def ratios(ours: Sequence[Turn], theirs: Sequence[Turn]) -> tuple[float, ...]:
    """Return how often as much CPU time ours took in each pair of turns."""
    return tuple(a.cpu_each / b.cpu_each for a, b in zip(ours, theirs, strict=True))


async def deliver(contender: Contender, receiver: Receiver, deliveries: int) -> Turn:
    """Lay work out for a process that is held, let it go, and measure it until all has arrived."""
    pid = contender.process.pid
    pause(contender.process)
    try:
        await contender.lay_out(deliveries)
        answered = await receiver.count()
        began, used = time.monotonic(), cpu_seconds(pid)
    finally:
        resume(contender.process)
    await receiver.taken(answered + deliveries, _PATIENCE + deliveries * _SLOWEST)
    elapsed = time.monotonic() - began
    await asyncio.sleep(_SETTLE)  # the last acks leave
    return Turn(deliveries, cpu_seconds(pid) - used, elapsed)


async def take_turns(
    contenders: Sequence[Contender], receiver: Receiver, plan: Plan
) -> dict[str, list[Turn]]:
    """Measure each process in turn, and all of them several times."""
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
    for _ in range(plan.pairs):
        for contender in contenders:
            await deliver(contender, receiver, plan.warm_up)
            turns[contender.name].append(await deliver(contender, receiver, plan.deliveries))
    return turns


async def measure_cost(
    station: Station, receiver: Receiver, fan_out: int, plan: Plan
) -> dict[str, list[Turn]]:
    """Measure deliveries of events that so many subscriptions want, beside bare loops.

    At a large fan-out the broker's share vanishes: there bare requests are what is left to compare with.
    """
    async with AsyncExitStack() as stack:
        contenders = [_dispatcher(station, f"fan-out-{fan_out}", fan_out)]
        for kind in (AIO_PIKA, AIORMQ) if fan_out <= _CONSUMERS_UP_TO else ():
            loop = bare_consumer(station, kind, receiver.url(), fan_out)
            consumer = await stack.enter_async_context(loop)
            contenders.append(consumer.contender(fan_out))
        if fan_out == 1 or fan_out > _CONSUMERS_UP_TO:
            contenders.append(await stack.enter_async_context(_bare_posts(receiver)))
        return await take_turns(contenders, receiver, plan)


def _dispatcher(station: Station, tenant: str, fan_out: int) -> Contender:
    async def lay_out(deliveries: int) -> None:
        if deliveries % fan_out:
            raise MeasuringError(f"{deliveries} deliveries cannot be made of {fan_out} an event")
        await station.fill(tenant, deliveries // fan_out)

    return Contender(DISPATCHER, station.dispatcher.process, lay_out)


def dispatcher_for(station: Station, tenant: str) -> Contender:
    """Return the dispatcher as it delivers the events of a tenant, to one subscription."""
    return _dispatcher(station, tenant, 1)


@asynccontextmanager
async def bare_consumer(
    station: Station, kind: str, hook_url: str, fan_out: int
) -> AsyncIterator[BareConsumer]:
    """Run a bare loop on a queue of its own."""
    queue = await station.new_queue_like_intake()
    async with _bare(kind, station.url, queue, hook_url, fan_out) as process:
        yield BareConsumer(kind, process, queue, station.feed)


@asynccontextmanager
async def _bare_posts(receiver: Receiver) -> AsyncIterator[Contender]:
    async with _bare(POST, "", "", receiver.url(), 1) as process:

        async def lay_out(deliveries: int) -> None:
            assert process.stdin is not None
            process.stdin.write(b"%d\n" % deliveries)

        yield Contender(POST, process, lay_out)


@asynccontextmanager
async def _bare(
    kind: str, url: str, queue: str, hook_url: str, fan_out: int
) -> AsyncIterator[Process]:
    arguments = (kind, url, queue, hook_url, str(fan_out), str(IN_FLIGHT))
    command = (sys.executable, "-m", "tests.bench.bare", *arguments)
    async with started(*command, environ=module_environ()) as process:
        await line_from(process)
        yield process
