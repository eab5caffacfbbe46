"""Rounds under loads drawn at random, on a fake clock: nobody is forgotten in a line, and nothing is left held."""

import asyncio
from random import Random

import pytest

from service.budget import Budget
from service.core.delivery import Answered, Outcome
from service.core.subscription import Balance, Subscription, Target
from tests.test_rounds import Rig, wants

SECONDS = 20.0
LOOK = 0.01
FORGOTTEN = 0.6
"""Seconds in line beside an open target and in a lane with room: far more than an attempt takes as a rule."""


class Load:
    """Subscriptions, targets and lanes as a seed has them."""

    def __init__(self, seed: int) -> None:
        self.draw = Random(seed)
        self.lanes = [
            Budget("intake", self.draw.choice([2, 4, 16, 64]), 4),
            Budget("backlog", self.draw.choice([2, 8, 32]), 4),
        ]
        self._kinds: dict[str, tuple[float, float]] = {}
        self.subscriptions = [
            self._subscription(number) for number in range(self.draw.randint(1, 6))
        ]

    def _subscription(self, number: int) -> Subscription:
        draw, name = self.draw, f"s{number}"
        targets = []
        for place in range(draw.randint(1, 5)):
            url = f"https://{name}-{place}.example/"
            self._kinds[url] = draw.choice([0.01, 0.05, 0.2, 0.5]), draw.choice([0, 0, 0.02, 0.2])
            is_backup = place > 0 and draw.random() < 0.2
            at_once = draw.choice([1, 1, 2, 4, 16])
            targets.append(Target(url, max_in_flight=at_once, backup=is_backup))
        limit = draw.choice([None, None, None, 20.0])
        return wants(name, *targets, balance=draw.choice(list(Balance)), rate_limit=limit)

    async def send(self, _: Subscription, target: Target) -> Outcome:
        mean, failing = self._kinds[target.url]
        seconds, fate = self.draw.expovariate(1 / mean), self.draw.random()
        await asyncio.sleep(seconds)
        if fate < failing:
            return Answered(503, seconds)
        if fate < 2 * failing:
            return Answered(429, seconds, self.draw.choice([1.0, 2.0, None]))
        return Answered(200, seconds)


def in_vain(it: Rig, load: Load) -> set[tuple[str, str]]:
    """Return lanes and subscriptions with a line that stands although a delivery of it could go on."""
    now = it.clock.monotonic()
    return {
        (lane.lane, one.id)
        for lane in load.lanes
        for one in load.subscriptions
        if it.states.of(one).waiting_in(lane.lane)
        and lane.in_use < lane.limit
        and isinstance(lane.open_to(it.states.of(one), now), list)
    }


@pytest.mark.parametrize("seed", range(24))
def test_nobody_is_forgotten_in_a_line_and_nothing_is_left_held(seed):
    load = Load(seed)
    it = Rig(load.send)

    async def look() -> None:
        since: dict[tuple[str, str], float] = {}
        while (now := it.clock.seconds) < SECONDS:
            since = {who: since.get(who, now) for who in in_vain(it, load)}
            assert all(now - began <= FORGOTTEN for began in since.values()), since
            await asyncio.sleep(LOOK)

    async def course() -> None:
        looking, carried = asyncio.create_task(look()), []
        while it.clock.seconds < SECONDS:
            one, lane = load.draw.choice(load.subscriptions), load.draw.choice(load.lanes)
            carried.append(asyncio.create_task(it.carry(one, lane, round=load.draw.choice([1, 2]))))
            await asyncio.sleep(load.draw.expovariate(load.draw.choice([20, 80, 200])))
        await asyncio.gather(looking, *carried)

    it.run(course())
    for lane in load.lanes:
        assert (lane.in_use, lane.slow_in_use) == (0, 0)
        assert not lane._held
    for one in load.subscriptions:
        state = it.states.of(one)
        assert not any(state.waiting_in(lane.lane) for lane in load.lanes)
        assert not any(target.in_flight for target in state.targets)
