"""How many attempts a lane makes at once, how they are shared out, and what stands in the way of one.

Two bounds keep a sick subscriber from hurting others.  One target may hold half of what is free at the
moment and no more (dynamic thresholds, Choudhury and Hahne 1998): however many targets hang, some room
stays free for the rest.  And all targets that are known to be slow together may hold `slow_limit`.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.core.delivery import DeferCause
from service.core.health import TargetState, Unavailable
from service.states import SubscriptionState

WAIT_EXPECTED = 2.0
"""Seconds that the last in line may expect to wait in memory for a busy target."""


@dataclass(slots=True)
class Budget:
    """The attempts of one lane: at most `limit` at once, `slow_limit` of them at slow targets."""

    lane: str
    limit: int
    slow_limit: int
    in_use: int = 0
    slow_in_use: int = 0
    begun: int = 0
    _waiters: deque[asyncio.Future[None]] = field(default_factory=deque, repr=False)
    _outside: deque[asyncio.Future[None]] = field(default_factory=deque, repr=False)
    _held: Counter[TargetState] = field(default_factory=Counter, repr=False)

    @property
    def is_intake(self) -> bool:
        """Tell whether this is the intake lane's: what it puts off has the backlog lane to go to."""
        return self.lane == "intake"

    async def admission(self) -> None:
        """Wait, in line, until few enough deliveries have begun and not ended.

        An event is read only then: at a fan-out of ten a full prefetch would otherwise be ten thousand
        tasks that wait for each other, which cost a fifth of the CPU.
        """
        while self.begun >= 2 * self.limit:
            waiter = asyncio.get_running_loop().create_future()
            self._outside.append(waiter)
            await waiter

    def admit(self, deliveries: int) -> None:
        """Note that so many deliveries begin."""
        self.begun += deliveries

    def dismiss(self, deliveries: int) -> None:
        """Note that so many deliveries have ended, and admit who waits outside."""
        self.begun -= deliveries
        self.admit_next()

    def admit_next(self) -> None:
        """Admit who waits outside, as far as there is room; also for one that was admitted and begins nothing."""
        room = 2 * self.limit - self.begun
        while room > 0 and self._outside:
            waiter = self._outside.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    async def room(self) -> None:
        """Wait, in line, until the lane may make another attempt."""
        while self.in_use >= self.limit:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def begin(self, *, slow: bool) -> None:
        """Take the room for one round."""
        self.in_use += 1
        self.slow_in_use += slow

    def end(self, *, slow: bool) -> None:
        """Give it back, and let the first in line go on."""
        self.in_use -= 1
        self.slow_in_use -= slow
        self.pass_on()

    def pass_on(self) -> None:
        """Let the first in line go on, where there is room; also for one that did not take its turn."""
        while self._waiters and self.in_use < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def hold(self, target: TargetState) -> None:
        """Note that an attempt of this lane begins at a target."""
        self._held[target] += 1

    def release(self, target: TargetState) -> None:
        """Note that it has ended."""
        self._held[target] -= 1
        if not self._held[target]:
            del self._held[target]

    @property
    def share(self) -> int:
        """Return how many attempts of this lane one target may have under way now."""
        return max(1, (self.limit - self.in_use) // 2)

    def has_more_for(self, targets: Sequence[TargetState]) -> bool:
        """Tell whether these targets may have another attempt beside the one that is about to begin."""
        if self.in_use >= self.limit:
            return False
        share = self.share
        places = (
            min(share - self._held[target], target.target.max_in_flight - target.in_flight)
            for target in targets
        )
        return sum(max(0, free) for free in places) > 1

    def open_to(self, state: SubscriptionState, now: float) -> list[TargetState] | Unavailable:
        """Return the targets of a subscription that an attempt can be made at now, or why none can.

        `now` in monotonic seconds.
        """
        if not state.subscription.enabled:
            return Unavailable(DeferCause.PAUSED, float("inf"))
        candidates = state.candidates((), now)
        if not candidates:
            return state.obstacle(now)
        if self.slow_in_use >= self.slow_limit and state.slow_among(candidates, now):
            return Unavailable(DeferCause.SLOW, now)
        # That the lane is full of others is no reason for a backup, or for the next in order.
        preferred, share = state.preferred(candidates), self.share
        roomy = [candidate for candidate in preferred if self._held[candidate] < share]
        return roomy or Unavailable(DeferCause.SATURATED, now)


def worth_waiting(state: SubscriptionState, obstacle: Unavailable, now: float) -> bool:
    """Tell whether room is likely soon: a prompt target is only busy.

    A trip through the broker takes a second at the least and costs a publish; a prompt target has room
    again after milliseconds.
    """
    return obstacle.cause is DeferCause.SATURATED and not state.is_slow(now)


def has_place(state: SubscriptionState, lane: str, now: float) -> bool:
    """Tell whether the line of a lane is short enough for one more; lanes with a line each take turns."""
    before = state.waiting_in(lane) * state.lines_with(lane)
    return before < WAIT_EXPECTED * state.capacity(now)
