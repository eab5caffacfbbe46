"""Choosing a target: nginx's sequence, its laws, and the other strategies."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.balancer import choose, smooth_round_robin
from service.core.health import RAMP, TargetState
from service.core.subscription import Balance, Target


def targets(*weights: int, backup: tuple[int, ...] = ()) -> list[TargetState]:
    return [
        TargetState(Target(f"https://{chr(97 + n)}.example", weight=weight, backup=n in backup))
        for n, weight in enumerate(weights)
    ]


def name(state: TargetState | None) -> str:
    assert state is not None
    return state.host[0]


def picks(states: list[TargetState], count: int) -> str:
    return "".join(name(smooth_round_robin(states, 0.0)) for _ in range(count))


@pytest.mark.parametrize(
    ("weights", "sequence"),
    [((5, 1, 1), "aabacaa"), ((3, 1), "aaba"), ((4, 3, 2), "abcabacba"), ((2, 1, 1), "abca")],
)
def test_the_sequence_is_that_of_nginx(weights, sequence):
    assert picks(targets(*weights), len(sequence)) == sequence


def test_the_running_values_are_those_of_nginx():
    states = targets(5, 1, 1)
    seen = []
    for _ in range(7):
        smooth_round_robin(states, 0.0)
        seen.append(tuple(state.current // 100 for state in states))
    assert seen == [
        (-2, 1, 1), (-4, 2, 2), (1, -4, 3), (-1, -3, 4), (4, -2, -2), (2, -1, -1), (0, 0, 0),
    ]  # fmt: skip


def test_a_failover_leaves_the_sequence_that_nginx_leaves():
    states = targets(5, 1, 1)
    assert name(smooth_round_robin(states, 0.0)) == "a"
    assert name(smooth_round_robin(states[1:], 0.0)) == "b"
    assert picks(states, 6) == "acaaba"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_every_full_cycle_picks_each_target_weight_times(weights):
    states = targets(*weights)
    for _ in range(2):
        counted = Counter(picks(states, sum(weights)))
        assert [counted[chr(97 + n)] for n in range(len(weights))] == weights
        assert [state.current for state in states] == [0] * len(weights)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 60))
def test_the_running_values_always_sum_to_zero(weights, count):
    states = targets(*weights)
    picks(states, count)
    assert sum(state.current for state in states) == 0


def test_a_backup_serves_only_when_nothing_else_is_there():
    states = targets(1, 1, backup=(1,))
    for balance in Balance:
        assert name(choose(balance, states, 0.0, 0.9)) == "a"
        assert name(choose(balance, states[1:], 0.0, 0.9)) == "b"


def test_nothing_is_picked_from_nothing():
    assert choose(Balance.WEIGHTED_ROUND_ROBIN, [], 0.0, 0.5) is None


def test_failover_keeps_the_order_written():
    states = targets(1, 9)
    assert name(choose(Balance.FAILOVER, states, 0.0, 0.99)) == "a"
    assert name(choose(Balance.FAILOVER, states[1:], 0.0, 0.0)) == "b"


@pytest.mark.parametrize(
    ("draw", "picked"), [(0.0, "a"), (0.74, "a"), (0.76, "b"), (0.999999, "b"), (1.0, "b")]
)
def test_weighted_random_follows_the_weights(draw, picked):
    assert name(choose(Balance.WEIGHTED_RANDOM, targets(3, 1), 0.0, draw)) == picked


def test_a_ramping_target_gets_a_smaller_share_that_grows():
    states = targets(1, 1)
    states[1].ramp_from = 0.0
    early = Counter(name(smooth_round_robin(states, RAMP / 10)) for _ in range(110))
    assert early["b"] == 10
    later = Counter(name(smooth_round_robin(states, RAMP)) for _ in range(110))
    assert later["b"] == 55
