"""The regular line: once a minute from every process, with what happened since the one before."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.core.delivery import Answered
from service.core.health import EJECTION_BASE, FAILURES_TO_EJECT
from service.core.subscription import Subscription, Target
from service.heartbeat import EVERY, Heartbeat
from service.publish import Publisher
from service.states import States
from tests.dispatcher import Station, station, subscription
from tests.fake_broker import FakeClock, run
from tests.receivers import Recorder


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    (tmp_path / "sitecustomize.py").write_text(
        "import service.heartbeat\nservice.heartbeat.EVERY = 0.5\n"
    )
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        it.environ["PYTHONPATH"] = f"{tmp_path}:{it.environ['PYTHONPATH']}"
        yield it


class Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        assert event == "service.alive"
        self.lines.append(fields)

    debug = warning = error = info


def test_it_comes_every_minute_and_counts_since_the_one_before():
    clock, lines, total = FakeClock(), Lines(), {"attempts": 7}
    heartbeat = Heartbeat(lines, clock, lambda: {"ready": True}, lambda: dict(total))

    async def course() -> None:
        beating = asyncio.create_task(heartbeat.run())
        await asyncio.sleep(EVERY / 2)
        for _ in range(3):
            total["attempts"] += 5
            await asyncio.sleep(EVERY)
        beating.cancel()

    run(course(), clock)
    assert [line["attempts"] for line in lines.lines] == [5, 5, 5]
    assert [line["uptime_s"] for line in lines.lines] == [60, 120, 180]
    assert all(line["ready"] for line in lines.lines)


def test_the_longest_ejection_lasts_through_probes_and_ends_with_the_first_answer():
    states = States(1)
    known = states.of(Subscription("a", ("#",), (Target("https://a.example/"),)))
    [target] = known.targets
    for _ in range(FAILURES_TO_EJECT):
        target.end(target.begin(0.0), Answered(503, 0.1), 0.0, 0.0)
    assert (states.health(10.0).ejected, states.health(10.0).ejected_for) == (1, 10.0)
    probe = target.begin(EJECTION_BASE)
    assert (states.health(31.0).probing, states.health(31.0).ejected_for) == (1, 31.0)
    target.end(probe, Answered(503, 0.1), 31.0, 0.0)
    assert states.health(100.0).ejected_for == 100.0
    target.end(target.begin(100.0), Answered(200, 0.1), 100.0, 0.0)
    assert (states.health(100.0).healthy, states.health(100.0).ejected_for) == (1, 0.0)


def test_a_target_that_is_no_longer_configured_is_not_counted():
    old = Subscription("a", ("#",), (Target("https://a.example/"), Target("https://b.example/")))
    new = Subscription("a", ("#",), (Target("https://a.example/"),))
    states = States(1)
    states.of(old)
    assert states.health(0.0).healthy == 2
    states.keep({"a": new}.get, (), ["a"])
    assert states.health(0.0).healthy == 1
    states.keep(lambda _: None, ["a"])
    assert states.health(0.0).healthy == 0


async def test_what_it_says_is_so(it: Station):
    failing = False
    async with Recorder(answer=lambda _: 503 if failing else 200) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, event_types=["order.*"], retry={"schedule": ["1h"]})
        )
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            for number in range(3):
                await publisher.publish("order.shipped", {"n": number})
            await dispatcher.line("attempt.succeeded", 3)
            failing = True
            for number in range(FAILURES_TO_EJECT):
                await publisher.publish("order.shipped", {"n": number})
            await dispatcher.line("target.ejected")
        (it.folder / "subscriptions.yaml").write_text("subscriptions: [{id: s, targetz: []}]")
        await dispatcher.line("subscriptions.refused")
        last = await dispatcher.line("service.alive", subscriptions_stale=True, targets_ejected=1)
        beats = dispatcher.of("service.alive")
        told = {
            name: sum(beat[name] for beat in beats)
            for name in ("received", "attempts", "delivered")
        }
        assert told == {"received": 8, "attempts": 8, "delivered": 3}
        assert (last["ready"], last["connected"], last["blocked"]) == (True, True, False)
        assert (last["subscriptions"], last["targets_healthy"]) == (1, 0)
        assert last["lines_lost"] == last["lines_left_out"] == 0
        # Every line before it had left the process, but for those of the last moment.
        place = dispatcher.lines.index(last)
        assert place - 3 <= last["lines_total"] <= place
        assert await dispatcher.stop() == 0


async def test_each_of_several_workers_writes_its_own_and_says_who_it_is(it: Station):
    dispatcher = it.new(subscription("s", "http://127.0.0.1:1/"))
    dispatcher.arguments = ("--workers", "2")
    await dispatcher.start()
    workers = {line["pid"] for line in dispatcher.of("service.started")}
    await dispatcher.until(
        lambda: {line["pid"] for line in dispatcher.of("service.alive")} == workers
    )
    assert len(workers) == 2
    assert await dispatcher.stop() == 0


async def test_a_dispatcher_without_its_broker_says_that_it_is_alive_and_not_ready(it: Station):
    it.environ["DISPATCHER_AMQP_URL"] = "amqp://guest:guest@127.0.0.1:1/"
    dispatcher = it.new(subscription("s", "http://127.0.0.1:1/"))
    await dispatcher.launch()
    line = await dispatcher.line("service.alive")
    assert (line["ready"], line["connected"]) == (False, False)
    assert await dispatcher.stop() == 0
