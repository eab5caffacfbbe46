"""Every event ends in exactly one of the named ways, wherever the dispatcher or its broker fails.

A scenario is run to rest once without a fault, and its steps are counted: each publish before it is
sent and before its confirm comes, each attempt before its target has it and before it is answered, each
ack before and after it arrives.  Then it is run again with each kind of fault at each step, small ones
with each pair of the harder kinds.  After a crash a fresh process goes on over the same broker.

The law, for each event and each subscription that wants it (a *pair*):

1.  Never lost.  At every step a pair that has not ended is in some queue.  At rest the intake, the
    backlog, the delay ladder and the catch-all are empty.
2.  Ended once.  An *ending* is a 2xx, a dead letter, or a rejected event.  A pair whose message no fault
    caught unsettled has exactly one.  Every message that a fault gives back to the broker adds at most
    one: a pair has at least one ending and at most 1 + how many unsettled messages that carried it came
    back.  So a dead letter beside a 2xx, or two of either, take a fault between what was done and its ack.
3.  Bounded.  Each life of a pair makes no more attempts than its schedule and its targets allow.
4.  Known again.  Every request of an event carries the same `webhook-id` and, for one subscription, the
    same bytes.
5.  A nack, and a drain that is given its time, cost nothing: one ending, whatever came back.  (A command
    gives up at a nack; what its walk held then comes back, and rule 2 holds.)
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain
from typing import Any

import pytest
from pamqp.commands import Basic

from service import dispatch, prepared
from service.broker import codec, rejected, topology
from service.broker.opening import TROUBLE, Address
from service.broker.outbox import Outbox
from service.broker.parked import Choose, Parked, ParkedQueue, Route, Why, connected
from service.broker.publishes import Answer, PublishChannel
from service.core import health
from service.core.delivery import (
    Answered,
    Delivery,
    Failed,
    FailureKind,
    Forbidden,
    Outcome,
)
from service.core.event import Event
from service.core.subscription import RetryPolicy, Subscription, Target
from service.dispatch import Dispatcher
from service.errors import DispatcherError
from service.prepared import Prepared
from service.redrive import Wanted, redrive_dead_letter, redrive_rejected, tell_dead_letter
from service.webhook.formats import render
from tests.fake_broker import (
    EPOCH,
    MAX_EVENT_BYTES,
    NAMES,
    Process,
    Stored,
    Verdict,
    World,
    run,
    standing_in,
)

DISPATCHER = "amqp://dispatcher/"
COMMAND = "amqp://command/"
RESTART = 1.0
LONGEST = 3600.0
PARKED = (NAMES.dead, NAMES.rejected)

Pair = tuple[str, str]
"""An event's id and a subscription's; the latter is empty for what never became a delivery."""


class Fault(StrEnum):
    """What goes wrong at a step."""

    CRASH = "the machine goes down"
    CUT = "both connections break"
    CUT_READING = "the connection that consumes breaks"
    CUT_WRITING = "the connection that publishes breaks"
    SILENCE = "the broker does not answer a publish"
    NACK = "the broker refuses a publish"
    DRAIN = "the process is told to stop, and is given its time"


HARMLESS = {Fault.NACK, Fault.DRAIN}
ANSWERS: Mapping[Fault | None, Verdict] = {Fault.SILENCE: Verdict.NEVER, Fault.NACK: Verdict.NO}


class Ending(StrEnum):
    DELIVERED = "delivered"
    DEAD = "dead letter"
    REJECTED = "rejected"


Script = Mapping[str, Sequence[Outcome]]
"""What is answered the first time, the second, …, by event or by URL; the last answer stays."""


@dataclass(frozen=True)
class Scenario:
    """Messages in, subscriptions, what targets answer, and how each pair ends without a fault.

    A pair ends with a fault as it does without one, unless it is named in `either`, whose targets
    change their minds.  `chapters` are what people do once all is at rest; `resume` brings disabled
    subscriptions back after that many seconds.
    """

    name: str
    subscriptions: Sequence[Subscription]
    endings: Mapping[Pair, Ending | None]
    script: Script = field(default_factory=dict)
    events: Sequence[Basic.Properties] = ()
    bodies: Mapping[str, bytes] = field(default_factory=dict)
    backlog: Sequence[Delivery] = ()
    chapters: Sequence[Callable[["Course"], Coroutine[Any, Any, None]]] = ()
    either: Sequence[Pair] = ()
    resume: float | None = None
    attempts: int = 50
    slow: int = 12
    way_in: tuple[str, str] | None = None
    patches: Sequence[tuple[object, str, object]] = ()

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


FaultAt = Callable[[int, str], Fault | None]
"""What goes wrong at a step, by its number (from 1) and its name."""


class Course(World):
    """One run of a scenario, with faults at some of its steps."""

    def __init__(self, scenario: Scenario, fault_at: FaultAt) -> None:
        super().__init__(scenario.subscriptions, self._answer, self._at)
        self.scenario = scenario
        self.faults: list[Fault] = []
        self._fault_at = fault_at
        self.script = dict(scenario.script)
        self.steps: list[str] = []
        self.caught: Counter[Pair] = Counter()
        self._never: list[asyncio.Future[None]] = []
        self._carried: dict[int, list[Pair]] = {}
        self._down: set[str] = set()
        self._lives = 0
        self._told_to_stop = False
        self._leaving: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.broker.on_rest = self._wake.set
        self.broker.on_returned = self._note_caught

    async def run(self) -> None:
        """Run to rest, chapter by chapter."""
        self._put_in()
        if self.scenario.resume is not None:
            asyncio.get_running_loop().call_later(self.scenario.resume, self._resume)
        async with asyncio.timeout(LONGEST):
            process = self._start()
            for chapter in (None, *self.scenario.chapters):
                process = await self._to_rest(process, chapter)

    def endings(self) -> Counter[tuple[Pair, Ending]]:
        """Return how each pair has ended so far, and how often."""
        found = Counter(
            ((request.event_id, request.subscription_id), Ending.DELIVERED)
            for request in self.receivers.requests
            if request.accepted
        )
        for queue, ending in ((NAMES.dead, Ending.DEAD), (NAMES.rejected, Ending.REJECTED)):
            for stored in self.broker.contents(queue):
                found.update((pair, ending) for pair in self.pairs(queue, stored))
        return found

    def pairs(self, queue: str, stored: Stored) -> list[Pair]:
        """Return the pairs that a message carries."""
        found = self._carried.get(stored.number)
        if found is None:
            found = self._carried[stored.number] = self._pairs(queue, stored)
        return found

    def _pairs(self, queue: str, stored: Stored) -> list[Pair]:
        headers = stored.properties.headers or {}
        if queue != NAMES.intake and codec.STATE in headers and rejected.REASON not in headers:
            deliveries = codec.read_deliveries(headers, stored.body)
            return [(one.event.id, one.subscription_id) for one in deliveries]
        told = headers.get(rejected.MESSAGE_ID, stored.properties.message_id)
        return [pair for pair in self.scenario.endings if pair[0] == told]

    def everywhere(self) -> set[Pair]:
        """Return the pairs that have ended or are in some queue."""
        on_their_way = {
            pair
            for name, queue in self.broker.queues.items()
            if (queue.ready or queue.held) and name not in PARKED
            for stored in chain(queue.ready, queue.held)
            for pair in self.pairs(name, stored)
        }
        return on_their_way | {pair for pair, _ in self.endings()}

    async def _to_rest(
        self, process: Process, chapter: Callable[["Course"], Coroutine[Any, Any, None]] | None
    ) -> Process:
        """Run until nothing is on its way and the chapter is done, over as many lives as it takes."""
        doing: asyncio.Task[None] | None = None
        self._wake.set()
        while True:
            if chapter is not None and doing is None:
                doing = self._begin(chapter(self))
            await self._wake.wait()
            self._wake.clear()
            if self._down:
                await self._clear_away()
                process, doing = self._start(), None
            elif self._told_to_stop:
                self._told_to_stop = False
                self._leaving = self._leaving or self._begin(process.drain())
            elif self._leaving is not None and self._leaving.done():
                self._leaving, process = None, self._start()
            if doing is not None and doing.done():
                chapter, doing = None if _succeeded(doing) else chapter, None
                await asyncio.sleep(RESTART)
                self._wake.set()
            elif self.broker.passing == 0 and chapter is None and self._leaving is None:
                if process.in_flight == 0:
                    return process
                asyncio.get_running_loop().call_later(0.1, self._wake.set)

    def _begin(self, doing: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(doing)
        task.add_done_callback(lambda _: self._wake.set())
        return task

    def _start(self) -> Process:
        self._lives += 1
        bounds = {"attempts": self.scenario.attempts, "slow": self.scenario.slow}
        return Process(self, f"{DISPATCHER}{self._lives}", **bounds)

    async def _at(self, step: str, owner: str) -> Verdict:
        if owner in self._down:
            await self._for_ever()
        self.steps.append(step)
        if len(self.faults) < 2:  # with more of them it is left to the end, to save time
            lost = set(self._owed) - self.everywhere()
            assert not lost, f"lost at {step}: {lost}"
        fault = self._fault_at(len(self.steps), step)
        if fault is not None:
            self.faults.append(fault)
            self._strike(fault, owner)
        if owner in self._down:
            await self._for_ever()
        return ANSWERS.get(fault, Verdict.GO)

    async def _for_ever(self) -> None:
        never = asyncio.get_running_loop().create_future()
        self._never.append(never)  # the loop itself would forget whoever waits for nothing
        await never

    def _strike(self, fault: Fault, owner: str) -> None:
        match fault:
            case Fault.CRASH:
                self._crash()
            case Fault.CUT:
                self.broker.cut(owner)
            case Fault.CUT_READING:
                self.broker.cut(owner, "consumes")
            case Fault.CUT_WRITING:
                self.broker.cut(owner, "publishes")
            case Fault.DRAIN:
                self._told_to_stop = True
                self._wake.set()
            case Fault.SILENCE | Fault.NACK:
                pass  # the broker's answer is all there is to it

    def _crash(self) -> None:
        """Stop every process in the middle of what it does."""
        owners = {one.url for one in self.broker.connections}
        self._down |= owners | {f"{DISPATCHER}{self._lives}", COMMAND}
        for owner in owners:
            self.broker.cut(owner)
        self._wake.set()

    async def _clear_away(self) -> None:
        """Clear away what the dead leave behind, and let time pass until they are started again."""
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        self._down.clear()
        self._told_to_stop, self._leaving = False, None
        await asyncio.sleep(RESTART)

    def _answer(self, url: str, event_id: str, nth: int) -> Outcome:
        answers = self.script.get(event_id) or self.script.get(url) or (OK,)
        return answers[min(nth, len(answers)) - 1]

    def _note_caught(self, queue: str, messages: list[Stored]) -> None:
        for stored in messages:
            self.caught.update(self.pairs(queue, stored))

    def _put_in(self) -> None:
        for properties in self.scenario.events:
            told = properties.message_id or ""
            body = self.scenario.bodies.get(told, b'{"event": "%b"}' % told.encode())
            exchange, key = self.scenario.way_in or ("events", properties.message_type or "")
            self.broker.publish(exchange, key, body, properties)
        for delivery in self.scenario.backlog:
            properties = codec.delivery_properties(delivery)
            self.broker.publish(NAMES.deliveries, "", delivery.event.data, properties)

    def _resume(self) -> None:
        self.put_in_force([replace(one, enabled=True) for one in self.snapshot])

    @property
    def _owed(self) -> Iterator[Pair]:
        return (pair for pair, ending in self.scenario.endings.items() if ending is not None)


def _succeeded(command: "asyncio.Task[None]") -> bool:
    """Tell whether a command did what it was told; where the broker failed or refused, it is given again."""
    if command.cancelled():
        return False
    error = command.exception()
    assert error is None or isinstance(error, (*TROUBLE, DispatcherError)), error
    return error is None


# Scenarios.

OK = Answered(200, 0.01)
BROKEN = Answered(500, 0.01)
HANGS = Failed(FailureKind.TIMEOUT, "no answer", 15.0)
STALE = Failed(FailureKind.RESET, "reset", 0.0, stale_connection=True)
BUSY = Answered(429, 0.01, retry_after=5.0)
GONE = Answered(410, 0.01)
UNFIT = Answered(422, 0.01)
BARRED = Forbidden("a private address")
SLOW = Answered(200, 2.0)
FIRST, SECOND, THIRD = (f"event-{number}-of-the-model" for number in (1, 2, 3))


def event(event_id: str, event_type: str = "order.created") -> Basic.Properties:
    return Basic.Properties(
        message_id=event_id, message_type=event_type, app_id="shop", delivery_mode=2,
        timestamp=datetime.fromtimestamp(EPOCH, UTC),
    )  # fmt: skip


def url(name: str) -> str:
    return f"https://{name}.example/"


def subscription(
    name: str,
    *targets: str | Target,
    schedule: tuple[float, ...] = (5.0,),
    max_age: float = 432000.0,
    permanent: frozenset[int] = frozenset(),
    **more: Any,
) -> Subscription:
    """Return a subscription that wants every order; its target has its name unless others are told."""
    return Subscription(
        id=name,
        event_types=("order.#",),
        targets=tuple(
            one if isinstance(one, Target) else Target(url(one)) for one in targets or (name,)
        ),
        retry=RetryPolicy(schedule, 0.0, max_age, permanent),
        **more,
    )


def waiting(event_id: str, name: str, created_at: float = EPOCH, **more: Any) -> Delivery:
    told = b'{"event": "%b"}' % event_id.encode()
    made = Event(event_id, "order.created", "shop", "2027-01-15T08:00:00Z", EPOCH, told)
    return Delivery(made, name, created_at, **more)


def one(name: str, ending: Ending | None, *answers: Outcome, **more: Any) -> Scenario:
    """Return the scenario of one event for one subscription with one target."""
    schedule = more.pop("schedule", (5.0,))
    policy = {key: more.pop(key) for key in ("max_age", "permanent") if key in more}
    return Scenario(
        name, [subscription("a", schedule=schedule, **policy)], {(FIRST, "a"): ending},
        {url("a"): answers}, [event(FIRST)], **more,
    )  # fmt: skip


async def redrive(course: Course) -> None:
    """Redrive the dead letters of subscription `a` as the command does; others stay."""
    course.script.clear()
    wanted, route = Wanted(subscription="a"), redrive_dead_letter(NAMES, course.clock.now())
    await walk(NAMES.dead, lambda parked: wanted.fits(*tell_dead_letter(parked, False)), route)


async def redrive_everything_rejected(course: Course) -> None:
    """Redrive rejected events."""
    await walk(NAMES.rejected, lambda _: True, redrive_rejected(NAMES))


async def walk(queue: str, chosen: Choose, route: Route) -> None:
    """Walk a queue; raises DispatcherError, as the command does, where one that was meant stays."""
    stayed: list[Why] = []
    async with connected(Address([COMMAND])) as connection:
        await ParkedQueue(connection, queue).work(
            chosen, route, None, lambda _, was_meant, why: stayed.extend([why] * was_meant)
        )
    if stayed:
        raise DispatcherError("some were left where they are")


DELIVERED, DEAD, REJECTED = Ending

SCENARIOS = [
    one("delivered at once", DELIVERED, OK),
    one("delivered in the second round", DELIVERED, BROKEN, OK),
    one("delivered in the third round", DELIVERED, BROKEN, BROKEN, OK, schedule=(5.0, 60.0)),
    one("exhausted", DEAD, BROKEN),
    one("timed out, then delivered", DELIVERED, HANGS, OK),
    one("throttled, then delivered", DELIVERED, BUSY, OK),
    one("gone", DEAD, GONE),
    one("refused", DEAD, UNFIT, permanent=frozenset({422})),
    one("unfit for one round only", DELIVERED, UNFIT, OK),
    one("barred by the egress rules", DEAD, BARRED),
    one("a stale connection", DELIVERED, STALE, OK),
    one("expired before its retry", DEAD, BUSY, max_age=4.0),
    one("exhausted unless it is asked once more", DEAD, BROKEN, BROKEN, OK, either=[(FIRST, "a")]),
    Scenario(
        "failed over", [subscription("a", "x", "y")], {(FIRST, "a"): DELIVERED},
        {url("x"): [BROKEN]}, [event(FIRST)],
    ),
    Scenario(
        "nobody wants it", [subscription("a")], {(FIRST, ""): None},
        events=[event(FIRST, "user.created")],
    ),
    Scenario(
        "unreadable", [subscription("a")], {(FIRST, ""): REJECTED},
        events=[event(FIRST)], bodies={FIRST: b"\xffwhat?"},
    ),
    Scenario(
        "too large", [subscription("a")], {(FIRST, ""): REJECTED},
        events=[event(FIRST)], bodies={FIRST: bytes(MAX_EVENT_BYTES + 1)},
    ),
    Scenario(
        "a message of somebody else in the backlog", [subscription("a")], {(FIRST, ""): REJECTED},
        events=[event(FIRST)], way_in=(NAMES.deliveries, ""),
    ),
    Scenario(
        "a subscription that nobody knows", [subscription("a")], {(FIRST, "b"): DEAD},
        backlog=[waiting(FIRST, "b")],
    ),
    Scenario(
        "too old when it comes back", [subscription("a")], {(FIRST, "a"): DEAD},
        backlog=[waiting(FIRST, "a", created_at=EPOCH - 5.1 * 86400, round=2)],
    ),
    Scenario(
        "two subscriptions of one event, delivered and retried",
        [subscription("a"), subscription("b")],
        {(FIRST, "a"): DELIVERED, (FIRST, "b"): DELIVERED},
        {url("b"): [BROKEN, OK]}, [event(FIRST)],
    ),
    Scenario(
        "three subscriptions of one event, delivered, retried and dead",
        [subscription("a"), subscription("b"), subscription("c")],
        {(FIRST, "a"): DELIVERED, (FIRST, "b"): DELIVERED, (FIRST, "c"): DEAD},
        {url("b"): [BROKEN, OK], url("c"): [BROKEN]}, [event(FIRST)],
    ),
    Scenario(
        "an event split into a message for each subscription",
        [subscription("a"), subscription("b"), subscription("c")],
        {(FIRST, "a"): DELIVERED, (FIRST, "b"): DELIVERED, (FIRST, "c"): DEAD},
        {url("b"): [BROKEN, OK], url("c"): [BROKEN]}, [event(FIRST)],
        patches=[(dispatch, "SPLIT_ABOVE", 1)],
    ),
    Scenario(
        "an event split into messages for two subscriptions",
        [subscription("a"), subscription("b"), subscription("c")],
        {(FIRST, "a"): DELIVERED, (FIRST, "b"): DELIVERED, (FIRST, "c"): DEAD},
        {url("b"): [BROKEN, OK], url("c"): [BROKEN]}, [event(FIRST)],
        patches=[(dispatch, "SPLIT_ABOVE", 2)],
    ),
    Scenario(
        "a saturated target", [subscription("a", Target(url("a"), max_in_flight=1))],
        {(name, "a"): DELIVERED for name in (FIRST, SECOND, THIRD)},
        {url("a"): [SLOW]}, [event(name) for name in (FIRST, SECOND, THIRD)],
    ),
    Scenario(
        "a slow target moves to the backlog lane", [subscription("a")],
        {(name, "a"): DELIVERED for name in (FIRST, SECOND)},
        {}, [event(FIRST), event(SECOND)], slow=1, patches=[(health, "SLOW_AFTER", -1.0)],
    ),
    Scenario(
        "an ejected target", [subscription("a")],
        {(name, "a"): DELIVERED for name in (FIRST, SECOND)},
        {url("a"): [BROKEN, OK]}, [event(FIRST), event(SECOND)],
        patches=[(health, "FAILURES_TO_EJECT", 1)],
    ),
    Scenario(
        "a lane without room for more than one attempt, whose target is ejected",
        [subscription("a")], {(name, "a"): DELIVERED for name in (FIRST, SECOND, THIRD)},
        {url("a"): [BROKEN, OK]}, [event(name) for name in (FIRST, SECOND, THIRD)],
        attempts=1, patches=[(health, "FAILURES_TO_EJECT", 1)],
    ),
    Scenario(
        "a throttled target", [subscription("a", Target(url("a"), max_in_flight=1))],
        {(name, "a"): DELIVERED for name in (FIRST, SECOND)},
        {url("a"): [BUSY, OK]}, [event(FIRST), event(SECOND)],
    ),
    Scenario(
        "a rate limit", [subscription("a", rate_limit=1.0)],
        {(name, "a"): DELIVERED for name in (FIRST, SECOND, THIRD)},
        {}, [event(name) for name in (FIRST, SECOND, THIRD)],
    ),
    Scenario(
        "a paused subscription", [subscription("a", enabled=False)], {(FIRST, "a"): DELIVERED},
        {}, [event(FIRST)], resume=20.0,
    ),
    Scenario(
        "three events, of which the second fails", [subscription("a")],
        {(FIRST, "a"): DELIVERED, (SECOND, "a"): DEAD, (THIRD, "a"): DELIVERED},
        {SECOND: [BROKEN]}, [event(name) for name in (FIRST, SECOND, THIRD)],
    ),
    Scenario(
        "dead letters, one of which is redriven", [subscription("a"), subscription("b")],
        {(FIRST, "a"): DELIVERED, (FIRST, "b"): DEAD},
        {url("a"): [BROKEN], url("b"): [BROKEN]}, [event(FIRST)], chapters=[redrive],
    ),
    Scenario(
        "a rejected event that is redriven", [subscription("a")], {(FIRST, ""): REJECTED},
        events=[event(FIRST)], bodies={FIRST: b"\xffwhat?"},
        chapters=[redrive_everything_rejected],
    ),
]  # fmt: skip


def possible(step: str) -> list[Fault]:
    """Return what may go wrong at a step."""
    match step:
        case "publish":
            return list(Fault)
        case "publish.stored":
            return [fault for fault in Fault if fault not in HARMLESS]
        case "attempt":
            return [Fault.CRASH, Fault.CUT, Fault.CUT_READING, Fault.CUT_WRITING, Fault.DRAIN]
        case "attempt.taken":
            return [Fault.CRASH, Fault.CUT, Fault.CUT_READING, Fault.CUT_WRITING]
        case "ack" | "reject":
            return [Fault.CRASH, Fault.CUT, Fault.DRAIN]
        case _:
            return [Fault.CRASH, Fault.CUT]


IN_PAIRS = (
    "delivered at once",
    "delivered in the second round",
    "gone",
    "barred by the egress rules",
    "failed over",
    "unreadable",
    "too large",
    "a message of somebody else in the backlog",
    "two subscriptions of one event, delivered and retried",
    "exhausted unless it is asked once more",
)
PAIRED = {Fault.CRASH, Fault.CUT, Fault.SILENCE}
"""Faults that are tried in pairs: the others are milder forms of these."""


def play(scenario: Scenario, fault_at: FaultAt) -> Course:
    """Run a scenario; the same each time."""
    random.seed(7)
    course = Course(scenario, fault_at)
    with pytest.MonkeyPatch.context() as patch, standing_in(course.broker):
        for where, name, value in scenario.patches:
            patch.setattr(where, name, value)
        run(course.run(), course.clock)
    return course


def check(course: Course) -> None:
    """Hold a course that came to rest against the law."""
    left = [queue for queue in course.broker.queues if course.broker.contents(queue)]
    assert set(left) <= set(PARKED), left
    assert not course.log.faults
    endings, scenario = course.endings(), course.scenario
    assert {pair for pair, _ in endings} == {p for p, e in scenario.endings.items() if e}
    for pair, expected in scenario.endings.items():
        found = {ending: endings[pair, ending] for ending in Ending if endings[pair, ending]}
        most = most_lives(course, pair)
        if expected is not None:
            assert 1 <= sum(found.values()) <= most, (pair, found, course.caught[pair])
            assert set(found) == {expected} or pair in scenario.either, (pair, found)
        check_requests(course, pair)


def most_lives(course: Course, pair: Pair) -> int:
    if HARMLESS.issuperset(course.faults) and not course.scenario.chapters:
        return 1
    return 1 + course.caught[pair]


def check_requests(course: Course, pair: Pair) -> None:
    """Check that what targets were sent is bounded, and the same every time."""
    told = course.receivers.requests
    requests = [one for one in told if (one.event_id, one.subscription_id) == pair]
    wanted = course.snapshot.get(pair[1])
    if wanted is not None:
        in_one_life = (len(wanted.retry.schedule) + 1) * len(wanted.targets) + 1
        lives = most_lives(course, pair) + len(course.scenario.chapters)
        assert len(requests) <= in_one_life * lives
    assert {one.webhook_id for one in requests} <= {pair[0]}
    assert len({one.body for one in requests}) <= 1


def judged(scenario: Scenario, plan: Mapping[int, Fault]) -> Course:
    """Play a plan, of faults by the number of their step, and hold it against the law."""
    try:
        course = play(scenario, lambda number, _: plan.get(number))
        check(course)
    except AssertionError as error:
        error.add_note(f"{scenario.name}: {plan}")
        raise
    return course


def explore(scenario: Scenario, kinds: Sequence[Fault] | set[Fault], depth: int) -> int:
    """Play every plan of up to so many faults of these kinds, and return how many there were."""

    def beyond(before: Course, plan: Mapping[int, Fault]) -> int:
        runs = 1
        if len(plan) == depth:
            return runs
        for number in range(max(plan, default=0) + 1, len(before.steps) + 1):
            for fault in possible(before.steps[number - 1]):
                if fault in kinds:
                    longer = {**plan, number: fault}
                    after = judged(scenario, longer)
                    assert after.steps[:number] == before.steps[:number], "no two runs are the same"
                    runs += beyond(after, longer)
        return runs

    return beyond(judged(scenario, {}), {})


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_every_event_ends_in_exactly_one_way_whatever_fails_at_whichever_step(scenario: Scenario):
    assert explore(scenario, list(Fault), 1) > 1


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.name in IN_PAIRS], ids=str)
def test_every_event_ends_in_exactly_one_way_whatever_fails_at_any_two_steps(scenario: Scenario):
    assert explore(scenario, PAIRED, 2) > 1


def named(name: str) -> Scenario:
    return next(one for one in SCENARIOS if one.name == name)


def test_a_dead_letter_beside_a_delivery_takes_a_fault_between_the_dead_letter_and_its_ack():
    scenario = named("exhausted unless it is asked once more")
    calm = judged(scenario, {})
    both = []
    for number in range(1, len(calm.steps) + 1):
        endings = judged(scenario, {number: Fault.CRASH}).endings()
        if {ending for _, ending in endings} == {Ending.DEAD, Ending.DELIVERED}:
            both.append(calm.steps[number - 1])
    assert both == ["publish.stored", "ack"]


def test_a_message_that_kills_whoever_handles_it_ends_as_poison():
    scenario = one("kills", Ending.REJECTED, OK)
    course = play(scenario, lambda _, step: Fault.CRASH if step == "attempt" else None)
    check(course)
    assert len(course.faults) == topology.POISON_LIMIT + 1
    assert not course.receivers.requests


def test_what_a_producer_left_out_is_made_anew_when_its_message_comes_again():
    bare = Basic.Properties(message_type="order.created", delivery_mode=2)
    scenario = Scenario("bare", [subscription("a")], {}, {}, [bare], {"": b'{"event": "x"}'})
    course = play(scenario, lambda number, _: Fault.CRASH if number == 2 else None)
    first, second = course.receivers.requests
    assert first.webhook_id != second.webhook_id
    assert first.body != second.body


async def put_off_unconfirmed(outbox: Outbox, delivery: Delivery, at: float) -> bool:
    exchange, way = NAMES.route_in(round(at - outbox._clock.now()))
    told = codec.delivery_properties(delivery, way)
    publish = outbox._publisher.publish(exchange, "", delivery.event.data, told)
    outbox.left = asyncio.create_task(publish)  # type: ignore[attr-defined]
    return True


async def nothing(*_: object) -> bool:
    return True


async def ack_first(dispatcher: Dispatcher, message: Any, work: Any, budget: Any) -> None:
    message.ack()
    await asyncio.sleep(0.01)
    prepared = Prepared(work[0][0].event, render)
    for delivery, wanted in work:
        await dispatcher._deliverer.carry(delivery, wanted, prepared, budget, message)


async def move_carelessly(
    _: ParkedQueue, channel: Any, message: Any, chosen: Any, route: Any
) -> bool:
    seen = Parked(message.body, message.properties, message.routing_key)
    await channel.basic_ack(message.tag)
    if not chosen(seen):
        return False
    place = route(seen)
    await channel.basic_publish(
        seen.body, exchange=place.exchange, routing_key=place.routing_key,
        properties=place.properties,
    )  # fmt: skip
    return True


def take_silence_for_an_ack(channel: PublishChannel, _: str) -> None:
    for publish in channel._unanswered.values():
        publish.answer.set_result(Answer.TAKEN)


def take_a_nack_for_an_ack(channel: PublishChannel, tag: int, **_: bool) -> None:
    channel._unanswered.pop(tag).answer.set_result(Answer.TAKEN)


@pytest.mark.parametrize(
    ("scenario", "where", "name", "planted"),
    [
        ("delivered in the second round", Outbox, "put_off", put_off_unconfirmed),
        ("exhausted", Outbox, "bury", nothing),
        ("unreadable", Outbox, "reject", nothing),
        ("delivered at once", Dispatcher, "_run", ack_first),
        ("delivered in the second round", PublishChannel, "fail", take_silence_for_an_ack),
        ("delivered in the second round", PublishChannel, "settled", take_a_nack_for_an_ack),
        ("an event split into messages for two subscriptions", Outbox, "split", nothing),
        ("delivered in the second round", prepared, "webhook_id", lambda _: str(random.random())),
        ("dead letters, one of which is redriven", ParkedQueue, "_move", move_carelessly),
    ],
)
def test_the_model_finds_a_planted_fault(monkeypatch, scenario, where, name, planted):
    monkeypatch.setattr(where, name, planted)
    with pytest.raises((AssertionError, TimeoutError)):
        explore(named(scenario), list(Fault), 1)
