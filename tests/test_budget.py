"""A lane's attempts and admissions are bounded, and nobody in line is forgotten."""

import asyncio

import pytest

from service.budget import Budget


@pytest.fixture
def budget() -> Budget:
    return Budget("intake", limit=2, slow_limit=1)


async def settled() -> None:
    """Let every task run until none can go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_event_is_read_at_once_while_few_deliveries_are_under_way(budget):
    budget.admit(3)
    await asyncio.wait_for(budget.admission(), 1)


async def test_an_event_waits_while_twice_the_limit_is_under_way(budget):
    budget.admit(4)
    waiting = asyncio.create_task(budget.admission())
    await settled()
    assert not waiting.done()
    budget.dismiss(1)
    await asyncio.wait_for(waiting, 1)


async def test_as_many_are_admitted_as_there_is_room_for(budget):
    budget.admit(10)
    waiting = [asyncio.create_task(budget.admission()) for _ in range(5)]
    await settled()
    budget.dismiss(9)
    await settled()
    assert [task.done() for task in waiting] == [True, True, True, False, False]
    for task in waiting:
        task.cancel()


async def test_who_is_admitted_and_has_nothing_to_do_lets_the_next_in(budget):
    budget.admit(4)

    async def leaves_again() -> None:
        await budget.admission()
        budget.admit_next()

    waiting = [asyncio.create_task(leaves_again()) for _ in range(5)]
    await settled()
    budget.dismiss(1)
    await asyncio.wait_for(asyncio.gather(*waiting), 1)


async def test_a_waiter_that_was_cancelled_does_not_eat_the_room(budget):
    budget.admit(4)
    first = asyncio.create_task(budget.admission())
    second = asyncio.create_task(budget.admission())
    await settled()
    first.cancel()
    await settled()
    budget.dismiss(1)
    await asyncio.wait_for(second, 1)


async def test_rounds_beyond_the_limit_go_on_in_line_as_others_end(budget):
    budget.begin(slow=False)
    budget.begin(slow=False)
    went: list[int] = []

    async def round_(number: int) -> None:
        await budget.room()
        budget.begin(slow=False)
        went.append(number)

    tasks = [asyncio.create_task(round_(number)) for number in range(3)]
    await settled()
    assert went == []
    budget.end(slow=False)
    await settled()
    assert went == [0]
    budget.end(slow=False)
    budget.end(slow=False)
    await asyncio.wait_for(asyncio.gather(*tasks), 1)
    assert went == [0, 1, 2]
    assert budget.in_use == 2


async def test_who_does_not_take_its_turn_passes_it_on(budget):
    budget.begin(slow=False)
    budget.begin(slow=False)
    first = asyncio.create_task(budget.room())
    second = asyncio.create_task(budget.room())
    await settled()
    budget.end(slow=False)
    await asyncio.wait_for(first, 1)
    assert not second.done()
    budget.pass_on()
    await asyncio.wait_for(second, 1)


def test_one_target_may_have_half_of_what_is_free():
    budget = Budget("intake", limit=100, slow_limit=50)
    assert budget.share == 50
    budget.in_use = 50
    assert budget.share == 25
    budget.in_use = 100
    assert budget.share == 1
