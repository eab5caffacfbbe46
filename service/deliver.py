"""Stage: one delivery through a round.  Pick, send, decide, carry out.

The law here: `carry` returns True only when what the delivery owes is durable, that is when a target
took it (2xx) or the broker confirmed its retry, its deferral or its dead letter.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, assert_never

from service.clock import Clock
from service.core.balancer import choose
from service.core.delivery import (
    Answered,
    Attempt,
    DeadLetter,
    Decision,
    Defer,
    DeferCause,
    Delivered,
    Delivery,
    Failed,
    Failover,
    Forbidden,
    Outcome,
    Reason,
    Repeat,
    Retry,
    Round,
    after_attempt,
    decide,
    describe,
    expires,
)
from service.core.event import Event, trace_id, webhook_id
from service.core.health import Change, TargetState, Unavailable
from service.core.schedule import ejected_delay
from service.core.subscription import Format, Subscription, Target
from service.log import Log, rfc3339
from service.states import States, SubscriptionState

BODY_START_KEPT = 256
WAIT_EXPECTED = 0.5
"""Seconds that the last in line may expect to wait in memory for a busy target."""
WAIT_LIMIT = 1.0
"""Seconds after which it is put off after all."""
EARLY = 1.5
"""A delivery that comes back this many seconds before its time has another trip to make."""


Render = Callable[[Event, Format], Any]
"""Turns an event into what is sent; the same bytes every time."""


class Sender(Protocol):
    """Makes one attempt: never raises, every failure is an outcome."""

    async def send(
        self,
        *,
        subscription: Subscription,
        target: Target,
        event_id_header: str,
        content: Any,
        timestamp: int,
        traceparent: str | None,
        tracestate: str | None,
    ) -> Outcome:
        """Send one signed request; `timestamp` in whole Unix seconds."""


class Outbox(Protocol):
    """Where deliveries go that are not done; True once the broker has confirmed."""

    async def put_off(self, delivery: Delivery, at: float) -> bool:
        """Bring the delivery back at `at` (Unix seconds)."""

    async def bury(self, delivery: Delivery, reason: Reason, at: float) -> bool:
        """Park the delivery as a dead letter."""


class Meter(Protocol):
    """Counts what happens."""

    def attempted(self, lane: str, outcome: str, seconds: float) -> None: ...  # noqa: D102

    def deferred(self, cause: str) -> None: ...  # noqa: D102

    def dead_lettered(self, reason: str) -> None: ...  # noqa: D102


@dataclass(slots=True)
class Budget:
    """How many attempts a lane makes at once, and how they are shared out.

    Two bounds keep a sick subscriber from hurting others.  One target may hold half of what is free at
    the moment and no more (dynamic thresholds, Choudhury and Hahne 1998): however many targets hang,
    some room stays free for the rest.  And all targets that are known to be slow together may hold
    `slow_limit`.
    """

    lane: str
    limit: int
    slow_limit: int
    permits: asyncio.Semaphore = field(init=False)
    in_use: int = 0
    slow_in_use: int = 0

    def __post_init__(self) -> None:
        self.permits = asyncio.Semaphore(self.limit)

    @property
    def share(self) -> int:
        """Return how many attempts one target may have under way now."""
        return max(1, (self.limit - self.in_use) // 2)


class Prepared:
    """An event made ready once for all its deliveries: idempotency key, trace, bodies by format."""

    __slots__ = ("_contents", "_render", "event", "flags", "trace", "webhook_id")

    def __init__(self, event: Event, render: Render) -> None:
        self.event = event
        self.webhook_id = webhook_id(event)
        self.trace = trace_id(event)
        self.flags = event.traceparent[53:55] if event.traceparent else "00"
        self._render = render
        self._contents: dict[Format, Any] = {}

    def content(self, form: Format) -> Any:
        """Return the body and its headers in a format."""
        content = self._contents.get(form)
        if content is None:
            content = self._contents[form] = self._render(self.event, form)
        return content


class Work(Protocol):
    """The message that a delivery came with."""

    @property
    def lost(self) -> bool:
        """Tell whether the message will come again, so that this work is somebody else's."""


class _Run:
    """One round as it goes: what was tried, what was heard."""

    __slots__ = ("delivery", "forbidden", "prepared", "repeated", "retry_after", "state", "tried")

    def __init__(self, delivery: Delivery, state: SubscriptionState, prepared: Prepared) -> None:
        self.delivery = delivery
        self.state = state
        self.prepared = prepared
        self.tried: list[TargetState] = []
        self.forbidden = 0
        self.repeated = False
        self.retry_after = 0.0

    def hear(self, outcome: Outcome) -> None:
        match outcome:
            case Answered(retry_after=asked):
                self.retry_after = max(self.retry_after, asked or 0.0)
            case Forbidden():
                self.forbidden += 1
            case Failed():
                pass
            case _:
                assert_never(outcome)

    def seen(self, now: float) -> Round:
        usable = sum(1 for state in self.state.targets if state.target.weight > 0)
        return Round(
            others=bool(self.state.candidates(self.tried, now)),
            all_gone=self.state.all_gone,
            all_forbidden=self.forbidden >= usable,
            repeated=self.repeated,
            retry_after=self.retry_after,
        )


class Deliverer:
    """Carries deliveries, each through one round."""

    def __init__(
        self, sender: Sender, outbox: Outbox, states: States, clock: Clock, log: Log, meter: Meter
    ) -> None:
        self._sender = sender
        self._outbox = outbox
        self._states = states
        self._clock = clock
        self._log = log
        self._meter = meter

    async def carry(
        self,
        delivery: Delivery,
        subscription: Subscription | None,
        prepared: Prepared,
        budget: Budget,
        work: Work,
    ) -> bool:
        """Run a round and carry its decision out; True when what is owed is durable."""
        now = self._clock.now()
        if subscription is None:
            return await self._bury(delivery, Reason.SUBSCRIPTION_REMOVED)
        if expires(delivery, subscription.retry, now):
            return await self._bury(delivery, Reason.EXPIRED)
        if delivery.not_before > now + EARLY:
            return await self._outbox.put_off(delivery, delivery.not_before)
        run = _Run(delivery, self._states.of(subscription), prepared)
        decision = await self._round(run, budget, work)
        if isinstance(decision, Delivered):
            return True
        return not work.lost and await self._carry_out(run.delivery, decision, subscription)

    async def _round(self, run: _Run, budget: Budget, work: Work) -> Decision:
        """Run a round, or say why it does not begin; a short wait in line for room is part of it."""
        state, first = run.state, True
        deadline = self._clock.monotonic() + WAIT_LIMIT
        while True:
            now = self._clock.monotonic()
            obstacle = _obstacle(state, budget, now, behind_others=first and state.waiting > 0)
            if obstacle is None:
                waits = budget.permits.locked()
                async with budget.permits:
                    if not waits or _obstacle(state, budget, self._clock.monotonic()) is None:
                        return await self._begin(run, budget, work)
                continue
            if not _worth_waiting(state, obstacle, now) or not await state.wait(deadline - now):
                return self._refuse(run, obstacle, budget, now)
            first = False

    async def _begin(self, run: _Run, budget: Budget, work: Work) -> Decision:
        now, state = self._clock.monotonic(), run.state
        if state.bucket is not None and not state.bucket.take(now):
            return self._in_line(state, DeferCause.RATE_LIMITED, now, now)
        slow = any(target.is_slow(now) for target in state.targets)
        budget.in_use += 1
        budget.slow_in_use += slow
        try:
            return await self._attempts(run, budget, work)
        finally:
            budget.in_use -= 1
            budget.slow_in_use -= slow
            state.wake()

    def _refuse(self, run: _Run, obstacle: Unavailable, budget: Budget, now: float) -> Decision:
        """Return what happens to a delivery that no attempt can be made for now."""
        state = run.state
        if state.all_gone and state.subscription.enabled:
            return DeadLetter(Reason.GONE)
        match obstacle.cause:
            case DeferCause.EJECTED:
                return self._come_back(run, obstacle.cause, obstacle.until - now)
            case DeferCause.PAUSED:
                return self._come_back(run, obstacle.cause, 0.0)
            case DeferCause.SLOW if budget.lane == "intake":
                return Defer(self._clock.now(), obstacle.cause)
            case cause:
                return self._in_line(state, cause, now, obstacle.until)

    def _come_back(self, run: _Run, cause: DeferCause, until_probe: float) -> Defer:
        delay = ejected_delay(run.delivery.deferrals, until_probe, _jitter())
        return Defer(self._clock.now() + delay, cause)

    def _in_line(
        self, state: SubscriptionState, cause: DeferCause, now: float, not_before: float
    ) -> Defer:
        delay = state.line.reserve(now, state.capacity(now), not_before, random.random())  # noqa: S311
        return Defer(self._clock.now() + delay, cause)

    async def _attempts(self, run: _Run, budget: Budget, work: Work) -> Decision:
        balance = run.state.subscription.balance
        again: TargetState | None = None
        while True:
            now = self._clock.monotonic()
            candidates = _with_room(run.state.candidates(run.tried, now), budget)
            picked = again or choose(balance, candidates, now, random.random())  # noqa: S311
            if picked is None:
                raise AssertionError("an attempt was decided without a target to go to")
            decision = await self._attempt(run, picked, budget)
            match decision:
                case Repeat():
                    run.repeated, again = True, picked
                case Failover() if not work.lost:
                    again = None
                case _:
                    return decision

    async def _attempt(self, run: _Run, picked: TargetState, budget: Budget) -> Decision:
        event, prepared, subscription = run.prepared.event, run.prepared, run.state.subscription
        at, started = self._clock.now(), self._clock.monotonic()
        span = f"{random.getrandbits(64) or 1:016x}" if prepared.trace else None
        ticket = picked.begin(started)
        try:
            outcome = await self._sender.send(
                subscription=subscription,
                target=picked.target,
                event_id_header=prepared.webhook_id,
                content=prepared.content(subscription.format),
                timestamp=int(at),
                traceparent=f"00-{prepared.trace}-{span}-{prepared.flags}" if span else None,
                tracestate=event.tracestate,
            )
        except BaseException:
            picked.abandon(ticket)
            raise
        ended = self._clock.monotonic()
        change = picked.end(ticket, outcome, ended, _jitter())
        if picked not in run.tried:
            run.tried.append(picked)
        run.hear(outcome)
        run.delivery = _noted(run.delivery, picked, outcome, at, ended - started)
        now = self._clock.now()
        decision = decide(
            run.delivery, outcome, run.seen(ended), subscription.retry, now, _jitter()
        )
        self._tell(run, picked, outcome, decision, ended - started, now, budget.lane, span)
        if change is not None:
            self._tell_change(change, subscription, picked, ended)
        return decision

    async def _carry_out(
        self, delivery: Delivery, decision: Decision, subscription: Subscription
    ) -> bool:
        match decision:
            case Retry(at=at):
                return await self._outbox.put_off(
                    replace(delivery, round=delivery.round + 1, deferrals=0, not_before=at), at
                )
            case Defer():
                return await self._defer(delivery, decision, subscription)
            case DeadLetter(reason=reason):
                return await self._bury(delivery, reason)
            case Delivered() | Failover() | Repeat():
                return isinstance(decision, Delivered)
            case _:
                assert_never(decision)

    async def _defer(self, delivery: Delivery, decision: Defer, subscription: Subscription) -> bool:
        if expires(delivery, subscription.retry, decision.at):
            return await self._bury(delivery, Reason.EXPIRED)
        later = replace(delivery, deferrals=delivery.deferrals + 1, not_before=decision.at)
        self._meter.deferred(decision.cause)
        self._log.info(
            "delivery.deferred",
            **_named(delivery),
            cause=decision.cause,
            next_attempt_at=rfc3339(decision.at),
            deferrals=later.deferrals,
        )
        return await self._outbox.put_off(later, decision.at)

    async def _bury(self, delivery: Delivery, reason: Reason) -> bool:
        now = self._clock.now()
        if not await self._outbox.bury(delivery, reason, now):
            return False
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
        return True

    def _tell(
        self,
        run: _Run,
        picked: TargetState,
        outcome: Outcome,
        decision: Decision,
        seconds: float,
        now: float,
        lane: str,
        span: str | None,
    ) -> None:
        """Write the attempt's line: one per attempt, with everything known."""
        delivery, event = run.delivery, run.prepared.event
        fields: dict[str, Any] = {
            "event_id": event.id,
            "event_type": event.type,
            "subscription_id": delivery.subscription_id,
            "webhook_id": run.prepared.webhook_id,
            "target": picked.label,
            "server.address": picked.host,
            "lane": lane,
            "round": delivery.round,
            "attempt": delivery.attempts,
            "duration_ms": round(1000 * seconds, 3),
            "age_ms": round(1000 * (now - event.time_unix), 3),
            "decision": _WORDS[type(decision)],
        }
        if event.tenant is not None:
            fields["tenant"] = event.tenant
        if span is not None:
            fields["trace_id"], fields["span_id"] = run.prepared.trace, span
        if event.id_made:
            fields["id_made"] = True
        kind = "none"
        match outcome:
            case Answered(status=status):
                fields["status"] = fields["http.response.status_code"] = status
                kind = str(status)
            case Failed(kind=failure):
                kind = failure.value
            case Forbidden():
                kind = "forbidden_address"
            case _:
                assert_never(outcome)
        self._meter.attempted(lane, kind, seconds)
        if isinstance(decision, Delivered):
            self._log.info("attempt.succeeded", **fields)
            return
        _, error = describe(outcome)
        fields["error"], fields["error.type"] = error, kind
        self._log.warning("attempt.failed", **fields, **_consequence(decision))

    def _tell_change(
        self, change: Change, subscription: Subscription, picked: TargetState, now: float
    ) -> None:
        fields: dict[str, Any] = {"subscription_id": subscription.id, "target": picked.label}
        match change:
            case Change.EJECTED:
                left_out = (picked.ejected_until or now) - now
                self._log.warning(
                    change, **fields, failures=picked.failures, ejected_for_s=round(left_out, 1)
                )
            case Change.THROTTLED:
                self._log.warning(
                    change, **fields, throttled_for_s=round(picked.throttled_until - now, 1)
                )
            case Change.GONE:
                self._log.warning(change, **fields)
            case Change.RECOVERED:
                self._log.info(change, **fields)
            case _:
                assert_never(change)


_WORDS: Mapping[type[Decision], str] = {
    Delivered: "delivered",
    Failover: "failover",
    Repeat: "repeat",
    Retry: "retry",
    Defer: "defer",
    DeadLetter: "dead_letter",
}


def _obstacle(
    state: SubscriptionState, budget: Budget, now: float, *, behind_others: bool = False
) -> Unavailable | None:
    """Return why no attempt can be made for a subscription now, or None when one can."""
    if not state.subscription.enabled:
        return Unavailable(DeferCause.PAUSED, float("inf"))
    candidates = state.candidates([], now)
    if not candidates:
        return state.obstacle(now)
    if budget.slow_in_use >= budget.slow_limit and any(s.is_slow(now) for s in candidates):
        return Unavailable(DeferCause.SLOW, now)
    share = budget.share
    if behind_others or all(candidate.in_flight >= share for candidate in candidates):
        return Unavailable(DeferCause.SATURATED, now)
    return None


def _with_room(candidates: list[TargetState], budget: Budget) -> list[TargetState]:
    share = budget.share
    return [one for one in candidates if one.in_flight < share] or candidates


def _worth_waiting(state: SubscriptionState, obstacle: Unavailable, now: float) -> bool:
    """Tell whether room is likely soon: a prompt target is only busy, and the line is short.

    A trip through the broker takes a second at the least and costs a publish; a prompt target has room
    again after milliseconds.
    """
    if obstacle.cause is not DeferCause.SATURATED:
        return False
    if any(target.is_slow(now) for target in state.targets):
        return False
    return state.waiting < WAIT_EXPECTED * state.capacity(now)


def _jitter() -> float:
    return random.uniform(-1.0, 1.0)  # noqa: S311 - spreads load, guards nothing


def _noted(
    delivery: Delivery, picked: TargetState, outcome: Outcome, at: float, seconds: float
) -> Delivery:
    status, error = describe(outcome)
    start = outcome.body_start[:BODY_START_KEPT] if isinstance(outcome, Answered) else ""
    return after_attempt(
        delivery, Attempt(at, picked.label, status, error, round(1000 * seconds), start)
    )


def _named(delivery: Delivery) -> dict[str, Any]:
    named: dict[str, Any] = {
        "event_id": delivery.event.id,
        "event_type": delivery.event.type,
        "subscription_id": delivery.subscription_id,
    }
    if delivery.event.tenant is not None:
        named["tenant"] = delivery.event.tenant
    return named


def _consequence(decision: Decision) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    match decision:
        case Retry(at=at) | Defer(at=at):
            fields["next_attempt_at"] = rfc3339(at)
        case DeadLetter(reason=reason):
            fields["reason"] = reason
        case Delivered() | Failover() | Repeat():
            pass
        case _:
            assert_never(decision)
    return fields
