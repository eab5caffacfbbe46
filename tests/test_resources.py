"""The machine turns against us: the clock jumps, descriptors run out, nobody reads the log.

All of it happens to a real process.  What must hold is the same each time: it stays up, delivers what it
can, loses nothing, and blames nobody else for it.
"""

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pytest

from service.ports import free_port
from service.publish import Publisher
from tests.dispatcher import (
    ROOT,
    Dispatcher,
    Station,
    station,
    subscription,
    validate_line,
    write_subscriptions,
)
from tests.receivers import Answer, Received, Recorder


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


async def publish(it: Station, count: int, event_type: str = "thing.made") -> list[str]:
    async with Publisher(it.amqp_url, it.exchange) as publisher:
        return await asyncio.gather(
            *(publisher.publish(event_type, {"n": number}) for number in range(count))
        )


def ids(receiver: Recorder) -> list[str]:
    return [request.headers["webhook-id"] for request in receiver.requests]


# --- the log ---------------------------------------------------------------------------------------


class Piped(Dispatcher):
    """A dispatcher whose standard output is whatever the test says."""

    def __init__(self, it: Station, output: int) -> None:
        super().__init__(it.environ, it.folder)
        self._output = output

    async def launch(self) -> None:
        port = free_port()
        self.admin = f"http://127.0.0.1:{port}"
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "run"),
            cwd=ROOT,
            env=self.environ | {"DISPATCHER_ADMIN_PORT": str(port)},
            stdout=self._output,
            stderr=subprocess.PIPE,
        )
        os.close(self._output)
        self._readers = [asyncio.create_task(self._read_stderr())]

    async def answers(self) -> None:
        """See that the process does not hang: the admin port says that it is alive."""
        async with asyncio.timeout(10):
            assert (await self.get("/livez"))[0] == 200

    async def has_lost_lines(self) -> bool:
        _, metrics = await self.get("/metrics")
        [lost] = re.findall(
            r"^webhook_dispatcher_log_lines_lost_total (\S+)$", metrics, re.MULTILINE
        )
        return float(lost) > 0

    @property
    def running(self) -> bool:
        return self._process.returncode is None


class Drain:
    """Reads a pipe in a thread of its own, when told to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read: asyncio.Future[bytes] | None = None

    def start(self) -> Self:
        loop = asyncio.get_running_loop()
        self._read = loop.run_in_executor(None, self._to_the_end)
        return self

    def _to_the_end(self) -> bytes:
        with os.fdopen(self._descriptor, "rb") as pipe:
            return pipe.read()

    async def lines(self) -> list[dict[str, Any]]:
        """Return what was written, each line a whole one, once the other side has ended."""
        assert self._read is not None
        written = await self._read
        assert written.endswith(b"\n")
        return [validate_line(line) for line in written.decode().rstrip("\n").split("\n")]


@pytest.fixture
async def piped(it) -> AsyncIterator[Any]:
    started: list[Piped] = []

    async def start(output: int, *subscriptions: dict[str, Any]) -> Piped:
        it.new(*subscriptions)
        started.append(Piped(it, output))
        await started[-1].start()
        return started[-1]

    yield start
    for dispatcher in started:
        await dispatcher.close()


EVENTS = 400
"""Enough for some 250 KB of lines: four times what a pipe holds."""


@pytest.mark.parametrize("nonblocking", [False, True], ids=["blocking", "nonblocking"])
async def test_a_log_reader_that_pauses_stops_nothing_and_misses_nothing(it, piped, nonblocking):
    reader, writer = os.pipe()
    os.set_blocking(writer, not nonblocking)
    async with Recorder() as receiver:
        dispatcher = await piped(writer, subscription("s", receiver.url))
        events = await publish(it, EVENTS)
        try:
            await receiver.wait_for(EVENTS, 15)
            for _ in range(20):
                await dispatcher.answers()
        finally:
            drain = Drain(reader).start()
        again = await publish(it, 10)
        await receiver.wait_for(EVENTS + 10, 15)
        assert await dispatcher.stop() == 0
        lines = await drain.lines()
    assert sorted(ids(receiver)) == sorted([*events, *again])
    told = [line["event_id"] for line in lines if line["message"] == "attempt.succeeded"]
    assert sorted(told) == sorted([*events, *again])
    assert not [line for line in lines if line["message"] == "broker.disconnected"]


async def test_a_log_reader_that_goes_away_stops_nothing(it, piped):
    reader, writer = os.pipe()
    async with Recorder() as receiver:
        dispatcher = await piped(writer, subscription("s", receiver.url))
        events = await publish(it, 5)
        await receiver.wait_for(5, 15)
        os.close(reader)
        events += await publish(it, EVENTS)
        await receiver.wait_for(EVENTS + 5, 15)
        await dispatcher.answers()
        assert await dispatcher.stop() == 0
    assert sorted(ids(receiver)) == sorted(events)
    assert dispatcher.stderr.count("\n") <= 1
    assert "Traceback" not in dispatcher.stderr


async def test_a_full_disk_under_the_log_stops_nothing(it, piped):
    full = os.open("/dev/full", os.O_WRONLY)
    async with Recorder() as receiver:
        dispatcher = await piped(full, subscription("s", receiver.url))
        events = await publish(it, EVENTS)
        await receiver.wait_for(EVENTS, 15)
        await dispatcher.answers()
        assert await dispatcher.stop() == 0
    assert sorted(ids(receiver)) == sorted(events)
    assert dispatcher.stderr.count("\n") <= 1
    assert "Traceback" not in dispatcher.stderr


# What is written after the disk was full must not go on in the middle of the line that was cut: one more
# line would be spoilt, and not counted.
async def test_a_disk_that_fills_up_and_empties_costs_counted_lines_and_no_half_ones(it, piped):
    path = it.folder / "lines"
    async with Recorder() as receiver:
        output = os.open(path, os.O_WRONLY | os.O_CREAT)
        dispatcher = await piped(output, subscription("s", receiver.url))
        await publish(it, 5)
        await receiver.wait_for(5, 15)
        resource.prlimit(dispatcher.pid, resource.RLIMIT_FSIZE, (path.stat().st_size + 999, -1))
        await publish(it, 20)
        await receiver.wait_for(25, 15)
        await dispatcher.until(dispatcher.has_lost_lines)
        resource.prlimit(dispatcher.pid, resource.RLIMIT_FSIZE, (-1, -1))
        await publish(it, 5)
        await receiver.wait_for(30, 15)
        assert await dispatcher.stop() == 0
    written = path.read_text()
    whole, torn = [], []
    for line in written.rstrip("\n").split("\n"):
        try:
            whole.append(validate_line(line))
        except json.JSONDecodeError:
            torn.append(line)
    assert len(torn) <= 1, "the line at which the disk was full may be cut, and no other"
    [gap] = [line for line in whole if line["message"] == "log.gap"]
    attempts = [line for line in whole if line["message"] == "attempt.succeeded"]
    assert len(attempts) + gap["lines"] == 30
    assert dispatcher.stderr.count("\n") <= 1


# --- descriptors -----------------------------------------------------------------------------------


def take_descriptors(pid: int) -> None:
    """Leave a process those that it has, and no new one."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))


def give_descriptors(pid: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(hard, 4096), hard))


class Limited(Dispatcher):
    """A dispatcher that is started with a low soft limit of descriptors."""

    @property
    def command(self) -> tuple[str, ...]:
        return "sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *super().command


async def test_a_soft_limit_of_descriptors_is_raised_to_the_hard_one(it):
    it.new(subscription("s", "https://hooks.example.com/"))
    dispatcher = Limited(it.environ, it.folder)
    try:
        await dispatcher.start()
        soft, hard = resource.prlimit(dispatcher.pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 256
    finally:
        await dispatcher.close()


async def test_without_descriptors_nothing_is_lost_and_deliveries_resume(it):
    it.shorten_waits()
    closing = Answer(close=True)  # each attempt needs a socket of its own
    async with Recorder(answer=lambda _: closing) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["1s"] * 20})
        )
        events = await publish(it, 3)
        await receiver.wait_for(3, 15)
        take_descriptors(dispatcher.pid)
        try:
            # Fewer than eject a target: that they count at all is another test's matter.
            events += await publish(it, 4)
            await dispatcher.line("attempt.failed", 4, **{"error.type": "local"})
        finally:
            give_descriptors(dispatcher.pid)
        events += await publish(it, 3)
        await receiver.wait_for(len(events), 20)
        assert (await dispatcher.get("/readyz"))[0] == 200
        assert await dispatcher.stop() == 0
    assert sorted(ids(receiver)) == sorted(events)
    assert not dispatcher.of("broker.disconnected")
    assert not dispatcher.of("service.fault")
    assert dispatcher.stderr == ""


# Else the failure would eject the target, and spend the delivery's rounds.
async def test_a_target_is_not_blamed_for_our_own_lack_of_descriptors(it):
    it.shorten_waits()
    closing = Answer(close=True)
    async with Recorder(answer=lambda _: closing) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["1s"]})
        )
        events = await publish(it, 1)
        await receiver.wait_for(1, 15)
        take_descriptors(dispatcher.pid)
        try:
            for _ in range(8):
                events += await publish(it, 1)
                await asyncio.sleep(0.5)  # long enough for the one retry, too
        finally:
            give_descriptors(dispatcher.pid)
        await receiver.wait_for(len(events), 20)
        assert await dispatcher.stop() == 0
    assert sorted(ids(receiver)) == sorted(events)
    assert not dispatcher.of("target.ejected")
    assert not dispatcher.of("delivery.dead_lettered")


# --- the clock -------------------------------------------------------------------------------------


class Clock:
    """The wall clock of a process, moved while it runs; its monotonic clock is left alone."""

    def __init__(self, it: Station) -> None:
        [library, *_] = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None]
        assert library, "libfaketime is not installed: apt-get install libfaketime"
        self._told = it.folder / "clock"
        self.jump(0)
        it.environ |= {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._told),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def jump(self, seconds: int) -> None:
        """Move the clock so far from the real time."""
        fresh = self._told.with_suffix(".fresh")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._told)


def told_at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


# After the jump back a delivery comes back "too early" by the wall clock; it must not be put off once more,
# to the time that was planned on the old clock, an hour later.
@pytest.mark.parametrize("jump", [-3600, 3600], ids=["back", "ahead"])
async def test_a_jump_of_the_clock_moves_no_retry_and_loses_nothing(it, jump):
    clock = Clock(it)
    answers = iter([503, 503])
    async with Recorder(answer=lambda _: next(answers, 200)) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["2s"], "jitter": 0})
        )
        events = await publish(it, 2)
        await dispatcher.line("attempt.failed", 2)
        clock.jump(jump)
        events += await publish(it, 2)
        await receiver.wait_for(4, 5)
        line = await dispatcher.line("attempt.succeeded", 2)
        assert abs(told_at(line) - time.time() - jump) < 60
        await receiver.wait_for(6, 10)
        failed, others = receiver.requests[:2], receiver.requests[2:]
        retried = [one for one in others if one.headers["webhook-id"] in ids_of(failed)]
        assert ids_of(failed) == ids_of(retried)
        assert all(request.at - failed[0].at > 1.9 for request in retried)
        clock.jump(0)
        events += await publish(it, 2)
        await receiver.wait_for(8, 5)
        assert (await dispatcher.get("/readyz"))[0] == 200
        await dispatcher.line("attempt.succeeded", 6)
        assert await dispatcher.stop() == 0
    assert ids_of(receiver.requests) == set(events)
    assert not dispatcher.of("delivery.dead_lettered")
    assert not dispatcher.of("broker.disconnected")
    assert not dispatcher.of("service.fault")


def ids_of(requests: list[Received]) -> set[str]:
    return {request.headers["webhook-id"] for request in requests}


# In the same way: what was put off until the end of a pause must not wait an hour longer.
async def test_a_jump_back_does_not_lengthen_a_pause_that_a_target_asked_for(it):
    clock = Clock(it)
    answers = iter([Answer(429, headers=(("Retry-After", "6"),))])
    async with Recorder(answer=lambda _: next(answers, 200)) as receiver:
        dispatcher = await it.dispatcher(
            subscription("s", receiver.url, retry={"schedule": ["1s"]})
        )
        events = await publish(it, 1)
        await dispatcher.line("target.throttled")
        events += await publish(it, 1)
        await dispatcher.line("delivery.deferred", cause="throttled")
        clock.jump(-3600)
        await receiver.wait_for(3, 20)
    assert ids_of(receiver.requests[1:]) == set(events)


# --- standard streams that are closed --------------------------------------------------------------


class Closed(Dispatcher):
    """A dispatcher whose standard streams its caller has closed."""

    @property
    def command(self) -> tuple[str, ...]:
        return "sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *super().command


async def test_without_standard_streams_events_are_delivered_and_the_end_is_in_order(it):
    async with Recorder() as receiver:
        write_subscriptions(it.folder, subscription("s", receiver.url))
        dispatcher = Closed(it.environ, it.folder)
        try:
            await dispatcher.start()
            await publish(it, 5)
            await receiver.wait_for(5, 20)
            assert await dispatcher.stop() == 0
        finally:
            await dispatcher.close()


# --- a process that is stopped ---------------------------------------------------------------------


async def test_what_waits_for_a_process_that_was_stopped_is_delivered_soon_after_it_goes_on(it):
    async with Recorder(answer=lambda _: Answer(delay=0.15)) as receiver:
        dispatcher = await it.dispatcher(subscription("s", receiver.url))
        events = await publish(it, 40)
        await receiver.wait_for(1)
        os.kill(dispatcher.pid, signal.SIGSTOP)
        events += await publish(it, 300)
        await asyncio.sleep(8)
        os.kill(dispatcher.pid, signal.SIGCONT)
        await dispatcher.line("attempt.succeeded", len(events))
        assert await dispatcher.stop() == 0
    assert ids_of(receiver.requests) == set(events)
    assert not dispatcher.of("target.ejected")
    assert {line["error.type"] for line in dispatcher.of("attempt.failed")} <= {"local"}
