"""Receivers that mean harm, each beside a healthy one: the harm has a name, and stays where it is.

One real dispatcher serves all the hostile targets of a test and a healthy one, which wants every event.
The hostile outcome must be told by its name in the line of the attempt, within the subscription's
timeout; the healthy target must get everything, promptly, all the while.
"""

import asyncio
import base64
import gzip
import json
import os
import resource
import socket
import ssl
import statistics
import time
import warnings
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from service.publish import Publisher
from tests.certificates import Authority
from tests.dispatcher import ROOT, Dispatcher, Station, station, subscription
from tests.receivers import (
    Answer,
    Behaviour,
    Hostile,
    Reader,
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

TIMEOUT = 1.5
"""Seconds for an attempt at a target that is to take longer."""
PATIENT = 15.0
"""Seconds for an attempt at one that is to end it by itself, also while the machine is busy."""
PROMPT = 4.0
"""Seconds in which the healthy target must have an event, half of them in much less."""
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


@dataclass(frozen=True)
class Harm:
    """A receiver, or where there is none, and the name that its doing must get."""

    name: str
    receiver: Server | str
    kind: str
    error: str = ""
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def kinds(self) -> set[str]:
        return set(self.kind.split("|"))

    @property
    def timeout(self) -> float:
        return TIMEOUT if "timeout" in self.kinds else PATIENT

    @property
    def url(self) -> str:
        return self.receiver if isinstance(self.receiver, str) else self.receiver.url

    def wants(self) -> dict[str, Any]:
        """Return a subscription that asks for this trouble, once a message."""
        return subscription(
            self.name,
            self.url,
            timeout=f"{self.timeout}s",
            retry={"schedule": []},
            **dict(self.more),
        )


def does(name: str, behaviour: Behaviour, kind: str, error: str = "") -> Harm:
    return Harm(name, Hostile(behaviour), kind, error)


async def meet(it: Station, harms: list[Harm], rounds: int = 4) -> None:
    """Send events to all of these and a healthy one; see each end as it must."""
    async with AsyncExitStack() as stack:
        for harm in harms:
            if isinstance(harm.receiver, Server):
                await stack.enter_async_context(harm.receiver)
        healthy = await stack.enter_async_context(Recorder())
        dispatcher = await it.dispatcher(
            *(harm.wants() for harm in harms), subscription("healthy", healthy.url)
        )
        await beside(it, healthy, rounds)
        await dispatcher.until(lambda: len(ended(dispatcher)) == rounds * len(harms))
        see_names(dispatcher, harms)
        assert await dispatcher.stop() == 0
        assert dispatcher.stderr == ""


def see_names(dispatcher: Dispatcher, harms: list[Harm]) -> None:
    """See that each harm has its name, in time, and the healthy target has none."""
    told = {harm.name: names(dispatcher, harm.name) for harm in harms}
    wrong = {
        harm.name: told[harm.name] for harm in harms if not set() < told[harm.name] <= harm.kinds
    }
    assert not wrong
    for harm in harms:
        for line in failed(dispatcher, harm.name):
            assert harm.error in line["error"], line
            assert line["duration_ms"] < 1000 * (harm.timeout + 10), line
    assert not failed(dispatcher, "healthy")
    assert not dispatcher.of("service.fault")
    assert not dispatcher.of("broker.disconnected")


async def beside(it: Station, healthy: Recorder, rounds: int) -> None:
    """Publish an event at a time, and see that the healthy target has each of them soon."""
    took = []
    async with Publisher(it.amqp_url, it.exchange) as publisher:
        for number in range(rounds):
            started = time.monotonic()
            await publisher.publish("thing.made", {"n": number}, tenant="t")
            await healthy.wait_for(number + 1, PROMPT)
            took.append(time.monotonic() - started)
    assert statistics.median(took) < PROMPT / 8, took


ENDINGS = {"attempt.succeeded", "delivery.dead_lettered", "delivery.deferred"}


def ended(dispatcher: Dispatcher) -> set[tuple[str, str]]:
    """Return the deliveries to hostile targets that have ended, or are put off, by name."""
    return {
        (line["event_id"], line["subscription_id"])
        for line in dispatcher.lines
        if line["message"] in ENDINGS and line["subscription_id"] != "healthy"
    }


def names(dispatcher: Dispatcher, subscription_id: str) -> set[str]:
    """Return what the attempts at a subscription were said to have come to."""
    delivered = dispatcher.of("attempt.succeeded", subscription_id=subscription_id)
    kinds = {line["error.type"] for line in failed(dispatcher, subscription_id)}
    return kinds | {"delivered" for _ in delivered}


def failed(dispatcher: Dispatcher, subscription_id: str) -> list[dict[str, Any]]:
    """Return the attempts that failed, without those that the machine's own pauses put an end to."""
    return [
        line
        for line in dispatcher.of("attempt.failed", subscription_id=subscription_id)
        if "this process was stopped for" not in line["error"]
    ]


class Unaccepting(Server):
    """Listens, and its queue of connections is full: the next never gets an answer to its SYN."""

    async def __aenter__(self) -> Self:
        self._listener = socket.socket()
        self._listener.bind((self.host, 0))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        self._waiting = [socket.socket() for _ in range(4)]
        for one in self._waiting:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect((self.host, self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in (self._listener, *self._waiting):
            one.close()


class OverTls(Hostile):
    """A receiver of TLS connections that speaks none."""

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")


async def test_hanging_at_any_stage_is_a_timeout_that_names_the_stage(it):
    await meet(
        it,
        [
            Harm("accept", Unaccepting(), "timeout", "no connection in time"),
            Harm("handshake", OverTls(silent), "timeout", "no connection in time"),
            Harm("deaf-handshake", OverTls(deaf), "timeout", "no connection in time"),
            does("deaf", deaf, "timeout", "no answer in time"),
            does("headers", silent, "timeout", "no answer in time"),
            does("half-headers", hangs(HEAD + b"X-A: b"), "timeout", "answer not complete in time"),
            does("interim", hangs(b"HTTP/1.1 102 Processing\r\n\r\n"), "timeout", "in time"),
            does(
                "body", hangs(HEAD + b"Content-Length: 5\r\n\r\nhalf"), "timeout", "answer 200 not"
            ),
            does(
                "chunk",
                hangs(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf"),
                "timeout",
                "answer 200 not",
            ),
            does("close-delimited", hangs(HEAD + b"\r\nbody"), "timeout", "answer 200 not"),
            does("error-body", hangs(b"HTTP/1.1 500 X\r\n\r\n"), "timeout", "answer 500 not"),
        ],
    )


def hangs(*parts: bytes) -> Behaviour:
    """Read a request, say `parts`, and never a word more."""

    async def behave(reader: Reader, writer: Writer) -> None:
        await says(*parts)(reader, writer)
        await asyncio.Event().wait()

    return behave


async def drips_a_handshake(_reader: Reader, writer: Writer) -> None:
    for byte in b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + bytes(16_000):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def test_dripping_gains_no_time(it):
    await meet(
        it,
        [
            Harm("tls", OverTls(drips_a_handshake), "timeout", "no connection in time"),
            does("status", drips(b"HTTP/1.1 200 ", 0.02), "timeout", "not complete in time"),
            does("header", drips(HEAD + b"X-A: ", 0.02), "timeout", "not complete in time"),
            does("body", drips(HEAD + b"Content-Length: 9999\r\n\r\n", 0.02), "timeout", "answer 200"),
            does("chunk-size", drips(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", 0.02), "timeout"),
            does("empty-lines", forever(b"\r\n", 0.02), "timeout", "in time"),
            does("interims", forever(b"HTTP/1.1 103 Early\r\n\r\n", 0.2), "timeout", "in time"),
            does("chunks", forever(b"1\r\nx\r\n", 0.02, HEAD + CHUNKED), "timeout", "answer 200"),
        ],
    )  # fmt: skip


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def forever(part: bytes, every: float, head: bytes = b"") -> Behaviour:
    """Read a request, say `head`, and then `part` every so many seconds."""

    async def behave(reader: Reader, writer: Writer) -> None:
        await says(head)(reader, writer)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(every)

    return behave


BOMB = gzip.compress(bytes(50_000_000), 9)
MANY_HEADERS = b"".join(b"X-%d: y\r\n" % n for n in range(5_000))


async def test_floods_and_bombs_are_cut_off_and_memory_stays_flat(it):
    def answer(body: bytes, *more: bytes) -> Behaviour:
        lines = [b"Content-Length: %d" % len(body), b"Connection: close", *more]
        return says(HEAD + b"\r\n".join(lines) + b"\r\n\r\n" + body)

    deflated = zlib.compress(bytes(50_000_000), 9)
    harms = [
        does("interims", floods(b"", b"HTTP/1.1 103 Early\r\n\r\n" * 50), "protocol", "interim"),
        does("continues", floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "protocol", "interim"),
        does("headers", says(HEAD + MANY_HEADERS + b"\r\n"), "protocol", "not an HTTP answer"),
        does("endless-headers", floods(HEAD, MANY_HEADERS), "protocol", "not an HTTP answer"),
        does("long-header", floods(HEAD + b"X: ", b"y" * 9_999), "protocol", "not an HTTP answer"),
        does("long-status", floods(b"HTTP/1.1 200 ", b"y" * 9_999), "protocol", "not an HTTP"),
        does("empty-lines", floods(b"", b"\r\n" * 5_000), "protocol", "before its end"),
        does("extension", floods(HEAD + CHUNKED + b"1;", b"x" * 9_999), "protocol", "before its end"),
        does("gzip", answer(BOMB, b"Content-Encoding: gzip"), "delivered"),
        does("twice", answer(gzip.compress(BOMB), b"Content-Encoding: gzip, gzip"), "delivered"),
        does("deflate", answer(deflated, b"Content-Encoding: deflate"), "delivered"),
        does("body", floods(HEAD + b"\r\n", b"x" * 65_536), "delivered"),
        does("error-body", floods(b"HTTP/1.1 500 X\r\n\r\n", b"x" * 65_536), "500"),
        does("chunks", floods(HEAD + CHUNKED, b"4000\r\n" + b"x" * 16_384 + b"\r\n"), "delivered"),
        does("trailers", floods(HEAD + CHUNKED + b"0\r\n", MANY_HEADERS), "protocol"),
        does("cookies", answer(b"", *[b"Set-Cookie: a=b"] * 90), "delivered"),
    ]  # fmt: skip
    resident: list[int] = []
    async with AsyncExitStack() as stack:
        for harm in harms:
            await stack.enter_async_context(harm.receiver)  # type: ignore[arg-type]
        healthy = await stack.enter_async_context(Recorder())
        dispatcher = await it.dispatcher(
            *(harm.wants() for harm in harms), subscription("healthy", healthy.url)
        )
        done = 0
        for rounds in (4, 6, 8):
            healthy.requests.clear()
            await beside(it, healthy, rounds)
            done += rounds * len(harms)
            await dispatcher.until(lambda done=done: len(ended(dispatcher)) == done)
            resident.append(resident_bytes(dispatcher))
        see_names(dispatcher, harms)
        assert resident[-1] - resident[0] < 30_000_000, resident
        assert await dispatcher.stop() == 0
        assert dispatcher.stderr == ""


def resident_bytes(dispatcher: Dispatcher) -> int:
    statm = Path(f"/proc/{dispatcher.pid}/statm").read_text()
    return int(statm.split()[1]) * resource.getpagesize()


async def test_lies_about_length_end_by_what_they_are(it):
    ok = HEAD + b"Connection: close\r\nContent-Length: %b\r\n\r\n"
    # Complete without a body: kept, its connection might be taken again just as it closes.
    unmodified = b"HTTP/1.1 304 X\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
    await meet(
        it,
        [
            does("longer", says(ok % b"1000000" + b"short"), "reset", "half way through the answer's"),
            does("huge", says(ok % (b"9" * 18) + b"x"), "reset", "half way"),
            does("beyond", says(ok % (b"9" * 400) + b"x"), "protocol", "not an HTTP answer"),
            does("negative", says(ok % b"-1"), "protocol", "not an HTTP answer"),
            does("hex", says(ok % b"0x10" + b"x" * 16), "protocol", "not an HTTP answer"),
            does("two", says(ok % b"1\r\nContent-Length: 2" + b"xx"), "protocol", "not an HTTP"),
            does("shorter", says(ok % b"2" + b"ok" + b"x" * 100_000), "delivered"),
            does("chunk-longer", says(HEAD + CHUNKED + b"ffff\r\nx"), "reset", "half way"),
            does("chunk-shorter", says(HEAD + CHUNKED + b"1\r\nxyz\r\n0\r\n\r\n"), "protocol"),
            does("chunk-beyond", says(HEAD + CHUNKED + b"f" * 40 + b"\r\nx"), "protocol"),
            does("no-last-chunk", says(HEAD + CHUNKED + b"1\r\nx\r\n"), "reset", "half way"),
            does("both", says(HEAD + b"Content-Length: 5\r\n" + CHUNKED + b"0\r\n\r\n"), "protocol"),
            does("204", says(b"HTTP/1.1 204 X\r\nContent-Length: 9\r\n\r\nsurprise!"), "delivered"),
            does("204-bare", says(b"HTTP/1.1 204 X\nContent-Length: 9\n\nsurprise!"), "delivered"),
            does("204-chunks", says(b"HTTP/1.1 204 X\r\n" + CHUNKED + b"0\r\n\r\n"), "delivered"),
            does("205", says(b"HTTP/1.0 205 X\r\n\r\nsurprise!"), "delivered"),
            does("100-204", says(CONTINUE + b"HTTP/1.1 204 X\r\n\r\n{}"), "delivered"),
            does("100s-200", says(CONTINUE * 100 + ok % b"0"), "protocol", "interim"),
            does("503", says(b"HTTP/1.1 503 X\r\nContent-Length: 1\r\n\r\nsurprise!"), "503"),
            does("304", says(unmodified), "304", "status 304"),
        ],
    )  # fmt: skip


def echoes(garble: Callable[[bytes], bytes]) -> Behaviour:
    """Answer with the request itself, made into something that is no HTTP."""

    async def behave(reader: Reader, writer: Writer) -> None:
        found = await read_request(reader)
        head = "|".join(
            [found.path, *(f"{name}: {value}" for name, value in found.headers.items())]
        )
        writer.write(garble(head.encode() + b"|" + found.body))
        await writer.drain()
        writer.close()

    return behave


ECHOES: dict[str, Callable[[bytes], bytes]] = {
    "status": lambda request: request + b"\r\n\r\n",
    "status-text": lambda request: b"HTTP/1.1 200 " + request + b"\0\r\n\r\n",
    "version": lambda request: b"HTTP/" + request + b"\r\n\r\n",
    "name": lambda request: HEAD + request + b"\r\n\r\n",
    "value": lambda request: HEAD + b"X-Echo: " + request + b"\0\r\n\r\n",
    "long": lambda request: HEAD + b"X-Echo: " + request * 200 + b"\r\n\r\n",
    "length": lambda request: HEAD + b"Content-Length: " + request + b"\r\n\r\n",
    "encoding": lambda request: HEAD + b"Transfer-Encoding: " + request + b"\r\n\r\n",
    "chunk": lambda request: HEAD + CHUNKED + request + b"\r\n",
    "body": lambda request: b"HTTP/1.1 500 X\r\n\r\n" + request,
}


async def test_what_an_answer_repeats_of_its_request_is_not_logged(it):
    secrets = ("SECRET-USER", "SECRET-PASSWORD", "SECRET-QUERY", "SECRET-DATA", "SECRET-HEADER")
    user, password, query, data, header = secrets
    async with AsyncExitStack() as stack:
        wanted = []
        for name, garble in ECHOES.items():
            receiver = await stack.enter_async_context(Hostile(echoes(garble)))
            url = receiver.url.replace("://", f"://{user}:{password}@") + f"?token={query}"
            more = {"retry": {"schedule": []}, "headers": {"X-Key": header}}
            wanted.append(subscription(name, url, **more))
        dispatcher = await it.dispatcher(*wanted)
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            await publisher.publish("thing.made", {"card": data})
        await dispatcher.until(lambda: len(ended(dispatcher)) == len(wanted))
        shown = "\n".join(dispatcher.raw)
        assert await dispatcher.stop() == 0
    sent = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert not [secret for secret in (*secrets, sent, "v1,") if secret in shown]
    failed = dispatcher.of("attempt.failed", **{"error.type": "protocol"})
    assert (
        len(failed) == 7
    )  # a strange text behind a status, and an unknown coding, are none of our business
    listed = await it.command("dead", "list")
    assert not [secret for secret in (*secrets, sent, "v1,") if secret in listed]


async def test_an_answer_given_before_its_question_is_nobodys(it):
    """Two answers for one request: the second must not pass for the delivery that comes next."""
    taken = []

    async def twice(reader: Reader, writer: Writer) -> None:
        while True:
            taken.append(await read_request(reader))
            writer.write((HEAD + b"Content-Length: 0\r\n\r\n") * 2)
            await writer.drain()

    async with Hostile(twice) as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url))
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            for number in range(10):
                await publisher.publish("thing.made", {"n": number})
                await dispatcher.line("attempt.succeeded", number + 1)
        assert await dispatcher.stop() == 0
    assert [json.loads(request.body)["data"]["n"] for request in taken] == list(range(10))


async def test_resets_at_any_stage_are_resets(it):
    async def at_once(_: Reader, writer: Writer) -> None:
        writer.transport.abort()

    async def in_the_handshake(reader: Reader, writer: Writer) -> None:
        await reader.read(1)
        writer.transport.abort()

    await meet(
        it,
        [
            does("accept", at_once, "reset", "connection closed"),
            Harm("tls-accept", OverTls(at_once), "reset", "connection closed"),
            Harm("handshake", OverTls(in_the_handshake), "reset", "connection closed"),
            does("request", resets(), "reset", "before an answer"),
            does("headers", resets(HEAD + b"X: y"), "reset", "half way"),
            does("body", resets(HEAD + b"Content-Length: 9\r\n\r\nhalf"), "reset", "half way"),
            does("chunk", resets(HEAD + CHUNKED + b"4\r\nhalf\r\n"), "reset", "half way"),
            does("closes", says(), "reset", "before an answer"),
        ],
    )


async def test_garbage_is_a_failure_of_the_protocol_and_odd_statuses_are_statuses(it, tmp_path):
    authority = Authority(tmp_path)

    async def refuses(reader: Reader, writer: Writer) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    length = b"Connection: close\r\nContent-Length: 0\r\n"
    asks = HEAD.replace(b"200 OK", b"503 X") + length + b"Retry-After: %b\r\n\r\n"
    async with Recorder(tls=authority.server()) as secure:
        await meet(
            it,
            [
                does("bytes", says(os.urandom(3) + b"\x00\xff\r\n\r\n"), "protocol", "not an HTTP"),
                does("ssh", says(b"SSH-2.0-OpenSSH_9.2\r\n"), "protocol", "not an HTTP answer"),
                does("http2", says(b"\x00\x00\x12\x04" + bytes(20)), "protocol", "not an HTTP"),
                does("http09", says(b"<html>hello</html>"), "protocol", "not an HTTP answer"),
                does("no-colon", says(HEAD + b"nonsense\r\n\r\n"), "protocol", "not an HTTP answer"),
                does("null", says(HEAD + b"X: a\0b\r\n\r\n"), "protocol", "not an HTTP answer"),
                does("switches", says(b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n"), "101"),
                does("switches-on", floods(b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n", b"y"), "101"),
                does("zero", says(b"HTTP/1.1 000 X\r\n" + length + b"\r\n"), "0"),
                does("999", says(b"HTTP/1.1 999 X\r\n" + length + b"\r\n"), "999"),
                does("1000", says(b"HTTP/1.1 1000 X\r\n\r\n"), "protocol", "not an HTTP answer"),
                does("moved", says(b"HTTP/1.1 302 X\r\nLocation: file:///etc\r\n" + length + b"\r\n"), "302"),
                does("later", says(asks % (b"9" * 5_000)), "503"),
                does("never", says(asks % b"-1"), "503"),
                does("when", says(asks % b"\xff\xfe nan inf"), "503"),
                does("year", says(asks % b"Fri, 31 Dec 9999 23:59:59 GMT"), "503"),
                does("escapes", says(b"HTTP/1.1 500 \x1b[2J\r\n\r\n\x1b[2J\r\n\xf0\x28{}"), "500"),
                Harm("plain-tls", OverTls(refuses), "tls", "the target does not speak TLS"),
                Harm("tls-plain", f"http://127.0.0.1:{secure.port}/", "reset", "before an answer"),
            ],
        )  # fmt: skip
        assert not secure.requests


async def test_certificates_that_are_wrong_get_no_request_and_a_name(it, tmp_path):
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    trust = (("tls", {"ca_file": ours.ca_file}),)
    receivers = {
        "expired": (ours.server(expired=True), trust, "certificate has expired"),
        "host": (ours.server("127.0.0.2"), trust, "certificate is for another"),
        "unknown": (other.server(), trust, "unknown CA"),
        "public": (ours.server(), (), "unknown CA"),
    }
    # These say so in an alert, which the end of the connection may overtake.
    mute = {
        "demanding": (ours.server(demand_client=True), trust, ""),
        "old": (old_tls(ours.server()), trust, ""),
    }
    harms = [
        Harm(name, Recorder(tls=context), kind, error, more)
        for kind, some in (("tls", receivers), ("tls|reset", mute))
        for name, (context, more, error) in some.items()
    ]
    await meet(it, harms)
    assert not [r for r in (harm.receiver for harm in harms) if r.requests]  # type: ignore[union-attr]


def old_tls(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


NAMES = """
import os, socket

_real = socket.getaddrinfo


def getaddrinfo(host, port, *arguments, **more):
    with open(os.environ["TEST_NAMES"]) as names:
        known = dict(line.split("=") for line in names.read().split())
    if host not in known:
        return _real(host, port, *arguments, **more)
    if not known[host]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    kind = socket.SOCK_STREAM
    return [(socket.AF_INET, kind, 6, "", (address, port)) for address in known[host].split(",")]


socket.getaddrinfo = getaddrinfo
"""
"""What Python loads as it starts: names of a file are resolved by it, as by a name server."""


async def test_a_name_is_judged_at_each_connect_and_not_once(it, tmp_path):
    """Names that resolved well at first and to nothing, or to a forbidden address, later."""
    folder, names = tmp_path / "site", tmp_path / "names"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NAMES)

    def resolve(**known: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(
            "\n".join(f"{name}.example={addresses}" for name, addresses in known.items())
        )
        fresh.replace(names)

    it.environ |= {"PYTHONPATH": f"{folder}:{ROOT}", "TEST_NAMES": str(names)}
    closing = Answer(close=True)  # each delivery has to connect, and to look the name up
    async with Recorder(answer=lambda _: closing) as receiver, Recorder() as healthy:
        port = receiver.port
        resolve(stops="127.0.0.1", rebinds="127.0.0.1", mixed="127.0.0.1", steady="127.0.0.1")
        subscriptions = [
            subscription(
                name,
                f"http://{name}.example:{port}/{name}",
                retry={"schedule": []},
                event_types=["hostile"],
            )
            for name in ("stops", "rebinds", "mixed", "steady")
        ]
        dispatcher = await it.dispatcher(*subscriptions, subscription("healthy", healthy.url))
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            await publisher.publish("hostile", {})
            await dispatcher.line("attempt.succeeded", 5)
            resolve(
                stops="", rebinds="169.254.169.254", mixed="10.0.0.1,127.0.0.1", steady="127.0.0.1"
            )
            # The answers from before may be used again for some seconds, and for no more.
            deadline = time.monotonic() + 15
            ended: dict[str, Any] = {}
            while len(ended) < 2:
                assert time.monotonic() < deadline, dispatcher.raw[-5:]
                await publisher.publish("hostile", {})
                await asyncio.sleep(0.5)
                ended = {
                    line["subscription_id"]: (line["error.type"], line["error"])
                    for line in dispatcher.of("attempt.failed")
                }
        for name in ended:
            await dispatcher.line("delivery.dead_lettered", subscription_id=name)
        assert ended.keys() == {"stops", "rebinds"}
        assert ended["stops"][0] == "dns"
        assert "does not resolve" in ended["stops"][1]
        assert ended["rebinds"][0] == "forbidden_address"
        reasons = {
            (line["subscription_id"], line["reason"])
            for line in dispatcher.of("delivery.dead_lettered")
        }
        assert reasons == {("stops", "exhausted"), ("rebinds", "forbidden_address")}
        before = len([r for r in receiver.requests if r.path == "/mixed"])
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            await publisher.publish("hostile", {})
        await dispatcher.until(
            lambda: len([r for r in receiver.requests if r.path == "/mixed"]) > before
        )
        assert await dispatcher.stop() == 0
        assert dispatcher.stderr == ""
