"""Hours of trouble, made of the lines of a real run: only their times are moved, and where it is said,
a field is changed.

Every scenario says which alerts must fire, each with a label that tells it apart and the minutes between
which it begins and between which it ends (None: still firing when the scenario ends).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from tests.monitoring.loki import NANOS, Entry
from tests.monitoring.run import Line, Run, made_up

BEGIN = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())
MINUTES = 100
A, B = "dispatcher-a", "dispatcher-b"


@dataclass(frozen=True, slots=True)
class Fires:
    """An alert with a label of its own; `begins` and `ends` are bounds in minutes."""

    alert: str
    label: str | None
    value: str | None
    begins: tuple[float, float]
    ends: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """What was written, and what must come of it."""

    entries: list[Entry]
    fires: list[Fires]


def at(minute: float, line: Line, pod: str | None = None, **changes: Any) -> Entry:
    """Move a line to a minute of the scenario, as it comes out of a pod."""
    seconds = BEGIN + 60 * minute
    stamp = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    told = line.told | changes | {"timestamp": stamp.replace("+00:00", "Z")}
    labels = {"namespace": "webhooks", "pod": pod or line.pod, "job": "pods", "instance": "x"}
    return Entry(int(seconds * NANOS), orjson.dumps(told).decode(), labels)


def every(seconds: float, begin: float, end: float) -> Iterator[float]:
    """Yield minutes from `begin` until before `end`."""
    count = int((end - begin) * 60 / seconds)
    yield from (begin + number * seconds / 60 for number in range(count))


def healthy(run: Run, until: float = MINUTES, pods: tuple[str, ...] = (A, B)) -> list[Entry]:
    """Return deliveries that succeed."""
    line = run.of("attempt.succeeded", subscription_id="good", lane="intake")[0]
    return [
        at(minute + number * 0.01, line, pod, age_ms=20.0)
        for number, pod in enumerate(pods)
        for minute in every(15, 0, until)
    ]


def living(
    run: Run, begin: float = 0, until: float = MINUTES, *pods: str, **changes: Any
) -> list[Entry]:
    """Return the regular lines of pods, A and B unless others are named."""
    line = run.of("service.alive")[0]
    state = {
        "ready": True, "connected": True, "blocked": False, "subscriptions_stale": False,
        "attempts": 40, "lines_total": 100, "rejected": 0, "rejected_events_waiting": 2,
    }  # fmt: skip
    return [
        at(minute + number * 0.01, line, pod, **state | changes)
        for number, pod in enumerate(pods or (A, B))
        for minute in every(60, begin, until)
    ]


def all_is_well(run: Run) -> Scenario:
    """A day like any other: a retry here and there, a short ejection, an orderly restart."""
    failed = run.of("attempt.failed", subscription_id="shaky", decision="retry")[0]
    ejected, recovered = (
        run.of(f"target.{word}", subscription_id="ill")[0] for word in ("ejected", "recovered")
    )
    draining = run.of("service.draining")[0]
    stopped = next(line for line in run.of("service.stopped") if line.told["left"] == 0)
    succeeded = run.of("attempt.succeeded", subscription_id="shaky")[0]
    return Scenario(
        [
            *healthy(run),
            *living(run),
            *living(run, 0, 40, "dispatcher-f"),
            *(at(minute, failed) for minute in every(120, 5, 95)),
            *(at(minute + 0.1, succeeded) for minute in every(60, 5, 95)),
            *(at(minute, ejected) for minute in every(600, 5, 95)),
            *(at(minute + 2, recovered) for minute in every(600, 5, 95)),
            at(40, draining, "dispatcher-f"),
            at(40.1, stopped, "dispatcher-f", duration_ms=900),
            at(20, run.of("subscriptions.refused")[0], B),
            at(20.5, run.of("subscriptions.loaded")[0], B),
            at(30, run.of("broker.disconnected")[0], B),
            at(30.2, run.of("broker.connected")[0], B),
        ],
        [],
    )


def trouble(run: Run) -> Scenario:
    """Everything that can go wrong for one subscription, one target, one replica."""
    succeeded = run.of("attempt.succeeded", subscription_id="ill")[0]
    deferred = run.of("delivery.deferred", subscription_id="ill", cause="ejected")[0]
    ill = run.of("attempt.failed", subscription_id="ill", decision="retry")[0]
    failed = run.of("attempt.failed", subscription_id="shaky", decision="retry")[0]
    late = run.of("attempt.succeeded", subscription_id="limited")[0]
    ejected, recovered = (
        run.of(f"target.{word}", subscription_id="ill")[0] for word in ("ejected", "recovered")
    )
    away = run.of("broker.disconnected")[0]
    draining, connected = run.of("service.draining")[0], run.of("broker.connected")[0]
    left = next(line for line in run.of("service.stopped") if line.told["left"])
    entries = [
        *healthy(run),
        *living(run, 0, 20, A),
        *living(run, 20, 40, A, blocked=True),
        *living(run, 40, 60, A, blocked=True, subscriptions_stale=True),
        *living(run, 60, 80, A, blocked=True),
        *living(run, 80, MINUTES, A),
        # It writes ten lines a second for a while, and few of them arrive.
        *living(run, 0, 40, B),
        *(
            entry
            for minute in range(40, 60)
            for entry in living(run, minute, minute + 1, B, lines_total=100 + 600 * (minute - 40))
        ),
        *living(run, 60, MINUTES, B, lines_total=100 + 600 * 20),
        *living(run, 1, 30, "dispatcher-c"),
        *living(run, 30, 50, "dispatcher-c", ready=False, connected=False),
        *living(run, 50, MINUTES, "dispatcher-c"),
        *living(run, 0, 20, "dispatcher-d", "dispatcher-e"),
        *(at(minute, failed) for minute in every(20, 30, 60)),
        # An outage: five attempts fail, then everything is put off but a probe now and then.
        *(at(minute, succeeded) for minute in every(5, 0, 30)),
        *(at(30, ill) for _ in range(5)),
        *(at(minute, deferred) for minute in every(5, 30, 60)),
        *(at(minute, succeeded) for minute in every(5, 60, 80)),
        *(at(minute, ejected) for minute in every(300, 30, 80)),
        at(80, recovered),
        at(20, run.of("target.gone")[0]),
        *(at(minute, run.of("delivery.dead_lettered")[0]) for minute in every(60, 20, 30)),
        at(20, run.of("event.rejected")[0]),
        *(
            at(minute, late, age_ms=1000.0 + minute * 20_000, lane="backlog")
            for minute in every(30, 0, MINUTES)
        ),
        # A backlog that is being worked off.
        *(
            at(minute, late, age_ms=3e6 - minute * 20_000, lane="backlog", subscription_id="late")
            for minute in every(30, 0, MINUTES)
        ),
        at(1, connected, "dispatcher-c"),
        *(at(minute, away, "dispatcher-c") for minute in every(15, 30, 50)),
        at(50, connected, "dispatcher-c"),
        *(at(minute, run.of("broker.unrouted")[0]) for minute in every(30, 30, 40)),
        at(20, draining, "dispatcher-d"),
        at(20.3, left, "dispatcher-d"),
        at(20, draining, "dispatcher-e"),
        at(40, run.of("subscriptions.refused")[0], A),
        at(60, run.of("subscriptions.loaded")[0], A),
        at(40, made_up("service.fault", where="broker")),
        at(40, run.of("worker.died")[0], A),
        at(40, made_up("log.gap", lines=7), A),
    ]
    return Scenario(
        entries,
        [
            Fires("WebhookDeliveryFailing", "subscription_id", "shaky", (34, 38), (70, 76)),
            Fires("WebhookDeliveryFailing", "subscription_id", "ill", (38, 45), (65, 75)),
            Fires("WebhookTargetEjectedLong", "subscription_id", "ill", (60, 62), (79, 81)),
            Fires("WebhookTargetGone", "subscription_id", "gone", (20, 21), (79, 81)),
            Fires("WebhookDeadLettersGrowing", "reason", None, (20, 21), (58, 61)),
            Fires("WebhookEventsRejected", "reason", "not_json", (20, 21), (34, 36)),
            Fires("WebhookDeliveriesAgeing", "subscription_id", "limited", (46, 51), None),
            Fires("WebhookBrokerAway", "pod", "dispatcher-c", (32, 33), (49, 51)),
            Fires("WebhookBrokerBlocked", "pod", A, (22, 23), (79, 81)),
            Fires("WebhookUnrouted", "queue", None, (30, 31), (43, 46)),
            Fires("WebhookDrainTooSlow", "pod", "dispatcher-d", (20, 22), (34, 37)),
            Fires("WebhookDrainTooSlow", "pod", "dispatcher-e", (22, 24), (36, 38)),
            Fires("WebhookReplicaSilent", "pod", "dispatcher-e", (24, 26), (78, 80)),
            Fires("WebhookLinesMissing", "pod", B, (46, 50), (70, 76)),
            Fires("WebhookSubscriptionsRefused", "pod", A, (40, 41), (59, 61)),
            Fires("WebhookServiceFault", "where", "broker", (40, 41), (54, 56)),
            Fires("WebhookWorkerDied", "pod", A, (40, 41), (54, 56)),
            Fires("WebhookLogGap", "pod", A, (40, 41), (54, 56)),
        ],
    )


def everything_fails(run: Run) -> Scenario:
    """More subscriptions than Loki answers about at once."""
    failed = run.of("attempt.failed", subscription_id="shaky", decision="retry")[0]
    failing = [
        at(30 + number / 600 + 5 * again, failed, subscription_id=f"s-{number}")
        for number in range(600)
        for again in range(4)
    ]
    return Scenario(
        [*healthy(run), *living(run), *failing],
        [Fires("WebhookDeliveryFailingWidely", None, None, (40, 48), (50, 62))],
    )


def traffic_stops(run: Run) -> Scenario:
    """All are alive, and nothing is attempted any more."""
    return Scenario(
        [*healthy(run, 20), *living(run, 0, 20), *living(run, 20, MINUTES, attempts=0)],
        [Fires("WebhookNoTraffic", None, None, (54, 57), None)],
    )


def lines_stop(run: Run) -> Scenario:
    """Nothing comes any more."""
    return Scenario(
        [*healthy(run, 20), *living(run, 0, 20)],
        [
            Fires("WebhookReplicaSilent", "pod", A, (24, 26), (78, 80)),
            Fires("WebhookReplicaSilent", "pod", B, (24, 26), (78, 80)),
            Fires("WebhookNoLogs", None, None, (29, 31), None),
        ],
    )


def a_replica_is_silent(run: Run) -> Scenario:
    """One stops writing while two go on."""
    return Scenario(
        [
            *healthy(run, 30, (B,)),
            *healthy(run, MINUTES, (A, "dispatcher-f")),
            *living(run, 0, 30, B),
            *living(run, 0, MINUTES, A, "dispatcher-f"),
        ],
        [Fires("WebhookReplicaSilent", "pod", B, (34, 36), (88, 90))],
    )


def the_intake_is_behind(run: Run) -> Scenario:
    """New events wait for two minutes."""
    line = run.of("attempt.succeeded", subscription_id="good", lane="intake")[0]
    waited = [at(minute, line, A, age_ms=120_000.0) for minute in every(15, 30, MINUTES)]
    return Scenario(
        [*healthy(run, 30), *living(run), *waited],
        [Fires("WebhookIntakeBehind", None, None, (44, 48), None)],
    )


def it_has_only_just_begun(run: Run) -> Scenario:
    """The first replica starts, and there is nothing to do yet."""
    return Scenario(
        living(run, 80, MINUTES, A, attempts=0),
        [Fires("WebhookNoLogs", None, None, (0, 1), (78, 81))],
    )


def it_is_idle_for_a_while(run: Run) -> Scenario:
    """Twenty minutes without an event are no reason to wake anybody; nor is it silence."""
    return Scenario(
        [
            *healthy(run, 40),
            *living(run, 0, 40),
            *living(run, 40, 60, attempts=0),
            *living(run, 60, MINUTES),
        ],
        [],
    )


def traffic_comes_in_bursts(run: Run) -> Scenario:
    """Three hundred lines at once, every seven minutes; each arrives, and the pod's count says so."""
    line = run.of("attempt.succeeded", subscription_id="good", lane="intake")[0]
    entries: list[Entry] = []
    for minute in range(MINUTES):
        if minute % 7 == 3:
            entries += [at(minute + 0.5 + n / 60_000, line, A, age_ms=20.0) for n in range(300)]
        entries += living(run, minute, minute + 1, A, lines_total=len(entries) + 1)
    return Scenario(entries, [])


def the_broker_parks_messages(run: Run) -> Scenario:
    """Three messages were delivered too often; before that a dispatcher rejected two, and said so."""
    return Scenario(
        [
            *healthy(run),
            *living(run, 0, 20),
            *living(run, 20, 21, A, rejected=2, rejected_events_waiting=4),
            *living(run, 20, 21, B, rejected_events_waiting=4),
            *(at(20, run.of("event.rejected")[0], A) for _ in range(2)),
            *living(run, 21, 50, rejected_events_waiting=4),
            *living(run, 50, 80, rejected_events_waiting=7),
            # Somebody decided.
            *living(run, 80, MINUTES, rejected_events_waiting=0),
        ],
        [
            Fires("WebhookEventsRejected", "reason", "not_json", (20, 21), (34, 36)),
            Fires("WebhookParkedByBroker", None, None, (53, 55), (63, 66)),
        ],
    )


SCENARIOS: tuple[Callable[[Run], Scenario], ...] = (
    all_is_well,
    trouble,
    everything_fails,
    traffic_stops,
    lines_stop,
    a_replica_is_silent,
    the_intake_is_behind,
    it_has_only_just_begun,
    it_is_idle_for_a_while,
    traffic_comes_in_bursts,
    the_broker_parks_messages,
)
