"""Filters: what they see, how errors read, and that none can do harm."""

import subprocess
import sys
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.event import Event
from service.filters import MAX_ELEMENTS, FilterError, FilterInput, Undecided, compile_filter


def seen(data: Any, **attributes: Any) -> Any:
    known = {
        "id": "evt-1",
        "type": "order.created",
        "source": "shop",
        "time": "2026-01-02T03:04:05Z",
    }
    event = Event(**known | attributes, time_unix=0.0, data=orjson.dumps(data))
    return FilterInput(event, orjson.loads(event.data))


def verdict(text: str, data: Any = None, **attributes: Any) -> Any:
    return seen(data, **attributes).verdict(compile_filter(text))


@pytest.mark.parametrize(
    "text",
    [
        'data.amount > 1000 && data.currency == "EUR"',
        "data.amount > 1000.5",
        "data.amount == 2000.0",
        "data.ratio > 1",
        "data.ratio == 1.5",
        "data.ratio in [1.5]",
        "data.big > 1",
        "data.items.exists(item, item.sku == 'b')",
        "has(data.amount) && !has(data.missing)",
        "data.flag",
        "data['a-b'] == null",
        "event.type == 'order.created' && event.source.startsWith('sh')",
        "event.tenant == '' && event.subject == ''",
        "timestamp(event.time) > timestamp('2026-01-01T21:00:00-05:00')",
        "data.missing == 1 || data.flag",
    ],
)
def test_a_filter_passes_what_its_author_expects(text: str) -> None:
    data = {
        "amount": 2000, "currency": "EUR", "ratio": 1.5, "big": 2**64 - 1, "flag": True,
        "items": [{"sku": "a"}, {"sku": "b"}], "a-b": None,
    }  # fmt: skip
    assert verdict(text, data) is True


def test_a_filter_can_say_no() -> None:
    assert verdict("data.amount > 1000", {"amount": 1000}) is False
    assert verdict("event.tenant == 'acme'", {}, tenant="other") is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data.amount >", "line 1, column 14: Syntax error: mismatched input '<EOF>'"),
        ("true &&\n foo", "line 2, column 2: undeclared reference to 'foo'"),
        ("1 + 2", "must be true or false, but its result is int"),
        ("event.id", "must be true or false, but its result is string"),
        ("event.time > 5", "line 1, column 12: found no matching overload"),
        ("data.é == 1", "line 1, column 6: Syntax error"),
        ("(" * 100 + "true" + ")" * 100, "recursion limit"),
        ("data" + ".a" * 100, "recursion depth"),
    ],
)
def test_a_wrong_filter_is_refused_in_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(FilterError) as caught:
        compile_filter(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    ("text", "data", "detail"),
    [
        ("data.missing == 1", {}, "the key 'missing' is missing"),
        ("data.a.b == 1", {"a": 1}, "non-message"),
        ("data.a", {"a": "yes"}, "the result is string, not true or false"),
        ("data.a", {"a": None}, "the result is null"),
        ("data.a > 1", {"a": "secret"}, "No matching overloads"),
        ("data.a / 0 == 1", {"a": 1}, "divide by zero"),
        ("data.a.matches(data.a)", {"a": "secret("}, "cannot be evaluated (INVALID_ARGUMENT)"),
        ("timestamp(data.a) > timestamp(event.time)", {"a": "secret"}, "cannot be evaluated"),
        ("data[data.a] == 1", {"a": "secret"}, "a key is missing"),
    ],
)
def test_what_cannot_be_evaluated_is_undecided_and_quotes_no_data(
    text: str, data: Any, detail: str
) -> None:
    found = verdict(text, data)
    assert isinstance(found, Undecided)
    assert detail in found.detail
    assert "secret" not in found.detail


def test_numbers_beyond_64_bits_do_no_harm() -> None:
    event = Event(
        "evt-1", "a", "s", "2026-01-02T03:04:05Z", 0.0, b'{"n": 1, "big": ' + b"9" * 40 + b"}"
    )
    parsed = orjson.loads(event.data)
    assert FilterInput(event, parsed).verdict(compile_filter("data.big > 1")) is True
    exact = {"n": 1, "big": 10**40}
    assert isinstance(FilterInput(event, exact).verdict(compile_filter("data.n == 1")), Undecided)


@pytest.mark.parametrize("depth", [250, 1000])
def test_data_nested_deeply_does_no_harm(depth: int) -> None:
    data: list[Any] = []
    for _ in range(depth):
        data = [data]
    event = Event("evt-1", "a", "s", "2026-01-02T03:04:05Z", 0.0, b"[" * 3000)
    assert FilterInput(event, data).verdict(compile_filter("data == data")) is True
    assert FilterInput(event, data).verdict(compile_filter("data.exists(a, a == [])")) is False


@pytest.mark.parametrize(
    "text",
    [
        "data.list.filter(i, i > 0).size() > 3",
        "data.list.map(i, data.list).size() > 0",
        "data.list.all(i, data.list.exists(j, i == j))",
        "data.text.matches('(a*)*b') || data.list.all(i, i in data.list)",
    ],
)
def test_a_filter_that_loops_over_long_lists_holds_nobody_up(text: str) -> None:
    data = {"list": list(range(30_000)), "text": "a" * 10_000}
    started = time.process_time()
    assert "more than 1000" in verdict(text, data).detail
    assert time.process_time() - started < 1


def test_a_loop_with_too_many_steps_is_undecided() -> None:
    data = {"list": list(range(MAX_ELEMENTS))}
    found = verdict("data.list.all(i, data.list.all(j, i + j >= 0))", data)
    assert found == Undecided("Iteration budget exceeded")


def test_the_same_text_is_compiled_once() -> None:
    assert compile_filter("data.once == 1") is compile_filter("data.once == 1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    json_values, st.sampled_from(["data.a > 1", "data[0] == data.a", "data", "data.exists(a, a)"])
)
def test_no_data_makes_a_filter_raise(data: Any, text: str) -> None:
    event = Event("evt-1", "a", "s", "2026-01-02T03:04:05Z", 0.0, b"")
    assert isinstance(FilterInput(event, data).verdict(compile_filter(text)), bool | Undecided)


def test_a_process_without_filters_and_ed25519_keys_loads_neither_library() -> None:
    program = (
        "import sys, service.app;"
        "print([name for name in ('cel_expr_python', 'cryptography') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert told.stdout.decode().strip() == "[]"
