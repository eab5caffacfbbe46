"""From publish to arrival: how long an event is under way at about half load.

Events are published one by one at a steady rate, each with the time of its publishing inside; the receiver
notes how old it is when the request has come.  Publisher and receiver share a clock.
"""

import asyncio
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson

from tests.bench.events import Feed
from tests.bench.processes import MeasuringError
from tests.bench.receiver import Receiver

_POLL: Final = 0.02
_WARM_UP: Final = 0.5
_PATIENCE: Final = 30.0
_FEWEST: Final = 2


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from publish to arrival at `rate` events a second."""

    rate: float
    p50: float
    p99: float


async def measure_latency(
    feed: Feed, publish: Callable[[], None], receiver: Receiver, rate: float, seconds: float
) -> Latency:
    """Have the feed publish at a rate for so long, and return how long the events took."""
    await _arrive(feed, publish, receiver, rate, _WARM_UP)
    delays = await _arrive(feed, publish, receiver, rate, seconds)
    cuts = statistics.quantiles(delays, n=100)
    return Latency(rate, 1000 * cuts[49], 1000 * cuts[98])


async def _arrive(
    feed: Feed, publish: Callable[[], None], receiver: Receiver, rate: float, seconds: float
) -> list[float]:
    before = await receiver.count()
    published = await _at_rate(publish, rate, seconds)
    await feed.confirmed()
    await receiver.taken(before + published, _PATIENCE)
    delays: list[float] = orjson.loads(await receiver.get("/delays"))
    if len(delays) != published:
        raise MeasuringError(f"{published} events were published, {len(delays)} arrived in time")
    return delays


async def _at_rate(publish: Callable[[], None], rate: float, seconds: float) -> int:
    """Publish without waiting for one confirm before the next; returns how many."""
    loop = asyncio.get_running_loop()
    count = max(_FEWEST, int(rate * seconds))
    start = loop.time()
    for number in range(count):
        wait = start + number / rate - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        publish()
    return count
