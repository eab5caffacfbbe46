"""`stats --follow` as people have it: a process, with lines that come while somebody looks.

The terminal is a real one (a pty), read by a model that knows the few sequences that are needed and fails
at any other.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from service.publish import Publisher
from tests.dispatcher import Station, station, subscription
from tests.receivers import Answer, Recorder
from tests.test_stats import attempt, dead, line

ROOT = Path(__file__).parent.parent
SECONDS = 20
"""How long something may take that takes a moment."""
FOOTER = "Percentiles are within 1 %."


class Stats:
    """A running `webhook-dispatcher stats`, its input held open, its output read as it comes."""

    def __init__(self, *arguments: str, output: int | None = None, term: str = "xterm") -> None:
        self.shown = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service", "stats", *arguments],
            cwd=ROOT,
            env=os.environ | {"TERM": term},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin is not None
        self.stdin = self._process.stdin.fileno()
        if output is None:
            assert self._process.stdout is not None
            self.output = self._process.stdout.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def text(self) -> str:
        return self.shown.decode(errors="ignore")  # the last character may not be whole yet

    def write(self, *lines: bytes) -> None:
        for one in lines:
            os.write(self.stdin, one)

    def until(self, condition: Callable[[], Any], *, reading: bool = True) -> None:
        """Read what is shown until a condition holds."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.text
            if reading:
                self._read(0.01)
            else:
                time.sleep(0.01)

    def taken(self) -> None:
        """Wait until what was written was read."""
        self.until(lambda: waiting(self.stdin) == 0)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """End the input."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def is_gone(self) -> bool:
        return self._process.poll() is not None

    def ended(self) -> int:
        """Read to the end; returns the exit status."""
        self.until(self.is_gone)
        while self._read(0):
            pass
        return self._process.returncode

    def stderr(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()

    def _read(self, seconds: float) -> bool:
        if not select.select([self.output], [], [], seconds)[0]:
            return False
        with suppress(OSError):  # a terminal that nobody holds open any more
            part = os.read(self.output, 1 << 16)
            self.shown += part
            return bool(part)
        return False


class Screen:
    """What a terminal shows: the usual screen, and the other one that programs come and go from."""

    SEQUENCES = re.compile(
        r"\x1b\[(\?1049|\?25|\?7)?([hlHKJ])|[\r\n]|[^\x00-\x1f\x7f-\x9f]+|(.)", re.DOTALL
    )

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.usual: list[str] = [""]
        self.other: list[str] | None = None
        self.entered = self.frames = 0
        self.modes: set[str] = set()
        self._row = self._column = 0

    def show(self, text: str) -> Self:
        for found in self.SEQUENCES.finditer(text):
            assert not found[3], f"no terminal should be told {found[0]!r}"
            if found[2]:
                self._obey(found[1] or "", found[2])
            elif found[0] == "\r":
                self._column = 0
            elif found[0] == "\n":
                self._row += 1
                assert self.other is None or self._row < self.lines, "the other screen scrolled"
            else:
                self._write(found[0])
        return self

    def _obey(self, mode: str, final: str) -> None:
        shown = self._page()
        match mode, final:
            case "?1049", "h":
                self.other, self._row, self._column = [], 0, 0
                self.entered += 1
            case "?1049", "l":
                self.other, self._row, self._column = None, len(self.usual) - 1, 0
            case "", "H":
                self._row = self._column = 0
            case "", "K":
                shown[self._row] = shown[self._row][: self._column]
            case "", "J":
                shown[self._row] = shown[self._row][: self._column]
                del shown[self._row + 1 :]
                self.frames += 1
            case _:
                (self.modes.add if final == "l" else self.modes.discard)(mode)

    def _write(self, text: str) -> None:
        shown = self._page()
        before = shown[self._row][: self._column].ljust(self._column)
        shown[self._row] = before + text + shown[self._row][self._column + len(text) :]
        self._column += len(text)
        assert self.other is None or self._column < self.columns, "a line is too wide"

    def _page(self) -> list[str]:
        page = self.usual if self.other is None else self.other
        page += [""] * (self._row + 1 - len(page))
        return page


class Terminal:
    """A pty with a `stats` on it."""

    def __init__(
        self, *arguments: str, columns: int = 100, lines: int = 24, term: str = "xterm"
    ) -> None:
        master, slave = pty.openpty()
        self._master = master
        self.columns, self.lines = columns, lines
        self.resize(columns, lines)
        self.stats = Stats(*arguments, output=slave, term=term)
        self.stats.output = master
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stats.__exit__()
        os.close(self._master)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def screen(self) -> Screen:
        """Return what is seen now; of a sequence that is not whole yet, nothing."""
        text = re.sub(r"\x1b[^a-zA-Z]*\Z", "", self.stats.text)
        return Screen(self.columns, self.lines).show(text)

    def until(self, condition: Callable[[list[str]], Any]) -> list[str]:
        """Wait until what is seen in place is as it should be; returns it."""
        seen: list[str] = []

        def holds() -> Any:
            # The end of a frame: what comes after is not yet whole.
            whole = self.stats.text.rpartition("\x1b[J")
            nonlocal seen
            seen = Screen(self.columns, self.lines).show(whole[0] + whole[1]).other or []
            return seen and condition(seen)

        self.stats.until(holds)
        return seen


def waiting(pipe: int) -> int:
    """Return how many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\x00" * 4), sys.byteorder)


@pytest.fixture
def follow() -> Iterator[Callable[..., Stats]]:
    started: list[Stats] = []

    def start(*arguments: str) -> Stats:
        started.append(Stats(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.__exit__()


Start = Callable[..., Stats]


def test_a_line_that_trickles_in_is_seen_while_the_input_stays_open(follow: Start) -> None:
    stats = follow("--follow", "--interval", "100ms")
    stats.write(attempt("first"))
    stats.until(lambda: "first" in stats.text)
    stats.write(attempt("second"))
    stats.until(lambda: "second" in stats.text)
    assert FOOTER not in stats.text
    stats.end()
    assert stats.ended() == 0
    assert stats.text.endswith(f"{FOOTER}\n")


def test_half_a_line_is_waited_for(follow: Start) -> None:
    stats = follow("--follow", "--interval", "100ms")
    whole = attempt("late")
    stats.write(attempt("early"), whole[:50])
    stats.until(lambda: "early" in stats.text)
    stats.write(whole[50:])
    stats.until(lambda: "late" in stats.text)
    stats.end()
    assert stats.ended() == 0
    assert "2 lines: 2 counted, 0 of other kinds, 0 skipped" in stats.text


def test_without_a_terminal_one_table_comes_after_another_and_none_without_news(
    follow: Start,
) -> None:
    stats = follow("--follow", "--interval", "100ms")

    def tables() -> int:
        return stats.text.count("subscription, target")

    for number in range(3):
        stats.write(attempt())
        stats.until(lambda: tables() > number)  # noqa: B023 - called within this turn
    began = time.monotonic()
    stats.until(lambda: time.monotonic() > began + 0.5)
    assert tables() == 3
    assert "\x1b" not in stats.text
    stats.end()
    assert stats.ended() == 0
    counted = [one.splitlines()[1].split()[1] for one in stats.text.split("\n\n")]
    assert counted == ["1", "2", "3", "3"]


def test_json_comes_in_turns_as_well(follow: Start) -> None:
    stats = follow("--follow", "--json", "--interval", "100ms")
    stats.write(attempt("a", timestamp="2030-01-31T12:00:01.000000Z"))
    stats.until(lambda: stats.text.count("\n") == 2)
    stats.write(attempt("a", timestamp="2030-01-31T12:00:02.000000Z"))
    stats.until(lambda: stats.text.count("\n") == 4)
    stats.end()
    assert stats.ended() == 0
    told = [json.loads(one) for one in stats.text.splitlines()]
    assert [one["attempts"] for one in told] == [1, 1, 2, 2, 2, 2]
    assert [one["as_of"][18] for one in told] == ["1", "1", "2", "2", "2", "2"]
    assert "2 lines: 2 counted" in stats.stderr()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [(), ("--follow", "--interval", "1h"), ("--json",)])
def test_a_signal_shows_what_there_is_so_far(
    follow: Start, number: signal.Signals, arguments: tuple[str, ...]
) -> None:
    stats = follow(*arguments)
    stats.write(attempt("billing"), attempt("half")[:50])
    stats.taken()
    stats.signal(number)
    assert stats.ended() == 0
    assert "billing" in stats.text
    told = stats.stderr() if "--json" in arguments else stats.text
    assert "2 lines: 1 counted, 0 of other kinds, 1 skipped" in told


def crowd() -> list[bytes]:
    """Return lines whose table does not fit into a pipe."""
    return [attempt("s", f"https://{number}.example.com/{'x' * 60}") for number in range(1500)]


def test_a_second_interrupt_ends_it_although_nobody_reads_the_table(follow: Start) -> None:
    stats = follow()
    stats.write(*crowd())
    stats.taken()
    stats.signal(signal.SIGINT)
    stats.until(lambda: waiting(stats.output) > 60_000, reading=False)
    stats.signal(signal.SIGINT)
    stats.until(stats.is_gone, reading=False)
    assert stats.ended() == -signal.SIGINT


def test_interrupts_end_it_although_nobody_reads_what_it_shows_meanwhile(follow: Start) -> None:
    stats = follow("--follow", "--interval", "100ms")
    stats.write(*crowd())
    stats.until(lambda: waiting(stats.output) > 60_000, reading=False)

    def ended() -> bool:
        stats.signal(signal.SIGINT)  # two that come together are one: again, as a person does
        return stats.is_gone()

    stats.until(ended, reading=False)
    assert stats.ended() == -signal.SIGINT


def test_a_reader_that_goes_away_ends_it_although_no_line_comes(follow: Start) -> None:
    stats = follow("--follow", "--interval", "100ms")
    stats.write(attempt())
    stats.until(lambda: "billing" in stats.text)
    assert stats._process.stdout is not None
    stats._process.stdout.close()
    stats.until(stats.is_gone, reading=False)
    assert (stats._process.returncode, stats.stderr()) == (0, "")


def test_a_log_faster_than_it_is_read_ends_soon(follow: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(attempt() * 100_000)
    with log.open("rb") as text:
        done = subprocess.run(
            [sys.executable, "-m", "service", "stats", "--follow", "--plot"],
            cwd=ROOT,
            stdin=text,
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    assert b"100,000 lines: 100,000 counted" in done.stdout


def test_a_plot_follows_as_well(follow: Start) -> None:
    stats = follow("--follow", "--plot", "--interval", "100ms")
    stats.write(attempt())
    stats.until(lambda: "2030-01-31 12:00:00 to 2030-01-31 12:00:00 UTC" in stats.text)
    stats.write(attempt(timestamp="2030-01-31T12:00:01.000000Z"))
    stats.until(lambda: "2030-01-31 12:00:00 to 2030-01-31 12:00:01 UTC" in stats.text)
    assert "\x1b" not in stats.text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--plot", "--json"),
        ("--interval", "5s"),
        ("--follow", "--interval", "5"),
        ("--follow", "--interval", "1ms"),
    ],
)
def test_what_does_not_go_together_is_bad_usage(follow: Start, arguments: tuple[str, ...]) -> None:
    stats = follow(*arguments)
    assert stats.ended() == 2
    assert "Error: " in stats.stderr()


def test_a_closed_input_is_said() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -m service stats <&-'],
        cwd=ROOT,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"standard input is closed" in done.stderr


def test_the_table_changes_in_place_and_the_last_one_stays() -> None:
    with Terminal("--follow", "--interval", "100ms") as terminal:
        terminal.until(lambda seen: "Waiting for lines" in seen[-1])
        terminal.stats.write(attempt(decision="retry"))
        first = terminal.until(lambda seen: seen[-1].startswith("1 lines"))
        assert first[1].split()[:2] == ["billing", "1"]
        terminal.stats.write(attempt(), attempt(), dead())
        second = terminal.until(lambda seen: seen[-1].startswith("4 lines"))
        assert second[1].split()[:2] == ["billing", "3"]
        assert len(second) == len(first)
        terminal.stats.end()
        assert terminal.stats.ended() == 0
        screen = terminal.screen()
        assert screen.entered == 1
        assert screen.other is None
        assert screen.modes == set()
        assert screen.usual[0].startswith("subscription, target")
        assert FOOTER in screen.usual


def test_table_and_plot_fit_the_window_whatever_its_size() -> None:
    lines = [
        attempt(f"s{number}", f"https://{n}.example.com/{'x' * 90}", timestamp=at, decision="retry")
        for number in range(20)
        for n in range(3)
        for at in ("2030-01-31T12:00:00.000000Z", "2030-01-31T12:03:20.000000Z")
    ]
    for columns, height in ((80, 24), (200, 60), (30, 5), (1, 1)):
        arguments = ("--follow", "--plot", "--interval", "100ms")
        with Terminal(*arguments, columns=columns, lines=height) as terminal:
            terminal.stats.write(*lines)
            terminal.until(lambda _: terminal.screen().frames >= 2)
            if height > 20:
                seen = terminal.until(lambda seen: seen[-1].startswith("120 lines"))
                assert seen[0].startswith("subscription, target")
                assert any("rows more" in one for one in seen)
                assert any(one.startswith("p99 ms") for one in seen)
            terminal.stats.signal(signal.SIGTERM)
            assert terminal.stats.ended() == 0
            shown = "\n".join(terminal.screen().usual)
            assert all(f"\ns{number} " in shown for number in range(20))
            assert "one column: " in shown


def test_a_window_of_another_size_is_filled_at_once() -> None:
    with Terminal("--follow", "--interval", "1h") as terminal:
        terminal.until(lambda seen: "Waiting for lines" in seen[-1])
        terminal.stats.write(attempt("a", "https://a.example.com/" + "x" * 100))
        terminal.stats.taken()
        assert "x" * 30 not in terminal.stats.text
        terminal.columns = 150
        terminal.resize(150, 24)
        terminal.stats.signal(signal.SIGWINCH)
        terminal.until(lambda seen: any("x" * 30 in one for one in seen))


def test_a_suspended_command_leaves_the_terminal_and_comes_back() -> None:
    with Terminal("--follow") as terminal:
        terminal.until(lambda seen: "Waiting for lines" in seen[-1])
        terminal.stats.signal(signal.SIGTSTP)
        terminal.stats.until(lambda: state(terminal.stats.pid) == "T")
        terminal.stats.until(lambda: terminal.screen().other is None)
        assert terminal.screen().modes == set()
        terminal.stats.signal(signal.SIGCONT)
        terminal.stats.until(lambda: terminal.screen().frames == 2)
        assert terminal.screen().entered == 2
        terminal.stats.signal(signal.SIGINT)
        assert terminal.stats.ended() == 0


def state(pid: int) -> str:
    """Return the letter for a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_what_a_log_says_does_not_steer_the_terminal() -> None:
    odd = "\x1b[2J\x1b]0;title\x07\r\n\x9b31m\x7f\u202e"
    with Terminal("--follow", "--plot", "--interval", "100ms") as terminal:
        terminal.stats.write(
            attempt(odd, odd, decision="retry", error=odd),
            dead(odd, odd),
            line("target.ejected", subscription_id=odd, target=odd),
            attempt("s", "t", decision="retry", timestamp="2030-01-31\x1b12:00:00.000001Z"),
        )
        terminal.until(lambda seen: seen[-1].startswith("4 lines: 4 counted"))
        terminal.stats.end()
        assert terminal.stats.ended() == 0
        assert "\u202e" not in terminal.stats.text
        assert terminal.screen().other is None  # and nothing came that the model does not know


def test_a_dumb_terminal_gets_text_alone() -> None:
    with Terminal("--follow", "--interval", "100ms", term="dumb") as terminal:
        terminal.stats.write(attempt())
        terminal.stats.until(lambda: "billing" in terminal.stats.text)
        terminal.stats.end()
        assert terminal.stats.ended() == 0
        assert "\x1b" not in terminal.stats.text


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


async def test_the_log_of_several_workers_adds_up_to_what_receivers_saw(it: Station) -> None:
    async with Recorder() as well, Recorder(answer=lambda _: Answer(status=410)) as gone:
        dispatcher = it.new(subscription("well", well.url), subscription("gone", gone.url))
        dispatcher.arguments = ("--workers", "2")
        await dispatcher.start()
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            for number in range(20):
                await publisher.publish("order.shipped", {"n": number})
        await dispatcher.line("attempt.succeeded", 20)
        await dispatcher.until(lambda: gone.requests)
        await dispatcher.line("delivery.dead_lettered", 1)
        assert await dispatcher.stop() == 0
    log = "".join(f"[pod/d-1/dispatcher] {one}\n" for one in dispatcher.raw)
    told = await it.command("stats", "--json", stdin=log.encode())
    rows = {
        (row["subscription_id"], row["target"]): row for row in map(json.loads, told.splitlines())
    }
    assert rows["well", None]["attempts"] == len(well.requests) == 20
    assert rows["well", None]["success_rate"] == 1
    assert rows["gone", None]["attempts"] == len(gone.requests)
    assert rows["gone", None]["last_error"] == "status 410"
    assert rows["gone", None]["dead_letters"] == len(dispatcher.of("delivery.dead_lettered"))
    table = await it.command("stats", stdin=log.encode())
    assert f"{len(dispatcher.raw)} lines: " in table
    assert " 0 skipped" in table
