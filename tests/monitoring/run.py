"""A real run to look at: dispatchers, receivers of every kind, and everything they wrote.

What a run of seconds cannot have stands in `MADE_UP`: those lines are made from the catalogue.
"""

import asyncio
import os
import signal
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import orjson

from service.catalogue import CATALOGUE
from service.core.health import FAILURES_TO_EJECT
from service.publish import Publisher
from tests.conftest import SETTLED, Leftovers
from tests.dispatcher import (
    Dispatcher,
    Station,
    station,
    subscription,
    validate_line,
    write_subscriptions,
)
from tests.receivers import Answer, Recorder

MADE_UP = frozenset({"broker.blocked", "log.gap", "service.fault"})
"""An alarm of the broker, a reader that takes nothing, a fault of the program."""

_QUEUES = ("intake", "deliveries", "dead", "rejected", "unrouted")


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was written, what it says, and the pod that wrote it."""

    raw: str
    told: dict[str, Any]
    pod: str

    @property
    def message(self) -> str:
        """The kind of line."""
        return str(self.told["message"])


@dataclass(frozen=True, slots=True)
class Run:
    """The lines of all processes in the order of their time, and /metrics before and after the work.

    `workers` is that of `run --workers`.
    """

    lines: list[Line]
    before: str
    after: str
    workers: str

    def of(self, message: str, **fields: Any) -> list[Line]:
        """Return the lines of one kind with these fields."""
        return [
            line
            for line in self.lines
            if line.message == message and all(line.told.get(k) == v for k, v in fields.items())
        ]


async def real_run(amqp_url: str, folder: Path, leftovers: Leftovers) -> Run:
    """Run it all, which takes some ten seconds; what it declares in the broker is left over."""
    prefix, exchange = (f"test-{kind}-{uuid.uuid4().hex[:12]}" for kind in ("mon", "mon-events"))
    try:
        async with station(amqp_url, prefix, exchange, folder) as it:
            it.shorten_waits()
            slow = await _drains_too_slowly(it)
            main, before, after = await _works(it)
            lost, workers = await _loses_a_worker(it)
            odd = await _finds_what_is_hardly_meant(it)
            away = await _finds_no_broker(it)
    finally:
        names = [f"{prefix}.{name}" for name in (*_QUEUES, *(f"delay.{n:02}" for n in range(17)))]
        leftovers.add(names, [*names, exchange])
    pods = {
        "dispatcher-a": main,
        "dispatcher-b": slow,
        "dispatcher-c": away,
        "dispatcher-d": lost,
        "dispatcher-e": odd,
    }
    lines = [
        Line(raw, told, pod)
        for pod, dispatcher in pods.items()
        for raw, told in zip(dispatcher.raw, dispatcher.lines, strict=True)
    ]
    return Run(sorted(lines, key=lambda line: str(line.told["timestamp"])), before, after, workers)


async def _drains_too_slowly(it: Station) -> Dispatcher:
    async with Recorder(answer=lambda _: Answer(delay=30)) as receiver:
        dispatcher = await it.dispatcher(subscription("slow", receiver.url), DRAIN_TIMEOUT="1s")
        declared = time.monotonic()
        await _publish(it, "order.shipped", 1)
        await receiver.wait_for(1)
        assert await dispatcher.stop() == 0
    await _send(it, "", f"{it.prefix}.unrouted", b"nobody wanted this")
    await asyncio.sleep(max(0.0, declared + SETTLED - time.monotonic()))  # see `Leftovers`
    # What was left would be the next one's first work, before anybody has looked at its metrics.
    connection = await aio_pika.connect(it.amqp_url)
    async with connection:
        await (await connection.channel()).queue_delete(f"{it.prefix}.intake")
    return dispatcher


async def _works(it: Station) -> tuple[Dispatcher, str, str]:
    seen: dict[str, int] = {}

    def fails_at_first(request: Any) -> int:
        # One failure fewer than would get it ejected, and its deliveries put off for tens of seconds.
        name = str(request.headers["webhook-id"])
        seen[name] = seen.get(name, 0) + 1
        return 500 if seen[name] == 1 and len(seen) < FAILURES_TO_EJECT else 200

    sick = True
    throttles = iter([Answer(429, headers=(("Retry-After", "1"),))])
    async with (
        Recorder() as good,
        Recorder(answer=fails_at_first) as shaky,
        Recorder(answer=lambda _: 503 if sick else 200) as ill,
        Recorder(answer=lambda _: next(throttles, Answer())) as limited,
        Recorder(status=410) as gone,
        Recorder(status=400) as strict,
    ):
        retry = {"schedule": ["1s", "2s"]}
        subscriptions = [
            subscription("good", good.url),
            subscription("pair", "http://127.0.0.1:1/x", good.url, balance="failover"),
            subscription("shaky", shaky.url, retry=retry),
            subscription("ill", ill.url, retry={"schedule": ["1s"] * 9}),
            subscription("limited", limited.url, retry=retry),
            subscription("gone", gone.url),
            subscription("strict", strict.url, retry={"permanent_statuses": [400]}),
            subscription("paused", good.url, enabled=False),
        ]
        dispatcher = await it.dispatcher(*subscriptions)
        await dispatcher.line("broker.unrouted")
        before = (await dispatcher.get("/metrics"))[1]
        await _publish(it, "order.shipped", 8)
        for body in (b"no JSON", b'{"a": 1, "a": 2}'):
            await _send(it, it.exchange, "some.thing", body)
        await dispatcher.line("target.ejected", subscription_id="ill")
        await _publish(it, "order.shipped", 2)
        await dispatcher.line("delivery.deferred", cause="ejected")
        sick = False
        (it.folder / "subscriptions.yaml").write_text("subscriptions: [{id: s, targetz: []}]")
        await dispatcher.line("subscriptions.refused")
        write_subscriptions(it.folder, *subscriptions)
        await dispatcher.line("target.recovered")
        await dispatcher.line("event.rejected", 2)
        await dispatcher.line("target.throttled")
        await dispatcher.line("attempt.succeeded", 8, subscription_id="shaky")
        after = (await dispatcher.get("/metrics"))[1]
        assert await dispatcher.stop() == 0
    return dispatcher, before, after


async def _loses_a_worker(it: Station) -> tuple[Dispatcher, str]:
    dispatcher = it.new(subscription("good", "http://127.0.0.1:1/x"))
    dispatcher.arguments = ("--workers", "2")
    await dispatcher.start()
    os.kill(dispatcher.of("service.started")[0]["pid"], signal.SIGKILL)
    await dispatcher.line("worker.died")
    page = (await dispatcher.get("/metrics"))[1]
    assert await dispatcher.stop() == 0
    return dispatcher, page


async def _finds_what_is_hardly_meant(it: Station) -> Dispatcher:
    picky = subscription("picky", "http://127.0.0.1:1/x", filter="data.missing == 1")
    drained = subscription(
        "drained", {"url": "http://127.0.0.1:1/x", "weight": 0}, event_types=["a"]
    )
    dispatcher = await it.dispatcher(picky, drained, LOG_LEVEL="debug", LOGLEVEL="debug")
    await _publish(it, "order.shipped", 1)
    await dispatcher.line("filter.failed")
    await dispatcher.line("event.unmatched")
    assert await dispatcher.stop() == 0
    return dispatcher


async def _finds_no_broker(it: Station) -> Dispatcher:
    it.environ["DISPATCHER_AMQP_URL"] = "amqp://guest:guest@127.0.0.1:1/"
    dispatcher = it.new()
    await dispatcher.launch()
    await dispatcher.line("broker.disconnected")
    assert await dispatcher.stop() == 0
    return dispatcher


async def _publish(it: Station, event_type: str, count: int) -> None:
    async with Publisher(it.amqp_url, it.exchange) as publisher:
        for number in range(count):
            await publisher.publish(event_type, {"id": f"o-{number}"}, tenant="acme")


async def _send(it: Station, exchange: str, routing_key: str, body: bytes) -> None:
    connection = await aio_pika.connect(it.amqp_url)
    async with connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange) if exchange else channel.default_exchange
        await target.publish(aio_pika.Message(body), routing_key)


def made_up(message: str, **fields: Any) -> Line:
    """Return a line that no run of seconds has, with every field that its schema asks for."""
    assert message in MADE_UP, f"{message} can be had from the run"
    [event] = [one for one in CATALOGUE if one.name == message]
    told = {
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "level": event.level,
        "message": message,
        "service": "webhook-dispatcher",
        "version": "0",
    }
    told |= {name: fields.get(name, _example(spec)) for name, spec in event.required.items()}
    raw = orjson.dumps(told).decode()
    return Line(raw, validate_line(raw), "dispatcher-a")


def _example(spec: Any) -> Any:
    return {"string": "text", "integer": 1, "number": 1.5, "boolean": True}[spec["type"]]
