"""What a second worker adds, as far as a small machine can tell: `run --workers 2` beside `run`.

Where broker, producer and receiver share the cores with the workers, they are what limits deliveries a
second.  So CPU time is the measure: a worker is one thread, and work that is shared is done when the
busier worker has done its part, on a core of its own.  That counts what two cost each other in caches and
system calls, and how unevenly the broker shares out; not what a broker could not keep up with.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from tests.bench.events import Feed
from tests.bench.plan import IN_FLIGHT, Plan
from tests.bench.processes import MeasuringError, cpu_seconds, pause, resume
from tests.bench.receiver import Receiver
from tests.bench.station import Station, station, subscription

COUNT: Final = 2
_TENANT: Final = "shared"
_SETTLE: Final = 0.05
_PATIENCE: Final = 60.0
_POLL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Shares:
    """Deliveries a second of CPU time, turn by turn: of one worker, and of all by the busiest of them."""

    one: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return how many times as much all of them do, pair by pair."""
        return tuple(more / one for more, one in zip(self.all, self.one, strict=True))


async def measure_workers(url: str, feed: Feed, receiver: Receiver, plan: Plan) -> Shares:
    """Measure one worker and several in turns."""
    found = Shares()
    async with (
        _workers(url, feed, receiver, 1) as (one, alone),
        _workers(url, feed, receiver, COUNT) as (several, together),
    ):
        for _ in range(plan.pairs):
            found.one.append(await _rate(one, alone, receiver, plan))
            found.all.append(await _rate(several, together, receiver, plan))
    return found


async def _rate(it: Station, pids: list[int], receiver: Receiver, plan: Plan) -> float:
    await _busiest(it, pids, receiver, plan.warm_up)
    return plan.deliveries / await _busiest(it, pids, receiver, plan.deliveries)


async def _busiest(it: Station, pids: list[int], receiver: Receiver, deliveries: int) -> float:
    """Lay work out for workers that are held, let them go, and return the CPU time of the busiest."""
    pause(it.dispatcher.process)
    try:
        await it.fill(_TENANT, deliveries)
        answered = await receiver.count()
        before = [cpu_seconds(pid) for pid in pids]
    finally:
        resume(it.dispatcher.process)
    await receiver.taken(answered + deliveries, _PATIENCE)
    await asyncio.sleep(_SETTLE)  # the last acks leave
    return max(cpu_seconds(pid) - used for pid, used in zip(pids, before, strict=True))


@asynccontextmanager
async def _workers(
    url: str, feed: Feed, receiver: Receiver, count: int
) -> AsyncIterator[tuple[Station, list[int]]]:
    """Run so many workers; gives the process ids of those that deliver."""
    async with station(
        url,
        feed,
        [subscription(_TENANT, receiver.url())],
        environ={"DISPATCHER_INTAKE_PREFETCH": str(IN_FLIGHT)},
        keep={"service.started"},
        arguments=() if count == 1 else ("--workers", str(count)),
    ) as it:
        await _connected(it, count)
        started: list[Mapping[str, Any]] = [orjson.loads(line) for line in it.dispatcher.kept]
        yield it, [line["pid"] for line in started]


async def _connected(it: Station, count: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while it.dispatcher.lines("broker.connected") < count:
        if time.monotonic() > deadline:
            raise MeasuringError(f"{count} workers did not start: {it.dispatcher.last_words()}")
        await asyncio.sleep(_POLL)
