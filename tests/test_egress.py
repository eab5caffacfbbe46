"""Requests go where the egress rules allow, by whatever name or way."""

import asyncio
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from service.core.address import EgressRules
from service.core.delivery import Answered, Failed, FailureKind, Forbidden
from service.core.subscription import TlsFiles
from service.ports import free_port
from service.webhook import egress
from service.webhook.resolver import ThreadResolver
from service.webhook.sender import WebhookSender
from tests.certificates import Authority
from tests.receivers import ConnectProxy, Hostile, Reader, Recorder, Writer, says, silent
from tests.sending import (
    BODY,
    LOOPBACK,
    attempt,
    both_loops,
    event_loop_policy,  # noqa: F401 - taken up by pytest-asyncio
    networks,
    send,
    subscribe,
)

pytestmark = both_loops

ANYWHERE_BUT_HOME = EgressRules(allow_http=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


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
    rules = EgressRules(allow=networks("127.0.0.1"), allow_http=True)
    async with Recorder() as receiver, WebhookSender(rules=rules) as sender:
        to = subscribe(f"http://hooks.example.com:{receiver.port}/")
        assert isinstance(await send(sender, to), Answered)
        addresses[:] = ["127.0.0.2"]
        for [(protocol, _)] in sender._connector._conns.values():
            protocol.close()
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


async def test_of_a_name_with_very_many_addresses_a_few_of_each_family_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(_host: str, port: int, *_args: Any, **_options: Any) -> list[Any]:
        v4 = [(f"127.0.{n // 250}.{n % 250}", port) for n in range(2000)]
        v6 = [(f"2001:db8::{n:x}", port, 0, 0) for n in range(2000)]
        return [
            (family, socket.SOCK_STREAM, 6, "", row)
            for family, rows in ((socket.AF_INET, v4), (socket.AF_INET6, v6))
            for row in rows
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    found = await ThreadResolver().resolve("hooks.example.com", 443)
    assert [one["host"] for one in found] == [
        *(f"127.0.0.{n}" for n in range(8)),
        *(f"2001:db8::{n:x}" for n in range(8)),
    ]


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Have every name resolve to these; return where sockets are made for, as they are."""
    begun = []
    real = egress._permitted_socket

    def resolve(_host: str, port: int, *_args: Any, **_options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in addresses]

    def make(rules: EgressRules, address: tuple[Any, ...]) -> socket.socket:
        begun.append(address[4][0])
        return real(rules, address)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(egress, "_permitted_socket", make)
    return begun


async def breaks_off(_reader: Reader, writer: Writer) -> None:
    writer.transport.abort()


async def test_each_address_that_refuses_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [f"127.0.0.{n}" for n in range(1, 9)]
    begun = resolving(monkeypatch, *addresses)
    refused = await attempt(f"http://hooks.example.com:{free_port()}/")
    assert refused.kind is FailureKind.CONNECT
    assert begun == addresses


async def test_an_attempt_makes_sixteen_connects_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Hostile(breaks_off) as receiver:
        begun = resolving(monkeypatch, *(f"127.0.0.{n}" for n in range(8, 0, -1)))
        outcome = await attempt(f"https://hooks.example.com:{receiver.port}/")
    assert isinstance(outcome, Failed)
    assert len(begun) <= 16


async def test_where_one_address_breaks_off_the_handshake_the_next_is_tried(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
    broken = Hostile(breaks_off)
    broken.host = "127.0.0.2"
    async with Recorder(tls=authority.server("hooks.example.com")) as receiver:
        broken.port = receiver.port
        async with broken:
            outcome = await attempt(
                f"https://hooks.example.com:{receiver.port}/", tls=TlsFiles(authority.ca_file)
            )
    assert isinstance(outcome, Answered)
    assert begun == ["127.0.0.2", "127.0.0.1"]


async def test_plain_http_and_other_ports_are_forbidden_unless_allowed() -> None:
    async with Recorder() as receiver:
        everywhere = networks("127.0.0.0/8")
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
        assert not any(one.done() for one in slow)
        gate.set()
        outcomes = await asyncio.gather(*slow)
    assert isinstance(prompt, Answered)
    assert all(isinstance(outcome, Answered) for outcome in outcomes)


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


@pytest.mark.parametrize("dot", ["", "."])
async def test_https_goes_through_a_tunnel_with_the_proxys_credentials(
    authority: Authority, dot: str
) -> None:
    host = f"hooks.example.com{dot}"
    async with (
        Recorder(tls=authority.server("hooks.example.com")) as receiver,
        ConnectProxy(addresses={host: "127.0.0.1"}) as proxy,
    ):
        outcome = await attempt(
            f"https://{host}:{receiver.port}/hook",
            rules=EgressRules(),
            proxy=f"http://user:word@127.0.0.1:{proxy.port}",
            tls=TlsFiles(ca_file=authority.ca_file),
        )
        assert isinstance(outcome, Answered)
        assert proxy.seen[0].method == "CONNECT"
        assert proxy.seen[0].path == f"{host}:{receiver.port}"
        assert proxy.seen[0].headers["Proxy-Authorization"] == "Basic dXNlcjp3b3Jk"
        assert "webhook-id" not in proxy.seen[0].headers
        assert "Proxy-Authorization" not in receiver.requests[0].headers


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_a_proxy_over_tls_is_trusted_as_the_system_says_and_shown_no_certificate(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, secure: bool
) -> None:
    system = Authority(tmp_path, "system")
    monkeypatch.setenv("SSL_CERT_FILE", system.ca_file)
    at_proxy = system.server()
    at_proxy.load_verify_locations(system.ca_file)
    at_proxy.verify_mode = ssl.CERT_OPTIONAL  # refuses the subscription's, of another authority
    async with (
        Recorder(
            tls=authority.server("hooks.example.com", demand_client=True) if secure else None
        ) as receiver,
        ConnectProxy(addresses={"hooks.example.com": "127.0.0.1"}, tls=at_proxy) as proxy,
    ):
        outcome = await attempt(
            f"http{'s' * secure}://hooks.example.com:{receiver.port}/hook",
            proxy=f"https://127.0.0.1:{proxy.port}",
            tls=TlsFiles(authority.ca_file, *authority.issue("dispatcher")),
        )
        assert isinstance(outcome, Answered)
        assert len(proxy.seen) == 1


async def test_the_holder_of_a_subscriptions_authority_cannot_pose_as_the_proxy(
    authority: Authority,
) -> None:
    async with ConnectProxy(tls=authority.server()) as proxy:
        outcome = await attempt(
            "https://hooks.example.com/",
            proxy=f"https://user:word@127.0.0.1:{proxy.port}",
            tls=TlsFiles(authority.ca_file),
        )
        assert proxy.seen == []
    assert outcome.kind is FailureKind.TLS


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


async def test_a_proxy_that_speaks_no_http_is_told_apart_from_its_target() -> None:
    async with Hostile(says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as proxy:
        outcome = await attempt(
            "https://hooks.example.com/", proxy=f"http://127.0.0.1:{proxy.port}"
        )
    assert outcome.kind is FailureKind.PROTOCOL
    assert outcome.detail == "hooks.example.com:443: what the proxy answered is no HTTP"


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
    assert outcome.duration < 3
