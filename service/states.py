"""What this process knows of each subscription while it runs: rotation, health, limits, line.

Kept by subscription id, made when a subscription is first needed, and carried over a reload for every
target whose URL stayed: a new weight does not forget that a target is down.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from service.core.delivery import DeferCause
from service.core.health import TargetState, Unavailable
from service.core.schedule import Line, ReturnLines, Returns, TokenBucket
from service.core.subscription import Balance, Subscription

MISSED_KEPT = 10_000
"""Unknown subscriptions of which it is known since when."""
MISSED_FOR = 3600.0
"""Seconds for which it is, if others are to be kept: in these, each delivery has come back (`EJECTED_MAX`)."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """One delivery in a line: its turn, and how long it waits for it, in seconds of the event loop's clock."""

    turn: "asyncio.Future[bool]"
    until: float


class SubscriptionState:
    """One subscription's targets, rate limit and line; all times in monotonic seconds."""

    __slots__ = (
        "_return_lines",
        "_returns",
        "_waiting",
        "bucket",
        "line",
        "subscription",
        "targets",
    )

    def __init__(
        self, subscription: Subscription, replicas: int, return_lines: ReturnLines
    ) -> None:
        self.subscription = subscription
        self.targets = [TargetState(target) for target in subscription.targets]
        self.line = Line()
        self._returns = Returns(random.random())  # noqa: S311 - spreads load, guards nothing
        self._return_lines = return_lines
        rate = subscription.rate_limit
        self.bucket = TokenBucket(rate / replicas) if rate else None
        self._waiting: dict[str, deque[_Waiter]] = {}

    def candidates(self, tried: Sequence[TargetState], now: float) -> list[TargetState]:
        """Return the targets that may be tried now and were not tried in this round."""
        return [
            state for state in self.targets if state not in tried and state.unavailable(now) is None
        ]

    def preferred(self, candidates: list[TargetState]) -> list[TargetState]:
        """Return those of the candidates that a round begins with: no backup, and of an order the first."""
        regular = [one for one in candidates if not one.target.backup] or candidates
        return regular[:1] if self.subscription.balance is Balance.FAILOVER else regular

    def is_slow(self, now: float) -> bool:
        """Tell whether any of the targets in the rotation is slow; see `slow_among`."""
        return self.slow_among([one for one in self._usable if not one.is_ejected(now)], now)

    def slow_among(self, candidates: list[TargetState], now: float) -> bool:
        """Tell whether one of the candidates is slow that a round begins with, or that is at work for one that failed.

        One that only stands in is known for how it was long ago.
        """
        preferred = self.preferred(candidates)
        return any(
            one.is_slow(now) and (one.in_flight > 0 or one in preferred) for one in candidates
        )

    def waiting_in(self, lane: str) -> int:
        """Return how many deliveries of a lane wait for room: each has a line, as each has a share of its own."""
        line = self._waiting.get(lane)
        # Those that gave up go first, as they came first; taking each out at once would walk the line.
        while line and line[0].turn.done():
            line.popleft()
        return len(line) if line else 0

    async def wait(self, lane: str, seconds: float, *, is_first: bool) -> bool:
        """Wait in a lane's line until an attempt has ended; False when that took too long.

        `is_first`: in front of all who came later, as one that had its turn, and no use for it.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), loop.time() + seconds)
        line = self._waiting.setdefault(lane, deque())
        if is_first:
            earlier = takewhile(lambda other: other.until < waiter.until, line)
            line.insert(sum(1 for _ in earlier), waiter)
        else:
            line.append(waiter)
        timer = loop.call_later(seconds, _give_up, waiter.turn)
        try:
            return await waiter.turn
        finally:
            timer.cancel()

    def lines_with(self, lane: str) -> int:
        """Return how many lanes would take turns if one more delivery of this lane waited: itself, and others in line."""
        return 1 + sum(1 for other in self._waiting if other != lane and self.waiting_in(other))

    def goes_on(self, lane: str) -> None:
        """Note that a delivery of a lane has its turn: the other lanes have the next."""
        if lane in self._waiting:
            self._waiting[lane] = self._waiting.pop(lane)

    def wake(self) -> None:
        """Let the first in line look again, in each lane, in the order of their turns."""
        for lane in self._waiting:
            self.wake_in(lane)

    def wake_in(self, lane: str) -> None:
        """Let the first in line of a lane look again."""
        line = self._waiting.get(lane)
        while line:
            turn = line.popleft().turn
            if not turn.done():
                turn.set_result(True)
                return

    def comes_back_after(self, soonest: float, now: float) -> float:
        """Have one more delivery come back later; returns the seconds until then, `soonest` at the least."""
        rate = self._return_lines.rate_with(self._returns, now)
        return self._returns.join(now, rate, soonest)

    def place_in_line(self, cause: DeferCause, now: float, not_before: float, draw: float) -> float:
        """Return the seconds until one more delivery has its turn at what these targets take.

        See `Line.reserve`.  What a target takes that has just begun to throttle is not known, and what is put off
        until its pause is over would come back all at once: it comes no faster than what an ejected one is owed.
        """
        rate = self.capacity(now)
        if cause is DeferCause.THROTTLED and any(
            target.throttles_unmeasured(now) for target in self._usable
        ):
            rate = min(rate, self._return_lines.rate_with(self._returns, now))
        return self.line.reserve(now, rate, not_before, draw)

    @property
    def _usable(self) -> list[TargetState]:
        return [state for state in self.targets if state.target.weight and not state.gone]

    def take_rate(self, now: float, *, is_new: bool) -> DeferCause | None:
        """Take the room of a rate limit for a round; returns the limit that leaves none.

        One that is new leaves it to those in line, and has what these do not use.
        """
        if is_new and self.line.is_taken(now):
            if self.bucket is not None and not self.bucket.is_idle(now):
                return DeferCause.RATE_LIMITED
            if all(target.pace and not target.pace.is_idle(now) for target in self._usable):
                return DeferCause.THROTTLED
        if self.bucket is not None and not self.bucket.take(now):
            return DeferCause.RATE_LIMITED
        return None

    def obstacle(self, now: float) -> Unavailable:
        """Return what stands in the way when no target can be tried, the soonest to pass."""
        found = [state.unavailable(now) for state in self.targets if state.target.weight > 0]
        there = [reason for reason in found if reason is not None]
        return min(
            there,
            key=lambda reason: reason.until,
            default=Unavailable(DeferCause.PAUSED, float("inf")),
        )

    def adopt(self, old: "SubscriptionState") -> None:
        """Take over what is known of the targets that stayed, and who waits for them."""
        by_url = {state.target.url: state for state in old.targets}
        for place, state in enumerate(self.targets):
            known = by_url.get(state.target.url)
            if known is not None:
                known.gone = known.gone and known.target == state.target
                known.target = state.target
                self.targets[place] = known
        if old.subscription.rate_limit == self.subscription.rate_limit:
            self.bucket = old.bucket
        if _weights(old.subscription) != _weights(self.subscription):
            # Else the turns that the old weights had left would come first.
            for state in self.targets:
                state.current = 0
        self.line, self._returns, self._waiting = old.line, old._returns, old._waiting  # noqa: SLF001 - one of its own kind

    @property
    def all_gone(self) -> bool:
        """Tell whether every target that is not drained has answered 410."""
        usable = [state for state in self.targets if state.target.weight > 0]
        return bool(usable) and all(state.gone for state in usable)

    def capacity(self, now: float) -> float:
        """Return the deliveries a second that the subscription can take, limited or measured."""
        usable = self._usable
        able = [one for one in usable if not one.is_ejected(now) and now >= one.throttled_until]
        measured = sum(target.capacity(now) for target in able or usable)
        limit = self.bucket.rate if self.bucket is not None else measured
        return max(min(measured, limit), 0.01)


def _weights(subscription: Subscription) -> list[int]:
    return [target.weight for target in subscription.targets]


def _give_up(turn: "asyncio.Future[bool]") -> None:
    if not turn.done():
        turn.set_result(False)


@dataclass(slots=True)
class Health:
    """How many of the targets used so far are in which state; `ejected_for` is the longest, in seconds."""

    healthy: int = 0
    ejected: int = 0
    probing: int = 0
    gone: int = 0
    ejected_for: float = 0.0

    def add(self, state: TargetState) -> None:
        """Count a target."""
        if state.gone:
            self.gone += 1
        elif state.ejected_until is None:
            self.healthy += 1
        else:
            self.probing += state.probe is not None
            self.ejected += state.probe is None


class States:
    """The states of all subscriptions; `replicas` divides rate limits."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._return_lines = ReturnLines(replicas)
        self._states: dict[str, SubscriptionState] = {}
        self._removed: set[str] = set()
        self._wanted: Callable[[str], Subscription | None] | None = None
        self._missed_at: dict[str, float] = {}

    def of(self, subscription: Subscription) -> SubscriptionState:
        """Return the state of a subscription, made or brought up to date where needed.

        Of one that was changed or removed meanwhile, the state of what is in force now, or one that is not kept.
        """
        state = self._states.get(subscription.id)
        if state is not None and state.subscription is subscription:
            return state
        in_force = self._wanted(subscription.id) if self._wanted else subscription
        if state is not None and state.subscription is in_force:
            return state
        fresh = SubscriptionState(in_force or subscription, self._replicas, self._return_lines)
        if state is not None:
            fresh.adopt(state)
        if in_force is not None:
            self._states[subscription.id] = fresh
        return fresh

    def keep(
        self,
        wanted: Callable[[str], Subscription | None],
        removed: Iterable[str] = (),
        changed: Iterable[str] = (),
    ) -> None:
        """Forget the subscriptions that are no more, but for their names, and targets that are no more."""
        self._wanted = wanted
        self._missed_at = {name: at for name, at in self._missed_at.items() if not wanted(name)}
        self._removed = {name for name in (*self._removed, *removed) if not wanted(name)}
        for name in self._removed:  # not all states there are: they may be very many
            self._states.pop(name, None)
        for name in changed:
            subscription = wanted(name)
            if subscription is not None and name in self._states:
                self.of(subscription)

    def was_removed(self, subscription_id: str) -> bool:
        """Tell whether this process has seen a subscription go.

        One that it has never seen may be new, and known to other replicas already.
        """
        return subscription_id in self._removed

    def missed_for(self, subscription_id: str, now: float) -> float:
        """Return for how many seconds a subscription has been missed here, 0 where this is the first time.

        `now` in monotonic seconds.  Where very many are missed, some begin to be when others have had their time.
        """
        since = self._missed_at.get(subscription_id)
        if since is not None:
            return now - since
        if len(self._missed_at) >= MISSED_KEPT:
            longest = next(iter(self._missed_at))
            if now - self._missed_at[longest] < MISSED_FOR:
                return 0.0
            del self._missed_at[longest]
        self._missed_at[subscription_id] = now
        return 0.0

    def health(self, now: float) -> Health:
        """Return how the targets used so far are; `now` in monotonic seconds."""
        health = Health()
        for state in self._states.values():
            for target in state.targets:
                health.add(target)
                # Nothing ever probes one that people have taken out.
                if state.subscription.enabled and target.target.weight:
                    health.ejected_for = max(health.ejected_for, target.ejected_for(now))
        return health

    def known(self) -> list[SubscriptionState]:
        """Return every state there is."""
        return list(self._states.values())
