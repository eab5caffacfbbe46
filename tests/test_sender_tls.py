"""Certificates are verified and shown, and refusals are told apart."""

import asyncio
import os
import select
import shutil
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from service.clock import SystemClock
from service.core.address import EgressRules
from service.core.delivery import Answered, Failed, FailureKind
from service.core.subscription import TlsFiles
from service.webhook import tls as tls_module
from service.webhook.sender import WebhookSender
from service.webhook.tls import TlsContexts, TlsFilesError, describe
from tests.certificates import Authority
from tests.receivers import Hostile, Reader, Recorder, Writer
from tests.sending import (
    LOOPBACK,
    attempt,
    both_loops,
    event_loop_policy,  # noqa: F401 - taken up by pytest-asyncio
    send,
    subscribe,
    until,
)

pytestmark = both_loops


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    """A clock that stands, while looks at files are waited for, however long they take."""
    monkeypatch.setattr(tls_module, "_PATIENCE", 60.0)
    return Clock()


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


async def test_changed_certificate_files_are_taken_up(
    authority: Authority, tmp_path: Path, clock: "Clock"
) -> None:
    other = Authority(tmp_path, "other")
    ca_file = tmp_path / "trusted.pem"
    shutil.copy(other.ca_file, ca_file)
    tls = TlsFiles(ca_file=str(ca_file))
    async with (
        Recorder(tls=authority.server()) as receiver,
        WebhookSender(rules=LOOPBACK, clock=clock) as sender,
    ):
        to = subscribe(receiver.url, tls=tls)
        assert (await send(sender, to)).kind is FailureKind.TLS
        shutil.copy(authority.ca_file, ca_file)
        clock.ahead += 2
        assert isinstance(await send(sender, to), Answered)


async def test_a_link_that_leads_elsewhere_is_taken_up_where_all_files_have_one_time(
    authority: Authority, tmp_path: Path, clock: "Clock"
) -> None:
    other, link = Authority(tmp_path, "other"), tmp_path / "trusted.pem"
    for file in (authority.ca_file, other.ca_file):
        os.utime(file, (1, 1))
    link.symlink_to(other.ca_file)
    contexts, files = TlsContexts(clock), TlsFiles(str(link))
    before = await contexts.get(files)
    link.unlink()
    link.symlink_to(authority.ca_file)
    clock.ahead += 2
    assert await contexts.get(files) is not before


async def test_a_file_system_that_hangs_puts_no_certificate_out_of_force_and_stops_nobody_else(
    authority: Authority, tmp_path: Path, clock: "Clock", monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, free = TlsFiles(authority.ca_file), TlsFiles(Authority(tmp_path, "other").ca_file)
    may_go_on, hung = threading.Event(), threading.Event()
    contexts = TlsContexts(clock)
    good = await contexts.get(hanging)
    look = tls_module._stamps

    def hangs(files: TlsFiles) -> tuple[int, ...]:
        if files == hanging:
            hung.set()
            assert may_go_on.wait(20.0)
        return look(files)

    monkeypatch.setattr(tls_module, "_stamps", hangs)
    monkeypatch.setattr(tls_module, "_PATIENCE", 0.5)
    clock.ahead += 2
    assert await asyncio.gather(*(contexts.get(hanging) for _ in range(3))) == [good] * 3
    assert hung.is_set()
    await asyncio.sleep(0.5)
    with pytest.raises(StopIteration) as returned:
        contexts.get(hanging).send(None)  # at once: nobody waits for this look any more
    assert returned.value.value is good
    assert await contexts.get(free) is not good
    monkeypatch.setattr(tls_module, "_AT_MOST", 0.1)
    with pytest.raises(TlsFilesError, match="in time"):
        await TlsContexts(clock).get(hanging)
    may_go_on.set()
    await until(lambda: not contexts._looks)
    assert await contexts.get(hanging) is good


async def test_certificates_that_are_not_read_in_time_are_no_fault_of_the_target(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = Builds(monkeypatch)
    to = subscribe("https://127.0.0.1:1/", tls=TlsFiles(authority.ca_file), timeout=0.2)
    async with WebhookSender(rules=LOOPBACK) as sender:
        builds.may_end.clear()
        outcome = await send(sender, to)
        builds.may_end.set()
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.LOCAL
    assert "could not be read in time" in outcome.detail


@pytest.mark.parametrize("name", ["ca_file", "client_cert_file", "client_key_file"])
@pytest.mark.parametrize("cut", [0, 100, None])  # bytes that are left, None: no file
async def test_certificates_in_use_stay_in_force_where_their_files_go_bad(
    authority: Authority, clock: "Clock", name: str, cut: int | None
) -> None:
    cert, key = authority.issue("dispatcher")
    files = TlsFiles(authority.ca_file, cert, key)
    contexts = TlsContexts(clock)
    good = await contexts.get(files)
    path = Path(getattr(files, name))
    text = replace_with(path, lambda text: None if cut is None else text[:cut])
    for _ in range(2):
        clock.ahead += 2
        assert await contexts.get(files) is good
    replace_with(path, lambda _: text)
    assert await contexts.get(files) is good  # it looked at them within the last second
    clock.ahead += 2
    assert await contexts.get(files) is not good


async def test_a_target_is_reached_while_a_rotation_has_changed_only_the_certificate(
    authority: Authority, clock: "Clock"
) -> None:
    cert, key = authority.issue("dispatcher")
    other, _ = authority.issue("other")
    async with (
        Recorder(tls=authority.server(demand_client=True)) as receiver,
        WebhookSender(rules=LOOPBACK, clock=clock) as sender,
    ):
        to = subscribe(receiver.url, tls=TlsFiles(authority.ca_file, cert, key))
        assert isinstance(await send(sender, to), Answered)
        shutil.copy(other, cert)
        clock.ahead += 2
        assert isinstance(await send(sender, to), Answered)
        assert receiver.connections == 1


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("ca_file", None, "No such file or directory"),
        ("ca_file", b"no PEM", "no certificates in PEM form"),
        ("client_cert_file", None, "No such file or directory"),
        ("client_cert_file", b"no PEM", "no certificate in PEM form with its key"),
        ("client_key_file", None, "No such file or directory"),
        ("client_key_file", b"no PEM", "no certificate in PEM form with its key"),
    ],
)
async def test_certificate_files_that_cannot_be_used_are_named_and_no_fault_of_the_target(
    authority: Authority, name: str, content: bytes | None, wrong: str
) -> None:
    files = TlsFiles(authority.ca_file, *authority.issue("dispatcher"))
    path = Path(getattr(files, name))
    replace_with(path, lambda _: content)
    with pytest.raises(TlsFilesError) as raised:
        await TlsContexts(SystemClock()).get(files)
    assert str(path) in str(raised.value)
    assert wrong in str(raised.value)
    outcome = await attempt("https://127.0.0.1:1/", tls=files)
    assert outcome.kind is FailureKind.LOCAL
    assert outcome.detail == f"127.0.0.1:1: {raised.value}"[:200]
    assert wrong in outcome.detail


async def test_those_who_need_a_context_at_once_share_one(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = Builds(monkeypatch)
    contexts, files = TlsContexts(SystemClock()), TlsFiles(authority.ca_file)
    found = await asyncio.gather(*(contexts.get(files) for _ in range(8)))
    assert len(set(map(id, found))) == 1
    assert builds.of == [TlsFiles(), files]


async def test_one_who_gives_up_waiting_for_a_context_takes_it_from_nobody(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = Builds(monkeypatch)
    contexts, files = TlsContexts(SystemClock()), TlsFiles(authority.ca_file)
    builds.may_end.clear()
    waiting = [asyncio.create_task(contexts.get(files)) for _ in range(3)]
    await until(lambda: len(builds.of) == 2)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    builds.may_end.set()
    first, second, third = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, ssl.SSLContext)
    assert third is second
    assert await contexts.get(files) is second
    assert builds.of == [TlsFiles(), files]


async def test_a_context_that_could_not_be_built_is_tried_again(
    authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "trusted.pem"
    contexts, files = TlsContexts(SystemClock()), TlsFiles(str(path))
    failed = await asyncio.gather(*(contexts.get(files) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [TlsFilesError] * 3
    shutil.copy(authority.ca_file, path)
    assert isinstance(await contexts.get(files), ssl.SSLContext)


async def test_plain_http_behind_an_https_url_is_a_failure_of_tls() -> None:
    async def speak(_reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with Hostile(speak) as receiver:
        outcome = await attempt(receiver.url.replace("http:", "https:"))
    assert outcome.kind is FailureKind.TLS
    assert outcome.detail.endswith("the target does not speak TLS")


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


class Clock:
    ahead = 0.0

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return self._began + self.ahead


def replace_with(path: Path, changed: Callable[[bytes], bytes | None]) -> bytes:
    """Write a file anew, or remove it where there is nothing to write, and return what it held."""
    before = path.read_bytes() if path.exists() else b""
    path.unlink(missing_ok=True)
    if (after := changed(before)) is not None:
        path.write_bytes(after)
    return before


class Builds:
    """Notes of what files contexts are built, and keeps builds from ending while `may_end` is clear."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: list[TlsFiles] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self._build = tls_module._context
        monkeypatch.setattr(tls_module, "_context", self)

    def __call__(self, files: TlsFiles) -> ssl.SSLContext:
        self.of.append(files)
        assert self.may_end.wait(5.0)
        return self._build(files)


def test_no_key_exchange_is_offered_whose_size_the_target_chooses(authority: Authority) -> None:
    offered = TlsContexts(SystemClock()).default.get_ciphers()
    assert {cipher["kea"] for cipher in offered} == {"kx-any", "kx-ecdhe"}


async def test_tls_1_2_is_spoken(authority: Authority) -> None:
    context = authority.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with Recorder(tls=context) as receiver:
        outcome = await attempt(receiver.url, tls=TlsFiles(ca_file=authority.ca_file))
    assert isinstance(outcome, Answered)


async def test_a_receiver_that_says_no_farewell_keeps_no_descriptors(authority: Authority) -> None:
    async with (
        Unparting(authority.server()) as receiver,
        WebhookSender(rules=LOOPBACK) as sender,
    ):
        for _ in range(5):
            outcome = await send(sender, subscribe(receiver.url, tls=TlsFiles(authority.ca_file)))
            assert isinstance(outcome, Answered)
        assert len(receiver.taken) == 5
        await until(lambda: all(map(is_left, receiver.taken)))


class Unparting:
    """Answers over TLS that it closes the connection, and neither does nor notices that the other does."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.taken: list[socket.socket] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in (self._listener, *self.taken):
            connection.close()
        self._thread.join(5.0)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                tls = self._tls.wrap_socket(connection, server_side=True)
                tls.recv(65_536)
                self.taken.append(tls)
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def is_left(connection: socket.socket) -> bool:
    """Tell whether the other side has closed the connection; reads nothing."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))
