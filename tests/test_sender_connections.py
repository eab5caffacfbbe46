"""Connections are kept, judged, and never mixed up."""

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.core.delivery import Answered, FailureKind
from service.core.subscription import TlsFiles
from service.webhook import exchange
from service.webhook.formats import Content
from tests.certificates import Authority
from tests.receivers import Answer, Hostile, Reader, Recorder, Writer, read_request
from tests.sending import (
    OK,
    both_loops,
    event_loop_policy,  # noqa: F401 - taken up by pytest-asyncio
    send,
    sender_to,
    subscribe,
)

pytestmark = both_loops


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


async def test_when_one_kept_connection_has_died_the_next_attempt_has_a_new_one() -> None:
    dead = False

    async def forgets(reader: Reader, writer: Writer) -> None:
        died_before = dead
        while await read_request(reader):
            if dead and not died_before:
                writer.transport.abort()
                return
            await asyncio.sleep(0.05)
            writer.write(OK)

    async with sender_to(Hostile(forgets)) as (sender, subscription):
        first = await asyncio.gather(*(send(sender, subscription) for _ in range(12)))
        assert all(isinstance(outcome, Answered) for outcome in first)
        dead = True
        assert (await send(sender, subscription)).stale_connection
        assert isinstance(await send(sender, subscription), Answered)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_idle_connections_give_their_descriptors_to_who_needs_one(
    tmp_path: Path, *, secure: bool
) -> None:
    authority = Authority(tmp_path)
    tls = TlsFiles(ca_file=authority.ca_file)
    kept = Recorder(answer=lambda _: Answer(delay=0.05), tls=authority.server() if secure else None)
    async with sender_to(kept, tls=tls) as (sender, subscription), Recorder() as new:
        await asyncio.gather(*(send(sender, subscription) for _ in range(8)))
        with no_descriptors():
            outcomes = await asyncio.gather(*(send(sender, subscribe(new.url)) for _ in range(3)))
        assert all(isinstance(outcome, Answered) for outcome in outcomes)
    assert kept.connections == 8


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Leave this process the descriptors that it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 1024), limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


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


async def test_an_answer_that_lies_there_before_the_question_is_not_taken() -> None:
    receiver = Recorder()
    async with sender_to(receiver) as (sender, subscription):
        await send(sender, subscription)
        [[(pooled, _)]] = sender._connector._conns.values()
        protocol: Any = pooled
        protocol.feed_data((SimpleNamespace(code=500), None))
        assert (await send(sender, subscription)).status == 200
    assert receiver.connections == 2


async def test_a_reload_forgets_what_changed_and_leaves_connections_in_the_pool() -> None:
    receiver = Recorder()
    async with sender_to(receiver) as (sender, subscription):
        await send(sender, subscription)
        changed = replace(subscription, headers={"X-Team": "billing"})
        sender.keep({subscription.id: changed}.get)
        assert not sender._routes._kept
        await send(sender, changed)
        sender.keep({subscription.id: changed}.get)
        assert sender._routes._kept
    assert receiver.connections == 1


@pytest.mark.parametrize("whole_limit", [2**20, 2**30], ids=["in-pieces", "whole"])
async def test_a_connection_whose_request_has_not_left_is_not_used_again(
    whole_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_WHOLE_LIMIT", whole_limit)
    content = Content(b"x" * 20_000_000)  # more than the kernel takes from one who is not heard
    served = 0
    over = asyncio.Event()

    async def answer_first(reader: Reader, writer: Writer) -> None:
        nonlocal served
        served += 1
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # what comes stays in the kernel
        writer.write(OK)
        await over.wait()

    async with sender_to(Hostile(answer_first)) as (sender, subscription):
        for _ in range(2):
            outcome = await send(sender, subscription, content=content)
            assert isinstance(outcome, Answered)
        over.set()
    assert served == 2
