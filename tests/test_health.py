"""Passive health: ejection, one probe at a time, recovery, throttling."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.delivery import Answered, DeferCause, Failed, FailureKind, Forbidden, Outcome
from service.core.health import (
    EJECTION_BASE,
    EJECTION_JITTER,
    EJECTION_MAX,
    FAILURES_TO_EJECT,
    PROBE_PAUSE,
    RAMP,
    Change,
    TargetState,
    Unavailable,
)
from service.core.pace import Pace
from service.core.subscription import Target

OK = Answered(200, 0.01)
BROKEN = Answered(500, 0.01)
RESET = Failed(FailureKind.RESET, "reset", 0.01)


def state(**more: Any) -> TargetState:
    return TargetState(Target("https://user:pw@a.example:8443/hook?key=1", **more))


def attempt(target: TargetState, outcome: Outcome, now: float = 0.0) -> Change | None:
    return target.end(target.begin(now), outcome, now, 0.0)


def eject(target: TargetState, now: float = 0.0) -> None:
    changes = [attempt(target, BROKEN, now) for _ in range(FAILURES_TO_EJECT)]
    assert changes == [None] * (FAILURES_TO_EJECT - 1) + [Change.EJECTED]


def test_the_label_shows_neither_userinfo_nor_query():
    assert state().label == "https://a.example:8443/hook"
    assert state().host == "a.example"


@pytest.mark.parametrize("outcome", [BROKEN, RESET, Answered(429, 0.01), Answered(503, 0.01)])
def test_five_failures_in_a_row_eject(outcome):
    target = state()
    for _ in range(FAILURES_TO_EJECT - 1):
        assert attempt(target, outcome) is None
        assert target.unavailable(0.0) is None
    assert attempt(target, outcome) is Change.EJECTED
    assert target.unavailable(0.0) == Unavailable(DeferCause.EJECTED, EJECTION_BASE)


@pytest.mark.parametrize("outcome", [OK, Answered(404, 0.01), Answered(400, 0.01)])
def test_an_answer_that_is_no_failure_of_the_target_starts_the_count_again(outcome):
    target = state()
    for _ in range(3):
        for _ in range(FAILURES_TO_EJECT - 1):
            attempt(target, BROKEN)
        attempt(target, outcome)
    assert target.health == "healthy"


@pytest.mark.parametrize(
    "outcome",
    [
        Failed(FailureKind.LOCAL, "no descriptors", 0.01),
        Failed(FailureKind.RESET, "it had been idle", 0.01, stale_connection=True),
    ],
)
def test_what_is_not_the_fault_of_a_target_tells_nothing_about_it(outcome):
    target = state()
    for _ in range(2 * FAILURES_TO_EJECT):
        assert attempt(target, outcome) is None
    assert (target.failures, target.latency, target.health) == (0, None, "healthy")


def test_a_refused_address_tells_nothing_about_the_target():
    target = state()
    for _ in range(10):
        assert attempt(target, Forbidden("10.0.0.1")) is None
    assert (target.failures, target.latency) == (0, None)


def test_after_its_time_one_probe_is_let_through_and_no_second():
    target = state()
    eject(target)
    assert target.unavailable(EJECTION_BASE - 1) is not None
    assert target.unavailable(EJECTION_BASE) is None
    probe = target.begin(EJECTION_BASE)
    assert target.health == "probing"
    assert target.unavailable(EJECTION_BASE + 5) is not None
    assert target.end(probe, OK, EJECTION_BASE + 6, 0.0) is Change.RECOVERED
    assert target.unavailable(EJECTION_BASE + 6) is None


def test_a_failed_probe_ejects_for_longer_up_to_a_bound():
    target = state()
    eject(target)
    now, lengths = EJECTION_BASE, []
    for _ in range(15):
        assert attempt(target, BROKEN, now) is Change.EJECTED
        assert target.ejected_until is not None
        lengths.append(target.ejected_until - now)
        now = target.ejected_until
    assert lengths[:3] == [20.0, 25.0, 25.0]
    assert max(lengths) == EJECTION_MAX


def test_a_window_is_counted_from_when_its_probe_began():
    target = state()
    eject(target)
    probe = target.begin(EJECTION_BASE)
    target.end(probe, RESET, EJECTION_BASE + 14, 0.0)
    assert target.ejected_until == EJECTION_BASE + 2 * EJECTION_BASE


def test_a_probe_that_hangs_for_longer_than_a_window_is_followed_by_a_pause():
    target = state()
    eject(target)
    probe = target.begin(EJECTION_BASE)
    target.end(probe, RESET, EJECTION_BASE + 600, 0.0)
    assert target.ejected_until == EJECTION_BASE + 600 + PROBE_PAUSE


def test_the_longest_window_and_the_ramp_leave_some_seconds_of_a_minute():
    assert EJECTION_MAX * (1 + EJECTION_JITTER) + RAMP <= 50.0


def test_an_ejected_target_that_throttles_as_well_is_out_until_both_are_over():
    target = state()
    for _ in range(FAILURES_TO_EJECT):
        attempt(target, Answered(429, 0.01, retry_after=120.0))
    assert target.unavailable(119.0) == Unavailable(DeferCause.EJECTED, 120.0)
    assert target.unavailable(120.0) is None


def test_a_target_that_fails_again_while_it_ramps_up_is_out_for_longer():
    target = state()
    eject(target)
    attempt(target, OK, EJECTION_BASE)
    eject(target, EJECTION_BASE + RAMP / 2)
    assert target.ejected_until == EJECTION_BASE + RAMP / 2 + 2 * EJECTION_BASE


def test_a_target_that_has_its_full_weight_again_begins_anew():
    target = state()
    eject(target)
    attempt(target, OK, EJECTION_BASE)
    attempt(target, OK, EJECTION_BASE + RAMP)
    eject(target, EJECTION_BASE + RAMP)
    assert target.ejected_until == EJECTION_BASE + RAMP + EJECTION_BASE


def test_an_abandoned_probe_lets_the_next_one_through():
    target = state()
    eject(target)
    target.abandon(target.begin(EJECTION_BASE))
    assert target.unavailable(EJECTION_BASE) is None


def test_attempts_that_end_after_the_ejection_do_not_lengthen_it():
    target = state()
    late = target.begin(0.0)
    eject(target)
    before = target.ejected_until
    assert target.end(late, BROKEN, 1.0, 0.0) is None
    assert target.ejected_until == before


def test_a_late_success_of_an_attempt_from_before_the_ejection_recovers_the_target():
    target = state()
    late = target.begin(0.0)
    eject(target)
    assert target.end(late, OK, 1.0, 0.0) is Change.RECOVERED


def test_a_recovered_target_ramps_up_to_its_full_weight():
    target = state(weight=4)
    eject(target)
    attempt(target, OK, EJECTION_BASE)
    weights = [target.effective_weight(EJECTION_BASE + t) for t in (0, RAMP / 2, RAMP)]
    assert weights == [40, 200, 400]


def test_a_target_that_answers_410_is_gone():
    target = state()
    assert attempt(target, Answered(410, 0.01)) is Change.GONE
    assert target.unavailable(1e12) == Unavailable(DeferCause.PAUSED, float("inf"))


@pytest.mark.parametrize("status", [429, 503, 404, 301])
def test_any_failure_with_retry_after_throttles_until_then(status):
    target = state()
    assert attempt(target, Answered(status, 0.01, retry_after=20.0), 5.0) is Change.THROTTLED
    assert target.unavailable(24.9) == Unavailable(DeferCause.THROTTLED, 25.0)
    assert target.unavailable(25.0) is None


def test_a_success_with_retry_after_throttles_nothing():
    target = state()
    assert attempt(target, Answered(202, 0.01, retry_after=20.0)) is None
    assert target.unavailable(0.0) is None


def test_a_throttle_is_told_once_and_never_lasts_longer_than_a_day():
    target = state()
    assert attempt(target, Answered(429, 0.01, retry_after=1e9)) is Change.THROTTLED
    assert attempt(target, Answered(429, 0.01, retry_after=1e9)) is None
    assert target.throttled_until == 86400.0


def test_the_in_flight_bound_makes_a_target_unavailable():
    target = state(max_in_flight=2)
    tickets = [target.begin(0.0), target.begin(0.0)]
    assert target.unavailable(0.0) == Unavailable(DeferCause.SATURATED, 0.0)
    target.end(tickets[0], OK, 0.1, 0.0)
    assert target.unavailable(0.1) is None


def test_a_hanging_attempt_makes_a_target_slow_before_it_times_out():
    target = state()
    target.begin(0.0)
    assert not target.is_slow(0.9)
    assert target.is_slow(1.1)


def test_a_drained_target_is_never_available():
    assert state(weight=0).unavailable(0.0) is not None


@given(st.lists(st.tuples(st.sampled_from([OK, BROKEN, RESET]), st.floats(0.1, 100)), max_size=60))
def test_whatever_happens_a_target_comes_back_some_day(steps):
    target = state()
    now = 0.0
    for outcome, pause in steps:
        now += pause
        if target.unavailable(now) is None:
            attempt(target, outcome, now)
    assert target.unavailable(now + 2 * EJECTION_MAX) is None
    assert target.in_flight == 0


def throttling(
    target: TargetState, now: float, taken: int, refused: int, pause: float | None = 2.0
) -> None:
    """Let a target take some and answer the rest of what is under way 429, all at one moment."""
    tickets = [target.begin(now) for _ in range(taken + refused)]
    for place, ticket in enumerate(tickets):
        outcome = OK if place < taken else Answered(429, 0.01, retry_after=pause)
        target.end(ticket, outcome, now, 0.0)


def test_what_is_refused_in_the_pause_of_a_target_that_takes_some_ejects_nobody():
    target = state(max_in_flight=100)
    for now in (0.0, 2.0, 4.0):
        throttling(target, now, taken=5, refused=30)
        assert target.health == "healthy"
        assert target.unavailable(now + 1.9) == Unavailable(DeferCause.THROTTLED, now + 2.0)


def test_one_that_takes_nothing_between_its_pauses_is_ejected():
    target = state(max_in_flight=100)
    throttling(target, 0.0, taken=5, refused=30)
    throttling(target, 2.0, taken=0, refused=4)
    assert target.health == "ejected"
    assert target.pace is None


def test_one_that_takes_some_and_does_not_say_for_how_long_it_wants_to_be_left_alone_is_for_a_second():
    target = state(max_in_flight=100)
    for now in (0.0, 1.0, 2.0):
        throttling(target, now, taken=5, refused=30, pause=None)
        assert target.unavailable(now + 0.9) == Unavailable(DeferCause.THROTTLED, now + 1.0)
    assert target.health == "healthy"
    assert target.known_pace(3.0) == pytest.approx(2.5)
    throttling(target, 3.0, taken=0, refused=5, pause=None)
    assert target.health == "ejected"


def test_the_longest_pause_that_was_asked_for_counts():
    target = state(max_in_flight=100)
    throttling(target, 0.0, taken=5, refused=1, pause=2.0)
    late = target.begin(1.0)
    target.end(late, Answered(429, 0.01, retry_after=20.0), 1.0, 0.0)
    assert target.unavailable(3.0) == Unavailable(DeferCause.THROTTLED, 21.0)


def test_the_second_pause_tells_the_pace():
    target = state(max_in_flight=100)
    throttling(target, 0.0, taken=500, refused=3)
    assert target.pace is None
    throttling(target, 2.0, taken=10, refused=3)
    assert target.pace is not None
    assert target.pace.rate(4.0) == pytest.approx(5.0)
    assert target.capacity(4.0) == target.known_pace(4.0) == pytest.approx(5.0)
    assert target.unavailable(4.1) == Unavailable(DeferCause.THROTTLED, 4.1)
    assert target.unavailable(4.3) is None
    attempt(target, OK, 4.3)
    assert target.unavailable(4.3) == Unavailable(DeferCause.THROTTLED, 4.3)


def test_pauses_of_no_length_tell_no_pace_beyond_what_a_second_would():
    target = state(max_in_flight=100)
    for _ in range(2):
        throttling(target, 1e6, taken=5, refused=1, pause=1e-12)
    assert target.known_pace(1e6) == 5.0


def test_what_was_taken_before_an_ejection_tells_no_pace_after_it():
    target = state(max_in_flight=100)
    throttling(target, 0.0, taken=5, refused=1)
    while attempt(target, BROKEN, 2.0) is not Change.EJECTED:
        pass
    assert attempt(target, OK, 2.0 + EJECTION_BASE) is Change.RECOVERED
    throttling(target, 20.0, taken=5, refused=1)
    assert target.pace is None


def test_a_pace_that_was_too_much_is_less_after_the_pause_and_much_less_where_it_was_so_at_once():
    pace = Pace(100.0, 2.0, 0.0)
    pace.overstepped(2.0, 2.5)
    assert pace.rate(4.5) == pytest.approx(50.0, rel=0.05)
    pace.overstepped(2.0, 4.5 + 2.5)
    assert 40.0 < pace.rate(9.0) < 50.0


def test_a_pace_grows_until_it_no_longer_matters():
    target = state(max_in_flight=100)
    throttling(target, 0.0, taken=5, refused=1)
    throttling(target, 2.0, taken=5, refused=1)
    assert target.pace is not None
    rates = [target.pace.rate(4.0 + seconds) for seconds in range(60)]
    assert rates == sorted(rates)
    assert target.known_pace(60.0) is None
    assert target.unavailable(60.0) is None
    assert target.pace is None


@given(st.floats(0.0, 1e6), st.floats(0.0, 86400.0), st.floats(0.0, 1e9))
def test_a_pace_is_never_nothing_nor_without_a_bound(rate, pause, later):
    pace = Pace(rate, pause, 0.0)
    assert 0.1 <= pace.rate(later) < float("inf")
    pace.overstepped(pause, later)
    pace.take()
    assert isinstance(pace.allows(later + pause), bool)
