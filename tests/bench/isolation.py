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
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

import aiohttp
import orjson

from tests.bench.events import EVENT_TYPE, Feed
from tests.bench.plan import Plan
from tests.bench.processes import (
    MeasuringError,
    line_from,
    module_environ,
    resident_bytes,
    started,
)
from tests.bench.receiver import Receiver
from tests.bench.station import Station, station, subscription

SUBSCRIBERS: Final = 10
LOAD: Final = 0.5
FIRST_SECONDS: Final = 3.0
NOBODY: Final = "nobody"
"""Nobody falls sick: what the figures waver by on this machine."""
BACKLOG: Final = "backlog"
"""So many deliveries were put off while the sick ones refused; now these take everything."""

_TITLES: Final = {
    NOBODY: "none of them",
    "hang": "hang for 30 s",
    "refuse": "refuse connections",
    "fail": "answer 500",
    "slow": "answer after 5 s",
    "throttle": "throttle to 5/s",
    BACKLOG: "have a backlog",
}
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
class Phase:
    """What those that stay well got in some seconds: arrivals a second each, and delays in milliseconds.

    `calm_p99` is the median of the 99th percentiles of each second: what others do on the machine for a
    second or two does not show in it, nor does what the dispatcher does as rarely.
    """

    samples: int
    rate: float
    p99: float
    calm_p99: float


@dataclass(frozen=True, slots=True)
class Hardship:
    """So many are sick in one way.

    `throughput`, `p99` and `calm_p99` are those of the well ones as a share of before; `first_…` the same
    for the first seconds.  `taken` is what the sick ones took a second, all together.
    """

    way: str
    sick: int
    load: float
    samples: int
    before_p99_ms: float
    throughput: float
    p99: float
    calm_p99: float
    first_throughput: float
    first_p99: float
    taken: float


@dataclass(frozen=True, slots=True)
class Aftermath:
    """The end of one way: memory in MiB, what was put off and how often, and how long recovery took.

    `publishes` and `most_publishes` are those of a delivery that was put off, in the minute from the first
    of them on; `full_weight` in seconds, None where it did not come in two minutes.
    """

    way: str
    memory_before: float
    memory_after: float
    put_off: int
    publishes: float
    most_publishes: int
    doubled: int
    full_weight: float | None


@dataclass(slots=True)
class Isolation:
    """All of it; `load` in events a second, `capacity` 0 where it was not measured."""

    load: float
    capacity: float = 0.0
    rows: list[Hardship] = field(default_factory=list)
    ends: list[Aftermath] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    @property
    def title(self) -> str:
        """Return what the tables are about, and what they lack."""
        about = (
            f"Isolation: {SUBSCRIBERS} subscriptions, one target each, an event has one subscriber;"
            f" load {self.load:,.0f} events a second"
        )
        if self.capacity:
            about += f", {LOAD:.0%} of what it can do"
        return "; ".join((about, *self.missed))

    def json(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)


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
                found.missed.append(f"not all of those that {_TITLES[way]}: {error}")
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
            before, _ = await self._during(self._plan.well)
            self._memory = self._resident()
            for sick in self._plan.sick:
                self._tell(f"isolation: {sick} {_TITLES[self._way]}")
                await self._fall(sick)
                first, _ = await self._during(FIRST_SECONDS)
                rest, seconds = await self._during(self._plan.ill)
                self._note(sick, before, first, rest, seconds)
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
        while not self._keeps_up((await self._during(1.0))[0], range(sick, SUBSCRIBERS)):
            if time.monotonic() > deadline:
                raise MeasuringError("those that are well still do not get everything at once")
        await self._ward.fall("well", 0)

    def _keeps_up(self, second: Sequence[tuple[int, float, float]], subscribers: range) -> bool:
        """Tell by a second's arrivals whether the load goes through again, all of it and at once."""
        delays = [at - sent for number, sent, at in second if number in subscribers]
        expected = self._rate * len(subscribers) / SUBSCRIBERS
        return len(delays) > expected / 2 and max(delays) < _CAUGHT_UP

    async def _during(self, seconds: float) -> tuple[list[tuple[int, float, float]], float]:
        """Let the load go on for so long; returns what arrived, and how long it was."""
        loop = asyncio.get_running_loop()
        await self._ward.arrivals()
        start = loop.time()
        await asyncio.sleep(seconds)
        return await self._ward.arrivals(), loop.time() - start

    def _note(
        self,
        sick: int,
        before: Sequence[tuple[int, float, float]],
        first: Sequence[tuple[int, float, float]],
        rest: Sequence[tuple[int, float, float]],
        seconds: float,
    ) -> None:
        well = range(sick, SUBSCRIBERS)
        was = _phase(before, well, self._plan.well)
        at_first = _phase(first, well, FIRST_SECONDS)
        then = _phase(rest, well, seconds)
        self.rows.append(
            Hardship(
                way=self._way,
                sick=sick,
                load=self._rate,
                samples=then.samples,
                before_p99_ms=was.p99,
                throughput=then.rate / was.rate,
                p99=then.p99 / was.p99,
                calm_p99=then.calm_p99 / was.calm_p99,
                first_throughput=at_first.rate / was.rate,
                first_p99=at_first.p99 / was.p99,
                taken=sum(number < sick for number, _, _ in rest) / seconds,
            )
        )
        self._tell("  ".join(_row(self.rows[-1])))

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


def _phase(
    arrivals: Sequence[tuple[int, float, float]], subscribers: range, seconds: float
) -> Phase:
    by_second: defaultdict[int, list[float]] = defaultdict(list)
    for number, sent, at in arrivals:
        if number in subscribers:
            by_second[int(at)].append(1000 * (at - sent))
    delays = [delay for second in by_second.values() for delay in second]
    if len(delays) < _FEWEST:
        raise MeasuringError("too little arrived at those that are well")
    return Phase(
        samples=len(delays),
        rate=len(delays) / seconds / len(subscribers),
        p99=_p99(delays),
        calm_p99=statistics.median(_p99(one) for one in by_second.values() if len(one) >= _FEWEST),
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


_HEADINGS: Final = (
    *("sick", "", "healthy: samples", "p99 before", "throughput", "p99"),
    *("median second's", "first 3 s: throughput", "p99", "sick take"),
)
_END_HEADINGS: Final = (
    *("sick", "memory before", "after", "put off", "publishes each", "at most", "doubled"),
    "full weight after",
)


def tables(found: Isolation) -> list[list[Sequence[str]]]:
    """Return the two tables, headings first."""
    return [
        [_HEADINGS, *(_row(one) for one in found.rows)],
        [_END_HEADINGS, *(_end(one) for one in found.ends)],
    ]


def _row(one: Hardship) -> Sequence[str]:
    return (
        _TITLES[one.way],
        str(one.sick),
        f"{one.samples:,}",
        f"{one.before_p99_ms:.1f} ms",
        f"{one.throughput:.1%}",
        f"{one.p99:.2f} x",
        f"{one.calm_p99:.2f} x",
        f"{one.first_throughput:.1%}",
        f"{one.first_p99:.2f} x",
        f"{one.taken:.1f}/s",
    )


def _end(one: Aftermath) -> Sequence[str]:
    return (
        _TITLES[one.way],
        f"{one.memory_before:.0f} MiB",
        f"{one.memory_after:.0f} MiB",
        f"{one.put_off:,}",
        f"{one.publishes:.2f}",
        str(one.most_publishes),
        str(one.doubled),
        "not in 2 min" if one.full_weight is None else f"{one.full_weight:.0f} s",
    )
