"""Choosing a target.

Smooth weighted round-robin is nginx's algorithm (`ngx_http_upstream_round_robin.c`): every candidate's
running value grows by its weight, the greatest is picked (the first wins ties) and pays the total.
Over a full cycle each target is picked `weight` times, spread evenly, and the running values sum to 0.
"""

from collections.abc import Sequence
from typing import assert_never

from service.core.health import TargetState
from service.core.subscription import Balance


def choose(
    balance: Balance, candidates: Sequence[TargetState], now: float, draw: float
) -> TargetState | None:
    """Pick among the candidates, or None when there are none.

    Candidates are available and not tried in this round.  Backups count only when nothing else is
    there.  `draw` is a random number in 0..1, used by `weighted_random` alone.
    """
    pool = [state for state in candidates if not state.target.backup] or list(candidates)
    if not pool:
        return None
    match balance:
        case Balance.WEIGHTED_ROUND_ROBIN:
            return smooth_round_robin(pool, now)
        case Balance.WEIGHTED_RANDOM:
            return weighted_random(pool, now, draw)
        case Balance.FAILOVER:
            return pool[0]
        case _:
            assert_never(balance)


def smooth_round_robin(pool: Sequence[TargetState], now: float) -> TargetState:
    """Pick by nginx's smooth weighted round-robin and advance the running values."""
    best = pool[0]
    total = 0
    for state in pool:
        weight = state.effective_weight(now)
        state.current += weight
        total += weight
        if state.current > best.current:
            best = state
    best.current -= total
    return best


def weighted_random(pool: Sequence[TargetState], now: float, draw: float) -> TargetState:
    """Pick with a probability proportional to the effective weight; `draw` in 0..1."""
    weights = [state.effective_weight(now) for state in pool]
    point = draw * sum(weights)
    for state, weight in zip(pool, weights, strict=True):
        point -= weight
        if point < 0:
            return state
    return pool[-1]
