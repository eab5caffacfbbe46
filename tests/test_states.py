"""What is known of a subscription follows its targets: what they take, their turns, their health."""

import pytest

from service.core.balancer import choose
from service.core.delivery import Answered, DeferCause, Failed, FailureKind
from service.core.health import FAILURES_TO_EJECT, Change, TargetState
from service.core.subscription import Balance, Subscription, Target
from service.states import States, SubscriptionState

A, B = "https://a.example/", "https://b.example/"
OK = Answered(200, 0.01)
REFUSED = Failed(FailureKind.CONNECT, "refused", 0.001)


def wants(*targets: Target, name: str = "s", rate_limit: float | None = None) -> Subscription:
    return Subscription(name, ("#",), targets or (Target(A),), rate_limit=rate_limit)


def eject(target: TargetState) -> None:
    for _ in range(FAILURES_TO_EJECT):
        change = target.end(target.begin(0.0), REFUSED, 0.001, 0.0)
    assert change is Change.EJECTED


def answer_slowly(target: TargetState, seconds: float) -> None:
    for _ in range(20):
        target.end(target.begin(0.0), Answered(200, seconds), seconds, 0.0)


def slow_beside(other: Target) -> SubscriptionState:
    state = States(1).of(wants(other, Target(B, max_in_flight=8)))
    answer_slowly(state.targets[1], 2.0)
    return state


def test_what_an_ejected_target_would_take_is_not_counted_on():
    state = slow_beside(Target(A))
    eject(state.targets[0])
    assert state.capacity(3.0) == pytest.approx(4.0)


def test_what_a_target_that_asked_for_a_pause_would_take_is_not_counted_on():
    state = slow_beside(Target(A))
    state.targets[0].throttled_until = 3600.0
    assert state.capacity(3.0) == pytest.approx(4.0)


@pytest.mark.parametrize("how", ["drained", "gone", "ejected"])
def test_a_slow_target_that_is_not_tried_makes_nobody_slow(how):
    states = States(1)
    state = states.of(wants(Target(A), Target(B)))
    answer_slowly(state.targets[0], 5.0)
    assert state.is_slow(6.0)
    match how:
        case "drained":
            state = states.of(wants(Target(A, weight=0), Target(B)))
        case "gone":
            state.targets[0].gone = True
        case "ejected":
            eject(state.targets[0])
    assert not state.is_slow(6.0)


def test_new_weights_hold_from_the_first_turn_on():
    states = States(1)
    old = states.of(wants(Target(A, weight=1000), Target(B, weight=1000)))
    for turn in range(3):
        choose(Balance.WEIGHTED_ROUND_ROBIN, old.targets, 1e6 + turn, 0.0)
    new = states.of(wants(Target(A), Target(B)))
    turns = [choose(Balance.WEIGHTED_ROUND_ROBIN, new.targets, 1e6, 0.0) for _ in range(4)]
    assert [one.target.url for one in turns if one] == [A, B, A, B]


@pytest.mark.parametrize("change", ["drained", "disabled"])
def test_who_is_left_out_by_people_is_not_told_as_left_out_for_long(change):
    states = States(1)
    subscription = wants(Target(A, weight=0) if change == "drained" else Target(A))
    eject(states.of(wants()).targets[0])
    assert states.health(3600.0).ejected_for > 3000.0
    if change == "disabled":
        subscription = Subscription("s", ("#",), (Target(A),), enabled=False)
    states.of(subscription)
    assert states.health(3600.0).ejected_for == 0.0


def test_work_that_began_under_an_older_configuration_does_not_bring_that_back():
    states = States(1)
    old, new = wants(), wants(Target(A), Target(B))
    states.of(old)
    states.keep({"s": new}.get, changed=["s"])
    newest = states.of(new)
    assert states.of(old) is newest
    assert states.of(new) is newest


def test_work_for_a_subscription_that_is_removed_leaves_no_state_behind():
    states = States(1)
    old = wants()
    states.of(old)
    states.keep(lambda _: None, removed=["s"])
    assert states.of(old).subscription is old
    assert states.known() == []


@pytest.mark.parametrize("rate", [1.0, 1000 / 3600, 2.0, 2.5, 3.0, 100.0])
def test_the_token_that_one_in_line_waits_for_is_not_taken_by_a_new_one(rate):
    state = States(1).of(wants(rate_limit=rate))
    while state.take_rate(0.0, is_new=True) is None:
        pass
    comes = max(1 / rate, state.place_in_line(DeferCause.RATE_LIMITED, 0.0, 0.0, 0.5)) + 0.01
    state.place_in_line(DeferCause.RATE_LIMITED, 0.0, comes, 0.5)
    state.take_rate(comes - 0.005, is_new=True)
    assert state.take_rate(comes, is_new=False) is None


def test_what_those_in_line_leave_of_a_low_rate_is_had_by_a_new_one():
    state = States(1).of(wants(rate_limit=1.0))
    assert state.take_rate(0.0, is_new=True) is None
    for _ in range(20):
        state.place_in_line(DeferCause.RATE_LIMITED, 0.0, 0.0, 0.5)
    taken = [state.take_rate(seconds, is_new=True) is None for seconds in range(1, 9)]
    assert sum(taken) == 4


def test_one_late_answer_does_not_make_a_pace_forgotten():
    target = TargetState(Target(A, max_in_flight=2))
    for began in (0.0, 2.0):
        for at in range(5):
            target.end(target.begin(began + at / 10), OK, began + at / 10 + 0.01, 0.0)
        throttled = Answered(429, 0.01, retry_after=1.0)
        target.end(target.begin(began + 0.6), throttled, began + 0.61, 0.0)
    assert target.known_pace(3.7) is not None
    ticket = target.begin(3.7)
    assert target.unavailable(5.5) is None
    assert target.pace is not None
    target.end(ticket, OK, 5.5, 0.0)
