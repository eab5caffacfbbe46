"""What is told of deliveries: one log line an attempt, with everything known, and the counts.

The law here is the catalogue's (`service.catalogue`): no event data, no secrets, no query values.
"""

from collections.abc import Mapping
from typing import Any, Protocol, assert_never

import orjson

from service.core.delivery import (
    Answered,
    DeadLetter,
    Decision,
    Defer,
    Delivered,
    Delivery,
    Failed,
    Failover,
    Forbidden,
    Outcome,
    Reason,
    Repeat,
    Retry,
    describe,
)
from service.core.health import Change, TargetState
from service.log import AttemptLines, Log, attempts_by, rfc3339
from service.prepared import Prepared


class Meter(Protocol):
    """Counts what happens."""

    def attempted(self, lane: str, outcome: str, seconds: float, /) -> None: ...  # noqa: D102

    def delivered(self, lane: str, outcome: str, seconds: float, age: float, /) -> None: ...  # noqa: D102

    def deferred(self, cause: str) -> None: ...  # noqa: D102

    def dead_lettered(self, reason: str) -> None: ...  # noqa: D102


class Reporter:
    """Tells the log and the metrics."""

    def __init__(self, log: Log, meter: Meter, lines: AttemptLines | None = None) -> None:
        self._log = log
        self._meter = meter
        self._lines = lines or attempts_by(log)

    def succeeded(
        self,
        delivery: Delivery,
        prepared: Prepared,
        picked: TargetState,
        *,
        status: int,
        seconds: float,
        now: float,
        lane: str,
        span: str | None,
    ) -> None:
        """Tell of an attempt that was answered 2xx; `now` in Unix seconds."""
        age = now - prepared.event.time_unix
        self._meter.delivered(lane, str(status), seconds, age)
        if not picked.members:
            picked.members = _target_members(delivery.subscription_id, picked)
        trace = b',"trace_id":"%b","span_id":"%b"' % (
            (prepared.trace or "").encode(), span.encode()
        ) if span else b""  # fmt: skip
        self._lines(
            "attempt.succeeded",
            b'%b,%b,"lane":"%b","round":%d,"attempt":%d,"duration_ms":%.3f,"age_ms":%.3f,'
            b'"decision":"delivered","status":%d,"http.response.status_code":%d%b'
            % (
                prepared.members,
                picked.members,
                lane.encode(),
                delivery.round,
                delivery.attempts + 1,
                1000 * seconds,
                1000 * age,
                status,
                status,
                trace,
            ),
        )

    def failed(
        self,
        delivery: Delivery,
        prepared: Prepared,
        picked: TargetState,
        outcome: Outcome,
        decision: Decision,
        *,
        seconds: float,
        now: float,
        lane: str,
        span: str | None,
    ) -> None:
        """Tell of an attempt that failed and is in the delivery's history already."""
        kind = _kind(outcome)
        self._meter.attempted(lane, kind, seconds)
        fields = _attempt(delivery, prepared, picked, seconds, now, lane, span)
        fields["attempt"] = delivery.attempts
        fields["decision"] = _WORDS[type(decision)]
        if isinstance(outcome, Answered):
            fields["status"] = fields["http.response.status_code"] = outcome.status
        fields["error"], fields["error.type"] = describe(outcome)[1], kind
        fields |= _consequence(decision)
        self._lines("attempt.failed", orjson.dumps(fields)[1:-1])

    def changed(
        self, change: Change, subscription_id: str, picked: TargetState, now: float
    ) -> None:
        """Tell what an attempt did to its target's health; `now` in monotonic seconds."""
        fields: dict[str, Any] = {"subscription_id": subscription_id, "target": picked.label}
        match change:
            case Change.EJECTED:
                left_out = round((picked.ejected_until or now) - now, 1)
                self._log.warning(
                    change, **fields, failures=picked.failures, ejected_for_s=left_out
                )
            case Change.THROTTLED:
                pause = round(picked.throttled_until - now, 1)
                self._log.warning(change, **fields, throttled_for_s=pause)
            case Change.GONE:
                self._log.warning(change, **fields)
            case Change.RECOVERED:
                self._log.info(change, **fields)
            case _:
                assert_never(change)

    def deferred(self, delivery: Delivery, decision: Defer) -> None:
        """Tell of a delivery that is put off."""
        self._meter.deferred(decision.cause)
        self._log.info(
            "delivery.deferred",
            **_named(delivery),
            cause=decision.cause,
            next_attempt_at=rfc3339(decision.at),
            deferrals=delivery.deferrals,
        )

    def dead_lettered(self, delivery: Delivery, reason: Reason, now: float) -> None:
        """Tell of a delivery that is parked, confirmed; `now` in Unix seconds."""
        self._meter.dead_lettered(reason)
        last = delivery.history[-1] if delivery.history else None
        self._log.error(
            "delivery.dead_lettered",
            **_named(delivery),
            reason=reason,
            attempts=delivery.attempts,
            last_status=last.status if last else None,
            last_error=last.error if last else None,
            age_ms=round(1000 * (now - delivery.event.time_unix)),
        )


_WORDS: Mapping[type[Decision], str] = {
    Delivered: "delivered",
    Failover: "failover",
    Repeat: "repeat",
    Retry: "retry",
    Defer: "defer",
    DeadLetter: "dead_letter",
}


def _target_members(subscription_id: str, picked: TargetState) -> bytes:
    told = {
        "subscription_id": subscription_id,
        "target": picked.label,
        "server.address": picked.host,
    }
    return orjson.dumps(told)[1:-1]


def _attempt(
    delivery: Delivery,
    prepared: Prepared,
    picked: TargetState,
    seconds: float,
    now: float,
    lane: str,
    span: str | None,
) -> dict[str, Any]:
    """Return what every attempt's line says."""
    event = prepared.event
    fields: dict[str, Any] = {
        "event_id": event.id,
        "event_type": event.type,
        "subscription_id": delivery.subscription_id,
        "webhook_id": prepared.webhook_id,
        "target": picked.label,
        "server.address": picked.host,
        "lane": lane,
        "round": delivery.round,
        "duration_ms": round(1000 * seconds, 3),
        "age_ms": round(1000 * (now - event.time_unix), 3),
    }
    if event.tenant is not None:
        fields["tenant"] = event.tenant
    if span is not None:
        fields["trace_id"], fields["span_id"] = prepared.trace, span
    if event.id_made:
        fields["id_made"] = True
    return fields


def _named(delivery: Delivery) -> dict[str, Any]:
    named: dict[str, Any] = {
        "event_id": delivery.event.id,
        "event_type": delivery.event.type,
        "subscription_id": delivery.subscription_id,
    }
    if delivery.event.tenant is not None:
        named["tenant"] = delivery.event.tenant
    return named


def _kind(outcome: Outcome) -> str:
    match outcome:
        case Answered(status=status):
            return str(status)
        case Failed(kind=kind):
            return kind.value
        case Forbidden():
            return "forbidden_address"
        case _:
            assert_never(outcome)


def _consequence(decision: Decision) -> dict[str, Any]:
    match decision:
        case Retry(at=at) | Defer(at=at):
            return {"next_attempt_at": rfc3339(at)}
        case DeadLetter(reason=reason):
            return {"reason": reason}
        case Delivered() | Failover() | Repeat():
            return {}
        case _:
            assert_never(decision)
