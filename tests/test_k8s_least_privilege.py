"""The users of the production overlay can do their work and nothing else: on a real RabbitMQ.

The operator's part is played here: exchanges, queues and bindings are declared from the manifests, and users
get the permissions that stand there.
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika  # type: ignore[import-untyped]
import pytest
import yaml

from service.publish import Publisher
from service.rabbitmq import PrivateBroker
from tests.conftest import SETTLED
from tests.dispatcher import Dispatcher, Station, station, subscription, write_subscriptions
from tests.receivers import Recorder
from tests.tools.manifests import K8S, named
from tests.tools.topology_manifests import PRODUCTION

PASSWORD = "of-this-test-only"


def objects(*files: Path) -> list[dict[str, Any]]:
    return [one for file in files for one in yaml.safe_load_all(file.read_text()) if one]


TOPOLOGY = objects(PRODUCTION / "events-exchange.yaml", PRODUCTION / "topology.yaml")
USERS = objects(PRODUCTION / "users.yaml", K8S / "components" / "keda" / "user.yaml")


@dataclass(frozen=True)
class Place:
    """A virtual host as the operator leaves it."""

    node: PrivateBroker
    vhost: str

    def url(self, user: str) -> str:
        """The URL of one of the overlay's users, or of the administrator."""
        password = "guest" if user == "guest" else PASSWORD
        host = f"127.0.0.1:{self.node.port}"
        return f"amqp://{quote(self.user(user))}:{password}@{host}/{quote(self.vhost)}"

    def user(self, name: str) -> str:
        """Names of users are the broker's, not the virtual host's: ours are unique."""
        return name if name == "guest" else f"{name}-{self.vhost}"

    @contextlib.contextmanager
    def channel(self, user: str) -> Iterator[Any]:
        connection = pika.BlockingConnection(pika.URLParameters(self.url(user)))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def refused(self, user: str, what: str, *args: Any, **kwargs: Any) -> bool:
        """Tell whether the broker refuses an operation for want of a permission."""
        with self.channel(user) as channel:
            try:
                getattr(channel, what)(*args, **kwargs)
            except pika.exceptions.ChannelClosedByBroker as closed:
                return bool(closed.reply_code == 403)
        return False


@pytest.fixture
def place(node: PrivateBroker, tmp_path: Path) -> Iterator[Place]:
    place = Place(node, f"test-{uuid.uuid4().hex[:8]}")
    definitions = tmp_path / "definitions.json"
    definitions.write_text(json.dumps(_definitions(place)))
    node.ctl("import_definitions", str(definitions))
    with place.channel("guest") as channel:
        for one in TOPOLOGY:
            _declare(channel, one["kind"], one["spec"])
    declared = time.monotonic()
    yield place
    time.sleep(max(0.0, declared + SETTLED - time.monotonic()))  # see `Leftovers`
    node.ctl("delete_vhost", place.vhost)


def _definitions(place: Place) -> dict[str, Any]:
    """Return the virtual host, the users and their permissions, as RabbitMQ imports them."""
    everything = {"configure": ".*", "read": ".*", "write": ".*"}
    permitted = {"guest": everything} | {
        place.user(one["spec"]["userReference"]["name"]): one["spec"]["permissions"]
        for one in USERS
        if one["kind"] == "Permission"
    }
    return {
        "vhosts": [{"name": place.vhost}],
        "users": [
            {"name": user, "password": PASSWORD, "tags": ""}
            for user in permitted
            if user != "guest"
        ],
        "permissions": [
            {"user": user, "vhost": place.vhost, **patterns} for user, patterns in permitted.items()
        ],
    }


def _declare(channel: Any, kind: str, spec: dict[str, Any]) -> None:
    arguments = spec.get("arguments", {})
    match kind:
        case "Exchange":
            channel.exchange_declare(
                spec["name"], spec["type"], durable=spec["durable"], arguments=arguments
            )
        case "Queue":
            arguments = {"x-queue-type": spec["type"], **arguments}
            channel.queue_declare(spec["name"], durable=spec["durable"], arguments=arguments)
        case _:
            assert spec["destinationType"] == "queue"
            channel.queue_bind(
                spec["destination"], spec["source"], spec.get("routingKey", ""), arguments
            )


@pytest.fixture
async def it(place: Place, tmp_path: Path) -> AsyncIterator[Station]:
    url = place.url("webhook-dispatcher")
    async with station(url, "webhooks", "events", tmp_path) as it:
        it.environ["DISPATCHER_DECLARE_TOPOLOGY"] = "false"
        yield it


async def test_the_dispatcher_delivers_retries_parks_and_rejects_without_declaring(it, place):
    answers = iter([503])
    async with (
        Recorder() as well,
        Recorder(answer=lambda _: next(answers, 200)) as ill,
        Recorder(400) as refusing,
    ):
        dispatcher = await it.dispatcher(
            subscription("well", well.url),
            subscription("ill", ill.url, retry={"schedule": ["1s"], "jitter": 0}),
            subscription("refusing", refusing.url, retry={"permanent_statuses": [400]}),
        )
        async with Publisher(place.url("guest"), "events") as publisher:
            event_id = await publisher.publish("order.shipped", {})
        await asyncio.to_thread(_publish_garbage, place)
        await well.wait_for(1, timeout=20)
        first, second = await ill.wait_for(2, timeout=20)
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == event_id
        await dispatcher.line("delivery.dead_lettered", reason="refused")
        await dispatcher.line("event.rejected", reason="not_json")
        assert await dispatcher.stop() == 0
    assert not dispatcher.of("broker.disconnected")
    assert not dispatcher.of("service.fault")
    # It sees how many messages wait in queues that it may not read.
    again = await it.dispatcher()
    waiting = [
        f"webhook_dispatcher_{name}_waiting 1.0" for name in ("dead_letters", "rejected_events")
    ]
    await again.until(lambda: _shows(again, waiting))
    assert await again.stop() == 0
    assert not again.of("broker.disconnected")

    async def are_counted() -> bool:
        counts = await asyncio.to_thread(_counts, place)
        return counts == {"webhooks.dead": 1, "webhooks.rejected": 1}

    await again.until(are_counted)


async def _shows(dispatcher: Dispatcher, lines: list[str]) -> bool:
    _, page = await dispatcher.get("/metrics")
    return set(lines) <= set(page.splitlines())


def _publish_garbage(place: Place) -> None:
    with place.channel("guest") as channel:
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
        channel.basic_publish("events", "order.shipped", b"no json", properties)


def _counts(place: Place) -> dict[str, int]:
    """Return how many messages lie in those queues that hold any."""
    names = [one["spec"]["name"] for one in TOPOLOGY if one["kind"] == "Queue"]
    with place.channel("guest") as channel:
        found = {n: channel.queue_declare(n, passive=True).method.message_count for n in names}
    return {name: count for name, count in found.items() if count}


async def test_people_look_into_what_is_parked_and_redrive_it_with_a_user_of_their_own(it, place):
    async with Recorder(400) as refusing, Recorder() as mended:
        wanted = {"retry": {"permanent_statuses": [400]}}
        dispatcher = await it.dispatcher(subscription("a", refusing.url, **wanted))
        async with Publisher(place.url("guest"), "events") as publisher:
            await publisher.publish("order.shipped", {})
            await publisher.publish("parcel.lost", {})
        await asyncio.to_thread(_publish_garbage, place)
        await dispatcher.line("delivery.dead_lettered", 2)
        await dispatcher.line("event.rejected")
        people = Station(place.url("webhook-redrive"), "webhooks", "events", it.folder)
        assert len(await people.parked("dead")) == 2
        write_subscriptions(it.folder, subscription("a", mended.url))
        await dispatcher.line("subscriptions.loaded", 2)
        told = await people.command("dead", "redrive", "--type", "order.*", "--json")
        assert json.loads(told)["redriven"] == 1
        await mended.wait_for(1, timeout=20)
        [left] = await people.parked("dead")
        assert left["event_type"] == "parcel.lost"
        told = await people.command("rejected", "redrive", "--json")
        assert json.loads(told)["redriven"] == 1
        await dispatcher.line("event.rejected", 2)
        told = await people.command("rejected", "purge", "--json")
        assert json.loads(told)["purged"] == 1
        assert await dispatcher.stop() == 0


def test_the_dispatcher_can_change_nothing_and_read_and_write_only_its_own(place):
    refused = place.refused
    user = "webhook-dispatcher"
    quorum = {"x-queue-type": "quorum"}
    assert refused(user, "queue_declare", "webhooks.more", durable=True, arguments=quorum)
    assert refused(user, "queue_delete", "webhooks.intake")
    assert refused(user, "queue_purge", "webhooks.dead")
    assert refused(user, "exchange_declare", "webhooks.more", "topic")
    assert refused(user, "exchange_delete", "webhooks.dead")
    assert refused(user, "queue_bind", "webhooks.dead", "events", "#")
    for queue in ("dead", "rejected", "unrouted", "delay.00"):
        assert refused(user, "basic_get", f"webhooks.{queue}")
    for exchange in ("events", "", "webhooks.intake", "webhooks.unrouted", "amq.topic"):
        assert _publish_is_refused(place, user, exchange)
    for exchange in ("delay.00", "delay.16", "deliveries", "dead", "rejected"):
        assert not _publish_is_refused(place, user, f"webhooks.{exchange}")


def _publish_is_refused(place: Place, user: str, exchange: str) -> bool:
    with place.channel(user) as channel:
        channel.confirm_delivery()
        try:
            channel.basic_publish(exchange, "x", b"")
        except pika.exceptions.ChannelClosedByBroker as closed:
            return bool(closed.reply_code == 403)
    return False


def test_keda_sees_how_long_a_queue_is_and_nothing_else(place):
    user = "webhook-dispatcher-keda"
    for trigger in named(
        objects(K8S / "components" / "keda" / "scaled-object.yaml"),
        "ScaledObject",
        "webhook-dispatcher",
    )["spec"]["triggers"]:
        queue = trigger["metadata"]["queueName"]
        with place.channel(user) as channel:
            assert channel.queue_declare(queue, passive=True).method.message_count == 0
        assert place.refused(user, "basic_get", queue)
    assert _publish_is_refused(place, user, "events")


async def test_without_the_topology_the_dispatcher_says_what_is_missing(it, place):
    def remove() -> None:
        with place.channel("guest") as channel:
            channel.queue_delete("webhooks.delay.07")

    await asyncio.sleep(SETTLED)  # this test may be the first
    await asyncio.to_thread(remove)
    dispatcher = it.new(subscription("a", "http://127.0.0.1:1/"))
    await dispatcher.launch()
    told = await dispatcher.line("broker.disconnected")
    assert "webhooks.delay.07" in told["error"]
    assert (await dispatcher.get("/readyz"))[0] == 503
    assert await dispatcher.stop() == 0
