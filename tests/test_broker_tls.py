"""The broker over TLS: trusted by the authority that is named, refused otherwise, and said so.

RabbitMQ stands behind a small server that ends TLS for it, as a load balancer does.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from yarl import URL

from service.publish import Publisher
from tests.certificates import Authority
from tests.dispatcher import Station, station, subscription
from tests.receivers import Recorder


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


@asynccontextmanager
async def behind_tls(amqp_url: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """Give the `amqps` URL of a server that ends TLS and passes everything on to the broker."""
    broker = URL(amqp_url)
    links: set[asyncio.Task[None]] = set()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(broker.host, broker.port)
        links.update(map(asyncio.ensure_future, (copied(reader, back), copied(there, writer))))

    server = await asyncio.start_server(link, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield str(broker.with_scheme("amqps").with_host("127.0.0.1").with_port(port))
        for one in links:
            one.cancel()
        await asyncio.gather(*links, return_exceptions=True)


async def copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


async def test_events_come_and_go_over_tls(it, amqp_url, tmp_path):
    authority = Authority(tmp_path)
    async with behind_tls(amqp_url, authority.server()) as url, Recorder() as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url), AMQP_URL=url, AMQP_CA_FILE=authority.ca_file
        )
        async with Publisher(url, it.exchange, ca_file=Path(authority.ca_file)) as publisher:
            event_id = await publisher.publish("order.shipped", {"n": 1})
        await receiver.wait_for(1, 20)
        assert receiver.requests[0].headers["webhook-id"] == event_id
        assert await dispatcher.stop() == 0


@pytest.mark.parametrize(
    ("host", "known", "text"),
    [("127.0.0.1", False, "certificate verify failed"), ("127.0.0.2", True, "mismatch")],
    ids=["unknown-authority", "other-host"],
)
async def test_a_broker_that_cannot_be_trusted_is_not_spoken_to(
    it, amqp_url, tmp_path, host, known, text
):
    theirs, ours = Authority(tmp_path), Authority(tmp_path, "ours")
    trusted = theirs.ca_file if known else ours.ca_file
    async with behind_tls(amqp_url, theirs.server(host)) as url:
        secret = str(URL(url).with_password("secret-word"))
        dispatcher = it.new(
            subscription("s", "http://127.0.0.1:1/"), AMQP_URL=secret, AMQP_CA_FILE=trusted
        )
        await dispatcher.launch()
        line = await dispatcher.line("broker.disconnected")
        assert text in line["error"]
        assert not await dispatcher.is_ready()
        assert await dispatcher.stop() == 0
    assert "secret-word" not in "\n".join([*dispatcher.raw, dispatcher.stderr])
