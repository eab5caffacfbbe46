"""A fault of this program in one delivery of an event does not repeat the others; on a fake clock."""

import asyncio

from pamqp.commands import Basic

from service.core.delivery import Answered, Outcome
from service.core.subscription import Subscription, Target
from tests.fake_broker import NAMES, Process, World, run, standing_in

SOUND, FAULTY = "https://sound.example/", "https://faulty.example/"
ORDERS = [
    Subscription("sound", ("order.#",), (Target(SOUND),)),
    Subscription("faulty", ("order.#",), (Target(FAULTY),)),
]


def deliver(faults: int) -> World:
    """Deliver one event to both, the first so many attempts at one of which run into a fault."""
    left = iter(range(faults))

    def answer(url: str, _event_id: str, _nth: int) -> Outcome:
        if url == FAULTY and next(left, None) is not None:
            raise ZeroDivisionError("a fault of this program")
        return Answered(200, 0.01)

    world = World(ORDERS, answer)

    async def course() -> None:
        Process(world, "amqp://dispatcher/")
        told = Basic.Properties(message_id="an-event-for-two", delivery_mode=2)
        world.broker.publish("events", "order.created", b'{"event": "an-event-for-two"}', told)
        rested = asyncio.Event()
        world.broker.on_rest = rested.set
        await rested.wait()

    with standing_in(world.broker):
        run(course(), world.clock)
    return world


def test_a_fault_in_one_delivery_is_told_and_only_that_one_comes_again():
    world = deliver(faults=3)
    assert sorted(one.url for one in world.receivers.requests) == [FAULTY, SOUND]
    assert [(fault["where"], fault.get("subscription_id")) for fault in world.log.faults] == [
        ("intake lane", "faulty"), ("backlog lane", None), ("backlog lane", None),
    ]  # fmt: skip
    assert {fault["error"] for fault in world.log.faults} == {
        "ZeroDivisionError: a fault of this program"
    }
    assert all("in answer\n" in fault["stack"] for fault in world.log.faults)


def test_a_fault_without_end_has_its_delivery_parked_and_no_other():
    world = deliver(faults=10_000)
    assert [one.url for one in world.receivers.requests] == [SOUND]
    assert len(world.broker.contents(NAMES.rejected)) == 1
