"""One attempt over real sockets: what is sent, and what every kind of answer becomes."""

import asyncio
import base64
import json
import re
import shutil
import socket
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import uvloop
from certificates import Authority
from receivers import (
    Answer,
    Behaviour,
    ConnectProxy,
    Hostile,
    Reader,
    Received,
    Recorder,
    Server,
    Writer,
    deaf,
    drips,
    floods,
    read_request,
    resets,
    says,
    silent,
)

from service import __version__
from service.core.address import EgressRules, networks
from service.core.delivery import Answered, Failed, FailureKind, Forbidden
from service.core.subscription import Scheme, Signing, Subscription, Target, TlsFiles
from service.webhook.formats import Content
from service.webhook.sender import WebhookSender
from service.webhook.tls import describe

KEY = b"k" * 32
BODY = b'{"type":"order.created","timestamp":"2026-01-02T03:04:05Z","data":{"a":1}}'
ID = "evt_0123456789abcdef"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LOOPBACK = EgressRules(allow=networks(["127.0.0.0/8", "::1"]), allow_http=True)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# The hook that replaces this fixture belongs into conftest.py, where it would be for all tests.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(
    params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"]
)
def event_loop_policy(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def subscribe(url: str, **settings: Any) -> Subscription:
    settings = {"signing": Signing(Scheme.STANDARD, (KEY,)), "timeout": 5.0, **settings}
    target = Target(url)
    return Subscription("sub", ("#",), (target,), **settings)


async def send(sender: WebhookSender, subscription: Subscription, **request: Any) -> Any:
    request = {
        "event_id_header": ID,
        "content": Content(BODY),
        "timestamp": int(time.time()),
        "traceparent": None,
        "tracestate": None,
        **request,
    }
    return await sender.send(subscription=subscription, target=subscription.targets[0], **request)


async def attempt(
    url: str, *, rules: EgressRules = LOOPBACK, proxy: str | None = None, **settings: Any
) -> Any:
    async with WebhookSender(rules=rules, proxy=proxy) as sender:
        return await send(sender, subscribe(url, **settings))


async def attempt_at(behaviour: Behaviour, **settings: Any) -> Any:
    """Attempt once at a receiver that behaves so, and see that it is over in good time."""
    async with Hostile(behaviour) as receiver:
        started = time.monotonic()
        outcome = await attempt(receiver.url, **settings)
        assert time.monotonic() - started < 3
        return outcome


@asynccontextmanager
async def sender_to(
    receiver: Server, **settings: Any
) -> AsyncIterator[tuple[WebhookSender, Subscription]]:
    async with receiver, WebhookSender(rules=LOOPBACK) as sender:
        yield sender, subscribe(receiver.url, **settings)


# What is sent


async def test_a_request_is_signed_and_complete() -> None:
    receiver = Recorder()
    async with sender_to(receiver, headers={"X-Team": "billing"}) as (sender, subscription):
        outcome = await send(
            sender, subscription, traceparent=TRACEPARENT, tracestate="vendor=1", timestamp=17
        )
    assert outcome == Answered(200, outcome.duration)
    request = receiver.requests[0]
    signature = request.headers.pop("webhook-signature")
    assert request.method == "POST"
    assert request.path == "/hook"
    assert request.body == BODY
    assert sorted(request.headers.items()) == sorted(
        {
            "Host": f"127.0.0.1:{receiver.port}",
            "User-Agent": f"webhook-dispatcher/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "X-Team": "billing",
            "Content-Type": "application/json",
            "Content-Length": str(len(BODY)),
            "webhook-id": ID,
            "webhook-timestamp": "17",
            "traceparent": TRACEPARENT,
            "tracestate": "vendor=1",
        }.items()
    )
    assert re.fullmatch(r"v1,[A-Za-z0-9+/]{43}=", signature)


async def test_the_library_of_standard_webhooks_accepts_a_request() -> None:
    receiver = Recorder()
    async with sender_to(receiver, signing=Signing(Scheme.STANDARD, (b"n" * 32, KEY))) as (
        sender,
        to,
    ):
        await send(sender, to)
    request = receiver.requests[0]
    webhook = standardwebhooks.Webhook(base64.b64encode(KEY).decode())
    assert webhook.verify(request.body, dict(request.headers))["type"] == "order.created"


@pytest.mark.parametrize(
    ("signing", "header", "value"),
    [
        (Signing(Scheme.ED25519, (KEY,)), "webhook-signature", r"v1a,[A-Za-z0-9+/]{86}=="),
        (Signing(Scheme.HUB_SHA256, (KEY,)), "X-Hub-Signature-256", r"sha256=[0-9a-f]{64}"),
        (Signing(Scheme.NONE), "webhook-id", ID),
    ],
)
async def test_every_scheme_carries_id_and_timestamp(
    signing: Signing, header: str, value: str
) -> None:
    receiver = Recorder()
    async with sender_to(receiver, signing=signing) as (sender, subscription):
        await send(sender, subscription, timestamp=17)
    headers = receiver.requests[0].headers
    assert re.fullmatch(value, headers[header])
    assert headers["webhook-id"] == ID
    assert headers["webhook-timestamp"] == "17"
    assert {"webhook-signature", "x-hub-signature-256"} & {n.lower() for n in headers} <= {
        header.lower()
    }


async def test_own_headers_override_nothing_but_the_user_agent() -> None:
    receiver = Recorder()
    theirs = {
        "User-Agent": "theirs",
        "WEBHOOK-ID": "theirs",
        "webhook-signature": "theirs",
        "Host": "theirs",
        "Content-Length": "1",
        "Transfer-Encoding": "chunked",
        "content-type": "text/theirs",
        "Connection": "close",
        "traceparent": "theirs",
        "accept-encoding": "gzip",
        "ce-id": "theirs",
    }
    async with sender_to(receiver, headers=theirs) as (sender, subscription):
        content = Content(BODY, headers=(("ce-id", "ours"),))
        assert isinstance(await send(sender, subscription, content=content), Answered)
    headers = receiver.requests[0].headers
    assert headers["User-Agent"] == "theirs"
    assert headers["ce-id"] == "ours"
    assert [name for name, value in headers.items() if "theirs" in value] == ["User-Agent"]
    assert len(headers.getall("Content-Length")) == 1
    assert receiver.requests[0].body == BODY


async def test_userinfo_becomes_basic_authorization_and_is_never_told() -> None:
    receiver = Recorder()
    async with receiver:
        url = f"http://us%20er:p%C3%A4ss%3A@127.0.0.1:{receiver.port}/hook?token=secret"
        await attempt(url)
    header = receiver.requests[0].headers["Authorization"]
    assert base64.b64decode(header.removeprefix("Basic ")).decode() == "us er:p\u00e4ss:"
    assert receiver.requests[0].path == "/hook?token=secret"
    outcome = await attempt(url)
    assert outcome.kind is FailureKind.CONNECT
    assert outcome.detail == f"127.0.0.1:{receiver.port}: no connection: Connection refused"


async def test_a_trace_context_that_cannot_be_a_header_is_left_out() -> None:
    receiver = Recorder()
    async with sender_to(receiver) as (sender, subscription):
        outcome = await send(sender, subscription, traceparent="00-\r\nx: y", tracestate="a=b")
    assert isinstance(outcome, Answered)
    assert not {"traceparent", "tracestate", "x"} & {
        name.lower() for name in receiver.requests[0].headers
    }


async def test_a_large_body_arrives_whole() -> None:
    receiver = Recorder()
    body = b'"' + b"x" * 1_000_000 + b'"'
    async with sender_to(receiver) as (sender, subscription):
        outcome = await send(sender, subscription, content=Content(body))
    assert isinstance(outcome, Answered)
    assert receiver.requests[0].body == body


# What an answer becomes


@pytest.mark.parametrize(
    "status", [200, 202, 204, 304, 400, 404, 410, 429, 500, 503, 599, 600, 999]
)
async def test_any_status_is_an_answer(status: int) -> None:
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()
    outcome = await attempt_at(says(answer))
    assert isinstance(outcome, Answered)
    assert outcome.status == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with Recorder() as elsewhere:
        location = (("Location", elsewhere.url),)
        async with Recorder(answer=lambda _: Answer(status, headers=location)) as receiver:
            outcome = await attempt(receiver.url)
        assert outcome.status == status
        assert elsewhere.connections == 0


async def test_cookies_are_not_kept() -> None:
    receiver = Recorder(answer=lambda _: Answer(headers=(("Set-Cookie", "a=b; Path=/"),)))
    async with sender_to(receiver) as (sender, subscription):
        await send(sender, subscription)
        await send(sender, subscription)
    assert "Cookie" not in receiver.requests[1].headers


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with Recorder() as receiver:
        assert isinstance(await attempt(receiver.url), Answered)


@pytest.mark.parametrize(
    ("body", "start"),
    [
        (b"", ""),
        (b"thanks", "thanks"),
        (b"line\r\n\x1b[31mred\x00", r"line\r\n\x1b[31mred\x00"),
        (b"caf\xc3\xa9 \xff", "caf\u00e9 \ufffd"),
        (b"x" * 600, "x" * 512),
        (b"\n" * 600, r"\n" * 256),
        (b"\xe2\x80\xae\xe2\x80\xa8", r"\u202e\u2028"),
    ],
)
async def test_the_start_of_the_body_is_kept_escaped_and_cut(body: bytes, start: str) -> None:
    async with Recorder(answer=lambda _: Answer(500, body)) as receiver:
        outcome = await attempt(receiver.url)
    assert outcome.body_start == start


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("120", 120, 120),
        ("-3", 0, 0),
        (formatdate(time.time() + 600, usegmt=True), 500, 600),
        ("Sun Nov  6 08:49:37 1994", 0, 0),
    ],
)
async def test_retry_after_is_read(header: str, low: int, high: int) -> None:
    answer = Answer(503, headers=(("Retry-After", header),))
    async with Recorder(answer=lambda _: answer) as receiver:
        outcome = await attempt(receiver.url)
    assert low <= outcome.retry_after <= high


async def test_retry_after_that_makes_no_sense_is_ignored() -> None:
    async with Recorder(
        answer=lambda _: Answer(503, headers=(("Retry-After", "soon"),))
    ) as receiver:
        assert (await attempt(receiver.url)).retry_after is None


async def test_a_body_of_a_hundred_megabytes_is_cut_short() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n"
    outcome = await attempt_at(floods(head, b"x" * 65_536))
    assert isinstance(outcome, Answered)
    assert outcome.status == 200
    assert outcome.body_start == "x" * 512
    assert outcome.duration < 2


async def test_a_body_without_end_is_cut_short() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    outcome = await attempt_at(floods(head, b"400\r\n" + b"x" * 0x400 + b"\r\n"))
    assert outcome.status == 200


async def test_a_compressed_body_is_not_unpacked() -> None:
    packed = b"\x1f\x8b\x08" + b"\x00" * 50_000
    answer = Answer(200, packed, (("Content-Encoding", "gzip"),))
    async with Recorder(answer=lambda _: answer) as receiver:
        outcome = await attempt(receiver.url)
    assert outcome.status == 200
    assert len(outcome.body_start) <= 512


async def test_an_answer_that_says_more_than_its_length_counts_and_ends_the_connection() -> None:
    async def say_more(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        await answered.wait()
        answered.clear()
        writer.write(b"and more")
        await reader.read()
        closed.set()

    answered, closed = asyncio.Event(), asyncio.Event()
    receiver = Hostile(say_more)
    async with sender_to(receiver) as (sender, subscription):
        for connections in (1, 2):
            assert (await send(sender, subscription)).status == 200
            answered.set()
            await asyncio.wait_for(closed.wait(), 5)
            closed.clear()
            assert receiver.connections == connections


async def test_an_upgrade_that_nobody_asked_for_is_an_answer() -> None:
    answer = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nfloods"
    outcome = await attempt_at(says(answer))
    assert outcome.status == 101


async def test_an_answer_before_the_request_was_read_is_an_answer() -> None:
    async def refuse(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with Hostile(refuse) as receiver, WebhookSender(rules=LOOPBACK) as sender:
        content = Content(b"x" * 10_000_000)
        outcome = await send(sender, subscribe(receiver.url), content=content)
    assert isinstance(outcome, Answered)
    assert outcome.status == 413


# What goes wrong


async def test_a_refused_connection_is_a_failure_to_connect() -> None:
    outcome = await attempt(f"http://127.0.0.1:{free_port()}/")
    assert outcome.kind is FailureKind.CONNECT
    assert outcome.detail.endswith("no connection: Connection refused")


async def test_a_name_that_does_not_resolve_is_a_failure_of_dns() -> None:
    outcome = await attempt("http://nowhere.invalid/hook")
    assert outcome.kind is FailureKind.DNS
    assert outcome.detail.startswith("nowhere.invalid:80: name does not resolve: ")


@pytest.mark.parametrize(
    ("behaviour", "detail"),
    [
        (silent, "no answer in time"),
        (deaf, "no answer in time"),
        (drips(b"HTTP/1.1 200 OK\r\nX: "), "answer not complete in time"),
        (
            drips(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"),
            "answer 200 not complete in time",
        ),
        (drips(b"HTTP/1.1 503 OK\r\n\r\n"), "answer 503 not complete in time"),
    ],
)
@pytest.mark.parametrize("limit", [0.2, 0.45])
async def test_the_deadline_covers_everything_up_to_the_last_byte(
    behaviour: Behaviour, detail: str, limit: float
) -> None:
    outcome = await attempt_at(behaviour, timeout=limit)
    assert outcome.kind is FailureKind.TIMEOUT
    assert outcome.detail.endswith(detail)
    assert limit - 0.002 < outcome.duration < limit + 0.15  # uvloop counts whole milliseconds


async def test_a_receiver_that_reads_nothing_of_a_large_body_ends_by_the_deadline() -> None:
    async with Hostile(deaf) as receiver, WebhookSender(rules=LOOPBACK) as sender:
        to = subscribe(receiver.url, timeout=0.3)
        outcome = await send(sender, to, content=Content(b"x" * 10_000_000))
    assert outcome.kind is FailureKind.TIMEOUT
    assert outcome.duration < 0.5


async def test_a_handshake_that_hangs_ends_by_the_connect_timeout(authority: Authority) -> None:
    async with Hostile(silent) as receiver:
        url = receiver.url.replace("http:", "https:")
        outcome = await attempt(url, timeout=5.0, connect_timeout=0.2)
    assert outcome.kind is FailureKind.TIMEOUT
    assert outcome.detail.endswith("no connection in time")
    assert outcome.duration < 0.5


@pytest.mark.parametrize(
    "behaviour",
    [
        says(),
        resets(),
        says(b"HTTP/1.1 200 OK\r\nContent-Le"),
        resets(b"HTTP/1.1 200 OK\r\nContent-Le"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        resets(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf"),
        resets(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    ],
)
async def test_a_connection_that_ends_early_is_a_reset(behaviour: Behaviour) -> None:
    outcome = await attempt_at(behaviour)
    assert outcome.kind is FailureKind.RESET
    assert not outcome.stale_connection


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\x01\x02\x03garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 " + b"y" * 1_000_000 + b"\r\n\r\n",
    ],
)
async def test_garbage_is_a_failure_of_the_protocol_told_in_one_line(answer: bytes) -> None:
    outcome = await attempt_at(says(answer))
    assert outcome.kind is FailureKind.PROTOCOL
    assert len(outcome.detail) <= 200
    assert outcome.detail.isprintable()


async def test_an_endless_row_of_interim_answers_ends_soon() -> None:
    outcome = await attempt_at(floods(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100))
    assert outcome.kind is FailureKind.PROTOCOL
    assert outcome.detail.endswith("more than 16 interim answers")


@pytest.mark.parametrize(
    ("head", "chunk"),
    [
        (b"", b"\r\n" * 5_000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 10_000),
    ],
    ids=["empty lines", "chunk extension"],
)
async def test_what_a_parser_swallows_for_ever_ends_soon(head: bytes, chunk: bytes) -> None:
    outcome = await attempt_at(floods(head, chunk))
    assert outcome.kind is FailureKind.PROTOCOL
    assert outcome.detail.endswith("more than 1048576 bytes before its end")


async def test_a_few_interim_answers_are_passed_over() -> None:
    outcome = await attempt_at(says(b"HTTP/1.1 100 Continue\r\n\r\n" * 2, OK))
    assert outcome.status == 200


async def test_a_receiver_that_speaks_first_is_heard_after_the_request() -> None:
    async def speak(_reader: Reader, writer: Writer) -> None:
        writer.write(b"220 smtp.example.com ESMTP\r\n")
        await writer.drain()

    outcome = await attempt_at(speak)
    assert outcome.kind in {FailureKind.PROTOCOL, FailureKind.RESET}


@pytest.mark.parametrize(
    "url", ["http://", "https:///x", "http://[::1/", "http://a:99999/", "nonsense"]
)
async def test_a_url_that_cannot_be_used_is_a_failure_that_does_not_repeat_it(url: str) -> None:
    outcome = await attempt(url)
    assert isinstance(outcome, Failed | Forbidden)
    assert url not in outcome.detail or url == "nonsense"


async def test_headers_that_cannot_be_sent_are_a_failure() -> None:
    async with Recorder() as receiver:
        outcome = await attempt(receiver.url, headers={"X-Bad": "a\r\nb: c"})
    assert outcome.kind is FailureKind.PROTOCOL


async def test_cancelling_the_caller_cancels_the_attempt() -> None:
    async with Hostile(silent) as receiver, WebhookSender(rules=LOOPBACK) as sender:
        task = asyncio.create_task(send(sender, subscribe(receiver.url)))
        await until(lambda: receiver.connections == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# Connections


async def test_connections_are_used_again() -> None:
    receiver = Recorder(answer=lambda _: Answer(200, b"ok"))
    async with sender_to(receiver) as (sender, subscription):
        for _ in range(5):
            await send(sender, subscription)
    assert receiver.connections == 1


async def test_a_hundred_attempts_at_once_need_no_free_slot() -> None:
    receiver = Recorder(answer=lambda _: Answer(delay=0.1))
    async with sender_to(receiver) as (sender, subscription):
        outcomes = await asyncio.gather(*[send(sender, subscription) for _ in range(150)])
    assert all(isinstance(outcome, Answered) for outcome in outcomes)


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_a_kept_connection_that_dies_before_an_answer_is_told_to_be_stale(
    ending: str,
) -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        getattr(writer.transport, ending)()

    async with sender_to(Hostile(once)) as (sender, subscription):
        assert isinstance(await send(sender, subscription), Answered)
        outcome = await send(sender, subscription)
    assert outcome.kind is FailureKind.RESET
    assert outcome.stale_connection


async def test_a_kept_connection_that_dies_within_an_answer_is_not_stale() -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 O")
        await writer.drain()
        writer.transport.abort()

    async with sender_to(Hostile(once)) as (sender, subscription):
        assert isinstance(await send(sender, subscription), Answered)
        outcome = await send(sender, subscription)
    assert outcome.kind is FailureKind.RESET
    assert not outcome.stale_connection


async def test_bytes_between_requests_are_not_taken_for_an_answer() -> None:
    seen_again = asyncio.Event()

    async def double(reader: Reader, writer: Writer) -> None:
        request = await read_request(reader)
        if request.headers["webhook-timestamp"] == "2":
            seen_again.set()
            writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(OK)
        await writer.drain()
        await answered.wait()
        writer.write(OK)
        await writer.drain()
        await reader.read()
        closed.set()

    answered, closed = asyncio.Event(), asyncio.Event()
    async with sender_to(Hostile(double)) as (sender, subscription):
        assert (await send(sender, subscription, timestamp=1)).status == 200
        answered.set()
        await asyncio.wait_for(closed.wait(), 5)
        assert (await send(sender, subscription, timestamp=2)).status == 500
    assert seen_again.is_set()


async def test_closing_idle_connections_makes_the_next_attempt_connect_anew() -> None:
    receiver = Recorder()
    async with sender_to(receiver) as (sender, subscription):
        await send(sender, subscription)
        sender.close_idle()
        await send(sender, subscription)
    assert receiver.connections == 2


async def test_connections_in_use_end_with_their_answer_after_closing_idle_ones() -> None:
    release = asyncio.Event()

    async def wait(_: Received) -> int:
        await release.wait()
        return 200

    receiver = Recorder(answer=wait)
    async with sender_to(receiver) as (sender, subscription):
        first = asyncio.create_task(send(sender, subscription))
        await receiver.wait_for(1)
        sender.close_idle()
        release.set()
        assert isinstance(await first, Answered)
        await send(sender, subscription)
    assert receiver.connections == 2


# Where requests may go

ANYWHERE_BUT_HOME = EgressRules(allow_http=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "\u2460\u2461\u2466.0.0.1",
        "127\u30020\u30020\u30021",
    ],
)
async def test_no_spelling_of_loopback_is_reached(host: str) -> None:
    async with Recorder(host="127.0.0.1") as receiver:
        outcome = await attempt(f"http://{host}:{receiver.port}/", rules=ANYWHERE_BUT_HOME)
        assert receiver.connections == 0
    # Some systems do not resolve these two at all.
    resolved = host not in {"localhost.", "\u2460\u2461\u2466.0.0.1"}
    assert isinstance(outcome, Forbidden) or (not resolved and isinstance(outcome, Failed))


async def test_the_forbidden_address_is_named() -> None:
    outcome = await attempt("http://localhost:1/", rules=ANYWHERE_BUT_HOME)
    assert isinstance(outcome, Forbidden)
    assert "is loopback" in outcome.detail


async def test_a_name_is_judged_again_at_every_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["127.0.0.1"]

    def resolve(_host: str, port: int, *_args: Any, **_options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    rules = EgressRules(allow=networks(["127.0.0.1"]), allow_http=True)
    async with Recorder() as receiver, WebhookSender(rules=rules) as sender:
        to = subscribe(f"http://hooks.example.com:{receiver.port}/")
        assert isinstance(await send(sender, to), Answered)
        addresses[:] = ["127.0.0.2"]
        sender.close_idle()
        sender._connector.clear_dns_cache()
        outcome = await send(sender, to)
    assert outcome == Forbidden("127.0.0.2 is loopback (127.0.0.0/8)", outcome.duration)


async def test_of_several_addresses_only_the_permitted_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(_host: str, port: int, *_args: Any, **_options: Any) -> list[Any]:
        rows = [("10.0.0.1", port), ("169.254.169.254", port), ("127.0.0.1", port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", row) for row in rows]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with Recorder() as receiver:
        url = f"http://hooks.example.com:{receiver.port}/"
        assert isinstance(await attempt(url), Answered)
        outcome = await attempt(url, rules=ANYWHERE_BUT_HOME)
    assert isinstance(outcome, Forbidden)
    assert "10.0.0.1" in outcome.detail
    assert "169.254.169.254" in outcome.detail
    assert "127.0.0.1" in outcome.detail
    refused = await attempt(f"http://hooks.example.com:{free_port()}/")
    assert refused.kind is FailureKind.CONNECT


async def test_plain_http_and_other_ports_are_forbidden_unless_allowed() -> None:
    async with Recorder() as receiver:
        everywhere = networks(["127.0.0.0/8"])
        no_http = await attempt(receiver.url, rules=EgressRules(allow=everywhere))
        other_port = await attempt(
            receiver.url,
            rules=EgressRules(allow=everywhere, allow_http=True, ports=frozenset({443})),
        )
        assert receiver.connections == 0
    assert no_http == Forbidden("http is not allowed, only https")
    assert other_port == Forbidden(f"port {receiver.port} is not an allowed port")


async def test_slow_names_do_not_hold_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **options: Any) -> list[Any]:
        if host.startswith("slow"):
            gate.wait(5)
        return real("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with Recorder() as receiver, WebhookSender(rules=LOOPBACK) as sender:
        slow = [
            asyncio.create_task(
                send(sender, subscribe(f"http://slow{number}.example.com:{receiver.port}/"))
            )
            for number in range(50)
        ]
        prompt = await send(sender, subscribe(f"http://prompt.example.com:{receiver.port}/"))
        gate.set()
        outcomes = await asyncio.gather(*slow)
    assert isinstance(prompt, Answered)
    assert prompt.duration < 1
    assert all(isinstance(outcome, Answered) for outcome in outcomes)


# TLS


async def test_a_certificate_of_the_subscriptions_authority_is_accepted(
    authority: Authority,
) -> None:
    async with Recorder(tls=authority.server()) as receiver:
        tls = TlsFiles(ca_file=authority.ca_file)
        outcome = await attempt(receiver.url, tls=tls, rules=EgressRules(allow=LOOPBACK.allow))
    assert isinstance(outcome, Answered)


@pytest.mark.parametrize(
    ("server", "trusts", "detail"),
    [
        ({}, False, "certificate of an unknown CA"),
        ({"expired": True}, True, "certificate has expired"),
        ({"host": "127.0.0.9"}, True, "certificate is for another address"),
        ({"host": "other.example.com"}, True, "certificate is for another address"),
    ],
)
async def test_bad_certificates_are_told_apart(
    authority: Authority, server: dict[str, Any], *, trusts: bool, detail: str
) -> None:
    tls = TlsFiles(ca_file=authority.ca_file) if trusts else TlsFiles()
    async with Recorder(tls=authority.server(**server)) as receiver:
        outcome = await attempt(receiver.url, tls=tls)
        assert receiver.requests == []
    assert outcome.kind is FailureKind.TLS
    assert outcome.detail == f"127.0.0.1:{receiver.port}: {detail}"


async def test_a_certificate_for_another_name_is_refused(authority: Authority) -> None:
    async with Recorder(tls=authority.server("other.example.com")) as receiver:
        url = f"https://localhost:{receiver.port}/"
        outcome = await attempt(url, tls=TlsFiles(ca_file=authority.ca_file))
    assert outcome.kind is FailureKind.TLS
    assert outcome.detail.endswith("certificate is for another host name")


async def test_a_client_certificate_is_shown_where_it_is_demanded(authority: Authority) -> None:
    cert, key = authority.issue("dispatcher")
    async with Recorder(tls=authority.server(demand_client=True)) as receiver:
        shown = TlsFiles(authority.ca_file, cert, key)
        accepted = await attempt(receiver.url, tls=shown)
        refused = await attempt(receiver.url, tls=TlsFiles(authority.ca_file))
    assert isinstance(accepted, Answered)
    # In TLS 1.3 the refusal comes after the handshake, and the end of the connection may overtake it.
    assert refused.kind in {FailureKind.TLS, FailureKind.RESET}


async def test_tls_older_than_1_2_is_not_spoken(authority: Authority) -> None:
    async with Recorder(tls=outdated(authority.server())) as receiver:
        outcome = await attempt(receiver.url, tls=TlsFiles(authority.ca_file))
        assert receiver.requests == []
    # The server may close the connection instead of saying why.
    assert outcome.kind in {FailureKind.TLS, FailureKind.RESET}


def test_refused_handshakes_are_told_apart(authority: Authority) -> None:
    client = ssl.create_default_context(cafile=authority.ca_file)
    demanding = authority.server(demand_client=True)
    assert describe(handshake_error(demanding, client)) == "the target demands a client certificate"
    demanding.maximum_version = ssl.TLSVersion.TLSv1_2
    assert describe(handshake_error(demanding, client)) == "the target refused the handshake"
    old = outdated(authority.server())
    assert describe(handshake_error(old, client)) == "the target speaks no TLS 1.2 or newer"


async def test_connections_of_different_client_certificates_are_not_mixed(
    authority: Authority,
) -> None:
    cert, key = authority.issue("dispatcher")
    async with (
        Recorder(tls=authority.server()) as receiver,
        WebhookSender(rules=LOOPBACK) as sender,
    ):
        await send(sender, subscribe(receiver.url, tls=TlsFiles(authority.ca_file)))
        await send(sender, subscribe(receiver.url, tls=TlsFiles(authority.ca_file, cert, key)))
        await send(sender, subscribe(receiver.url, tls=TlsFiles(authority.ca_file)))
        assert receiver.connections == 2


async def test_changed_certificate_files_are_taken_up(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    ca_file = tmp_path / "trusted.pem"
    shutil.copy(other.ca_file, ca_file)
    tls = TlsFiles(ca_file=str(ca_file))
    clock = Clock()
    async with (
        Recorder(tls=authority.server()) as receiver,
        WebhookSender(rules=LOOPBACK, clock=clock) as sender,
    ):
        to = subscribe(receiver.url, tls=tls)
        assert (await send(sender, to)).kind is FailureKind.TLS
        shutil.copy(authority.ca_file, ca_file)
        clock.ahead += 2
        assert isinstance(await send(sender, to), Answered)


@pytest.mark.parametrize("content", [None, "not a certificate"])
async def test_certificate_files_that_cannot_be_used_are_a_failure_of_tls(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    outcome = await attempt("https://127.0.0.1:1/", tls=TlsFiles(ca_file=str(path)))
    assert outcome.kind is FailureKind.TLS
    assert "certificate files cannot be used" in outcome.detail


async def test_plain_http_behind_an_https_url_is_a_failure_of_tls() -> None:
    async def speak(_reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with Hostile(speak) as receiver:
        outcome = await attempt(receiver.url.replace("http:", "https:"))
    assert outcome.kind is FailureKind.TLS
    assert outcome.detail.endswith("the target does not speak TLS")


# Behind a proxy


async def test_plain_requests_go_through_the_proxy_whose_address_is_exempt() -> None:
    async with (
        Recorder() as receiver,
        ConnectProxy(addresses={"hooks.example.com": "127.0.0.1"}) as proxy,
    ):
        url = f"http://hooks.example.com:{receiver.port}/hook"
        outcome = await attempt(
            url, rules=ANYWHERE_BUT_HOME, proxy=f"http://127.0.0.1:{proxy.port}"
        )
        assert isinstance(outcome, Answered)
        assert [request.path for request in proxy.seen] == [url]
        assert receiver.requests[0].body == BODY


async def test_https_goes_through_a_tunnel_with_the_proxys_credentials(
    authority: Authority,
) -> None:
    async with (
        Recorder(tls=authority.server("hooks.example.com")) as receiver,
        ConnectProxy(addresses={"hooks.example.com": "127.0.0.1"}) as proxy,
    ):
        outcome = await attempt(
            f"https://hooks.example.com:{receiver.port}/hook",
            rules=EgressRules(),
            proxy=f"http://user:word@127.0.0.1:{proxy.port}",
            tls=TlsFiles(ca_file=authority.ca_file),
        )
        assert isinstance(outcome, Answered)
        assert proxy.seen[0].method == "CONNECT"
        assert proxy.seen[0].path == f"hooks.example.com:{receiver.port}"
        assert proxy.seen[0].headers["Proxy-Authorization"] == "Basic dXNlcjp3b3Jk"
        assert "webhook-id" not in proxy.seen[0].headers
        assert "Proxy-Authorization" not in receiver.requests[0].headers


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "[::1]", "127.1", "0x7f.1", "localhost", "a.localhost."]
)
async def test_addresses_are_judged_before_the_proxy_is_asked(host: str) -> None:
    async with ConnectProxy() as proxy:
        outcome = await attempt(
            f"http://{host}/", rules=ANYWHERE_BUT_HOME, proxy=f"http://127.0.0.1:{proxy.port}"
        )
        assert isinstance(outcome, Forbidden)
        assert proxy.connections == 0


async def test_a_tunnel_that_the_proxy_refuses_is_a_failure_to_connect() -> None:
    async with ConnectProxy(refuse=502) as proxy:
        outcome = await attempt(
            "https://hooks.example.com/", proxy=f"http://127.0.0.1:{proxy.port}"
        )
    assert outcome.kind is FailureKind.CONNECT
    assert outcome.detail == "hooks.example.com:443: the proxy answered 502"


async def test_a_proxy_that_is_away_is_a_failure_to_connect() -> None:
    outcome = await attempt("https://hooks.example.com/", proxy=f"http://127.0.0.1:{free_port()}")
    assert outcome.kind is FailureKind.CONNECT
    assert "no connection to the proxy" in outcome.detail


async def test_a_proxy_that_is_silent_ends_by_the_connect_timeout() -> None:
    async with Hostile(silent) as proxy:
        outcome = await attempt(
            "https://hooks.example.com/",
            proxy=f"http://127.0.0.1:{proxy.port}",
            connect_timeout=0.2,
        )
    assert outcome.kind is FailureKind.TIMEOUT
    assert outcome.duration < 0.5


# Verifiers that are not ours


@pytest.mark.skipif(
    shutil.which("webhook") is None, reason="Debian's webhook program is not installed"
)
async def test_debians_webhook_program_accepts_hub_signatures(tmp_path: Path) -> None:
    port = free_port()
    hooks = tmp_path / "hooks.json"
    hooks.write_text(json.dumps([hook("secret")]))
    program = await asyncio.create_subprocess_exec(
        *["webhook", "-hooks", str(hooks), "-ip", "127.0.0.1", "-port", str(port)],
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}/hooks/checked"
        await until(lambda: can_connect(port))
        right = await attempt(url, signing=Signing(Scheme.HUB_SHA256, (b"secret", b"old")))
        wrong = await attempt(url, signing=Signing(Scheme.HUB_SHA256, (b"other",)))
    finally:
        program.terminate()
        await asyncio.wait_for(program.wait(), 5)
    assert right == Answered(200, right.duration, None, "accepted")
    assert wrong.status >= 400


def outdated(server: ssl.SSLContext) -> ssl.SSLContext:
    server.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server.minimum_version = ssl.TLSVersion.TLSv1
        server.maximum_version = ssl.TLSVersion.TLSv1_1
    return server


def handshake_error(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLError:
    """Shake hands in memory, and return what the client makes of the refusal."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    for _ in range(3):
        try:
            here.do_handshake()
            here.read(1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            return error
        with suppress(ssl.SSLError):
            there.do_handshake()
    raise AssertionError("the handshake was not refused")


def hook(secret: str) -> dict[str, Any]:
    rule = {
        "type": "payload-hmac-sha256",
        "secret": secret,
        "parameter": {"source": "header", "name": "X-Hub-Signature-256"},
    }
    return {
        "id": "checked",
        "execute-command": "/bin/true",
        "response-message": "accepted",
        "trigger-rule": {"match": rule},
    }


# Helpers


class Clock:
    ahead = 0.0

    def now(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:  # noqa: ASYNC109
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
