"""Bursts of what can wait are spread over turns of the event loop, in order, and all of them end."""

import asyncio
from typing import Any

from service.budget import Budget
from service.clock import SystemClock
from service.core.delivery import Delivery
from service.core.event import Event
from service.core.subscription import Subscription, Target
from service.deliver import Deliverer
from service.report import Reporter
from service.states import States
from service.turns import AT_ONCE, SHARE, Turns
from tests.fake_broker import Log, Meter


async def one_turn() -> None:
    """Let the event loop make one turn: what is tested here is how much is done in each."""
    await asyncio.sleep(0)


class Pieces:
    """Pieces of work that wait for their turns, and what had been let through by which turn of the loop."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.done: list[int] = []

    async def work(self, number: int) -> None:
        """Do one piece."""
        await self._turns.turn()
        self.done.append(number)

    async def by_turn(self, pieces: int) -> list[int]:
        """Begin so many pieces at once; returns how many were done in each turn of the loop until all were."""
        tasks = [asyncio.create_task(self.work(number)) for number in range(pieces)]
        counts = []
        while len(self.done) < pieces:
            before = len(self.done)
            await one_turn()
            counts.append(len(self.done) - before)
            assert len(counts) < 10 * pieces, "some pieces are never let through"
        await asyncio.gather(*tasks)
        return counts


def test_a_few_pieces_go_on_at_once():
    assert asyncio.run(Pieces(Turns()).by_turn(AT_ONCE)) == [AT_ONCE]


def test_a_burst_is_spread_over_turns_in_the_order_in_which_it_came():
    pieces = Pieces(Turns())
    counts = asyncio.run(pieces.by_turn(5 * AT_ONCE))
    assert max(counts) == AT_ONCE
    assert pieces.done == list(range(5 * AT_ONCE))


def test_a_long_line_goes_on_by_a_share_of_it_and_so_never_grows_without_end():
    burst = 10 * SHARE * AT_ONCE
    counts = asyncio.run(Pieces(Turns()).by_turn(burst))
    assert max(counts) <= burst // SHARE
    assert len(counts) < burst // AT_ONCE / 2


def test_what_comes_later_waits_behind_what_waits():
    async def both() -> list[int]:
        turns = Turns()
        pieces = Pieces(turns)
        first = [asyncio.create_task(pieces.work(number)) for number in range(3 * AT_ONCE)]
        await one_turn()
        last = asyncio.create_task(pieces.work(99))
        await asyncio.gather(*first, last)
        return pieces.done

    assert asyncio.run(both())[-1] == 99


def test_one_that_is_cancelled_takes_nobody_s_turn():
    async def some() -> tuple[int, list[int]]:
        pieces = Pieces(Turns())
        tasks = [asyncio.create_task(pieces.work(number)) for number in range(3 * AT_ONCE)]
        await one_turn()
        for task in tasks[AT_ONCE : 2 * AT_ONCE]:
            task.cancel()
        await one_turn()
        await one_turn()
        at_once = len(pieces.done)
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
        return at_once, pieces.done

    expected = [*range(AT_ONCE), *range(2 * AT_ONCE, 3 * AT_ONCE)]
    assert asyncio.run(some()) == (len(expected), expected)


def test_turns_that_have_come_to_rest_begin_anew():
    async def twice() -> tuple[list[int], list[int]]:
        turns = Turns()
        return await Pieces(turns).by_turn(3 * AT_ONCE), await Pieces(turns).by_turn(3 * AT_ONCE)

    first, second = asyncio.run(twice())
    assert max(first) == max(second) == AT_ONCE


class Outbox:
    """Counts what is put off; nothing is ever confirmed."""

    def __init__(self) -> None:
        self.came = 0

    async def put_off(self, *_: object) -> bool:
        self.came += 1
        return False


class Arrived:
    """A message whose channel is there."""

    lost = False


def test_what_the_intake_puts_off_in_a_burst_is_published_over_turns():
    async def came() -> list[int]:
        outbox: Any = Outbox()
        nothing: Any = None
        clock = SystemClock()
        paused = Subscription("a", ("#",), (Target("https://a.example/"),), enabled=False)
        reporter = Reporter(Log(), Meter())
        deliverer = Deliverer(nothing, outbox, States(1), clock, reporter)
        event = Event("1", "order.created", "shop", "2027-01-15T08:00:00Z", 1.8e9, b"{}")
        budget = Budget("intake", 1000, 25)
        carried = (
            deliverer.carry(Delivery(event, "a", clock.now()), paused, nothing, budget, Arrived())
            for _ in range(3 * AT_ONCE)
        )
        tasks = [asyncio.create_task(one) for one in carried]
        await one_turn()
        counts = [outbox.came]
        await asyncio.gather(*tasks)
        return [*counts, outbox.came]

    assert asyncio.run(came()) == [AT_ONCE, 3 * AT_ONCE]
