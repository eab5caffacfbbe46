"""How many attempts a lane makes at once, how they are shared out, and what stands in the way of one.

Two bounds keep a sick subscriber from hurting others.  One target may hold half of what is free at the
moment and no more (dynamic thresholds, Choudhury and Hahne 1998): however many targets hang, some room
stays free for the rest.  And all targets that are known to be slow together may hold `slow_limit`.
"""

import asyncio
from dataclasses import dataclass, field

from service.core.delivery import DeferCause
from service.core.health import TargetState, Unavailable
from service.states import SubscriptionState

WAIT_EXPECTED = 0.5
"""Seconds that the last in line may expect to wait in memory for a busy target."""


@dataclass(slots=True)
class Budget:
    """The attempts of one lane: at most `limit` at once, `slow_limit` of them at slow targets."""

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

    def obstacle(self, state: SubscriptionState, now: float) -> Unavailable | None:
        """Return why no attempt can be made for a subscription now, or None when one can.

        `now` in monotonic seconds.
        """
        if not state.subscription.enabled:
            return Unavailable(DeferCause.PAUSED, float("inf"))
        candidates = state.candidates((), now)
        if not candidates:
            return state.obstacle(now)
        if self.slow_in_use >= self.slow_limit and any(c.is_slow(now) for c in candidates):
            return Unavailable(DeferCause.SLOW, now)
        share = self.share
        for candidate in candidates:
            if candidate.in_flight < share:
                return None
        return Unavailable(DeferCause.SATURATED, now)

    def with_room(self, candidates: list[TargetState]) -> list[TargetState]:
        """Return the candidates that may have another attempt; all of them where none may."""
        share = self.share
        return [one for one in candidates if one.in_flight < share] or candidates


def worth_waiting(state: SubscriptionState, obstacle: Unavailable, now: float) -> bool:
    """Tell whether room is likely soon: a prompt target is only busy, and the line is short.

    A trip through the broker takes a second at the least and costs a publish; a prompt target has room
    again after milliseconds.
    """
    if obstacle.cause is not DeferCause.SATURATED:
        return False
    if state.is_slow(now):
        return False
    return state.waiting < WAIT_EXPECTED * state.capacity(now)
