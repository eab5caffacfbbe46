"""Rounds beside each other: who goes on, where to, and what becomes of what cannot; on a fake clock."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from service import states as states_module
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


@pytest.mark.parametrize("first", ["intake", "backlog"])
@pytest.mark.parametrize(("new", "old"), [(60, 20), (38, 60)])
def test_lanes_take_turns_at_a_target_that_is_too_busy_for_both(first, new, old):
    it = Rig(answers_after({"s": 0.1}))
    subscription = wants("s", Target("https://s.example/", max_in_flight=4))
    budgets = {"intake": Budget("intake", 512, 128), "backlog": Budget("backlog", 256, 192)}
    rounds, came = {"intake": 1, "backlog": 2}, {"intake": 60 * new, "backlog": 60 * old}

    async def come(lane: str, rate: int) -> list[asyncio.Task[float]]:
        await asyncio.sleep(0.0 if lane == first else 0.5)
        carried = []
        for _ in range(came[lane]):
            told = it.carry(subscription, budgets[lane], round=rounds[lane])
            carried.append(asyncio.create_task(told))
            await asyncio.sleep(1 / rate)
        return carried

    async def course() -> None:
        for carried in await asyncio.gather(come("intake", new), come("backlog", old)):
            await asyncio.gather(*carried)

    it.run(course())
    for lane, round_ in rounds.items():
        put_off = sum(one.round == round_ for one in it.put)
        assert came[lane] - put_off > min(came[lane], 60 * 40 / 2) * 0.95, lane


@pytest.mark.parametrize(("targets", "at_once", "rate"), [(4, 1, 30), (2, 1, 15), (8, 2, 120)])
def test_a_line_for_several_targets_is_worked_off(targets, at_once, rate):
    it = Rig(answers_after({"s": 0.1}))
    subscription = wants(
        "s",
        *(Target(f"https://s{n}.example/", max_in_flight=at_once) for n in range(targets)),
    )
    budget = Budget("intake", 512, 128)

    async def course() -> None:
        for target in it.states.of(subscription).targets[1:]:
            target.throttled_until = it.clock.monotonic() + 2.0
        carried = []
        for _ in range(20 * rate):
            carried.append(asyncio.create_task(it.carry(subscription, budget)))
            await asyncio.sleep(1 / rate)
        took = await asyncio.gather(*carried)
        assert max(took[-5 * rate :]) < 0.11

    it.run(course())


def test_those_who_waited_for_room_keep_their_order():
    it = Rig(answers_after({"s": 0.25, "o": 1.0}))
    narrow = wants("s", Target("https://s.example/", max_in_flight=1))
    budget, ended = Budget("intake", 8, 8), []

    async def carry(number: int) -> None:
        await it.carry(narrow, budget)
        ended.append(number)

    async def course() -> None:
        others = [asyncio.create_task(it.carry(wants(f"o{n}"), budget)) for n in range(8)]
        await asyncio.sleep(0.1)
        carried = []
        for number in range(10):
            carried.append(asyncio.create_task(carry(number)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*carried, *others)

    it.run(course())
    assert ended == [*range(10)]
    assert not it.put


@pytest.mark.parametrize(("newcomers", "of_backlog"), [(60, 0), (0, 10)])
def test_nobody_in_line_makes_room_for_who_comes_later(newcomers, of_backlog):
    it = Rig(answers_after({"s": 0.1}))
    subscription = wants("s", Target("https://s.example/", max_in_flight=4))
    intake, backlog = Budget("intake", 512, 128), Budget("backlog", 256, 192)

    async def course() -> None:
        await it.carry(subscription, intake)  # it is known to take 40 a second
        carried = []
        for number in range(84):
            carried.append(asyncio.create_task(it.carry(subscription, intake, attempts=number)))
            await asyncio.sleep(0.0001)
        assert it.states.of(subscription).waiting_in("intake") == 80
        assert not it.put
        more = [it.carry(subscription, intake, attempts=100) for _ in range(newcomers)]
        more += [it.carry(subscription, backlog, attempts=100) for _ in range(of_backlog)]
        await asyncio.gather(*carried, *more)

    it.run(course())
    assert {one.attempts for one in it.put} <= {100}
    assert len(it.put) == newcomers


def test_those_in_line_go_on_when_a_pause_is_over():
    hanging, paused = (
        Target("https://h.example/", max_in_flight=1),
        Target("https://p.example/", max_in_flight=8),
    )
    takes = iter([0.1, 5.0])

    async def send(_: Subscription, target: Target) -> Outcome:
        seconds = next(takes) if target is hanging else 0.1
        await asyncio.sleep(seconds)
        return Answered(200, seconds)

    it = Rig(send)
    subscription, budget = wants("s", hanging, paused), Budget("intake", 512, 128)

    async def course() -> None:
        it.states.of(subscription).targets[1].throttled_until = it.clock.monotonic() + 0.5
        await it.carry(subscription, budget)
        carried = []
        for _ in range(15):
            carried.append(asyncio.create_task(it.carry(subscription, budget)))
            await asyncio.sleep(0.05)
        took = await asyncio.gather(*carried)
        assert sorted(took)[-2] < 0.7  # but for the one that hangs

    it.run(course())


@pytest.mark.parametrize("balance", [Balance.FAILOVER, Balance.WEIGHTED_ROUND_ROBIN])
def test_those_in_line_go_to_who_stands_in_where_the_first_is_full(balance):
    it = Rig(answers_after({"s": 0.1}))
    first = Target("https://a.example/", max_in_flight=1)
    second = Target("https://b.example/", max_in_flight=4, backup=balance is not Balance.FAILOVER)
    subscription, budget = wants("s", first, second, balance=balance), Budget("intake", 512, 128)

    async def course() -> None:
        it.states.of(subscription).targets[1].throttled_until = it.clock.monotonic() + 0.5
        burst = [asyncio.create_task(it.carry(subscription, budget)) for _ in range(18)]
        carried = []
        for _ in range(100):
            carried.append(asyncio.create_task(it.carry(subscription, budget)))
            await asyncio.sleep(0.1)
        await asyncio.gather(*burst)
        took = await asyncio.gather(*carried)
        assert max(took[20:]) < 0.2

    it.run(course())


@pytest.mark.parametrize("balance", [Balance.FAILOVER, Balance.WEIGHTED_ROUND_ROBIN])
def test_standbys_that_are_slow_at_work_have_the_room_of_the_slow(balance):
    is_backup = balance is not Balance.FAILOVER

    async def send(_: Subscription, target: Target) -> Outcome:
        if target.url.startswith("https://first"):
            return Answered(404, 0.01)
        await asyncio.sleep(5.0)
        return Answered(200, 5.0)

    it = Rig(send)
    budget = Budget("intake", 64, 16)
    subscriptions = [
        wants(
            f"s{n}",
            Target(f"https://first-{n}.example/", max_in_flight=64),
            Target(f"https://second-{n}.example/", max_in_flight=64, backup=is_backup),
            balance=balance,
        )
        for n in range(8)
    ]

    async def course() -> None:
        carried, most = [], 0
        for tick in range(300):
            carried += [asyncio.create_task(it.carry(one, budget)) for one in subscriptions]
            await asyncio.sleep(0.2)
            if tick > 50:  # they are known
                most = max(most, budget.in_use)
        await asyncio.gather(*carried)
        assert 12 <= most <= 20

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


def test_of_very_many_unknown_subscriptions_all_are_given_up_in_the_end(monkeypatch):
    monkeypatch.setattr(states_module, "MISSED_KEPT", 10)
    states, hours, given_up = States(1), 0, set[str]()
    names = {f"s{n}" for n in range(35)}
    while given_up < names:
        assert hours < 4
        for minute in range(0, 60, 10):
            now = 3600.0 * hours + 60.0 * minute
            left = sorted(names - given_up)
            given_up |= {name for name in left if states.missed_for(name, now) > 0.0}
        hours += 1
    assert hours == 4


A, B = Target("https://a.example/"), Target("https://b.example/")
BACKUP = Target("https://b.example/", backup=True)
who_stands_in = pytest.mark.parametrize(
    "subscription",
    [wants("s", A, BACKUP), wants("s", A, B, balance=Balance.FAILOVER)],
    ids=["backup", "failover"],
)
"""Subscriptions whose second target stands in for the first."""


@who_stands_in
def test_a_lane_full_of_others_sends_nothing_to_who_stands_in(subscription):
    states, budget = States(1), Budget("intake", 512, 128, in_use=508)
    state = states.of(subscription)
    for _ in range(2):
        state.targets[0].begin(0.0)
        budget.hold(state.targets[0])
    assert budget.open_to(state, 0.0) == Unavailable(DeferCause.SATURATED, 0.0)


@who_stands_in
def test_one_who_stands_in_and_was_slow_once_makes_nobody_slow(subscription):
    states, budget = States(1), Budget("intake", 512, 128, slow_in_use=128)
    state = states.of(subscription)
    first, second = state.targets
    for target, seconds in ((first, 0.01), (second, 5.0)):
        ticket = target.begin(0.0)
        target.end(ticket, Answered(200, seconds), seconds, 0.0)
    assert not state.is_slow(60.0)
    assert budget.open_to(state, 60.0) == [first]
    first.ejected_until = 90.0
    assert state.is_slow(60.0)
    assert budget.open_to(state, 60.0) == Unavailable(DeferCause.SLOW, 60.0)


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
