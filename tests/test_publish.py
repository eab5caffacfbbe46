"""Publishing as a producer does it, on a real RabbitMQ, and read back as the dispatcher reads it."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pika  # type: ignore[import-untyped]
import pytest
from aiormq.connection import Connection
from pika.adapters.blocking_connection import BlockingChannel  # type: ignore[import-untyped]
from yarl import URL

from service.core.decode import Decoded, Incoming, decode
from service.errors import BrokerError, EventRejected, TopologyError
from service.publish import Publisher
from service.rabbitmq import PrivateBroker

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def channel(amqp_url: str) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    yield connection.channel()
    connection.close()


@pytest.fixture
def exchange(channel: BlockingChannel) -> Iterator[str]:
    name = f"test-publish-{uuid.uuid4().hex[:12]}"
    channel.exchange_declare(name, exchange_type="topic", durable=True)
    yield name
    channel.exchange_delete(name)


@pytest.fixture
def queue(channel: BlockingChannel, exchange: str) -> Iterator[str]:
    channel.queue_declare(exchange, durable=True, arguments={"x-queue-type": "quorum"})
    channel.queue_bind(exchange, exchange, "order.*")
    yield exchange
    channel.queue_delete(exchange)


def taken(
    channel: BlockingChannel, queue: str
) -> tuple[pika.spec.Basic.GetOk, pika.BasicProperties, bytes]:
    method, properties, body = channel.basic_get(queue, auto_ack=True)
    assert method is not None
    return method, properties, body


def read(channel: BlockingChannel, queue: str) -> Decoded:
    method, properties, body = taken(channel, queue)
    incoming = Incoming(
        body=body,
        content_type=properties.content_type,
        headers=properties.headers,
        routing_key=method.routing_key,
        message_id=properties.message_id,
        type=properties.type,
    )
    return decode(incoming, max_bytes=262144, now=0.0, make_id=str)


async def test_a_published_event_is_read_as_it_was_told(
    amqp_url: str, channel: BlockingChannel, queue: str
) -> None:
    async with Publisher(amqp_url, queue, source="/shop") as publisher:
        returned = await publisher.publish(
            "order.created",
            {"order_id": "é", "n": 2**80},
            id="evt-1",
            subject="ord 1",
            tenant="acme",
            time=datetime(2030, 1, 31, tzinfo=UTC),
            traceparent=TRACE,
            tracestate="a=b",
            extensions={"partitionkey": "p"},
        )
    event = read(channel, queue).event
    assert returned == event.id == "evt-1"
    assert json.loads(event.data) == {"order_id": "é", "n": 2**80}
    assert (event.type, event.source, event.subject) == ("order.created", "/shop", "ord 1")
    assert (event.tenant, event.time) == ("acme", "2030-01-31T00:00:00Z")
    assert (event.traceparent, event.tracestate) == (TRACE, "a=b")
    assert event.extensions == {"partitionkey": "p"}


async def test_an_id_and_a_time_are_made_and_the_message_is_persistent(
    amqp_url: str, channel: BlockingChannel, queue: str
) -> None:
    before = datetime.now(UTC).timestamp()
    async with Publisher(amqp_url, queue) as publisher:
        returned = await publisher.publish("order.created", b'{ "n": 1.10 }')
    _, properties, body = taken(channel, queue)
    assert body == b'{ "n": 1.10 }'
    assert properties.delivery_mode == 2
    assert properties.headers["ce-id"] == returned
    assert uuid.UUID(returned).version == 4
    assert properties.message_id != returned
    told = datetime.fromisoformat(properties.headers["ce-time"]).timestamp()
    assert before - 1 <= told <= datetime.now(UTC).timestamp() + 1


async def test_an_event_that_no_queue_wants_is_an_error_that_says_so(
    amqp_url: str, queue: str
) -> None:
    async with Publisher(amqp_url, queue) as publisher:
        with pytest.raises(TopologyError, match=r"no queue is bound .* for 'payment.failed'"):
            await publisher.publish("payment.failed", {})
        await publisher.publish("order.created", {})


async def test_an_id_that_is_empty_is_no_reason_to_make_one(amqp_url: str, queue: str) -> None:
    async with Publisher(amqp_url, queue) as publisher:
        with pytest.raises(EventRejected, match="invalid_envelope"):
            await publisher.publish("order.created", {}, id="")


async def test_publishes_of_one_id_at_the_same_time_keep_their_own_results(
    amqp_url: str, queue: str
) -> None:
    types = ["order.created", "nobody.wants"] * 50
    async with Publisher(amqp_url, queue) as publisher:
        results = await asyncio.gather(
            *(publisher.publish(event_type, {}, id="evt-1") for event_type in types),
            return_exceptions=True,
        )
    assert [isinstance(result, TopologyError) for result in results] == [False, True] * 50


async def test_a_missing_exchange_is_an_error_unless_it_shall_be_declared(
    amqp_url: str, channel: BlockingChannel
) -> None:
    name = f"test-publish-{uuid.uuid4().hex[:12]}"
    with pytest.raises(TopologyError, match=f"exchange '{name}' does not exist"):
        async with Publisher(amqp_url, name):
            pass
    try:
        async with Publisher(amqp_url, name, declare=True) as publisher:
            with pytest.raises(TopologyError, match="no queue is bound"):
                await publisher.publish("order.created", {})
        channel.exchange_declare(name, exchange_type="topic", durable=True)
    finally:
        channel.exchange_delete(name)


async def test_an_existing_exchange_of_another_type_is_taken_as_it_is(
    amqp_url: str, channel: BlockingChannel, queue: str
) -> None:
    name = f"{queue}-fanout"
    channel.exchange_declare(name, exchange_type="fanout")
    channel.queue_bind(queue, name)
    try:
        async with Publisher(amqp_url, name, declare=True) as publisher:
            await publisher.publish("anything.else", {})
        assert read(channel, queue).event.type == "anything.else"
    finally:
        channel.exchange_delete(name)


async def test_an_exchange_that_vanishes_is_an_error_and_the_next_publish_reconnects(
    amqp_url: str, channel: BlockingChannel, queue: str
) -> None:
    async with Publisher(amqp_url, queue) as publisher:
        await publisher.publish("order.created", {})
        channel.exchange_delete(queue)
        with pytest.raises(TopologyError, match="does not exist"):
            await publisher.publish("order.created", {})
        with pytest.raises(TopologyError, match="does not exist"):
            await publisher.publish("order.created", {})
        channel.exchange_declare(queue, exchange_type="topic", durable=True)
        channel.queue_bind(queue, queue, "order.*")
        await publisher.publish("order.created", {})


async def test_an_event_that_would_be_rejected_is_not_published(
    amqp_url: str, channel: BlockingChannel, queue: str
) -> None:
    async with Publisher(amqp_url, queue, max_bytes=100) as publisher:
        for event_type, data in (
            ("order.created", float("nan")),
            ("order. created", 1),
            ("order.created", "x" * 100),
        ):
            with pytest.raises(EventRejected):
                await publisher.publish(event_type, data)
    # A count of 0 may mean that the queue's leader was slow to answer.
    assert channel.basic_get(queue)[0] is None


async def test_a_full_queue_refuses_the_event(
    amqp_url: str, channel: BlockingChannel, exchange: str
) -> None:
    full = f"{exchange}-full"
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(full, arguments=limits)
    channel.queue_bind(full, exchange, "#")
    try:
        async with Publisher(amqp_url, exchange) as publisher:
            results = await asyncio.gather(
                *(publisher.publish("order.created", {}) for _ in range(10)),
                return_exceptions=True,
            )
        refused = [result for result in results if isinstance(result, BrokerError)]
        assert refused
        assert all("refused" in str(error) for error in refused)
    finally:
        channel.queue_delete(full)


async def test_after_a_refusal_another_channel_is_used_and_what_is_under_way_keeps_its_own(
    amqp_url: str, channel: BlockingChannel, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.publish._RENEW_EVERY", 0.0)
    full = f"{exchange}-full"
    channel.queue_declare(full, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.queue_bind(full, exchange, "#")
    try:
        async with Publisher(amqp_url, exchange) as publisher:
            await publisher.publish("order.created", {})
            refusing = publisher._channel
            assert refusing is not None
            with pytest.raises(BrokerError, match="refused"):
                await publisher.publish("order.created", {})
            channel.queue_purge(full)
            under_way = asyncio.get_running_loop().create_future()
            publisher._publishing.add(under_way)
            await publisher.publish("order.created", {})
            assert publisher._channel is not refusing
            assert not refusing.is_closed
            under_way.set_result(None)
            [closing] = publisher._closing
            await closing
            assert refusing.is_closed
            channel.queue_purge(full)
            await publisher.publish("order.created", {})
    finally:
        channel.queue_delete(full)


async def test_a_connection_that_dies_while_another_channel_is_opened_is_no_cancellation(
    amqp_url: str, channel: BlockingChannel, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(**_: object) -> None:
        raise asyncio.CancelledError  # as the library does to whoever waits for it

    monkeypatch.setattr("service.publish._RENEW_EVERY", 0.0)
    queue = f"{exchange}-queue"
    channel.queue_declare(queue)
    channel.queue_bind(queue, exchange, "#")
    try:
        async with Publisher(amqp_url, exchange) as publisher:
            publisher._refused = True
            monkeypatch.setattr(publisher._connection, "channel", dies)
            with pytest.raises(BrokerError):
                await publisher.publish("order.created", {})
            await publisher.publish("order.created", {})
    finally:
        channel.queue_delete(queue)


async def test_a_broker_that_is_away_is_an_error_without_the_password() -> None:
    urls = ["amqp://user:sesame@127.0.0.1:1/", "amqp://user:sesame@127.0.0.1:2/"]
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1: .*; 127\.0\.0\.1:2: ") as caught:
        async with Publisher(urls):
            pass
    assert "sesame" not in str(caught.value)


async def test_a_second_broker_is_tried(amqp_url: str, queue: str) -> None:
    async with Publisher(["amqp://127.0.0.1:1/", amqp_url], queue) as publisher:
        await publisher.publish("order.created", {})


class Relay:
    """Stands between a producer and the broker; can fall silent, or hang up."""

    def __init__(self, amqp_url: str) -> None:
        self._target = pika.URLParameters(amqp_url)
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.silent = False
        self.swallowed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, amqp_url: str) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return amqp_url.replace(f":{self._target.port}", f":{port}")

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._target.host, self._target.port)
        self._writers += [writer, back]
        for source, sink in ((reader, back), (there, writer)):
            self._tasks.append(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if self.silent:
                self.swallowed.set()
            else:
                sink.write(data)
        sink.close()


async def test_a_confirm_that_never_comes_is_an_error_within_the_deadline_and_then_it_recovers(
    amqp_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Relay(amqp_url) as relay, Publisher(relay.url(amqp_url), queue) as publisher:
        relay.silent = True
        with monkeypatch.context() as patch:
            patch.setattr(publisher, "_timeout", 1.0)
            with pytest.raises(BrokerError, match="no confirm within 1 s"):
                async with asyncio.timeout(20):
                    await publisher.publish("order.created", {})
        relay.silent = False
        await publisher.publish("order.created", {})


async def test_a_connection_that_dies_before_the_confirm_is_an_error_that_says_what_to_do(
    amqp_url: str, queue: str
) -> None:
    async with Relay(amqp_url) as relay, Publisher(relay.url(amqp_url), queue) as publisher:
        relay.silent = True
        publishing = asyncio.create_task(publisher.publish("order.created", {}))
        async with asyncio.timeout(5):
            await relay.swallowed.wait()
        relay.hang_up()
        with pytest.raises(BrokerError, match="publish it again with the same id"):
            await publishing
        relay.silent = False
        await publisher.publish("order.created", {})


async def test_what_became_of_an_event_whose_id_was_made_can_be_found_out(
    amqp_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Relay(amqp_url) as relay, Publisher(relay.url(amqp_url), queue) as publisher:
        relay.silent = True
        monkeypatch.setattr(publisher, "_timeout", 1.0)
        with pytest.raises(BrokerError, match=r"the same id, [0-9a-f-]{36}$"):
            await publisher.publish("order.created", {})


async def test_a_user_who_may_not_publish_is_told_what_right_is_missing(
    amqp_url: str, node: PrivateBroker, queue: str
) -> None:
    add = 'add_user(<<"reader">>, <<"secret">>, <<"test">>)'
    allow = 'set_permissions(<<"reader">>, <<"/">>, <<"^$">>, <<"^$">>, <<".*">>, <<"test">>)'
    users = "rabbit_auth_backend_internal"
    node.ctl("eval", f"{users}:{add}, {users}:{allow}.")
    url = str(URL(amqp_url).with_user("reader").with_password("secret"))
    async with Publisher(url, queue) as publisher:
        with pytest.raises(BrokerError, match=rf"ACCESS_REFUSED.*right to write to.*'{queue}'"):
            await publisher.publish("order.created", {})


def test_no_more_of_a_file_is_read_than_may_be_sent(tmp_path: Path) -> None:
    endless = tmp_path / "data"
    with endless.open("wb") as file:
        file.truncate(2**40)
    arguments = ["publish", "a.b", "--data", f"@{endless}"]
    told = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=os.environ | {"DISPATCHER_AMQP_URL": "amqp://127.0.0.1:1/"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 1, told
    assert "cannot be reached" in told.stderr


async def test_a_wrong_password_is_told_apart_from_a_broker_that_is_away(amqp_url: str) -> None:
    with pytest.raises(BrokerError, match=r"refuses the connection.*check the user, password"):
        async with Publisher(str(URL(amqp_url).with_password("wrong"))):
            pass
    with pytest.raises(
        BrokerError, match=r"cannot be reached \(127\.0\.0\.1:1: .*RabbitMQ runs there"
    ):
        async with Publisher("amqp://127.0.0.1:1/"):
            pass


async def test_why_the_broker_refuses_a_connection_is_told_in_its_own_words(amqp_url: str) -> None:
    elsewhere = str(URL(amqp_url).with_path("/no-such-vhost"))
    with pytest.raises(BrokerError, match=r"NOT_ALLOWED - vhost '?no-such-vhost'? not found"):
        async with Publisher(elsewhere):
            pass


@pytest.mark.parametrize("told", [{}, {"capabilities": {}}])
async def test_a_broker_that_does_not_say_what_it_can_is_told_as_any_trouble(
    amqp_url: str, exchange: str, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    monkeypatch.setattr(Connection, "server_capabilities", property(lambda _: told["capabilities"]))
    with pytest.raises(BrokerError, match="gave no channel"):
        async with Publisher(amqp_url, exchange):
            pass
