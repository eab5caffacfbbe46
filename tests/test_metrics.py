"""The metrics page: what is counted, by labels whose number is bounded."""

import asyncio
import random
from collections.abc import AsyncIterator

import pika  # type: ignore[import-untyped]
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.broker.connection import UNROUTED_POLL
from service.broker.topology import POISON_LIMIT
from service.metrics import Metrics
from service.publish import Publisher
from service.states import Health
from tests.dispatcher import Dispatcher, Station, station, subscription
from tests.receivers import Received, Recorder


def values(page: bytes | str) -> dict[str, float]:
    """Return each sample by its name and labels, as the page writes them."""
    text = page.decode() if isinstance(page, bytes) else page
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            name = sample.name.removeprefix("webhook_dispatcher_")
            found[f"{name}{{{labels}}}" if labels else name] = float(sample.value)
    return found


def test_what_is_delivered_counts_as_an_attempt_and_by_its_age():
    metrics = Metrics()
    metrics.delivered("intake", "200", 0.02, 0.03)
    metrics.delivered("backlog", "204", 0.02, 700.0)
    metrics.attempted("backlog", "503", 0.2)
    metrics.attempted("backlog", "timeout", 15.0)
    told = values(metrics.page())
    assert told['attempts_total{lane="intake",outcome="2xx"}'] == 1
    assert told['attempts_total{lane="backlog",outcome="2xx"}'] == 1
    assert told['attempts_total{lane="backlog",outcome="5xx"}'] == 1
    assert told['attempts_total{lane="backlog",outcome="timeout"}'] == 1
    assert told['attempt_duration_seconds_count{lane="backlog"}'] == 3
    assert told['attempt_duration_seconds_bucket{lane="backlog",le="0.25"}'] == 2
    assert told["delivery_age_seconds_count"] == 2
    assert told['delivery_age_seconds_bucket{le="0.01"}'] == 0
    assert told['delivery_age_seconds_bucket{le="0.05"}'] == 1
    assert told['delivery_age_seconds_bucket{le="600.0"}'] == 1
    assert told['delivery_age_seconds_bucket{le="1800.0"}'] == 2
    assert told["delivery_age_seconds_sum"] == pytest.approx(700.03)
    counts = metrics.counts()
    assert (counts["attempts"], counts["delivered"], counts["delivered_age_s"]) == (4, 2, 700)


def test_an_event_from_the_future_takes_nothing_from_the_sum():
    metrics = Metrics()
    metrics.delivered("intake", "200", 0.02, -5.0)
    told = values(metrics.page())
    assert told['delivery_age_seconds_bucket{le="0.01"}'] == 1
    assert told["delivery_age_seconds_sum"] == 0


def test_the_number_of_series_does_not_grow_with_statuses():
    metrics = Metrics()
    for _ in range(5000):
        metrics.delivered("intake", str(random.randrange(200, 300)), random.random(), 1.0)
        metrics.attempted("intake", str(random.randrange(300, 600)), random.random())
    assert len(values(metrics.page())) < 150


def test_targets_are_told_by_health():
    metrics = Metrics()
    metrics.watch_health(lambda: Health(healthy=5, ejected=2, probing=1, gone=0, ejected_for=12.5))
    told = values(metrics.page())
    assert told['targets{health="healthy"}'] == 5
    assert told['targets{health="ejected"}'] == 2
    assert told['targets{health="probing"}'] == 1
    assert told['targets{health="gone"}'] == 0
    assert told["target_ejected_seconds"] == 12.5


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


async def test_a_running_dispatcher_tells_how_its_targets_lines_and_files_are(it: Station):
    async with Recorder() as well, Recorder(503) as ill, Recorder(410) as gone:
        retry = {"schedule": ["1h"]}
        dispatcher = await it.dispatcher(
            subscription("well", well.url),
            subscription("ill", ill.url, retry=retry),
            subscription("gone", gone.url, retry=retry),
        )
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            for number in range(5):
                await publisher.publish("order.shipped", {"n": number})
        await dispatcher.line("target.ejected")
        await dispatcher.line("attempt.succeeded", 5)
        await dispatcher.line("target.gone")
        (it.folder / "subscriptions.yaml").write_text("subscriptions: [{id: s, targetz: []}]")
        await dispatcher.line("subscriptions.refused")
        lines = len(dispatcher.lines)
        told = values((await dispatcher.get("/metrics"))[1])
        assert await dispatcher.stop() == 0
    health = [told[f'targets{{health="{name}"}}'] for name in ("healthy", "ejected", "gone")]
    assert health == [1, 1, 1]
    assert 0 < told["target_ejected_seconds"] < 30
    assert told["delivery_age_seconds_count"] == 5
    assert (told["subscriptions_stale"], told["subscriptions_refused_total"]) == (1, 1)
    assert told["log_lines_total"] >= lines
    assert told["log_lines_lost_total"] == told["faults_total"] == told["draining_seconds"] == 0


async def test_a_dispatcher_that_drains_tells_for_how_long(it: Station):
    seen = asyncio.Event()

    async def answer(_: Received) -> int:
        await seen.wait()
        return 200

    async with Recorder(answer=answer) as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url))
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            await publisher.publish("order.shipped", {})
        await receiver.wait_for(1)
        dispatcher._process.terminate()
        await dispatcher.line("service.draining")

        async def draining() -> bool:
            told = values((await dispatcher.get("/metrics"))[1])
            return told["draining_seconds"] > 0

        await dispatcher.until(draining)
        seen.set()
        assert await dispatcher.ended() == 0


def _nobody_settles(amqp_url: str, queue: str) -> None:
    """Take a message and give it back, until the broker has had enough of that."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    for taken in range(1, POISON_LIMIT + 2):
        method, _, _ = next(channel.consume(queue, inactivity_timeout=20))
        assert method is not None, f"it came {taken} times only"
        channel.basic_nack(method.delivery_tag, requeue=True)
    connection.close()


async def _waiting_is_told(dispatcher: Dispatcher, *, rejected: int) -> None:
    """Wait until the page says that so many rejected events wait, and no dead letters."""

    async def told_so() -> bool:
        told = values((await dispatcher.get("/metrics"))[1])
        told_here = [told.get(f"{what}_waiting") for what in ("rejected_events", "dead_letters")]
        return told_here == [rejected, 0]

    await dispatcher.until(told_so, seconds=2 * UNROUTED_POLL)


async def test_what_the_broker_itself_parks_is_told_though_no_dispatcher_rejected_it(it: Station):
    wanted = subscription("s", "http://127.0.0.1:1/")
    first = await it.dispatcher(wanted)
    await _waiting_is_told(first, rejected=0)
    assert await first.stop() == 0
    async with Publisher(it.amqp_url, it.exchange) as publisher:
        await publisher.publish("order.shipped", {})
    await asyncio.to_thread(_nobody_settles, it.amqp_url, f"{it.prefix}.intake")
    second = await it.dispatcher(wanted)
    await _waiting_is_told(second, rejected=1)
    assert await second.stop() == 0
    assert not second.of("event.rejected")
    [parked] = await it.parked("rejected")
    assert parked["reason"] == "poison"


async def test_what_waits_is_not_told_while_it_cannot_be_known(it: Station):
    it.environ["DISPATCHER_AMQP_URL"] = "amqp://guest:guest@127.0.0.1:1/"
    dispatcher = it.new(subscription("s", "http://127.0.0.1:1/"))
    await dispatcher.launch()
    await dispatcher.line("broker.disconnected")
    told = values((await dispatcher.get("/metrics"))[1])
    assert told["broker_connected"] == 0
    assert (
        not {"rejected_events_waiting", "dead_letters_waiting", "unrouted_messages"} & told.keys()
    )
    assert await dispatcher.stop() == 0
