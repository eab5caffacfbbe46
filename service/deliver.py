"""Stage: one delivery through a round.  Pick, send, decide, carry out.

The law here: `carry` returns True only when what the delivery owes is durable, that is when a target
took it (2xx) or the broker confirmed its retry, its deferral or its dead letter.
"""

import random
from dataclasses import replace
from typing import Any, Protocol, assert_never

from service.budget import Budget, has_place, worth_waiting
from service.clock import Clock
from service.core.balancer import choose
from service.core.delivery import (
    Answered,
    Attempt,
    Burial,
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
    RoundSoFar,
    after_attempt,
    decide,
    describe,
    expires,
    in_time,
)
from service.core.health import TargetState, Unavailable
from service.core.schedule import ejected_delay, missed_delay
from service.core.subscription import Subscription, Target
from service.prepared import Prepared
from service.report import Reporter
from service.states import States, SubscriptionState
from service.turns import Turns

BODY_START_KEPT = 256
WAIT_LIMIT = 3.0
"""Seconds that a delivery waits in memory for a busy target before it is put off after all."""
ROUND_LIMIT = 1200.0
"""Seconds after which a round has no further attempt: RabbitMQ takes a message back after 30 min."""
HELD_LIMIT = 1700.0
"""Seconds for which the last attempt of a round may go on, likewise."""
EARLY = 1.5
"""A delivery that comes back this many seconds before its time has another trip to make."""

UNKNOWN_DEFERRALS = 3
"""Deferrals (20, 40, 80 s, or up to twice that) before an unknown subscription counts as removed."""
UNKNOWN_FOR = 120.0
"""Seconds for which this process has to have missed it, too: a delivery may have been put off for other reasons."""

DELIVERED = Delivered()
_LIMITS = frozenset((DeferCause.RATE_LIMITED, DeferCause.THROTTLED, DeferCause.SLOW))
"""What a place in line does not account for in full: others may have used it up when the place comes."""


class Sender(Protocol):
    """Makes one attempt: never raises, every failure is an outcome."""

    async def send(
        self,
        *,
        subscription: Subscription,
        target: Target,
        webhook_id: str,
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

    async def bury(self, delivery: Delivery, reason: Reason, at: float) -> Burial:
        """Park the delivery as a dead letter."""


class Work(Protocol):
    """The message that a delivery came with."""

    @property
    def lost(self) -> bool:
        """Tell whether the message will come again, so that this work is somebody else's."""


class _Round:
    """One round as it goes: what was tried, what was heard."""

    __slots__ = (
        "delivery",
        "forbidden",
        "latest",
        "prepared",
        "repeated",
        "retry_after",
        "state",
        "tried",
    )

    def __init__(self, delivery: Delivery, state: SubscriptionState, prepared: Prepared) -> None:
        self.delivery = delivery
        self.state = state
        self.prepared = prepared
        self.tried: list[TargetState] = []
        self.forbidden = 0
        self.repeated = False
        self.retry_after = 0.0
        self.latest = float("inf")

    def hear(self, picked: TargetState, outcome: Outcome, at: float, seconds: float) -> None:
        """Take in what an attempt that did not succeed observed; `at` in Unix seconds."""
        if picked not in self.tried:
            self.tried.append(picked)
        body_start = ""
        match outcome:
            case Answered(retry_after=asked, body_start=start):
                self.retry_after = max(self.retry_after, asked or 0.0)
                body_start = start[:BODY_START_KEPT]
            case Forbidden():
                self.forbidden += 1
            case Failed():
                pass
            case _:
                assert_never(outcome)
        status, error = describe(outcome)
        attempt = Attempt(at, picked.label, status, error, round(1000 * seconds), body_start)
        self.delivery = after_attempt(self.delivery, attempt)

    def seen(self, now: float) -> RoundSoFar:
        """Return what the decision depends on; `now` in monotonic seconds."""
        usable = sum(1 for state in self.state.targets if state.target.weight > 0)
        return RoundSoFar(
            others=now < self.latest and bool(self.state.candidates(self.tried, now)),
            all_gone=self.state.all_gone,
            all_forbidden=0 < usable <= self.forbidden,
            repeated=self.repeated or now >= self.latest,
            retry_after=self.retry_after,
        )


class Deliverer:
    """Carries deliveries, each through one round."""

    def __init__(
        self, sender: Sender, outbox: Outbox, states: States, clock: Clock, reporter: Reporter
    ) -> None:
        self._sender = sender
        self._outbox = outbox
        self._states = states
        self._clock = clock
        self._report = reporter
        self._turns = Turns()

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
            return await self._without_subscription(delivery, now)
        if expires(delivery, subscription.retry, now):
            return await self._bury(delivery, Reason.EXPIRED)
        if delivery.not_before > now + EARLY:
            return await self._outbox.put_off(delivery, delivery.not_before)
        run = _Round(delivery, self._states.of(subscription), prepared)
        decision = await self._round(run, budget, work)
        if decision is DELIVERED:
            return True
        if budget.is_intake:  # in the backlog lane nothing is gained by it
            await self._turns.turn()
        return not work.lost and await self._carry_out(run.delivery, decision, subscription)

    async def carry_later(self, delivery: Delivery) -> bool:
        """Put a delivery off because of a fault of ours; True when that is durable."""
        at = self._clock.now() + ejected_delay(delivery.deferrals, 0.0, _jitter())
        return await self._put_off(delivery, Defer(at, DeferCause.LOCAL))

    async def _without_subscription(self, delivery: Delivery, now: float) -> bool:
        """Give a subscription that this replica has not read yet some time to appear."""
        name, states = delivery.subscription_id, self._states
        if states.was_removed(name) or (
            states.missed_for(name, self._clock.monotonic()) >= UNKNOWN_FOR
            and delivery.deferrals >= UNKNOWN_DEFERRALS
        ):
            return await self._bury(delivery, Reason.SUBSCRIPTION_REMOVED)
        delay = ejected_delay(delivery.deferrals, 0.0, _jitter())
        return await self._put_off(delivery, Defer(now + delay, DeferCause.UNKNOWN))

    async def _round(self, run: _Round, budget: Budget, work: Work) -> Decision:
        """Run a round, or say why it does not begin; a short wait in line for room is part of it."""
        state, deadline, had_turn = run.state, 0.0, False
        while True:
            crowded = budget.in_use >= budget.limit
            if crowded:
                await budget.room()
            is_first = had_turn or not state.waiting_in(budget.lane)
            now = self._clock.monotonic()
            found = budget.open_to(state, now)
            if isinstance(found, list) and is_first:
                return await self._begin(run, found, budget, work, now)
            if crowded:
                budget.pass_on()
            if isinstance(found, list):
                # The time may have brought this about, and time wakes nobody.
                state.wake_in(budget.lane)
                found = Unavailable(DeferCause.SATURATED, now)
            deadline = deadline or now + WAIT_LIMIT
            if now >= deadline or not worth_waiting(state, found, now):
                state.wake()  # what holds for this one may hold for those in line
                return self._refuse(run, found, budget, now)
            if not had_turn and not has_place(state, budget.lane, now):
                return self._refuse(run, found, budget, now)
            await state.wait(budget.lane, deadline - now, is_first=is_first)
            had_turn = True

    async def _begin(
        self, run: _Round, targets: list[TargetState], budget: Budget, work: Work, now: float
    ) -> Decision:
        """Run the round, with these targets to begin with."""
        state = run.state
        is_new = run.delivery.round == 1 and run.delivery.deferrals == 0
        limit = state.take_rate(now, is_new=is_new)
        if limit is not None:
            budget.pass_on()  # nobody ends here who would let those in line go on
            state.wake()
            return self._in_line(run, limit, now, now)
        run.latest = now + min(ROUND_LIMIT, HELD_LIMIT - state.subscription.timeout)
        slow = state.is_slow(now)
        budget.begin(slow=slow)
        state.goes_on(budget.lane)
        # As many go on as may, not one for each that ends.
        if state.waiting_in(budget.lane) and budget.has_more_for(state.candidates((), now)):
            state.wake_in(budget.lane)
        try:
            return await self._attempts(run, targets, budget, work, now)
        finally:
            budget.end(slow=slow)
            state.wake()

    def _refuse(self, run: _Round, obstacle: Unavailable, budget: Budget, now: float) -> Decision:
        """Return what happens to a delivery that no attempt can be made for now."""
        state = run.state
        if state.all_gone and state.subscription.enabled:
            return DeadLetter(Reason.GONE)
        match obstacle.cause:
            case DeferCause.EJECTED:
                return self._come_back(run, obstacle.cause, obstacle.until - now)
            case DeferCause.PAUSED:
                return self._come_back(run, obstacle.cause, 0.0)
            case DeferCause.SLOW if budget.is_intake:
                return Defer(self._clock.now(), obstacle.cause)
            case cause:
                return self._in_line(run, cause, now, obstacle.until)

    def _come_back(self, run: _Round, cause: DeferCause, until_probe: float) -> Defer:
        delivery, now = run.delivery, self._clock.now()
        soonest = ejected_delay(delivery.deferrals, until_probe, _jitter())
        at = now + run.state.comes_back_after(soonest, self._clock.monotonic())
        if expires(delivery, run.state.subscription.retry, at):
            at = now + soonest  # a long line is no reason to give up
        return Defer(at, cause)

    def _in_line(self, run: _Round, cause: DeferCause, now: float, not_before: float) -> Defer:
        state, draw = run.state, random.random()  # noqa: S311 - spreads load, guards nothing
        delay = state.place_in_line(cause, now, not_before, draw)
        clock_now = self._clock.now()
        at = clock_now + delay
        if cause in _LIMITS:
            # Not in the line itself, which would then begin that late for everybody.
            rested = clock_now + max(delay, missed_delay(run.delivery.trips))
            if not expires(run.delivery, state.subscription.retry, rested):
                at = rested
        return Defer(at, cause)

    async def _attempts(
        self, run: _Round, targets: list[TargetState], budget: Budget, work: Work, now: float
    ) -> Decision:
        balance = run.state.subscription.balance
        while True:
            picked = choose(balance, targets, now, random.random())  # noqa: S311
            if picked is None:
                raise AssertionError("an attempt was decided without a target to go to")
            decision = await self._attempt(run, picked, budget, now)
            if decision is DELIVERED:
                return decision
            now = self._clock.monotonic()
            match decision:
                case Repeat():
                    run.repeated, targets = True, [picked]
                case Failover() if not work.lost:
                    targets = run.state.candidates(run.tried, now)
                    if run.state.bucket is not None:
                        run.state.bucket.spend()
                case _:
                    return decision

    async def _attempt(
        self, run: _Round, picked: TargetState, budget: Budget, started: float
    ) -> Decision:
        """Make one attempt, take in what it observed, and decide; `started` in monotonic seconds."""
        prepared, subscription, at = run.prepared, run.state.subscription, self._clock.now()
        span = f"{random.getrandbits(64) or 1:016x}" if prepared.trace else None
        ticket = picked.begin(started)
        budget.hold(picked)
        try:
            outcome = await self._sender.send(
                subscription=subscription,
                target=picked.target,
                webhook_id=prepared.webhook_id,
                content=prepared.content(subscription.format),
                timestamp=int(at),
                traceparent=prepared.traceparent(span),
                tracestate=prepared.event.tracestate,
            )
        except BaseException:
            picked.abandon(ticket)
            raise
        finally:
            budget.release(picked)
        ended = self._clock.monotonic()
        seconds = ended - started
        change = picked.end(ticket, outcome, ended, _jitter())
        decision: Decision
        if isinstance(outcome, Answered) and 200 <= outcome.status < 300:
            decision = DELIVERED
            self._report.succeeded(
                run.delivery,
                prepared,
                picked,
                status=outcome.status,
                seconds=seconds,
                now=at + seconds,
                lane=budget.lane,
                span=span,
            )
        else:
            run.hear(picked, outcome, at, seconds)
            now = self._clock.now()
            decision = decide(
                run.delivery, outcome, run.seen(ended), subscription.retry, now, _jitter()
            )
            self._report.failed(
                run.delivery,
                prepared,
                picked,
                outcome,
                decision,
                seconds=seconds,
                now=now,
                lane=budget.lane,
                span=span,
            )
        if change is not None:
            self._report.changed(change, subscription.id, picked, ended)
        return decision

    async def _carry_out(
        self, delivery: Delivery, decision: Decision, subscription: Subscription
    ) -> bool:
        match decision:
            case Retry(at=at):
                return await self._outbox.put_off(replace(delivery, round=delivery.round + 1), at)
            case Defer(at=at):
                retry, now = subscription.retry, self._clock.now()
                if expires(delivery, retry, now):
                    return await self._bury(delivery, Reason.EXPIRED)
                in_time_at = in_time(delivery, retry, now, at)
                return await self._put_off(delivery, replace(decision, at=in_time_at))
            case DeadLetter(reason=reason):
                return await self._bury(delivery, reason)
            case Delivered():
                return True
            case Failover() | Repeat():
                return False
            case _:
                assert_never(decision)

    async def _put_off(self, delivery: Delivery, decision: Defer) -> bool:
        later = replace(delivery, deferrals=delivery.deferrals + 1)
        self._report.deferred(later, decision)
        return await self._outbox.put_off(later, decision.at)

    async def _bury(self, delivery: Delivery, reason: Reason) -> bool:
        now = self._clock.now()
        match await self._outbox.bury(delivery, reason, now):
            case Burial.DONE:
                self._report.dead_lettered(delivery, reason, now)
                return True
            case Burial.REFUSED:  # by what people have set: nobody else is to wait for that
                delay = ejected_delay(delivery.deferrals, 0.0, _jitter())
                return await self._put_off(delivery, Defer(now + delay, DeferCause.UNPARKED))
            case Burial.UNKNOWN:
                return False
            case other:
                assert_never(other)


def _jitter() -> float:
    return 2.0 * random.random() - 1.0  # noqa: S311 - spreads load, guards nothing
