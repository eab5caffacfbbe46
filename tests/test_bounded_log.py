"""What flaps is told in few lines, with a count of the rest and always with the last word.

On a fake clock; lines are written by the real log and held against their schemas.
"""

import asyncio
import os
from collections import defaultdict
from contextlib import contextmanager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.bounded_log import FLAPPING, MINUTE, MOST_THINGS, TICK, BoundedLog
from service.core.delivery import Answered, Delivery, Outcome, Retry
from service.core.event import Event
from service.core.health import TargetState
from service.core.subscription import Target
from service.line_schema import LINES
from service.log import LineSink, attempt_lines, configure
from service.prepared import Prepared
from service.report import Reporter
from service.webhook.formats import render
from tests.dispatcher import validate_line
from tests.fake_broker import FakeClock, Meter, Process, World, run, standing_in

FLAPS = 1000


class Written:
    """The log beneath, as a list; with the fake clock's time of each line."""

    def __init__(self, clock: FakeClock) -> None:
        self.lines: list[tuple[float, str, dict[str, Any]]] = []
        self._clock = clock

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((self._clock.seconds, event, fields))

    debug = warning = error = info

    def of(self, *events: str) -> list[tuple[float, str, dict[str, Any]]]:
        return [line for line in self.lines if line[1] in events]


def left_out(lines: list[tuple[float, str, dict[str, Any]]]) -> int:
    return sum(fields.get("left_out", 0) for _, _, fields in lines)


class Place:
    """A dispatcher's reporter, its log in a file, and a target that does as it is told."""

    def __init__(self, path: Any, level: str = "info") -> None:
        self.clock = FakeClock()
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        sink = LineSink(self._descriptor)
        beneath = configure(level, "json", sink)
        self.log = BoundedLog(beneath, self.clock, level)
        lines = attempt_lines(level, "json", sink, beneath)
        self._reporter = Reporter(self.log, Meter(), lines)
        event = Event("e-1", "order.shipped", "/s", "2030-01-01T00:00:00Z", 0.0, b"{}")
        self._prepared = Prepared(event, render)
        self._delivery = Delivery(event, "s", 0.0)
        self.target = TargetState(Target("https://a.example/hook"))

    def end(self, ticket: int, outcome: Outcome) -> None:
        """End an attempt and tell of it, as a round does."""
        now = self.clock.monotonic()
        change = self.target.end(ticket, outcome, now, 0.0)
        told: dict[str, Any] = {"seconds": 0.1, "now": now, "lane": "intake", "span": None}
        if isinstance(outcome, Answered) and outcome.status == 200:
            self._reporter.succeeded(
                self._delivery, self._prepared, self.target, status=200, **told
            )
        else:
            self._reporter.failed(
                self._delivery, self._prepared, self.target, outcome, Retry(now), **told
            )
        if change is not None:
            self._reporter.changed(change, "s", self.target, now)

    def flap(self) -> None:
        """Eject the target by five failures, and bring it back by an answer that was under way."""
        tickets = [self.target.begin(self.clock.monotonic()) for _ in range(6)]
        for ticket in tickets[:5]:
            self.end(ticket, Answered(503, 0.1))
        self.end(tickets[5], Answered(200, 0.1))

    def lines(self) -> list[dict[str, Any]]:
        return [validate_line(line) for line in self._path.read_text().splitlines()]


@contextmanager
def place(tmp_path: Any, level: str = "info") -> Any:
    it = Place(tmp_path / "log", level)
    try:
        yield it
    finally:
        os.close(it._descriptor)


def test_a_target_that_flaps_a_thousand_times_a_minute_is_told_in_few_lines_and_its_attempts_in_all(
    tmp_path,
):
    with place(tmp_path) as it:
        for _ in range(FLAPS):
            it.flap()
            it.clock.seconds += MINUTE / FLAPS
        it.clock.seconds += TICK
        it.log.tick()
        lines = it.lines()
    counted: dict[str, int] = defaultdict(int)
    for line in lines:
        counted[line["message"]] += 1
    assert counted["attempt.failed"] == 5 * FLAPS
    assert counted["attempt.succeeded"] == FLAPS
    changes = [line for line in lines if line["message"].startswith("target.")]
    assert len(changes) == LINES + 1
    assert sum(line.get("left_out", 0) for line in changes) + len(changes) == 2 * FLAPS
    assert changes[-1]["message"] == "target.recovered"
    assert it.log.left_out == 2 * FLAPS - len(changes)


def test_a_target_that_flaps_leaves_room_for_what_is_told_of_others(tmp_path):
    with place(tmp_path) as it:
        for _ in range(100):
            it.flap()
        it.log.warning("target.ejected", subscription_id="other", target="https://b.example/",
                       failures=5, ejected_for_s=30.0)  # fmt: skip
        it.log.info(
            "subscriptions.loaded", source="x", subscriptions=1, added=0, changed=0, removed=0
        )
        lines = it.lines()
    assert [line["message"] for line in lines[-2:]] == ["target.ejected", "subscriptions.loaded"]
    assert all("left_out" not in line for line in lines)


def test_a_broker_that_flaps_is_told_in_few_lines_and_ends_with_the_last_word(monkeypatch):
    monkeypatch.setattr(
        "service.broker.connection.STEADY", 0.0
    )  # else it comes back too late to flap
    world = World([], lambda *_: Answered(200, 0.0))
    written = Written(world.clock)
    log = BoundedLog(written, world.clock)
    world.log = log  # type: ignore[assignment]

    async def course() -> None:
        ticking = asyncio.create_task(log.run())
        process = Process(world, "amqp://dispatcher/")
        while world.clock.seconds < 10 * MINUTE:
            await asyncio.sleep(MINUTE / FLAPS)
            world.broker.cut("amqp://dispatcher/")
        await asyncio.sleep(2 * MINUTE)
        assert process.broker.consuming
        ticking.cancel()
        await process.drain()
        log.flush()

    with standing_in(world.broker):
        run(course(), world.clock)
    words = written.of("broker.connected", "broker.disconnected")
    by_minute: dict[float, int] = defaultdict(int)
    for seconds, _, _ in words:
        by_minute[seconds // MINUTE] += 1
    assert log.counts["broker.disconnected"] > 300
    assert max(by_minute.values()) <= 2 * LINES
    assert len(words) <= 11 * LINES
    total = log.counts["broker.connected"] + log.counts["broker.disconnected"]
    assert len(words) + left_out(words) == total
    assert words[-1][1] == "broker.connected"


SOURCES = st.sampled_from(
    [
        ("target.ejected", {"subscription_id": "a", "target": "x"}),
        ("target.recovered", {"subscription_id": "a", "target": "x"}),
        ("target.ejected", {"subscription_id": "b", "target": "x"}),
        ("broker.blocked", {}),
        ("service.fault", {"where": "intake lane"}),
    ]
)


@given(st.lists(st.tuples(SOURCES, st.integers(1, 40), st.floats(0, 50)), max_size=30))
def test_whatever_comes_no_count_and_no_last_word_is_lost(bursts):
    clock = FakeClock()
    written = Written(clock)
    log = BoundedLog(written, clock)
    said: dict[Any, list[int]] = defaultdict(list)
    told: dict[Any, list[tuple[float, int, int]]] = defaultdict(list)

    def thing(event: str, fields: dict[str, Any]) -> Any:
        flapping = FLAPPING[event]
        return flapping.about, *(fields[name] for name in flapping.key)

    number = 0
    for (event, fields), times, pause in bursts:
        for _ in range(times):
            number += 1
            log.info(event, number=number, **fields)
            said[thing(event, fields)].append(number)
        clock.seconds += pause
        log.tick()
    log.flush()
    for at, event, fields in written.lines:
        told[thing(event, fields)].append((at, fields["number"], fields.get("left_out", 0)))
    assert said.keys() == told.keys()
    for key, lines in told.items():
        numbers = [line for _, line, _ in lines]
        assert numbers == sorted(numbers)
        assert numbers[-1] == said[key][-1]
        assert len(lines) + sum(count for _, _, count in lines) == len(said[key])
        windows: dict[int, int] = defaultdict(int)
        for at, _, _ in lines:
            windows[int(at // MINUTE)] += 1
        # Its minutes begin with its first line, so two of them lie in one of the clock's; and at the
        # end of the process one more line is written.
        assert max(windows.values()) <= 2 * LINES + 1


def test_what_is_remembered_is_bounded_and_forgotten():
    clock = FakeClock()
    written = Written(clock)
    log = BoundedLog(written, clock)
    for _ in range(2):
        for number in range(2 * MOST_THINGS):
            log.info("target.gone", subscription_id=str(number), target="https://a.example/")
    assert len(log._minutes) <= MOST_THINGS + 1
    assert len(written.lines) == 2 * MOST_THINGS + LINES
    clock.seconds += MINUTE
    log.tick()
    assert len(log._minutes) == 1
    assert len(written.lines) + left_out(written.lines) == 4 * MOST_THINGS
    clock.seconds += MINUTE
    log.tick()
    assert not log._minutes


def test_lines_below_the_level_of_the_log_take_no_room_from_those_above(tmp_path):
    with place(tmp_path, "error") as it:
        for _ in range(100):
            it.log.info("broker.connected", **{"server.address": "a", "server.port": 1})
        it.log.error("broker.disconnected", error="gone", next_attempt_at="2030-01-01T00:00:00Z")
        it.clock.seconds += MINUTE
        it.log.tick()
        lines = it.lines()
    assert [line["message"] for line in lines] == ["broker.disconnected"]
    assert it.log.counts["broker.connected"] == 100


def test_kinds_that_share_a_bound_are_told_apart_by_the_same_fields_and_have_them():
    by_about = defaultdict(set)
    for name, flapping in FLAPPING.items():
        by_about[flapping.about].add((flapping.key, flapping.lines))
        assert not name.startswith(("attempt.", "delivery.", "event."))
    assert all(len(how) == 1 for how in by_about.values())
