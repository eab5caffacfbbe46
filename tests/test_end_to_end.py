"""The main job on the real thing: events into RabbitMQ, signed webhooks out over real sockets."""

import asyncio
import itertools
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import aio_pika
import pika  # type: ignore[import-untyped]
import pytest
from standardwebhooks import Webhook

from service.core import ladder
from service.publish import Publisher
from tests.dispatcher import SECRET, Station, station, subscription, write_subscriptions
from tests.receivers import Answer, Received, Recorder


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


async def publish(it: Station, event_type: str, data: Any = None, **more: Any) -> str:
    async with Publisher(it.amqp_url, it.exchange) as publisher:
        return await publisher.publish(event_type, {} if data is None else data, **more)


async def test_an_event_arrives_signed_and_is_logged(it):
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(subscription("billing", receiver.url))
        event_id = await publish(it, "invoice.paid", {"total": 12.5}, tenant="acme")
        [request] = await receiver.wait_for(1)
        line = await dispatcher.line("attempt.succeeded")
    assert request.method == "POST"
    assert request.headers["webhook-id"] == event_id
    told = Webhook(SECRET).verify(request.body, dict(request.headers))
    assert told["type"] == "invoice.paid"
    assert told["data"] == {"total": 12.5}
    assert line["event_id"] == event_id
    assert (line["subscription_id"], line["tenant"], line["status"]) == ("billing", "acme", 200)
    assert line["decision"] == "delivered"
    assert await dispatcher.stop() == 0


async def test_a_refused_first_target_costs_no_time_and_no_second_copy(it):
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(
            subscription("a", "http://127.0.0.1:1/x", receiver.url, balance="failover")
        )
        await publish(it, "order.shipped")
        delivered = await dispatcher.line("attempt.succeeded")
        assert (delivered["round"], delivered["lane"]) == (1, "intake")
        assert await dispatcher.stop() == 0
    assert len(receiver.requests) == 1
    [failed] = dispatcher.of("attempt.failed")
    assert (failed["decision"], failed["error.type"]) == ("failover", "connect")


async def test_weights_give_nginx_sequence(it):
    async with Recorder() as a, Recorder() as b, Recorder() as c:
        names = {a.port: "a", b.port: "b", c.port: "c"}
        dispatcher = await it.dispatcher(
            subscription("w", {"url": a.url, "weight": 5}, b.url, c.url),
            INTAKE_PREFETCH="1",
        )
        for number in range(14):
            await publish(it, "order.shipped", {"n": number})
        await dispatcher.line("attempt.succeeded", 14)
        ports = [
            int(line["target"].split(":")[2].split("/")[0])
            for line in dispatcher.of("attempt.succeeded")
        ]
    assert "".join(names[port] for port in ports) == "aabacaa" * 2


async def test_a_gap_in_the_delay_ladder_does_not_spend_the_schedule_and_is_closed(it):
    it.begin_with("from service.broker import connection\nconnection.STEADY = 3.0\n")
    async with Recorder(status=500) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["4s"] * 5, "jitter": 0})
        )
        ready, queue = time.monotonic(), f"{it.prefix}.delay.02"
        async with await aio_pika.connect(it.amqp_url) as connection:
            channel = await connection.channel()
            level = await channel.get_queue(queue)
            await level.unbind(queue, "", arguments={"x-match": "all", "delay-02": ladder.ENTERS})
        await asyncio.sleep(ready + 3.0 - time.monotonic())
        await publish(it, "order.shipped")
        lost = await dispatcher.line("broker.disconnected")
        assert f"had not waited in '{queue}'" in lost["error"]
        await receiver.wait_for(2, 30)
        first, second = receiver.requests
        assert second.at - first.at >= 4.0
        assert (await it.parked("dead")) == []


async def test_the_schedule_is_kept_then_a_dead_letter_that_redrives_with_the_same_id(it):
    failing = True

    def answer(_: Any) -> int:
        return 500 if failing else 200

    async with Recorder(answer=answer) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["1s", "2s", "4s"], "jitter": 0.1})
        )
        await publish(it, "order.shipped", {"n": 1}, id="short")
        await receiver.wait_for(4, 40)
        await dispatcher.line("attempt.failed", 4)
        times = [request.at for request in receiver.requests]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        failed = dispatcher.of("attempt.failed")[:3]
        for gap, line, planned in zip(gaps, failed, (1, 2, 4), strict=True):
            assert gap >= planned * 0.9
            wait = moment(line["next_attempt_at"]) - moment(line["timestamp"])
            assert wait.total_seconds() <= planned * 1.1
        await it.until_parked("dead", 1)
        [dead] = await it.parked("dead")
        assert dead["reason"] == "exhausted"
        assert (dead["attempts"], dead["last_status"]) == (4, 500)
        [shown] = json.loads("[" + await it.command("dead", "show", "--json") + "]")
        assert [attempt["status"] for attempt in shown["history"]] == [500] * 4
        failing = False
        assert "1" in await it.command("dead", "redrive")
        await receiver.wait_for(5)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    assert await it.parked("dead") == []


def moment(told: str) -> datetime:
    return datetime.fromisoformat(told)


async def test_retry_after_is_obeyed(it):
    answers = iter([Answer(429, headers=(("Retry-After", "3"),)), 200])
    async with Recorder(answer=lambda _: next(answers)) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["1s"]})
        )
        await publish(it, "order.shipped")
        first, second = await receiver.wait_for(2)
        assert second.at - first.at >= 2.9
        assert dispatcher.of("target.throttled")


@pytest.mark.parametrize(
    ("status", "reason", "more"),
    [
        (410, "gone", {}),
        (400, "refused", {"permanent_statuses": [400]}),
        (301, "exhausted", {"schedule": []}),
    ],
)
async def test_an_answer_that_ends_a_delivery_ends_it_by_name(it, status, reason, more):
    answer = Answer(status, headers=(("Location", "http://169.254.169.254/"),))
    async with Recorder(answer=lambda _: answer) as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url, retry=more))
        await publish(it, "order.shipped")
        line = await dispatcher.line("delivery.dead_lettered")
        assert line["reason"] == reason
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://[::ffff:127.0.0.1]:9/",
        "http://0x7f.1:9/",
        "http://localhost:9/",
        "http://10.1.2.3/",
    ],
)
async def test_forbidden_addresses_are_never_called(it, url):
    dispatcher = await it.dispatcher(subscription("s", url), EGRESS_ALLOW="[]")
    await publish(it, "order.shipped")
    line = await dispatcher.line("delivery.dead_lettered")
    assert line["reason"] == "forbidden_address"
    assert dispatcher.of("attempt.failed")[0]["error.type"] == "forbidden_address"


REJECTED: list[tuple[str, bytes, dict[str, Any]]] = [
    ("not_json", b"hello", {}),
    ("not_json", b"", {}),
    ("not_json", b'{"a": "\xff"}', {}),
    ("not_json", b"[" * 100_000 + b"]" * 100_000, {}),
    ("not_json", b'{"a": 1, "a": 2}', {}),
    ("not_json", b'{"a": NaN}', {}),
    ("too_large", b'"' + b"x" * 10_000_000 + b'"', {}),
    ("invalid_envelope", b"{}", {"content_type": "application/cloudevents+json"}),
    ("schema_violation", b'{"items": 5}', {"type": "order.created"}),
    ("invalid_type", b"{}", {"type": "not a type"}),
]


async def test_what_cannot_be_read_is_rejected_by_name_and_the_next_event_arrives(it):
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url))
        connection = await aio_pika.connect(it.amqp_url)
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(it.exchange)
            for _, body, more in REJECTED:
                await exchange.publish(aio_pika.Message(body, **more), "some.thing")
            await exchange.publish(
                aio_pika.Message(b'{"fine": true}', headers={"x-odd": [1, {"deep": None}]}),
                "some.thing",
            )
        [request] = await receiver.wait_for(1)
        assert request.json()["data"] == {"fine": True}
        found = await it.until_parked("rejected", len(REJECTED))
        expected = sorted(reason for reason, _, _ in REJECTED)
        assert sorted(line["reason"] for line in found) == expected
        assert sorted(line["reason"] for line in dispatcher.of("event.rejected")) == expected
        [large] = [line for line in found if line["reason"] == "too_large"]
        assert large["bytes"] == 10_000_002
        assert await dispatcher.stop() == 0


async def test_lines_of_events_that_reach_nobody_tell_whose_they_are(it):
    nowhere = subscription("s", "http://127.0.0.1:9/", event_types=["wanted"])
    dispatcher = await it.dispatcher(nowhere, LOG_LEVEL="debug", MAX_EVENT_BYTES="1000")
    with pika.BlockingConnection(pika.URLParameters(it.amqp_url)) as connection:
        channel = connection.channel()  # of a library that makes no ids
        told = pika.BasicProperties(app_id="shop", headers={"tenant": "acme"})
        for body in (b"{}", b"not JSON", b"0" * 1001):
            channel.basic_publish(it.exchange, "some.thing", body, told)
        channel.basic_publish(it.exchange, "of.nobody", b"not JSON")
        told = pika.BasicProperties(message_id="an-id")
        channel.basic_publish(it.exchange, "of.nobody", b"{}", told)
    await dispatcher.line("event.rejected", 3)
    await dispatcher.line("event.unmatched", 2)
    unmatched = {line["event_type"]: line for line in dispatcher.of("event.unmatched")}
    assert (unmatched["some.thing"]["tenant"], unmatched["some.thing"]["id_made"]) == ("acme", True)
    assert not {"tenant", "id_made"} & unmatched["of.nobody"].keys()
    assert {
        (line["routing_key"], line["reason"], line["app_id"])
        for line in dispatcher.of("event.rejected")
    } == {
        ("some.thing", "not_json", "shop"),
        ("some.thing", "too_large", "shop"),
        ("of.nobody", "not_json", None),
    }


async def test_an_event_mended_by_a_new_schema_can_be_redriven(it, tmp_path):
    schemas = tmp_path / "schemas"
    schemas.mkdir()
    (schemas / "thing.made.json").write_text('{"required": ["size"]}')
    async with Recorder() as receiver:
        first = await it.dispatcher(subscription("s", receiver.url), SCHEMAS=str(schemas))
        await publish(it, "thing.made", {"n": 1}, id="an-id-of-16-chars", subject="x")
        await first.line("event.rejected")
        assert await first.stop() == 0
        (schemas / "thing.made.json").write_text("{}")
        await it.dispatcher(SCHEMAS=str(schemas))
        assert "redriven: 1" in await it.command("rejected", "redrive")
        [request] = await receiver.wait_for(1)
    assert request.headers["webhook-id"] == "an-id-of-16-chars"


async def test_changed_subscriptions_are_taken_up_and_bad_ones_refused(it):
    async with Recorder() as old, Recorder() as new:
        dispatcher = await it.dispatcher(subscription("s", old.url))
        write_subscriptions(it.folder, subscription("s", new.url))
        await dispatcher.line("subscriptions.loaded", 2)
        await publish(it, "order.shipped")
        await new.wait_for(1)
        (it.folder / "subscriptions.yaml").write_text("subscriptions: [{id: s, targetz: []}]")
        refused = await dispatcher.line("subscriptions.refused")
        assert "subscriptions.yaml:1" in refused["error"]
        await publish(it, "order.shipped")
        await new.wait_for(2)
    assert not old.requests


async def test_a_sick_target_is_ejected_deferred_and_comes_back(it):
    async with Recorder(status=500) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["1h"]})
        )
        for _ in range(8):
            await publish(it, "order.shipped")
        await dispatcher.line("target.ejected")
        await dispatcher.line("delivery.deferred", cause="ejected")
        _, status = await dispatcher.get("/status")
        [target] = json.loads(status)["targets"]
        assert target["health"] == "ejected"


async def test_a_disabled_subscription_defers_and_drops_nothing(it):
    it.shorten_waits()
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url, enabled=False))
        await publish(it, "order.shipped")
        await dispatcher.line("delivery.deferred", cause="paused")
        write_subscriptions(it.folder, subscription("s", receiver.url))
        await receiver.wait_for(1, 20)


async def test_dead_letters_that_are_refused_wait_and_hold_up_nobody(it, node):
    it.shorten_waits()
    policy = ("set_policy", "full", rf"^{re.escape(it.prefix)}\.dead$")
    limit = json.dumps({"max-length": 1, "overflow": "reject-publish"})
    events = 700  # more than there may be unconfirmed publishes
    async with Recorder() as healthy, Recorder(answer=lambda _: 404) as failing:
        wanted = subscription("failing", failing.url, retry={"schedule": []})
        dispatcher = await it.dispatcher(wanted, subscription("healthy", healthy.url))
        node.ctl(*policy, limit, "--apply-to", "queues")
        try:
            async with Publisher(it.amqp_url, it.exchange) as publisher:
                for start in range(0, events, 100):
                    numbers = range(start, start + 100)
                    await asyncio.gather(
                        *(publisher.publish("thing.made", {"n": number}) for number in numbers)
                    )
            await healthy.wait_for(events, 20)  # refusals end nothing before 30 s
            await dispatcher.until(
                lambda: (
                    len(dispatcher.of("delivery.deferred", cause="dead_letters_refused"))
                    > events / 2
                )
            )
        finally:
            node.ctl("clear_policy", "full")
        await dispatcher.line("delivery.dead_lettered", events)
        assert len({request.headers["webhook-id"] for request in healthy.requests}) == events
        assert len(healthy.requests) == events
        assert not dispatcher.of("broker.disconnected")
        assert await dispatcher.stop() == 0
    assert len(await it.parked("dead")) == events


async def test_a_removed_subscription_leaves_a_dead_letter(it):
    removed = asyncio.Event()

    async def answer(_: Received) -> int:
        await removed.wait()
        return 500

    async with Recorder(answer=answer) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["2s"]})
        )
        await publish(it, "order.shipped")
        await receiver.wait_for(1)
        write_subscriptions(it.folder, subscription("other", receiver.url, event_types=["none"]))
        await dispatcher.line("subscriptions.loaded", 2)
        removed.set()
        line = await dispatcher.line("delivery.dead_lettered")
        assert line["reason"] == "subscription_removed"


async def test_a_saturated_target_takes_the_rest_later_and_each_once(it):
    def answer(_: Any) -> Answer:
        return Answer(delay=0.3)

    async with Recorder(answer=answer) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", {"url": receiver.url, "max_in_flight": 2})
        )
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            for number in range(40):
                await publisher.publish("order.shipped", {"n": number})
        await receiver.wait_for(40, 40)
        await dispatcher.line("attempt.succeeded", 40)
        assert dispatcher.of("delivery.deferred", cause="saturated")
    assert sorted(request.json()["data"]["n"] for request in receiver.requests) == list(range(40))


async def test_a_rate_limit_spreads_deliveries(it):
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url, rate_limit="2/s"))
        for number in range(8):
            await publish(it, "order.shipped", {"n": number})
        await receiver.wait_for(8, 30)
        assert dispatcher.of("delivery.deferred", cause="rate_limited")
    assert receiver.requests[-1].at - receiver.requests[0].at >= 2.0


async def test_an_event_for_very_many_subscriptions_is_split_and_reaches_each_once(it):
    async with Recorder() as receiver:
        many = [subscription(f"s{n}", f"{receiver.url}/{n}") for n in range(300)]
        dispatcher = await it.dispatcher(*many)
        await publish(it, "order.shipped")
        await receiver.wait_for(300, 30)
        await dispatcher.line("attempt.succeeded", 300)
        assert await dispatcher.stop() == 0
    assert len({request.path for request in receiver.requests}) == 300


async def test_sigterm_under_load_loses_nothing_and_doubles_nothing(it):
    draining = asyncio.Event()

    async def answer(_: Received) -> Answer:
        if len(receiver.requests) > 60:
            await draining.wait()
        return Answer(delay=0.05)

    async with Recorder(answer=answer) as receiver:
        first = await it.dispatcher(
            subscription("s", {"url": receiver.url, "max_in_flight": 1000}), INTAKE_PREFETCH="50"
        )
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            ids = await asyncio.gather(
                *(publisher.publish("order.shipped", {"n": n}) for n in range(400))
            )
        await receiver.wait_for(60, 20)
        os.kill(first.pid, signal.SIGTERM)
        await first.line("service.draining")
        draining.set()
        assert await first.ended() == 0
        assert first.of("service.stopped")[0]["left"] == 0
        assert len(receiver.requests) < 400
        await it.dispatcher()
        await receiver.wait_for(400, 30)
        await asyncio.sleep(0.5)  # time for a double to show itself
    assert sorted(request.headers["webhook-id"] for request in receiver.requests) == sorted(ids)


async def test_what_does_not_end_within_the_drain_time_is_left_to_others(it):
    async with Recorder(answer=lambda _: Answer(delay=30)) as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url), DRAIN_TIMEOUT="500ms")
        await publish(it, "order.shipped")
        await receiver.wait_for(1)
        started = time.monotonic()
        assert await dispatcher.stop() == 0
        assert time.monotonic() - started < 5
        assert dispatcher.of("service.stopped")[0]["left"] == 1
    async with Recorder(port=receiver.port) as again:
        await it.dispatcher()
        await again.wait_for(1)


BREAKS = """\
import asyncio, pathlib, service.clock

async def run(self):
    while not pathlib.Path({path!r}).exists():
        await asyncio.sleep(0.02)
    raise ZeroDivisionError("of the clock")

service.clock.WakingClock.run = run
"""


@pytest.mark.parametrize("signalled", [False, True])
async def test_a_fault_of_the_program_ends_it_in_order_and_with_1(it, signalled):
    breaks = it.folder / "breaks"
    it.begin_with(BREAKS.format(path=str(breaks)))
    broken = asyncio.Event()

    async def answer(_: Received) -> int:
        await broken.wait()
        return 200

    async with Recorder(answer=answer) as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url))
        await publish(it, "order.shipped")
        await receiver.wait_for(1)
        if signalled:
            os.kill(dispatcher.pid, signal.SIGTERM)
            await dispatcher.line("service.draining")
        breaks.touch()
        await dispatcher.line("service.fault")
        broken.set()
        assert await dispatcher.ended() == 1
    told = "webhook-dispatcher: ended by a fault of the program: see service.fault in its log\n"
    assert dispatcher.stderr == told
    [fault] = dispatcher.of("service.fault")
    assert (fault["where"], fault["error"]) == ("clock", "ZeroDivisionError: of the clock")
    assert "in run\n" in fault["stack"]
    assert len(dispatcher.of("attempt.succeeded")) == 1
    assert dispatcher.of("service.stopped")[0]["left"] == 0


async def test_the_trace_goes_on_in_request_and_line(it):
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url))
        await publish(it, "a.b", traceparent=f"00-{trace}-b7ad6b7169203331-01", tracestate="v=1")
        [request] = await receiver.wait_for(1)
        line = await dispatcher.line("attempt.succeeded")
    assert line["trace_id"] == trace
    assert request.headers["traceparent"] == f"00-{trace}-{line['span_id']}-01"
    assert line["span_id"] != "b7ad6b7169203331"
    assert request.headers["tracestate"] == "v=1"


async def test_no_secret_is_ever_shown(it):
    async with Recorder(status=500) as receiver:
        url = receiver.url.replace("http://", "http://user:pass-word@") + "?key=query-secret"
        dispatcher = await it.dispatcher(
            subscription("s", url, "http://user:pass-word@127.0.0.1:1/?key=query-secret"),
            LOG_LEVEL="debug",
        )
        await publish(it, "order.shipped", {"card": "event-data"})
        await dispatcher.line("attempt.failed", 2)
        shown = "\n".join([*dispatcher.raw, (await dispatcher.get("/status"))[1]])
        shown += (await dispatcher.get("/metrics"))[1]
        [request] = await receiver.wait_for(1)
        assert await dispatcher.stop() == 0
    signature = request.headers["webhook-signature"].removeprefix("v1,")
    for secret in (SECRET, SECRET[6:], "pass-word", "query-secret", "event-data", signature):
        assert secret not in shown
        assert secret not in dispatcher.stderr
    assert request.headers["authorization"].startswith("Basic ")
    assert "guest:guest" not in shown


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"DISPATCHER_INTAKE_PREFETCH": "many"}, "DISPATCHER_INTAKE_PREFETCH"),
        ({"DISPATCHER_SUBSCRIPTIONS": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"DISPATCHER_SCHEMAS": "/nowhere"}, "/nowhere"),
        ({"DISPATCHER_ADMIN_HOST": "nowhere.invalid"}, "write an address of this machine"),
    ],
)
async def test_a_bad_start_says_why_and_exits_with_2(it, environ, told):
    write_subscriptions(it.folder)
    it.environ |= environ
    shown = await it.command("run", status=2)
    assert told in shown
    assert "Traceback" not in shown


async def test_an_unknown_setting_is_a_warning_that_names_the_nearest(it):
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url), INTAKE_PREFETC="5", PORT="tcp://10.0.0.1:80"
        )
        lines = dispatcher.of("settings.unknown")
    assert {line["name"] for line in lines} == {"DISPATCHER_INTAKE_PREFETC", "DISPATCHER_PORT"}
    assert lines[0]["nearest"] == "DISPATCHER_INTAKE_PREFETCH"


async def test_the_admin_port_tells_what_it_should(it):
    async with Recorder() as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url))
        await publish(it, "order.shipped")
        await dispatcher.line("attempt.succeeded")
        assert (await dispatcher.get("/livez"))[0] == 200
        _, metrics = await dispatcher.get("/metrics")
        _, status = await dispatcher.get("/status")
    assert 'webhook_dispatcher_attempts_total{lane="intake",outcome="2xx"} 1.0' in metrics
    assert "webhook_dispatcher_broker_connected 1.0" in metrics
    [target] = json.loads(status)["targets"]
    assert (target["health"], target["weight"], target["in_flight"]) == ("healthy", 1, 0)
    assert target["latency_ms"] > 0


async def test_without_a_broker_it_is_alive_and_not_ready(it):
    it.environ["DISPATCHER_AMQP_URL"] = "amqp://guest:hidden-pw@127.0.0.1:1/"
    dispatcher = it.new(subscription("s", "http://127.0.0.1:1/"))
    await dispatcher.launch()
    await dispatcher.line("broker.disconnected")
    assert (await dispatcher.get("/livez"))[0] == 200
    assert (await dispatcher.get("/readyz"))[0] == 503
    assert "hidden-pw" not in "\n".join(dispatcher.raw)
    assert await dispatcher.stop() == 0
