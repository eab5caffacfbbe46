"""Whatever a receiver does wrong is named, bounded, and never raised."""

import asyncio
import errno
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectorError
from aiohttp.http_exceptions import HttpProcessingError

from service.core.address import EgressRules
from service.core.delivery import Answered, Failed, FailureKind, Forbidden
from service.core.subscription import TlsFiles
from service.ports import free_port
from service.webhook import egress
from service.webhook.failures import failure
from service.webhook.formats import Content
from service.webhook.protocol import Observation, WatchedProtocol
from service.webhook.sender import WebhookSender
from service.webhook.tls import TlsFilesError
from tests.certificates import Authority
from tests.receivers import (
    Behaviour,
    Hostile,
    Reader,
    Recorder,
    Writer,
    deaf,
    drips,
    floods,
    resets,
    says,
    silent,
)
from tests.sending import (
    LOOPBACK,
    OK,
    attempt,
    attempt_at,
    both_loops,
    event_loop_policy,  # noqa: F401 - taken up by pytest-asyncio
    send,
    subscribe,
    until,
)

pytestmark = both_loops


def really_resets(*parts: bytes) -> Behaviour:
    """Read a request, send `parts`, and end the connection by a TCP reset."""

    async def behave(reader: Reader, writer: Writer) -> None:
        await says(*parts)(reader, writer)
        taken: socket.socket = writer.get_extra_info("socket")
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return behave


async def test_a_refused_connection_is_a_failure_to_connect() -> None:
    outcome = await attempt(f"http://127.0.0.1:{free_port()}/")
    assert outcome.kind is FailureKind.CONNECT
    assert outcome.detail.endswith("no connection: Connection refused")


async def test_a_name_that_does_not_resolve_is_a_failure_of_dns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
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
    async with stalls() as late:
        outcome = await attempt_at(behaviour, timeout=limit)
    assert outcome.kind is FailureKind.TIMEOUT
    assert outcome.detail.endswith(detail)
    assert limit - 0.002 < outcome.duration  # uvloop counts whole milliseconds
    assert outcome.duration < limit + 0.15 + sum(late)


@asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """Note by how many seconds the loop is late meanwhile, as it is where the machine does much else."""
    late: list[float] = []
    is_over = asyncio.Event()

    async def look() -> None:
        while not is_over.is_set():
            due = time.monotonic() + 0.02
            await asyncio.sleep(0.02)
            late.append(max(0.0, time.monotonic() - due))

    looking = asyncio.create_task(look())
    try:
        yield late
    finally:
        is_over.set()
        await looking


# A connection that is closed in order waits for its peer, and keeps a socket and the body for as long.
@pytest.mark.parametrize("answer", [b"", OK])
async def test_what_a_receiver_does_not_take_is_thrown_away_with_its_connection(
    answer: bytes,
) -> None:
    def read_late() -> int:
        taken, size = accepted.result(), 0
        taken.settimeout(10)
        while chunk := taken.recv(65_536):
            size += len(chunk)
        taken.close()
        return size

    def accept() -> socket.socket:
        taken, _ = listener.accept()
        taken.sendall(answer)
        return taken

    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        # So that the kernel holds less than the body.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        accepted = loop.run_in_executor(None, accept)
        async with WebhookSender(rules=LOOPBACK) as sender:
            to = subscribe(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.3)
            outcome = await send(sender, to, content=Content(b"x" * 1_000_000))
            assert isinstance(outcome, Answered if answer else Failed)
            await accepted
            assert await asyncio.to_thread(read_late) < 500_000


async def test_a_receiver_that_reads_nothing_of_a_large_body_ends_by_the_deadline() -> None:
    async with Hostile(deaf) as receiver, WebhookSender(rules=LOOPBACK) as sender:
        to = subscribe(receiver.url, timeout=0.3)
        outcome = await send(sender, to, content=Content(b"x" * 10_000_000))
    assert outcome.kind is FailureKind.TIMEOUT
    assert outcome.duration < 4


async def test_a_handshake_that_hangs_ends_by_the_connect_timeout() -> None:
    async with Hostile(silent) as receiver:
        url = receiver.url.replace("http:", "https:")
        outcome = await attempt(url, timeout=5.0, connect_timeout=0.2)
    assert outcome.kind is FailureKind.TIMEOUT
    assert outcome.detail.endswith("no connection in time")
    assert outcome.duration < 4


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
        really_resets(b"HTTP/1.1 200 OK\r\n\r\nhalf"),
        really_resets(b"HTTP/1.1 500 No\r\n\r\n"),
    ],
)
async def test_a_connection_that_ends_early_is_a_reset(behaviour: Behaviour) -> None:
    outcome = await attempt_at(behaviour)
    assert outcome.kind is FailureKind.RESET
    assert not outcome.stale_connection


async def test_a_reset_after_a_whole_answer_takes_nothing_of_it() -> None:
    assert (await attempt_at(really_resets(OK))).status == 200


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


@pytest.mark.parametrize(
    "behaviour",
    [
        None,
        says(b"\x00garbage\r\n\r\n"),
        resets(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        resets(),
    ],
    ids=["refused", "garbage", "half", "reset"],
)
async def test_a_failed_attempt_leaves_nothing_to_the_garbage_collector(
    behaviour: Behaviour | None,
) -> None:
    async with Hostile(behaviour or silent) as receiver, WebhookSender(rules=LOOPBACK) as sender:
        to = subscribe(receiver.url if behaviour else f"http://127.0.0.1:{free_port()}/")
        await send(sender, to)
        gc.collect()
        gc.disable()
        try:
            assert isinstance(await send(sender, to), Failed)
            await until(lambda: not left_behind())
        finally:
            gc.enable()


def left_behind() -> list[Any]:
    """Return the objects of attempts that are still there."""
    kinds = (Observation, WatchedProtocol, ClientConnectorError, HttpProcessingError)
    return [one for one in gc.get_objects() if isinstance(one, kinds)]


@pytest.mark.parametrize(
    ("url", "tls"),
    [("http://hooks.example.com/", {}), ("https://127.0.0.1/", {"ca_file": "ca.pem"})],
    ids=["lookup", "certificate files"],
)
async def test_that_we_lack_threads_is_no_fault_of_the_target(
    url: str, tls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.chdir(tmp_path)
    Authority(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        outcome = await attempt(url, tls=TlsFiles(**tls))
    assert outcome.kind is FailureKind.LOCAL


async def test_a_lack_of_ours_at_one_address_of_several_is_no_fault_of_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = {socket.AF_INET6: errno.ENETUNREACH, socket.AF_INET: errno.EADDRNOTAVAIL}

    def resolve(_host: str, port: int, *_args: Any, **_options: Any) -> list[Any]:
        kind = socket.SOCK_STREAM, 6, ""
        return [
            (socket.AF_INET6, *kind, ("2001:db8::1", port, 0, 0)),
            (socket.AF_INET, *kind, ("127.0.0.1", port)),
        ]

    def make(_rules: EgressRules, address: tuple[Any, ...]) -> socket.socket:
        number = numbers[address[0]]
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(egress, "_permitted_socket", make)
    outcome = await attempt("http://hooks.example.com/")
    assert outcome.kind is FailureKind.LOCAL
    assert outcome.detail.endswith("no connection: Cannot assign requested address")
    numbers[socket.AF_INET] = errno.ECONNREFUSED
    assert (await attempt("http://hooks.example.com/")).kind is FailureKind.CONNECT
    numbers[socket.AF_INET6] = errno.EADDRNOTAVAIL  # a machine without IPv6
    assert (await attempt("http://hooks.example.com/")).kind is FailureKind.CONNECT
    numbers[socket.AF_INET6] = errno.EMFILE
    assert (await attempt("http://hooks.example.com/")).kind is FailureKind.LOCAL


def test_certificate_files_that_we_lack_descriptors_for_are_no_fault_of_the_target() -> None:
    error = TlsFilesError("certificate files: Too many open files: /ca.pem")
    error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    outcome = failure(error, Observation(), place="a.example:443", duration=0.1)
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.LOCAL
