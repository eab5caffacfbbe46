"""Durations, sizes, rates and instants: what is read, what is refused, and how it is said."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.core.units import (
    parse_duration,
    parse_rate,
    parse_rfc3339,
    parse_size,
    render_rfc3339,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("5s", 5),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1.5m", 90),
        (" 0s ", 0),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5", "write 5s"),
        ("5 parsecs", "use ms, s, m, h or d"),
        ("5M", "use ms"),
        ("-5s", "not a duration"),
        ("", "not a duration"),
        ("s", "not a duration"),
        ("1e3s", "not a duration"),
        ("٥s", "not a duration"),  # noqa: RUF001 - a digit of another script
        ("9" * 400 + "s", "not a duration"),
    ],
)
def test_a_wrong_duration_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("262144", 262144),
        ("256KiB", 262144),
        ("256 kib", 262144),
        ("1.5MiB", 1572864),
        ("1MB", 1000000),
        ("7B", 7),
        ("1GiB", 1024**3),
    ],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1.5", "0.0001KiB", "1XiB", "1 2"])
def test_a_wrong_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|unit|bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", 100), ("30/m", 0.5), ("0.5 / s", 0.5), ("3600/h", 1)]
)
def test_a_rate_is_read_per_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["100", "0/s", "/s", "100/y", "-1/s", "1/ms", ""])
def test_a_wrong_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate|unit"):
        parse_rate(text)


@given(st.text(max_size=20))
def test_a_parser_raises_nothing_but_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_rate, parse_rfc3339):
        try:
            parse(text)
        except ValueError as error:
            assert str(error).isprintable()  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2018-04-05T17:31:00Z", 1522949460),
        ("2018-04-05t19:31:00.250+02:00", 1522949460.25),
        ("2018-04-05T17:31:00.123456789z", 1522949460.123456),
        ("2016-12-31T23:59:60Z", 1483228800),
        ("0001-01-01T00:00:00+23:59", -62135683140),
        ("9999-12-31T23:59:59-23:59", 253402387139),
    ],
)
def test_an_instant_is_read_as_unix_seconds(text: str, unix: float) -> None:
    assert parse_rfc3339(text) == unix


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2018-04-05",
        "2018-04-05T17:31:00",
        "2018-04-05 17:31:00Z",
        "2018-04-05T17:31Z",
        "2018-02-30T00:00:00Z",
        "2018-13-01T00:00:00Z",
        "2018-01-01T24:00:00Z",
        "2018-01-01T00:00:61Z",
        "2018-01-01T00:00:00+24:00",
        "2018-01-01T00:00:00.Z",
        "0000-01-01T00:00:00Z",
        "20180405T173100Z",
        "2018-W14-4T17:31:00Z",
        "٢٠١٨-04-05T17:31:00Z",
        "1522949460",
    ],
)
def test_what_is_no_rfc3339_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"RFC 3339|does not exist"):
        parse_rfc3339(text)


@given(st.datetimes(timezones=st.just(UTC)), st.integers(-14, 14))
def test_an_instant_survives_being_written_and_read(at: datetime, hours: int) -> None:
    assume(2 <= at.year <= 9998)
    instant = at.astimezone(timezone(timedelta(hours=hours)))
    text = render_rfc3339(instant)
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == instant
    assert parse_rfc3339(text) == (instant - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


def test_an_instant_outside_of_the_calendar_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 9999"):
        render_rfc3339(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
