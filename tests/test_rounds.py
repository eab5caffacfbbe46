"""Rounds beside each other: who goes on, where to, and what becomes of what cannot; on a fake clock."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from service.budget import Budget
from service.core.delivery import (
    Answered,
    Burial,
    DeferCause,
    Delivery,
    Failed,
    FailureKind,
    Outcome,
    Reason,
)
from service.core.event import Event
from service.core.health import Unavailable
from service.core.subscription import Balance, Subscription, Target
from service.deliver import UNKNOWN_DEFERRALS, Deliverer
from service.prepared import Prepared
from service.report import Reporter
from service.states import States
from tests.fake_broker import FakeClock, Log, Meter, run

EVENT = Event("an-event-of-some-rounds", "a.b", "shop", "2030-01-01T00:00:00Z", 0.0, b"1")
Send = Callable[[Subscription, Target], Awaitable[Outcome]]


def wants(name: str = "s", *targets: Target, **settings: Any) -> Subscription:
    return Subscription(name, ("#",), targets or (Target(f"https://{name}.example/"),), **settings)


class Here:
    """A message whose channel is there."""

    lost = False


class Rig:
    """Real rounds; the sender and the outbox are stood in for."""

    def __init__(self, send: Send | None = None) -> None:
        self.clock = FakeClock()
        self.states = States(1)
        self.put: list[Delivery] = []
        self.buried: list[Reason] = []
        self._send = send
        self.deliverer = Deliverer(self, self, self.states, self.clock, Reporter(Log(), Meter()))

    async def send(self, *, subscription: Subscription, target: Target, **_: Any) -> Outcome:
        assert self._send is not None
        return await self._send(subscription, target)

    async def put_off(self, delivery: Delivery, at: float) -> bool:
        self.put.append(delivery)
        return True

    async def bury(self, delivery: Delivery, reason: Reason, at: float) -> Burial:
        self.buried.append(reason)
        return Burial.DONE

    async def carry(
        self, subscription: Subscription | None, budget: Budget, **delivery: Any
    ) -> float:
        """Carry one delivery through a round; returns how many seconds it took."""
        began = self.clock.seconds
        name = subscription.id if subscription else "unknown"
        it = Delivery(EVENT, name, self.clock.now(), **delivery)
        prepared = Prepared(EVENT, lambda *_: b"")
        await self.deliverer.carry(it, subscription, prepared, budget, Here())
        return self.clock.seconds - began

    def run(self, course: Coroutine[Any, Any, None]) -> None:
        random.seed(7)
        run(course, self.clock)


def answers_after(seconds: dict[str, float]) -> Send:
    """Return a sender to targets that answer after so many seconds, by the first letter of their subscription."""

    async def send(subscription: Subscription, _: Target) -> Outcome:
        await asyncio.sleep(seconds[subscription.id[0]])
        return Answered(200, seconds[subscription.id[0]])

    return send


def test_who_had_to_wait_goes_on_as_soon_as_there_is_room_for_many():
    it = Rig(answers_after({"s": 0.1, "o": 0.6}))
    subscription = wants()
    others = [
        wants(f"o{n}", Target(f"https://o{n}.example/", max_in_flight=999)) for n in range(40)
    ]
    budget = Budget("intake", 64, 64)

    async def course() -> None:
        carried: list[asyncio.Task[float]] = []
        for tick in range(360):  # 60 a second, to a target that takes 320
            carried.append(asyncio.create_task(it.carry(subscription, budget)))
            if tick == 60:  # others fill the lane for a second
                filling = [asyncio.create_task(it.carry(o, budget)) for o in others * 2]
            await asyncio.sleep(1 / 60)
        await asyncio.gather(*filling)
        took = [await one for one in carried]
        assert max(took[180:]) < 0.2

    it.run(course())
    assert not [one for one in it.put if one.subscription_id == "s"]


def test_retries_that_wait_for_their_own_lane_hold_up_no_first_attempts():
    it = Rig(answers_after({"s": 0.05, "o": 0.9}))
    subscription = wants("s", Target("https://s.example/", max_in_flight=64))
    others = [
        wants(f"o{n}", Target(f"https://o{n}.example/", max_in_flight=999)) for n in range(40)
    ]
    intake, backlog = Budget("intake", 512, 128), Budget("backlog", 64, 64)

    async def busy() -> None:
        for _ in range(16):
            filling.extend(asyncio.create_task(it.carry(other, backlog)) for other in others)
            await asyncio.sleep(0.55)

    filling: list[asyncio.Task[float]] = []

    async def course() -> None:
        first: list[asyncio.Task[float]] = []
        keeping_busy = asyncio.create_task(busy())
        for tick in range(8 * 300):
            first.append(asyncio.create_task(it.carry(subscription, intake)))
            if tick == 600:
                retries = [
                    asyncio.create_task(it.carry(subscription, backlog, round=2)) for _ in "123"
                ]
            await asyncio.sleep(1 / 300)
        await keeping_busy
        await asyncio.gather(*filling, *retries)
        assert max([await one for one in first]) < 0.3

    it.run(course())


def test_a_line_that_has_gone_on_meanwhile_is_not_waited_for():
    it = Rig(answers_after({"h": 0.3, "s": 0.05, "k": 0.12, "x": 0.1, "y": 0.1}))
    h, k, x, y = (
        wants(name, Target(f"https://{name}.example/", max_in_flight=99)) for name in "hkxy"
    )
    narrow = wants("s", Target("https://s.example/", max_in_flight=1))
    budget = Budget("intake", 3, 3)

    async def course() -> None:
        tasks = []
        for subscription, pause in (
            (h, 0.0), (narrow, 0.01), (narrow, 0.01), (k, 0.005), (x, 0.0), (narrow, 0.0), (y, 0.0),
        ):  # fmt: skip
            tasks.append(asyncio.create_task(it.carry(subscription, budget)))
            await asyncio.sleep(pause)
        it.states.of(x).targets[0].ejected_until = it.clock.monotonic() + 20.0
        assert max(await asyncio.gather(*tasks)) < 1.0

    it.run(course())


def test_an_attempt_that_fails_while_its_target_is_drained_is_retried():
    subscription = wants()

    async def send(*_: Any) -> Outcome:
        it.states.of(wants("s", Target("https://s.example/", weight=0)))
        return Answered(503, 0.1)

    it = Rig(send)

    async def course() -> None:
        await it.carry(subscription, Budget("intake", 8, 8))

    it.run(course())
    assert not it.buried
    assert [one.round for one in it.put] == [2]


def test_a_delivery_that_was_put_off_for_other_reasons_gives_a_new_subscription_its_time():
    it = Rig()
    budget = Budget("backlog", 8, 8)

    async def course() -> None:
        await it.carry(None, budget, deferrals=UNKNOWN_DEFERRALS)
        assert not it.buried
        await asyncio.sleep(121.0)
        await it.carry(None, budget, deferrals=UNKNOWN_DEFERRALS - 1)
        assert not it.buried
        await it.carry(None, budget, deferrals=UNKNOWN_DEFERRALS)

    it.run(course())
    assert it.buried == [Reason.SUBSCRIPTION_REMOVED]


A, B = Target("https://a.example/"), Target("https://b.example/")
BACKUP = Target("https://b.example/", backup=True)


@pytest.mark.parametrize(
    "subscription",
    [wants("s", A, BACKUP), wants("s", A, B, balance=Balance.FAILOVER)],
    ids=["backup", "failover"],
)
def test_a_lane_full_of_others_sends_nothing_to_who_stands_in(subscription):
    states, budget = States(1), Budget("intake", 512, 128, in_use=508)
    state = states.of(subscription)
    for _ in range(2):
        state.targets[0].begin(0.0)
        budget.hold(state.targets[0])
    assert budget.open_to(state, 0.0) == Unavailable(DeferCause.SATURATED, 0.0)


def test_a_lane_counts_its_own_attempts_only():
    states, budget = States(1), Budget("backlog", 8, 8, in_use=4)
    state = states.of(wants())
    for _ in range(5):
        state.targets[0].begin(0.0)
    assert budget.open_to(state, 0.0) == state.targets
    budget.hold(state.targets[0])
    budget.hold(state.targets[0])
    assert budget.open_to(state, 0.0) == Unavailable(DeferCause.SATURATED, 0.0)
    budget.release(state.targets[0])
    assert budget.open_to(state, 0.0) == state.targets


def test_a_round_ends_in_time_for_the_broker_whatever_becomes_of_its_attempts():
    slow = Failed(FailureKind.TIMEOUT, "no answer", 599.0)
    stale = Failed(FailureKind.RESET, "a reused connection died", 350.0, stale_connection=True)
    outcomes = [slow, slow, stale, slow]

    async def send(*_: Any) -> Outcome:
        outcome = outcomes.pop(0)
        await asyncio.sleep(outcome.duration)
        return outcome

    it = Rig(send)
    targets = [Target(f"https://{name}.example/") for name in "abcd"]

    async def course() -> None:
        took = await it.carry(wants("s", *targets, timeout=600.0), Budget("intake", 8, 8))
        assert took < 1700.0

    it.run(course())
    assert [one.round for one in it.put] == [2]
