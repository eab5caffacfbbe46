"""What this process knows of each subscription while it runs: rotation, health, limits, line.

Kept by subscription id, made when a subscription is first needed, and carried over a reload for every
target whose URL stayed: a new weight does not forget that a target is down.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from service.core.delivery import DeferCause
from service.core.health import TargetState, Unavailable
from service.core.schedule import Line, ReturnLines, Returns, TokenBucket
from service.core.subscription import Subscription


class SubscriptionState:
    """One subscription's targets, rate limit and line; all times in monotonic seconds."""

    __slots__ = (
        "_return_lines",
        "_returns",
        "_waiters",
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
        self._waiters: deque[asyncio.Future[bool]] = deque()

    def candidates(self, tried: Sequence[TargetState], now: float) -> list[TargetState]:
        """Return the targets that may be tried now and were not tried in this round."""
        return [
            state for state in self.targets if state not in tried and state.unavailable(now) is None
        ]

    def is_slow(self, now: float) -> bool:
        """Tell whether any of the targets is slow."""
        return any(state.is_slow(now) for state in self.targets)

    @property
    def waiting(self) -> int:
        """Return how many deliveries wait for a target of this subscription to have room."""
        # Those that gave up go first, as they came first; taking each out at once would walk the line.
        while self._waiters and self._waiters[0].done():
            self._waiters.popleft()
        return len(self._waiters)

    async def wait(self, seconds: float) -> bool:
        """Wait in line until an attempt has ended; False when that took too long."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(seconds, _give_up, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()

    def wake(self) -> None:
        """Let the first in line look again."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(True)
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
        self.line, self._returns, self._waiters = old.line, old._returns, old._waiters  # noqa: SLF001 - one of its own kind

    @property
    def all_gone(self) -> bool:
        """Tell whether every target that is not drained has answered 410."""
        usable = [state for state in self.targets if state.target.weight > 0]
        return bool(usable) and all(state.gone for state in usable)

    def capacity(self, now: float) -> float:
        """Return the deliveries a second that the subscription can take, limited or measured."""
        measured = sum(target.capacity(now) for target in self._usable)
        limit = self.bucket.rate if self.bucket is not None else measured
        return max(min(measured, limit), 0.01)


def _give_up(waiter: "asyncio.Future[bool]") -> None:
    if not waiter.done():
        waiter.set_result(False)


@dataclass(slots=True)
class Health:
    """How many of the targets used so far are in which state; `ejected_for` is the longest, in seconds."""

    healthy: int = 0
    ejected: int = 0
    probing: int = 0
    gone: int = 0
    ejected_for: float = 0.0

    def add(self, state: TargetState, now: float) -> None:
        """Count a target; `now` in monotonic seconds."""
        if state.gone:
            self.gone += 1
        elif state.ejected_until is None:
            self.healthy += 1
        else:
            self.probing += state.probe is not None
            self.ejected += state.probe is None
            self.ejected_for = max(self.ejected_for, state.ejected_for(now))


class States:
    """The states of all subscriptions; `replicas` divides rate limits."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._return_lines = ReturnLines(replicas)
        self._states: dict[str, SubscriptionState] = {}
        self._removed: set[str] = set()

    def of(self, subscription: Subscription) -> SubscriptionState:
        """Return the state of a subscription, made or brought up to date where needed."""
        state = self._states.get(subscription.id)
        if state is not None and state.subscription is subscription:
            return state
        fresh = SubscriptionState(subscription, self._replicas, self._return_lines)
        if state is not None:
            fresh.adopt(state)
        self._states[subscription.id] = fresh
        return fresh

    def keep(
        self,
        wanted: Callable[[str], Subscription | None],
        removed: Iterable[str] = (),
        changed: Iterable[str] = (),
    ) -> None:
        """Forget the subscriptions that are no more, but for their names, and targets that are no more."""
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

    def health(self, now: float) -> Health:
        """Return how the targets used so far are; `now` in monotonic seconds."""
        health = Health()
        for state in self._states.values():
            for target in state.targets:
                health.add(target, now)
        return health

    def known(self) -> list[SubscriptionState]:
        """Return every state there is."""
        return list(self._states.values())
