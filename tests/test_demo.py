"""The demo as a newcomer starts it: it keeps its promises, ends by itself, and leaves nothing behind."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pika  # type: ignore[import-untyped]
import pytest

from service.demo import run_demo
from service.demo.ledger import Ledger
from service.demo.receivers import Receiver, Seen
from service.demo.screen import Screen
from service.rabbitmq import PrivateBroker, PrivateBrokerError

ROOT = Path(__file__).parent.parent
SUMMARY = {
    "published": 14,
    "delivered": 15,
    "failed over": 1,
    "retried": 3,
    "dead-lettered": 1,
    "redriven": 1,
    "rejected": 1,
    "lost": 0,
    "doubled": 0,
    "forged": 0,
}


class Demo:
    """A demo as a process, whose temporary folders are all in one folder."""

    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._output = folder / "output"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name != "AMQP_URL" and not name.startswith("DISPATCHER_")
        }
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "demo", *arguments],
                cwd=ROOT,
                env=inherited | {"TMPDIR": str(self.temporary)} | environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def shown(self) -> str:
        return self._output.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.05)

    def until_shown(self, text: str) -> None:
        self.until(lambda: text in self.shown or self.process.poll() is not None)
        assert text in self.shown, self.shown

    def ended(self) -> int:
        try:
            return self.process.wait(90)
        finally:
            self.process.kill()

    def summary(self) -> dict[str, int]:
        shown = self.shown.partition("\nSummary\n")[2]
        found = re.findall(r"^   ([a-z -]+?) +(\d+)   ", shown, re.MULTILINE)
        return {name: int(number) for name, number in found}

    def assert_nothing_is_left(self) -> None:
        self.until(lambda: not processes_in(self.temporary), 10)
        assert list(self.temporary.iterdir()) == []


def processes_in(folder: Path) -> list[str]:
    """The living processes that have the folder in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        # With a slash: what lies in the folder, and not the demo that has it in TMPDIR.
        if f"{folder}/".encode() in words:
            found.append(words.split(b"\0")[0].decode())
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*arguments: str, **environ: str) -> Demo:
        started.append(Demo(tmp_path, *arguments, **environ))
        return started[-1]

    yield start
    for demo in started:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.ended()


def left_on(amqp_url: str, prefix: str) -> list[str]:
    """The demo's queues and its exchange that still exist."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    left = []
    try:
        for name in ("intake", "deliveries", "dead", "rejected", "unrouted", "delay.00", "events"):
            channel = connection.channel()
            declare = channel.exchange_declare if name == "events" else channel.queue_declare
            try:
                declare(f"{prefix}.{name}", passive=True)
                left.append(name)
            except pika.exceptions.ChannelClosedByBroker:
                continue
    finally:
        connection.close()
    return left


def prefix_in(shown: str) -> str:
    found = re.search(r"begin with (demo-[0-9a-f]+)", shown)
    assert found, shown
    return found[1]


def test_the_demo_shows_what_it_promises_and_ends_by_itself(start: Callable[..., Demo]) -> None:
    demo = start()
    assert demo.ended() == 0, demo.shown
    shown = demo.shown
    assert demo.summary() == SUMMARY, shown
    for text in ("retry in 2.0 s", "failover", "exhausted", "schema_violation", "exit status 0"):
        assert text in shown
    assert "BAD SIGNATURE" not in shown
    assert [line for line in shown.splitlines() if len(line) > 100] == []
    assert shown.isascii()
    assert "\x1b" not in shown
    demo.assert_nothing_is_left()


def test_the_broker_at_amqp_url_is_used_kept_up_for_as_long_as_asked_and_left_clean(
    start: Callable[..., Demo], amqp_url: str
) -> None:
    demo = start("--keep", AMQP_URL=amqp_url, DISPATCHER_PREFIX="webhooks", DISPATCHER_REPLICAS="x")
    demo.until_shown("What happens from now on")
    told = demo.shown
    assert demo.summary() == SUMMARY, told
    prefix = prefix_in(told)
    assert left_on(amqp_url, prefix)
    sourced = re.search(r"^ +(\. .*/environment)$", told, re.MULTILINE)
    publish = re.search(r"^ +(.* publish order\.created --data .*)$", told, re.MULTILINE)
    assert sourced
    assert publish
    subprocess.run(f"{sourced[1]}\n{publish[1]}", shell=True, cwd=ROOT, check=True, timeout=30)
    rows = Counter({"attempt.succeeded  warehouse": 1, "attempt.succeeded  crm": 1})
    demo.until(lambda: all(demo.shown[len(told) :].count(row) == rows[row] for row in rows), 10)
    demo.process.send_signal(signal.SIGINT)
    assert demo.ended() == 0, demo.shown
    demo.assert_nothing_is_left()
    assert left_on(amqp_url, prefix) == []


def test_a_demo_that_is_interrupted_leaves_nothing_behind(
    start: Callable[..., Demo], amqp_url: str
) -> None:
    demo = start(AMQP_URL=amqp_url)
    demo.until_shown("4  A receiver")
    demo.process.terminate()
    assert demo.ended() == 128 + signal.SIGTERM, demo.shown
    assert "Interrupted" in demo.shown
    assert "Traceback" not in demo.shown
    demo.assert_nothing_is_left()
    assert left_on(amqp_url, prefix_in(demo.shown)) == []


def test_a_demo_that_is_killed_leaves_nothing_behind_either(
    start: Callable[..., Demo], amqp_url: str
) -> None:
    demo = start(AMQP_URL=amqp_url)
    demo.until_shown("1  One event")
    assert processes_in(demo.temporary)
    demo.process.kill()
    demo.process.wait()
    demo.until(lambda: not processes_in(demo.temporary), 10)
    demo.until(lambda: list(demo.temporary.iterdir()) == [], 10)


def test_a_broker_that_does_not_answer_is_told_in_a_sentence(start: Callable[..., Demo]) -> None:
    demo = start(AMQP_URL="amqp://guest:hidden-password@127.0.0.1:1/")
    assert demo.ended() == 1
    assert "the broker cannot be reached" in demo.shown
    assert "hidden-password" not in demo.shown
    assert "Traceback" not in demo.shown
    demo.assert_nothing_is_left()


def test_without_rabbitmq_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = functools.partial(PrivateBroker, server=tmp_path / "rabbitmq-server")
    monkeypatch.setattr("service.demo.place.PrivateBroker", missing)
    for name in ("AMQP_URL", "DISPATCHER_AMQP_URL", "DISPATCHER_AMQP_URL_FILE"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(PrivateBrokerError, match="apt-get install rabbitmq-server"):
        run_demo(keep=False)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off_on_a_terminal(
    variable: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Screen().title("coloured")
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv(variable, value)
    Screen().title("plain")
    assert "\x1b" not in capsys.readouterr().out


def seen(webhook_id: str, *, valid: bool = True, status: int = 200) -> Seen:
    return Seen(webhook_id, valid, status, at=0.0)


def test_the_ledger_finds_what_was_lost_doubled_and_forged() -> None:
    ledger = Ledger()
    ledger.confirmed("one", ["a", "b"])
    ledger.confirmed("two", ["a"])
    a, b = Receiver("a-1", "a", ""), Receiver("b-1", "b", "")
    a.seen = [
        seen("one"),
        seen("one"),
        seen("two", status=503),
        seen("odd", valid=False, status=401),
    ]
    b.seen = [seen("one")]
    summary = ledger.summary([a, b], [])
    assert (summary.lost, summary.doubled, summary.forged) == (1, 1, 1)
    a.seen = [seen("one"), seen("two")]
    good = ledger.summary([a, b], [])
    assert (good.lost, good.doubled, good.forged) == (0, 0, 0)
    assert list(good.differences(good)) == []
    assert "lost is 0; it was 1" in list(summary.differences(good))
