"""Whatever stands in Retry-After becomes a finite number of seconds, or nothing."""

import math
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.retry_after import retry_after

SUNDAY = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 120 ", 120.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("+7", 7.0),
        ("1.5", 1.5),
        ("9999999999999", 9999999999999.0),
    ],
)
def test_seconds_are_read(value: str, seconds: float) -> None:
    assert retry_after(value, SUNDAY) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "sun, 06 nov 1994 08:49:37 gmt",
    ],
)
def test_dates_are_read_in_all_three_spellings(value: str) -> None:
    assert retry_after(value, SUNDAY - 30) == 30.0


def test_a_date_in_the_past_means_now() -> None:
    assert retry_after("Sun, 06 Nov 1994 08:49:37 GMT", SUNDAY + 1) == 0.0


def test_a_leap_second_is_read() -> None:
    assert retry_after("Sat, 31 Dec 2016 23:59:60 GMT", 1483228790.0) == 10.0


@pytest.mark.parametrize(
    ("this_year", "two_digits", "means"),
    [
        (2026, "30", 2030),
        (2026, "94", 1994),
        (2026, "76", 2076),
        (2026, "77", 1977),
        (1999, "05", 2005),
    ],
)
def test_two_digits_of_a_year_mean_at_most_fifty_years_ahead(
    this_year: int, two_digits: str, means: int
) -> None:
    now = datetime(this_year, 6, 1, tzinfo=UTC).timestamp()
    then = datetime(means, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()
    read = retry_after(f"Sunday, 06-Nov-{two_digits} 08:49:37 GMT", now)
    assert read == max(then - now, 0.0)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "5 s",
        "1e3",
        "inf",
        "nan",
        "0x10",
        "\u0665",
        "1,2",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 +0100",
        "1994-11-06T08:49:37Z",
    ],
)
def test_garbage_is_nothing(value: str) -> None:
    assert retry_after(value, SUNDAY) is None


def test_a_number_of_thousands_of_digits_is_large_and_finite() -> None:
    read = retry_after("9" * 8000, SUNDAY)
    assert read is not None
    assert math.isfinite(read)
    assert read > 1e300


@given(st.text())
def test_any_text_is_nothing_or_finite_and_not_negative(value: str) -> None:
    read = retry_after(value, SUNDAY)
    assert read is None or (math.isfinite(read) and read >= 0.0)


@given(
    st.datetimes(min_value=datetime(1995, 1, 1), max_value=datetime(9999, 1, 1)).map(  # noqa: DTZ001
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    )
)
def test_dates_agree_with_the_standard_library(moment: datetime) -> None:
    value = format_datetime(moment, usegmt=True)
    assert retry_after(value, SUNDAY) == moment.timestamp() - SUNDAY
