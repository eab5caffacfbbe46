"""What a reload of very many subscriptions does to deliveries, and how long the dispatcher takes to start.

A trickle of events flows, all wanted by one subscription, while the file is replaced by one in which
another subscription has changed.  How long the slowest event was under way is told beside the slowest of
as many events without a reload: most of that is the broker, which confirms to disk.
"""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import orjson

from tests.bench.events import EVENT_TYPE, Feed
from tests.bench.plan import IN_FLIGHT, Plan
from tests.bench.processes import MeasuringError, resident_bytes
from tests.bench.receiver import Receiver
from tests.bench.scale import entries, secrets
from tests.bench.station import Station, document, station, subscription

RATE: Final = 150.0
_TENANT: Final = "arrivals"
_AFTERWARDS: Final = 1.0
_POLL: Final = 0.02
_PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Reloads:
    """`ready` and `in_force` in seconds, the slowest event of each turn in milliseconds, bytes.

    `ready` is from the start of the process to its consuming, `in_force` from the replaced file to the
    use of what it says.
    """

    subscriptions: int
    ready: float
    in_force: float
    slowest: tuple[float, ...]
    slowest_without: tuple[float, ...]
    resident: int


async def measure_reloads(url: str, feed: Feed, hook: Receiver, plan: Plan) -> Reloads:
    """Start a dispatcher with very many subscriptions, and change one of them again and again."""
    wanted = [subscription(_TENANT, hook.url("/arrivals")), *entries(plan.subscriptions)]
    environ = secrets() | {"DISPATCHER_INTAKE_PREFETCH": str(IN_FLIGHT)}
    start = time.monotonic()
    async with station(url, feed, wanted, environ=environ) as it:
        ready = time.monotonic() - start
        await _slowest(it, hook, asyncio.sleep(_AFTERWARDS))
        taken, slowest, without = [], [], []
        for turn in range(plan.reloads):
            wanted[plan.subscriptions // 2]["description"] = f"Change {turn}"
            replacing = asyncio.create_task(_replace(it, await asyncio.to_thread(document, wanted)))
            slowest.append(await _slowest(it, hook, replacing))
            taken.append(replacing.result())
            without.append(await _slowest(it, hook, asyncio.sleep(taken[-1])))
        return Reloads(
            subscriptions=plan.subscriptions,
            ready=ready,
            in_force=median(taken),
            slowest=tuple(slowest),
            slowest_without=tuple(without),
            resident=resident_bytes(it.dispatcher.process.pid),
        )


async def _replace(it: Station, changed: bytes) -> float:
    """Replace the file as a careful writer does; returns the seconds until it is in force."""
    before = it.dispatcher.lines("subscriptions.loaded")
    beside = Path(f"{it.file}.new")
    await asyncio.to_thread(beside.write_bytes, changed)
    start = time.monotonic()
    await asyncio.to_thread(beside.replace, it.file)
    while it.dispatcher.lines("subscriptions.loaded") == before:
        if time.monotonic() - start > _PATIENCE:
            raise MeasuringError(f"the change was not taken up in {_PATIENCE:g} s")
        await asyncio.sleep(_POLL)
    return time.monotonic() - start


async def _slowest(it: Station, hook: Receiver, during: Awaitable[object]) -> float:
    """Let events flow until that is done and a while longer; return the slowest in milliseconds."""
    before = await hook.count()
    flowing = asyncio.create_task(_flow(it))
    try:
        await during
        await asyncio.sleep(_AFTERWARDS)
    finally:
        flowing.cancel()
    published = await flowing
    await hook.taken(before + published, _PATIENCE)
    delays: list[float] = orjson.loads(await hook.get("/delays"))
    if len(delays) != published:
        raise MeasuringError(f"{published} events were published, {len(delays)} arrived in time")
    return 1000 * max(delays)


async def _flow(it: Station) -> int:
    """Publish at a steady rate until cancelled; returns how many the broker has."""
    loop = asyncio.get_running_loop()
    start, published = loop.time(), 0
    try:
        while True:
            await asyncio.sleep(max(0.0, start + published / RATE - loop.time()))
            it.feed.publish(it.exchange, EVENT_TYPE, _TENANT)
            published += 1
    except asyncio.CancelledError:
        await it.feed.confirmed()
        return published
