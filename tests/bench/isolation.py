"""A sick subscriber hurts only itself, measured.

Ten subscriptions with one target each and event types of one and the same kind, told apart by tenant, so
that each event has one subscriber.  The load is steady: the plan's, or half of what one process can do on this
machine while it is fed, which is then measured first.  For each way of being sick: all are well for a while, then one is sick, then three, then
five, then all are well again until the dispatcher gives all of them their full weight.

What is compared is the same subscriptions' figures, of those that stay well, before and after the switch.
The first seconds after it, in which nobody knows yet, are a row of their own.
"""

import asyncio
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import aiohttp
import orjson

from tests.bench.events import EVENT_TYPE, Feed
from tests.bench.hardship import (
    BACKLOG,
    LOAD,
    NOBODY,
    SUBSCRIBERS,
    TITLES,
    Aftermath,
    Hardship,
    Isolation,
    row,
)
from tests.bench.plan import Plan
from tests.bench.processes import (
    MeasuringError,
    line_from,
    module_environ,
    resident_bytes,
    started,
    waited_seconds,
)
from tests.bench.receiver import Receiver
from tests.bench.station import Station, station, subscription

FIRST_SECONDS: Final = 3.0
_WARM_UP: Final = 1.0
_TICK: Final = 0.002
_MOST_UNCONFIRMED: Final = 2_000
_FULL_WEIGHT_TIMEOUT: Final = 120.0
_BUILD_TIMEOUT: Final = 300.0
_POLL: Final = 0.25
_PUT_OFF: Final = ("delivery.deferred", "attempt.failed")
_MINUTE: Final = 60.0
_FEWEST: Final = 10
_CAUGHT_UP: Final = 0.25
"""Seconds from publish to arrival, at the most, at a dispatcher that keeps up.

RabbitMQ's count of a quorum queue does not tell: it is 0 when a busy queue takes longer over it than 250 ms.
"""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Window:
    """Some seconds of load: what arrived (subscriber, time of publishing, time of arrival).

    `waited` is for how many of the seconds the dispatcher had work but no core to do it on.
    """

    arrivals: Sequence[tuple[int, float, float]]
    seconds: float
    waited: float


@dataclass(frozen=True, slots=True)
class Phase:
    """What those that stay well got in some seconds: arrivals a second each, and delays in milliseconds.

    `calm_p99` is the median of the 99th percentiles of each second: what others do on the machine for a
    second or two does not show in it, nor does what the dispatcher does as rarely.
    """

    samples: int
    rate: float
    p99: float
    calm_p99: float


class Ward(Receiver):
    """The subscribers, in a process of their own."""

    def __init__(self, port: int, ports: list[int], session: aiohttp.ClientSession) -> None:
        super().__init__("ward", port, session)
        self._ports = ports

    def subscriptions(self) -> list[dict[str, Any]]:
        """Return one for each, with the defaults of a target."""
        return [
            subscription(_tenant(number), f"http://127.0.0.1:{port}/hook", max_in_flight=None)
            for number, port in enumerate(self._ports)
        ]

    async def fall(self, how: str, sick: int) -> None:
        """Make the first few sick, and the others well."""
        await self.get(f"/{how}/{sick}")

    async def arrivals(self) -> list[tuple[int, float, float]]:
        """Return subscriber, time of publishing and time of arrival since this was last asked."""
        told: list[tuple[int, float, float]] = orjson.loads(await self.get("/arrivals"))
        return told


class Load:
    """Publishes to all subscribers in turn, at a steady rate, until it is told to stop."""

    def __init__(self, it: Station, rate: float) -> None:
        self._station = it
        self._rate = rate
        self._turn = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish for as long as the context lasts."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._station.feed.confirmed()

    async def burst(self, sick: int, count: int) -> None:
        """Publish so many events to the first few, as fast as the broker takes them."""
        for number in range(count):
            await self._publish_one(number % sick)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start, published = loop.time(), 0
        while True:
            due = int((loop.time() - start) * self._rate)
            if due - published > self._rate:  # a second behind: a burst was in the way, and is over
                start, published, due = loop.time(), 0, 0
            while published < due:
                await self._publish_one(self._turn)
                self._turn = (self._turn + 1) % SUBSCRIBERS
                published += 1
            await asyncio.sleep(_TICK)

    async def _publish_one(self, subscriber: int) -> None:
        it = self._station
        it.feed.publish(it.exchange, EVENT_TYPE, _tenant(subscriber))
        await it.feed.confirmed(but=_MOST_UNCONFIRMED)


async def measure_isolation(url: str, feed: Feed, plan: Plan, tell: Tell) -> Isolation:
    """Measure every way of being sick, each with a dispatcher and queues of its own."""
    found = Isolation(plan.load)
    for way in plan.ways:
        async with _ward() as ward, station(url, feed, ward.subscriptions(), keep=_PUT_OFF) as it:
            if not found.load:
                tell("isolation: what the process can do")
                found.capacity = await _capacity(it, ward, plan)
                found.load = LOAD * found.capacity
            course = _Course(way, it, ward, plan, found.load, tell)
            try:
                await course.run()
            except MeasuringError as error:
                found.missed.append(f"not all of those that {TITLES[way]}: {error}")
            else:
                found.ends.append(await course.end())
            found.rows += course.rows
    return found


@asynccontextmanager
async def _ward() -> AsyncIterator[Ward]:
    command = (sys.executable, "-m", "tests.bench.ward", str(SUBSCRIBERS))
    async with (
        started(*command, environ=module_environ()) as process,
        aiohttp.ClientSession() as session,
    ):
        port, *ports = orjson.loads(await line_from(process))
        yield Ward(port, ports, session)


async def _capacity(it: Station, ward: Ward, plan: Plan) -> float:
    """Return the deliveries a second that are published, carried and made here at most: the median.

    With the producer at work, since it shares the machine with everything else in all that follows.
    """
    load = Load(it, 0.0)
    rates = []
    for count in (plan.warm_up, *[plan.deliveries] * plan.pairs):
        there, began = await ward.count(), time.monotonic()
        await load.burst(SUBSCRIBERS, count)
        await ward.taken(there + count, _BUILD_TIMEOUT)
        rates.append(count / (time.monotonic() - began))
    return statistics.median(rates[1:])


class _Course:
    """One way of being sick, from the first second to the recovery."""

    def __init__(
        self, way: str, it: Station, ward: Ward, plan: Plan, rate: float, tell: Tell
    ) -> None:
        self.rows: list[Hardship] = []
        self._way = way
        self._station = it
        self._ward = ward
        self._plan = plan
        self._rate = rate
        self._tell = tell
        self._load = Load(it, rate)
        self._memory = 0.0
        self._full_weight: float | None = None

    async def run(self) -> None:
        """Measure."""
        async with self._load.running():
            await asyncio.sleep(_WARM_UP)
            before = await self._during(self._plan.well)
            self._memory = self._resident()
            for sick in self._plan.sick:
                self._tell(f"isolation: {sick} {TITLES[self._way]}")
                await self._fall(sick)
                first = await self._during(FIRST_SECONDS)
                then = await self._during(self._plan.ill)
                self._note(sick, before, first, then)
            await self._ward.fall("well", 0)
            self._full_weight = await self._recovered()

    async def end(self) -> Aftermath:
        """Sum up."""
        publishes = _publishes(self._station.dispatcher.kept)
        return Aftermath(
            way=self._way,
            memory_before=self._memory,
            memory_after=self._resident(),
            put_off=len(publishes),
            publishes=statistics.mean(publishes) if publishes else 0.0,
            most_publishes=max(publishes, default=0),
            doubled=int(await self._ward.get("/doubled")),
            full_weight=self._full_weight,
        )

    async def _fall(self, sick: int) -> None:
        if self._way == NOBODY:
            return
        if self._way != BACKLOG:
            await self._ward.fall(self._way, sick)
            return
        await self._ward.fall("refuse", sick)
        await self._load.burst(sick, self._plan.backlog)
        deadline = time.monotonic() + _BUILD_TIMEOUT
        while not self._keeps_up(await self._during(1.0), range(sick, SUBSCRIBERS)):
            if time.monotonic() > deadline:
                raise MeasuringError("those that are well still do not get everything at once")
        await self._ward.fall("well", 0)

    def _keeps_up(self, second: Window, subscribers: range) -> bool:
        """Tell by a second's arrivals whether the load goes through again, all of it and at once."""
        delays = [at - sent for number, sent, at in second.arrivals if number in subscribers]
        expected = self._rate * len(subscribers) / SUBSCRIBERS
        return len(delays) > expected / 2 and max(delays) < _CAUGHT_UP

    async def _during(self, seconds: float) -> Window:
        """Let the load go on for so long."""
        loop = asyncio.get_running_loop()
        dispatcher = self._station.dispatcher.process.pid
        await self._ward.arrivals()
        start, waited = loop.time(), waited_seconds(dispatcher)
        await asyncio.sleep(seconds)
        return Window(
            await self._ward.arrivals(), loop.time() - start, waited_seconds(dispatcher) - waited
        )

    def _note(self, sick: int, before: Window, first: Window, then: Window) -> None:
        well = range(sick, SUBSCRIBERS)
        was, at_first, now = (_phase(window, well) for window in (before, first, then))
        self.rows.append(
            Hardship(
                way=self._way,
                sick=sick,
                load=self._rate,
                samples=now.samples,
                before_p99_ms=was.p99,
                before_waited=before.waited / before.seconds,
                throughput=now.rate / was.rate,
                p99=now.p99 / was.p99,
                calm_p99=now.calm_p99 / was.calm_p99,
                first_throughput=at_first.rate / was.rate,
                first_p99=at_first.p99 / was.p99,
                taken=sum(number < sick for number, _, _ in then.arrivals) / then.seconds,
                waited=then.waited / then.seconds,
            )
        )
        self._tell("  ".join(row(self.rows[-1])))

    async def _recovered(self) -> float | None:
        """Return after how many seconds every target has its full weight."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        url = f"http://127.0.0.1:{self._station.admin_port}/status"
        async with aiohttp.ClientSession() as session:
            while loop.time() - start < _FULL_WEIGHT_TIMEOUT:
                async with session.get(url) as answer:
                    targets = (await answer.json())["targets"]
                if all(_has_full_weight(target) for target in targets):
                    return loop.time() - start
                await asyncio.sleep(_POLL)
        return None

    def _resident(self) -> float:
        return resident_bytes(self._station.dispatcher.process.pid) / 2**20


def _tenant(number: int) -> str:
    return f"subscriber-{number}"


def _has_full_weight(target: dict[str, Any]) -> bool:
    return target["health"] == "healthy" and bool(target["effective_weight"] == target["weight"])


def _phase(window: Window, subscribers: range) -> Phase:
    by_second: defaultdict[int, list[float]] = defaultdict(list)
    for number, sent, at in window.arrivals:
        if number in subscribers:
            by_second[int(at)].append(1000 * (at - sent))
    delays = [delay for second in by_second.values() for delay in second]
    if len(delays) < _FEWEST:
        raise MeasuringError("too little arrived at those that are well")
    seconds = [second for second in by_second.values() if len(second) >= _FEWEST] or [delays]
    return Phase(
        samples=len(delays),
        rate=len(delays) / window.seconds / len(subscribers),
        p99=_p99(delays),
        calm_p99=statistics.median(map(_p99, seconds)),
    )


def _p99(delays: Sequence[float]) -> float:
    return statistics.quantiles(delays, n=100)[98]


def _publishes(lines: Sequence[bytes]) -> list[int]:
    """Return how often each delivery that was put off was published in the minute from the first time."""
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    deferred = set()
    for line in lines:
        told = orjson.loads(line)
        which = (told["event_id"], told["subscription_id"])
        if told["message"] == "delivery.deferred":
            deferred.add(which)
        elif told["decision"] != "retry":
            continue
        times[which].append(datetime.fromisoformat(told["timestamp"]).timestamp())
    return [
        sum(at < min(times[which]) + _MINUTE for at in times[which]) for which in sorted(deferred)
    ]
