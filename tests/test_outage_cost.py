"""What an outage costs the broker, and how it ends, on a fake clock.

One target is down for an hour.  Each delivery that is put off is published again and again until it can
be delivered; the laws bound how often, since a backlog of a million pays for every one of these.
"""

import asyncio
import math
import random
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp.commands import Basic

from service.core import schedule
from service.core.delivery import Answered, Failed, FailureKind, Outcome
from service.core.health import FULL_WEIGHT
from service.core.subscription import Subscription, Target
from tests.fake_broker import EPOCH, Process, World, run, standing_in

MINUTE, HALF_AN_HOUR, HOUR = 60.0, 1800.0, 3600.0
MOST_IN_A_MINUTE = 3
MOST_IN_AN_HOUR = 12

URL = "https://a.example/"
OK = Answered(200, 0.01)
ORDERS = Subscription("a", ("order.#",), (Target(URL),))

Down = Callable[[], Outcome]
DOWN: dict[str, Down] = {
    "refuses connections": lambda: Failed(FailureKind.CONNECT, "refused", 0.001),
    "answers 503": lambda: Answered(503, 0.05),
    "hangs": lambda: Failed(FailureKind.TIMEOUT, "no answer", 15.0),
    "throttles for a second": lambda: Answered(429, 0.01, retry_after=1.0),
    "throttles for 20 s": lambda: Answered(429, 0.01, retry_after=20.0),
    "throttles for 2 min": lambda: Answered(429, 0.01, retry_after=120.0),
    "is unavailable for 10 min": lambda: Answered(503, 0.01, retry_after=600.0),
    "asks for 5 s with a 404": lambda: Answered(404, 0.01, retry_after=5.0),
}


@dataclass
class Outage:
    """One subscription whose target is down for a while; everything that the broker was asked to do."""

    world: World
    published: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(
        cls, subscription: Subscription, down: Down, *, seconds: float = HOUR, only: str = ""
    ) -> "Outage":
        """Return one whose targets are down for so many seconds, or `only` one of them is."""

        def answer(url: str, _event_id: str, _nth: int) -> Outcome:
            return down() if world.clock.seconds < seconds and only in url else OK

        world = World([subscription], answer)
        it = cls(world)
        world.broker.on_publish = it._note
        return it

    def arrive(self, number: int) -> None:
        """Let an event come in."""
        event_id = f"event-{number:05}-of-an-outage"
        told = Basic.Properties(
            message_id=event_id, message_type="order.created", app_id="shop", delivery_mode=2,
            timestamp=datetime.fromtimestamp(EPOCH, UTC),
        )  # fmt: skip
        body = b'{"event": "%b"}' % event_id.encode()
        self.world.broker.publish("events", "order.created", body, told)

    async def until_rest(self) -> None:
        """Wait until nothing is on its way."""
        rested = asyncio.Event()
        self.world.broker.on_rest = rested.set
        if self.world.broker.passing:
            await rested.wait()

    def most(self, within: float) -> int:
        """Return how often the dispatcher published the delivery that it published most often."""
        return max((bisect_left(times, within) for times in self.published.values()), default=0)

    @property
    def accepted(self) -> list[str]:
        return [one.event_id for one in self.world.receivers.requests if one.accepted]

    def _note(self, told: Basic.Properties) -> None:
        headers = told.headers or {}
        self.published[str(headers["event-id"])].append(self.world.clock.seconds)


def play(it: Outage, body: Callable[[Process], Coroutine[Any, Any, None]], **process: Any) -> None:
    """Run a course with one dispatcher; `process` are its bounds."""
    random.seed(7)

    async def course() -> None:
        async with asyncio.timeout(100 * HOUR):
            await body(Process(it.world, "amqp://dispatcher/", **process))

    with standing_in(it.world.broker):
        run(course(), it.world.clock)
    assert not it.world.log.faults


def outage(down: Down, deliveries: int) -> Outage:
    """Return what an outage of an hour was like, over which so many deliveries had piled up."""
    it = Outage.of(ORDERS, down)

    async def body(_: Process) -> None:
        for number in range(deliveries):
            it.arrive(number)
        await it.until_rest()

    play(it, body, prefetch=1024, attempts=512, slow=128)
    return it


def check_cost(it: Outage) -> None:
    assert sorted(it.accepted) == sorted(it.published)
    assert it.most(MINUTE) <= MOST_IN_A_MINUTE
    assert it.most(HOUR) <= MOST_IN_AN_HOUR


@pytest.mark.parametrize("down", DOWN)
def test_one_delivery_costs_few_publishes_in_an_outage(down: str):
    check_cost(outage(DOWN[down], 1))


@pytest.mark.parametrize("down", DOWN)
def test_each_of_many_deliveries_costs_few_publishes_in_an_outage(down: str):
    it = outage(DOWN[down], 500)
    assert len(it.published) == 500
    check_cost(it)


@pytest.mark.parametrize("deliveries", [1, 500])
def test_a_pause_costs_few_publishes(deliveries: int):
    paused = replace(ORDERS, enabled=False)
    it = Outage.of(paused, lambda: OK)

    async def body(_: Process) -> None:
        for number in range(deliveries):
            it.arrive(number)
        await asyncio.sleep(HOUR)
        it.world.put_in_force([ORDERS])
        await it.until_rest()

    play(it, body, prefetch=1024, attempts=512, slow=128)
    assert len(it.published) == deliveries
    check_cost(it)


def slow_returns(monkeypatch, subscription: Subscription) -> Outage:
    """Return an outage of two minutes with 300 deliveries put off, of which ten a second may come back."""
    monkeypatch.setattr(schedule, "RETURN_RATE", 10.0)
    it = Outage.of(subscription, DOWN["refuses connections"], seconds=2 * MINUTE)

    async def body(_: Process) -> None:
        for number in range(300):
            it.arrive(number)
        await it.until_rest()

    play(it, body, prefetch=1024, attempts=512, slow=128)
    return it


def test_a_backlog_comes_back_in_line(monkeypatch):
    it = slow_returns(monkeypatch, ORDERS)
    assert len(it.accepted) == 300
    again = [times[1] for times in it.published.values()]
    back = [
        at for at in again if at > 10.0
    ]  # the few that were tried come back sooner, for a retry
    assert len(back) > 250
    assert max(back) - min(back) > 25.0  # without a line it is 20 s
    assert max(Counter(map(int, back)).values()) <= 2 * 10


def test_the_line_puts_nothing_off_past_its_age(monkeypatch):
    hasty = replace(ORDERS, retry=replace(ORDERS.retry, max_age=35.0))
    monkeypatch.setattr(schedule, "EJECTED_BASE", 5.0)
    it = slow_returns(monkeypatch, hasty)
    assert all(times[0] < 1.0 and len(times) > 1 for times in it.published.values())


@pytest.mark.parametrize("down", ["refuses connections", "answers 503", "throttles for a second"])
def test_what_waits_for_a_target_that_comes_back_before_it_expires_is_delivered(down: str):
    retry = replace(ORDERS.retry, schedule=(1.0,) * 50, max_age=30.0)
    it = Outage.of(replace(ORDERS, retry=retry), DOWN[down], seconds=12.0)

    async def body(_: Process) -> None:
        for number in range(50):
            it.arrive(number)
        await it.until_rest()

    play(it, body, prefetch=1024, attempts=512, slow=128)
    assert len(set(it.accepted)) == 50


@pytest.mark.parametrize("max_age", [15.0, 60.0, 3000.0])
def test_what_waits_for_a_pause_to_end_waits_as_long_as_it_may(max_age: float):
    paused = replace(ORDERS, enabled=False, retry=replace(ORDERS.retry, max_age=max_age))
    it = Outage.of(paused, lambda: OK)

    async def body(_: Process) -> None:
        for number in range(50):
            it.arrive(number)
        await it.until_rest()

    play(it, body, prefetch=1024, attempts=512, slow=128)
    ends = [times[-1] for times in it.published.values()]
    assert len(ends) == 50
    assert max_age <= min(ends)
    assert max(ends) <= max_age + 3.0
    assert it.most(MINUTE) <= MOST_IN_A_MINUTE


def weight_of(process: Process, subscription: Subscription) -> int:
    """Return the weight in hundredths that the first target has now, 0 while it is out."""
    target = process.states.of(subscription).targets[0]
    now = process.world.clock.monotonic()
    return target.effective_weight(now) if target.health == "healthy" else 0


async def until_full_weight(process: Process, subscription: Subscription) -> None:
    """Wait until the first target has its whole weight again."""
    while True:
        if weight_of(process, subscription) == FULL_WEIGHT:
            return
        await asyncio.sleep(0.5)


BACK_AT = [HOUR + offset for offset in (0.0, 7.0, 13.0, 22.0)]
"""Wherever in a window an outage ends, and while a probe hangs."""


@pytest.mark.parametrize("back_at", BACK_AT)
@pytest.mark.parametrize("down", ["refuses connections", "answers 503", "hangs"])
def test_a_target_that_was_out_for_an_hour_has_its_full_weight_within_a_minute(
    down: str, back_at: float
):
    both = replace(ORDERS, targets=(Target(URL), Target("https://b.example/")))
    it = Outage.of(both, DOWN[down], seconds=back_at, only=URL)
    taken: list[float] = []

    async def body(process: Process) -> None:
        for number in range(round(back_at)):
            it.arrive(number)
            await asyncio.sleep(1.0)
        arriving = asyncio.create_task(steadily(it, round(back_at)))
        await until_full_weight(process, both)
        taken.append(it.world.clock.seconds - back_at)
        arriving.cancel()
        await it.until_rest()

    play(it, body)
    assert taken[0] <= MINUTE
    assert len(it.accepted) == len(set(it.accepted))
    assert not it.published  # what one target cannot take the other takes at once
    probes = sum(1 for r in it.world.receivers.requests if r.url == URL and r.at < back_at)
    assert probes <= 4 * back_at / MINUTE  # and it is not hammered while it is down


@pytest.mark.parametrize("back_at", BACK_AT)
@pytest.mark.parametrize("down", ["answers 503", "hangs"])
def test_what_waits_for_it_brings_a_target_back_within_a_minute_without_a_new_event(
    down: str, back_at: float
):
    it = Outage.of(ORDERS, DOWN[down], seconds=back_at)
    taken: list[float] = []

    async def body(process: Process) -> None:
        for number in range(500):
            it.arrive(number)
        await asyncio.sleep(back_at)
        await until_full_weight(process, ORDERS)
        taken.append(it.world.clock.seconds - back_at)
        await it.until_rest()

    play(it, body, prefetch=1024, attempts=512, slow=128)
    assert taken[0] <= MINUTE
    assert len(it.accepted) == len(set(it.accepted)) == 500
    late = sum(r.at > back_at + HALF_AN_HOUR for r in it.world.receivers.requests if r.accepted)
    assert late <= 25  # what was used to probe with waits for its next round


@dataclass
class Limit:
    """A receiver that takes so many a second, after a burst of one second's worth, and answers the rest 429."""

    world: World
    rate: float
    pause: float | None
    tokens: float = 0.0
    filled_at: float = 0.0

    def answer(self, _url: str, _event_id: str, _nth: int) -> Outcome:
        now = self.world.clock.seconds
        earned = (now - self.filled_at) * self.rate
        self.tokens, self.filled_at = min(max(self.rate, 1.0), self.tokens + earned), now
        if self.tokens < 1.0:
            return Answered(429, 0.01, retry_after=self.pause)
        self.tokens -= 1.0
        return OK


@pytest.mark.parametrize(
    ("rate", "pause", "offered"),
    [
        (5.0, 1.0, 100),
        (5.0, 2.0, 100),
        (5.0, 2.0, 8),
        (100.0, 1.0, 300),
        (1.0, 10.0, 30),
        (5.0, None, 50),
    ],
)
def test_a_target_that_throttles_gets_most_of_what_it_takes_and_is_not_ejected(
    rate: float, pause: float | None, offered: int
):
    it = Outage.of(ORDERS, lambda: OK)
    limit = Limit(it.world, rate, pause, tokens=rate)
    it.world.receivers.answer = limit.answer
    changes: list[str] = []

    async def body(process: Process) -> None:
        for number in range(3 * round(MINUTE) * offered):
            it.arrive(number)
            if number % offered == 0:
                changes.append(process.states.of(ORDERS).targets[0].health)
            await asyncio.sleep(1 / offered)

    play(it, body, prefetch=1024, attempts=512, slow=128)
    last_two_minutes = sum(r.accepted and r.at >= MINUTE for r in it.world.receivers.requests)
    assert last_two_minutes >= 0.6 * rate * 2 * MINUTE
    assert set(changes) == {"healthy"}
    assert it.most(MINUTE) <= MOST_IN_A_MINUTE + 1  # with a retry by schedule
    refused = sum(not r.accepted for r in it.world.receivers.requests)
    assert refused <= 0.15 * len(it.accepted)
    assert len(it.accepted) == len(set(it.accepted))


def test_what_was_put_off_before_it_was_known_what_a_target_takes_comes_back_in_line():
    it = Outage.of(ORDERS, lambda: OK)
    it.world.receivers.answer = Limit(it.world, 5.0, pause=2.0, tokens=5.0).answer

    async def body(_: Process) -> None:
        for number in range(6 * 1000):
            it.arrive(number)
            await asyncio.sleep(1 / 1000)

    play(it, body, prefetch=1024, attempts=512, slow=128)
    again = Counter(int(at) for times in it.published.values() for at in times[1:])
    assert max(again.values()) <= 1.5 * schedule.RETURN_RATE


async def steadily(it: Outage, number: int) -> None:
    """Let an event come in every second."""
    while True:
        it.arrive(number)
        number += 1
        await asyncio.sleep(1.0)


@pytest.mark.parametrize("latency", [0.1, 0.3])
def test_a_backlog_for_a_saturated_target_goes_round_the_broker_about_once_a_delivery(
    latency: float,
):
    narrow = replace(ORDERS, targets=(Target(URL, max_in_flight=4),))
    it = Outage.of(narrow, lambda: Answered(200, latency), seconds=math.inf)

    async def body(_: Process) -> None:
        for number in range(5000):
            it.arrive(number)
        await it.until_rest()

    play(it, body, prefetch=1024, attempts=512, slow=128)
    assert len(it.accepted) == len(set(it.accepted)) == 5000
    assert sum(map(len, it.published.values())) <= 1.2 * 5000
    assert it.world.clock.seconds <= 1.2 * 5000 * latency / 4
