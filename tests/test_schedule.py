"""When: retry delays, places in line, rate limits, the ladder's arithmetic."""

import random
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import deliver
from service.core import ladder
from service.core.delivery import DeferCause, Delivery
from service.core.event import Event
from service.core.pace import Pace
from service.core.schedule import (
    SLOT_MAX,
    Line,
    ReturnLines,
    Returns,
    TokenBucket,
    ejected_delay,
    missed_delay,
    retry_delay,
)
from service.core.subscription import RetryPolicy, Subscription, Target
from service.deliver import Deliverer
from service.states import States, SubscriptionState


@given(
    st.lists(st.floats(0.1, 1e5), min_size=1, max_size=10),
    st.floats(0, 1),
    st.floats(-1, 1),
    st.data(),
)
def test_a_delay_lies_within_its_jitter_for_every_round(schedule, jitter, draw, data):
    policy = RetryPolicy(schedule=tuple(schedule), jitter=jitter)
    number = data.draw(st.integers(1, len(schedule)))
    delay = retry_delay(policy, number, draw)
    assert delay is not None
    planned = schedule[number - 1]
    assert planned * (1 - jitter) - 1e-6 <= delay <= planned * (1 + jitter) + 1e-6


def test_the_schedule_is_spent_after_its_last_delay():
    policy = RetryPolicy(schedule=(1.0, 2.0))
    assert retry_delay(policy, 3, 0.0) is None


def test_deferrals_double_from_twenty_seconds_and_wait_for_the_probe():
    assert [ejected_delay(n, 0.0, 0.0) for n in range(4)] == [20.0, 40.0, 80.0, 160.0]
    assert ejected_delay(0, 30.0, 0.0) == 30.0


def test_deferrals_come_back_spread_over_a_quarter_of_an_hour_and_never_later_than_half_an_hour():
    assert (ejected_delay(50, 0.0, 0.0), ejected_delay(50, 0.0, 1.0)) == (900.0, 1800.0)


@given(st.integers(0, 100), st.floats(0, 300), st.floats(-1, 1), st.floats(0, 1e6), st.data())
def test_a_deferral_never_ends_before_the_probe_nor_after_half_an_hour(
    deferrals, until_probe, jitter, now, data
):
    soonest = ejected_delay(deferrals, until_probe, jitter)
    assert until_probe <= soonest <= 1800.0
    returns, rate = Returns(0.0), data.draw(st.floats(0.001, 3.0))
    for _ in range(data.draw(st.integers(1, 300))):
        assert soonest <= ladder.seconds_for(returns.join(now, rate, soonest)) <= 1800


def back_at(returns: Returns, rate: float, put_off: list[float]) -> list[int]:
    """Return in which seconds those come back that were put off at these times, 20 to 40 s at the least."""
    chance = random.Random(7)
    return [
        int(now + ladder.seconds_for(returns.join(now, rate, chance.uniform(20.0, 40.0))))
        for now in put_off
    ]


@pytest.mark.parametrize(("rate", "count"), [(250.0, 50_000), (133.4, 20_000), (0.3, 60)])
def test_a_backlog_comes_back_at_its_rate_however_fast_it_was_put_off(rate, count):
    returns = Returns(0.0)
    for begin in (100.0, 2000.0):  # the second time as if the first had never been
        back = back_at(returns, rate, [begin + number / 10_000 for number in range(count)])
        assert min(back) >= begin + 20
        assert max(Counter(back).values()) <= rate + 1
        tens = Counter(at // 10 for at in back)
        assert max(tens.values()) <= 10 * rate + 1
        assert max(back) <= begin + 40 + 2.5 * count / rate


@given(st.floats(0, 1e6), st.floats(1.0, 1790.0), st.floats(1.7e9, 1.8e9))
def test_what_comes_back_takes_few_hops(now, soonest, wall_clock):
    at = wall_clock + Returns(0.0).join(now, 1.0, soonest)
    assert len(ladder.headers(ladder.seconds_for(at - wall_clock))) <= 3


def test_what_was_put_off_in_a_moment_does_not_come_back_in_one():
    returns = Returns(0.0)
    put_off = [100.0 + number / 6000 for number in range(30_000)]
    back = [now + ladder.seconds_for(returns.join(now, 250.0, 20.0)) for now in put_off]
    assert max(Counter(int(10 * at) for at in back).values()) <= 100
    assert max(back) <= 120 + 2.5 * 30_000 / 250


def test_very_many_lines_do_not_come_back_in_the_same_seconds():
    states, target = States(1), Target("https://a.example/")
    many = [states.of(Subscription(f"s{number}", ("#",), (target,))) for number in range(2000)]
    for state in many:  # now each knows of the others
        state.comes_back_after(1.0, 100.0)
    back = Counter(round(state.comes_back_after(20.0, 100.0)) for state in many)
    assert max(back.values()) <= 1.5 * 400


def test_a_long_line_takes_little_memory_and_none_once_all_are_back():
    returns = Returns(0.0)
    tracemalloc.start()
    try:
        for number in range(100_000):
            returns.join(number / 1000, 250.0, 20.0)
        full, _ = tracemalloc.get_traced_memory()
        assert returns.let_go(2000.0)
        empty, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert full < 4096
    assert empty < 1024


def test_a_large_backlog_takes_few_hops_too():
    returns, chance = Returns(0.0), random.Random(7)
    hops = [
        ladder.seconds_for(
            returns.join(number / 1000, 80.0, chance.uniform(20.0, 40.0))
        ).bit_count()
        for number in range(60_000)
    ]
    assert sum(hops) / len(hops) <= 3.1


def test_replicas_share_the_line_of_returns_and_a_reload_keeps_it():
    states = States(replicas=2)
    before = Subscription("a", ("order.#",), (Target("https://a.example/"),))
    delays = [states.of(before).comes_back_after(20.0, 100.9999999) for _ in range(500)]
    assert list(Counter(map(round, delays)).items()) == [(20, 125), (21, 125), (22, 125), (24, 125)]
    assert states.of(replace(before)).comes_back_after(20.0, 100.9999999) == pytest.approx(
        25, abs=0.1
    )


def test_lines_of_returns_share_a_rate_and_have_it_back_when_the_others_are_empty():
    lines, many = ReturnLines(replicas=2), [Returns(0.0) for _ in range(4)]
    assert lines.rate_with(many[0], 100.0) == 125.0
    for one in many:
        for _ in range(500):
            one.join(100.0, lines.rate_with(one, 100.0), 1.0)
    assert [lines.rate_with(one, 102.0) for one in many] == [50.0] * 4
    assert lines.rate_with(many[0], 200.0) == 125.0


def test_a_line_of_returns_that_is_too_long_is_spread_over_a_quarter_of_an_hour():
    returns = Returns(0.0)
    back = back_at(returns, 50.0, [100.0 + number / 5000 for number in range(150_000)])
    assert max(back) <= 1930
    assert max(Counter(back).values()) < 1000
    assert returns.let_go(2000.0)


def test_places_are_hardly_looked_for_in_a_line_that_is_full(monkeypatch):
    searches, search = [0], Returns._first_with_room

    def counted(*told: Any) -> int | None:
        searches[0] += 1
        return search(*told)

    monkeypatch.setattr(Returns, "_first_with_room", counted)
    returns = Returns(0.0)
    back_at(returns, 10.0, [number / 200 for number in range(200 * 240)])
    searches[0] = 0
    back = back_at(returns, 10.0, [240 + number / 200 for number in range(200 * 60)])
    assert searches[0] <= 2 * 11 * 60
    assert sum(at < 240 + 900 for at in back) < 10  # the places that are free are the furthest


def test_each_deferred_delivery_gets_a_place_of_its_own():
    line = Line()
    assert [line.reserve(100.0, 2.0, 0.0, 0.5) for _ in range(4)] == [1.0, 1.5, 2.0, 2.5]


def test_places_begin_behind_the_time_before_which_nothing_may_happen():
    line = Line()
    assert line.reserve(100.0, 1.0, 160.0, 0.5) == 61.0
    assert line.reserve(100.0, 1.0, 160.0, 0.5) == 62.0


def test_a_line_that_began_at_a_slow_target_is_short_once_it_is_fast_and_long_again_once_it_is_slow():
    line = Line()
    for _ in range(90):
        line.reserve(100.0, 0.5, 0.0, 0.5)
    assert line.reserve(130.0, 200.0, 0.0, 0.5) == pytest.approx(1.0 + 75 / 200)
    assert line.reserve(130.0, 0.5, 0.0, 0.5) == pytest.approx(1.0 + 76 / 0.5)


def test_what_a_target_is_to_be_left_alone_for_is_no_part_of_its_line():
    line = Line()
    for _ in range(10):
        line.reserve(100.0, 1.0, 160.0, 0.5)
    assert line.reserve(100.0, 0.1, 160.0, 0.5) == pytest.approx(61.0 + 10 / 0.1)


@given(st.integers(1, 300), st.floats(0.01, 1000), st.floats(0, 1))
def test_a_place_is_never_further_away_than_ten_minutes(count, rate, draw):
    line = Line()
    for _ in range(count):
        assert 1.0 <= line.reserve(0.0, rate, 0.0, draw) <= SLOT_MAX


def test_a_rate_limit_lets_its_rate_through():
    bucket = TokenBucket(10.0)
    taken = sum(bucket.take(now / 100) for now in range(1000))
    assert taken == pytest.approx(10 + 100, abs=2)


def test_a_slow_rate_limit_still_lets_one_through_at_a_time():
    bucket = TokenBucket(0.1)
    assert [bucket.take(t) for t in (0.0, 5.0, 10.1, 15.0, 20.3)] == [
        True,
        False,
        True,
        False,
        True,
    ]


@given(st.floats(0, 200_000))
def test_a_delay_on_the_ladder_is_never_early_and_hardly_late(delay):
    seconds = ladder.seconds_for(delay)
    if delay > ladder.MAX_DELAY:
        assert seconds == ladder.MAX_DELAY
    else:
        assert delay <= seconds <= delay * 1.01 + 1 < delay + ladder.lateness(delay)


@given(st.integers(0, ladder.MAX_DELAY))
def test_the_headers_of_a_delay_are_the_levels_that_make_it_up(seconds):
    told = ladder.headers(seconds)
    entered = [level for level in range(ladder.LEVELS) if ladder.header(level) in told]
    assert sum(2**level for level in entered) == seconds
    assert len(told) == len(entered)
    assert ladder.entry_level(seconds) == max(entered, default=0)


def test_a_place_in_line_that_was_missed_is_followed_by_a_later_one():
    assert [missed_delay(n) for n in (0, 1, 2, 3, 99)] == [0.0, 20.0, 60.0, 180.0, 300.0]


def limited(rate: float) -> SubscriptionState:
    return States(1).of(Subscription("a", ("#",), (Target("https://a.example/"),), rate_limit=rate))


def test_a_new_delivery_leaves_the_room_of_a_rate_limit_to_those_in_line():
    state = limited(10.0)
    assert [state.take_rate(0.0, is_new=True) for _ in range(11)][-1] is DeferCause.RATE_LIMITED
    state.line.reserve(0.0, 10.0, 0.0, 0.5)
    assert state.take_rate(0.5, is_new=True) is DeferCause.RATE_LIMITED
    assert state.take_rate(0.5, is_new=False) is None


def test_a_new_delivery_leaves_the_pace_of_the_targets_that_are_left_to_those_in_line():
    targets = Target("https://a.example/"), Target("https://b.example/")
    state = States(1).of(Subscription("a", ("#",), targets))
    throttling, gone = state.targets
    gone.gone = True
    throttling.pace = Pace(10.0, 1.0, 0.0)
    assert state.take_rate(1.5, is_new=True) is None
    state.line.reserve(1.5, 10.0, 0.0, 0.5)
    assert state.take_rate(1.5, is_new=True) is DeferCause.THROTTLED
    assert state.take_rate(1.5, is_new=False) is None


def test_a_new_delivery_has_what_those_in_line_do_not_use():
    state = limited(10.0)
    state.line.reserve(0.0, 10.0, 5.0, 0.5)
    assert state.take_rate(0.0, is_new=True) is None
    assert [state.take_rate(0.0, is_new=False) for _ in range(9)] == [None] * 9
    assert state.take_rate(0.5, is_new=True) is DeferCause.RATE_LIMITED
    assert state.take_rate(2.0, is_new=True) is None


class StandingClock:
    """A clock that stands."""

    def now(self) -> float:
        return 1.8e9

    def monotonic(self) -> float:
        return 0.0


def put_off(
    state: SubscriptionState, deferrals: int, cause: DeferCause, round_number: int = 1
) -> float:
    """Return for how many seconds a delivery is put off that was put off so often before."""
    nothing: Any = None
    event = Event("1", "order.created", "shop", "2027-01-15T08:00:00Z", 1.8e9, b"{}")
    delivery = Delivery(event, "a", 1.8e9, deferrals=deferrals, round=round_number)
    deliverer = Deliverer(nothing, nothing, nothing, StandingClock(), nothing)
    run = deliver._Round(delivery, state, nothing)
    return deliverer._in_line(run, cause, 0.0, 0.0).at - 1.8e9


@pytest.mark.parametrize("cause", [DeferCause.RATE_LIMITED, DeferCause.THROTTLED])
def test_a_delivery_that_missed_its_place_comes_later_and_holds_up_nobody(cause):
    state = limited(10.0)
    waits = [put_off(state, deferrals, cause) for deferrals in (0, 3, 0)]
    assert waits == pytest.approx([1.0, 180.0, 1.2])


def test_what_a_throttling_target_has_refused_goes_round_the_broker_three_times_a_minute_at_most():
    first, retried = 1.0, 5.0  # put off, tried in vain, and by its schedule tried again
    then = put_off(limited(10.0), 1, DeferCause.THROTTLED, round_number=2)
    assert first + retried + then > 60.0


def test_one_that_missed_its_place_at_a_busy_target_has_the_next():
    assert put_off(limited(10.0), 3, DeferCause.SATURATED) == pytest.approx(1.0)


def test_a_missed_place_is_no_reason_to_give_up():
    hasty = replace(limited(10.0).subscription, retry=RetryPolicy(max_age=60.0))
    assert put_off(States(1).of(hasty), 3, DeferCause.THROTTLED) == pytest.approx(1.0)
