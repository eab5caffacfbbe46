"""Topic patterns and the index over them."""

import re
import statistics
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.matching import MatchIndex, pattern_problem
from service.core.subscription import Subscription, Target


def subscription(name: str, *patterns: Any, tenant: Any = None) -> Any:
    return Subscription(
        id=name, event_types=patterns, targets=(Target("https://a.example"),), tenant=tenant
    )


def ids(found: Any) -> Any:
    return [subscription.id for subscription in found]


def matches(pattern: str, event_type: str) -> Any:
    return bool(MatchIndex([subscription("a", pattern)]).match(event_type))


def naive(pattern: list[str], words: Any) -> Any:
    """Say whether a pattern matches, by the words of the AMQP specification and nothing else."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(naive(pattern[1:], words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and naive(pattern[1:], words[1:])


@pytest.mark.parametrize(
    ("pattern", "wanted", "unwanted"),
    [
        ("order.created", ["order.created"], ["order", "order.created.eu", "order.paid"]),
        ("order.*", ["order.created"], ["order", "order.created.eu", "invoice.created"]),
        ("order.#", ["order", "order.created", "order.created.eu"], ["orders", "invoice.created"]),
        ("#.created", ["created", "order.created", "a.b.created"], ["created.a"]),
        ("*.#.paid", ["a.paid", "a.b.paid"], ["paid"]),
        ("#", ["a", "a.b.c"], []),
        ("#.#", ["a", "a.b.c"], []),
        ("*", ["a"], ["a.b"]),
        ("a.#.b.#.c", ["a.b.c", "a.x.b.y.c", "a.b.b.c.c"], ["a.c", "a.b", "b.c"]),
    ],
)
def test_star_is_one_word_and_hash_is_any_number(pattern: str, wanted: Any, unwanted: Any) -> None:
    assert [word for word in wanted if not matches(pattern, word)] == []
    assert [word for word in unwanted if matches(pattern, word)] == []


words = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5)
patterns = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5)
tenants = st.sampled_from([None, "x", "y"])


@given(
    st.lists(st.tuples(st.lists(patterns, min_size=1, max_size=3), tenants), max_size=8),
    st.lists(st.tuples(words, tenants), max_size=5),
)
def test_the_index_agrees_with_a_naive_matcher(wanting: Any, events: Any) -> None:
    index = MatchIndex(
        [
            subscription(str(number), *map(".".join, some), tenant=tenant)
            for number, (some, tenant) in enumerate(wanting)
        ],
        cache_weight=60,
    )
    for event_type, event_tenant in events + events:
        expected = [
            str(number)
            for number, (some, tenant) in enumerate(wanting)
            if tenant in (None, event_tenant) and any(naive(one, event_type) for one in some)
        ]
        assert ids(index.match(".".join(event_type), event_tenant)) == expected


def test_a_subscription_with_a_tenant_meets_only_events_of_that_tenant() -> None:
    index = MatchIndex(
        [
            subscription("all", "a.#"),
            subscription("x", "a.b", tenant="x"),
            subscription("last", "#"),
        ]
    )
    assert ids(index.match("a.b", "x")) == ["all", "x", "last"]
    assert ids(index.match("a.b", "y")) == ["all", "last"]
    assert ids(index.match("a.b")) == ["all", "last"]


def test_many_hashes_take_no_exponential_time() -> None:
    index = MatchIndex([subscription("evil", ".".join(["#", "a"] * 60 + ["b"]))])
    started = time.process_time()
    assert index.match(".".join(["a"] * 120)) == ()
    assert time.process_time() - started < 1


def test_hostile_event_types_do_not_grow_the_cache() -> None:
    index = MatchIndex([subscription(str(number), "#") for number in range(100)], cache_weight=4000)
    for number in range(2000):
        index.match(f"made.up.{number}", f"tenant-{number}")
    assert len(index._cache) <= 40


def test_a_type_in_use_stays_in_the_cache_while_hostile_ones_pass() -> None:
    index = MatchIndex([subscription("a", "order.*")], cache_weight=4000)
    first = index.match("order.created")
    for number in range(2000):
        index.match(f"made.up.{number}")
        assert index.match("order.created") is first


def test_one_of_a_hundred_thousand_is_found_without_walking_them() -> None:
    index = MatchIndex(
        [subscription(str(number), f"area.kind{number // 10}.*") for number in range(100_000)]
    )
    assert ids(index.match("area.kind77.created")) == [str(number) for number in range(770, 780)]
    taken = []
    for number in range(1000, 1500):
        started = time.perf_counter()
        index.match(f"area.kind{number}.created")
        taken.append(time.perf_counter() - started)
    assert statistics.median(taken) < 0.001  # a walk would take some 10 ms


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "empty"),
        ("a..b", "empty word"),
        (".a", "empty word"),
        ("a.", "empty word"),
        ("pay*", "whole words"),
        ("a.##", "whole words"),
        ("a.b#.c", "whole words"),
        ("a b", "spaces"),
        ("a\n", "control"),
        ("a" * 256, "255"),
    ],
)
def test_a_wrong_pattern_is_told_what_is_wrong(pattern: str, problem: str) -> None:
    assert re.search(problem, pattern_problem(pattern) or "")


@given(patterns)
def test_every_proper_pattern_is_accepted(pattern: str) -> None:
    assert pattern_problem(".".join(pattern)) is None
