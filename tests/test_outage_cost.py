"""What an outage costs the broker, and how it ends, on a fake clock.

One target is down for an hour.  Each delivery that is put off is published again and again until it can
be delivered; the laws bound how often, since a backlog of a million pays for every one of these.
"""

import asyncio
import math
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp.commands import Basic

from service.core.delivery import Answered, Failed, FailureKind, Outcome
from service.core.subscription import Subscription, Target
from tests.fake_broker import EPOCH, NAMES, Process, World, run, standing_in

MINUTE, HOUR = 60.0, 3600.0
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
    def of(cls, subscription: Subscription, down: Down, seconds: float = HOUR) -> "Outage":
        def answer(_url: str, _event_id: str, _nth: int) -> Outcome:
            return down() if world.clock.seconds < seconds else OK

        world = World([subscription], answer)
        it = cls(world)
        world.broker.on_publish = it._note
        world.broker.on_rest = lambda: None
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
        while self.world.broker.passing:
            await asyncio.sleep(1.0)

    def most(self, within: float) -> int:
        """Return how often the dispatcher published the delivery that it published most often."""
        return max((bisect_left(times, within) for times in self.published.values()), default=0)

    @property
    def accepted(self) -> list[str]:
        return [one.event_id for one in self.world.receivers.requests if one.accepted]

    def _note(self, told: Basic.Properties) -> None:
        headers = told.headers or {}
        self.published[str(headers["event-id"])].append(self.world.clock.seconds)


def play(it: Outage, body: Callable[[Process], Any], **process: Any) -> None:
    random.seed(7)

    async def course() -> None:
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


@pytest.mark.parametrize("deliveries", [1, 500])
@pytest.mark.parametrize("down", DOWN)
def test_a_delivery_costs_few_publishes_in_an_outage(down: str, deliveries: int):
    it = outage(DOWN[down], deliveries)
    print(
        down,
        deliveries,
        it.most(MINUTE),
        it.most(HOUR),
        sum(bisect_left(x, HOUR) for x in it.published.values()) / deliveries,
        it.world.clock.seconds - HOUR,
        len(it.accepted),
        len(it.world.receivers.requests),
    )
    print(max(it.published.values(), key=lambda x: bisect_left(x, MINUTE))[:16])
    assert len(it.accepted) == len(set(it.accepted)) == deliveries
    assert it.most(MINUTE) <= MOST_IN_A_MINUTE
    assert it.most(HOUR) <= MOST_IN_AN_HOUR
