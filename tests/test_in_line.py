"""Who stands in line before a lane goes on, whatever becomes of those before it; on a fake clock."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from pamqp.commands import Basic

from service.core.delivery import Answered, Outcome
from service.core.subscription import Subscription, Target
from tests.fake_broker import Process, Verdict, World, run, standing_in

ATTEMPTS = 2
LONG = 1.0
ANSWERS_AFTER = {"long": LONG, "narrow": LONG, "longer": 5 * LONG}
"""Seconds; the others answer at once."""
SOON = LONG + 0.1
"""Seconds in which one that holds the lane has ended, and the next one has not."""

Came = Sequence[tuple[str, bytes | None]]
"""Routing keys, and bodies where they are not those of events."""


def wants(name: str, target: dict[str, Any] | None = None, **settings: Any) -> Subscription:
    targets = (Target(f"https://{name}.example/", **(target or {})),)
    return Subscription(name, (f"{name}.#",), targets, **settings)


SUBSCRIPTIONS = [
    wants("long"),
    wants("longer"),
    wants("narrow", {"max_in_flight": 1}),
    wants("limited", rate_limit=0.01),
    wants("healthy"),
]


async def nothing_is_stored(step: str, _owner: str) -> Verdict:
    """Refuse every publish: here only rejected events are published."""
    return Verdict.NO if step == "publish" else Verdict.GO


def is_healthy_served_soon(came: Came, **world: Any) -> bool:
    """Tell whether the healthy one was sent its event, behind all of this that came in with it."""

    def answer(url: str, _event_id: str, _nth: int) -> Outcome:
        name = url.removeprefix("https://").split(".")[0]
        return Answered(200, ANSWERS_AFTER.get(name, 0.0))

    it = World(SUBSCRIPTIONS, answer, **world)

    async def course() -> None:
        process = Process(it, "amqp://dispatcher/", attempts=ATTEMPTS)
        for number, (key, body) in enumerate([*came, ("healthy.x", None)]):
            event_id = f"event-{number:03}-in-a-line"
            told = Basic.Properties(message_id=event_id, delivery_mode=2)
            event = b'{"event": "%b"}' % event_id.encode()
            it.broker.publish("events", key, body or event, told)
        await asyncio.sleep(SOON)
        process.running.cancel()

    with standing_in(it.broker):
        run(course(), it.clock)
    assert not it.log.faults
    return any(one.subscription_id == "healthy" for one in it.receivers.requests)


def test_who_is_behind_a_rate_limit_goes_on():
    came: Came = [("limited.x", None), ("long.x", None), ("longer.x", None), ("limited.x", None)]
    assert is_healthy_served_soon(came)


FULL: Came = [("narrow.x", None)] * 2 * ATTEMPTS
"""As many deliveries as a lane begins, of which three wait for the target of the first."""


@pytest.mark.parametrize(
    ("before", "world"),
    [
        (("nobody-s.x", None), {}),
        (("healthy.x", b"no JSON"), {}),
        (("healthy.x", b"no JSON"), {"at": nothing_is_stored}),
    ],
    ids=["unmatched", "rejected", "not to be parked"],
)
def test_who_is_behind_an_event_that_begins_nothing_is_let_in(before, world):
    assert is_healthy_served_soon([*FULL, before], **world)
