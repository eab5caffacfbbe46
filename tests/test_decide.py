"""What happens next to a delivery: the decision table, and its laws."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.delivery import (
    HISTORY_KEPT,
    Answered,
    Attempt,
    DeadLetter,
    Defer,
    Delivered,
    Delivery,
    Failed,
    Failover,
    FailureKind,
    Forbidden,
    Outcome,
    Reason,
    Repeat,
    Retry,
    RoundSoFar,
    after_attempt,
    decide,
    describe,
    in_time,
)
from service.core.event import Event
from service.core.subscription import RetryPolicy

EVENT = Event("e1", "order.created", "shop", "2026-01-01T00:00:00Z", 1767225600.0, b"{}")
DELIVERY = Delivery(EVENT, "billing", created_at=1000.0)
POLICY = RetryPolicy(schedule=(10.0, 20.0), jitter=0.0, max_age=1000.0)
RESET = Failed(FailureKind.RESET, "reset", 0.1)
STALE = replace(RESET, stale_connection=True)
ALONE, OTHERS = RoundSoFar(), RoundSoFar(others=True)


@pytest.mark.parametrize(
    ("outcome", "seen", "decision"),
    [
        (Answered(200, 0.1), ALONE, Delivered()),
        (Answered(204, 0.1), OTHERS, Delivered()),
        (Answered(299, 0.1), ALONE, Delivered()),
        (Answered(500, 0.1), OTHERS, Failover()),
        (Answered(500, 0.1), ALONE, Retry(1010.0)),
        (Answered(301, 0.1), OTHERS, Failover()),
        (Answered(301, 0.1), ALONE, Retry(1010.0)),
        (Answered(404, 0.1), OTHERS, Failover()),
        (Answered(400, 0.1), OTHERS, Retry(1010.0)),
        (Answered(413, 0.1), OTHERS, Retry(1010.0)),
        (Answered(422, 0.1), OTHERS, Retry(1010.0)),
        (Answered(410, 0.1), OTHERS, Failover()),
        (Answered(410, 0.1), RoundSoFar(all_gone=True), DeadLetter(Reason.GONE)),
        (Answered(410, 0.1), ALONE, Retry(1010.0)),
        (Answered(429, 0.1, 50.0), OTHERS, Failover()),
        (Answered(429, 0.1, 50.0), RoundSoFar(retry_after=50.0), Retry(1050.0)),
        (Answered(429, 0.1, 3.0), RoundSoFar(retry_after=3.0), Retry(1010.0)),
        (RESET, OTHERS, Failover()),
        (RESET, ALONE, Retry(1010.0)),
        (STALE, OTHERS, Repeat()),
        (STALE, RoundSoFar(others=True, repeated=True), Failover()),
        (STALE, RoundSoFar(repeated=True), Retry(1010.0)),
        (Forbidden("10.0.0.1"), OTHERS, Failover()),
        (Forbidden("10.0.0.1"), ALONE, Retry(1010.0)),
        (
            Forbidden("10.0.0.1"),
            RoundSoFar(all_forbidden=True),
            DeadLetter(Reason.FORBIDDEN_ADDRESS),
        ),
    ],
)
def test_the_table(outcome, seen, decision):
    assert decide(DELIVERY, outcome, seen, POLICY, 1000.0, 0.0) == decision


def test_a_permanent_status_dead_letters_at_once():
    policy = replace(POLICY, permanent_statuses=frozenset({400, 404}))
    for status in (400, 404):
        found = decide(DELIVERY, Answered(status, 0.1), OTHERS, policy, 1000.0, 0.0)
        assert found == DeadLetter(Reason.REFUSED)


def test_the_round_after_the_last_delay_is_the_last():
    second, third = replace(DELIVERY, round=2), replace(DELIVERY, round=3)
    assert decide(second, RESET, ALONE, POLICY, 1000.0, 0.0) == Retry(1020.0)
    assert decide(third, RESET, ALONE, POLICY, 1000.0, 0.0) == DeadLetter(Reason.EXHAUSTED)


def test_an_empty_schedule_means_one_round():
    policy = replace(POLICY, schedule=())
    assert decide(DELIVERY, RESET, ALONE, policy, 1000.0, 0.0) == DeadLetter(Reason.EXHAUSTED)


def test_a_retry_beyond_the_maximum_age_is_no_retry():
    assert decide(DELIVERY, RESET, ALONE, POLICY, 1990.0, 0.0) == Retry(2000.0)
    assert decide(DELIVERY, RESET, ALONE, POLICY, 1991.0, 0.0) == DeadLetter(Reason.EXPIRED)


@pytest.mark.parametrize(
    ("now", "at", "back"),
    [
        (1000.0, 1500.0, 1500.0),
        (1000.0, 5000.0, 1988.5),  # a second and a half before its end, and a hundredth of the way
        (1980.0, 1990.0, 1990.0),
        (1980.0, 1999.0, 1998.3),
        (1998.0, 2100.0, 2000.0),  # no time left for another look
        (1998.0, 1999.0, 1999.0),
    ],
)
def test_what_is_put_off_is_looked_at_once_more_before_it_expires(
    now: float, at: float, back: float
):
    assert in_time(DELIVERY, POLICY, now, at) == pytest.approx(back)


@given(now=st.floats(1000.0, 2000.0), delay=st.floats(0.0, 2000.0), max_age=st.floats(1.0, 1000.0))
def test_what_is_put_off_is_not_looked_at_later_than_it_expires(
    now: float, delay: float, max_age: float
):
    policy = replace(POLICY, max_age=max_age)
    back = in_time(DELIVERY, policy, now, now + delay)
    assert back <= DELIVERY.created_at + max_age


def test_a_receiver_cannot_ask_for_more_than_a_day():
    policy = replace(POLICY, max_age=1e9)
    found = decide(DELIVERY, Answered(429, 0.1), RoundSoFar(retry_after=1e9), policy, 1000.0, 0.0)
    assert found == Retry(1000.0 + 86400.0)


OUTCOMES = st.one_of(
    st.builds(Answered, st.integers(100, 599), st.just(0.1), st.none() | st.floats(0, 1e6)),
    st.builds(Failed, st.sampled_from(FailureKind), st.just("x"), st.just(0.1), st.booleans()),
    st.builds(Forbidden, st.just("x")),
)
ROUNDS = st.builds(
    RoundSoFar, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.floats(0, 1e6)
)


@given(OUTCOMES, ROUNDS, st.integers(1, 12), st.floats(-1, 1))
def test_every_outcome_has_a_decision(
    outcome: Outcome, seen: RoundSoFar, number: int, jitter: float
):
    delivery = replace(DELIVERY, round=number)
    decision = decide(delivery, outcome, seen, RetryPolicy(), 1000.0, jitter)
    ours = isinstance(outcome, Failed) and outcome.kind is FailureKind.LOCAL
    if not (isinstance(outcome, Failed) and outcome.stale_connection and not seen.repeated):
        assert isinstance(decision, Defer) == ours
    if isinstance(decision, Retry):
        assert decision.at >= 1000.0 + min(seen.retry_after, 86400.0)
    if isinstance(decision, Failover):
        assert seen.others
    delivered = isinstance(outcome, Answered) and 200 <= outcome.status < 300
    assert isinstance(decision, Delivered) == delivered


def test_the_history_keeps_the_last_attempts_and_the_first_time():
    delivery = DELIVERY
    for number in range(HISTORY_KEPT + 5):
        delivery = after_attempt(delivery, Attempt(float(number), "t", 500, "status 500", 1))
    assert delivery.attempts == HISTORY_KEPT + 5
    assert delivery.first_attempt_at == 0.0
    assert [attempt.at for attempt in delivery.history] == [float(n) for n in range(5, 15)]


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Answered(200, 0.1), (200, None)),
        (Answered(503, 0.1), (503, "status 503")),
        (RESET, (None, "reset: reset")),
        (Forbidden("10.0.0.1"), (None, "forbidden: 10.0.0.1")),
    ],
)
def test_an_outcome_is_told_in_a_few_words(outcome, told):
    assert describe(outcome) == told
