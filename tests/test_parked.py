"""Dead letters and rejected events, looked at and put back to work, on a real RabbitMQ."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiormq import Channel
from aiormq.abc import AbstractChannel
from aiormq.exceptions import DeliveryError
from pamqp.commands import Basic

from service.broker import codec, parked, rejected, topology
from service.broker.frames import Received, consume
from service.broker.opening import Address
from service.broker.parked import CHUNK, IDLE, Parked, ParkedQueue, Place, Stays, Why, connected
from service.broker.wire import Undecodable, head_frames, whole
from service.core import ladder
from service.core.decode import Incoming, decode
from service.core.delivery import Attempt, Delivery, Reason
from service.core.event import Event
from service.errors import BrokerError, EventRejected
from service.log import rfc3339
from service.redrive import Wanted, redrive_rejected, tell_dead_letter, tell_rejected
from tests.broker_contract import until
from tests.dispatcher import ROOT, Station, station
from tests.faults.proxy import ACK, DELIVER, Link, Proxy, Seen
from tests.test_hostile_producers import Raw, Wire, headers, nested, text

NOW = 1_800_000_000.0
NAMES = topology.Names("webhooks")


def delivery(
    number: int, subscription_id: str = "a", event_type: str = "order.created"
) -> Delivery:
    event = Event(
        f"event-{number:05}-of-16", event_type, "shop", "2027-01-15T08:00:00Z", NOW, b"{}"
    )
    attempt = Attempt(NOW, "https://a.example/", 500, "status 500", 12, "oops")
    return Delivery(event, subscription_id, NOW, 3, 3, 0, NOW, history=(attempt,))


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with connected(Address([amqp_url])) as connection:
        await topology.declare(connection, topology.topology(prefix, events_exchange, ["#"]))
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


async def bury(it: Station, *deliveries: Delivery, reason: Reason = Reason.EXHAUSTED) -> None:
    async with connected(Address([it.amqp_url])) as connection:
        channel = await connection.channel()
        for one in deliveries:
            await channel.basic_publish(
                one.event.data,
                exchange=f"{it.prefix}.dead",
                properties=codec.dead_properties(one, reason, NOW + 5),
            )


async def bury_at_once(it: Station, count: int) -> None:
    """Bury letters that tell their number, and nothing else."""
    async with connected(Address([it.amqp_url])) as connection:
        channel = await connection.channel()
        properties = codec.dead_properties(delivery(1), Reason.EXHAUSTED, NOW + 5)
        await asyncio.gather(
            *(
                channel.basic_publish(
                    b"%d" % number, exchange=f"{it.prefix}.dead", properties=properties
                )
                for number in range(count)
            )
        )


async def ids(it: Station, *arguments: str) -> list[str]:
    told = await it.command("dead", "list", "--json", *arguments)
    return [json.loads(line)["event_id"][6:11] for line in told.splitlines()]


async def ready(channel: AbstractChannel, queue: str) -> int:
    """Return how many messages a queue holds, or 0 where its leader is slow to answer."""
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


async def depth(it: Station, name: str) -> int:
    """Return how many messages a queue holds; the first of them may be the last afterwards."""
    queue = f"{it.prefix}.{name}"
    async with connected(Address([it.amqp_url])) as connection:
        channel = await connection.channel()
        if counted := await ready(channel, queue):
            return counted
        first = (await channel.basic_get(queue)).delivery
        if not isinstance(first, Basic.GetOk):
            return 0
        await channel.basic_nack(first.delivery_tag or 0, requeue=True)
        return 1 + (first.message_count or 0)


async def test_listing_tells_what_the_contract_names_and_changes_nothing(it):
    await bury(it, *(delivery(number) for number in range(300)))
    first = await it.parked("dead")
    assert await it.parked("dead") == first
    assert [line["event_id"][6:11] for line in first] == [f"{n:05}" for n in range(300)]
    assert first[0] == {
        "event_id": "event-00000-of-16",
        "event_type": "order.created",
        "subscription_id": "a",
        "reason": "exhausted",
        "attempts": 3,
        "first_attempt_at": "2027-01-15T08:00:00.000Z",
        "dead_lettered_at": "2027-01-15T08:00:05.000Z",
        "last_status": 500,
        "last_error": "status 500",
    }


async def test_filters_narrow_a_list_down(it):
    await bury(it, delivery(1), delivery(2, "b"), delivery(3, "b", "payment.failed"))
    await bury(it, delivery(4), reason=Reason.GONE)
    assert await ids(it, "--subscription", "b") == ["00002", "00003"]
    assert await ids(it, "--type", "payment.*") == ["00003"]
    assert await ids(it, "--reason", "gone") == ["00004"]
    assert await ids(it, "--limit", "2") == ["00001", "00002"]
    assert await ids(it, "--since", "2027-01-15T08:00:05Z", "--limit", "1") == ["00001"]
    assert await ids(it, "--until", "2027-01-15T08:00:05Z") == []
    assert await ids(it, "event-00002-of-16") == ["00002"]


async def test_a_filter_that_nothing_could_fit_is_refused_and_what_could_is_told(it):
    told = await it.command("dead", "list", "--reason", "nope", status=2)
    assert "'nope' is not one of 'exhausted', 'expired'" in told
    told = await it.command("rejected", "purge", "--type", "payment.[", "--type", "a..b", status=2)
    assert "'a..b' must not contain an empty word" in told


async def test_to_show_what_is_not_there_fails_and_to_list_it_does_not(it):
    await bury(it, delivery(1))
    assert await it.command("dead", "list", "no-such-event") == ""
    told = await it.command("dead", "show", "no-such-event", status=1)
    assert "none of the dead letters that are meant is of event no-such-event" in told
    assert "event-00001-of-16" in await it.command("dead", "show", "event-00001-of-16")


async def test_purging_some_leaves_the_rest_and_a_dry_run_leaves_all(it):
    await bury(it, *(delivery(number, "ab"[number % 2]) for number in range(250)))
    told = await it.command("dead", "purge", "--subscription", "b", "--dry-run", "--json")
    assert json.loads(told) == {"purged": 125, "dry_run": True}
    async with connected(Address([it.amqp_url])) as connection:
        channel = await connection.channel()
        await until(lambda: _holds(channel, f"{it.prefix}.dead", 250))
    await it.command("dead", "purge", "--subscription", "b")
    assert await ids(it) == [f"{n:05}" for n in range(0, 250, 2)]


async def test_a_limit_bounds_what_is_redriven(it):
    await bury(it, *(delivery(number) for number in range(5)))
    assert "redriven: 2" in await it.command("dead", "redrive", "--limit", "2")
    assert await ids(it) == ["00002", "00003", "00004"]
    assert await depth(it, "deliveries") == 2


async def test_a_redriven_delivery_begins_again_and_keeps_its_history(it):
    await bury(it, delivery(1))
    await it.command("dead", "redrive")
    async with connected(Address([it.amqp_url])) as connection:
        found: list[Parked] = []
        queue = ParkedQueue(connection, f"{it.prefix}.deliveries")

        def keep(parked: Parked) -> bool:
            found.append(parked)
            return True

        await queue.look(keep)
    [again] = codec.read_deliveries(found[0].properties.headers, found[0].body)
    assert (again.round, again.deferrals, again.attempts) == (1, 0, 3)
    assert again.history == delivery(1).history
    assert again.event == delivery(1).event
    assert abs(again.created_at - time.time()) < 60


async def test_a_strange_message_among_dead_letters_is_shown_kept_and_never_redriven(it):
    async with connected(Address([it.amqp_url])) as connection:
        channel = await connection.channel()
        await channel.basic_publish(b"what?", exchange=f"{it.prefix}.dead")
    await bury(it, delivery(1))
    assert [line["reason"] for line in await it.parked("dead")] == ["unreadable", "exhausted"]
    assert "redriven: 1" in await it.command("dead", "redrive")
    assert [line["reason"] for line in await it.parked("dead")] == ["unreadable"]


async def test_nothing_that_a_producer_or_a_target_sent_is_obeyed_by_the_terminal(it):
    evil = "\x1b[2J\x9b31m\u202eevil\U000e0001"
    strange = replace(delivery(1), event=replace(delivery(1).event, type=evil, subject=evil))
    await bury(it, replace(strange, history=(Attempt(NOW, evil, None, evil, 1, evil),)))
    for arguments in (("list",), ("list", "--json"), ("show",), ("show", "--json")):
        told = await it.command("dead", *arguments)
        assert "evil" in told
        assert told.replace("\n", "").isprintable()
        if "--json" in arguments:
            assert json.loads(told)["event_type"] == evil


async def test_an_empty_queue_is_no_error(it):
    assert await it.command("dead", "list", "--json") == ""
    assert "0" in await it.command("rejected", "purge")


async def test_a_missing_queue_says_so_in_one_line(it):
    it.environ["DISPATCHER_PREFIX"] = "nothing-here"
    told = await it.command("dead", "list", status=1)
    assert told.count("\n") == 1
    assert "nothing-here.dead" in told


async def test_an_unreachable_broker_says_so_without_the_password(it):
    it.environ["DISPATCHER_AMQP_URL"] = "amqp://me:hidden-pw@127.0.0.1:1/"
    told = await it.command("dead", "list", status=1)
    assert "hidden-pw" not in told
    assert told.count("\n") == 1


async def test_a_time_that_is_none_is_bad_usage(it):
    assert "yesterday" in await it.command("dead", "list", "--since", "yesterday", status=2)


def test_a_dead_letter_survives_its_way_through_the_queue():
    properties = codec.dead_properties(delivery(1), Reason.GONE, NOW)
    dead = codec.read_dead_letter(properties.headers, b"{}")
    assert (dead.delivery, dead.reason, dead.at) == (delivery(1), Reason.GONE, NOW)


def test_a_parked_delivery_goes_back_without_the_delay_that_it_once_took():
    told = codec.delivery_properties(delivery(1), ladder.headers(100))
    found = Parked(b"{}", told, "")
    place = redrive_rejected(topology.Names("webhooks"))(found)
    assert isinstance(place, Place)
    assert place.exchange == "webhooks.deliveries"
    assert ladder.levels(told.headers or {}) == [2, 5, 6]
    assert ladder.levels(place.properties.headers or {}) == []


@pytest.mark.parametrize(
    ("waited_in", "gap"),
    [
        ((), "webhooks.delay.02"),
        (("webhooks.delay.02", "webhooks.delay.06"), "webhooks.delay.05"),
        (("webhooks.delay.06", "webhooks.delay.05", "webhooks.delay.02"), None),
    ],
)
def test_a_delivery_that_has_not_waited_in_each_level_of_its_delay_shows_the_gap(waited_in, gap):
    headers: dict[str, Any] = {**ladder.headers(100), "other": 1}
    headers["x-death"] = [{"queue": name, "reason": "expired", "count": 1} for name in waited_in]
    names = topology.Names("webhooks")
    assert names.gap(headers) == gap
    assert names.gap({"x-death": "forged"}) is None
    assert names.gap({"delay-02": "1", "x-death": "forged"}) == "webhooks.delay.02"


def test_a_delivery_survives_its_way_through_the_ladder():
    properties = codec.delivery_properties(delivery(1))
    assert codec.read_deliveries(properties.headers, b"{}") == [delivery(1)]


@pytest.mark.parametrize(
    "time",
    [
        "9999-12-31T23:59:59.5Z",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:60-23:59",
        "0001-01-01T00:00:00+23:59",
    ],
)
def test_an_event_of_any_time_that_can_be_written_survives_its_way_through_the_ladder(time):
    message = Incoming(
        body=b'{"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b", "time": "%b"}'
        % time.encode(),
        content_type="application/cloudevents+json",
        headers={},
        routing_key="a.b",
    )
    event = decode(message, max_bytes=1024, now=NOW, make_id=lambda: "made").event
    one = replace(delivery(1), event=event)
    assert codec.read_deliveries(codec.delivery_properties(one).headers, event.data) == [one]


@pytest.mark.parametrize(
    "event",
    [replace(delivery(1).event, id=""), replace(delivery(1).event, type="")],
    ids=["id", "type"],
)
def test_a_delivery_of_an_event_without_id_or_type_is_none_of_ours(event):
    written = codec.delivery_properties(replace(delivery(1), event=event))
    with pytest.raises(EventRejected, match="no id or no type"):
        codec.read_deliveries(written.headers, b"{}")


def test_a_split_event_becomes_a_delivery_for_each_subscription():
    properties = codec.split_properties(delivery(1, ""), ["x", "y"])
    assert codec.read_deliveries(properties.headers, b"{}") == [delivery(1, "x"), delivery(1, "y")]


@pytest.mark.parametrize(
    "state", [None, 5, "x", "{}", "[]", '{"event": {}}', b"\xff", {"a": 1}, '{"event": null}']
)
def test_a_message_of_somebody_else_is_no_delivery(state):
    with pytest.raises(EventRejected):
        codec.read_deliveries({codec.STATE: state}, b"{}")


def test_a_rejected_event_comes_back_with_the_properties_it_had():
    original = Basic.Properties(
        content_type="application/json", message_id="m1", message_type="a.b", app_id="shop",
        headers={"tenant": "acme", "x-death": [{"a": 1}], "CC": ["x"]},
    )  # fmt: skip
    parked = rejected.rejected_properties(original, "a.b", EventRejected("not_json", "no"), NOW)
    assert parked.message_id != "m1"
    again = rejected.restored_properties(rejected.parked_again(parked, "a.b", b""))
    assert again.headers == {"tenant": "acme"}
    assert (again.message_id, again.message_type, again.app_id) == ("m1", "a.b", "shop")


def test_a_rejected_event_keeps_headers_whose_names_begin_as_the_brokers_own_do():
    names = ("CCY", "CC-Team", "BCCs", "cc", "x-deaths", "x-delivery-counts", "x-last-death-wish")
    theirs: dict[str, Any] = dict.fromkeys(names, "EUR")
    brokers = [
        *("x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC"),
        *("x-first-death-queue", "x-first-death-reason", "x-first-death-exchange"),
        *("x-last-death-queue", "x-last-death-reason", "x-last-death-exchange"),
    ]
    original = Basic.Properties(message_id="m1", headers=theirs | dict.fromkeys(brokers, "x"))
    parked = rejected.rejected_properties(original, "a.b", EventRejected("not_json", "no"), NOW)
    told = parked.headers or {}
    assert {name for name in told if not name.startswith("x-rejected-")} == theirs.keys()
    again = rejected.restored_properties(rejected.parked_again(parked, "a.b", b""))
    assert again.headers == theirs
    parked_by_the_broker = original
    assert rejected.restored_properties(parked_by_the_broker).headers == theirs


def test_what_could_not_be_decoded_stays_parked_as_without_its_properties_it_would_be_another_event():
    rejection = EventRejected("invalid_envelope", "properties cannot be decoded: ValueError")
    original = Basic.Properties(headers=Undecodable("ValueError"))
    parked = rejected.rejected_properties(original, "a.b", rejection, NOW)
    for properties in (parked, rejected.parked_again(parked, "a.b", b"{}")):
        assert rejected.can_be_written_again(properties)
        assert redrive_rejected(NAMES)(Parked(b"{}", properties, "a.b")) == Stays()


@pytest.mark.parametrize("death", [{}, {"x-death": [{"queue": "webhooks.intake"}]}])
def test_a_producer_cannot_keep_an_event_parked_by_what_its_headers_say(death):
    original = Basic.Properties(message_id="m1", headers={"x-undecodable": "mine"} | death)
    rejection = EventRejected("not_json", "no")
    parked = original if death else rejected.rejected_properties(original, "a.b", rejection, NOW)
    place = redrive_rejected(NAMES)(Parked(b"{}", parked, "a.b"))
    assert isinstance(place, Place)
    assert (place.exchange, place.properties.message_id) == ("webhooks.intake", "m1")


def _parked_by_the_broker(queue: str, **more: Any) -> Basic.Properties:
    """Return the properties of a message that the broker parked, as it writes them, with headers of its producer."""
    death: dict[str, Any] = {
        "queue": queue,
        "reason": "rejected",
        "count": 1,
        "time": datetime.fromtimestamp(NOW, UTC),
    }
    return Basic.Properties(message_id="m1", headers={"x-death": [death], **more})


def test_what_a_producer_says_of_an_event_that_the_broker_parked_is_not_believed():
    forged = codec.delivery_properties(delivery(1, "acme")).headers or {}
    told = {
        rejected.REASON: "schema_violation",
        rejected.DETAIL: "trust me",
        rejected.REJECTED_AT: "2020-01-01T00:00:00Z",
        rejected.REJECTED_ID: "x",
        rejected.ROUTING_KEY: "y",
        rejected.MESSAGE_ID: "z",
    }
    parked = _parked_by_the_broker("webhooks.intake", **(told | forged))
    again = rejected.parked_again(parked, "a.b", b"12")
    for properties in (parked, again):
        read = rejected.read_rejected(properties, "a.b", b"12")
        assert (read.reason, read.detail) == ("too_large", "the body has 2 bytes")
        assert (read.event_id, read.routing_key) == ("m1", "a.b")
        assert read.rejected_at == rfc3339(NOW)
        assert not rejected.has_state(properties.headers or {})
        restored = rejected.restored_properties(properties)
        assert restored.message_id == "m1"
        assert codec.STATE not in (restored.headers or {})


def test_a_delivery_that_the_broker_parked_goes_back_as_what_it_was():
    state = codec.delivery_properties(delivery(1, "acme")).headers or {}
    parked = _parked_by_the_broker("webhooks.deliveries", **state)
    for properties in (parked, rejected.parked_again(parked, "", b"{}")):
        assert rejected.has_state(properties.headers or {})
        restored = rejected.restored_properties(properties).headers
        assert codec.read_deliveries(restored, b"{}") == [delivery(1, "acme")]


@pytest.mark.parametrize("name", ["id", "type", "source", "subscription_id"])
def test_a_state_that_would_not_fit_into_a_frame_again_is_not_read(name):
    state = json.loads(
        str((codec.delivery_properties(delivery(1, "x")).headers or {})[codec.STATE])
    )
    (state["event"] if name in state["event"] else state)[name] = "n" * 100_000
    with pytest.raises(EventRejected, match="the state has more than 98304 bytes"):
        codec.read_deliveries({codec.STATE: json.dumps(state)}, b"{}")
    (state["event"] if name in state["event"] else state)[name] = "n" * 50_000
    if name != "source":
        with pytest.raises(EventRejected, match="more than 1024 characters"):
            codec.read_deliveries({codec.STATE: json.dumps(state)}, b"{}")


def test_the_widest_delivery_that_there_can_be_is_read_again():
    wide, url = "\U0001f4a5", "https://a.example/".ljust(2000, "x")
    event = replace(delivery(1).event, id=wide * 1024, extensions={"x": wide * 7168})
    attempt = Attempt(NOW, url, 500, wide * 200, 12, wide * 256)
    widest = replace(delivery(1), event=event, history=(attempt,) * 10)
    told = codec.delivery_properties(widest, {f"delay-{level:02}": "1" for level in range(17)})
    assert codec.read_deliveries(told.headers, b"{}") == [widest]
    assert len(head_frames(1, "webhooks.delay.00", "", told, 0)) < 131_072


def test_headers_too_large_to_carry_on_are_dropped_and_it_is_said():
    original = Basic.Properties(headers={f"h{n}": "x" * 1000 for n in range(120)})
    parked = rejected.rejected_properties(original, "k", EventRejected("not_json", "no"), NOW)
    told = rejected.read_rejected(parked, "k", b"")
    assert told.detail == "no (its headers could not be kept)"
    assert len(parked.headers or {}) < 10


def test_a_rejected_event_fits_into_its_frame_however_long_the_names_of_its_headers_are():
    names = [f"{number:03}".ljust(255, "n") for number in range(504)]
    original = Basic.Properties(message_id="m" * 255, headers=dict.fromkeys(names))
    rejection = EventRejected("not_json", "d" * 2000)
    rejection.event_id = "e" * 2000
    parked = rejected.rejected_properties(original, "k" * 255, rejection, NOW)
    assert len(head_frames(1, "webhooks.rejected", "", parked, 0)) < 131_072
    assert "could not be kept" in str((parked.headers or {})[rejected.DETAIL])


@pytest.mark.parametrize(
    ("headers", "by"),
    [
        ({"x-death": [{"queue": "q", "reason": "delivery_limit"}]}, "parked by the broker"),
        ({}, "neither the dispatcher nor the broker"),
    ],
)
def test_what_the_dispatcher_did_not_park_is_poison(headers, by):
    properties = Basic.Properties(message_id="m", headers=headers)
    told, at = tell_rejected(Parked(b"{}", properties, "a.b"), False)
    assert (told["reason"], told["event_id"], at) == ("poison", "m", None)
    assert by in told["detail"]


@pytest.mark.parametrize(
    "wanted", [Wanted(reason="gone"), Wanted(since=NOW + 9), Wanted(event_type="x")]
)
def test_what_is_not_wanted_does_not_fit(wanted: Wanted):
    properties = codec.dead_properties(delivery(1), Reason.EXPIRED, NOW)
    told, at = tell_dead_letter(Parked(b"{}", properties, ""), True)
    assert not wanted.fits(told, at)
    assert Wanted().fits(told, at)


# --- what stands in the way ------------------------------------------------------------------------


async def test_data_that_cannot_be_written_as_json_again_is_shown_and_hides_nothing_behind_it(it):
    deep = b"[" * 254 + b"]" * 254
    events = [replace(delivery(n).event, data=deep if n == 1 else b"{}") for n in range(3)]
    await bury(it, *(replace(delivery(n), event=event) for n, event in enumerate(events)))
    told = await it.command("dead", "show", "--json")
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["data"] for line in lines] == [{}, deep.decode(), {}]
    assert ["nested too deep" in line.get("data_as_text", "") for line in lines] == [0, 1, 0]


@pytest.mark.parametrize(
    ("body", "why"), [(b"\xff{", "no JSON"), (b"[%s1]" % (b" " * 70_000), "the first 65536")]
)
def test_a_body_that_is_shown_as_text_says_why(body, why):
    told, _ = tell_rejected(Parked(body, Basic.Properties(), "a.b"), True)
    assert why in told["body_as_text"]
    assert body.decode(errors="backslashreplace").startswith(told["body"])


async def test_what_goes_wrong_at_one_message_reaches_whoever_looks(it):
    await bury(it, *(delivery(number) for number in range(3)))

    def stumble(_: Parked) -> bool:
        raise ZeroDivisionError

    async with connected(Address([it.amqp_url])) as connection:
        with pytest.raises(ZeroDivisionError):
            await ParkedQueue(connection, f"{it.prefix}.dead").look(stumble)
    await until(lambda: _at_least(lambda: depth(it, "dead"), 3))


@pytest.mark.parametrize("at", [1e300, -1e11, "nan", None, True])
async def test_a_dead_letter_of_an_impossible_time_is_unreadable_and_in_nobodys_way(it, at):
    properties = codec.dead_properties(delivery(1), Reason.EXHAUSTED, NOW)
    state = json.loads(str((properties.headers or {})[codec.STATE])) | {"dead_lettered_at": at}
    async with connected(Address([it.amqp_url])) as connection:
        channel = await connection.channel()
        forged = Basic.Properties(headers={codec.STATE: json.dumps(state)})
        await channel.basic_publish(b"{}", exchange=f"{it.prefix}.dead", properties=forged)
    await bury(it, delivery(2))
    assert [line["reason"] for line in await it.parked("dead")] == ["unreadable", "exhausted"]
    assert "redriven: 1" in await it.command("dead", "redrive")
    for moment in ("--since", "--until"):
        told = await it.command("dead", "purge", "--reason", "unreadable", moment, "2100-01-01")
        assert "purged: 0" in told
    assert "purged: 1" in await it.command("dead", "purge", "--reason", "unreadable")


@pytest.mark.parametrize("depth", [101, 485, 900])
def test_headers_that_are_nested_too_deep_to_be_written_are_dropped_and_it_is_said(depth):
    deep: Any = "x"
    for _ in range(depth):
        deep = [deep]
    original = Basic.Properties(headers={"deep": deep})
    parked = rejected.rejected_properties(original, "k", EventRejected("not_json", "no"), NOW)
    assert rejected.read_rejected(parked, "k", b"").detail == "no (its headers could not be kept)"


async def test_what_could_not_be_written_again_as_it_is_stays_and_is_in_nobodys_way(it):
    # Most are acked one by one, and the broker, where it is slow, takes in what it has held back for longer.
    it.begin_with("import service.broker.parked\nservice.broker.parked.CATCHES_UP = 5.0\n")
    wire = Wire(it.amqp_url)
    ours = [(rejected.REASON, text("not_json")), (rejected.ROUTING_KEY, text("a.b"))]
    for number in range(2 * CHUNK + 1):
        deep = [("deep", nested(485, b"A"))] if number in (0, 1, CHUNK) else []
        told = headers(*ours, (rejected.REJECTED_ID, text(f"e{number}")), *deep)
        wire.publish(Raw(b"x", f"{it.prefix}.rejected".encode(), told, exchange=""), "")
    wire.close()
    await until(lambda: _at_least(lambda: depth(it, "rejected"), 2 * CHUNK + 1))
    before = await it.parked("rejected")

    await it.command("rejected", "purge", "--reason", "invalid_type")
    again = await it.parked("rejected")
    assert sorted(again, key=_id) == sorted(before, key=_id)

    told = await it.command("rejected", "redrive", "--dry-run")
    assert f"would be redriven: {2 * CHUNK - 2} " in told
    told = await it.command("rejected", "redrive", status=1)
    assert f"redriven: {2 * CHUNK - 2} " in told
    # What goes back to a quorum queue does so in no order that could be relied on.
    [left] = re.findall(r"3 rejected events left where they are \((.*?)\)", told)
    assert sorted(left.split(", ")) == ["e0", "e1", f"e{CHUNK}"]
    assert sorted(map(_id, await it.parked("rejected"))) == ["e0", "e1", f"e{CHUNK}"]
    assert await depth(it, "intake") == 2 * CHUNK - 2
    assert "purged: 3" in await it.command("rejected", "purge")


async def test_letters_keep_their_places_where_their_queue_is_full_and_the_chosen_ones_are_dealt_with(
    it, node
):
    await bury(it, *(delivery(number, "b") for number in range(3)))
    await bury_at_once(it, 597)
    # Full until a fifth is gone, in which those that a walk holds do not count.
    policy = json.dumps({"max-length": 600, "overflow": "reject-publish"})
    node.ctl("set_policy", "full", rf"^{it.prefix}\.dead$", policy, "--apply-to", "queues")
    whys: set[Why] = set()
    try:
        await until(lambda: _is_refused(it, "dead"))
        before = await depth(it, "dead")
        async with connected(Address([it.amqp_url])) as connection:
            queue = ParkedQueue(connection, f"{it.prefix}.dead")
            await queue.work(lambda _: False, lambda _: None, None, lambda *left: whys.add(left[2]))
        assert whys == {Why.FULL}
        assert "redriven: 3" in await it.command("dead", "redrive", "--subscription", "b")
        assert await ids(it, "--subscription", "b") == []
        assert await depth(it, "deliveries") == 3
        assert await depth(it, "dead") == before - 3
    finally:
        node.ctl("clear_policy", "full")


async def test_a_letter_stays_where_the_queue_that_it_would_go_to_refuses_it(it, node):
    policy = json.dumps({"max-length": 1, "overflow": "reject-publish"})
    node.ctl("set_policy", "full", rf"^{it.prefix}\.deliveries$", policy, "--apply-to", "queues")
    try:
        async with connected(Address([it.amqp_url])) as connection:
            channel = await connection.channel()
            await channel.basic_publish(b"x", exchange=f"{it.prefix}.deliveries")
        await until(lambda: _is_refused(it, "deliveries"))
        await bury(it, delivery(1), delivery(2))
        before = await depth(it, "deliveries")
        told = await it.command("dead", "redrive", status=1)
        assert "redriven: 0" in told
        assert "a queue refuses them" in told
        assert sorted(await ids(it)) == ["00001", "00002"]
        assert await depth(it, "deliveries") == before
    finally:
        node.ctl("clear_policy", "full")


async def _is_refused(it: Station, name: str) -> bool:
    """Tell whether a queue is full by now; a policy takes a moment, and what is taken meanwhile is taken out."""
    async with connected(Address([it.amqp_url])) as connection:
        channel = await connection.channel()
        try:
            await channel.basic_publish(b"more", exchange=f"{it.prefix}.{name}")
        except DeliveryError:
            return True
        return False


async def test_numbers_and_long_names_of_headers_survive_a_walk(it):
    names = ["n" * 254 + end for end in "ab"]
    theirs: dict[str, Any] = {names[0]: 19.99, names[1]: 1e300, "in": [{names[0]: -0.1}]}
    rejection = EventRejected("not_json", "no")
    told = rejected.rejected_properties(
        Basic.Properties(headers=theirs), "a.b", rejection, time.time()
    )
    found: list[Parked] = []
    async with connected(Address([it.amqp_url])) as connection:
        channel = await connection.channel()
        await channel.basic_publish(b"x", exchange=f"{it.prefix}.rejected", properties=whole(told))
        queue = ParkedQueue(connection, f"{it.prefix}.rejected")
        await queue.work(lambda _: False, lambda _: None, None)
        await queue.look(lambda parked: found.append(parked) or True)  # type: ignore[func-returns-value]
    assert (found[0].properties.headers or {}).items() >= theirs.items()


def _id(line: dict[str, Any]) -> str:
    return str(line["event_id"])


async def test_a_large_dead_letter_survives_a_walk(it):
    large = delivery(1)
    await bury(it, replace(large, event=replace(large.event, source="s" * 90_000)))
    await it.command("dead", "purge", "--subscription", "nobody")
    assert await ids(it) == ["00001"]
    assert "redriven: 1" in await it.command("dead", "redrive")


@pytest.mark.parametrize(
    ("arguments", "is_frozen"),
    [
        (("list", "--json"), False),
        (("list", "--json"), True),
        (("show",), False),
        (("redrive", "--dry-run"), False),
        (("redrive",), False),
        (("purge",), False),
        (("purge",), True),
    ],
)
async def test_a_connection_that_is_lost_on_the_way_is_told_and_loses_nothing(
    it, arguments, is_frozen
):
    await bury(it, *(delivery(number) for number in range(250)))
    async with Proxy(urlsplit(it.amqp_url).port or 5672) as proxy:
        proxy.budgets.append(60_000)
        proxy.freezes = is_frozen
        it.environ["DISPATCHER_AMQP_URL"] = proxy.url
        told = await it.command("dead", *arguments, status=1)
    assert "the broker" in told
    assert "Traceback" not in told
    it.environ["DISPATCHER_AMQP_URL"] = it.amqp_url

    async def there() -> int:
        return await depth(it, "dead") + await depth(it, "deliveries")

    if "purge" not in arguments:
        await until(lambda: _at_least(there, 250))


@pytest.mark.parametrize("unanswered", [(20, 10), (50, 10), (60, 10), (60, 20), (60, 30), ACK])
async def test_no_answer_of_the_broker_is_waited_for_without_a_bound(it, monkeypatch, unanswered):
    monkeypatch.setattr(parked, "ANSWER", 1.0)
    await bury(it, delivery(1), delivery(2))
    async with Proxy(urlsplit(it.amqp_url).port or 5672) as proxy:
        proxy.watch = lambda _link, seen, _to_broker: seen.method != unanswered
        async with asyncio.timeout(30), connected(Address([proxy.url])) as connection:
            queue = ParkedQueue(connection, f"{it.prefix}.dead")
            with pytest.raises(BrokerError, match="within 1 s"):
                await queue.work(lambda _: False, lambda _: None, None)
    await until(lambda: _at_least(lambda: depth(it, "dead"), 2))


@pytest.mark.parametrize("window", [parked.WINDOW, 1000])
async def test_a_look_sees_every_message_however_many_there_are(it, monkeypatch, window):
    monkeypatch.setattr(parked, "WINDOW", window)
    await bury_at_once(it, 2_100)
    seen: list[bytes] = []

    def see(message: Parked) -> bool:
        seen.append(message.body)
        return True

    async with connected(Address([it.amqp_url])) as connection:
        assert await ParkedQueue(connection, f"{it.prefix}.dead").look(see) == 0
    assert seen == [b"%d" % number for number in range(2_100)]
    assert "would be purged: 2100 " in await it.command("dead", "purge", "--dry-run")


async def test_what_another_takes_meanwhile_is_told_to_be_unseen(it, monkeypatch):
    monkeypatch.setattr(parked, "IDLE", 3.0)
    await bury_at_once(it, 5)
    usual, name = consume, f"{it.prefix}.dead"
    async with connected(Address([it.amqp_url])) as connection:
        other = await connection.channel()

        async def after_another_took_three(*what: Any, **more: Any) -> str:
            for _ in range(3):
                await other.basic_get(name)
            return await usual(*what, **more)

        monkeypatch.setattr(parked, "consume", after_another_took_three)
        assert await ParkedQueue(connection, name).look(lambda _: True) == 3


class _Strays:
    """A channel to a queue of ten, of which others hold most; `work` takes it for the connection as well."""

    def __init__(self) -> None:
        self.is_closed = False
        self.closing = asyncio.get_running_loop().create_future()
        self.sink: Callable[[Received], None]
        self.consumers = self.last = 0
        self.published: set[int] = set()
        self.acked: set[int] = set()

    async def channel(self, **_: Any) -> Any:
        return self

    def deliver(self, *numbers: int) -> None:
        for self.last in numbers:
            self.sink(Received(self.last, False, "", "", Basic.Properties(), b"%d" % self.last))

    async def consume(self, _: Any, __: str, sink: Callable[[Received], None], ___: int) -> str:
        self.sink, self.consumers = sink, self.consumers + 1
        self.deliver(*{1: (1, 2), 2: (4,)}.get(self.consumers, ()))
        return f"consumer-{self.consumers}"

    async def queue_declare(self, _: str, **__: Any) -> Any:
        if self.last == 2:  # the look whether the broker lives: another gives one back meanwhile
            self.deliver(3)
        return SimpleNamespace(message_count=10)

    async def basic_publish(self, body: bytes, **_: Any) -> None:
        self.published.add(int(body))

    async def basic_ack(self, tag: int, *, multiple: bool = False, **_: Any) -> None:
        self.acked |= set(range(1, tag + 1)) if multiple else {tag}

    async def basic_cancel(self, _: str) -> None:
        pass

    async def close(self) -> None:
        self.is_closed = True


async def test_a_message_that_comes_after_a_walk_has_stopped_waiting_for_it_is_not_acked(
    monkeypatch,
):
    monkeypatch.setattr(parked, "IDLE", 0.05)
    strays: Any = _Strays()
    monkeypatch.setattr(parked, "consume", strays.consume)
    assert await ParkedQueue(strays, "q").work(lambda _: False, lambda _: None, None) == 0
    assert strays.acked == strays.published == {1, 2, 4}


async def test_what_was_dealt_with_is_gone_when_the_command_has_ended(it):
    await bury_at_once(it, 600)
    for left in (500, 400, 300, 200, 100, 0):
        assert "purged: 100 " in await it.command("dead", "purge", "--limit", "100")
        assert await depth(it, "dead") == left


async def test_a_walk_whose_connection_breaks_while_it_waits_for_messages_ends_at_once(it):
    await bury(it, *(delivery(number) for number in range(3)))
    async with Proxy(urlsplit(it.amqp_url).port or 5672) as proxy:

        def cut_at_a_message(link: Link, seen: Seen, _: bool) -> bool:  # noqa: FBT001
            if seen.method == DELIVER:
                link.cut()
            return True

        proxy.watch = cut_at_a_message
        it.environ["DISPATCHER_AMQP_URL"] = proxy.url
        began = time.monotonic()
        assert "was lost" in await it.command("dead", "redrive", status=1)
    assert time.monotonic() - began < IDLE


async def test_an_alarm_that_holds_a_walk_up_is_named(it, node, monkeypatch):
    monkeypatch.setattr(parked, "ANSWER", 5.0)
    await bury(it, delivery(1))
    async with connected(Address([it.amqp_url])) as connection:
        node.ctl("set_vm_memory_high_watermark", "0.000001")
        try:
            with pytest.raises(BrokerError, match="an alarm is up"):
                await ParkedQueue(connection, f"{it.prefix}.dead").work(
                    lambda _: False, lambda _: None, None
                )
        finally:
            node.ctl("set_vm_memory_high_watermark", "0.4")


async def test_a_queue_whose_leader_is_slow_to_answer_is_not_taken_for_an_empty_one(
    it, node, monkeypatch
):
    await bury(it, *(delivery(number) for number in range(3)))
    leader = f"whereis('%2F_{it.prefix}.dead')"
    counted: list[int | None] = []
    declare, get = Channel.queue_declare, Channel.basic_get

    async def declares(*arguments: Any, **more: Any) -> Any:
        node.ctl("eval", f"sys:suspend({leader}).")
        found = await declare(*arguments, **more)
        counted.append(found.message_count)
        return found

    async def gets(*arguments: Any, **more: Any) -> Any:
        node.ctl("eval", f"sys:resume({leader}).")
        return await get(*arguments, **more)

    monkeypatch.setattr(Channel, "queue_declare", declares)
    monkeypatch.setattr(Channel, "basic_get", gets)
    seen: list[Parked] = []

    def see(found: Parked) -> bool:
        seen.append(found)
        return True

    async with connected(Address([it.amqp_url])) as connection:
        await ParkedQueue(connection, f"{it.prefix}.dead").look(see)
    assert counted == [0]
    assert [codec.read_dead_letter(one.properties.headers, one.body).delivery for one in seen] == [
        delivery(number) for number in range(3)
    ]


async def _holds(channel: AbstractChannel, queue: str, wanted: int) -> bool:
    return await ready(channel, queue) == wanted


async def _at_least(count: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await count() >= wanted


@pytest.mark.parametrize(("to", "status"), [("/dev/full", 1), (None, 141)])
async def test_a_list_that_nobody_takes_ends_at_once(it, to, status):
    await bury_at_once(it, 1000)  # some 130 KB: twice what a pipe holds
    command = "exec 2>&1 >/dev/full" if to else "set -o pipefail"
    shell = f"{command}; {sys.executable} -m service dead list" + ("" if to else " | head -1")
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", shell), cwd=ROOT, env=it.environ, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == status
    assert len(out.splitlines()) == 1
    assert time.monotonic() - began < IDLE
