"""What a webhook request carries, and what every answer to it becomes."""

import asyncio
import base64
import json
import re
import shutil
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import standardwebhooks

from service import __version__
from service.core.delivery import Answered, FailureKind
from service.core.subscription import Scheme, Signing
from service.ports import free_port
from service.webhook.formats import Content
from service.webhook.protocol import Observation, WatchedProtocol
from service.webhook.sender import WebhookSender
from tests.receivers import Answer, Hostile, Reader, Recorder, Writer, floods, read_request, says
from tests.sending import (
    BODY,
    ID,
    KEY,
    LOOPBACK,
    OK,
    attempt,
    attempt_at,
    both_loops,
    can_connect,
    event_loop_policy,  # noqa: F401 - taken up by pytest-asyncio
    send,
    sender_to,
    subscribe,
    until,
)

pytestmark = both_loops


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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
    async with receiver, WebhookSender(rules=LOOPBACK) as sender:
        # By name: whoever keeps cookies may refuse those of a mere address.
        to = subscribe(f"http://localhost:{receiver.port}/hook")
        await send(sender, to)
        await send(sender, to)
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
        ("in 600 s", 590, 600),
        ("Sun Nov  6 08:49:37 1994", 0, 0),
    ],
)
async def test_retry_after_is_read(header: str, low: int, high: int) -> None:
    if header == "in 600 s":  # the date is that of the test, not of its collection
        header = formatdate(time.time() + 600, usegmt=True)
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


async def test_a_body_in_chunks_of_a_byte_is_not_read_to_its_end() -> None:
    protocol = WatchedProtocol(asyncio.get_running_loop())
    protocol.connection_made(Mock(asyncio.Transport, is_closing=lambda: False))
    protocol.set_response_params(read_until_eof=True, auto_decompress=False)
    protocol.serve(Observation())
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    protocol.data_received(head + b"1\r\nx\r\n" * 40_000)
    protocol.data_received(b"1\r\nx\r\n" * 10_000)
    message, payload = await protocol.read()
    assert message.code == 200
    assert len(await payload.read()) == 1 + 65_536 // len(b"1\r\nx\r\n")
    assert protocol.is_cut_short


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
