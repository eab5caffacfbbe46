"""A clock that stands still while its process does."""

import asyncio
import re
import time

import pytest

from service.clock import ASLEEP_AFTER, LOOK_EVERY, WakingClock
from service.core.delivery import Failed, FailureKind
from service.webhook.sender import WebhookSender
from tests.fake_broker import FakeClock, run
from tests.receivers import Hostile, Reader, Writer, read_request
from tests.sending import LOOPBACK, send, subscribe


class Time:
    """The machine's monotonic clock, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.at)


def test_a_gap_is_no_time_that_passed(monkeypatch):
    machine = Time(monkeypatch)
    clock = WakingClock()
    began = clock.monotonic()
    machine.at += 55.0
    assert clock.monotonic() - began == pytest.approx(LOOK_EVERY)
    machine.at += 1.0
    assert clock.monotonic() - began == pytest.approx(LOOK_EVERY + 1.0)


def test_time_passes_as_it_does_for_one_that_is_looked_at_late_for_once(monkeypatch):
    machine = Time(monkeypatch)
    clock = WakingClock()
    began = clock.monotonic()
    for _ in range(100):
        machine.at += ASLEEP_AFTER
        clock.monotonic()
    assert clock.monotonic() - began == pytest.approx(100 * ASLEEP_AFTER)


def test_it_is_looked_at_while_nothing_else_does(monkeypatch):
    machine = FakeClock()
    monkeypatch.setattr(time, "monotonic", machine.monotonic)
    clock = WakingClock()

    async def look_for_a_minute() -> None:
        looking = asyncio.create_task(clock.run())
        await asyncio.sleep(60.0)
        looking.cancel()

    began = clock.monotonic()
    run(look_for_a_minute(), machine)
    assert clock.monotonic() - began == pytest.approx(60.0)


async def test_an_attempt_that_timed_out_while_its_process_was_stopped_tells_nothing_of_its_target():
    async def hangs(reader: Reader, _writer: Writer) -> None:
        await read_request(reader)
        asked.set()
        await asyncio.sleep(60)

    asked = asyncio.Event()
    clock = WakingClock()
    async with Hostile(hangs) as receiver, WebhookSender(rules=LOOPBACK, clock=clock) as sender:
        attempt = asyncio.create_task(send(sender, subscribe(receiver.url, timeout=1.0)))
        await asked.wait()
        time.sleep(2.5)  # noqa: ASYNC251 - the stop
        outcome = await attempt
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.LOCAL
    assert re.fullmatch(r"this process was stopped for \d s", outcome.detail)
